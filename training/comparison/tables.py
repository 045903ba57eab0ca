"""The tables of a report: titles, headings and cells as text, for the Markdown and the HTML page alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from training.evaluation.significance import LEVEL

NONE = "–"
HEAD = ("recall@10", "ndcg@10", "mrr")
CUTS = ("recall@5", "ndcg@5", "recall@20", "ndcg@20")


class Table(NamedTuple):
    """A heading, a sentence that says how to read it, columns, and rows of text."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables_of(protocol: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of one protocol's section; one without a row is left out."""
    runs = protocol["runs"]
    for table in (
        _accuracy(runs),
        _cuts(runs),
        _tests(protocol["tests"]),
        stages_table(runs),
        _kept(runs),
        _groups(runs, "by_popularity", "By popularity of the target", "Times that the target was chosen in training."),
        _groups(runs, "by_history", "By length of the history", "Items before the target."),
        _cold(runs),
        _beyond(runs),
        _order(runs),
        _cost(runs),
        _published(protocol["published"]),
    ):
        if table.rows:
            yield table


def interval(figure: Mapping[str, float] | None) -> str:
    """``value [low, high]``."""
    return NONE if figure is None else f"{figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"


def _accuracy(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [run["name"], run.get("recipe") or NONE, *(interval(run[name]) for name in HEAD), run["asked"]] for run in runs
    ]
    about = "Whole catalog ranked, seen items removed, ties at random; value and 95 % interval."
    return Table("Accuracy", about, ["run", "recipe", "Recall@10", "NDCG@10", "MRR", "users"], rows)


def _cuts(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[run["name"], *(interval(run[name]) for name in CUTS)] for run in runs]
    return Table("At 5 and 20", "As above.", ["run", "Recall@5", "NDCG@5", "Recall@20", "NDCG@20"], rows)


def _tests(tests: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for test in tests:
        metric = test["metric"].replace("ndcg", "NDCG").replace("recall", "Recall")
        difference = f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]"
        verdict = NONE if test["p_holm"] >= LEVEL else (test["a"] if test["difference"] > 0 else test["b"])
        rows.append(
            [test["a"], test["b"], metric, difference, f"{test['p']:.2g}", f"{test['p_holm']:.2g}", verdict,
             f"{test['questions']:,}"]
        )  # fmt: skip
    about = (
        f"First minus second over the same users; paired t-test (NDCG) and McNemar's exact test (Recall). Holm's p "
        f"corrects for all {len(tests)} tests of this table; a run is called better where it is below {LEVEL}."
    )
    columns = ["first", "second", "metric", "difference [95 %]", "p", "Holm's p", "better", "users"]
    return Table("Paired tests", about, columns, rows)


def stages_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Two stages beside the dense one alone, asked about the same users."""
    rows = []
    for run in runs:
        if not (found := run.get("stages")):
            continue
        difference, serving = found["difference"], run["serving"]
        paired = f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
        subset = [found.get(name) for name in ("dense_subset_ndcg@10", "subset_ndcg@10")]
        times = [serving["dense"], serving] if "dense" in serving else [None, None]
        rows.append(
            [run["name"], f"{found['candidates']:,}", run["asked"], f"{found['inside']:.3f}",
             interval(found["dense_ndcg@10"]), interval(found["ndcg@10"]), paired, *map(interval, subset),
             *(serving.get("error", NONE) if each is None else f"{each['p50_ms']:.2f}" for each in times)]
        )  # fmt: skip
    about = (
        "NDCG@10 of the dense stage alone and of both, over the same users: all of them, and those whose target is "
        "among the candidates. p50: milliseconds of one request."
    )
    columns = [
        "run", "candidates", "users", "target among them", "dense alone", "both stages", "difference [95 %]",
        "dense alone, target among them", "both, target among them", "p50 dense alone", "p50 both",
    ]  # fmt: skip
    return Table("Two stages", about, columns, rows)


def _kept(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [run["name"], interval(kept["recall@10"]), interval(kept["ndcg@10"])]
        for run in runs
        if (kept := run.get("seen_kept"))
    ]
    about = "The same with the user's own items left in the ranking, as some papers rank; compare with such alone."
    return Table("Seen items kept", about, ["run", "Recall@10", "NDCG@10"], rows)


def _groups(runs: Sequence[Mapping[str, Any]], key: str, title: str, about: str) -> Table:
    groups = list(dict.fromkeys(name for run in runs for name in run[key]))
    most = {name: max(run[key].get(name, {}).get("questions", 0) for run in runs) for name in groups}
    rows = [
        [run["name"], *(interval(run[key][name]["ndcg@10"]) if name in run[key] else NONE for name in groups)]
        for run in runs
    ]
    columns = ["run", *(f"{name} ({most[name]:,} users)" for name in groups)]
    return Table(title, f"{about} NDCG@10.", columns, rows)


def _cold(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [run["name"], f"{cold['questions']:,}", interval(cold["recall@10"]), interval(cold["ndcg@10"])]
        for run in runs
        if (cold := run.get("cold"))
    ]
    about = "Targets without training interactions."
    return Table("Cold items", about, ["run", "users", "Recall@10", "NDCG@10"], rows)


def _beyond(runs: Sequence[Mapping[str, Any]]) -> Table:
    names = {"coverage@20": "coverage", "novelty@20": "novelty (bits)", "popularity_lift@20": "popularity lift"}
    rows = [
        [run["name"], *(NONE if run.get(name) is None else f"{run[name]:.3f}" for name in names)]
        for run in runs
        if any(run.get(name) is not None for name in names)
    ]
    about = "Of the lists of 20: share of the catalog shown, mean self-information, popularity above the histories'."
    return Table("Beyond accuracy", about, ["run", *names.values()], rows)


def _order(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [run["name"], interval(run["ndcg@10"]), interval(found["ndcg@10"]), found["asked"]]
        for run in runs
        if (found := run.get("history_shuffled"))
    ]
    about = "NDCG@10 with each history read in a random order: a model that loses nothing reads a set, not a sequence."
    return Table("Order of the history", about, ["run", "as it was", "in random order", "users"], rows)


def _cost(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for run in runs:
        if not (serving := run.get("serving")):
            continue
        training, seconds = run["training"], run["training"].get("seconds")
        failed = serving.get("error")
        rows.append(
            [run["name"], *([failed, NONE, NONE] if failed else
             [f"{serving['p50_ms']:.2f}", f"{serving['p95_ms']:.2f}", f"{serving['memory_mib']:.0f}"]),
             f"{run['disk_bytes'] / 2**20:.1f}", NONE if seconds is None else f"{seconds / 60:.2f}",
             NONE if training.get("epochs") is None else f"{training['epochs']:g}", training.get("precision") or NONE]
        )  # fmt: skip
    about = (
        "One request at a time in a process of its own, without HTTP; training on the machine that its row was made on."
    )
    columns = ["run", "p50 (ms)", "p95 (ms)", "memory (MiB)", "artifact (MiB)", "training (min)", "epochs", "precision"]
    return Table("Serving and training", about, columns, rows)


def _published(rows: Sequence[Mapping[str, Any]]) -> Table:
    found = [
        [row["method"], f"{row['recall_10']:.4f}", f"{row['ndcg_10']:.4f}", row["seen"], row["source"]] for row in rows
    ]
    about = "Other authors' figures on this data, the whole catalog ranked, not measured here; mind the seen items."
    return Table("Published figures", about, ["method", "HR@10", "NDCG@10", "seen items", "source"], found)
