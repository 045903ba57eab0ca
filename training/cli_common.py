"""Common functions of the commands: opening a data set with its report, our own errors as one line, checks of options.

Imports nothing heavy: every command line pays for what stands here, `--help` too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.command_line.border import NOT_ALLOWED, printable
from index.command_line.time_limit import minutes
from modeling.artifact.targets import Kind, TargetError, check_file, check_target

if TYPE_CHECKING:
    from rich.console import Console

    from training.data import Dataset
    from training.data.report import Tolerances

LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger one."""
CACHE = Path("data")
Ledger = Annotated[bool, typer.Option(help="Append test results to the ledger, artifacts/test-ledger.jsonl.")]
LedgerFile = Annotated[
    Path | None, typer.Option(help="Another ledger to append to, e.g. benchmarks/results/test-ledger.jsonl.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Tolerate more of a kind of odd rows, e.g. unknown_item=0.2; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, alone on standard output.")]
Strict = Annotated[bool, typer.Option(help="Refuse any oddity in the data.")]
KeepWork = Annotated[bool, typer.Option(help="Keep checkpoints and TensorBoard logs after success.")]
Ties = Annotated[str, typer.Option(help="Order of interactions of a user at the same time: 'file' or 'shuffle'.")]
SplitName = Annotated[str, typer.Option(help="leave-one-out or global-time.")]
IdModel = Annotated[Path | None, typer.Option(help="Artifact that a recipe with `requires` builds on.")]
TrainingBudget = Annotated[
    float | None, typer.Option(callback=minutes, help="Stop after this many minutes and keep the best epoch so far.")
]
RANKING = "whole catalog ranked, seen items removed, ties at random; ± half of the 95 % bootstrap interval"
TOP_FIELDS = ("user_id", "history", "target", "top")
_OURS = {
    "training.data.report": "DataError",
    "training.recipe": "RecipeError",
    "training.publishing.hub": "PublishError",
    "modeling.artifact.manifest": "ArtifactError",
    "modeling.backbone.loading": "BackboneError",
    "modeling.backbone.adapters.base": "AdapterError",
    "modeling.inference.int8_linear": "PrecisionError",
    "index.catalog": "CatalogError",
    "index.base": "IndexFolderError",
}


def our_errors() -> tuple[type[Exception], ...]:
    """The errors whose message is written for the reader. One whose module was not imported cannot have been raised."""
    found = [getattr(sys.modules[home], name) for home, name in _OURS.items() if home in sys.modules]
    return (TargetError, FloatingPointError, *found)


@contextlib.contextmanager
def errors_as_one_line(console: Console) -> Iterator[None]:
    """Our own errors end a command with one line and status 2; the rest is for `index.command_line.border`."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, our_errors()):
            raise
        text = printable(f"error: {error}")
        console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(NOT_ALLOWED) from None


def tolerances_of(allow: list[str] | None) -> Tolerances:
    """The tolerances that ``--allow`` asks for; raises `DataError`."""
    from training.data.importing import parse_allowed
    from training.data.report import Tolerances

    return Tolerances(by_kind=parse_allowed(allow or []))


def open_dataset(
    name: str, *, ties: str, seed: int, strict: bool, console: Console, allow: list[str] | None = None
) -> Dataset:
    """Read a data set by name or folder and say what was found in it.

    Args:
        name: a known name, or a folder.
        ties: ``file`` or ``shuffle``: the order of interactions of a user at the same time.
        seed: of the shuffle.
        strict: refuse every oddity.
        allow: shares tolerated, as ``kind=share``.
        console: the report goes here.
    """
    from training.data import DataError, load_dataset, shuffle_ties

    if ties not in ("file", "shuffle"):
        raise DataError(f"ties is {ties!r}; it is 'file' or 'shuffle'")
    dataset = load_dataset(name, cache_dir=CACHE, strict=strict, tolerance=tolerances_of(allow))
    if ties == "shuffle":
        dataset = shuffle_ties(dataset, seed)
    facts = dataset.statistics()
    console.print(
        f"data {dataset.name}: {facts['users']:,} users, {facts['items']:,} items, "
        f"{facts['interactions']:,} interactions",
        markup=False,
    )
    for line in dataset.report.lines():
        console.print(printable(line), highlight=False, markup=False)
    return dataset


def check_out(out: Path, data: str, *others: Path | str | None, kind: Kind = "artifact") -> None:
    """Refuse a folder that a command must not replace, before anything is read; see `modeling.artifact.targets`."""
    check_target(out, kind=kind, reads=[*_data_folders(data), *others])


def check_top(top: Path | None, data: str, *others: Path | str | None) -> None:
    """Refuse a file that a command must not write over, before anything is read."""
    if top is not None:
        check_file(top, fields=TOP_FIELDS, reads=[*_data_folders(data), *others])


def _data_folders(data: str) -> Iterable[Path | str]:
    """A folder as given, and where a named data set is, or will be, kept."""
    return [data, CACHE / data]


def check_ledger(ledger: bool, file: Path | None) -> None:
    """Refuse a ledger that is no ledger, before anything is measured."""
    if file is not None and ledger:
        check_file(file, fields=("config_sha256", "result"))


def share(value: float) -> float:
    """Check a share: a number over 0 and under 1."""
    if not 0 < value < 1:
        raise typer.BadParameter(f"{value:g} is not allowed; a share is over 0 and under 1")
    return value


def check_precision(precision: str, *allowed: str) -> None:
    """Raises `RecipeError` for a precision of a training that is not allowed."""
    from training.recipe import RecipeError

    if precision not in allowed:
        *first, last = allowed
        raise RecipeError(f"precision {precision!r} is not allowed; allowed are {', '.join(first)} and {last}")


def use_cores() -> None:
    """One torch thread a core this process may use."""
    import torch

    from modeling.cores import asked_threads, available_cores

    torch.set_num_threads(asked_threads() or available_cores())
