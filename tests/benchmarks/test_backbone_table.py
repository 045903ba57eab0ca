"""The table of what the network adds: its rows are recipes that exist, trained once, and compared on the same users."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.numpy import load_file

from benchmarks.quality import backbone as table
from testing.datasets import SMALL, write_dataset
from training.data.dataset import Dataset, read_dataset
from training.data.splits import leave_one_out

QUIET = Console(quiet=True)
ALONE, OTHER = "newest items alone", table.REFERENCE


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("data") / "ring", users=24, items=20))


def test_rows_differ_in_what_they_say_they_differ_in() -> None:
    recipes = {row.name: row.build([]) for row in table.rows_of({"other": "minilm"})}
    assert len(recipes) == len(table.rows_of({"other": "minilm"})) == 13
    for name, recipe in recipes.items():
        without = name.endswith("without newest items")
        assert (recipe.projector.recent, recipe.projector.residual) == ((1, False) if without else (10, True))
        assert recipe.has_network == (name != ALONE) and recipe.backbone.own == (
            name in (ALONE, OTHER) or OTHER in name
        )
        assert recipe.backbone.random_weights == ("random" in name)
        assert (recipe.adapter.kind == "lora") == ("LoRA" in name)
        assert (recipe.items.tower, recipe.items.text_dim) == ("both", 384)


def test_a_row_that_has_ended_is_not_trained_again_and_is_paired_with_the_small_transformer(
    ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(state=tmp_path, minutes=5.0, set=[])
    block = [*SMALL, "optimizer.epochs=2", "projector.residual=true", "projector.recent=3"]
    rows = [
        table.Row(OTHER, "sasrec", tuple(block)),
        table.Row(
            ALONE, "sasrec", (*[s for s in block if "backbone" not in s and "dropout" not in s], "projector.kind=none")
        ),
    ]
    first = [table.measured(row, ring, 0, options, QUIET) for row in rows]
    monkeypatch.setattr(table, "run", None)
    assert [table.measured(row, ring, 0, options, QUIET) for row in rows] == first
    found = table.with_differences(first, tmp_path)
    assert found[0]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert found[1]["difference"]["value"] == pytest.approx(first[1]["ndcg"] - first[0]["ndcg"])
    assert found[1]["of_order"]["value"] == pytest.approx(first[1]["ndcg"] - first[1]["ndcg_shuffled"])
    targets = leave_one_out(ring).validation
    for own, other in zip(targets.histories(), table.shuffled(targets, 0), strict=True):
        assert sorted(own.tolist()) == sorted(other.tolist())
    assert any((own != other).any() for own, other in zip(targets.histories(), table.shuffled(targets, 0), strict=True))
    assert load_file(tmp_path / ring.name / "small-transformer-0-5min.safetensors")["as it is"].shape == (len(targets),)
