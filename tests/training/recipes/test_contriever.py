"""Symmetric text towers: histories and items through one encoder, trained together, and served from a frozen table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from index import Catalog
from modeling.encoder.title_check import check_titles
from modeling.inference.encoder_forward import compile_encoder
from modeling.methods.dense import Artifact, ArtifactError, check_golden, load_artifact
from testing.datasets import write_dataset
from testing.models import backbone_folder
from training.data.dataset import Dataset, read_dataset
from training.loop.examples import EpochWindows, Window, target_shares
from training.loop.module import RetrievalModule
from training.objectives.base import ObjectiveSpec
from training.recipes import get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

SMALL = ["items.dim=16", "optimizer.epochs=2", "optimizer.positions=40", "history.limit=4", "history.title_tokens=6"]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("data") / "ring", users=24, items=20))


@pytest.fixture(scope="module")
def folder(ring: Dataset, backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "contriever"
    recipe = get_recipe("contriever", SMALL, backbone=str(backbone_folder("bert")))
    run(recipe, ring, RunOptions(out=out), Console(quiet=True))
    return out


@pytest.fixture
def artifact(folder: Path) -> Artifact:
    return load_artifact(folder)


def test_the_manifest_says_what_the_combination_allows(artifact: Artifact) -> None:
    found = artifact.record.capabilities
    assert not (found.causal or found.every_boundary or found.packed or found.prefix_reuse)
    assert found.merges
    assert "attention 'bidirectional'" in compile_encoder(artifact.encoder)


def test_it_loads_and_answers_as_in_training_also_free_titles(artifact: Artifact, folder: Path) -> None:
    catalog = Catalog.read(folder / "catalog.parquet")
    histories = [
        [item.title if not isinstance(item, str) else catalog.row(item) for item in case.history]
        for case in artifact.golden
    ]
    assert any(isinstance(item, str) for history in histories for item in history)
    check_golden(artifact, histories)  # type: ignore[arg-type]


def test_the_frozen_table_is_what_the_tower_makes_of_the_titles(artifact: Artifact, folder: Path) -> None:
    encoder, catalog = artifact.encoder, Catalog.read(folder / "catalog.parquet")
    found_ND = encoder.title_vectors(catalog.titles)
    np.testing.assert_allclose(found_ND, artifact.item_vectors_ND, atol=1e-4)
    check_titles(encoder, catalog.titles, "contriever")
    encoder.items._frozen_ND = torch.flip(encoder.items.table(), [0])
    with pytest.raises(ArtifactError, match="otherwise than in training"):
        check_titles(encoder, catalog.titles, "contriever")


def test_an_epoch_draws_some_windows_of_a_user_anew_and_targets_come_as_often_as_is_said() -> None:
    sequences = [np.arange(10), np.array([3, 4])]
    windows = EpochWindows(sequences, limit=4, seed=0, last_only=True, per_user=2)
    counts, epochs = np.zeros(10), 600
    for epoch in range(epochs):
        windows.set_epoch(epoch)
        assert [sum(window.user == user for window in windows.windows) for user in (0, 1)] == [2, 1]
        assert all(window.last_only and len(window.rows) <= 5 for window in windows.windows)
        np.add.at(counts, [window.rows[-1] for window in windows.windows], 1)
    np.testing.assert_allclose(counts / (3 * epochs), target_shares(sequences, 10, 2), atol=0.02)


def queued(artifact: Artifact, momentum: float) -> RetrievalModule:
    encoder = artifact.encoder.train().requires_grad_(False)
    encoder.projector.requires_grad_(True)
    objective = ObjectiveSpec(kind="in_batch", queue=3, momentum=momentum)
    return RetrievalModule(encoder, objective, popularity_N=np.ones(20, np.int64))


def step(module: RetrievalModule, target: int) -> float:
    batch = module.collate([Window(np.array([1, 2, target]), last_only=True), Window(np.array([3, 9]), last_only=True)])
    loss = module(batch)
    loss.backward()
    return float(loss.detach())


def test_the_queue_holds_what_a_slow_copy_made_of_the_newest_targets(artifact: Artifact) -> None:
    module = queued(artifact, momentum=0.5)
    encoder, weight = module.encoder, next(module.encoder.projector.parameters())
    encoder.backbone.eval()
    first = weight.detach().clone()
    step(module, 4)
    with torch.no_grad():
        weight.add_(1.0)
    step(module, 7)
    keys_QD, rows_Q = module._queue.held  # type: ignore[union-attr]
    assert rows_Q.tolist() == [9, 7, 9], "the newest three targets"
    assert torch.equal(weight, first + 1.0), "the encoder has its own weights"
    with torch.no_grad():
        weight.copy_(first + 0.5)  # half way, as the copy went
        expected = encoder.encode_items([7, 9])
    torch.testing.assert_close(keys_QD[1:], expected, atol=1e-5, rtol=1e-4)
    assert not keys_QD.requires_grad


def test_a_queue_goes_on_from_a_checkpoint_and_nothing_is_queued_in_evaluation(artifact: Artifact) -> None:
    module = queued(artifact, momentum=0.9)
    module.encoder.backbone.eval()
    step(module, 4)
    other = queued(artifact, momentum=0.9)
    other.encoder.backbone.eval()
    other.carry({name: tensor.clone() for name, tensor in module.carried().items()})
    assert step(module, 7) == step(other, 7)
    other.eval()
    step(other, 8)
    assert 8 not in other._queue.held[1].tolist()  # type: ignore[union-attr]
