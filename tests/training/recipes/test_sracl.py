"""SRA-CL: neighbours from the training part alone, two more losses, and an artifact that is a plain id model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from index import FlatIndex
from modeling.encoder.build import Sources, build_model
from modeling.methods.dense import load_artifact
from testing.datasets import QUIET, SMALL, ring_dataset
from testing.models import backbone_folder
from training.data.dataset import Dataset
from training.data.report import DataError
from training.data.splits import leave_one_out
from training.loop.auxiliary import Auxiliary
from training.loop.examples import Window, collate
from training.loop.module import RetrievalModule
from training.methods.dense import DenseSettings
from training.objectives.contrastive import SemanticSpec, info_nce
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run
from training.semantic.contrast import NeighbourContrast, one_of_each, states_of
from training.semantic.neighbours import find_neighbours, unit, user_vectors
from training.semantic.texts import text_vectors

__all__ = ["backbone_folder"]  # a fixture

BOTH = SemanticSpec(users=0.1, items=0.1, count=3, newest=4)
SHORT = [*SMALL, "optimizer.epochs=2"]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=32, items=24)


@pytest.fixture(scope="module")
def histories(ring: Dataset) -> list[np.ndarray]:
    return leave_one_out(ring).train_rows()


@pytest.fixture(scope="module")
def texts(ring: Dataset) -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(ring.n_items, 12)))


def contrast(spec: SemanticSpec, texts: np.ndarray, histories: list[np.ndarray], width: int = 32) -> NeighbourContrast:
    found = find_neighbours(texts, histories, spec, seed=0, folder=None)
    return NeighbourContrast(spec, found, texts, histories, width)


def module_of(ring: Dataset, auxiliaries: list[Auxiliary]) -> RetrievalModule:
    torch.manual_seed(0)
    recipe = get_recipe("sasrec", SMALL)
    assert isinstance(recipe.method, DenseSettings)
    encoder = build_model(recipe.model_spec(), catalog_size=ring.n_items).encoder.train()
    popularity = np.ones(ring.n_items, np.int64)
    return RetrievalModule(encoder, recipe.method.objective, popularity_N=popularity, auxiliaries=auxiliaries)


def test_neighbours_are_the_nearest_other_users_and_other_items(texts: np.ndarray, histories: list[np.ndarray]) -> None:
    histories = [*histories[:3], np.zeros(0, np.int64), *histories[3:9]]
    found = find_neighbours(texts, histories, BOTH, seed=0, folder=None)
    chosen = set(np.concatenate(histories).tolist())
    for row, near in enumerate(found.items_NK):
        order = [other for other in np.argsort(-texts @ texts[row]).tolist() if other in chosen and other != row]
        assert near.tolist() == (order[:3] if row in chosen else [-1, -1, -1])
    whole = user_vectors(texts, histories, 4)
    assert len(found.users_SK) == sum(max(0, len(rows) - 1) for rows in histories)
    for user, rows in enumerate(histories):
        for length in range(1, len(rows)):
            vector = texts[rows[:length][-4:]].mean(0)
            others = [other for other in range(len(histories)) if other not in (user, 3)]
            (near,) = found.of_users(np.array([user]), np.array([length]))
            assert len(set(near.tolist()) & set(others)) == 3
            best = np.sort(whole[others] @ vector)[::-1][:3]  # users may have the same newest items
            np.testing.assert_allclose(whole[near] @ vector, best, atol=1e-5)


def test_what_is_held_out_changes_no_neighbour(
    ring: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    spec = BOTH.model_copy(update={"source": str(backbone_folder("bert"))})
    changed = ring.rows.copy()
    for end in ring.offsets_U1[1:]:
        changed[end - 2 : end] = (changed[end - 2 : end] + 7) % ring.n_items
    hashes = []
    for data in (ring, replace(ring, rows=changed)):
        split = leave_one_out(data)
        vectors = text_vectors(spec, split, split.train_rows(), Sources(vectors=tmp_path), QUIET)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        hashes.append(find_neighbours(vectors, split.train_rows(), spec, seed=0, folder=None).sha256)
    assert hashes[0] == hashes[1]


def test_neighbours_are_kept_under_all_that_decides_them(
    texts: np.ndarray, histories: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_neighbours(texts, histories, BOTH, seed=0, folder=tmp_path)
    others = [
        find_neighbours(texts[::-1], histories, BOTH, seed=0, folder=tmp_path),
        find_neighbours(texts, [*histories[1:], histories[0]], BOTH, seed=0, folder=tmp_path),
        find_neighbours(texts, histories, BOTH.model_copy(update={"newest": 2}), seed=0, folder=tmp_path),
        *(find_neighbours(texts, histories, BOTH.model_copy(update={"random": True}), seed=seed, folder=tmp_path)
          for seed in (0, 1)),
    ]  # fmt: skip
    assert len({found.sha256 for found in (first, *others)}) == len(list(tmp_path.iterdir())) == 6
    monkeypatch.setattr(FlatIndex, "build", None)
    again = find_neighbours(texts, histories, BOTH.model_copy(update={"users": 2.0}), seed=9, folder=tmp_path)
    np.testing.assert_array_equal(again.items_NK, first.items_NK)
    np.testing.assert_array_equal(again.users_SK, first.users_SK)


def test_the_control_draws_others_at_random(texts: np.ndarray, histories: list[np.ndarray]) -> None:
    random = BOTH.model_copy(update={"random": True})
    near, drawn = (find_neighbours(texts, histories, spec, seed=0, folder=None) for spec in (BOTH, random))
    assert (near.users_SK == drawn.users_SK).mean() < 0.3 and (near.items_NK == drawn.items_NK).mean() < 0.4
    for user, rows in enumerate(histories):
        for length in range(1, len(rows)):
            (found,) = drawn.of_users(np.array([user]), np.array([length]))
            assert len(set(found.tolist()) - {user}) == 3
    assert all(row not in found and len(set(found)) == 3 for row, found in enumerate(drawn.items_NK.tolist()))


def test_a_view_replaces_a_fifth_of_the_items_by_neighbours(texts: np.ndarray, histories: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    beside = contrast(BOTH, texts, histories)
    given = [histories[number % 32] for number in range(6000)]
    views = beside.view(given)
    assert [len(view) for view in views] == [min(4, len(rows)) for rows in given]
    before, after = np.concatenate([rows[-4:] for rows in given]), np.concatenate(views)
    other = before != after
    assert other.mean() == pytest.approx(0.2, abs=0.01)
    lists = beside._neighbours.items_NK
    assert all(new in lists[old] for old, new in zip(before[other], after[other], strict=True))


def test_one_position_of_every_window_is_drawn(ring: Dataset, histories: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    encoder = module_of(ring, []).encoder
    windows = [Window(histories[0], 0), Window(histories[1][:2], 1), Window(histories[2], 2)]
    batch = collate(encoder, windows)
    drawn = np.stack([batch.users_P[one_of_each(batch)].numpy() for _ in range(20)])
    assert (drawn == [0, 1, 2]).all()
    places = {int(one_of_each(batch)[0]) for _ in range(200)}
    assert places == set(range(len(histories[0]) - 1))


def test_the_losses_are_those_of_states_added_with_their_weights(
    ring: Dataset, texts: np.ndarray, histories: list[np.ndarray]
) -> None:
    """With one neighbour its weight is 1: the positive is the state of the nearest user."""
    spec = SemanticSpec(users=0.3, count=1, dropout=0.0)
    beside = contrast(spec, texts, histories)
    windows = [Window(histories[user], user, last_only=True) for user in range(6)]
    plain, extra = module_of(ring, []), module_of(ring, [beside])
    batch = plain.collate(windows)
    found = (extra(batch) - plain(batch)).item()
    lengths = np.array([len(histories[user]) - 1 for user in range(6)])
    near = beside._neighbours.of_users(np.arange(6), lengths)[:, 0]
    own = states_of(plain.encoder, [histories[user][:-1] for user in range(6)])
    theirs = states_of(plain.encoder, [histories[user] for user in near])
    expected = 0.3 * info_nce(own, theirs, 1.0).item() * batch.count
    assert found == pytest.approx(expected, rel=1e-3) and expected > 0.01


def test_gradients_reach_the_encoder_through_the_mix_and_never_the_texts(
    ring: Dataset, texts: np.ndarray, histories: list[np.ndarray]
) -> None:
    beside = contrast(BOTH, texts, histories)
    module = module_of(ring, [beside])
    assert "users_UC" not in module.state_dict() and not beside.users_UC.requires_grad
    mixed = beside._mixed(module.encoder, beside._neighbours.of_users(np.arange(4), np.full(4, 1)), histories[:4])
    mixed.square().sum().backward()
    assert beside.mix is not None
    for weight in (beside.mix.map.weight, beside.mix.score.weight, module.encoder.items.ids.weight):
        assert weight.grad is not None and float(weight.grad.abs().max()) > 0


@pytest.fixture(scope="module")
def made(ring: Dataset, backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of ``sasrec``, and of ``sracl`` without weights (``off``) and with them (``on``)."""
    root, source = tmp_path_factory.mktemp("sracl"), f"method.semantic.source={backbone_folder('bert')}"
    run(get_recipe("sasrec", SHORT), ring, RunOptions(out=root / "sasrec"), QUIET)
    off = get_recipe("sracl", [*SHORT, "method.semantic.users=0", "method.semantic.items=0"])
    run(off, ring, RunOptions(out=root / "off"), QUIET)
    run(get_recipe("sracl", [*SHORT, source]), ring, RunOptions(out=root / "on"), QUIET)
    return root


