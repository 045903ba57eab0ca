"""Vectors of many beginnings of a history: those of encoding each alone, from fewer passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from index import FlatIndex
from modeling.encoder.build import Model, build_model
from modeling.encoder.user_encoder import UserEncoder
from modeling.methods.dense import load_artifact
from modeling.spec import BackboneSpec, HistorySpec, ItemsSpec, ModelSpec, PoolingSpec, ProjectorSpec
from testing.datasets import QUIET, write_dataset
from testing.models import ITEMS, backbone_folder, small_model
from training.compare import export_teacher
from training.data.dataset import read_dataset
from training.data.report import DataError
from training.data.splits import leave_one_out
from training.evaluation.teachers.passes import SHARE, Pass, encode_passes, passes_of
from training.evaluation.work import Work
from training.recipes import get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder", "small_model"]  # fixtures

LIMIT = 5
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(0, ITEMS, length) for length in (4, 1, 14, 6, 0, 2)]
USERS = np.repeat(np.arange(len(SEQUENCES)), [max(0, len(rows) - 1) for rows in SEQUENCES])
PLACES = np.concatenate([np.arange(1, max(1, len(rows))) for rows in SEQUENCES])
CASES = ("ids", "compressed", "titles", "mean of titles", "titles, cut", "end token", "both directions")


def encoder_of(case: str, small_model: Callable[..., Model]) -> UserEncoder:
    history = {"history": {"limit": LIMIT}}
    if case == "ids":
        spec = ModelSpec(
            history=HistorySpec(form="ids", dropout=0.0, limit=LIMIT),
            backbone=BackboneSpec(width=16, depth=2, heads=2, dropout=0.0),
            projector=ProjectorSpec(kind="linear", residual=True, recent=3),
            items=ItemsSpec(tower="id", dim=16),
        )
        return build_model(spec, catalog_size=ITEMS).encoder.eval()
    if case == "both directions":
        pooling = PoolingSpec(kind="mean")
        return small_model("titles", attention="bidirectional", pooling=pooling, **history).encoder
    if case == "titles, cut":
        encoder = small_model("titles", pooling=PoolingSpec(kind="weighted_mean"), **history).encoder
        encoder.prompts.position_limit = 16
        return encoder
    kinds = {"mean of titles": "mean", "end token": "eos"}
    form = "compressed" if case == "compressed" else "titles"
    return small_model(form, pooling=PoolingSpec(kind=kinds.get(case, "last")), **history).encoder


def alone(encoder: UserEncoder, user: int, first: int, place: int) -> np.ndarray:
    (vector,) = encoder.encode([encoder.prepare(SEQUENCES[user][first:place].tolist())])
    return np.asarray(vector)


@pytest.mark.parametrize("case", CASES)
def test_vectors_are_those_of_each_target_alone(case: str, small_model: Callable[..., Model]) -> None:
    encoder = encoder_of(case, small_model)
    passes = passes_of(encoder, SEQUENCES, USERS, PLACES)
    assert sorted(row for each in passes for row in each.rows) == list(range(len(USERS)))
    if encoder.capabilities.every_boundary:
        # the beginnings that are read whole, then one each
        later = sum(max(0, len(rows) - 1 - LIMIT) for rows in SEQUENCES)
        assert len(passes) == 4 + later or case == "titles, cut"
        assert len(passes) < len(USERS)
    else:
        assert len(passes) == len(USERS)
    told: list[int] = []
    vectors = encode_passes(encoder, passes, told.append)
    assert sum(told) == sum(each.prompt.length for each in passes)
    for row, (user, place) in enumerate(zip(USERS, PLACES, strict=True)):
        expected = alone(encoder, user, max(0, place - LIMIT), place)
        np.testing.assert_allclose(vectors[row], expected, atol=1e-5)


@pytest.mark.parametrize("case", ["ids", "compressed"])
def test_a_shared_pass_reads_at_least_half(case: str, small_model: Callable[..., Model]) -> None:
    encoder = encoder_of(case, small_model)
    exact, shared = (passes_of(encoder, SEQUENCES, USERS, PLACES, shared=shared) for shared in (False, True))
    assert len(shared) < len(exact) - 4
    vectors = encode_passes(encoder, shared, lambda done: None)
    assert len(vectors) == len(USERS)
    for each in shared:
        for row, items in zip(each.rows, each.items, strict=True):
            user, place = int(USERS[row]), int(PLACES[row])
            assert SHARE * min(place, LIMIT) <= items <= LIMIT
            np.testing.assert_allclose(vectors[row], alone(encoder, user, place - items, place), atol=1e-5)


def test_passes_that_cannot_be_shared_are_refused(small_model: Callable[..., Model]) -> None:
    for case in ("end token", "both directions"):
        encoder = encoder_of(case, small_model)
        with pytest.raises(DataError, match="a state of this encoder is that of a whole history"):
            passes_of(encoder, SEQUENCES, USERS, PLACES, shared=True)
        prompt = encoder.prepare([1, 2])
        with pytest.raises(ValueError, match="beginnings need passes of their own"):
            encode_passes(encoder, [Pass(prompt, [0, 1], [1, 2])], lambda done: None)


def test_a_teacher_that_is_a_language_model_gives_the_lists_of_each_target_alone(
    backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    ring = read_dataset(write_dataset(tmp_path / "ring", users=24, items=24))
    settings = ["items.dim=16", "optimizer.epochs=1", f"history.limit={LIMIT}"]
    recipe = get_recipe("anyo", settings, backbone=str(backbone_folder("llama")))
    run(recipe, ring, RunOptions(out=tmp_path / "a"), QUIET)
    artifact, rows_U = load_artifact(tmp_path / "a"), leave_one_out(ring).train_rows()
    index = FlatIndex.build(artifact.item_vectors_ND)
    for newest in (None, 2):
        teacher = export_teacher(tmp_path / "a", ring, tmp_path / f"{newest}", top=6, newest=newest, console=QUIET)
        assert len(teacher.users_R) == sum(min(len(rows) - 1, newest or 99) for rows in rows_U)
        for number, (user, place) in enumerate(zip(teacher.users_R, teacher.positions_R, strict=True)):
            vector = artifact.encoder.encode([artifact.encoder.prepare(rows_U[user][:place].tolist())])
            np.testing.assert_allclose(teacher.vectors_RD[number], vector[0], atol=1e-5)
            scores, rows = index.search(vector, 6)
            assert teacher.rows_RK[number].tolist() == rows[0].tolist()
            np.testing.assert_allclose(
                teacher.scores_RK[number], scores[0] / artifact.record.temperature, atol=1e-4, rtol=1e-4
            )
    facts = export_teacher(
        tmp_path / "a", ring, tmp_path / "shared", top=6, newest=None, console=QUIET, shared=True
    ).facts
    assert facts["shared_passes"] == SHARE and "shared_passes" not in teacher.facts


def test_where_there_is_no_terminal_a_line_says_what_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr("training.evaluation.work.time.monotonic", lambda: now[0])
    with (tmp_path / "said").open("w") as file, Work(Console(file=file), "asking [a]: 4 targets", 4) as work:
        for _ in range(3):
            now[0] += 20
            work()
    assert (tmp_path / "said").read_text() == "asking [a]: 4 targets: 50%, about 0.7 min left\n"
