"""CLLMRec: texts about beginnings of training histories, two more losses, and the artifact of a plain id model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from modeling.backbone.loading import BackboneError
from modeling.encoder.build import Sources, build_model
from modeling.methods.dense import load_artifact
from testing.datasets import QUIET, SMALL, write_dataset
from testing.models import backbone_folder, writer_folder
from training.data.dataset import Dataset, read_dataset
from training.data.report import DataError
from training.data.splits import leave_one_out
from training.loop.auxiliary import Auxiliary
from training.loop.examples import Window
from training.loop.module import RetrievalModule
from training.methods.dense import DenseSettings
from training.objectives.views import ViewsSpec, cosine_nce
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run
from training.semantic.contrast import states_of
from training.semantic.neighbours import unit
from training.semantic.views import ViewContrast, Views, beginnings_of, write_views
from training.semantic.writing import BATCH, Writer, _sha256, write_or_reuse

__all__ = ["backbone_folder", "writer_folder"]  # fixtures

SHORT = [*SMALL, "optimizer.epochs=2"]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("data") / "ring", users=32, items=24))


@pytest.fixture(scope="module")
def histories(ring: Dataset) -> list[np.ndarray]:
    return leave_one_out(ring).train_rows()


@pytest.fixture(scope="module")
def spec(backbone_folder: Callable[[str], Path], writer_folder: Path) -> ViewsSpec:
    source = str(backbone_folder("bert"))
    return ViewsSpec(
        texts=0.1, drops=0.1, writer=str(writer_folder), source=source, newest=4, tokens=6, prompt="chosen {titles}"
    )


@pytest.fixture(scope="module")
def writer(spec: ViewsSpec) -> Writer:
    return Writer(spec)


def titles_of(ring: Dataset, histories: list[np.ndarray]) -> list[list[str]]:
    return [[ring.titles[row] for row in rows[:3]] for rows in histories]


def written(
    spec: ViewsSpec, data: Dataset, folder: Path | None = None, histories: list[np.ndarray] | None = None
) -> Views:
    split = leave_one_out(data)
    return write_views(spec, split, histories or split.train_rows(), Sources(vectors=folder), seed=0, console=QUIET)


def test_texts_are_kept_and_a_run_that_was_ended_goes_on(
    ring: Dataset, histories: list[np.ndarray], writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, asked, told = titles_of(ring, histories), list[int](), list[int]()
    write = Writer.write

    def counted(self: Writer, prompts: Any) -> list[str]:
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return write(self, prompts)

    monkeypatch.setattr(Writer, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        write_or_reuse(writer, shown, tmp_path, progress=told.append)
    assert asked == [BATCH]
    with (tmp_path / "written.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    asked[:], told[:] = [0, 0], []
    texts = write_or_reuse(writer, shown, tmp_path, progress=told.append)
    assert sum(asked) == len({tuple(titles) for titles in shown}) - BATCH and sum(told) == len(shown)
    monkeypatch.setattr(Writer, "write", None)
    assert write_or_reuse(writer, shown, tmp_path, progress=told.append) == texts
    assert len(set(texts)) > 5


def test_a_text_is_the_same_alone_and_in_a_batch(ring: Dataset, histories: list[np.ndarray], writer: Writer) -> None:
    prompts = writer.prompts([[ring.titles[row] for row in rows[:length]] for length, rows in enumerate(histories, 1)])
    together = writer.write(prompts[:6])
    assert len({len(prompt) for prompt in prompts[:6]}) > 1
    assert [writer.write([prompt])[0] for prompt in prompts[:6]] == together


def test_all_that_decides_a_text_is_in_its_key(spec: ViewsSpec, ring: Dataset, writer: Writer) -> None:
    shown = [list(ring.titles[:3])]
    keys = {writer.key(writer.prompts(shown)[0]), writer.key(writer.prompts([list(ring.titles[1:4])])[0])}
    for change in ({"tokens": 7}, {"prompt": "items {titles}"}):
        other = Writer(spec.model_copy(update=change))
        keys.add(other.key(other.prompts(shown)[0]))
    other = Writer(spec)
    torch.nn.init.ones_(other._model.get_output_embeddings().weight)
    other._weights = _sha256(other._model)
    keys.add(other.key(other.prompts(shown)[0]))
    assert len(keys) == 5
    same = Writer(spec.model_copy(update={"users": 3, "dropped": 0.5, "random": True}))
    assert same.key(same.prompts(shown)[0]) in keys


def test_the_oldest_titles_go_where_a_prompt_has_no_room(spec: ViewsSpec, ring: Dataset, writer: Writer) -> None:
    text = writer._tokenizer.decode(writer.prompts([list(ring.titles[:3])])[0])
    places = [text.index(title) for title in ring.titles[:3]]
    assert places == sorted(places)
    few, many = (writer.prompts([list(ring.titles) * times])[0] for times in (1, 40))
    assert len(few) < len(many) <= writer._room < len(many) + 5
    assert many[-30:] == few[-30:] and many[0] == few[0]
    narrow = Writer(spec)
    narrow._room = 20
    with pytest.raises(BackboneError, match=r"reads 20 tokens beside the 6 that it writes .* are needed"):
        narrow.prompts([["red lamp"]])


def test_a_model_that_cannot_write_is_refused(spec: ViewsSpec) -> None:
    with pytest.raises(BackboneError, match="needs a language model on this machine that can write"):
        Writer(spec.model_copy(update={"writer": spec.source}))
    with pytest.raises(BackboneError, match="needs a language model on this machine that can write"):
        Writer(spec.model_copy(update={"writer": "/no/such/folder"}))


def test_texts_that_say_nothing_are_refused(spec: ViewsSpec, ring: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "write", lambda self, prompts: ["" for _ in prompts])
    with pytest.raises(DataError, match="wrote about 0 of 32 histories"):
        written(spec, ring)
    monkeypatch.setattr(Writer, "write", lambda self, prompts: ["things" for _ in prompts])
    with pytest.raises(DataError, match=r"reads all 32 texts as one vector.*method\.views\.source"):
        written(spec, ring)


def test_a_beginning_leaves_a_target_and_users_are_bounded(histories: list[np.ndarray], spec: ViewsSpec) -> None:
    histories = [*histories, np.array([1]), np.zeros(0, np.int64)]
    one = beginnings_of(histories, spec, 0)
    assert one == [(user, len(rows) - 1) for user, rows in enumerate(histories[:-2])]
    three = beginnings_of(histories, spec.model_copy(update={"each": 3, "users": 5}), 0)
    assert len({user for user, _ in three}) == 5 and 10 < len(three) <= 15
    assert all(1 <= length < len(histories[user]) for user, length in three)
    assert {user for user, _ in three} != {
        user for user, _ in beginnings_of(histories, spec.model_copy(update={"users": 5}), 1)
    }


def test_what_is_held_out_or_a_target_changes_no_view(
    ring: Dataset, histories: list[np.ndarray], spec: ViewsSpec, tmp_path: Path
) -> None:
    """The last training item is the target of the text's history."""
    changed = ring.rows.copy()
    for end in ring.offsets_U1[1:]:
        changed[end - 3 : end] = (changed[end - 3 : end] + 7) % ring.n_items
    found = [written(spec, data, tmp_path) for data in (ring, replace(ring, rows=changed))]
    assert found[0].record == found[1].record and found[0].rows == found[1].rows
    assert found[0].record["texts"] == found[0].record["users"] > 20


