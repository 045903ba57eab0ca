"""`training compare --out`: trains what is missing once, asks all the same questions, and says what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

import modeling.methods
import training.cli
import training.methods
import training.recipes
from modeling.artifact.manifest import read_manifest
from scripts.pages.results import RESULTS
from testing.datasets import SMALL, write_dataset
from training.comparison import entrants, measure
from training.comparison.footprint import measure as footprint
from training.comparison.pages import html, markdown
from training.comparison.published import _BEAUTY
from training.evaluation.segments import COLD, by_length, by_popularity
from training.evaluation.significance import holm, paired_tests
from training.publishing.card import card
from training.recipe import RecipeError
from training.recipes import get_recipe

USERS = 5
ADDED = Path(__file__).parents[2] / "added_method"
PLACES = {"modeling": modeling.methods, "training": training.methods, "recipes": training.recipes}
SETTINGS = [word for setting in [*SMALL, "optimizer.epochs=1"] for word in ("--set", f"sasrec:{setting}")]


def test_holm_steps_down_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_tests_are_paired_and_know_no_difference_from_a_small_one() -> None:
    rng = np.random.default_rng(0)
    hard_T = rng.integers(1, 30, 400)
    same = paired_tests("a", hard_T, "b", hard_T)
    assert [test.p for test in same] == [1.0, 1.0] and [test.difference for test in same] == [0.0, 0.0]
    better_T = np.maximum(1, hard_T - (hard_T % 3 == 0))  # one place better for a third of the users
    paired = {test.metric: test for test in paired_tests("a", better_T, "b", hard_T)}
    unpaired = {test.metric: test for test in paired_tests("a", rng.permutation(better_T), "b", hard_T)}
    assert paired["ndcg@10"].p < 0.05 < unpaired["ndcg@10"].p
    assert paired["ndcg@10"].low > 0
    one_T, other_T = np.array([1] * 8 + [99] * 12), np.array([99] * 8 + [99] * 11 + [1])
    assert {t.metric: t for t in paired_tests("a", one_T, "b", other_T)}["recall@10"].p == pytest.approx(20 / 512)


def test_groups_hold_every_question_once_and_cold_targets_apart() -> None:
    counts_T = np.array([0, 0, 1, 1, 1, 1, 2, 3, 9, 9, 40, 41])
    for groups in (by_popularity(counts_T), by_length(counts_T + 1)):
        assert (sum(group.astype(int) for group in groups.values()) == 1).all(), groups.keys()
    assert by_popularity(counts_T)[COLD].tolist() == [True, True, *[False] * 10]
    assert list(by_popularity(np.array([1, 1, 1]))) == ["1"]


def test_published_figures_are_those_of_the_results() -> None:
    """One page shows them beside anyo's; both say the same."""
    same = json.loads((RESULTS / "quality" / "published-same-protocol.json").read_text())["rows"]
    other = json.loads((RESULTS / "quality" / "published-other-protocol.json").read_text())["rows"]
    kept = [row for row in other if row["data"] == "amazon-beauty" and "seen items kept" in row["reason"]]
    expected = {(row["hr@10"], row["ndcg@10"], "removed") for row in same}
    known = {(row["hr@10"], row["ndcg@10"], "kept") for row in kept}
    found = {(each.recall_10, each.ndcg_10, each.seen) for each in _BEAUTY}
    assert {each for each in found if each[2] == "removed"} == expected
    assert {each for each in found if each[2] == "kept"} <= known


@pytest.fixture(scope="module", autouse=True)
def added() -> Iterator[None]:
    """A method that returns lists and takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        for folder, package in PLACES.items():
            patch.setattr(package, "__path__", [*package.__path__, str(ADDED / folder)])
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with times, and the words of its comparison."""
    folder = write_dataset(tmp_path_factory.mktemp("compared") / "ring", users=40)
    rng = np.random.default_rng(1)
    events = pl.read_csv(folder / "interactions.csv")
    begins = {user: int(rng.integers(0, 8)) for user in events["user_id"].unique(maintain_order=True)}
    times = [1000 * (step + begins[user]) + 7 for user, _, step in events.iter_rows()]
    events.with_columns(pl.Series("timestamp", times)).write_csv(folder / "interactions.csv")
    return folder.parent


def compare(place: Path, *more: str) -> Any:
    words = ["compare", "sasrec", "counted=transitions", "--data", str(place / "ring"), "--out", str(place / "out")]
    return CliRunner().invoke(training.cli.app, [*words, *SETTINGS, "--users", str(USERS), "--no-ledger", *more])


