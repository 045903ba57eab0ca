"""The command `choose`: the recipe that suits a data set, found by trying."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from index.command_line.time_limit import minutes as checked_minutes
from training.cli_common import (
    LARGEST_SEED,
    Allow,
    Json,
    KeepWork,
    SplitName,
    Strict,
    Ties,
    check_out,
    check_precision,
    errors_as_one_line,
    open_dataset,
    use_cores,
)

console = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(choose)


def choose(
    data: Annotated[str, typer.Option(help="Name of a data set or a folder; see `data --help`.")],
    out: Annotated[Path, typer.Option(help="Artifact folder to write.")],
    time_budget: Annotated[
        float, typer.Option(callback=checked_minutes, help="Minutes for all trainings together; they may end earlier.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of all trainings.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: the faster of them, as measured here.")] = "fp32",
    split: SplitName = "leave-one-out",
    ties: Ties = "file",
    strict: Strict = False,
    allow: Allow = None,
    keep_work: KeepWork = False,
    as_json: Json = False,
) -> None:
    """Try the recipes that suit the data, and write the one with the best NDCG@10 on validation.

    Rules look at the number of items and interactions, at the titles and at the time. Started again, it goes on where
    it was ended.
    """
    with errors_as_one_line(console):
        check_out(out, data)
        from training.choosing.candidates import Speed, candidates_for
        from training.choosing.choose import choose as chosen_of
        from training.run import RunOptions

        check_precision(precision, "auto", "fp32", "bf16")
        dataset = open_dataset(data, ties=ties, seed=seed, strict=strict, allow=allow, console=console)
        use_cores()
        options = RunOptions(out=out, seed=seed, precision=precision, split=split, keep_work=keep_work)  # type: ignore[arg-type]
        candidates = candidates_for(dataset, Speed.here(time_budget))
        choice = chosen_of(candidates, dataset, options, time_budget, console)
    table = Table("candidate", "validation NDCG@10", "reason", title=f"{out}: {choice.chosen}")
    for each in choice.tried:
        table.add_row(each.name, "–" if each.figure is None else f"{each.figure:.4f}", each.reason)
    console.print(table)
    if as_json:
        print(
            json.dumps({"artifact": str(out), "version": choice.manifest.version, **choice.manifest.training["choice"]})
        )
