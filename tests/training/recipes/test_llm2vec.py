"""LLM2Vec: a decoder learns to look both ways in stages, each of which is merged, and serves without its head."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from modeling.artifact.verified import files_of
from modeling.backbone.loading import BackboneError, load_backbone, load_text_model, prove_attention
from modeling.backbone.with_head import load_with_head
from modeling.methods.dense import Artifact, load_artifact
from modeling.spec import BackboneSpec
from testing.datasets import QUIET
from testing.models import backbone_folder
from training.adaptation.masked_next_token import hide, masked_loss
from training.adaptation.simcse import contrast, drop_attention
from training.adaptation.texts import TextBatch
from training.data.dataset import Dataset
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

SMALL = [
    *("items.dim=16", "optimizer.epochs=1", "optimizer.positions=60", "history.limit=4", "history.title_tokens=6"),
    *("method.adaptation.masked_steps=12", "method.adaptation.simcse_steps=4", "method.adaptation.texts=16"),
    *("optimizer.user_windows=2", "method.adaptation.rate=0.01"),
]
BOTH = BackboneSpec(source="x", attention="bidirectional", dropout=0.0)


@pytest.fixture(scope="module")
def folder(ring: Dataset, backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "llm2vec"
    recipe = get_recipe("llm2vec", SMALL, backbone=str(backbone_folder("qwen3")))
    run(recipe, ring, RunOptions(out=out), QUIET)
    return out


@pytest.fixture
def artifact(folder: Path) -> Artifact:
    return load_artifact(folder)


def test_the_served_model_looks_both_ways_and_holds_the_merged_stages(
    artifact: Artifact, folder: Path, backbone_folder: Callable[[str], Path]
) -> None:
    found = artifact.record.capabilities
    assert not (found.causal or found.every_boundary or found.packed or found.prefix_reuse)
    prove_attention(artifact.encoder.backbone, causal=False)
    stored, given = (
        load_file(place / "model.safetensors") for place in (folder / "backbone", backbone_folder("qwen3"))
    )
    assert not any("lora" in name or "lm_head" in name for name in stored)
    maps = [name for name in stored if name.endswith("q_proj.weight")]
    originals = {name.removeprefix("model."): weight for name, weight in given.items()}
    assert maps and all((stored[name] - originals[name]).abs().max() > 1e-5 for name in maps)
    words = next(name for name in stored if "embed_tokens" in name)
    assert torch.equal(stored[words], originals[words]), "input embeddings stay"


def test_the_manifest_has_the_losses_of_both_stages_and_the_first_has_learned(artifact: Artifact) -> None:
    stages = artifact.manifest.training["stages"]
    assert list(stages) == ["masked-next-token", "simcse"]
    first = stages["masked-next-token"]
    assert first["loss_after"] < first["loss_before"] - 0.05 and first["steps"] == 12
    assert stages["simcse"]["steps"] == 4


def test_a_history_is_encoded_as_in_a_batch_and_items_as_their_titles(artifact: Artifact) -> None:
    encoder = artifact.encoder
    prompts = [encoder.prepare(rows) for rows in ([3], [0, 5, 7, 2], [1, 2])]
    np.testing.assert_allclose(encoder.encode(prompts), [encoder.encode([prompt])[0] for prompt in prompts], atol=1e-5)


def test_the_adapted_backbone_reads_titles_for_others_both_ways(folder: Path) -> None:
    model, _ = load_text_model("adapted", folder=files_of(folder / "backbone"))
    prove_attention(model, causal=False)
    with pytest.raises(BackboneError, match="asked for causal attention"):
        load_backbone(BackboneSpec(source="adapted", dropout=0.0), folder=files_of(folder / "backbone"))


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_the_model_with_its_head_has_the_attention_that_is_asked_for(
    attention: Any, backbone_folder: Callable[[str], Path]
) -> None:
    spec = BOTH.model_copy(update={"attention": attention})
    model = cast(Any, load_with_head(spec, folder=files_of(backbone_folder("llama"))))
    prove_attention(model.base_model, causal=attention == "causal")
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    head = model.get_output_embeddings()
    states = model.base_model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state
    torch.testing.assert_close(logits, head(states))


def test_a_token_is_predicted_from_the_state_before_it() -> None:
    tokens_BT = torch.tensor([[4, 2, 7, 1], [3, 5, 0, 6]])
    hidden_BT = torch.tensor([[False, True, False, True], [False, False, True, False]])
    head = nn.Linear(8, 8, bias=False)
    head.weight.data = torch.eye(8)
    knows_next = torch.roll(nn.functional.one_hot(tokens_BT, 8).float() * 50, -1, dims=1)
    knows_itself = nn.functional.one_hot(tokens_BT, 8).float() * 50
    assert masked_loss(knows_next, head, tokens_BT, hidden_BT) < 1e-3
    assert masked_loss(knows_itself, head, tokens_BT, hidden_BT) > 10


def test_hidden_tokens_are_a_share_of_the_text_never_its_first_and_never_padding() -> None:
    torch.manual_seed(0)
    batch = TextBatch.of([np.full(length, 9, np.int64) for length in (40, 25, 2) for _ in range(40)])
    given_BT, hidden_BT = hide(batch, 0.2, mask=1, vocabulary=50)
    assert not hidden_BT[:, 0].any() and not (hidden_BT & ~batch.mask_BT.bool()).any()
    assert float(hidden_BT[:80, 1:25].float().mean()) == pytest.approx(0.2, abs=0.03)
    assert torch.equal(given_BT[~hidden_BT], batch.tokens_BT[~hidden_BT])
    of_hidden = given_BT[hidden_BT]
    assert float((of_hidden == 1).float().mean()) == pytest.approx(0.8, abs=0.06)
    assert float((of_hidden == 9).float().mean()) == pytest.approx(0.1, abs=0.06)


def test_two_views_differ_by_dropout_and_equal_texts_are_no_negatives(
    backbone_folder: Callable[[str], Path],
) -> None:
    model, _ = load_backbone(BOTH, folder=files_of(backbone_folder("qwen3")))
    drop_attention(model.train(), 0.5)
    ids = torch.tensor([[5, 6, 7, 8]])
    first, second = (cast(Any, model)(input_ids=ids).last_hidden_state for _ in range(2))
    assert (first - second).abs().max() > 1e-4
    drop_attention(model, 0.0)
    first, second = (cast(Any, model)(input_ids=ids).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    views = torch.eye(3)
    batch = TextBatch.of([np.array(text) for text in ([1, 2], [3, 4], [1, 2])])
    views[2] = views[0]
    expected = -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 1)), -math.log(math.exp(2) / (math.exp(2) + 2))
    assert float(contrast(views, views, batch, 0.5)) == pytest.approx((2 * expected[0] + expected[1]) / 3, abs=1e-6)


@pytest.mark.parametrize("architecture", ["bert"])
def test_a_model_without_a_head_for_the_next_token_is_refused(
    architecture: str, backbone_folder: Callable[[str], Path]
) -> None:
    with pytest.raises(BackboneError, match="has no lm_head that predicts the next token"):
        load_with_head(BOTH, folder=files_of(backbone_folder(architecture)))


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("sasrec", ["method.adaptation.masked_steps=5"], "changes a pretrained language model that reads titles"),
        ("anyo", ["method.adaptation.masked_steps=5"], "items.text_source is needed"),
        ("llm2vec", ["method.adaptation.simcse_steps=0", "method.adaptation.dropout=0.1"], "dropout has no effect"),
    ],
)
def test_an_adaptation_that_cannot_be_is_refused(recipe: str, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe(recipe, settings)
