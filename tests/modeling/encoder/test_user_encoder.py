"""The user encoder's invariants: a row is itself in any batch, every item and their order count, pads never do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.encoder.build import Model, trainable
from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import CannotReadText
from modeling.spec import AdapterSpec, ItemsSpec, ProjectorSpec
from testing.models import ARCHITECTURES, ITEMS, VOCABULARY

Build = Callable[..., Model]
HISTORIES = [[3], [0, 5, 7, 2, 9, 11, 4], [1, 2], [8, 8, 10, 1], list(range(12))]
FORMS = ("ids", "titles", "compressed")
CASES = [("ids", "none"), *[(form, name) for form in ("titles", "compressed") for name in ARCHITECTURES]]


@pytest.mark.parametrize(("form", "architecture"), CASES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_row_alone_is_the_row_in_any_batch(form: str, architecture: str, side: str, small_model: Build) -> None:
    encoder = small_model(form, architecture).encoder
    prompts = [encoder.prepare(history) for history in HISTORIES]
    with torch.inference_mode():
        together = encoder(encoder.collate(prompts, padding_side=side)).numpy()
    for number, prompt in enumerate(prompts):
        np.testing.assert_allclose(encoder.encode([prompt])[0], together[number], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_order_and_every_item_count(form: str, small_model: Build) -> None:
    """In the backbone: the newest items are not added, which alone would tell orders apart."""
    slots = {} if form == "ids" else {"projector": ProjectorSpec()}
    encoder = small_model(form, **slots).encoder
    assert not encoder.spec.projector.residual
    base, swapped, changed, longer = encoder.encode(
        [encoder.prepare(history) for history in ([1, 2, 3, 4], [2, 1, 3, 4], [9, 2, 3, 4], [5, 1, 2, 3, 4])]
    )
    for other in (swapped, changed, longer):
        assert np.abs(base - other).max() > 1e-4


def test_two_vectors_an_item_takes_two_positions(small_model: Build) -> None:
    one = small_model("compressed").encoder
    two = small_model("compressed", history={"vectors_per_item": 2}).encoder
    prefix = len(one.prompts.prefix)
    assert one.prepare([1, 2, 3]).length == prefix + 3
    assert two.prepare([1, 2, 3]).length == prefix + 6
    assert two.prepare([1, 2, 3]).boundaries_M.tolist() == [prefix + 1, prefix + 3, prefix + 5]


def test_title_pieces_are_the_titles_and_end_in_the_id(small_model: Build) -> None:
    model = small_model("titles")
    assert model.titles is not None
    prompt = model.encoder.prepare([4, 0])
    start = len(model.encoder.prompts.prefix)
    title = model.titles[4].tolist()
    assert prompt.values_T[start : start + len(title)].tolist() == title
    assert prompt.values_T[prompt.boundaries_M].tolist() == [4, 0]


def test_the_newest_items_are_kept_when_the_positions_run_out(small_model: Build) -> None:
    encoder = small_model("titles").encoder
    encoder.prompts.position_limit = 12
    prompt = encoder.prepare([0, 1, 2, 3, 4, 5, 6, 7])
    assert prompt.length <= 12
    assert prompt.values_T[prompt.boundaries_M].tolist()[-2:] == [6, 7]


@pytest.mark.parametrize("form", ["titles", "compressed"])
def test_free_titles_are_read_beside_catalog_items(form: str, small_model: Build) -> None:
    encoder = small_model(form).encoder
    vector = np.ones(encoder.items.text_NC.shape[1], np.float32) / 3
    lamp = FreeItem("lamp", tokens=np.asarray([5, 6], np.int32), text_vector=vector)
    rug = FreeItem("rug", tokens=np.asarray([7], np.int32), text_vector=-vector)
    histories = [[1, lamp, 2], [lamp], [1, rug, 2], [rug, lamp], [1, 2]]
    together = encoder.encode([encoder.prepare(history) for history in histories])
    for number, history in enumerate(histories):
        np.testing.assert_allclose(encoder.encode([encoder.prepare(history)])[0], together[number], atol=1e-4)
    assert np.abs(together[0] - together[2]).max() > 1e-4
    assert np.abs(together[0] - together[4]).max() > 1e-4


def test_the_newest_items_are_added_to_the_state_each_with_a_weight_that_is_learned(small_model: Build) -> None:
    projector = ProjectorSpec(residual=True, recent=3, decay=0.5)
    encoder = small_model(
        "compressed", projector=projector, items=ItemsSpec(tower="both", dim=16, normalize=False)
    ).encoder
    table = encoder.items.table().detach()
    state = torch.zeros(2, encoder.hidden_size)
    recent = encoder.recent([encoder.prepare(history) for history in ([3, 9, 7, 5], [4])])
    with torch.no_grad():
        bias = encoder.projector.map(state)
        begun = encoder.project(state, recent)
        encoder.projector.newest_weight.copy_(torch.tensor([2.0, 0.0, -1.0]))
        learned = encoder.project(state, recent)
    expected = torch.stack([table[5] + 0.5 * table[7] + 0.25 * table[9], table[4]])
    torch.testing.assert_close(begun, bias + 0.5 * expected * 16**0.5)  # the newest begins at a half
    torch.testing.assert_close(learned, bias + torch.stack([2 * table[5] - table[9], 2 * table[4]]) * 16**0.5)


def test_an_id_model_says_that_it_cannot_read(small_model: Build) -> None:
    with pytest.raises(CannotReadText, match="reads item ids only"):
        small_model("ids").encoder.read_titles(["a lamp"])


@pytest.mark.parametrize("row", [-1, ITEMS + 1])
@pytest.mark.parametrize("form", FORMS)
def test_rows_outside_the_catalog_are_refused(form: str, row: int, small_model: Build) -> None:
    with pytest.raises(ValueError, match="outside the catalog"):
        small_model(form).encoder.prepare([1, row])


@pytest.mark.parametrize("form", FORMS)
def test_nothing_as_wide_as_the_vocabulary_is_computed(form: str, small_model: Build) -> None:
    encoder = small_model(form).encoder
    prompts, widths = [encoder.prepare(history) for history in HISTORIES], set()

    class EveryOperation(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.ndim:
                widths.add(result.shape[-1])
            return result

    with torch.no_grad(), EveryOperation():
        encoder(encoder.collate(prompts))
    assert 16 in widths, "the user vectors at least are seen"
    assert VOCABULARY not in widths


@pytest.mark.parametrize("kind", ["none", "lora", "full"])
def test_only_what_the_recipe_trains_gets_a_gradient(kind: str, small_model: Build) -> None:
    encoder = small_model("compressed", adapter=AdapterSpec(kind=kind)).encoder.train()
    encoder(encoder.collate([encoder.prepare(history) for history in HISTORIES])).square().sum().backward()
    moved = {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved <= set(trainable(encoder))
    assert {"projector.map.weight", "text_input.weight", "id_input.weight", "items.ids.weight"} <= moved
    inside = {name for name in moved if name.startswith("backbone.")}
    assert bool(inside) == (kind != "none")
    assert "embed" not in " ".join(inside), "rows of words that no title holds would only decay"
    if kind == "lora":
        assert all("lora_" in name for name in inside) and [name for name in inside if "lora_B" in name]


def test_a_fresh_adapter_changes_nothing_and_a_merged_one_the_same(small_model: Build) -> None:
    from modeling.backbone.adapters import adapter_of

    plain = small_model("titles", adapter=AdapterSpec(kind="none")).encoder
    model = small_model("titles")
    encoder = model.encoder
    prompts = [encoder.prepare(history) for history in HISTORIES]
    encoder.load_state_dict(
        {name: value for name, value in plain.state_dict().items() if not name.startswith("backbone.")}, strict=False
    )
    np.testing.assert_allclose(encoder.encode(prompts), plain.encode(prompts), atol=1e-5)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    trained = encoder.encode(prompts)
    assert np.abs(trained - plain.encode(prompts)).max() > 1e-3
    encoder.backbone = adapter_of("lora").merge(encoder.backbone)
    np.testing.assert_allclose(encoder.encode(prompts), trained, atol=1e-4)


def test_a_frozen_table_scores_as_before(small_model: Build) -> None:
    encoder = small_model("compressed", items=ItemsSpec(tower="both", dim=16)).encoder
    prompts = [encoder.prepare(history) for history in HISTORIES]
    before = encoder.encode(prompts)
    vectors = encoder.items.vectors().detach().numpy()
    encoder.items.freeze()
    np.testing.assert_array_equal(encoder.encode(prompts), before)
    np.testing.assert_array_equal(encoder.items.vectors().detach().numpy(), vectors)
