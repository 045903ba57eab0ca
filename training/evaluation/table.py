"""Results as people and programs read them: a table on the terminal, and one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from training.evaluation.metrics import Metrics

_ACCURACY = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@20", "ndcg@20", "mrr")
_BEYOND = ("coverage", "novelty", "popularity_lift")
_WITH_INTERVAL = ("recall@10", "ndcg@10")


def results_table(
    title: str, results: Mapping[str, Metrics], caption: str = "", against: Mapping[str, str] | None = None
) -> Table:
    """One row per run, one column per metric; Recall@10 and NDCG@10 with half the width of their 95 % interval.

    ``against``: by run, the difference to the first one, as text; a column of its own.
    """
    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    table.add_column("run", no_wrap=True)
    names = _columns(results)
    for name in names:
        table.add_column(_heading(name), justify="right")
    if against is not None:
        table.add_column("NDCG@10 against the first [95 %]", justify="right", no_wrap=True)
    best = {name: max((m.accuracy[name].value for m in results.values()), default=0.0) for name in _ACCURACY}
    for run, metrics in results.items():
        last = [] if against is None else [escape(against.get(run, "–"))]
        table.add_row(escape(run), *(_cell(metrics, name, best) for name in names), *last)
    return table


def print_results(
    title: str,
    results: Mapping[str, Metrics],
    caption: str = "",
    console: Console | None = None,
    against: Mapping[str, str] | None = None,
) -> None:
    """Print the table; without a terminal it is as wide as it needs to be, so that no figure is cut."""
    console = console or Console()
    table = results_table(escape(title), results, escape(caption), against)
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 200 if against else 160))
    console.print(table)


def print_rows(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, console: Console | None = None
) -> None:
    """Print a table of text; without a terminal each row is one line."""
    console = console or Console()
    table = Table(title=escape(title), caption=escape(caption), title_justify="left", caption_justify="left")
    for name in columns:
        table.add_column(escape(name))
    for row in rows:
        table.add_row(*map(escape, row))
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, console.measure(table).maximum))
    console.print(table)


def json_line(fields: Mapping[str, Any]) -> str:
    """One line of JSON, keys in the order given; metrics become plain data."""
    return json.dumps({name: _plain(value) for name, value in fields.items()})


def _columns(results: Mapping[str, Metrics]) -> list[str]:
    """The metrics some run has: accuracy first, then what is beside it."""
    held = dict.fromkeys(name for metrics in results.values() for name in (*metrics.accuracy, *metrics.beyond))
    beyond = [name for start in _BEYOND for name in held if name.startswith(start + "@")]
    return [name for name in _ACCURACY if name in held] + beyond


def _plain(value: Any) -> Any:
    from training.evaluation.metrics import Metrics

    if isinstance(value, Metrics):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return value


def _heading(name: str) -> str:
    return {"mrr": "MRR"}.get(name, name.replace("recall", "HR").replace("ndcg", "NDCG").replace("popularity_", ""))


def _cell(metrics: Metrics, name: str, best: Mapping[str, float]) -> str:
    if name in metrics.accuracy:
        interval = metrics.accuracy[name]
        text = f"{interval.value:.4f}"
        if name in _WITH_INTERVAL:
            text += f" ±{(interval.high - interval.low) / 2:.4f}"
        return f"[bold]{text}[/bold]" if interval.value == best[name] > 0 else text
    value = metrics.beyond.get(name)
    if value is None:
        return "–"
    return f"{value:+.2f}" if name.startswith("popularity") else f"{value:.3f}"
