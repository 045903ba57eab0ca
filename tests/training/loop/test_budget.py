"""A time budget covers every stage; what learned nothing is an error; hopeless data is refused before training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from modeling.encoder.build import TextVectors
from modeling.encoder.item_tower import Whitening
from testing.datasets import SMALL, ring_dataset
from testing.models import backbone_folder
from training import tiny
from training.checks import check_text
from training.data.dataset import Dataset, read_dataset
from training.data.report import DataError
from training.loop.budget import Budget, OutOfTime, check_time
from training.loop.budget import budget as time_budget
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

QUIET = Console(quiet=True)
SHORT = ["optimizer.epochs=1", "optimizer.positions=60"]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=24, items=20)


def small_data(folder: Path, *, titles: Sequence[str], users: int, length: int) -> Dataset:
    """Users who take one item after the other, from the start again after the last."""
    folder.mkdir()
    rows = [{"item_id": f"i{n}", "title": title} for n, title in enumerate(titles)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = [(f"u{user}", f"i{(user + n) % len(titles)}", n) for user in range(users) for n in range(length)]
    pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
        folder / "interactions.csv"
    )
    return read_dataset(folder)


def test_a_budget_counts_down_and_is_over_only_within_itself() -> None:
    check_time("nothing")
    assert Budget(None).left is None
    with time_budget(1e-9) as clock:
        time.sleep(0.001)
        assert clock.left == 0
        with pytest.raises(
            OutOfTime, match=r"time budget of 1e-09 min ended while reading titles; nothing was written"
        ):
            check_time("reading titles")
    check_time("nothing")


STAGES = {
    "tiny": ("anyo", "tiny", [*SHORT, "items.dim=16"], "training the backbone 'tiny'"),
    "titles": ("anyo", "qwen3", [*SHORT, "items.dim=16"], "reading titles"),
    "titles of codes": ("tiger", None, [*SHORT, "method.codes.size=4", "items.text_source=FOLDER"], "reading titles"),
    "copying": (
        "llara", "qwen3",
        [*SHORT, "adapter.kind=full", "method.copying=100000", "method.candidates=4", "history.title_tokens=4"],
        "starting the stage 'copying'",
    ),
    "title space": ("bigrec", "qwen3", [*SHORT, "history.title_tokens=4"], "reading titles"),
    "training": ("sasrec", None, SMALL, "preparing the training"),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_the_budget_covers_every_stage_and_nothing_is_left_behind(
    stage: str, ring: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, backbone, settings, doing = STAGES[stage]
    folder = str(backbone_folder("qwen3"))
    recipe = get_recipe(
        name, [s.replace("FOLDER", folder) for s in settings], backbone=folder if backbone == "qwen3" else backbone
    )
    id_model = None
    if recipe.requires:
        id_model = tmp_path / "sasrec"
        run(get_recipe("sasrec", [*SMALL, "optimizer.epochs=1"]), ring, RunOptions(out=id_model), QUIET)
    monkeypatch.setattr(tiny, "TOKEN_BUDGET", 40_000)
    options = RunOptions(out=tmp_path / "out", time_budget=1e-6, id_model=id_model)
    with pytest.raises(OutOfTime, match=f"min ended while {doing}; nothing was written"):
        run(recipe, ring, options, QUIET)
    assert not options.out.exists()
    made = tmp_path / ".backbones"
    assert not made.exists() or not any(path.name.startswith("tiny-") for path in made.iterdir()), "half a backbone"


def test_codes_are_made_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Progress

    from training.item_ids.rqvae import quantise
    from training.loop.budget import timed
    from training.recipe import CodesSpec

    vectors_NC = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    with time_budget(1e-9), Progress(console=QUIET) as bar, pytest.raises(OutOfTime, match="making codes"):
        quantise(vectors_NC, CodesSpec(size=4), progress=timed(bar, bar.add_task("x"), "making codes"))


def test_a_run_that_was_cut_in_its_first_epoch_is_an_error(
    ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.loop.fit._minutes", lambda options: 1e-9)
    recipe = get_recipe("sasrec", [*SMALL, "optimizer.positions=20"])
    with pytest.raises(OutOfTime, match=r"after 0\.\d\d of the first epoch, which takes about .* nothing was written"):
        run(recipe, ring, RunOptions(out=tmp_path / "out", time_budget=5), QUIET)
    assert not (tmp_path / "out").exists()


def test_a_refit_that_was_cut_is_an_error(ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def minutes(options: Any) -> float:
        shares.append(options.share)
        return 1e-9 if options.fitted_on != "train" else 5.0

    monkeypatch.setattr("training.loop.fit._minutes", minutes)
    monkeypatch.setattr(Budget, "left", property(lambda self: 0.0 if len(shares) == 2 else 1.0))
    recipe = get_recipe("sasrec", [*SMALL, "optimizer.epochs=3"])
    with pytest.raises(OutOfTime, match=r"ended while refitting on train \+ validation; nothing was written"):
        run(recipe, ring, RunOptions(out=tmp_path / "out", time_budget=5, refit=True), QUIET)
    assert shares == [0.5, 1.0] and not (tmp_path / "out").exists()


DIFFERENT = [f"title {n}" for n in range(6)]
HOPELESS: dict[str, tuple[dict[str, Any], str, list[str], str]] = {
    "one item": ({"titles": ["a"], "users": 4, "length": 5}, "sasrec", SMALL, "has had all 1 items"),
    "everything taken": (
        {"titles": DIFFERENT[:3], "users": 4, "length": 6}, "sasrec", SMALL, "has had all 3 items, so none is left",
    ),
    "nothing to train on": (
        {"titles": DIFFERENT, "users": 4, "length": 3}, "sasrec", SMALL, "no user has two items or more",
    ),
    "equal titles": ({"titles": ["a"] * 6, "users": 4, "length": 5}, "anyo", SHORT, "all 6 titles are 'a'"),
    "equal titles, written": ({"titles": ["a"] * 6, "users": 4, "length": 5}, "genre", SHORT, "all 6 titles are 'a'"),
    "few items for codes": (
        {"titles": DIFFERENT, "users": 4, "length": 5}, "tiger", SHORT, "6 items cannot have that many codes",
    ),
    "few candidates": (
        {"titles": DIFFERENT, "users": 4, "length": 5}, "llara", SHORT, "method.candidates=20: there are 6 items",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOPELESS)
def test_hopeless_data_is_refused_before_anything_is_made(case: str, tmp_path: Path) -> None:
    data, name, settings, message = HOPELESS[case]
    dataset = small_data(tmp_path / "data", **data)
    out = tmp_path / "artifacts" / "out"
    with pytest.raises((DataError, RecipeError), match=message) as refused:
        run(get_recipe(name, settings), dataset, RunOptions(out=out), QUIET)
    assert "\n" not in str(refused.value)
    assert not out.parent.exists(), "no backbone was trained for it either"


@pytest.mark.parametrize(("users", "titles"), [(1, 6), (5, 6)])
def test_small_data_that_can_be_learned_is(users: int, titles: int, tmp_path: Path) -> None:
    dataset = small_data(tmp_path / "data", titles=DIFFERENT[:titles], users=users, length=5)
    recipe = get_recipe("sasrec", [*SMALL, "optimizer.epochs=1"])
    assert run(recipe, dataset, RunOptions(out=tmp_path / "out"), QUIET).validation["ndcg@10"] > 0


def test_title_vectors_that_are_all_one_are_refused() -> None:
    recipe = get_recipe("anyo")
    raw = np.ones((6, 4), np.float32)
    with np.errstate(all="ignore"):
        whitening = Whitening.fit(raw, 4)
        text = TextVectors(whitening(raw), whitening)
    with pytest.raises(DataError, match="reads all 6 titles as one vector"):
        check_text(text, recipe)
    check_text(None, recipe)
    varied = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    check_text(TextVectors(varied, Whitening.fit(varied, 4)), recipe)
