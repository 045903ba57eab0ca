"""A student of exported lists: what is taken, what is refused, and an artifact that is a plain id model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from modeling.encoder.build import build_model
from modeling.methods import load
from modeling.methods.dense import load_artifact
from testing.datasets import SMALL, ring_dataset, write_dataset
from training.compare import export_teacher
from training.data.dataset import Dataset, read_dataset
from training.data.report import DataError
from training.data.splits import leave_one_out
from training.evaluation.teachers.lists import Teacher, TeacherLists
from training.loop.examples import Window, collate
from training.loop.module import RetrievalModule
from training.loop.student import Student
from training.methods.dense import DenseSettings
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

QUIET = Console(quiet=True)
STUDENT = [*SMALL, "optimizer.epochs=2"]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=32, items=24)


@pytest.fixture(scope="module")
def made(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher (``a``), its lists (``lists``) and those of a counted ranker (``counted``)."""
    root = tmp_path_factory.mktemp("teacher")
    run(get_recipe("sasrec", STUDENT), ring, RunOptions(out=root / "a"), QUIET)
    run(get_recipe("markov"), ring, RunOptions(out=root / "m"), QUIET)
    export_teacher(root / "a", ring, root / "lists", top=10, newest=None, console=QUIET)
    export_teacher(root / "m", ring, root / "counted", top=12, newest=2, console=QUIET)
    return root


def test_every_training_target_has_the_list_of_what_comes_before_it(made: Path, ring: Dataset) -> None:
    teacher, artifact = Teacher.read(made / "lists"), load_artifact(made / "a")
    rows_U = leave_one_out(ring).train_rows()
    assert len(teacher.users_R) == sum(len(rows) - 1 for rows in rows_U)
    for number in (0, 7, len(teacher.users_R) - 1):
        user, position = int(teacher.users_R[number]), int(teacher.positions_R[number])
        prompt = artifact.encoder.prepare(rows_U[user][:position].tolist())
        vector = artifact.encoder.encode([prompt])[0]
        scores_N = artifact.item_vectors_ND @ vector
        assert teacher.rows_RK[number].tolist() == np.argsort(-scores_N, kind="stable")[:10].tolist()
        best = np.sort(scores_N)[::-1][:10] / artifact.record.temperature
        np.testing.assert_allclose(teacher.scores_RK[number], best, rtol=1e-4)
        np.testing.assert_allclose(teacher.vectors_RD[number], vector, atol=1e-5)
    counted = Teacher.read(made / "counted")
    assert counted.rows_RK.shape[1] == 12 and counted.items_NC.size == 0
    assert np.unique(counted.users_R, return_counts=True)[1].max() == 2


def test_a_ranker_scores_the_unseen_candidates_of_a_dense_artifact(made: Path, ring: Dataset, tmp_path: Path) -> None:
    console, artifact = QUIET, load_artifact(made / "a")
    teacher = export_teacher(
        made / "m", ring, tmp_path / "out", top=6, newest=2, console=console, candidates=made / "a"
    )
    ranker, rows_U = load(made / "m").model, leave_one_out(ring).train_rows()
    for number in (0, 9, len(teacher.users_R) - 1):
        history = rows_U[int(teacher.users_R[number])][: int(teacher.positions_R[number])].tolist()
        scores_N = artifact.item_vectors_ND @ artifact.encoder.encode([artifact.encoder.prepare(history)])[0]
        scores_N[history] = -np.inf
        found = np.argsort(-scores_N, kind="stable")[:6]
        assert sorted(teacher.rows_RK[number]) == sorted(found)
        expected = ranker.scores(history)[teacher.rows_RK[number]].astype(np.float32)
        np.testing.assert_array_equal(teacher.scores_RK[number], expected)
        assert (np.diff(teacher.scores_RK[number]) <= 0).all()
    assert teacher.facts["candidates"]["recipe"] == "sasrec"
    with pytest.raises(DataError, match="artifact a does not score candidates"):
        export_teacher(made / "a", ring, tmp_path / "x", top=6, newest=2, console=console, candidates=made / "a")
    own = export_teacher(made / "m", ring, tmp_path / "own", top=6, newest=2, console=console, candidates=made / "m")
    assert own.facts["candidates"]["recipe"] == "markov" and (np.diff(own.scores_RK) <= 0).all()


def test_a_dense_recipe_learns_from_a_ranker_s_scores(made: Path, ring: Dataset, tmp_path: Path) -> None:
    """Lists whose best item is the next one help; the same lists given to other rows do not."""
    good = Teacher.read(made / "lists")
    rows_U = leave_one_out(ring).train_rows()
    told, scores = good.rows_RK.copy(), np.zeros_like(good.scores_RK)
    told[:, 0] = [rows_U[user][place] for user, place in zip(good.users_R, good.positions_R, strict=True)]
    scores[:, 0] = 4.0
    replace(good, rows_RK=told, scores_RK=scores).write(tmp_path / "told")
    settings = [
        *SMALL, "optimizer.epochs=6", "method.objective.kind=gbce", "method.objective.negatives=1",
        "method.objective.calibration=0", "method.distillation.divergence=5", "method.distillation.temperature=2",
    ]  # fmt: skip
    found = {}
    for shuffled in ("false", "true"):
        recipe = get_recipe("sasrec", [*settings, f"method.distillation.shuffled={shuffled}"])
        out = tmp_path / shuffled
        found[shuffled] = run(recipe, ring, RunOptions(out=out, teacher=tmp_path / "told"), QUIET).validation["ndcg@10"]
    assert found["false"] > found["true"] + 0.05


