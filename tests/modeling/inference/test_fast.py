"""The fast forward gives the vectors of the plain one, alone and in any batch, and computes less."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import modeling.inference.encoder_forward
import modeling.inference.layers
from modeling.backbone.adapters import adapter_of
from modeling.encoder.build import Model, build_model
from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.encoder_forward import compile_encoder
from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ModelSpec

Build = Callable[..., Model]
HISTORIES: list[list[int]] = [[3], [0, 5, 7, 2, 9, 11, 4], [1, 2], [8, 8, 10, 1], list(range(12)), [12, 3]]
KNOWN = ("qwen3", "llama", "mistral", "bert")
UNKNOWN = ("gemma3", "gpt2", "opt")
FORMS: dict[str, dict[str, Any]] = {
    "titles": {"form": "titles"},
    "compressed": {"form": "compressed"},
    "two": {"form": "compressed", "history": {"vectors_per_item": 2}},
}


def plain(encoder: UserEncoder, histories: Sequence[Sequence[int | FreeItem]]) -> Any:
    with torch.inference_mode():
        return encoder(encoder.collate([encoder.prepare(history) for history in histories])).numpy()


def served(encoder: UserEncoder) -> UserEncoder:
    """As an artifact is loaded: adapter merged, item vectors final."""
    encoder.backbone = adapter_of("lora").merge(encoder.backbone)
    encoder.items.freeze()
    return encoder


def sped_up(encoder: UserEncoder) -> UserEncoder:
    served(encoder)
    assert compile_encoder(encoder) == "" and encoder.fast is not None
    return encoder


def compare(encoder: UserEncoder, histories: Sequence[Sequence[int | FreeItem]]) -> None:
    expected = plain(encoder, histories)
    together = encoder.encode([encoder.prepare(history) for history in histories])
    np.testing.assert_allclose(together, expected, atol=1e-5)
    for history, vector in zip(histories, expected, strict=True):
        np.testing.assert_allclose(encoder.encode([encoder.prepare(history)])[0], vector, atol=1e-5)
    same = [histories[1]] * 3  # rows of one length go another way
    np.testing.assert_allclose(encoder.encode([encoder.prepare(each) for each in same]), expected[[1] * 3], atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", KNOWN)
@pytest.mark.parametrize("tower", ["both", "id"])
def test_vectors_are_those_of_the_plain_forward(form: str, architecture: str, tower: str, small_model: Build) -> None:
    options = dict(FORMS[form])
    items = ItemsSpec(tower=tower, dim=16)  # type: ignore[arg-type]
    encoder = small_model(options.pop("form"), architecture, items=items, **options).encoder
    compare(sped_up(encoder), HISTORIES)


@pytest.mark.parametrize("architecture", KNOWN)
def test_long_rows_are_attended_to_one_by_one(
    architecture: str, small_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling.inference.encoder_forward, "LONG", 1)
    encoder = sped_up(small_model("titles", architecture).encoder)
    compare(encoder, HISTORIES)
    encoder.prompts.prefix = encoder.prompts.prefix[:0]
    compare(sped_up(encoder), HISTORIES)


@pytest.mark.parametrize("architecture", ["qwen3", "bert"])
@pytest.mark.parametrize("form", ["titles", "compressed"])
def test_without_an_instruction(form: str, architecture: str, small_model: Build) -> None:
    encoder = small_model(form, architecture, history={"vectors_per_item": 1}).encoder
    encoder.prompts.prefix = encoder.prompts.prefix[:0]
    compare(sped_up(encoder), HISTORIES)


def test_an_id_model(small_model: Build) -> None:
    compare(sped_up(small_model("ids").encoder), HISTORIES)


@pytest.mark.parametrize("block", ["plain", "ligr"])
def test_an_own_transformer_over_ids_and_texts(block: Any) -> None:
    torch.manual_seed(3)
    from modeling.encoder.build import TextVectors
    from modeling.encoder.item_tower import Whitening

    raw = np.random.default_rng(1).normal(size=(12, 24)).astype(np.float32)
    whitening = Whitening.fit(raw, 8)
    spec = ModelSpec(
        history=HistorySpec(form="compressed", dropout=0.0),
        backbone=BackboneSpec(width=16, depth=2, heads=2, dropout=0.0, block=block),
        adapter=AdapterSpec(kind="none"),
        items=ItemsSpec(tower="both", dim=16, text_source="minilm"),
    )
    encoder = build_model(spec, catalog_size=12, titles=None, text=TextVectors(whitening(raw), whitening)).encoder
    compare(sped_up(encoder.eval()), HISTORIES)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("table", [True, False])
def test_free_titles_are_mapped_beside_rows_of_the_table(
    form: str, table: bool, small_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not table:
        monkeypatch.setattr(modeling.inference.encoder_forward, "LARGEST_TABLE", 0)
    options = dict(FORMS[form])
    encoder = sped_up(small_model(options.pop("form"), **options).encoder)
    assert encoder.fast is not None and (encoder.fast.table_RH is not None) == table
    vector = np.ones(encoder.items.text_NC.shape[1], np.float32) / 3
    lamp = FreeItem("lamp", tokens=np.asarray([5, 6], np.int32), text_vector=vector)
    rug = FreeItem("rug", tokens=np.asarray([7], np.int32), text_vector=-vector)
    compare(encoder, [[1, lamp, 2], [lamp], [1, rug, 2], [rug, lamp], [1, 2], [4, 5, lamp, rug]])


@pytest.mark.parametrize("architecture", UNKNOWN)
def test_layers_that_are_not_known_stay_as_they_are(architecture: str, small_model: Build) -> None:
    encoder = served(small_model("compressed", architecture).encoder)
    expected = plain(encoder, HISTORIES)
    assert "are not known" in compile_encoder(encoder) and encoder.fast is None
    found = encoder.encode([encoder.prepare(history) for history in HISTORIES])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_vectors_that_would_differ_are_noticed(small_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = served(small_model("titles").encoder)
    monkeypatch.setattr(modeling.inference.layers, "_placed", lambda states, norm, turns: states)
    assert "its vectors differ by" in compile_encoder(encoder) and encoder.fast is None


def test_half_precision_stays_close(small_model: Build) -> None:
    encoder = served(small_model("titles").encoder)
    expected = plain(encoder, HISTORIES)
    encoder.backbone.to(torch.bfloat16)
    found = sped_up(encoder).encode([encoder.prepare(history) for history in HISTORIES])
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999


def test_it_computes_less(small_model: Build) -> None:
    """Products only: the instruction, the last layer but one position, padding and the maps are gone."""
    encoder = sped_up(small_model("compressed").encoder)
    prompts = [encoder.prepare(history) for history in ([1, 2], list(range(12)))]
    with FlopCounterMode(display=False) as before, torch.inference_mode():
        encoder(encoder.collate(prompts))
    with FlopCounterMode(display=False) as after:
        encoder.encode(prompts)
    assert after.get_total_flops() < 0.5 * before.get_total_flops()


def test_nothing_of_it_is_stored_and_the_encoder_is_freed_at_once(small_model: Build) -> None:
    model = small_model("compressed")
    names = set(served(model.encoder).state_dict())
    encoder = sped_up(model.encoder)
    assert set(encoder.state_dict()) == names
    gone = weakref.ref(encoder)
    gc.disable()
    try:
        del model, encoder
        assert gone() is None, "counting references is enough"
    finally:
        gc.enable()
