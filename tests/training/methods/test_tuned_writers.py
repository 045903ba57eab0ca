"""Language models that write and are trained through an adapter: what an artifact holds of them, and steps that compute
frozen layers once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

import modeling.backbone.loading as loading
from index.command_line.one_writer import one_writer
from modeling.artifact.manifest import ArtifactError
from modeling.backbone.adapters import adapter_of
from modeling.backbone.split import CannotCut, SplitBackbone
from modeling.encoder.build import Sources
from modeling.generation.api import ListQuery
from modeling.generation.factory import decoder_of
from modeling.methods import load
from modeling.methods.bigrec_prompt import InstructionPrompt
from modeling.spec import AdapterSpec
from service.artifacts.loading import LoadedArtifact, LoadedGenerative, open_artifact
from service.artifacts.memory import SMALLEST_SHARED, total_bytes
from testing.datasets import ring_dataset
from testing.models import backbone_folder
from training.data.dataset import Dataset
from training.data.splits import leave_one_out
from training.item_ids.assign import load_writer
from training.loop.fit import FitOptions, windows_for
from training.loop.kept_states import KeptStates, keep_states
from training.methods.base import Job
from training.methods.base_generative import UNTRAINED, GenerativeTraining
from training.methods.next_token import NextTokenModule
from training.objectives.softmax import full_softmax
from training.recipe import training_method
from training.recipes import Recipe, RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

QUIET = Console(quiet=True)
SHORT = [
    "history.title_tokens=6", "history.limit=5", "method.validation_users=4", "method.beams=3", "optimizer.epochs=1",
    "optimizer.positions=60", "optimizer.backbone_rate=0.01",
]  # fmt: skip
TOP = ["adapter.layers=1", "method.kept_states=fp32"]
Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=24, items=20)


@pytest.fixture(scope="module")
def named(backbone_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A public name, ``shop/llama``, and the folder that it stands for on this machine."""
    place = tmp_path_factory.mktemp("public") / "llama"
    shutil.copytree(backbone_folder("llama"), place)
    plain = loading.resolve_source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "resolve_source", lambda source: str(place) if source == "shop/llama" else plain(source))
        yield place


def recipe_of(name: str, backbone: str, *settings: str) -> Recipe:
    changed = {each.partition("=")[0]: each for each in (*SHORT, *settings)}
    return get_recipe(name, list(changed.values()), backbone=backbone)


