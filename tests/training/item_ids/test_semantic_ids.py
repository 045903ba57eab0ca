"""Semantic IDs: alike items begin alike, each has its own, codebooks do not collapse, a resumed run keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from modeling.encoder.user_encoder import CannotReadText
from modeling.generation.item_tokenizer import CodeTokenizer
from testing.datasets import write_dataset
from training.data.cooccurrence import neighbour_vectors
from training.data.dataset import read_dataset
from training.data.splits import leave_one_out
from training.item_ids import assign as naming
from training.item_ids.residual_kmeans import report_codes, residual_kmeans, with_counter
from training.item_ids.rqvae import quantise
from training.methods.trie import name_items
from training.recipe import CodesSpec
from training.recipes import get_recipe

SETTINGS = ["method.codes.size=8", "method.codes.levels=2", "backbone.width=32"]
SPEC = CodesSpec(levels=3, size=16, dim=8, epochs=60)


@pytest.fixture(scope="module")
def vectors_ND() -> np.ndarray:
    """Six hundred items in forty groups, of length one."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(40, 24))[rng.integers(40, size=600)] + 0.3 * rng.normal(size=(600, 24))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def test_each_level_brings_the_codes_closer_and_alike_items_begin_alike(vectors_ND: np.ndarray) -> None:
    codes_NL, centroids_LKD = residual_kmeans(vectors_ND, levels=3, size=16, seed=1)
    errors = [
        float(((vectors_ND - sum(centroids_LKD[at, codes_NL[:, at]] for at in range(levels))) ** 2).sum())
        for levels in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2]
    again, _ = residual_kmeans(vectors_ND, levels=3, size=16, seed=1)
    assert (again == codes_NL).all()
    alike_NN = vectors_ND @ vectors_ND.T
    same_NN = codes_NL[:, None, 0] == codes_NL[None, :, 0]
    assert alike_NN[same_NN].mean() > alike_NN[~same_NN].mean() + 0.3


def test_the_quantiser_uses_its_codes_and_rebuilds_the_vectors(vectors_ND: np.ndarray) -> None:
    codes_NL, rebuilt_ND = quantise(vectors_ND, SPEC, seed=0)
    report = report_codes(codes_NL, SPEC.size, rebuilt_ND, vectors_ND)
    assert min(report.utilisation) > 0.8
    assert report.error < 0.6  # of noise that 16 × 16 × 16 codes cannot hold
    assert (quantise(vectors_ND, SPEC, seed=0)[0] == codes_NL).all()


def test_a_counter_makes_every_item_its_own() -> None:
    codes_NL = np.array([[1, 2], [0, 0], [1, 2], [1, 2], [0, 1]])
    assert with_counter(codes_NL)[:, 2].tolist() == [0, 0, 1, 2, 0]
    report = report_codes(codes_NL, 4, np.zeros((5, 2)), np.ones((5, 2)) * np.arange(5)[:, None])
    assert report.unique == pytest.approx(0.4) and report.collisions == 3 and report.utilisation == (0.5, 0.75)


def test_items_chosen_together_are_near_whatever_they_are_called() -> None:
    """Three shops: who chooses in one hardly chooses in another. Only what may be trained on is read."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(np.arange(20) + 20 * (user % 3))[:8] for user in range(300)]
    near_ND = neighbour_vectors([*sequences, np.array([5])], 61, dim=16)
    alike_NN = near_ND @ near_ND.T
    same_NN = np.arange(61)[:, None] // 20 == np.arange(61)[None] // 20
    assert alike_NN[:60, :60][same_NN[:60, :60]].mean() > alike_NN[:60, :60][~same_NN[:60, :60]].mean() + 0.2
    assert not near_ND[60].any() and np.allclose(np.linalg.norm(near_ND[:60], axis=1), 1, atol=1e-5)
    assert not neighbour_vectors([np.array([3])], 5).any()


def test_codes_may_follow_the_histories(tmp_path: Path) -> None:
    split = leave_one_out(read_dataset(write_dataset(tmp_path / "ring")))
    found = []
    for share in (0, 0.9):
        recipe = get_recipe(
            "tiger", ["method.codes.kind=residual-kmeans", f"method.codes.collaborative={share}", *SETTINGS]
        )
        work = tmp_path / f"work-{share}"
        named = name_items(recipe, split, folder=None, work=work, seed=0, console=Console(quiet=True))
        codes_NL = np.stack([named.tokens[row] for row in range(split.dataset.n_items)])
        ring_N = [split.dataset.row_of[f"i{place}"] for place in range(split.dataset.n_items)]
        found.append(float((codes_NL[ring_N, 0] == np.roll(codes_NL[ring_N, 0], 1)).mean()))
    assert found[1] > found[0] + 0.2, "neighbours on the ring follow each other in every history"


def test_fewer_items_than_codes_is_said(vectors_ND: np.ndarray) -> None:
    for make in (lambda: quantise(vectors_ND[:9], SPEC), lambda: residual_kmeans(vectors_ND[:9], levels=1, size=16)):
        with pytest.raises(ValueError, match="9 items cannot have 16 codes"):
            make()


def test_codes_are_spelt_as_tokens_and_read_back() -> None:
    spelling = CodeTokenizer([16, 16, 3])
    tokens = spelling.spell(np.array([[15, 0, 2], [0, 15, 0]]))
    assert tokens[0].tolist() == [16, 17, 35] and tokens[1].tolist() == [1, 32, 33]
    assert spelling.vocabulary == 36
    assert spelling.code(tokens[0].tolist()) == (15, 0, 2) and spelling.text(tokens[1].tolist()[:2]) == "<0><15>"
    with pytest.raises(CannotReadText):
        spelling.read(["A title"])


@pytest.mark.parametrize(("kind", "maker"), [("rq-vae", "quantise"), ("residual-kmeans", "residual_kmeans")])
def test_a_run_that_goes_on_keeps_its_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, maker: str
) -> None:
    """Another rounding would give other codes, under which a checkpoint would mean other items."""
    split = leave_one_out(read_dataset(write_dataset(tmp_path / "ring")))
    epochs = ["method.codes.epochs=5"] if kind == "rq-vae" else []
    recipe = get_recipe("tiger", [f"method.codes.kind={kind}", *epochs, *SETTINGS])
    console = Console(quiet=True)
    first = name_items(recipe, split, folder=None, work=tmp_path / "work", seed=0, console=console)
    monkeypatch.setattr(naming, maker, lambda *given, **named: pytest.fail("codes were made again"))
    again = name_items(recipe, split, folder=None, work=tmp_path / "work", seed=0, console=console)
    assert (first.tokens.tokens == again.tokens.tokens).all() and first.report == again.report
