"""Item heads: an untied table, a bias, and items as words; what is searched is what the softmax was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from index import FlatIndex
from modeling.encoder.build import Model, build_model, trainable
from modeling.encoder.item_tower import scale_of
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.encoder_forward import compile_encoder
from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ModelSpec, ProjectorSpec
from testing.models import HIDDEN, ITEMS, TITLES, VOCABULARY, backbone_folder

__all__ = ["backbone_folder"]  # a fixture
Build = Callable[..., Model]
HISTORIES = [[3], [0, 5, 7, 2, 9, 11, 4], [1, 2], [8, 8, 10, 1], list(range(12)), [12, 3]]


@pytest.fixture
def build(backbone_folder: Callable[[str], Path]) -> Build:
    """A language model over ids and a head of the given kind."""

    def make(form: Any = "ids", architecture: str = "qwen3", projector: Any = "identity", **items: Any) -> Model:
        torch.manual_seed(0)
        spec = ModelSpec(
            history=HistorySpec(form=form, dropout=0.0, instruction="items chosen"),
            backbone=BackboneSpec(source=str(backbone_folder(architecture)), dropout=0.0),
            adapter=AdapterSpec(kind="lora", rank=4, alpha=8, targets="gate_proj,up_proj,down_proj"),
            projector=ProjectorSpec(kind=projector),
            items=ItemsSpec(**{"tower": "id", "dim": 16, "normalize": False, **items}),
        )
        model = build_model(spec, catalog_size=ITEMS, titles=TITLES)
        tower = model.encoder.items
        with torch.no_grad():
            model.encoder.log_scale.fill_(0.7)
            if tower.biases_N is not None:
                tower.biases_N.normal_(std=2.0)
        model.encoder.eval()
        return model

    return make


def states(encoder: UserEncoder) -> Any:
    """Pooled states [B, H]."""
    batch = encoder.collate([encoder.prepare(history) for history in HISTORIES])
    return encoder.pooling(encoder.hidden(batch), batch.spans)


def searched(encoder: UserEncoder, k: int = 10) -> tuple[Any, Any]:
    """What the index over the item vectors finds for the user vectors."""
    index = FlatIndex.build(encoder.items.vectors().detach().numpy())
    return index.search(encoder.encode([encoder.prepare(history) for history in HISTORIES]), k)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_softmax_over_items_is_maximum_inner_product_search(bias: bool, normalize: bool, build: Build) -> None:
    encoder = build(untied=True, bias=bias, normalize=normalize).encoder
    tower, table = encoder.items, encoder.items.scored.weight
    assert table.shape == (ITEMS + 1, HIDDEN) and tower.width == HIDDEN + bias
    with torch.no_grad():
        users, items = states(encoder), table[:ITEMS]
        if normalize:
            users, items = (torch.nn.functional.normalize(each, dim=-1) for each in (users, items))
        logits = scale_of(encoder.log_scale) * users @ items.T
        if tower.biases_N is not None:
            logits = logits + tower.biases_N[:ITEMS]
    scores, rows = searched(encoder)
    expected = logits.softmax(-1).topk(10).indices
    assert rows.tolist() == expected.tolist()
    found = torch.from_numpy(scores) * scale_of(encoder.log_scale).detach()
    torch.testing.assert_close(found, logits.gather(1, expected), atol=1e-4, rtol=1e-4)
    assert not bias or rows.tolist() != (logits - tower.biases_N[:ITEMS]).topk(10).indices.tolist()  # type: ignore[index]


def test_the_second_table_is_scored_and_the_first_is_shown(build: Build) -> None:
    encoder = build(untied=True).encoder
    prompts = [encoder.prepare(history) for history in HISTORIES]
    before, vectors = encoder.encode(prompts), encoder.items.vectors().detach().clone()
    with torch.no_grad():
        encoder.items.scored.weight.add_(1.0)
    np.testing.assert_array_equal(encoder.encode(prompts), before)
    assert not torch.allclose(encoder.items.vectors(), vectors)


@pytest.mark.parametrize("items", [{"untied": True, "bias": True}, {"words": True}, {"untied": True, "words": True}])
def test_the_fast_forward_knows_the_head(items: dict[str, Any], build: Build) -> None:
    encoder = build(**items).encoder
    encoder.backbone = encoder.backbone.merge_and_unload()  # type: ignore[operator]
    encoder.items.freeze()
    prompts = [encoder.prepare(history) for history in HISTORIES]
    plain = encoder.encode(prompts)
    assert compile_encoder(encoder) == ""
    np.testing.assert_allclose(encoder.encode(prompts), plain, atol=1e-4)


def test_gradients_reach_head_and_adapter_and_no_frozen_table(build: Build) -> None:
    encoder = build(untied=True, bias=True, frozen=True).encoder.train()
    batch = encoder.collate([encoder.prepare(history) for history in HISTORIES])
    loss = torch.nn.functional.cross_entropy(encoder(batch) @ encoder.items.vectors().T, torch.arange(len(HISTORIES)))
    loss.backward()
    moved = {name for name, each in encoder.named_parameters() if each.grad is not None and each.grad.abs().max() > 0}
    assert {"items.outputs.weight", "items.biases_N", "id_input.weight", "log_scale"} <= moved
    assert "items.ids.weight" not in trainable(encoder)
    lora = {name for name in moved if name.startswith("backbone.")}
    assert lora and all("lora_" in name and ".mlp." in name for name in lora), "the feed-forward alone is adapted"


def test_titles_alone_have_no_id_table(build: Build) -> None:
    encoder = build("text", untied=True).encoder
    assert encoder.items.ids.weight.shape[0] == 1 and encoder.items.scored.weight.shape == (ITEMS + 1, HIDDEN)
    assert searched(encoder)[1].shape == (len(HISTORIES), 10)


def test_items_as_words_are_an_extended_vocabulary(build: Build, backbone_folder: Callable[[str], Path]) -> None:
    """The same states as a model whose embedding was resized, with the new rows in it and read by their token ids."""
    from transformers import AutoModel

    encoder = build(words=True).encoder
    resized = AutoModel.from_pretrained(str(backbone_folder("qwen3"))).eval()
    words = resized.get_input_embeddings().weight.detach().clone()
    tokens = resized.config.vocab_size + torch.arange(ITEMS + 1)
    resized.resize_token_embeddings(VOCABULARY + ITEMS + 1, mean_resizing=False)
    with torch.no_grad():
        resized.get_input_embeddings().weight[tokens] = encoder.items.ids.weight
        for history in HISTORIES:
            prefix = torch.tensor(encoder.prompts.prefix)
            expected = resized(input_ids=torch.cat([prefix, tokens[history]])[None]).last_hidden_state[0, -1]
            found = encoder(encoder.collate([encoder.prepare(history)]))[0]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(resized.get_input_embeddings().weight[:VOCABULARY], words)


def test_new_words_start_at_the_mean_of_their_titles_and_they_alone_are_trained(build: Build) -> None:
    model = build(words=True)
    encoder, table = model.encoder, model.encoder.items.ids.weight
    words = encoder.backbone.get_input_embeddings().weight  # type: ignore[operator]
    red, lamp, blue = (find(model, word) for word in ("red", "lamp", "blue"))
    torch.testing.assert_close(table[0], words[[red, lamp]].mean(0))
    torch.testing.assert_close(table[1], words[[blue, lamp]].mean(0))
    torch.testing.assert_close(table[ITEMS], table[:ITEMS].mean(0))
    names = set(trainable(encoder))
    assert "items.ids.weight" in names and not any("embed_tokens" in name for name in names)
    assert searched(encoder)[1].shape == (len(HISTORIES), 10)


def find(model: Model, word: str) -> int:
    """Token of a word."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(model.spec.backbone.source).convert_tokens_to_ids(word)
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({}, "needs items.untied or items.words"),
        ({"untied": True, "tower": "text"}, "items.untied is a second id table"),
        ({"words": True, "tower": "both"}, "items.words needs a language model"),
        ({"words": True, "frozen": True}, "items.frozen keeps the id table"),
    ],
)
def test_tables_that_cannot_be_are_refused(items: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**items)