@pytest.fixture(scope="module")
def tuned(named: Path, ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bigrec on a backbone with a public name, its last layer tuned over kept states."""
    out = tmp_path_factory.mktemp("artifacts") / "tuned"
    run(recipe_of("bigrec", "shop/llama", *TOP), ring, RunOptions(out=out), QUIET)
    return out


def written(folder: Path) -> list[Any]:
    model = load(folder).model
    return [
        (answer.rows_K.tolist(), [(text.text, text.score) for text in answer.generated])
        for answer in model.write([model.prepare(rows) for rows in ([3], [0, 5, 7])], [ListQuery(5)] * 2)
    ]


def test_with_a_public_name_the_artifact_holds_the_adapter_alone(tuned: Path, named: Path) -> None:
    record = load(tuned).record
    assert not (tuned / "backbone").exists() and not (tuned / "grounding").exists()
    assert record.backbone.source == "shop/llama" and not record.backbone.stored and record.backbone.sha256
    layers = {
        name.split(".layers.")[1].split(".")[0] for name in load_file(tuned / "adapter/adapter_model.safetensors")
    }
    assert layers == {"1"}, "the last one"
    assert str(named) not in (tuned / "manifest.json").read_text() + (tuned / "adapter/adapter_config.json").read_text()


def test_positions_are_turned_as_exactly_in_half_the_bits(tuned: Path, named: Path) -> None:
    exact, half = (load(tuned, precision=precision).model for precision in ("fp32", "bf16"))
    for one, other in zip(exact.bodies, half.bodies, strict=True):
        assert other.get_input_embeddings().weight.dtype == torch.bfloat16
        places_1T = torch.tensor([[1, 200]])
        for expected, found in zip(*(each.rotary_emb(torch.zeros(1), places_1T) for each in (one, other)), strict=True):
            torch.testing.assert_close(found, expected)


def test_the_base_is_in_memory_once_and_is_the_untuned_model(tuned: Path, named: Path) -> None:
    model = load(tuned).model
    base, written_by = model.space.body, decoder_of(model.model)
    pairs = [(one, other) for one, other in zip(base.parameters(), cast(Any, written_by).parameters(), strict=True)]
    apart = [one for one, other in pairs if one.data_ptr() != other.data_ptr()]
    assert len(apart) == 7 and not any(torch.equal(one, other) for one, other in pairs if one is not other)
    plain = load_file(named / "model.safetensors")
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, plain[f"model.{name}"])


def test_another_base_under_the_name_is_refused_and_a_missing_one_says_how_to_get_it(
    tuned: Path, named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(named, tmp_path / "other"))
    state = load_file(other / "model.safetensors")
    save_file({name: weight + 1e-3 for name, weight in state.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"'shop/llama' has weights with sha256 \w+…, and manifest.json expects"):
        load(tuned, sources=Sources(backbone=other))
    assert load(tuned, sources=Sources(backbone=named)).model.bodies
    monkeypatch.setattr(loading, "resolve_source", lambda source: source)
    with pytest.raises(ArtifactError, match=r"'shop/llama' is neither a local folder .* `hf download`"):
        load(tuned)


@pytest.mark.parametrize("name", ["genre", "bigrec"])
def test_a_local_folder_is_stored_once_and_two_artifacts_share_it_in_memory(
    backbone_folder: Folder, ring: Dataset, tmp_path: Path, name: str
) -> None:
    source = backbone_folder("llama")
    run(recipe_of(name, str(source), *TOP), ring, RunOptions(out=tmp_path / "one"), QUIET)
    stored = [path.stat().st_size for path in (tmp_path / "one").rglob("*.safetensors")]
    assert sum(stored) < 1.5 * (source / "model.safetensors").stat().st_size
    moved = shutil.move(tmp_path / "one", tmp_path / "moved")
    parts = [open_artifact(Path(moved), "cpu"), open_artifact(Path(moved), "cpu")]
    assert all(isinstance(each, LoadedGenerative) for each in parts)
    assert total_bytes([each.pieces for each in parts]) == total_bytes([parts[0].pieces])


def test_a_dense_and_a_generative_artifact_of_one_base_have_it_in_memory_once(
    tuned: Path, named: Path, ring: Dataset, tmp_path: Path
) -> None:
    """What neither adapter changes: the word vectors and the frozen layer."""
    recipe = get_recipe("anyo", ["optimizer.epochs=1", "items.dim=16", "adapter.layers=1"], backbone="shop/llama")
    run(recipe, ring, RunOptions(out=tmp_path / "dense"), QUIET)
    parts = [open_artifact(folder, "cpu") for folder in (tmp_path / "dense", tuned)]
    assert isinstance(parts[0], LoadedArtifact) and isinstance(parts[1], LoadedGenerative)
    read = cast(Any, parts[0].encoder).backbone.state_dict()
    for name, weight in cast(Any, parts[1].model).space.body.state_dict().items():
        if "embed" in name or ("layers.0" in name and weight.nbytes >= SMALLEST_SHARED):
            assert weight.data_ptr() == read[name].data_ptr(), name
    alone = [total_bytes([each.pieces]) for each in parts]
    assert total_bytes([each.pieces for each in parts]) <= sum(alone) - read["embed_tokens.weight"].nbytes


def training_of(recipe: Recipe, ring: Dataset, work: Path) -> tuple[GenerativeTraining[Any], NextTokenModule]:
    """A training right before its first step, its adapter not zero."""
    way: GenerativeTraining[Any] = training_method(recipe.method.kind)(Job(recipe, leave_one_out(ring), QUIET))
    options, made = FitOptions(work), []
    torch.manual_seed(0)
    plain = way.module
    way.module = lambda *given: made.append(plain(*given)) or made[0]  # type: ignore[method-assign,func-returns-value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.methods.base_generative.train_module", _stop)
        with pytest.raises(_Ready):
            way.fit(options)
    with torch.no_grad():
        for key, weight in made[0].named_parameters():
            if "lora_B" in key:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return way, cast(NextTokenModule, made[0].train())


class _Ready(Exception):
    pass


def _stop(*given: Any, **options: Any) -> Any:
    raise _Ready


@pytest.mark.parametrize("name", ["genre", "bigrec"])
def test_a_step_on_kept_states_is_the_step_without(
    backbone_folder: Folder, ring: Dataset, tmp_path: Path, name: str
) -> None:
    """Same loss, same gradients; where states are kept in fp16, up to its rounding."""
    source = str(backbone_folder("llama"))
    losses, gradients = [], []
    for kept in ("null", "fp32", "fp16"):
        recipe = recipe_of(name, source, "adapter.layers=1", f"method.kept_states={kept}", "method.sequences=6")
        _, module = training_of(recipe, ring, tmp_path / kept)
        assert (module.kept is None) == (kept == "null")
        windows = windows_for(recipe, leave_one_out(ring), FitOptions(tmp_path), module).windows
        assert len(windows) == 6
        loss = module(module.collate(windows[:4]))
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({key: weight.grad for key, weight in module.named_parameters() if weight.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6) and losses[2] == pytest.approx(losses[0], rel=1e-3)
    assert gradients[0].keys() == gradients[1].keys() and all(".layers.1." in key for key in gradients[0])
    for key, gradient in gradients[0].items():
        assert gradient is not None and float(gradient.abs().max()) > 0
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients[2][key], gradient, rtol=0.05, atol=2e-3 * float(gradient.abs().max()))


def test_states_are_computed_once_and_known_by_what_decides_them(tmp_path: Path) -> None:
    calls = []

    def lower(ids_BT: Tensor) -> Tensor:
        calls.append(ids_BT.tolist())
        return ids_BT[..., None].float() * torch.tensor([1.0, 0.5])

    texts = [np.array([5, 6, 7]), np.array([8, 9]), np.array([5, 6, 7])]
    for _ in range(2):
        states = keep_states(tmp_path, texts, lower, decides=["w", 1], width=2, kept="fp32")
        assert states.batch([texts[1], texts[0]])[..., 0].tolist() == [[8, 9, 0], [5, 6, 7]]
    assert sorted(calls) == [[[5, 6, 7]], [[8, 9]]], "each text once, the second time none"
    keep_states(tmp_path, texts, lower, decides=["other weights", 1], width=2, kept="fp32")
    assert len(calls) == 4
    with pytest.raises(KeyError):
        states.batch([np.array([1])])
    with pytest.raises(RecipeError, match="too large for fp16"):
        keep_states(tmp_path, [np.array([70000])], lower, decides=[], width=2, kept="fp16")


def test_states_of_an_ended_process_are_not_computed_again(tmp_path: Path) -> None:
    calls, ended = list[list[int]](), True

    def lower(ids_BT: Tensor) -> Tensor:
        if ended and calls:
            raise KeyboardInterrupt
        calls.extend(ids_BT.tolist())
        return ids_BT[..., None].float() * torch.tensor([1.0, 0.5])

    def keep(texts: list[np.ndarray]) -> KeptStates:
        return keep_states(tmp_path, texts, lower, decides=[], width=2, kept="fp32")

    texts = [np.array([5, 6, 7]), np.array([8, 9]), np.array([1])]
    with pytest.raises(KeyboardInterrupt):
        keep(texts)
    (part,) = tmp_path.glob("*.part")
    ended = False
    with one_writer(part):  # another process goes on with them
        assert keep(texts).batch(texts)[..., 0].tolist() == [[5, 6, 7], [8, 9, 0], [1, 0, 0]]
        assert sorted(calls) == [[1], [1], [5, 6, 7], [8, 9]], "all of them, in a folder of its own"
    shutil.rmtree(tmp_path / part.stem)
    calls.clear()
    assert keep(texts).batch(texts)[..., 1].tolist() == [[2.5, 3, 3.5], [4, 4.5, 0], [0.5, 0, 0]]
    assert sorted(calls) == [[5, 6, 7], [8, 9]], "the first was there"
    assert not part.exists()


@pytest.mark.parametrize(("architecture", "message"), [("gpt2", "no list of layers"), ("llama", "2 of 2 layers")])
def test_a_backbone_that_cannot_be_cut_is_refused(backbone_folder: Folder, architecture: str, message: str) -> None:
    model, *_ = load_writer(recipe_of("genre", str(backbone_folder(architecture))), None)
    with pytest.raises(CannotCut, match=message):
        SplitBackbone(decoder_of(model), 2)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "mistral"])
def test_two_parts_give_what_the_whole_gives(backbone_folder: Folder, architecture: str) -> None:
    model, *_ = load_writer(recipe_of("genre", str(backbone_folder(architecture))), None)
    body = cast(Any, decoder_of(model.eval()))
    parts, ids = SplitBackbone(body, 1), torch.arange(40).view(2, 20)
    embeds = body.get_input_embeddings()(ids)
    whole = body(inputs_embeds=embeds, use_cache=False).last_hidden_state
    torch.testing.assert_close(parts.upper(parts.lower(embeds)).last_hidden_state, whole, rtol=0, atol=1e-6)
    assert len(body.layers) == 2 and body.config.num_hidden_layers == 2, "the whole is as it was"


def test_marks_are_tokenized_together_as_in_running_text_where_that_is_asked_for() -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(['","'] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    names = [np.array(tokenizer.encode(each), np.int32) for each in ("A", "B C", "D")]
    lengths = {}
    for joined in (True, False):
        prompt = InstructionPrompt.of(tokenizer, "Chosen:", 0, joined=joined)
        read = prompt.read(names)
        assert tokenizer.decode(read) == '"A","B C","D"\nNext:"' and tokenizer.decode(prompt.read([])) == '\nNext:"'
        assert len(prompt.prefix) + len(read) <= prompt.most_positions(3, max(map(len, names)))
        lengths[joined] = len(prompt.between)
    assert lengths == {True: 1, False: 3}


class _Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        self.count += function is torch.ops.aten.mm.default
        return function(*given, **(options or {}))


def test_a_frozen_head_gets_no_gradient() -> None:
    counts = {}
    for needed in (True, False):
        torch.manual_seed(0)
        users, items = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=needed)
        loss = full_softmax(users, items, torch.tensor([0, 8, 3, 3, 1]), chunk=3)
        with _Products() as products:  # type: ignore[no-untyped-call]
            loss.backward()
        counts[needed] = products.count
        whole = users.detach().clone().requires_grad_()
        full_softmax(whole, items.detach(), torch.tensor([0, 8, 3, 3, 1]), chunk=9).backward()
        assert users.grad is not None and whole.grad is not None and (items.grad is not None) == needed
        torch.testing.assert_close(users.grad, whole.grad)
    assert counts == {True: 9, False: 6}, "one product a chunk less"


def test_more_layers_than_there_are_cannot_be_tuned(backbone_folder: Folder) -> None:
    model, *_ = load_writer(recipe_of("genre", str(backbone_folder("llama"))), None)
    with pytest.raises(ValueError, match=r"adapter.layers=3, and the backbone has 2 layers"):
        adapter_of("lora").attach(model, AdapterSpec(kind="lora", layers=3))


def test_zero_shot_asks_the_backbone_as_it_is_and_says_so(
    backbone_folder: Folder, ring: Dataset, tmp_path: Path
) -> None:
    recipe = recipe_of("genre", str(backbone_folder("llama")), "optimizer.epochs=0", "method.final_users=5")
    result = run(recipe, ring, RunOptions(out=tmp_path / "plain"), QUIET)
    training = json.loads((tmp_path / "plain" / "manifest.json").read_text())["training"]
    assert training["stopped_by"] == UNTRAINED and training["epochs"] == 0 == training["steps"]
    assert training["validated_users"] == 5 and result.fitted.steps == 0
    tuned, plain = load(tmp_path / "plain").model.model, load_file(backbone_folder("llama") / "model.safetensors")
    assert all(torch.equal(weight, plain[name]) for name, weight in tuned.state_dict().items() if name in plain)
    with pytest.raises(RecipeError, match=r"no effect with optimizer\.epochs=0"):
        run(recipe, ring, RunOptions(out=tmp_path / "refit", refit=True), QUIET)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sasrec", ["optimizer.epochs=0"], "'dense' would answer at random"),
        ("llara", ["optimizer.epochs=0"], "beside the language model something would be random"),
        ("bigrec", ["method.kept_states=fp16"], "adapter.kind='lora' with adapter.layers"),
        ("genre", [*TOP, "history.dropout=0.1"], "needs history.dropout=0"),
    ],
)
def test_what_cannot_be_is_refused(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe(name, settings, backbone=None if name == "sasrec" else "shop/llama")
