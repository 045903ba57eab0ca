"""Commands about data: `data import`, `data check` and `data NAME`; `withhold` hides items from training, `floors`
measures what to clear."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from index.command_line.border import NOT_ALLOWED, BorderedGroup, printable
from index.command_line.time_limit import TimeBudget, time_limit
from modeling.artifact.targets import check_target
from training.cli_common import (
    CACHE,
    LARGEST_SEED,
    Allow,
    Ledger,
    LedgerFile,
    Strict,
    check_ledger,
    check_out,
    errors_as_one_line,
    open_dataset,
    tolerances_of,
)
from training.cli_common import share as check_share

if TYPE_CHECKING:
    from training.data import Dataset
    from training.data.splits import Part, Split
    from training.evaluation.baselines import Baseline

console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, alone on the last line.")]


_BY_NAME = "fetch"
_CHOICES = {"repeats": ("keep", "first", "last"), "ties": ("shuffle", "file"), "unknown_items": ("keep", "drop")}


class DataGroup(BorderedGroup):
    """The commands of `data`; what is no command is the name of a data set to fetch."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command that fetches before a name, and before nothing at all."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [_BY_NAME, *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(
        cls=DataGroup,
        help="Data sets: `data NAME` fetches or generates one, `data import` reads your files, `data check` a folder.",
    )
    group.command(_BY_NAME)(data)
    group.command("import")(import_files)
    group.command()(check)
    app.add_typer(group, name="data")
    app.command(name="withhold")(withhold_items)
    app.command()(floors)


def data(
    name: Annotated[str | None, typer.Argument(help="Name of a data set; without one, the known names.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; data/NAME by default.")] = None,
    strict: Annotated[bool, typer.Option(help="Refuse any oddity in what was fetched.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch (with checksum and resume) or generate a data set, check it, and say what is in it."""
    with errors_as_one_line(console):
        from training.data import DataError, known_names, read_dataset
        from training.data.fetched.named import ensure_named
        from training.evaluation.table import json_line

        if name is None:
            typer.echo(json_line({"names": known_names()}) if as_json else "\n".join(known_names()))
            return
        if name not in known_names():
            raise DataError(f"data set {name!r} is not known; known: {', '.join(known_names())}")
        if out is not None:
            check_target(out, kind="data set")
        folder = ensure_named(name, CACHE, folder=out, console=console)
        dataset = read_dataset(folder, strict=strict)
    facts = {"folder": str(folder), **dataset.statistics(), "sha256": dataset.sha256}
    if as_json:
        typer.echo(json_line({"name": name, **facts, "report": dataset.report.to_dict()}))
        return
    for key, value in facts.items():
        typer.echo(f"{key.ljust(22)} {value}")
    for line in dataset.report.lines():
        typer.echo(line)


def withhold_items(
    data: Annotated[str, typer.Option(help="Name of a data set or a folder.")],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    share: Annotated[float, typer.Option(callback=check_share, help="Of the items, over 0 and under 1.")] = 0.05,
    ties: Annotated[str, typer.Option(help="Interactions of a user at the same time: file or shuffle.")] = "file",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the choice, and of shuffled ties.")] = 0,
    allow: Allow = None,
    as_json: Json = False,
) -> None:
    """Write a data set in which some items are in no training sequence, though in the catalog and among the targets:
    what a title can name without having been seen."""
    with errors_as_one_line(console):
        check_out(out, data, kind="new")
        from training.data import read_dataset
        from training.data.splits import leave_one_out
        from training.data.withhold import write_withheld
        from training.evaluation.table import json_line

        dataset = open_dataset(data, ties=ties, seed=seed, strict=False, allow=allow, console=console)
        count = write_withheld(dataset, share, seed, out)
        made = read_dataset(out)
    asked = leave_one_out(made)
    cold = asked.popularity() == 0
    facts = {
        "folder": str(out),
        "withheld_items": count,
        "interactions_dropped": dataset.n_interactions - made.n_interactions,
        "validation_targets_never_trained_on": int(cold[asked.validation.rows_T].sum()),
        "test_targets_never_trained_on": int(cold[asked.test.rows_T].sum()),
    }
    if as_json:
        typer.echo(json_line(facts))
        return
    for key, value in facts.items():
        typer.echo(f"{key.ljust(36)} {value}")


def floors(
    data: Annotated[str, typer.Option(help="Name of a data set or a folder.")],
    part: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    protocol: Annotated[str, typer.Option(help="leave-one-out or global-time.")] = "leave-one-out",
    ties: Annotated[str, typer.Option(help="Interactions of a user at the same time: file or shuffle.")] = "file",
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of tie-breaking, intervals and shuffled ties.")
    ] = 0,
    strict: Strict = False,
    allow: Allow = None,
    ledger: Ledger = True,
    ledger_file: LedgerFile = None,
    time_budget: TimeBudget = None,
    as_json: Json = False,
) -> None:
    """Popularity, Markov, item kNN, title TF-IDF and both kNN together, by the protocol of every other table."""
    with errors_as_one_line(console), time_limit(time_budget):
        check_ledger(ledger, ledger_file)
        from training.data import DataError
        from training.data.splits import global_time, leave_one_out
        from training.evaluation.baselines import FLOORS, measure_baseline
        from training.evaluation.table import json_line, print_results

        protocols = {"leave-one-out": leave_one_out, "global-time": global_time}
        if part not in ("test", "validation"):
            raise DataError(f"split is {part!r}; it is test or validation")
        if protocol not in protocols:
            raise DataError(f"protocol is {protocol!r}; it is {' or '.join(protocols)}")
        dataset = open_dataset(data, ties=ties, seed=seed, strict=strict, allow=allow, console=console)
        split = protocols[protocol](dataset)
        chosen: Part = "test" if part == "test" else "validation"
        results = {}
        for name in FLOORS:
            with console.status(f"{name} on {dataset.name}"):
                results[name] = measure_baseline(name, split, chosen, seed=seed)
            if ledger and chosen == "test":
                _enter(results[name], dataset, split, seed, ledger_file)
    metrics = {name: floor.metrics for name, floor in results.items()}
    caption = (
        f"{split.name}, {part}; fitted on train; whole catalog ranked, seen items removed, ties at random (seed "
        f"{seed}); ± half of the 95 % bootstrap interval over {len(split.targets(chosen)):,} users"
    )
    title = f"floors on {dataset.name} ({dataset.sha256[:12]})"
    print_results(title, metrics, caption, console if as_json else None)
    if as_json:
        rows = [{"method": name, "fitted_on": "train", **metrics[name].to_dict()} for name in metrics]
        about = {"data": dataset.name, "data_sha256": dataset.sha256, "split": split.name, "part": part}
        typer.echo(json_line({**about, "ties": dataset.ties, "seed": seed, "rows": rows}))


def _enter(floor: Baseline, dataset: Dataset, split: Split, seed: int, path: Path | None) -> None:
    from training.evaluation.ledger import append_entry

    append_entry(
        config={"method": floor.name, "fitted_on": floor.fitted_on, "ties": dataset.ties},
        seed=seed,
        data=dataset.name,
        data_sha256=dataset.sha256,
        split=split.name,
        part="test",
        result=floor.metrics.to_dict(),
        path=path,
    )


def import_files(
    sources: Annotated[list[Path], typer.Argument(help="Files, folders and archives; csv, JSON, parquet, Arrow, …")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    mapped: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="Columns by role: user=reviewerID,item=asin,time=unixReviewTime; time=none for none; of one file: "
            "films.csv:item=1,title=3.",
        ),
    ] = None,
    joins: Annotated[
        list[str] | None,
        typer.Option("--join", help="Columns of another file: orders.csv:order_id, items.csv:item=id; repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Take what was guessed without a question.")] = False,
    events: Annotated[
        str | None,
        typer.Option(help="Kinds of events that count, purchase,cart, with weights as purchase=3,view=1, or all."),
    ] = None,
    min_rating: Annotated[
        float | None, typer.Option(min=-1e9, max=1e9, help="Leave out interactions with a lower rating, or none.")
    ] = None,
    core: Annotated[
        str | None, typer.Option(help="Least interactions of users and items: 5, or user=5,item=3.")
    ] = None,
    repeats: Annotated[
        str, typer.Option(help="Of a user's interactions with one item: keep all, the first or the last.")
    ] = "keep",
    ties: Annotated[
        str, typer.Option(help="Interactions of a user at the same time: shuffle or file (its order).")
    ] = "shuffle",
    unknown_items: Annotated[
        str | None, typer.Option(help="Interactions with items that the items lack: keep (without a title) or drop.")
    ] = None,
    time_format: Annotated[str | None, typer.Option(help="Form of dates, as '%d/%m/%Y %H:%M'.")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of text: utf-8, cp932 (Shift-JIS), latin-1, …; else found out.")
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Between cells: ',' or ';' or '::' or 'tab'; else found out.")
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="Whether the first line names the columns; else found out."),
    ] = None,
    allow: Allow = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of shuffled ties.")] = 0,
    as_json: Json = False,
) -> None:
    """Read your files, show what was taken for what, and write a data set that every command reads."""
    with errors_as_one_line(console):
        from training.data.importing import parse_joins

        joined = parse_joins(joins or [])
        check_target(out, kind="data set", reads=[*sources, *(join.file for join in joined)])
        chosen = {"repeats": repeats, "ties": ties, "unknown_items": unknown_items}
        from training.data import importing
        from training.data.report import DataError
        from training.evaluation.table import json_line

        for name, value in chosen.items():
            if value is not None and value not in _CHOICES[name]:
                option = name.replace("_", "-")
                raise DataError(f"--{option} {value!r} is not allowed; allowed are {', '.join(_CHOICES[name])}")
        options = importing.ImportOptions(
            reading=importing.ReadOptions(encoding, "\t" if separator == "tab" else separator, header),
            columns=importing.parse_map(mapped or []),
            time_format=time_format,
            events=importing.parse_events(events),
            min_rating=min_rating,
            core=importing.parse_core(core),
            tolerances=tolerances_of(allow),
            seed=seed,
            joins=joined,
            **chosen,  # type: ignore[arg-type]
        )
        done = importing.import_data(sources, out, options, _confirmed if not yes else _shown)
    for line in done.report.lines():
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"wrote {out}: {done.users:,} users, {done.items:,} items, {done.interactions:,} interactions", markup=False
    )
    if as_json:
        typer.echo(json_line(done.to_dict()))