def test_the_control_gives_every_history_the_text_of_another(spec: ViewsSpec, ring: Dataset, tmp_path: Path) -> None:
    own, other = (written(spec.model_copy(update={"random": on}), ring, tmp_path) for on in (False, True))
    assert own.texts == other.texts
    assert sorted(map(tuple, own.vectors_RC)) == sorted(map(tuple, other.vectors_RC))
    texts = np.asarray(own.texts)
    sources = [int(np.flatnonzero((own.vectors_RC == vector).all(1))[0]) for vector in other.vectors_RC]
    assert sum(texts[source] == texts[row] for row, source in enumerate(sources)) < len(texts) / 2


def contrast(spec: ViewsSpec, histories: list[np.ndarray], items: int = 24) -> ViewContrast:
    """With a text for the last training target of every user but the first."""
    rng = np.random.default_rng(0)
    rows = {(user, len(rows) - 1): user - 1 for user, rows in enumerate(histories) if user}
    vectors, titles = (unit(rng.normal(size=(count, 12))) for count in (len(rows), items))
    return ViewContrast(spec, Views(rows, vectors, titles, [""] * len(rows)), histories, 32)


def module_of(ring: Dataset, auxiliaries: list[Auxiliary]) -> RetrievalModule:
    torch.manual_seed(0)
    recipe = get_recipe("sasrec", SMALL)
    assert isinstance(recipe.method, DenseSettings)
    encoder = build_model(recipe.model_spec(), catalog_size=ring.n_items).encoder.train()
    popularity = np.ones(ring.n_items, np.int64)
    return RetrievalModule(encoder, recipe.method.objective, popularity_N=popularity, auxiliaries=auxiliaries)


