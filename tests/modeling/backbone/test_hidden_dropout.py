"""Dropout inside a backbone acts while training, on every architecture and in every form, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modeling.backbone.hidden_dropout import NoDropout, drop_hidden
from modeling.backbone.loading import load_backbone
from modeling.encoder.build import Model, build_model
from modeling.spec import AdapterSpec, BackboneSpec, ModelSpec
from testing.models import ARCHITECTURES, ITEMS, TITLES
from training.loop.examples import Window
from training.loop.module import RetrievalModule
from training.objectives.base import ObjectiveSpec
from training.recipes import get_recipe

Build = Callable[..., Model]
Folder = Callable[[str], Path]
WINDOWS = [Window(np.array([1, 4, 7, 2, 9])), Window(np.array([3, 5, 0]))]


def trained(small_model: Build, form: str, architecture: str, share: float, **slots: Any) -> RetrievalModule:
    """The module that a recipe with this dropout, and no other, trains."""
    model = small_model(form, architecture, **slots)
    spec = ModelSpec.model_validate(
        model.spec.model_dump() | {"backbone": model.spec.backbone.model_dump() | {"dropout": share}}
    )
    torch.manual_seed(0)
    model = build_model(spec, catalog_size=ITEMS, titles=TITLES, text=model.text)
    return RetrievalModule(model.encoder, ObjectiveSpec(), popularity_N=np.ones(ITEMS, np.int64))


def losses(module: RetrievalModule, *, training: bool) -> tuple[float, float]:
    """Of two passes."""
    module.train(training)
    batch = module.collate(WINDOWS)
    torch.manual_seed(3)
    with torch.no_grad():
        return module(batch).item(), module(batch).item()


@pytest.mark.parametrize("kind", ["none", "lora", "full"])
@pytest.mark.parametrize("form", ["titles", "compressed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_acts_while_training_and_only_then(architecture: str, form: str, kind: str, small_model: Build) -> None:
    adapter = AdapterSpec(kind=kind)  # type: ignore[arg-type]
    with_it = trained(small_model, form, architecture, 0.5, adapter=adapter)
    without = trained(small_model, form, architecture, 0.0, adapter=adapter)
    first, second = losses(with_it, training=True)
    assert first != second
    first, second = losses(with_it, training=False)
    assert first == second == losses(without, training=False)[0]
    first, second = losses(without, training=True)
    assert first == second, "a rate of 0 is none, whatever the architecture's own defaults are"
    with_it.encoder.eval()
    first, second = losses_of_encoder(with_it)
    assert first == second, "selection asks the encoder in evaluation mode while the module trains"
    with_it.close()
    assert not any(part._forward_hooks for part in with_it.modules()), "what is served has no hooks"


def losses_of_encoder(module: RetrievalModule) -> tuple[float, float]:
    prompts = [module.encoder.prepare([1, 4, 7])]
    return tuple(float(module.encoder.encode(prompts).sum()) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "mistral", "gemma3"])
def test_a_share_of_what_each_block_adds_is_dropped(architecture: str, backbone_folder: Folder) -> None:
    """Both kinds of blocks of all layers, at the rate that was asked for."""
    model, _ = load_backbone(BackboneSpec(source=str(backbone_folder(architecture)), dropout=0.25))
    hooks, zeros = drop_hidden(model, 0.25), []

    def count(block: nn.Module, given: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        zeros.append(float((out == 0).float().mean()))

    for name, part in model.named_modules():
        if name.endswith(("self_attn", "mlp")):
            part.register_forward_hook(count)  # after those that drop
    model.train()
    model(inputs_embeds=torch.randn(8, 32, model.config.hidden_size))  # type: ignore[operator, union-attr]
    assert len(hooks) == len(zeros) == 2 * model.config.num_hidden_layers  # type: ignore[union-attr]
    assert all(abs(share - 0.25) < 0.02 for share in zeros)


def test_looking_whether_it_acts_changes_no_later_draw(backbone_folder: Folder) -> None:
    model, _ = load_backbone(BackboneSpec(source=str(backbone_folder("llama")), dropout=0.5))
    modes = [part.training for part in model.modules()]
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    drop_hidden(model, 0.5)
    assert torch.equal(torch.rand(4), expected)
    assert [part.training for part in model.modules()] == modes


def test_an_architecture_without_a_place_for_it_is_refused() -> None:
    class Odd(nn.Module):
        config = type("Config", (), {"model_type": "odd"})()

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4)

        def get_input_embeddings(self) -> nn.Module:
            return self.words

        def forward(self, inputs_embeds: Tensor, use_cache: bool) -> tuple[Tensor]:
            return (inputs_embeds * 2,)

    with pytest.raises(NoDropout, match=r"backbone.dropout=0.1 has no effect on 'odd'.*set backbone.dropout=0"):
        drop_hidden(Odd(), 0.1)
    assert drop_hidden(Odd(), 0.0) == []


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "bert"])
def test_it_acts_in_a_recipe_that_writes_with_a_language_model(architecture: str, backbone_folder: Folder) -> None:
    """There on the attention's weights; and no architecture drops by a default of its own."""
    from training.item_ids.assign import load_writer

    def passes(share: float) -> list[Tensor]:
        recipe = get_recipe("bigrec", [f"backbone.dropout={share}"], backbone=str(backbone_folder(architecture)))
        model, *_ = load_writer(recipe, None)
        model.train()
        ids = torch.arange(3, 15)[None]
        with torch.no_grad():
            return [model(ids).logits for _ in range(2)]

    assert not torch.equal(*passes(0.5))
    assert torch.equal(*passes(0.0))
