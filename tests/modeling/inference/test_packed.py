"""Rows without padding, as a GPU reads them: the layout, the joint weights and the fixed sizes give the same vectors.

What only a GPU has (its attention kernel, compiled pieces, recorded launches) is compared there, by
`benchmarks/encoder/gpu.py`, and at every start of the service.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from modeling.encoder.prompt import ID, TEXT, TOKEN, FreeItem, Prompt
from modeling.inference.encoder_forward import EncoderForward
from modeling.inference.layers import FusedRotaryLayers, RotaryLayers, layers_of
from modeling.inference.varlen import FEWEST_ROWS, POSITIONS_OF_A_ROW, VarlenBatch, VarlenForward, attention_of_rows
from tests.modeling.inference.test_fast import FORMS, HISTORIES, plain, served

SIZES = (16, 32, 128)
Build = Callable[..., Any]


def packed_as_on_a_gpu(encoder: Any, record: Callable[[Any], Any] = lambda run: run) -> VarlenForward:
    stack = layers_of(encoder.backbone)
    if isinstance(stack, RotaryLayers) and FusedRotaryLayers.fits(encoder.backbone):
        stack = FusedRotaryLayers(encoder.backbone)
    assert stack is not None
    encoder.fast = EncoderForward(encoder, stack)
    encoder.fast.packed = VarlenForward(encoder.fast, SIZES, record)
    return encoder.fast.packed


@pytest.mark.parametrize("architecture", ["qwen3", "mistral", "llama", "bert"])
@pytest.mark.parametrize("form", FORMS)
def test_recorded_or_not_the_vectors_are_those_of_the_plain_forward(
    architecture: str, form: str, small_model: Build
) -> None:
    options = dict(FORMS[form])
    encoder = served(small_model(options.pop("form"), architecture, **options).encoder)
    expected = plain(encoder, HISTORIES)
    packed = packed_as_on_a_gpu(encoder)

    def check() -> None:
        together = encoder.encode([encoder.prepare(history) for history in HISTORIES])
        np.testing.assert_allclose(together, expected, atol=1e-5)
        for history, vector in zip(HISTORIES, expected, strict=True):
            np.testing.assert_allclose(encoder.encode([encoder.prepare(history)])[0], vector, atol=1e-5)

    check()
    packed.record(SIZES[-1])
    check()
    encoder.encode([encoder.prepare(list(range(12)))])  # what stood there before is not seen
    check()


def test_a_recording_is_played_for_what_fits_into_it_and_no_more(small_model: Build) -> None:
    played: list[int] = []

    def record(run: Any) -> Any:
        number = len(played)
        played.append(0)

        def again() -> Any:
            played[number] += 1
            return run()

        return again

    encoder = served(small_model("compressed", "llama").encoder)
    packed = packed_as_on_a_gpu(encoder, record)
    prefix = len(encoder.prompts.prefix)
    encoder.encode([encoder.prepare([1])])
    assert played == []  # weights may still move
    packed.record(20)
    assert len(played) == 2  # up to the one that holds 20 positions
    played.clear()
    packed.record(SIZES[-1])
    encoder.encode([encoder.prepare([1, 2])])
    assert played == [0, 0, 1]  # sizes are recorded from the largest on
    several = [encoder.prepare([1, 2, 3])] * FEWEST_ROWS
    assert sum(prompt.length - prefix for prompt in several) <= SIZES[0]
    encoder.encode([*several, several[0]])  # one row too many for the smallest
    assert played == [1, 0, 1]
    encoder.encode([encoder.prepare([number % 12]) for number in range(1 + SIZES[-1] // POSITIONS_OF_A_ROW)])
    free = FreeItem("lamp", text_vector=np.ones(encoder.items.text_NC.shape[1], np.float32))
    encoder.encode([encoder.prepare([1, free])])  # its vector is in no table
    packed.forget()
    encoder.encode([encoder.prepare([1, 2])])
    assert played == [1, 0, 1]


def test_joint_weights_are_the_backbones_own(small_model: Build) -> None:
    encoder = served(small_model("compressed", "llama").encoder)
    before = {name: weight.clone() for name, weight in encoder.backbone.named_parameters()}
    stack = FusedRotaryLayers(encoder.backbone)
    attention = encoder.backbone.layers[0].self_attn
    storage = {
        attention.q_proj.weight.untyped_storage().data_ptr(),
        attention.v_proj.weight.untyped_storage().data_ptr(),
    }
    assert len(storage) == 1
    for name, weight in encoder.backbone.named_parameters():
        torch.testing.assert_close(weight, before[name])
    # one of them replaced, as sharing weights between artifacts does: no longer one matrix, and still right
    states = torch.randn(3, encoder.hidden_size)
    turns = stack.turns(torch.arange(3), states)
    expected = stack.mapped(0, states, turns)
    attention.k_proj.weight.data = attention.k_proj.weight.data.clone()
    for found, right in zip(stack.mapped(0, states, turns), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_maps_with_a_bias_are_left_alone() -> None:
    config = transformers.Qwen2Config(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    assert not FusedRotaryLayers.fits(transformers.Qwen2Model(config))


@pytest.mark.parametrize("prefix", [0, 3])
def test_a_plan_says_where_rows_stand(prefix: int) -> None:
    lengths = np.array([2, 4, 1])
    plan = VarlenBatch.empty(10, 5, prefix, recent=2)
    plan.write(np.array([3, 3, 2, 1, 1]))
    plan.write(lengths)
    assert plan.places_P[:7].tolist() == [place + prefix for place in (0, 1, 0, 1, 2, 3, 0)]
    assert plan.last_B[:3].tolist() == [1, 5, 6]
    assert plan.query_ends.tolist() == [0, 2, 6, 7, 7, 7]
    assert plan.key_ends.tolist() == [0, 2 + prefix, 6 + 2 * prefix, *[7 + 3 * prefix] * 3]
    kinds = [TOKEN, ID], [TOKEN, TOKEN, TOKEN, ID], [TEXT]
    values = [5, 3], [6, 7, 8, 4], [11]
    before = [TOKEN] * prefix
    prompts = [
        Prompt(
            np.array(before + some, np.int8), np.array([99] * prefix + those), np.flatnonzero([0] * prefix + some)[-1:]
        )
        for some, those in zip(kinds, values, strict=True)
    ]
    plan.fill(prompts, unknown=9)
    assert plan.kinds_P[:7].tolist() == [TOKEN, ID, TOKEN, TOKEN, TOKEN, ID, TEXT]
    assert plan.values_P[:7].tolist() == [5, 3, 6, 7, 8, 4, 11]
    assert plan.recent_N.tolist() == [3, -1, 4, -1, 9, -1, 0, 0, 0, 0]
    assert plan.one_each.tolist() == [0, 1, 2, 3, 4, 5]
    if prefix:
        first, second = plan.keys_S[:5].tolist(), plan.keys_S[5:12].tolist()
        assert first == [0, 1, 2, 3, 4] and second == [0, 1, 2, 5, 6, 7, 8]


def test_queries_are_the_last_positions_of_their_rows() -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 4), torch.randn(5, 2, 4), torch.randn(5, 2, 4)
    ends = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 5], dtype=torch.int32)
    found = attention_of_rows(queries, keys, values, *ends, 3, 5)
    scores = torch.einsum("qad,kad->aqk", queries, keys) / 2
    hidden = torch.ones(3, 5, dtype=torch.bool).triu(3)
    expected = torch.einsum("aqk,kad->qad", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)
    torch.testing.assert_close(found, expected)