@pytest.mark.parametrize("random", [False, True])
def test_a_view_drops_newest_items_that_are_unlike_the_text(
    random: bool, histories: list[np.ndarray], spec: ViewsSpec
) -> None:
    torch.manual_seed(0)
    history = np.arange(9)
    beside = contrast(spec.model_copy(update={"dropped": 0.5, "random": random}), [history, history])
    titles = beside._views.titles_NC.copy()
    titles[[5, 7]] = beside._views.vectors_RC[0]
    titles[[6, 8]] = -beside._views.vectors_RC[0]
    beside._views = replace(beside._views, titles_NC=titles)
    counts = np.zeros(9)
    for _ in range(400):
        view = beside.view(0, 9, 0)
        assert len(view) == 7 and (np.diff(view) > 0).all() and set(range(5)) <= set(view.tolist())
        counts[np.setdiff1d(history, view)] += 1
    assert (counts[[6, 8]].sum() / 800 > 0.75) != random
    assert beside.view(0, 1, 0).tolist() == [0]


def by_hand(first: Tensor, second: Tensor, targets: list[int], temperature: float) -> float:
    cosines = (unit(first.detach().numpy()) @ unit(second.detach().numpy()).T).astype(np.float64) / temperature
    losses = []
    for own in range(len(targets)):
        others = [other for other in range(len(targets)) if other == own or targets[other] != targets[own]]
        for scores in (cosines[own, others], cosines[others, own]):
            losses.append(np.log(np.exp(scores).sum()) - cosines[own, own])
    return float(np.mean(losses))


def test_the_loss_is_that_of_cosines_without_pairs_of_one_target() -> None:
    torch.manual_seed(0)
    first, second, targets = torch.randn(5, 6), torch.randn(5, 6), [3, 1, 3, 2, 3]
    found = cosine_nce(first, second, torch.tensor(targets), 0.2).item()
    assert found == pytest.approx(by_hand(first, second, targets, 0.2), rel=1e-4)
    assert cosine_nce(first, second, torch.arange(5), 0.2).item() != pytest.approx(found, rel=1e-3)
    assert cosine_nce(first[:1], second[:1], torch.tensor([1]), 0.2).item() == 0


def test_the_losses_are_those_of_targets_with_a_text(
    ring: Dataset, histories: list[np.ndarray], spec: ViewsSpec
) -> None:
    """The first user has no text; another window of the second does not hold the target of its text."""
    spec = spec.model_copy(update={"texts": 0.3, "drops": 0.7, "dropped": 0.01})  # rounds to no item: views are whole
    beside = contrast(spec, histories)
    windows = [
        Window(histories[0], 0),
        Window(histories[1][:2], 1),
        *(Window(histories[user], user) for user in (2, 3, 4)),
    ]
    plain, extra = module_of(ring, []), module_of(ring, [beside])
    batch = plain.collate(windows)
    found = (extra(batch) - plain(batch)).item()
    states = states_of(plain.encoder, [histories[user][:-1] for user in (2, 3, 4)])
    assert beside.map is not None
    texts = beside.map(beside.vectors_RC[[1, 2, 3]])
    targets = [int(histories[user][-1]) for user in (2, 3, 4)]
    means = 0.3 * by_hand(states, texts, targets, 0.2) + 0.7 * by_hand(states, states, targets, 0.2)
    assert found == pytest.approx(means * batch.count * 3 / 5, rel=1e-3)
    assert module_of(ring, [beside])(plain.collate(windows[:3])).item() == plain(plain.collate(windows[:3])).item()


