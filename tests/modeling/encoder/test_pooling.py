"""Poolings against plain loops, under causal and bidirectional attention; padding and neighbours never enter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modeling.backbone.loading import BackboneError, prove_attention
from modeling.backbone.transformer import BLOCKS, OwnTransformer
from modeling.encoder.build import Model
from modeling.encoder.capabilities import Capabilities, capabilities_of
from modeling.encoder.pooling import POOLINGS, Spans, pooling_of
from modeling.inference.encoder_forward import compile_encoder
from modeling.spec import HistorySpec, ItemsSpec, ModelSpec, PoolingSpec
from training.loop.examples import Window, collate

Build = Callable[..., Model]
HISTORIES = [[3], [0, 5, 7, 2, 9, 11, 4], [1, 2], [8, 8, 10, 1], list(range(12))]
BEGIN, FIRST, LAST, END, LENGTH = 1, 3, 6, 7, 9
"""Of one row: a padded position, a special token, an instruction, four positions of items, an end token, padding."""


def loops(states_TH: Tensor, kind: str) -> Tensor:
    """One row pooled position by position."""
    content = [states_TH[place] for place in range(FIRST, LAST + 1)]
    if kind == "weighted_mean":
        weights = range(1, len(content) + 1)
        return sum((n * state for n, state in zip(weights, content, strict=True)), torch.zeros(4)) / sum(weights)
    chosen = {
        "last": [states_TH[LAST]],
        "eos": [states_TH[END]],
        "cls": [states_TH[BEGIN]],
        "mean": content,
        "last_n": content[-3:],
        "end_n": list(states_TH[END - 2 : END + 1]),
    }
    return torch.stack(chosen[kind]).mean(0)


@pytest.mark.parametrize("kind", POOLINGS)
def test_a_pooling_is_its_definition_and_ignores_padding_that_is_no_number(kind: str) -> None:
    torch.manual_seed(0)
    states_BTH = torch.randn(2, LENGTH, 4)
    states_BTH[:, :BEGIN], states_BTH[:, END + 1 :] = torch.nan, torch.nan
    places = [torch.full((2,), place) for place in (BEGIN, FIRST, LAST, END)]
    found_PH = pooling_of(PoolingSpec(kind=kind, count=3))(states_BTH, Spans(torch.arange(2), *places))
    for row in range(2):
        torch.testing.assert_close(found_PH[row], loops(states_BTH[row], kind))


def test_fewer_positions_than_last_n_are_all_averaged() -> None:
    states_BTH = torch.randn(1, 5, 4)
    spans = Spans(*(torch.tensor([place]) for place in (0, 0, 1, 2, 2)))
    found_PH = pooling_of(PoolingSpec(kind="last_n", count=9))(states_BTH, spans)
    torch.testing.assert_close(found_PH[0], states_BTH[0, 1:3].mean(0))


KINDS = [kind for kind, each in POOLINGS.items() if not each.needs_summary]  # those that any tokenizer can have
CASES = [
    *[("qwen3", attention, kind) for attention in ("causal", "bidirectional") for kind in KINDS],
    *[("llama", "bidirectional", kind) for kind in ("mean", "last")],
    *[("bert", "bidirectional", kind) for kind in KINDS],
]
ALLOWED = [case for case in CASES if case[1:] != ("causal", "cls")]


@pytest.mark.parametrize(("architecture", "attention", "kind"), ALLOWED)
@pytest.mark.parametrize("form", ["text", "compressed"])
def test_a_row_alone_is_the_row_in_any_batch(
    form: str, architecture: str, attention: str, kind: str, small_model: Build
) -> None:
    encoder = small_model(form, architecture, attention=attention, pooling=PoolingSpec(kind=kind)).encoder
    prompts = [encoder.prepare(history) for history in HISTORIES]
    alone = np.stack([encoder.encode([prompt])[0] for prompt in prompts])
    for side in ("right", "left"):
        with torch.inference_mode():
            together = encoder(encoder.collate(prompts, padding_side=side)).numpy()
        np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.abs(alone[0] - alone[1]).max() > 1e-4


@pytest.mark.parametrize("kind", [kind for kind, each in POOLINGS.items() if each.every_boundary])
def test_a_state_at_a_boundary_is_that_of_the_history_up_to_there(kind: str, small_model: Build) -> None:
    encoder = small_model("text", pooling=PoolingSpec(kind=kind)).encoder
    windows = [Window(np.array([3, 1, 4, 1, 5])), Window(np.array([7, 8, 9]))]
    batch = collate(encoder, windows)
    with torch.inference_mode():
        spans = batch.prompts.spans.at(batch.users_P, batch.boundaries_P)
        states_PH = encoder.pooling(encoder.hidden(batch.prompts), spans)
        found_PD = encoder.project(states_PH, batch.recent_PR).numpy()
    prefixes = [window.rows[:count].tolist() for window in windows for count in range(1, len(window.rows))]
    np.testing.assert_allclose(found_PD, [encoder.encode([encoder.prepare(each)])[0] for each in prefixes], atol=1e-4)


def test_a_window_has_one_target_where_states_read_what_comes_after_them(small_model: Build) -> None:
    encoder = small_model("text", attention="bidirectional", pooling=PoolingSpec(kind="mean")).encoder
    assert not encoder.capabilities.every_boundary
    batch = collate(encoder, [Window(np.array([3, 1, 4, 6]), last_only=True)])
    assert batch.targets_P.tolist() == [6]
    assert batch.boundaries_P.tolist() == batch.prompts.last_B.tolist()


class _Leaking(nn.Module):
    """Bidirectional, and sees padding."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = OwnTransformer(width=16, depth=1, heads=2, dropout=0.0, causal=False)
        self.config = self.inner.config

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> object:
        return self.inner(inputs_embeds)


