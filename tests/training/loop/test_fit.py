"""Training runs: they learn, start at ln N, resume to the same end, and two processes are one."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from modeling.encoder.build import Sources, TextVectors, build_model
from modeling.encoder.item_tower import Whitening
from modeling.inference import precision_choice
from modeling.inference.precision_choice import PrecisionAsked
from modeling.methods.dense import check_golden, load_artifact
from testing.datasets import QUIET, SMALL, write_dataset
from training.cli import app
from training.data import DataError
from training.data.dataset import Dataset, read_dataset
from training.data.splits import leave_one_out
from training.data.withhold import write_withheld
from training.evaluation.full_ranking import encode_users, rank_all
from training.loop.examples import EpochWindows, LengthBatches, TrainingBatch, collate
from training.loop.fit import FitOptions, fit, validation_metrics
from training.loop.module import RetrievalModule
from training.loop.trainer import last_complete_checkpoint
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("ring")))


def _module(dataset: Dataset, *settings: str) -> tuple[RetrievalModule, EpochWindows]:
    torch.manual_seed(0)
    recipe = get_recipe("sasrec", [*SMALL, *settings])
    split = leave_one_out(dataset)
    model = build_model(recipe.model_spec(), catalog_size=dataset.n_items)
    module = RetrievalModule(model.encoder, recipe.method.objective, popularity_N=split.popularity())
    sequences = [split.train_row(user) for user in range(dataset.n_users)]
    return module, EpochWindows(sequences, limit=50, seed=0)


def _with_titles(*settings: str, tower: str = "both") -> tuple[RetrievalModule, TrainingBatch]:
    """Six items with title vectors, of which nobody has chosen the fourth."""
    torch.manual_seed(0)
    source = ["items.text_source=tiny"] if tower == "both" else []
    recipe = get_recipe("sasrec", [*SMALL, f"items.tower={tower}", *source, *settings])
    titles_NC = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    text = TextVectors(titles_NC, Whitening(np.zeros(8, np.float32), np.eye(8, dtype=np.float32)))
    model = build_model(recipe.model_spec(), catalog_size=6, text=text)
    module = RetrievalModule(model.encoder, recipe.method.objective, popularity_N=np.array([2, 1, 1, 0, 1, 1]))
    windows = EpochWindows([np.array([0, 1, 2]), np.array([0, 4, 5])], limit=50, seed=0)
    return module, module.collate(windows.windows)


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_an_item_that_nobody_chose_is_no_negative_and_its_title_speaks_for_it(kind: str) -> None:
    module, batch = _with_titles(
        f"method.objective.kind={kind}", *(["method.objective.negatives=64"] if kind == "sampled" else [])
    )
    table = module.encoder.items.ids.weight

    def loss() -> float:
        torch.manual_seed(1)
        return module(batch).item()

    before = loss()
    with torch.no_grad():
        table[3] += 9.0
    assert loss() == before
    with torch.no_grad():
        table[5] += 9.0
    assert loss() != before
    module.settle()
    added_later = module.encoder.items.cold_table(module.encoder.items.text_NC[3:4])
    torch.testing.assert_close(module.encoder.items.table()[3:4], added_later)
    assert not torch.equal(table[5], table[-1])


def test_items_that_nobody_chose_leave_training_as_items_that_are_added_later(dataset: Dataset, tmp_path: Path) -> None:
    write_withheld(dataset, 0.1, 0, tmp_path / "withheld")
    split = leave_one_out(read_dataset(tmp_path / "withheld"))
    titles_NC = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    text = TextVectors(titles_NC, Whitening(np.zeros(8, np.float32), np.eye(8, dtype=np.float32)))
    recipe = get_recipe("sasrec", [*SMALL, "items.tower=both", "items.text_source=tiny"])
    options = FitOptions(work=tmp_path / "work", epochs=2)
    fitted = fit(recipe, split, options, recipe.method.objective, sources=Sources(), text=text, console=QUIET)
    items, unchosen_N = fitted.model.encoder.items, torch.from_numpy(split.popularity() == 0)
    assert int(unchosen_N.sum()) >= 5
    added_later = items.cold_table(items.text_NC[:-1][unchosen_N])
    torch.testing.assert_close(items.table()[:-1][unchosen_N], added_later)


def test_without_titles_an_item_that_nobody_chose_stays_a_negative() -> None:
    module, batch = _with_titles(tower="id")
    before = module(batch).item()
    with torch.no_grad():
        module.encoder.items.ids.weight[3] += 9.0
    assert module(batch).item() != before
    settled = module.encoder.items.ids.weight.clone()
    module.settle()
    torch.testing.assert_close(module.encoder.items.ids.weight, settled)


def test_the_loss_starts_near_ln_n_among_the_items_not_just_seen(dataset: Dataset) -> None:
    """With a table shared by input and output an untrained model answers with the newest item, so that one is left
    out here; among all others nothing is preferred, and the scale is not so large that chance similarities count."""
    module, windows = _module(dataset, "items.dim=128", "backbone.width=128")
    encoder = module.encoder.eval()
    batch = collate(encoder, windows.windows)
    states = encoder.hidden(batch.prompts)[batch.users_P, batch.boundaries_P]
    scores = encoder.project(states, batch.recent_PR) @ encoder.items.vectors().T * encoder.log_scale.exp()
    scores[torch.arange(len(scores)), batch.recent_PR[:, 0]] = -torch.inf
    loss = torch.nn.functional.cross_entropy(scores, batch.targets_P).item()
    assert abs(loss - math.log(dataset.n_items)) < 1.2


def test_64_users_can_be_learned_by_heart(dataset: Dataset) -> None:
    module, windows = _module(dataset)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    batch = collate(module.encoder, windows.windows)
    for _ in range(300):
        optimizer.zero_grad()
        (module(batch) / len(batch.targets_P)).backward()
        optimizer.step()
    encoder = module.encoder.eval()
    split = leave_one_out(dataset)
    rows = [split.train_row(user) for user in range(dataset.n_users)]
    histories, targets = [row[:-1] for row in rows], np.asarray([row[-1] for row in rows])
    items = encoder.items.vectors().detach().numpy()
    ranks = rank_all(encode_users(encoder, histories), items, targets, [h[:0] for h in histories], seed=0)
    assert (ranks == 1).mean() == 1.0


def test_a_run_learns_and_its_artifact_answers_the_same(dataset: Dataset, tmp_path: Path) -> None:
    recipe = get_recipe("sasrec", [*SMALL, "optimizer.epochs=12", "optimizer.rate=0.01"])
    result = run(recipe, dataset, RunOptions(out=tmp_path / "model"), QUIET)
    assert result.validation["recall@10"] > 0.5
    artifact = load_artifact(tmp_path / "model")
    row_of = dataset.row_of
    check_golden(artifact, [case.asked(row_of) for case in artifact.golden])
    assert artifact.manifest.training["best_epoch"] <= artifact.manifest.training["epochs"] == 12
    assert not list(tmp_path.glob(".model*")), "work folders must be gone after success"


@pytest.mark.parametrize(
    ("asked", "times", "taken"), [("auto", 0.4, "bf16"), ("auto", 9.0, "fp32"), ("fp32", 0.4, "fp32")]
)
def test_the_manifest_says_which_precision_was_taken_and_why(
    asked: PrecisionAsked, times: float, taken: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_choice, "measure", lambda device, training, other: {"fp32": 2.0, other: 2 * times})
    said = Console(file=StringIO(), width=200)
    recipe = get_recipe("sasrec", [*SMALL, "optimizer.epochs=1"])
    record = run(recipe, dataset, RunOptions(out=tmp_path / "model", precision=asked), said).manifest.training
    assert (record["precision"], record["precision_asked"]) == (taken, asked)
    assert record["precision_milliseconds"] == ({} if asked == "fp32" else {"fp32": 2.0, "bf16": 2 * times})
    assert (f"precision {taken} (asked for: auto" in said.file.getvalue()) == (asked == "auto")  # type: ignore[attr-defined]


def test_mixed_precision_that_is_slower_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_choice, "measure", lambda device, training, other: {"fp32": 2.0, other: 18.0})
    command = ["train", "sasrec", "--data", str(write_dataset(tmp_path / "data")), "--out", str(tmp_path / "model")]
    small = [word for setting in (*SMALL, "optimizer.epochs=1") for word in ("--set", setting)]
    done = CliRunner().invoke(app, [*command, *small, "--precision", "bf16"])
    assert done.exit_code == 2 and not (tmp_path / "model").exists()
    assert "bf16 is slower than fp32 here: a layer takes 18.00 ms" in done.output and "--force-precision" in done.output
    done = CliRunner().invoke(app, [*command, *small, "--precision", "bf16", "--force-precision"])
    assert done.exit_code == 0, done.output
    assert load_artifact(tmp_path / "model").manifest.training["precision"] == "bf16"


def test_auto_is_refused_where_several_processes_would_each_measure(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="2 were started: name fp32 or bf16"):
        run(get_recipe("sasrec", SMALL), dataset, RunOptions(out=tmp_path / "model", precision="auto"), QUIET)


def _final_weights(options: FitOptions, dataset: Dataset) -> dict[str, torch.Tensor]:
    settings = ["optimizer.epochs=4", "backbone.dropout=0.2", "optimizer.average_epochs=1"]
    recipe = get_recipe("sasrec", [*SMALL, *settings])
    fitted = fit(
        recipe, leave_one_out(dataset), options, recipe.method.objective, sources=Sources(), text=None, console=QUIET
    )
    assert fitted.losses
    return fitted.model.encoder.state_dict()


class _Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_run_cut_short_ends_as_one_that_was_not(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Cut within an epoch, right after a checkpoint of the ten-minute kind: same weights to the last bit."""
    from training.loop import trainer as module

    whole = _final_weights(FitOptions(work=tmp_path / "whole", seed=3), dataset)

    def cut(
        self: module.TimeBudget, args: object, state: module.TrainerState, control: module.TrainerControl, **_: object
    ) -> None:
        if state.global_step == stop_at:
            control.should_save = True
        elif state.global_step > stop_at:
            raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(module.TimeBudget, "on_step_end", cut)
        with pytest.raises(_Stop):
            _final_weights(FitOptions(work=tmp_path / "cut", seed=3), dataset)
    assert last_complete_checkpoint(tmp_path / "cut") is not None
    resumed = _final_weights(FitOptions(work=tmp_path / "cut", seed=3), dataset)
    for name, weights in whole.items():
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=0, msg=name)


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step, complete in ((10, True), (20, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}" if complete else '{"best')
        (folder / "seconds.json").write_text("1.0")
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_time_budget_ends_a_run_with_its_best_epoch(dataset: Dataset, tmp_path: Path) -> None:
    recipe = get_recipe("sasrec", [*SMALL, "optimizer.epochs=100000", "optimizer.patience=100000"])
    started = time.monotonic()
    result = run(recipe, dataset, RunOptions(out=tmp_path / "model", time_budget=0.05), QUIET)
    assert time.monotonic() - started < 60
    assert result.fitted.stopped_by == "time budget"
    assert (tmp_path / "model" / "manifest.json").exists()


_TRAIN = """
import sys, json, torch
from pathlib import Path
from rich.console import Console
from training.data.dataset import read_dataset
from training.data.splits import leave_one_out
from training.loop.fit import FitOptions, fit
from training.recipes import get_recipe
from modeling.encoder.build import Sources
torch.set_num_threads(1)
data, work, out = map(Path, sys.argv[1:4])
recipe = get_recipe("sasrec", json.loads(sys.argv[4]))
split, options = leave_one_out(read_dataset(data)), FitOptions(work=work)
fitted = fit(recipe, split, options, recipe.method.objective, sources=Sources(), text=None,
             console=Console(quiet=True))
out.write_text(json.dumps(fitted.losses))
"""


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_two_processes_give_the_loss_of_one(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "ring")
    script = tmp_path / "train.py"
    script.write_text(_TRAIN)
    settings = json.dumps([*SMALL, "optimizer.epochs=8"])
    losses = {}
    for count in (1, 2):
        out = tmp_path / f"losses-{count}.json"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(count),
            "--master-port",
            _free_port(),
        ]
        if count == 1:
            command = [sys.executable]
        subprocess.run(
            [*command, str(script), str(data), str(tmp_path / f"work-{count}"), str(out), settings],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            timeout=200,
        )
        losses[count] = json.loads(out.read_text())
    assert len(losses[1]) >= 1
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-4)