def _shown(read_as: str, doubts: Sequence[str]) -> bool:
    console.print(printable(read_as), highlight=False, markup=False, soft_wrap=True)
    for doubt in doubts:
        console.print(printable(f"doubtful: {doubt}"), style="yellow", highlight=False, markup=False, soft_wrap=True)
    return True


def _confirmed(read_as: str, doubts: Sequence[str]) -> bool:
    """Show what was guessed; ask on a terminal, and elsewhere go on only without doubts."""
    _shown(read_as, doubts)
    if sys.stdin.isatty() and sys.stderr.isatty():
        return typer.confirm("Take it so?", default=not doubts, err=True)
    return not doubts


def check(
    folder: Annotated[Path, typer.Argument(help="Folder with items and interactions.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="Count what its tokenizer does not know of the titles: minilm, or another by name."),
    ] = None,
    ties: Annotated[str, typer.Option(help="Interactions of a user at the same time: file or shuffle.")] = "file",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of shuffled ties.")] = 0,
    allow: Allow = None,
    as_json: Json = False,
) -> None:
    """Say what of a data set is used and what is lost; status 2 where commands would refuse it."""
    with errors_as_one_line(console):
        from training.data.checking import check_folder
        from training.data.report import DataError
        from training.evaluation.table import json_line

        if ties not in ("file", "shuffle"):
            raise DataError(f"ties is {ties!r}; it is 'file' or 'shuffle'")
        found = check_folder(folder, tolerances=tolerances_of(allow), ties=ties, seed=seed, backbone=backbone)  # type: ignore[arg-type]
        if as_json:
            typer.echo(json_line({"folder": str(folder), **found.to_dict()}))
        else:
            typer.echo("\n".join(map(printable, found.lines())))
    if found.refused:
        console.print(f"refused for {', '.join(finding.kind for finding in found.refused)}", style="red", markup=False)
        raise typer.Exit(NOT_ALLOWED)
