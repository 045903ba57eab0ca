"""What is counted: an artifact ranks as the floor of the same name does, and a broken table is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import WrittenCase, write_golden
from modeling.artifact.manifest import read_manifest, seal
from modeling.methods import load
from modeling.methods.base_ranking import ranker_of
from modeling.methods.counts import CountsModel, CountsTable, any_twice
from testing.datasets import ring_dataset
from training.data.dataset import Dataset
from training.data.report import DataError
from training.data.splits import leave_one_out
from training.evaluation import counting
from training.evaluation.baselines import FLOORS, measure_baseline
from training.evaluation.counting import hybrid_knn_counts, item_knn_counts
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

QUIET = Console(quiet=True)
NEAR = ["a b lamp", "old b lamp", "a lamp, c d e", "f lamp: b c", "d e f lamp", "a c e g", "b d old f g", "g c d"]
FLOOR_OF = {"popularity": "popularity", "markov": "markov-1", "item_knn": "item-knn"}


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=40, items=20)


def dense(model: CountsModel) -> Any:
    """The table as a matrix."""
    size = len(model.table.prior_N)
    matrix_NN = np.zeros((size, size))
    for row in range(size):
        columns, values = model.index().row(row)
        matrix_NN[row, columns] = values
    return matrix_NN


@pytest.mark.parametrize("name", FLOOR_OF)
def test_the_artifact_scores_as_the_floor_does(name: str, ring: Dataset, tmp_path: Path) -> None:
    result = run(get_recipe(name), ring, RunOptions(out=tmp_path / name), QUIET)
    model: CountsModel = load(tmp_path / name).model
    split = leave_one_out(ring)
    histories = list(split.validation.histories())
    floor_BN = FLOORS[FLOOR_OF[name]](split, "train")(histories)
    np.testing.assert_allclose([model.scores(history) for history in histories], floor_BN, rtol=1e-6)
    assert result.fitted.steps == 1 and result.manifest.method.kind == "counts"
    floor = measure_baseline(FLOOR_OF[name], split, "validation").metrics["recall@10"]
    assert abs(result.validation["recall@10"] - floor) < 0.1, "but for ties, which are broken by chance"


def test_the_newest_item_decides_and_each_step_back_counts_less() -> None:
    table = CountsTable(
        np.zeros(3), np.array([0, 1, 2, 2]), np.array([2, 1], np.int32), np.array([1.0, 1.0], np.float32)
    )
    model = CountsModel(table, "item-knn", last=2, decay=0.5)
    assert model.scores([0, 1]).tolist() == [0, 1, 0.5]
    assert model.scores([0, 1, 2]).tolist() == [0, 0.5, 0], "the oldest of three is not looked up"
    _, rows_BK = model.index().search(model.index().queries([[0, 1], []]), 3)
    assert rows_BK.tolist() == [[1, 2, 0], [0, 1, 2]], "equal scores come in the order of rows"


def test_only_the_nearest_neighbours_are_kept(ring: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BLOCK", 7)
    split = leave_one_out(ring)
    whole_NN, cut_NN = dense(item_knn_counts(split)), dense(item_knn_counts(split, neighbours=3))
    assert ((cut_NN > 0).sum(1) <= 3).all() and ((whole_NN > 0).sum(1) > 3).any()
    for whole_N, cut_N in zip(whole_NN, cut_NN, strict=True):
        kept = np.flatnonzero(cut_N)
        assert np.array_equal(whole_N[kept], cut_N[kept])
        assert whole_N[cut_N == 0].max() <= whole_N[kept].min()


@pytest.fixture(scope="module")
def titled(ring: Dataset) -> Dataset:
    """Titles that share words, each with the next few."""
    titles = [f"{NEAR[row % len(NEAR)]} {NEAR[row // 3]}" for row in range(ring.n_items)]
    return replace(ring, items=ring.items.with_columns(pl.Series("title", titles)))


def test_titles_and_neighbours_together_rank_as_their_floor_does(titled: Dataset, tmp_path: Path) -> None:
    run(get_recipe("hybrid_knn"), titled, RunOptions(out=tmp_path / "a"), QUIET)
    model: CountsModel = load(tmp_path / "a").model
    split = leave_one_out(titled)
    histories = list(split.validation.histories())
    floor_BN = FLOORS["hybrid-knn"](split, "train")(histories)
    for history, floor_N in zip(histories, floor_BN, strict=True):
        open_N = np.isin(np.arange(titled.n_items), history, invert=True)
        _, (found,) = model.index().search(model.index().queries([history]), 10, exclude=[history])
        best = np.sort(floor_N[open_N])[::-1][:10]
        np.testing.assert_allclose(floor_N[found[: len(best)]], best, atol=1e-5)  # of equal scores any may be first
        assert len(set(found.tolist())) == len(found)


def test_of_the_nearest_by_titles_and_neighbours_the_distance_to_the_next_is_kept(
    titled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "BLOCK_NUMBERS", 7 * 20)
    split = leave_one_out(titled)
    cut_NN = dense(hybrid_knn_counts(split, neighbours=3))
    for row, cut_N in enumerate(cut_NN):
        (similar_N,) = FLOORS["hybrid-knn"](split, "train")([np.array([row], np.int32)])
        similar_N[row] = -np.inf
        fourth = np.sort(similar_N)[-4]
        np.testing.assert_allclose(cut_N, (similar_N - fourth).clip(min=0), atol=1e-6)
    assert ((cut_NN > 0).sum(1) <= 3).all() and (cut_NN > 0).any(1).all()


def test_titles_that_are_all_alike_are_refused(ring: Dataset, tmp_path: Path) -> None:
    alike = replace(ring, items=ring.items.with_columns(title=pl.lit("Product")))
    with pytest.raises(DataError, match="all 20 titles are 'Product', and recipe 'hybrid_knn' reads titles"):
        run(get_recipe("hybrid_knn"), alike, RunOptions(out=tmp_path / "a"), QUIET)


def _set(name: str, place: int | slice, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays[name].__setitem__(place, value)


def _turn(arrays: dict[str, Any]) -> None:
    """Offsets whose differences are above 0 only because they overflow."""
    arrays["offsets_N1"][1:4] = [np.iinfo(np.int64).max, np.iinfo(np.int64).min, -5]


def _unsigned(arrays: dict[str, Any]) -> None:
    arrays["offsets_N1"] = arrays["offsets_N1"].astype(np.uint64)


def _broken(arrays: dict[str, Any]) -> None:
    arrays["columns_E"] = arrays["columns_E"].astype(np.float32) + np.float32(0.5)


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a column outside": (_set("columns_E", 0, 20), "no table of 20 items: its entries lie outside"),
    "a count below 0": (_set("values_E", 0, -1), "a number below 0 in values_E"),
    "rows that overlap": (_set("offsets_N1", 1, 1 << 40), "no table of 20 items: its entries lie outside"),
    "offsets that overflow": (_turn, "no table of 20 items: its entries lie outside"),
    "offsets without signs": (_unsigned, "offsets_N1 as uint64; int64 is expected"),
    "columns with fractions": (_broken, "columns_E as float32; int32 is expected"),
    "an item twice in a row": (_set("columns_E", slice(None), 3), "a row names an item twice"),
    "counts without a sum": (_set("values_E", slice(None), 3.4e38), "do not fit float32"),
    "a prior above float32": (_set("prior_N", 0, 1e300), "do not fit float32"),
}


@pytest.fixture(scope="module")
def knn(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "a"
    run(get_recipe("item_knn", ["method.last=3"]), ring, RunOptions(out=folder), QUIET)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_table_of_other_items_is_refused(damage: str, knn: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(knn, tmp_path / "a")
    arrays = load_file(tmp_path / "a" / "counts.safetensors")
    change, message = DAMAGES[damage]
    change(arrays)
    save_file(arrays, tmp_path / "a" / "counts.safetensors")
    seal(tmp_path / "a", read_manifest(tmp_path / "a"))
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path / "a")


def test_the_order_of_the_entries_of_a_row_is_free() -> None:
    offsets = np.array([0, 2, 2, 4])
    assert not any_twice(offsets, np.array([2, 1, 2, 0], np.int32))
    assert not any_twice(offsets, np.array([1, 2, 0, 2], np.int32))
    assert any_twice(offsets, np.array([1, 1, 0, 2], np.int32)) and any_twice(offsets, np.array([0, 1, 2, 2], np.int32))
    assert not any_twice(np.zeros(4, np.int64), np.empty(0, np.int32))


def test_the_table_is_counted_as_memory() -> None:
    table = CountsTable(np.zeros(2), np.zeros(3, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    (found,) = CountsModel(table, "popularity").networks.values()
    assert sum(buffer.nbytes for buffer in found.buffers()) == 2 * 8 + 3 * 8
    assert all(isinstance(buffer, torch.Tensor) for buffer in found.buffers())


@pytest.mark.parametrize("setting", ["optimizer.epochs=3", "history.limit=5", "backbone.width=16", "method.last=3"])
def test_settings_of_networks_are_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match="has no effect on this recipe"):
        get_recipe("popularity", [setting])


def test_a_backbone_is_refused() -> None:
    with pytest.raises(RecipeError, match="'markov' has no network: backbone 'minilm' is not allowed"):
        get_recipe("markov", backbone="minilm")


def test_scores_of_candidates_are_those_of_the_list(ring: Dataset) -> None:
    model = item_knn_counts(leave_one_out(ring))
    ranker = ranker_of(model)
    assert ranker is not None
    (scores,) = ranker.score([ranker.prepare_candidates([3, 4, 5], [9, 0, 6])])
    np.testing.assert_array_equal(scores, model.scores([3, 4, 5])[[9, 0, 6]].astype(np.float32))
    (ranked,), (rows,) = model.index().search(model.index().queries([[3, 4, 5]]), 20)
    assert dict(zip(rows.tolist(), ranked.tolist(), strict=True))[6] == scores[2]


def test_an_artifact_of_an_earlier_version_is_refused_with_what_to_do(ring: Dataset, tmp_path: Path) -> None:
    """Its golden histories have lists and no vectors; it was served at another endpoint."""
    run(get_recipe("markov"), ring, RunOptions(out=tmp_path / "a"), QUIET)
    write_golden(tmp_path / "a", [WrittenCase(history=["i1"], texts=[], top=["i2"])])
    seal(tmp_path / "a", read_manifest(tmp_path / "a"))
    with pytest.raises(ArtifactError, match="as an earlier version wrote artifacts that count; train it again"):
        load(tmp_path / "a")
