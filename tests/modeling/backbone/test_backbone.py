"""Backbones: seven architectures, never an ``lm_head``, attention proved rather than believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modeling.artifact import verified
from modeling.artifact.tensor_reader import read_tensors
from modeling.artifact.verified import Files
from modeling.backbone.loading import BackboneError, load_backbone, prove_attention
from modeling.spec import BackboneSpec
from testing.models import ARCHITECTURES, HIDDEN, VOCABULARY

Folder = Callable[[str], Path]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_body_loads_without_a_head(architecture: str, backbone_folder: Folder) -> None:
    model, info = load_backbone(BackboneSpec(source=str(backbone_folder(architecture))))
    wide = [name for name, p in model.named_parameters() if VOCABULARY in p.shape]
    assert len(wide) == 1, f"only the input embeddings may be as wide as the vocabulary: {wide}"
    assert info.hidden_size == HIDDEN
    assert info.lm_head == ("untied" if architecture == "llama" or architecture == "mistral" else "tied")


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_the_head_tensor_is_never_kept(
    architecture: str, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = backbone_folder(architecture)
    kept: list[str] = []

    def recording(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        found = read_tensors(*arguments, **options)
        kept.extend(found)
        return found

    assert "lm_head.weight" in Files(folder).tensors("model.safetensors")
    monkeypatch.setattr(verified, "read_tensors", recording)
    load_backbone(BackboneSpec(source=str(folder)))
    assert kept
    assert "lm_head.weight" not in kept


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_is_causal_alone_and_in_a_padded_batch(architecture: str, backbone_folder: Folder) -> None:
    model, _ = load_backbone(BackboneSpec(source=str(backbone_folder(architecture))))
    prove_attention(model, causal=True)
    with pytest.raises(BackboneError, match="asked for bidirectional attention"):
        prove_attention(model, causal=False)


def test_a_bidirectional_bert_is_refused_where_causal_is_asked_for(backbone_folder: Folder) -> None:
    model, _ = load_backbone(BackboneSpec(source=str(backbone_folder("bert")), attention="bidirectional"))
    with pytest.raises(BackboneError, match="asked for causal attention"):
        prove_attention(model, causal=True)


def test_a_leak_only_in_padded_batches_is_found() -> None:
    class LeaksWhenPadded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.config = type("Config", (), {"hidden_size": 4})()

        def forward(self, inputs_embeds: Tensor, use_cache: bool, attention_mask: Tensor | None = None) -> Any:
            mixed = inputs_embeds.cumsum(1) if attention_mask is None else inputs_embeds + inputs_embeds.sum(1)[:, None]
            return type("Output", (), {"last_hidden_state": mixed})()

    with pytest.raises(BackboneError, match="padded batch"):
        prove_attention(LeaksWhenPadded(), causal=True)


def test_fewer_layers_and_too_many(backbone_folder: Folder) -> None:
    source = str(backbone_folder("gemma3"))
    _, info = load_backbone(BackboneSpec(source=source, layers=1))
    assert info.layers == 1
    with pytest.raises(BackboneError, match=r"backbone\.layers=9, but .* has 2 layers"):
        load_backbone(BackboneSpec(source=source, layers=9))


def test_a_backbone_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="nowhere"):
        load_backbone(BackboneSpec(source=str(tmp_path / "nowhere")))