def test_kill_9_in_training_leaves_no_artifact_and_the_run_goes_on(tmp_path: Path) -> None:
    data, out = write_dataset(tmp_path / "ring", users=200), tmp_path / "model"
    settings = [*SMALL, "optimizer.epochs=25", "optimizer.patience=1000"]
    command = [sys.executable, "-m", "training", "train", "sasrec", "--data", str(data), "--out", str(out)]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob(".model.training-*/train/checkpoint-*/seconds.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "going on from checkpoint-" in finished.stderr
    load_artifact(out)


def test_batches_count_the_same_for_any_number_of_processes(dataset: Dataset) -> None:
    _, windows = _module(dataset)
    one = len(LengthBatches(windows, positions=200, seed=0))
    assert one == len(LengthBatches(windows, positions=200, seed=0, rank=1, world=2))


def test_quick_metrics_leave_the_mode_as_it_was(dataset: Dataset) -> None:
    model = build_model(get_recipe("sasrec", SMALL).model_spec(), catalog_size=dataset.n_items)
    model.encoder.train()
    metrics = validation_metrics(model, leave_one_out(dataset).validation, 0)
    assert model.encoder.training
    assert 0 <= metrics["ndcg@10"] <= 1


def test_data_without_a_single_training_pair_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Three interactions a user leave one for training: there are targets, and nothing to learn them from."""
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"item_id": i, "title": i * 3}) + "\n" for i in "abc"))
    rows = [f"{user},{item},{step}" for user in "uv" for step, item in enumerate("abc")]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    with pytest.raises(DataError, match="no user has two items or more in the training part"):
        run(get_recipe("sasrec", SMALL), read_dataset(tmp_path), RunOptions(out=tmp_path / "model"), QUIET)
