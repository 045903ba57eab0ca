"""Adapters are found by name; one that reads a condition lives in the encoder unmerged, and the condition travels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from modeling.artifact.tensor_files import save_tensors
from modeling.artifact.verified import Files, Folder, files_of
from modeling.backbone import adapters
from modeling.backbone.adapters import Adapter, AdapterError, adapter_kinds, adapter_of
from modeling.backbone.adapters.condition import condition
from modeling.encoder.build import Model, build_model
from modeling.inference.encoder_forward import compile_encoder
from modeling.spec import AdapterSpec
from testing.models import ITEMS, TITLES

Build = Callable[..., Model]
EXPERTS = 3
HISTORIES = [[3], [0, 5, 7, 2, 9], [1, 2]]


class GatedLinear(nn.Module):
    """A linear map and low-rank experts, each row of a batch with its own gates [B, E]."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down_ERH = nn.Parameter(torch.randn(EXPERTS, rank, base.in_features) / base.in_features**0.5)
        self.up_EOR = nn.Parameter(torch.zeros(EXPERTS, base.out_features, rank))

    def forward(self, states_BTH: Tensor) -> Tensor:
        gates_BE = condition()
        assert gates_BE is not None, "a gated adapter reads a condition"
        added = torch.einsum("bth,erh,eor,be->bto", states_BTH, self.down_ERH, self.up_EOR, gates_BE)
        return cast(Tensor, self.base(states_BTH) + added)


class GatedAdapter(Adapter):
    """Experts on the query maps, mixed as the request says."""

    has_weights, merges, needs_condition = True, False, True

    def attach(self, backbone: nn.Module, spec: AdapterSpec) -> nn.Module:
        backbone.requires_grad_(False)
        for layer in cast(Any, backbone).layers:
            layer.self_attn.q_proj = GatedLinear(layer.self_attn.q_proj, spec.rank)
        return backbone

    def save(self, adapted: nn.Module, folder: Path, *, source: str) -> None:
        folder.mkdir()
        own = {name: tensor for name, tensor in adapted.state_dict().items() if "_ERH" in name or "_EOR" in name}
        save_tensors(own, folder / "experts.safetensors")

    def load(self, backbone: nn.Module, files: Files, spec: AdapterSpec) -> nn.Module:
        adapted = self.attach(backbone, spec)
        adapted.load_state_dict(files.tensors("experts.safetensors"), strict=False)
        return adapted


@pytest.fixture
def gated(small_model: Build) -> Iterator[Model]:
    adapters.register("gated", GatedAdapter())
    model = small_model("compressed", "llama", adapter=AdapterSpec(kind="gated", rank=4))
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "up_EOR" in name:
                parameter.normal_(std=0.3)
    yield model
    del adapters._REGISTERED["gated"]


def gates(seed: int, count: int = len(HISTORIES)) -> NDArray[np.float32]:
    return np.random.default_rng(seed).dirichlet(np.ones(EXPERTS), count).astype(np.float32)


def test_kinds_are_files_and_an_unknown_one_is_explained() -> None:
    assert adapter_kinds() == ["full", "ilora", "lora", "none"]
    with pytest.raises(AdapterError, match="'dora' is not known; allowed are full, ilora, lora, none"):
        adapter_of("dora")


def test_every_row_has_its_own_condition_in_any_batch(gated: Model) -> None:
    encoder, given_BE = gated.encoder, gates(0)
    prompts = [encoder.prepare(history, gate) for history, gate in zip(HISTORIES, given_BE, strict=True)]
    together = encoder.encode(prompts)
    np.testing.assert_allclose(together, [encoder.encode([prompt])[0] for prompt in prompts], atol=1e-5)
    others = [encoder.prepare(history, gate) for history, gate in zip(HISTORIES, gates(1), strict=True)]
    assert np.abs(encoder.encode(others) - together).max() > 1e-3
    assert condition() is None, "nothing is left behind for the next batch"
    with pytest.raises(ValueError, match="1 of 2 prompts of a batch have a condition"):
        encoder.collate([prompts[0], encoder.prepare([1])])


def test_uniform_gates_are_one_plain_low_rank_update(gated: Model) -> None:
    encoder, uniform_E = gated.encoder, np.full(EXPERTS, 1 / EXPERTS, np.float32)
    prompts = [encoder.prepare(history, uniform_E) for history in HISTORIES]
    found_BD = encoder.encode(prompts)
    for layer in cast(Any, encoder.backbone).layers:  # as LoRA folds its matrices in
        map_ = layer.self_attn.q_proj
        update = torch.einsum("erh,eor->oh", map_.down_ERH, map_.up_EOR) / EXPERTS
        map_.base.weight.data += update
        layer.self_attn.q_proj = map_.base
    plain = [encoder.prepare(history) for history in HISTORIES]
    np.testing.assert_allclose(found_BD, encoder.encode(plain), atol=1e-5)


def test_what_does_not_merge_is_read_by_the_plain_forward_and_states_are_not_reused(gated: Model) -> None:
    found = gated.encoder.capabilities
    assert (found.merges, found.packed, found.prefix_reuse, found.every_boundary) == (False, False, False, False)
    assert "adapter 'gated'" in compile_encoder(gated.encoder)


def test_an_adapter_of_its_own_format_is_saved_and_loaded(gated: Model, tmp_path: Path) -> None:
    encoder, given_BE = gated.encoder, gates(2)
    adapter_of("gated").save(encoder.backbone, tmp_path / "adapter", source="x")
    assert len(load_file(tmp_path / "adapter" / "experts.safetensors")) == 4
    folder: Folder = tmp_path / "adapter"
    again = build_model(
        gated.spec, catalog_size=ITEMS, titles=TITLES, text=gated.text, adapter_folder=files_of(folder)
    ).encoder.eval()
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("backbone.")}
    again.load_state_dict(own, strict=False)
    prompts = [encoder.prepare(history, gate) for history, gate in zip(HISTORIES, given_BE, strict=True)]
    np.testing.assert_allclose(again.encode(prompts), encoder.encode(prompts), atol=1e-5)
