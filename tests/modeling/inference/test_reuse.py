"""Kept keys and values give the vectors of reading everything again, for less, and within their bound."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling.encoder.build import Model
from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.prefix_cache import PrefixCache
from tests.modeling.inference.test_fast import KNOWN, plain, sped_up

Build = Callable[..., Model]
USERS = [[3, 5], [0, 5, 7, 2], [1], [8, 8, 10, 1]]
MANY = 1 << 30


def reused(encoder: UserEncoder, limit: int = MANY) -> PrefixCache:
    fast = sped_up(encoder).fast
    assert fast is not None
    return PrefixCache(fast, limit)


@pytest.mark.parametrize("architecture", KNOWN)
@pytest.mark.parametrize("form", ["titles", "compressed"])
def test_growing_histories_have_the_vectors_of_the_plain_forward(
    architecture: str, form: str, small_model: Build
) -> None:
    encoder = small_model(form, architecture).encoder
    states, rng = reused(encoder), np.random.default_rng(0)
    users = [list(user) for user in USERS]
    for _ in range(5):
        order = rng.permutation(len(users))[: rng.integers(1, 5)]
        prompts = [encoder.prepare(users[number]) for number in order]
        expected = plain(encoder, [users[number] for number in order])
        np.testing.assert_allclose(states.encode(prompts), expected, atol=1e-5)
        for number in order:
            users[number] += rng.integers(0, 12, rng.integers(1, 3)).tolist()
    assert states.hits and states.misses


def test_an_id_model_and_a_backbone_without_an_instruction(small_model: Build) -> None:
    for model in (small_model("ids"), small_model("titles")):
        encoder = model.encoder
        encoder.prompts.prefix = encoder.prompts.prefix[:0]
        states = reused(encoder)
        for history in ([4], [4, 2], [4, 2, 9, 9], [4, 3]):
            found = states.encode([encoder.prepare(history)])
            np.testing.assert_allclose(found, plain(encoder, [history]), atol=1e-5)


def test_only_what_is_new_is_read(small_model: Build) -> None:
    encoder = small_model("titles").encoder
    states = reused(encoder)
    before, longer = encoder.prepare(list(range(9))), encoder.prepare(list(range(10)))
    assert states.new_positions(longer) == longer.length - len(encoder.prompts.prefix)
    states.encode([before])
    assert states.new_positions(longer) == longer.length - before.length
    assert states.new_positions(before) == before.length - len(encoder.prompts.prefix), "no beginning of it was kept"
    with FlopCounterMode(display=False) as counted:
        states.encode([longer])
    with FlopCounterMode(display=False) as whole:
        encoder.encode([longer])
    assert counted.get_total_flops() < 0.35 * whole.get_total_flops()


def test_a_changed_or_shortened_history_is_read_anew(small_model: Build) -> None:
    encoder = small_model("titles").encoder
    states = reused(encoder)
    states.encode([encoder.prepare([1, 2, 3])])
    for history in ([1, 4, 3, 5], [2, 3, 5], [1, 2]):
        prompt = encoder.prepare(history)
        assert states.new_positions(prompt) == prompt.length - len(encoder.prompts.prefix)
        np.testing.assert_allclose(states.encode([prompt]), plain(encoder, [history]), atol=1e-5)
    assert states.hits == 0


def test_a_history_that_outgrows_the_window_is_read_anew(small_model: Build) -> None:
    encoder = small_model("compressed").encoder
    encoder.prompts.item_limit = 4
    states, history = reused(encoder), [1, 2, 3]
    for item in (4, 5, 6):
        history.append(item)
        found = states.encode([encoder.prepare(history)])
        np.testing.assert_allclose(found, plain(encoder, [history]), atol=1e-5)


def test_free_titles_are_read_and_not_kept(small_model: Build) -> None:
    encoder = small_model("compressed").encoder
    states = reused(encoder)
    vector = np.ones(encoder.items.text_NC.shape[1], np.float32) / 3
    lamp, rug = FreeItem("lamp", text_vector=vector), FreeItem("rug", text_vector=-vector)
    for history in ([1, lamp], [1, rug], [1, rug, 2], [1, lamp, 2]):
        found = states.encode([encoder.prepare(history), encoder.prepare([5, 6])])
        np.testing.assert_allclose(found, plain(encoder, [history, [5, 6]]), atol=1e-5)
    assert len(states._kept) == 1


def test_what_is_kept_stays_within_its_bound_and_the_unused_goes_first(small_model: Build) -> None:
    encoder = small_model("compressed").encoder
    one = reused(encoder)
    one.encode([encoder.prepare([1, 2])])
    states = reused(encoder, 3 * one.bytes)
    for history in ([1, 2], [3, 4], [5, 6]):
        states.encode([encoder.prepare(history)])
    states.encode([encoder.prepare([1, 2, 7])])  # longer than one of them: two have to go
    prefix = len(encoder.prompts.prefix)
    assert states.bytes <= 3 * one.bytes
    assert states.bytes == sum(kept.numel() * 4 for kept in states._kept.values())
    assert states.new_positions(encoder.prepare([3, 4, 8])) == encoder.prepare([3, 4, 8]).length - prefix
    assert states.new_positions(encoder.prepare([1, 2, 7, 8])) == 1
    nothing = reused(encoder, 10)
    nothing.encode([encoder.prepare([1, 2])])
    assert nothing.bytes == 0


def test_half_precision_stays_close(small_model: Build) -> None:
    encoder = small_model("titles").encoder
    expected = plain(sped_up(encoder), [[4, 2, 9, 1]])
    encoder.backbone.to(torch.bfloat16)
    states = reused(encoder)
    states.encode([encoder.prepare([4, 2])])
    found = states.encode([encoder.prepare([4, 2, 9, 1])])
    assert states.hits == 1 and float((found * expected).sum()) > 0.999


def test_what_is_kept_lies_outside_the_heap(small_model: Build) -> None:
    """On pages that go back to the system when it is dropped; in the heap it left holes, and the process grew."""
    encoder = small_model("titles").encoder
    states = reused(encoder)
    states.encode([encoder.prepare(history) for history in ([1, 2, 3], [4, 5])])
    addresses = [kept.data_ptr() for kept in states._kept.values()]
    assert len(addresses) == 2 and all(address % mmap.PAGESIZE == 0 for address in addresses)