def test_gradients_reach_the_encoder_through_views_and_never_the_texts(
    ring: Dataset, histories: list[np.ndarray], spec: ViewsSpec
) -> None:
    beside = contrast(spec.model_copy(update={"texts": 0.0}), histories)
    module = module_of(ring, [beside])
    assert "vectors_RC" not in module.state_dict() and not beside.vectors_RC.requires_grad and beside.map is None
    batch = module.collate([Window(histories[user], user) for user in range(1, 6)])
    grads = []
    for weight in (0.0, 1.0):
        module.zero_grad()
        beside.spec = spec.model_copy(update={"texts": 0.0, "drops": weight})
        torch.manual_seed(0)
        module(batch).backward()
        grad = module.encoder.backbone.get_parameter(next(iter(dict(module.encoder.backbone.named_parameters())))).grad
        assert grad is not None
        grads.append(grad.clone())
    assert float((grads[0] - grads[1]).abs().max()) > 1e-4


@pytest.fixture(scope="module")
def made(ring: Dataset, spec: ViewsSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of ``sasrec``, and of ``cllmrec`` without weights (``off``) and with them (``on``, then ``again``)."""
    root = tmp_path_factory.mktemp("cllmrec")
    views = [f"method.views.{name}={getattr(spec, name)}" for name in ("writer", "source", "prompt", "tokens")]
    run(get_recipe("sasrec", SHORT), ring, RunOptions(out=root / "sasrec"), QUIET)
    off = get_recipe("cllmrec", [*SHORT, "method.views.texts=0", "method.views.drops=0"])
    run(off, ring, RunOptions(out=root / "off"), QUIET)
    run(get_recipe("cllmrec", [*SHORT, *views]), ring, RunOptions(out=root / "on"), QUIET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "write", None)  # all is there
        run(get_recipe("cllmrec", [*SHORT, *views]), ring, RunOptions(out=root / "again"), QUIET)
    return root


def test_without_weights_it_is_the_id_model(made: Path) -> None:
    tables = {
        name: load_file(made / name / "parts" / "items.safetensors")["ids.weight"]
        for name in ("sasrec", "off", "on", "again")
    }
    np.testing.assert_array_equal(tables["sasrec"], tables["off"])
    np.testing.assert_array_equal(tables["on"], tables["again"])
    assert not np.array_equal(tables["off"], tables["on"])


def test_the_artifact_is_an_id_model_s(made: Path, spec: ViewsSpec) -> None:
    files = {name: sorted(path.name for path in (made / name).rglob("*")) for name in ("sasrec", "on")}
    assert files["sasrec"] == files["on"]
    artifact = load_artifact(made / "on")  # compares item vectors and golden histories
    assert artifact.encoder.text_model is None and artifact.record.capabilities.reads == ("ids",)
    views = artifact.manifest.training["views"]
    assert views["texts"] >= views["distinct"] > 5 and len(views["sha256"]) == 64
    assert str(Path(spec.writer).parent).encode() not in (made / "on" / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.views.texts=0", "method.views.drops=0", "method.views.users=5"], "users has no effect"),
        (["method.views.drops=0", "method.views.dropped=0.1"], "dropped has no effect"),
        (["projector.kind=none", "projector.residual=true"], "projector.kind='none' has none"),
        (["method.views.writer=tiny"], "a pretrained language model is needed"),
        (["method.views.source=tiny"], "a pretrained language model is needed"),
        (["method.views.prompt=Choose"], "holds {titles} once"),
        (["method.views.tokens=0"], "greater than or equal to 2"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe("cllmrec", settings)
