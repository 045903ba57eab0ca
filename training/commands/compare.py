"""The command `compare`: models side by side on one data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from index.command_line.time_limit import TimeBudget, minutes, time_limit
from training.cli_common import (
    LARGEST_SEED,
    RANKING,
    Allow,
    Json,
    Ledger,
    LedgerFile,
    Ties,
    check_ledger,
    check_out,
    check_precision,
    errors_as_one_line,
    open_dataset,
    use_cores,
)

if TYPE_CHECKING:
    from training.comparison.entrants import Entrant
    from training.comparison.measure import How
    from training.comparison.stages import Stages
    from training.data import Dataset

console = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(compare)


def compare(
    data: Annotated[str, typer.Option(help="Name of a data set or a folder.")],
    artifacts: Annotated[
        list[str], typer.Argument(help="Artifact folders, and with --out recipes (or NAME=RECIPE) that are trained.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report, and of artifacts that are trained; goes on if it exists.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME:section.field=value for a recipe; repeatable.")
    ] = None,
    backbone: Annotated[list[str] | None, typer.Option(help="NAME:BACKBONE for a recipe; repeatable.")] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="Split that recipes are trained on, leave-one-out (default) or global-time; repeatable."),
    ] = None,
    train_budget: Annotated[
        float | None, typer.Option(callback=minutes, help="Minutes for each training; the best epoch is kept.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of trainings: fp32, bf16 or auto.")] = "fp32",
    users: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Most users for an artifact that writes or ranks lists.")
    ] = 1000,
    rerank: Annotated[
        list[str] | None,
        typer.Option(help="DENSE:RANKER, two stages: one that takes part, and another one or an artifact; repeatable."),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=20, max=1000, help="Items that a ranker of --rerank orders; 50 if left out.")
    ] = None,
    split_part: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of trainings, tie-breaking, intervals and samples.")
    ] = 0,
    ties: Ties = "file",
    allow: Allow = None,
    ledger: Ledger = True,
    ledger_file: LedgerFile = None,
    time_budget: TimeBudget = None,
    as_json: Json = False,
) -> None:
    """Baselines and models in one table; with --out also train recipes and write a report (JSON, Markdown, HTML)."""
    with errors_as_one_line(console), time_limit(time_budget):
        if out is not None:
            check_out(out, data, *artifacts, kind="comparison")
        check_ledger(ledger, ledger_file)
        from training.compare import part_of
        from training.comparison.entrants import Asked, entrants_of
        from training.comparison.measure import How
        from training.comparison.stages import stages_of

        check_precision(precision, "auto", "fp32", "bf16")
        asked = Asked(artifacts, settings or [], backbone or [], protocol or Asked.protocols)
        entrants = entrants_of(asked, out)
        stages = stages_of(rerank or [], candidates, entrants)
        how = How(part_of(split_part), seed, users, ledger, ledger_file)
        dataset = open_dataset(data, ties=ties, seed=seed, strict=False, allow=allow, console=console)
        use_cores()
        if out is None:
            _table(entrants, stages, dataset, how, as_json)
            return
        from training.comparison.pages import markdown
        from training.comparison.session import Training, compare

        training = Training(train_budget, precision)
        report = compare(entrants, dataset, out, how=how, training=training, console=console, stages=stages)
    print(json.dumps(report) if as_json else markdown(report))


def _table(entrants: list[Entrant], stages: list[Stages], dataset: Dataset, how: How, as_json: bool) -> None:
    """The headline figures alone; artifacts after the first with a paired interval against it. Two stages have a table
    of their own."""
    from training.compare import compare_artifacts, differences
    from training.comparison.stages import measured_stages
    from training.comparison.tables import stages_table
    from training.evaluation.table import print_results, print_rows

    runs = [measured_stages(pair, dataset, how, None, console) for pair in stages]
    rows, table = compare_artifacts(
        [each.folder for each in entrants], dataset, how.part,
        seed=how.seed, ledger=how.ledger, ledger_file=how.ledger_file, console=console,
    )  # fmt: skip
    title, to = f"{dataset.name}, {how.part}", console if as_json else None
    print_results(title, table, RANKING, to, differences(rows))
    if runs:
        rows += [{"method": run.name, **run.facts} for run in runs]
        shown = stages_table([{"name": run.name, **run.facts} for run in runs])
        print_rows(shown.title, shown.columns, shown.rows, shown.about, to)
    if as_json:
        about = {"data": dataset.name, "data_sha256": dataset.sha256, "part": how.part}
        print(json.dumps({**about, "ties": dataset.ties, "seed": how.seed, "rows": rows}))
