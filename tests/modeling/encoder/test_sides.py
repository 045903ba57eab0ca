"""Which side is mapped before users and items are compared, and which vectors of an item a history shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling.encoder.build import Model
from modeling.inference.encoder_forward import compile_encoder
from modeling.methods.dense import load_artifact
from modeling.spec import AdapterSpec, ItemsSpec, ProjectorSpec
from testing.datasets import QUIET, SMALL, ring_dataset
from testing.models import HIDDEN, ITEMS, backbone_folder
from training.data.dataset import Dataset
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

Build = Callable[..., Model]
Side = Literal["user", "items", "both"]
FROZEN = AdapterSpec(kind="none")
WIDTH = {"user": 16, "items": HIDDEN, "both": 24}


def sides(side: Side, kind: Literal["linear", "mlp"] = "linear", *, residual: bool = False) -> ProjectorSpec:
    return ProjectorSpec(kind=kind, side=side, common=24, residual=residual, recent=2 if residual else 1)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("side", ["items", "both"])
@pytest.mark.parametrize("tower", ["id", "text", "both"])
def test_items_are_compared_where_they_are_mapped_to(
    side: Side, kind: Literal["linear", "mlp"], tower: Literal["id", "text", "both"], small_model: Build
) -> None:
    model = small_model("compressed", projector=sides(side, kind), items=ItemsSpec(tower=tower, dim=16))
    encoder, items = model.encoder, model.encoder.items
    assert items.ids.weight.shape == (ITEMS + 1, 16) and items.width == WIDTH[side]
    own = items.ids.weight if tower == "id" else items.text_map(items.text_NC)  # type: ignore[misc]
    if tower == "both":
        own = own + items.ids.weight
    assert items.item_map is not None
    vectors = F.normalize(items.item_map.map(own * 4), dim=-1)[:ITEMS]
    torch.testing.assert_close(items.vectors(), vectors)
    batch = encoder.collate([encoder.prepare([3, 1, 4])])
    states = encoder.pooling(encoder.hidden(batch), batch.spans)
    if side == "items":
        assert not list(encoder.projector.parameters())
        torch.testing.assert_close(encoder(batch), F.normalize(states, dim=-1))
    assert encoder(batch).shape == (1, WIDTH[side])
    (encoder(batch) @ vectors.T)[0, 0].backward()
    trained = [*encoder.projector.parameters(), *items.item_map.parameters()]
    assert all(weight.grad is not None and float(weight.grad.abs().max()) > 0 for weight in trained)


def test_vectors_start_at_about_the_same_length_on_every_side(small_model: Build) -> None:
    lengths = {}
    for side in ("user", "items", "both"):
        projector = sides(side, residual=True)
        tower = small_model("compressed", projector=projector, items=ItemsSpec(dim=64)).encoder.items
        lengths[side] = float(tower.table().detach()[:ITEMS].norm(dim=-1).mean())
    assert all(0.6 < length / lengths["user"] < 1.6 for length in lengths.values()), lengths


@pytest.mark.parametrize("side", ["items", "both"])
def test_the_fast_forward_and_new_titles_are_mapped_too(side: Side, small_model: Build) -> None:
    model = small_model("compressed", projector=sides(side, residual=True), adapter=FROZEN)
    encoder = model.encoder.requires_grad_(False)
    prompts = [encoder.prepare(rows) for rows in ([3], [5, 6, 7, 2])]
    plain = encoder.encode(prompts)
    assert compile_encoder(encoder) == ""
    np.testing.assert_allclose(encoder.encode(prompts), plain, atol=1e-4)
    items = encoder.items
    cold = items.cold_vectors(items.text_NC[:3])
    with torch.no_grad():
        items.ids.weight[:3] = items.ids.weight[-1]
    torch.testing.assert_close(cold, items.vectors()[:3])


def test_a_history_without_ids_shows_titles_alone(small_model: Build) -> None:
    for tower in ("text", "both"):
        items = ItemsSpec(tower=cast(Any, tower), dim=16)
        model = small_model(
            "compressed", history={"ids": False}, items=items, projector=ProjectorSpec(), adapter=FROZEN
        )
        encoder = model.encoder
        assert encoder.items.ids.weight.requires_grad == (tower == "both"), "nobody reads the ids of a text tower"
        prompts = [encoder.prepare(rows) for rows in ([3], [5, 6, 7, 2])]
        before = encoder.encode(prompts)
        with torch.no_grad():
            encoder.items.ids.weight.normal_()
        np.testing.assert_array_equal(encoder.encode(prompts), before)
        other = encoder.encode([encoder.prepare([4]), encoder.prepare([5, 6, 8, 2])])
        assert np.abs(other - before).max() > 1e-3, "another title is another history"
        encoder.requires_grad_(False)
        assert compile_encoder(encoder) == ""
        np.testing.assert_allclose(encoder.encode(prompts), before, atol=1e-4)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=20, items=20)


ROWS = {
    "items": ["projector.side=items", "projector.kind=mlp"],
    "both": ["projector.side=both", "projector.common=24"],
    "texts alone": ["history.ids=false", "items.tower=text"],
}


@pytest.mark.parametrize("row", ROWS)
def test_it_is_stored_and_answers_as_it_was_trained(
    row: str, ring: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = ["items.dim=16", "optimizer.epochs=1", "optimizer.positions=150", *ROWS[row]]
    run(
        get_recipe("anyo", settings, backbone=str(backbone_folder("qwen3"))),
        ring,
        RunOptions(out=tmp_path / "a"),
        QUIET,
    )
    artifact = load_artifact(tmp_path / "a")  # compares item vectors and golden histories
    assert artifact.record.dim == WIDTH.get(row, 16)
    (vector,) = artifact.encoder.title_vectors(["red lamp"])
    assert vector.shape == (artifact.record.dim,) and np.isfinite(vector).all()


def test_an_id_model_learns_with_its_items_mapped(ring: Dataset, tmp_path: Path) -> None:
    settings = [*SMALL, "optimizer.epochs=8", "projector.kind=linear", "projector.side=items", "items.dim=16"]
    result = run(get_recipe("sasrec", settings), ring, RunOptions(out=tmp_path / "a"), QUIET)
    assert result.validation["ndcg@10"] > 0.3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sasrec", ["projector.side=items"], "needs a map, kind 'linear' or 'mlp': given 'identity'"),
        ("anyo", ["projector.common=64"], "common has no effect"),
        ("anyo", ["projector.side=both", "items.untied=true"], "maps the one table of items"),
        ("anyo", ["projector.side=items", "items.cold=mapped"], "maps the one table of items"),
        ("contriever", ["projector.side=both"], "maps the one table of items"),
        ("anyo", ["history.ids=false", "history.vectors_per_item=2"], "one vector an item"),
        ("sasrec", ["history.ids=false"], "one vector an item, that of its text"),
        ("anyo", ["history.ids=false", "history.id_dropout=0.2"], "id_dropout has no effect"),
        (
            "anyo",
            ["history.ids=false", "items.tower=text", "requires=sasrec"],
            "requires=sasrec: requires has no effect",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe(name, settings)


def test_two_towers_of_one_backbone_are_stored_and_loaded(
    ring: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = [
        *("items.tower=text", "items.text_layer=1", "items.dim=16", "optimizer.epochs=1", "optimizer.user_windows=1"),
        *("history.limit=3", "history.title_tokens=4"),
    ]
    recipe = get_recipe("contriever", settings, backbone=str(backbone_folder("bert")))
    run(recipe, ring, RunOptions(out=tmp_path / "a"), QUIET)
    artifact = load_artifact(tmp_path / "a")  # compares item vectors and golden histories
    assert artifact.item_vectors_ND.shape == (20, 16) and not artifact.record.capabilities.every_boundary