def test_without_weights_it_is_the_id_model(made: Path) -> None:
    tables = {name: load_file(made / name / "parts" / "items.safetensors")["ids.weight"] for name in ("sasrec", "off")}
    np.testing.assert_array_equal(tables["sasrec"], tables["off"])


def test_the_artifact_is_an_id_model_s(made: Path) -> None:
    files = {name: sorted(path.name for path in (made / name).rglob("*")) for name in ("sasrec", "on")}
    assert files["sasrec"] == files["on"]
    artifact = load_artifact(made / "on")  # compares item vectors and golden histories
    assert artifact.encoder.text_model is None and artifact.record.capabilities.reads == ("ids",)
    assert len(artifact.manifest.training["neighbours"]["sha256"]) == 64
    plain, other = (load_file(made / name / "parts" / "items.safetensors")["ids.weight"] for name in ("sasrec", "on"))
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.semantic.users=0", "method.semantic.dropout=0.1"], "dropout has no effect"),
        (["method.semantic.items=0", "method.semantic.replaced=0.1"], "replaced has no effect"),
        (["method.semantic.users=0", "method.semantic.items=0", "method.semantic.count=5"], "count has no effect"),
        (["projector.kind=none", "projector.residual=true"], "projector.kind='none' has none"),
        (["method.semantic.source=tiny"], "a pretrained language model is needed"),
        (["method.semantic.template={brand}"], "title"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe("sracl", settings)


def test_too_few_users_or_items_are_refused(texts: np.ndarray) -> None:
    with pytest.raises(DataError, match="two items in training histories: there are 1"):
        find_neighbours(texts, [np.array([2, 2])], BOTH, seed=0, folder=None)
    with pytest.raises(DataError, match="two users with training histories: there are 1"):
        find_neighbours(texts, [np.array([2, 3])], BOTH, seed=0, folder=None)