@pytest.fixture(scope="module")
def report(place: Path) -> dict[str, Any]:
    """Of both protocols, as it came on standard output; requests are not timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "footprint_of", lambda folder, histories: {"error": "not timed here"})
        done = compare(place, "--protocol", "leave-one-out", "--protocol", "global-time", "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_report_is_alone_on_standard_output_and_in_three_files(report: dict[str, Any], place: Path) -> None:
    assert json.loads((place / "out" / "report.json").read_text()) == report
    page = (place / "out" / "report.html").read_text()
    assert page == html(report) and (place / "out" / "report.md").read_text() == markdown(report)
    assert "<script" not in page and "http" not in page.replace("http-equiv", "") and page.count("<svg") >= 4


def test_every_protocol_has_its_models_with_all_figures(report: dict[str, Any]) -> None:
    first, second = report["protocols"]
    assert first["split"] == "leave-one-out" and second["split"].startswith("global-time")
    for protocol, names in ((first, ["sasrec", "counted"]), (second, ["sasrec.global-time", "counted.global-time"])):
        runs = {run["name"]: run for run in protocol["runs"]}
        assert [name for name in runs if "baseline" not in name] == names
        dense, counted = (runs[name] for name in names)
        assert dense["asked"] == "all" and dense["questions"] == protocol["questions"]
        assert dense["seen_kept"]["ndcg@10"]["value"] <= dense["ndcg@10"]["value"] and dense["history_shuffled"]
        assert counted["asked"].startswith(f"{USERS} of") and counted["questions"] == USERS
        assert sum(group["questions"] for group in counted["by_history"].values()) == USERS
        pairs = {(test["a"], test["b"]): test["questions"] for test in protocol["tests"]}
        assert pairs[(names[0], names[1])] == USERS, "a test is over users that both were asked about"
        assert len(protocol["tests"]) == 6 and all(test["p_holm"] >= test["p"] for test in protocol["tests"])
        assert protocol["published"] == []


def test_it_goes_on_where_it_stopped(report: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is there is trained or measured again, and the figures stay."""

    def nothing(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("done before")

    monkeypatch.setattr(entrants, "run", nothing)
    monkeypatch.setattr(measure, "open_artifact", nothing)
    done = compare(place, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["protocols"] == report["protocols"][:1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "1"], "another seed"),
        (["--set", "counted:optimizer.epochs=2"], "optimizer.epochs"),
        (["--set", "nobody:a.b=1"], "belongs to no recipe"),
        (["--protocol", "weekly"], "allowed are leave-one-out, global-time"),
        (["dllm2rec"], "teacher's lists"),
        (["sasrec"], "takes part twice"),
        (["nowhere"], "neither an artifact's folder nor a recipe"),
        (["--ties", "shuffle"], "name another --out"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(report: dict[str, Any], place: Path, more: list[str], message: str) -> None:
    done = compare(place, *more)
    assert done.exit_code == 2 and message in done.stderr.replace("\n", " "), done.stderr


def test_what_a_recipe_builds_on_takes_part_by_the_same_protocol(tmp_path: Path) -> None:
    asked = entrants.Asked(["llara", "sasrec"], protocols=["global-time"])
    llara, sasrec = entrants.entrants_of(asked, tmp_path)
    assert entrants._base(llara, [llara, sasrec]) == sasrec and entrants._base(sasrec, [sasrec]) is None
    (other,) = entrants.entrants_of(entrants.Asked(["sasrec"]), tmp_path)
    with pytest.raises(RecipeError, match="builds on a model of recipe 'sasrec' by global-time"):
        entrants._base(llara, [llara, other])


def test_names_are_text_on_both_pages(report: dict[str, Any]) -> None:
    named = json.loads(json.dumps(report).replace('"sasrec"', '"<b>|sas\\\\rec"'))
    assert "<b>" not in html(named) and "| &lt;b&gt;\\|sas\\\\rec |" in markdown(named)


def test_a_request_is_timed_and_memory_counted(report: dict[str, Any], place: Path) -> None:
    for name in ("sasrec", "counted"):
        found = footprint(place / "out" / "artifacts" / name, [[1, 2], [3]])
        assert found["requests"] == 2 and 0 < found["p50_ms"] <= found["p95_ms"] and found["memory_mib"] >= 0


def test_a_card_says_what_the_manifest_and_the_report_say(report: dict[str, Any], place: Path) -> None:
    folder = place / "out" / "artifacts" / "sasrec"
    (place / "both.json").write_text(json.dumps(report))
    words = ["card", str(folder), "--report", str(place / "both.json")]
    done = CliRunner().invoke(training.cli.app, words)
    assert done.exit_code == 0, done.output
    manifest, run = read_manifest(folder), report["protocols"][0]["runs"][5]
    front = yaml.safe_load(done.stdout.split("---\n")[1])
    assert front["datasets"] == [manifest.data] and front["model-index"][0]["results"][0]["metrics"][1] == {
        "type": "ndcg@10",
        "value": run["ndcg@10"]["value"],
    }
    for text in (manifest.version, manifest.data_sha256, f"[{run['mrr']['low']:.4f}, {run['mrr']['high']:.4f}]"):
        assert text in done.stdout
    plain = CliRunner().invoke(training.cli.app, words[:2]).stdout
    assert f"| ndcg@10 | {manifest.metrics['validation_ndcg@10']:.4f} |" in plain and "optimistic" in plain
    other = CliRunner().invoke(training.cli.app, ["card", f"{folder}.global-time", *words[2:]])
    assert other.exit_code == 0 and "global-time" in other.stdout
    (place / "other.json").write_text(json.dumps({**report, "data": {"sha256": "0"}}))
    refused = CliRunner().invoke(training.cli.app, [*words[:3], str(place / "other.json")])
    assert refused.exit_code == 2 and "no run of version" in refused.stderr.replace("\n", " ")


def test_a_card_names_the_licences_of_backbones_and_escapes_names(place: Path, report: dict[str, Any]) -> None:
    manifest = read_manifest(place / "out" / "artifacts" / "sasrec")
    recipe = get_recipe("anyo", backbone="minilm").model_dump(mode="json")
    text = card(manifest.model_copy(update={"recipe_data": recipe, "data": 'a: "b"|<b>'}))
    assert "Apache-2.0 (all-MiniLM-L6-v2)" in text and '| a: "b"\\|&lt;b&gt; |' in text
    assert yaml.safe_load(text.split("---\n")[1])["datasets"] == ['a: "b"|<b>']
