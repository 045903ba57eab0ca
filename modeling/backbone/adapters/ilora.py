"""iLoRA (Kong et al. 2024): LoRA cut into blocks, the experts, each weighed by gates that belong to one user.

A map of rank r with E experts computes ``W x + (alpha E / r) B diag(g) A x``, where g [r] repeats the gate of every
expert r / E times (equations 6 to 9). Gates sum to one, so uniform ones give plain LoRA of scale alpha / r, and a gate
of one gives LoRA of rank r / E. The gates are those of a router, one for all layers, over a state of the user's history
that comes with the batch. They differ from request to request, so nothing can be merged.

Shape legend: B users, T positions, C width of the state, E experts, R rank, I inputs of a map, O outputs.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.artifact.tensor_files import save_tensors
from modeling.artifact.verified import Files
from modeling.backbone.adapters.base import Adapter, AdapterError
from modeling.backbone.adapters.condition import condition
from modeling.backbone.adapters.lora import maps_in_layers
from modeling.spec import AdapterSpec

FILE = "experts.safetensors"
CHANNELS, BLOCKS = (16, 32, 64), 3
"""Stages of the router and residual blocks in each, as published."""
_GATES_BE: ContextVar[Tensor | None] = ContextVar("gates", default=None)


class _Block(nn.Module):
    """Two convolutions with a shortcut, whose new channels start at zero where they become more.

    Normalised within a row: the published batch norm would make a user's gates depend on who else is in the batch.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.first = nn.Conv1d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.second = nn.Conv1d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(1, outputs) for _ in range(2))

    def forward(self, signal_BCT: Tensor) -> Tensor:
        out_BCT = F.relu(self.norms[0](self.first(signal_BCT)))
        out_BCT = self.norms[1](self.second(out_BCT))
        shortcut_BCT = signal_BCT[..., :: self.stride]
        new = out_BCT.shape[1] - shortcut_BCT.shape[1]
        return F.relu(out_BCT + F.pad(shortcut_BCT, (0, 0, 0, new)))


