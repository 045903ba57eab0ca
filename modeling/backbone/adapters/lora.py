"""LoRA (Hu et al. 2021) through PEFT: attach, save, load without missing keys, merge."""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from modeling.artifact.verified import Files
from modeling.backbone.adapters.base import Adapter, AdapterError
from modeling.spec import AdapterSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MEANING = (
    "peft_type",
    "r",
    "lora_alpha",
    "bias",
    "fan_in_fan_out",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
)


@contextlib.contextmanager
def _without_peft_deprecations() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 for an attribute under its old name; nothing a user could do about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*missing adapter keys.*")  # ``load`` refuses them itself
        yield


class LoraAdapter(Adapter):
    """Low-rank matrices beside the backbone's maps, which are frozen. B starts at zero, so nothing changes at first."""

    has_weights = True

    def attach(self, backbone: nn.Module, spec: AdapterSpec) -> nn.Module:
        backbone.requires_grad_(False)
        from peft import LoraConfig, TaskType, get_peft_model

        targets = _targets(backbone, spec)
        config = LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=spec.rank,
            lora_alpha=spec.alpha,
            lora_dropout=spec.dropout,
            target_modules=targets,
            bias="none",
            fan_in_fan_out=any(map(_is_conv1d, backbone.modules())),
        )
        with _without_peft_deprecations():
            return cast(nn.Module, get_peft_model(cast("PreTrainedModel", backbone), config))

    def save(self, adapted: nn.Module, folder: Path, *, source: str) -> None:
        """Write PEFT's own format, so that ``peft.PeftModel.from_pretrained`` reads it unchanged.

        Args:
            adapted: the backbone with its adapter.
            folder: to write to.
            source: name of the backbone, kept in the adapter's config instead of a path of this machine.
        """
        for config in cast(Any, adapted).peft_config.values():
            config.base_model_name_or_path = source
        # "auto" would ask a hub for the backbone, to learn whether its vocabulary was resized; it never is
        cast(Any, adapted).save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        card = folder / "README.md"
        card.unlink(missing_ok=True)  # a generated model card full of blanks

    def load(self, backbone: nn.Module, files: Files, spec: AdapterSpec) -> nn.Module:
        """Put a saved adapter on ``backbone``: built from ``spec``, which the saved config must agree with.

        Raises:
            AdapterError: the file lacks a weight the backbone needs, or holds one it has no place for (PEFT alone only
                warns, and would serve the base model), or the config is of another adapter.
            ArtifactError: a file is missing or altered.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        adapted = self.attach(backbone, spec)
        _check_config(files, adapted)
        found = files.tensors(WEIGHTS)
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        if expected != set(found):
            missing, extra = sorted(expected - set(found)), sorted(set(found) - expected)
            raise AdapterError(
                f"adapter/{WEIGHTS} holds {len(found)} tensors and the backbone has places for {len(expected)}: "
                f"missing {missing[:2] or 'none'}, unexpected {extra[:2] or 'none'}"
            )
        with _without_peft_deprecations():
            set_peft_model_state_dict(adapted, found)
        return adapted

    def merge(self, adapted: nn.Module) -> nn.Module:
        """Fold the LoRA matrices into the weights; the forward then costs what the bare backbone costs.

        Weights are not written to, they are replaced: another model may read them.
        """
        for module in adapted.modules():
            if (base := getattr(module, "base_layer", None)) is not None:
                base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        unload = getattr(adapted, "merge_and_unload", None)
        return cast(nn.Module, unload()) if unload is not None else adapted

    def bare(self, adapted: nn.Module) -> nn.Module:
        """A copy of the backbone under the adapter, as it was before it was attached."""
        return cast(nn.Module, cast(Any, copy.deepcopy(adapted)).unload())


ADAPTER = LoraAdapter()


def layer_of(name: str) -> int | None:
    """The number of the layer that a part of a backbone is in, by the part's name; None outside all layers."""
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return None if found is None else int(found[1])


def _targets(backbone: nn.Module, spec: AdapterSpec) -> str | list[str]:
    """PEFT's ``target_modules``: with ``spec.layers`` the names of all maps that get matrices."""
    if spec.layers is not None:
        return maps_in_layers(backbone, spec)
    return spec.targets if spec.targets == "all-linear" else [name.strip() for name in spec.targets.split(",")]


def maps_in_layers(backbone: nn.Module, spec: AdapterSpec) -> list[str]:
    """Names of the linear maps in the last ``spec.layers`` layers, or in all, that ``spec.targets`` names.

    Raises:
        AdapterError: there are fewer layers.
    """
    every = spec.targets == "all-linear"
    suffixes = tuple(name.strip() for name in spec.targets.split(","))
    maps = [name for name, part in backbone.named_modules() if isinstance(part, nn.Linear) or _is_conv1d(part)]
    layers = {name: layer for name in maps if (layer := layer_of(name)) is not None}
    count = 1 + max(layers.values(), default=-1)
    kept = count if spec.layers is None else spec.layers
    if kept > count:
        raise AdapterError(f"adapter.layers={kept}, and the backbone has {count} layers")
    return [
        name for name, layer in layers.items()
        if layer >= count - kept and (every or name.rpartition(".")[2] in suffixes)
    ]  # fmt: skip


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2's layout


def _check_config(files: Files, adapted: nn.Module) -> None:
    """Check that the settings in ``adapter_config.json`` that change the weights' meaning equal the manifest's."""
    held = files.json(CONFIG)
    if not isinstance(held, dict):
        raise AdapterError(f"adapter/{CONFIG} is not a JSON object")
    built = cast(Any, adapted).peft_config["default"].to_dict()
    for name in MEANING:
        if name in held and (held[name] or None) != (built.get(name) or None):
            raise AdapterError(
                f"adapter/{CONFIG} has {name} {str(held[name])[:40]!r}, and the manifest's model has "
                f"{str(built.get(name))[:40]!r}"
            )
