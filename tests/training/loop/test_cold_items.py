"""Items that nobody chose: their vectors come from titles by a map, at a length that costs the others little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console

from index import FlatIndex, parse_index
from index.storage import ENTRY_FILE, INDEX_FILE
from modeling.encoder.build import Sources, build_model, read_titles
from modeling.methods.dense import load_artifact
from testing.datasets import SMALL, write_dataset
from testing.models import backbone_folder
from training.data.dataset import read_dataset
from training.data.splits import Targets, leave_one_out
from training.data.withhold import write_withheld
from training.loop.cold_items import LONGEST, Trial, fit_map, mapped
from training.loop.examples import EpochWindows
from training.loop.module import RetrievalModule
from training.methods.dense import DenseSettings
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

BOTH = ["items.tower=both", "items.text_source=FOLDER", "history.form=compressed"]


def settings(folder: Path, *more: str) -> list[str]:
    return [*SMALL, "optimizer.epochs=2", *(each.replace("FOLDER", str(folder)) for each in BOTH), *more]


def test_the_map_finds_vectors_of_titles_it_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    text_NC = (rng.normal(size=(900, 12)) / np.sqrt(12)).astype(np.float32)
    true_ND = mapped(text_NC, rng.normal(size=(12, 6)).astype(np.float32), np.full(6, 0.3, np.float32))
    popularity_N = rng.integers(1, 90, 900)
    popularity_N[:100] = 0
    noisy_ND = true_ND + rng.normal(size=true_ND.shape).astype(np.float32) * 0.5 / np.sqrt(popularity_N + 1)[:, None]
    noisy_ND[:100] = 99.0  # what an unchosen item has is not looked at
    found_ND = mapped(text_NC, *fit_map(text_NC, noisy_ND.astype(np.float32), popularity_N))
    assert (found_ND[:100] * true_ND[:100]).sum(1).mean() > 0.97


def test_the_length_is_the_largest_that_costs_the_others_what_is_allowed() -> None:
    """Cold items that point where everybody looks push others out as soon as they are long enough."""
    rng = np.random.default_rng(1)
    users_TD = mapped(
        rng.normal(size=(400, 8)).astype(np.float32), np.eye(8, dtype=np.float32), np.zeros(8, np.float32)
    )
    vectors_ND = mapped(
        rng.normal(size=(200, 8)).astype(np.float32), np.eye(8, dtype=np.float32), np.zeros(8, np.float32)
    )
    scores_TN = users_TD @ vectors_ND.T
    cold_N = np.arange(200) < 30
    best_T = np.where(cold_N, -9, scores_TN).argsort(1)[:, -rng.integers(1, 5, 400)].diagonal()

    class Questions(Targets):
        rows_T = best_T

        def __init__(self) -> None:
            pass

        def __len__(self) -> int:
            return 400

        def histories(self):  # type: ignore[no-untyped-def]
            return iter([np.empty(0, np.int64)] * 400)

    trial = Trial(users_TD, Questions(), vectors_ND, cold_N, vectors_ND)
    lengths = [trial.longest(cost, 0) for cost in (0.02, 0.2)]
    assert 0 < lengths[0] < lengths[1] < LONGEST
    for length, cost in zip(lengths, (0.02, 0.2), strict=True):
        recall = [1 - trial.figures(each, 0)[1] / trial.figures(0.0, 0)[1] for each in (length, length + 0.05)]
        ndcg = [trial.cost(each, 0) for each in (length, length + 0.05)]
        assert max(recall[0], ndcg[0]) <= cost < max(recall[1], ndcg[1])
    none = Trial(users_TD, Questions(), vectors_ND, np.zeros(200, bool), vectors_ND)
    assert none.longest(0.02, 0) == LONGEST and none.cost(1.0, 0) == 0


def test_an_artifact_searches_cold_items_by_their_mapped_vectors(
    backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """They stand in the index at their length, a free title gets the same vector, and a refit keeps the length."""
    whole = read_dataset(write_dataset(tmp_path / "ring", users=48, items=30))
    write_withheld(whole, 0.2, 0, tmp_path / "withheld")
    dataset = read_dataset(tmp_path / "withheld")
    cold_N = leave_one_out(dataset).popularity() == 0
    recipe = get_recipe("sasrec", settings(backbone_folder("qwen3"), "items.cold=mapped", "items.cold_cost=0.3"))
    result = run(recipe, dataset, RunOptions(out=tmp_path / "out"), Console(quiet=True))
    found = load_artifact(tmp_path / "out")
    kept = result.manifest.training["cold_items"]
    lengths_N = np.linalg.norm(found.item_vectors_ND, axis=1)
    np.testing.assert_allclose(lengths_N, np.where(cold_N, kept["length"], 1.0), atol=1e-5)
    assert kept["items"] == cold_N.sum() > 0 and 0 < kept["length"] <= LONGEST
    files = [(tmp_path / "out" / "index" / name).read_bytes() for name in (ENTRY_FILE, INDEX_FILE)]
    index = parse_index(tmp_path / "out" / "index", *files)
    users = found.encoder.encode([found.encoder.prepare([3, 5, 8])])
    expected = FlatIndex.build(found.item_vectors_ND).search(users, 30)[1]
    assert (index.search(users, 30)[1] == expected).all()
    row = int(np.flatnonzero(cold_N)[0])
    again = found.encoder.title_vectors([dataset.titles[row]])[0]
    np.testing.assert_allclose(again, found.item_vectors_ND[row], atol=1e-4)
    refit = run(recipe, dataset, RunOptions(out=tmp_path / "refit", refit=True), Console(quiet=True))
    assert refit.manifest.training["cold_items"]["length"] == kept["length"]


def test_items_without_their_ids_take_part_in_training(backbone_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """In a step, a share of the items has the id of UNKNOWN; when evaluated, none."""
    dataset = read_dataset(write_dataset(tmp_path / "ring", users=24, items=30))
    recipe = get_recipe("sasrec", settings(backbone_folder("qwen3"), "items.id_dropout=0.5"))
    text = read_titles(recipe.model_spec(), dataset.titles, Sources())
    objective = cast(DenseSettings, recipe.method).objective
    encoder = build_model(recipe.model_spec(), catalog_size=30, text=text).encoder
    module = RetrievalModule(encoder, objective, popularity_N=leave_one_out(dataset).popularity())
    tables: list[torch.Tensor] = []

    class Recorded(torch.nn.Module):
        def forward(self, users_PD: torch.Tensor, items: Any, targets_P: torch.Tensor, seen_S2: None) -> torch.Tensor:
            tables.append(items.table_ND)
            return users_PD.sum()

    module.loss = Recorded()  # type: ignore[assignment]
    batch = module.collate(EpochWindows(leave_one_out(dataset).train_rows(), limit=50, seed=0).windows[:3])
    torch.manual_seed(0)
    module.train()(batch)
    module.eval()(batch)
    items = module.encoder.items
    nameless_N = (tables[0] - items.cold_table(items.text_NC)).abs().amax(1) < 1e-6
    assert 5 < int(nameless_N[:30].sum()) < 25
    torch.testing.assert_close(tables[1], items.table())


@pytest.mark.parametrize(
    ("more", "needed"),
    [
        (["items.cold=mapped", "items.tower=text"], "items.tower='both'"),
        (["items.id_dropout=0.1", "items.tower=id"], "items.tower='both'"),
        (["items.cold=mapped", "items.normalize=false"], "items.normalize=true"),
        (["items.cold_cost=0.1"], "no effect"),
    ],
)
def test_what_has_no_titles_beside_ids_is_refused(more: list[str], needed: str) -> None:
    with pytest.raises(RecipeError, match=needed):
        get_recipe("anyo", more)