def test_a_batch_asks_for_the_lists_of_its_own_targets(made: Path, ring: Dataset) -> None:
    teacher, rows_U = Teacher.read(made / "lists"), leave_one_out(ring).train_rows()
    encoder = build_model(get_recipe("sasrec", STUDENT).model_spec(), catalog_size=ring.n_items).encoder
    cut = Window(rows_U[3][2:6], user=3, start=2)
    batch = collate(encoder, [Window(rows_U[1], user=1), cut, Window(rows_U[2][:4], user=2, last_only=True)])
    for user, place, target in zip(batch.owners_P, batch.places_P, batch.targets_P, strict=True):
        assert rows_U[int(user)][int(place)] == int(target)
    assert batch.owners_P.tolist()[-4:] == [3, 3, 3, 2] and batch.places_P.tolist()[-4:] == [3, 4, 5, 3]
    rows, _ = TeacherLists(teacher, 5)(batch.owners_P.numpy(), batch.places_P.numpy())
    assert (rows >= 0).all()


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_without_weights_the_loss_is_the_student_s_own(weight: float, made: Path, ring: Dataset) -> None:
    teacher, rows_U = Teacher.read(made / "lists"), leave_one_out(ring).train_rows()
    settings = [*STUDENT, f"method.distillation.ranking={weight}", "method.distillation.embedding=0"]
    recipe = get_recipe("dllm2rec", settings)
    assert isinstance(recipe.method, DenseSettings)
    losses = []
    for taught in (False, True):
        torch.manual_seed(0)
        encoder = build_model(recipe.model_spec(), catalog_size=ring.n_items).encoder.train()
        students = [Student(recipe.method.distillation, teacher, encoder.items, 0)] if taught else []
        module = RetrievalModule(
            encoder, recipe.method.objective, popularity_N=np.ones(ring.n_items, np.int64), auxiliaries=students
        )
        losses.append(module(module.collate([Window(rows_U[1], user=1)])).item())
    assert (losses[0] == losses[1]) == (weight == 0)


def test_the_student_s_artifact_is_an_id_model_s(made: Path, ring: Dataset) -> None:
    recipe = get_recipe("dllm2rec", STUDENT)
    result = run(recipe, ring, RunOptions(out=made / "student", teacher=made / "lists"), QUIET)
    tables = [load_file(made / name / "parts" / "items.safetensors") for name in ("a", "student")]
    assert {name: array.shape for name, array in tables[0].items()} == {
        name: array.shape for name, array in tables[1].items()
    }
    assert sorted(path.name for path in (made / "student").rglob("*")) == sorted(
        path.name for path in (made / "a").rglob("*")
    )
    assert result.manifest.training["teacher"]["version"] == Teacher.read(made / "lists").facts["version"]
    load_artifact(made / "student")  # compares item vectors and golden histories


def test_the_teacher_s_lists_teach(made: Path, ring: Dataset, tmp_path: Path) -> None:
    """With lists that name the next item the student learns it sooner; with lists of other rows it does not."""
    good = Teacher.read(made / "lists")
    rows_U = leave_one_out(ring).train_rows()
    right = [rows_U[user][place] for user, place in zip(good.users_R, good.positions_R, strict=True)]
    told = good.rows_RK.copy()
    told[:, 0] = right
    Teacher(good.facts, good.users_R, good.positions_R, told, good.scores_RK, good.items_NC, good.vectors_RD).write(
        tmp_path / "told"
    )
    settings = [
        *SMALL, "optimizer.epochs=6", "method.objective.kind=gbce", "method.objective.negatives=1",
        "method.objective.calibration=0", "method.distillation.ranking=5", "method.distillation.embedding=0",
    ]  # fmt: skip
    found = {}
    for shuffled in ("false", "true"):
        recipe = get_recipe("dllm2rec", [*settings, f"method.distillation.shuffled={shuffled}"])
        out = tmp_path / shuffled
        found[shuffled] = run(recipe, ring, RunOptions(out=out, teacher=tmp_path / "told"), QUIET).validation["ndcg@10"]
    assert found["false"] > found["true"] + 0.05


def test_what_cannot_be_a_teacher_is_refused(made: Path, ring: Dataset, tmp_path: Path) -> None:
    recipe = get_recipe("dllm2rec", STUDENT)
    with pytest.raises(RecipeError, match="give the folder with --teacher"):
        run(recipe, ring, RunOptions(out=tmp_path / "x"), QUIET)
    with pytest.raises(RecipeError, match="learns from no teacher"):
        run(get_recipe("sasrec", STUDENT), ring, RunOptions(out=tmp_path / "x", teacher=made / "lists"), QUIET)
    other = read_dataset(write_dataset(tmp_path / "other", users=32, items=24, seed=5))
    with pytest.raises(RecipeError, match="has data_sha256"):
        run(recipe, other, RunOptions(out=tmp_path / "x", teacher=made / "lists"), QUIET)
    with pytest.raises(DataError, match="embedding needs item vectors of the teacher"):
        run(recipe, ring, RunOptions(out=tmp_path / "x", teacher=made / "counted"), QUIET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.distillation.ranking=0", "method.distillation.candidates=5"], "candidates has no effect"),
        (["method.distillation.temperature=2"], "temperature has no effect"),
        (["requires=sasrec"], "an id table that starts at random"),
        (
            [f"method.distillation.{name}=0" for name in ("position", "confidence", "consistency")],
            "needs a weight over",
        ),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe("dllm2rec", settings)