class Router(nn.Module):
    """A residual network over the state, read as a signal with one channel: [B, C] to gates [B, E] that sum to one."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        widths = [CHANNELS[0], *(width for width in CHANNELS for _ in range(BLOCKS))]
        self.first = nn.Conv1d(1, CHANNELS[0], 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, CHANNELS[0])
        self.blocks = nn.ModuleList(_Block(*pair) for pair in itertools.pairwise(widths))
        self.last = nn.Linear(CHANNELS[-1], experts)

    def forward(self, states_BC: Tensor) -> Tensor:
        signal = F.relu(self.norm(self.first(states_BC[:, None])))
        for block in self.blocks:
            signal = block(signal)
        return cast(Tensor, self.last(signal.mean(-1)).softmax(-1))


class ExpertMap(nn.Module):
    """A frozen linear map and low-rank experts beside it; it reads the gates of the forward that is running."""

    def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
        super().__init__()
        weight = cast(Tensor, base.weight)
        outputs, inputs = weight.shape if isinstance(base, nn.Linear) else weight.shape[::-1]  # GPT-2's layout
        self.base, self.dropout = base, nn.Dropout(spec.dropout)
        self.down_RI = nn.Parameter(torch.empty(spec.rank, inputs))
        self.up_OR = nn.Parameter(torch.zeros(outputs, spec.rank))
        self.scale, self.block = spec.alpha * spec.experts / spec.rank, spec.rank // spec.experts
        nn.init.kaiming_uniform_(self.down_RI, a=math.sqrt(5))

    def forward(self, states_BTI: Tensor) -> Tensor:
        gates_BE = _GATES_BE.get()
        if gates_BE is None or states_BTI.dim() != 3 or len(gates_BE) != len(states_BTI):
            given = None if gates_BE is None else list(gates_BE.shape)
            raise AdapterError(f"states of shape {list(states_BTI.shape)} need gates of as many rows: given {given}")
        factors_BR = gates_BE.repeat_interleave(self.block, -1) * self.scale
        low_BTR = F.linear(self.dropout(states_BTI), self.down_RI.to(states_BTI.dtype))
        low_BTR = low_BTR * factors_BR[:, None].to(states_BTI.dtype)
        return cast(Tensor, self.base(states_BTI) + F.linear(low_BTR, self.up_OR.to(states_BTI.dtype)))


class GatedBackbone(nn.Module):
    """A backbone with experts, and the router that computes the gates of a forward once, for all its layers."""

    def __init__(self, backbone: nn.Module, spec: AdapterSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.experts = spec.experts
        self.router = Router(spec.experts) if spec.gates == "user" else None

    @property
    def config(self) -> Any:
        """Of the backbone."""
        return self.backbone.config

    def get_base_model(self) -> nn.Module:
        """The backbone, with the experts in it."""
        return self.backbone

    def get_input_embeddings(self) -> nn.Module:
        """Of the backbone."""
        return cast(nn.Module, cast(Any, self.backbone).get_input_embeddings())

    def gates(self, states_BC: Tensor) -> Tensor:
        """Gates [B, E] of users by states of their histories."""
        if self.router is None:
            return states_BC.new_full((len(states_BC), self.experts), 1 / self.experts)
        return cast(Tensor, self.router(states_BC.to(self.router.last.weight.dtype)))

    def forward(self, *given: Any, **options: Any) -> Any:
        states_BC = condition()
        if states_BC is None:
            raise AdapterError("adapter.kind='ilora' reads a state of the history beside it, and none was given")
        with gated_by(self.gates(states_BC)):
            return self.backbone(*given, **options)


@contextlib.contextmanager
def gated_by(gates_BE: Tensor) -> Iterator[None]:
    """Maps that run inside have these gates."""
    token = _GATES_BE.set(gates_BE)
    try:
        yield
    finally:
        _GATES_BE.reset(token)


class InstanceLora(Adapter):
    """Experts beside the maps of a frozen backbone. B starts at zero, so nothing changes at first."""

    has_weights, merges, needs_condition = True, False, True

    def attach(self, backbone: nn.Module, spec: AdapterSpec) -> nn.Module:
        """See `Adapter.attach`; raises `AdapterError` where no map has a name of ``spec.targets``."""
        backbone.requires_grad_(False)
        names = maps_in_layers(backbone, spec)
        if not names:
            raise AdapterError(f"adapter.targets={spec.targets!r} names no linear map of the backbone's layers")
        for name in names:
            owner, _, last = name.rpartition(".")
            setattr(backbone.get_submodule(owner), last, ExpertMap(backbone.get_submodule(name), spec))
        return GatedBackbone(backbone, spec)

    def save(self, adapted: nn.Module, folder: Path, *, source: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(
            {name: weight.detach().cpu().contiguous() for name, weight in _own(adapted).items()}, folder / FILE
        )

    def load(self, backbone: nn.Module, files: Files, spec: AdapterSpec) -> nn.Module:
        adapted, found = self.attach(backbone, spec), files.tensors(FILE)
        expected = _own(adapted)
        shapes = {name: list(weight.shape) for name, weight in found.items()}
        if wrong := sorted(
            name for name in shapes.keys() | expected.keys() if shapes.get(name) != _shape(expected, name)
        ):
            raise AdapterError(
                f"adapter/{FILE} does not fit the backbone in {len(wrong)} tensors: the first is {wrong[0]!r} of shape "
                f"{shapes.get(wrong[0])}, expected {_shape(expected, wrong[0])}"
            )
        with torch.no_grad():
            for name, weight in expected.items():
                weight.copy_(found[name])
        return adapted

    def bare(self, adapted: nn.Module) -> nn.Module:
        """A copy of the backbone without router and experts."""
        backbone = copy.deepcopy(cast(GatedBackbone, adapted).backbone)
        for owner in list(backbone.modules()):
            for name, part in list(owner.named_children()):
                if isinstance(part, ExpertMap):
                    setattr(owner, name, part.base)
        return backbone


ADAPTER = InstanceLora()


def _own(adapted: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the adapter: those that are trained when it was attached."""
    own = ("down_RI", "up_OR")
    return {
        name: weight for name, weight in adapted.named_parameters()
        if name.startswith("router.") or name.rpartition(".")[2] in own
    }  # fmt: skip


def _shape(weights: dict[str, nn.Parameter], name: str) -> list[int] | None:
    return list(weights[name].shape) if name in weights else None