@pytest.mark.parametrize("block", BLOCKS)
def test_attention_is_proved_alone_and_padded_on_both_sides(block: str) -> None:
    torch.manual_seed(0)
    own = {
        causal: OwnTransformer(width=16, depth=2, heads=2, dropout=0.0, causal=causal, block=block).eval()
        for causal in (True, False)
    }
    for causal, model in own.items():
        prove_attention(model, causal=causal)
        with pytest.raises(BackboneError, match="was asked for"):
            prove_attention(model, causal=not causal)
    with pytest.raises(BackboneError, match="sees padding"):
        prove_attention(_Leaking().eval(), causal=False)


def test_capabilities_follow_from_the_combination(small_model: Build) -> None:
    usual = small_model("compressed").encoder
    assert usual.capabilities == Capabilities(reads=("ids", "text"), causal=True)
    mean = small_model("compressed", pooling=PoolingSpec(kind="mean")).encoder
    assert mean.capabilities.every_boundary
    assert not (mean.capabilities.packed or mean.capabilities.prefix_reuse)
    assert "pooling 'mean'" in compile_encoder(mean)
    assert mean.fast is None
    both = small_model("compressed", "bert", attention="bidirectional").encoder.capabilities
    assert not (both.every_boundary or both.causal or both.packed or both.prefix_reuse)


@pytest.mark.parametrize("stored", ["last", {"kind": "last"}, None])
def test_older_manifests_pool_the_last_state(stored: object) -> None:
    data = ModelSpec(history=HistorySpec(form="ids"), items=ItemsSpec(tower="id")).model_dump()
    del data["pooling"]
    spec = ModelSpec.model_validate(data if stored is None else {**data, "pooling": stored})
    assert spec.pooling.kind == "last"
    assert capabilities_of(spec).packed


@pytest.mark.parametrize(("architecture", "attention"), [("bert", "bidirectional"), ("qwen3", "causal")])
def test_items_are_encoded_as_histories_of_their_titles(architecture: str, attention: str, small_model: Build) -> None:
    pooling, items = PoolingSpec(kind="mean"), ItemsSpec(tower="encoder", dim=16)
    encoder = small_model("text", architecture, attention=attention, pooling=pooling, items=items).encoder
    encoder.refresh_items()
    found_ND = encoder.items.vectors().numpy()
    for row in (0, 7):
        np.testing.assert_allclose(encoder.encode_items([row])[0].detach(), found_ND[row], atol=1e-5)
    titles = ["green lamp of the north", "silk rug deluxe edition"]
    np.testing.assert_allclose(encoder.title_vectors(titles), found_ND[[2, 8]], atol=1e-5)
    histories = [encoder.with_titles(history) for history in (titles, [2, 8], ["green lamp of the north", 8])]
    vectors = encoder.encode([encoder.prepare(history) for history in histories])
    np.testing.assert_allclose(vectors, vectors[[1, 1, 1]], atol=1e-5)


def test_the_text_form_shows_titles_alone(small_model: Build) -> None:
    model = small_model("text")
    assert model.titles is not None
    encoder = model.encoder
    prompt = encoder.prepare([4, 12, 0])
    begin = len(encoder.prompts.prefix)
    separator = encoder.prompts.separator.tolist()
    expected = [*model.titles[4], *separator, *separator, *model.titles[0], *separator]
    assert prompt.values_T[begin:].tolist() == expected
    assert set(prompt.kinds_T.tolist()) == {1}
    assert prompt.boundaries_M.tolist() == [
        begin + len(model.titles[4]),
        begin + len(model.titles[4]) + 1,
        prompt.length - 1,
    ]
