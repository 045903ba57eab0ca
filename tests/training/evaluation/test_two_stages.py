"""`training compare --rerank`: two artifacts together give what the service answers with them, and are measured so."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import training.cli
from modeling.methods import load
from modeling.methods.base_ranking import Rerank, VectorRanker
from testing.datasets import QUIET, SMALL, write_dataset
from testing.models import write_byte_level
from tests.service.recommend.test_ranking import serving
from training.comparison import stages
from training.comparison.footprint import SecondStage
from training.comparison.footprint import measure as footprint
from training.data.dataset import read_dataset
from training.data.splits import leave_one_out
from training.evaluation.full_ranking import encode_users, rank_all
from training.evaluation.metrics import question_values
from training.recipes import get_recipe
from training.run import RunOptions, run

CANDIDATES = 20
ASKED = ["history.limit=4", "method.candidates=4", "method.answers=choices", "optimizer.epochs=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 60 items, a dense artifact, and two rankers."""
    folder = tmp_path_factory.mktemp("stages")
    dataset = read_dataset(write_dataset(folder / "ring", users=30, items=60))
    zero = [*ASKED, "method.validation_users=4", "method.final_users=4"]
    recipes = {
        "dense": get_recipe("sasrec", [*SMALL, "optimizer.epochs=2"]),
        "counted": get_recipe("markov"),
        "asked": get_recipe("tallrec", zero, backbone=str(write_byte_level(folder / "bytes"))),
    }
    for name, recipe in recipes.items():
        run(recipe, dataset, RunOptions(out=folder / name), QUIET)
    return folder


def compare(place: Path, *more: str, artifact: str = "dense") -> Any:
    words = ["compare", str(place / artifact), "--data", str(place / "ring"), "--no-ledger", "--split", "validation"]
    return CliRunner().invoke(training.cli.app, [*words, *more])


