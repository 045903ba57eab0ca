"""The race of dense and generative methods: artifacts and parts that ended are kept, and rows say what was found."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks.generation import race_artifacts
from benchmarks.generation.dense_vs_generative import GENERATE, Parts, named_artifact, parsed, positive, rows_of
from benchmarks.generation.race_artifacts import Race, bounded, make, writer_recipe
from benchmarks.generation.race_serving import WAYS, Served, histories
from modeling.artifact.manifest import read_manifest
from modeling.methods import load
from testing.datasets import ring_dataset
from testing.models import writer_folder
from training.data.dataset import Dataset
from training.data.splits import leave_one_out

__all__ = ["writer_folder"]  # a fixture

DECIDES = {"rounds": 5}


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=30, items=30)


@pytest.fixture
def race(ring: Dataset, writer_folder: Path, tmp_path: Path) -> Race:
    return Race(leave_one_out(ring), tmp_path / "race", str(writer_folder), 0.5, Console(quiet=True))


@pytest.mark.parametrize("name", ["dense-compressed", "genre", "bigrec"])
def test_an_artifact_is_made_once_and_can_be_loaded(name: str, race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(race, name)
    manifest = read_manifest(folder)
    assert manifest.training == {"for": "timing only"} and manifest.catalog_size == 30
    assert load(folder).model is not None
    assert not list(race.out.glob(f".{folder.name}*")), "checkpoints are gone"
    monkeypatch.setattr(race_artifacts, "_make_dense", None)
    monkeypatch.setattr(race_artifacts, "_make_writer", None)
    assert make(race, name) == folder


def test_only_what_must_end_a_text_is_trained(race: Race) -> None:
    epochs = {name: writer_recipe(race, name).optimizer.epochs for name in race_artifacts.WRITERS}
    assert epochs == {"bigrec": 1, "llara": 1, "genre": 0, "tiger": 0, "p5": 0}
    network = writer_recipe(race, "tiger").backbone
    assert (network.width, network.depth, network.heads, network.feed_forward) == (32, 2, 4, 48)


def test_a_bounded_catalog_has_the_most_popular_items_and_their_interactions(ring: Dataset) -> None:
    some = bounded(ring, 12)
    popular = np.sort(np.bincount(ring.rows, minlength=30))[::-1][:12]
    assert some.n_items == 12 and some.n_interactions == popular.sum() and some.sha256 != ring.sha256
    known = {(user, ring.item_ids[row]) for user, rows in _sequences(ring) for row in rows}
    assert {(user, some.item_ids[row]) for user, rows in _sequences(some) for row in rows} <= known
    assert bounded(ring, 30) is ring


def _sequences(dataset: Dataset) -> list[tuple[str, list[int]]]:
    return [(user_id, dataset.sequence(user).tolist()) for user, user_id in enumerate(dataset.user_ids)]


def test_histories_have_the_length_that_all_ways_read(ring: Dataset) -> None:
    asked = histories(leave_one_out(ring), seed=1)
    assert {len(next(asked)) for _ in range(20)} == {race_artifacts.HISTORY}
    with pytest.raises(SystemExit, match="--items"):
        next(histories(leave_one_out(ring_of_short_users(ring)), seed=1))


def ring_of_short_users(ring: Dataset) -> Dataset:
    return bounded(ring, 8)


def test_parts_that_have_ended_are_kept_and_those_of_another_race_refused(tmp_path: Path) -> None:
    file = tmp_path / "new" / "state.json"
    parts = Parts(file, DECIDES)
    assert parts.lacks("latency", "TIGER")
    parts.keep("latency", "TIGER", {"total_ms": 1.5})
    again = Parts(file, DECIDES)
    assert not again.lacks("latency", "TIGER") and again.found == {"latency": {"TIGER": {"total_ms": 1.5}}}
    with pytest.raises(SystemExit, match="take another file"):
        Parts(file, {"rounds": 6})


def test_rows_hold_ratios_to_both_dense_forms_and_what_else_was_found() -> None:
    found = {
        "latency": {
            "anyo, titles": {"total_ms": 400.0},
            "anyo, one position an item": {"total_ms": 50.0},
            "TIGER": {"total_ms": 600.0, "tokens": 4},
        },
        "throughput": {"TIGER": {"per_s": 2.5}},
        "forced": {
            "rows": [
                {"beams": 1, "tokens": "natural", "hugging_face_ms": 1.0, "hugging_face_over_dense": 1.0},
                {"beams": 4, "tokens": "natural", "hugging_face_ms": 3000.0, "hugging_face_over_dense": 8.0},
            ]
        },
        "quality": {"tiger 1": {"row": "TIGER", "ndcg@10": {"value": 0.1}, "users": 5, "quality_of": "mine"}},
    }
    rows = {row["method"]: row for row in rows_of(found, WAYS)}
    tiger = rows["TIGER"]
    assert (tiger["over_titles"], tiger["over_compressed"], tiger["per_s"]) == (1.5, 12.0, 2.5)
    assert tiger["ndcg@10"] == {"value": 0.1} and tiger["quality_of"] == "mine"
    assert (rows[GENERATE]["total_ms"], rows[GENERATE]["over_titles"]) == (3000.0, 8.0)
    assert rows["P5"]["over_titles"] is None and "per_s" not in rows["P5"]
    names = [way.name for way in WAYS]
    assert list(rows) == [*names[:6], GENERATE, *names[6:]], "rivals in the order in which they are compared"


class Answers:
    """A client of a service that answers everything."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def post(self, path: str, json: dict[str, Any]) -> Any:
        self.asked.append((path, json))
        body = {"timings_ms": {"forward": 3.0, "search": 0.5, "total": 4.0}}
        if "generative" in path:
            body = {"timings_ms": {"prefill": 1.0, "decode": 6.0, "ground": 0.25, "search": 0.5}, "tokens": {"new": 80}}
        return argparse.Namespace(status_code=200, json=lambda: body)


def test_each_method_is_asked_as_it_is_served_and_its_stages_are_read(ring: Dataset) -> None:
    folders = {way.artifact: f"{way.artifact}-x" for way in WAYS}
    served = Served("http://127.0.0.1:1", ring.item_ids, folders, WAYS)
    served.client = client = Answers()  # type: ignore[assignment]
    served.round([[1, 2, 3]], keep=False)
    assert served.rows == {}
    served.round([[1, 2, 3]], keep=True)
    table = served.table()
    assert [path for path, _ in client.asked[:4]] == ["/recommend"] * 3 + ["/recommend/generative"]
    assert client.asked[3][1] == {
        "history": [ring.item_ids[row] for row in (1, 2, 3)], "k": 10, "artifact": "tiger-x", "beams": 20
    }  # fmt: skip
    assert table["TIGER"].items() >= {"reading_ms": 1.0, "writing_ms": 6.0, "finding_ms": 0.75, "tokens": 4}.items()
    assert table["anyo, titles"].items() >= {"reading_ms": 3.0, "finding_ms": 0.5}.items()
    assert "writing_ms" not in table["anyo, titles"]


def test_options_that_are_not_allowed_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("tiger", f"tiger={tmp_path}", "nobody=."):
        with pytest.raises(argparse.ArgumentTypeError, match="bigrec, dense"):
            named_artifact(text)
    with pytest.raises(argparse.ArgumentTypeError):
        positive("0")
    assert parsed(["--backbone", "smollm2"]).lengths == [16] and parsed([]).minutes == 4.0
    with pytest.raises(SystemExit):
        parsed(["--only", "everything"])
    assert "prepare" in capsys.readouterr().err