def row_of(place: Path, ranker: str, *more: str) -> dict[str, Any]:
    """The row of two stages, which are not timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "footprint_of", lambda folder, histories, second: {"error": "not timed here"})
        pair = ["--rerank", f"dense:{place / ranker}", "--candidates", str(CANDIDATES)]
        done = compare(place, *pair, "--json", *more)
    assert done.exit_code == 0, done.output
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    found: dict[str, Any] = rows[f"dense + {ranker}"]
    return found


async def served(place: Path, ranker: str) -> list[list[str]]:
    """The lists that the service answers every user with, in two stages."""
    data = read_dataset(place / "ring")
    answers = []
    async with serving(place / "dense", place / ranker, second_stage_ms=30_000, deadline_ms=60_000) as anyo:
        for history in leave_one_out(data).validation.histories():
            stage = {"artifact": ranker, "candidates": CANDIDATES}
            answer = await anyo.recommend(history.tolist(), k=CANDIDATES, rerank=stage)
            assert answer["rerank"]["artifact"]["name"] == ranker and not answer["degraded"]
            answers.append([item["item_id"] for item in answer["items"]])
    return answers


@pytest.mark.parametrize("ranker", ["counted", "asked"])
def test_both_stages_are_those_of_the_service(place: Path, ranker: str) -> None:
    """Every figure is recomputed from the answers of `POST /recommend`."""
    data = read_dataset(place / "ring")
    targets = leave_one_out(data).validation
    lists = asyncio.run(served(place, ranker))
    dense = load(place / "dense").model
    histories = [history.astype(np.int64) for history in targets.histories()]
    users_TD = encode_users(dense.encoder, histories)
    alone_T = rank_all(users_TD, dense.item_vectors_ND, targets.rows_T, histories, seed=0)
    wanted = [data.item_ids[row] for row in targets.rows_T.tolist()]
    pairs = zip(lists, wanted, alone_T.tolist(), strict=True)
    both_T = np.array([items.index(item) + 1 if item in items else rank for items, item, rank in pairs])
    row = row_of(place, ranker)
    for name, ranks_T in (("dense_ndcg@10", alone_T), ("ndcg@10", both_T)):
        assert row["stages"][name]["value"] == pytest.approx(question_values(ranks_T)["ndcg@10"].mean(), abs=1e-6)
    inside_T = alone_T <= CANDIDATES
    assert 0 < row["stages"]["inside"] == inside_T.mean() < 1
    inside = question_values(both_T[inside_T])["ndcg@10"].mean()
    assert row["stages"]["subset_ndcg@10"]["value"] == pytest.approx(inside, abs=1e-6)
    assert row["mrr"]["value"] == pytest.approx((1 / both_T).mean(), abs=1e-6) and not np.array_equal(both_T, alone_T)
    apart = row["stages"]["ndcg@10"]["value"] - row["stages"]["dense_ndcg@10"]["value"]
    assert row["stages"]["difference"]["value"] == pytest.approx(apart, abs=2e-6)


def test_a_ranker_that_is_the_retriever_changes_nothing(place: Path) -> None:
    row = row_of(place, "dense")["stages"]
    assert row["ndcg@10"] == row["dense_ndcg@10"] and set(row["difference"].values()) == {0.0}


def test_the_report_has_both_stages_on_the_users_that_were_drawn(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of(place, "counted", "--users", "7")
    assert row["asked"].startswith("7 of 30") and row["questions"] == 7
    timed = {"p50_ms": 3.0, "p95_ms": 4.0, "memory_mib": 9.0, "dense": {"p50_ms": 1.25, "p95_ms": 2.0}}
    monkeypatch.setattr(stages, "footprint_of", lambda folder, histories, second: timed)
    monkeypatch.setattr("training.comparison.measure.footprint_of", lambda folder, histories: timed)
    words = ["--rerank", f"dense:{place / 'counted'}", "--out", str(place / "out"), "--users", "7", "--json"]
    done = compare(place, *words, "--candidates", str(CANDIDATES))
    assert done.exit_code == 0, done.output
    (protocol,) = json.loads(done.stdout)["protocols"]
    runs = {run["name"]: run for run in protocol["runs"]}
    both, alone = runs["dense + counted"], runs["dense"]
    assert both["stages"] == row["stages"] and both["ndcg@10"] == row["ndcg@10"] and alone["questions"] == 30
    assert both["recipe"] == "sasrec + markov" and both["disk_bytes"] > alone["disk_bytes"]
    tests = {(test["a"], test["b"], test["metric"]): test for test in protocol["tests"]}
    pair = tests["dense", "dense + counted", "ndcg@10"]
    assert pair["questions"] == 7 and -pair["difference"] == pytest.approx(
        row["stages"]["difference"]["value"], abs=1e-5
    )
    page = (place / "out" / "report.md").read_text()
    line = next(text for text in page.splitlines() if text.startswith("| dense + counted | 20 |"))
    assert "Two stages" in page and line.endswith("| 1.25 | 3.00 |")
    monkeypatch.setattr(stages, "open_artifact", None)
    assert compare(place, *words, "--candidates", str(CANDIDATES)).exit_code == 0, "kept, as every measurement"
    assert compare(place, *words, "--candidates", "21").exit_code != 0, "another number is measured"


def test_two_stages_are_timed_beside_the_first_alone(place: Path) -> None:
    found = footprint(place / "dense", [[1, 2], [3]], SecondStage(place / "asked", CANDIDATES))
    assert found["requests"] == found["dense"]["requests"] == 2 and min(found["p50_ms"], found["dense"]["p50_ms"]) > 0


@pytest.mark.parametrize(
    ("artifact", "more", "message"),
    [
        ("dense", ["--rerank", "dense"], "not of the form DENSE:RANKER"),
        ("dense", ["--rerank", "shop:dense"], "'shop' does not take part; those that do: dense"),
        ("dense", ["--rerank", "dense:nowhere"], "'nowhere' neither takes part nor is an artifact's folder"),
        ("dense", ["--rerank", "dense:dense", "--rerank", "dense:dense"], "'dense + dense' takes part twice"),
        ("dense", ["--candidates", "20"], "--candidates is for --rerank"),
        ("asked", ["--rerank", "asked:asked"], "recipe tallrec) cannot retrieve for --rerank: it returns lists"),
    ],
    ids=["form", "unknown", "nowhere", "twice", "alone", "lists"],
)
def test_what_cannot_be_two_stages_is_refused(place: Path, artifact: str, more: list[str], message: str) -> None:
    done = compare(place, *more, artifact=artifact)
    assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.stderr


def test_an_artifact_that_only_writes_lists_does_not_rank(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ranker_of", lambda model: None)
    done = compare(place, "--rerank", f"dense:{place / 'counted'}")
    assert done.exit_code == 2 and "does not score candidates that it is given" in " ".join(done.stderr.split())


def test_the_ranker_reads_as_much_of_a_history_as_it_reads_alone(place: Path) -> None:
    dense = load(place / "dense").model
    both = Rerank(dense, VectorRanker(dense), CANDIDATES)
    history = list(range(dense.encoder.history_limit + 3))
    prompt = both.prepare_candidates(history, [50, 51])
    assert list(prompt.history) == history[-dense.encoder.history_limit :]
