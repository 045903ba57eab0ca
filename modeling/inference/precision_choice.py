"""Whether fewer bits are faster on this processor or GPU: measured once, on a layer like those of a language model.

The same precision is twice as fast on one processor and nine times slower on the next, which computes it number by
number. So `auto` measures, and a precision that was asked for and is slower than fp32 is refused unless it is forced.
Service and training settle theirs here. A measurement takes a fraction of a second and holds for the process.

Shape legend: P positions, H width of the layer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from modeling.inference.int8_linear import Precision, PrecisionError, quantise, read_once
from modeling.inference.prepacked_linear import added, gated, prepack

PrecisionAsked = Literal["auto", "fp32", "bf16", "int8"]
MUCH = 1.2
"""Times of a layer that differ by less are the same: `auto` stays with fp32, and what was asked for is taken."""
ROUNDS, LEAST_ROUNDS = 9, 3
BUDGET_S = 0.5
"""After which no further round begins, once there are the least of them."""
SIZES = {"cpu": (64, 384, 1536), "cuda": (4096, 1024, 4096)}
"""Positions, width and inner width of what is measured: one request on a processor, a batch on a GPU."""


@dataclass(frozen=True)
class Settled:
    """The precision that is taken, for which wish, and the milliseconds of a layer if they were measured."""

    asked: PrecisionAsked
    taken: Precision
    milliseconds: dict[Precision, float]

    def __str__(self) -> str:
        """For a log: what was taken and why."""
        if not self.milliseconds:
            return f"{self.taken}, as asked for"
        figures = ", ".join(f"{name} {spent:.2f}" for name, spent in self.milliseconds.items())
        return f"{self.taken} (asked for: {self.asked}; milliseconds of a layer: {figures})"


def settle(
    asked: PrecisionAsked, device: str, *, training: bool = False, forced: bool = False, force_with: str = ""
) -> Settled:
    """Return the precision to take on ``device``; fp32 and what is forced are taken unmeasured.

    Args:
        asked: ``auto`` takes bf16 where it is faster than fp32. It never takes int8, whose loss each artifact has to be
            measured for.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        training: mixed precision, forward and backward; else a forward pass as the service makes it.
        forced: take what was asked for, however slow.
        force_with: what the message of a refusal says to do to force it.

    Raises:
        PrecisionError: what was asked for is slower than fp32 here.
    """
    if asked == "fp32" or (forced and asked != "auto"):
        return Settled(asked, asked, {})
    other: Precision = "int8" if asked == "int8" else "bf16"
    spent = measure(device, training, other)
    if asked == "auto":
        return Settled(asked, other if spent[other] * MUCH < spent["fp32"] else "fp32", spent)
    if spent[other] > MUCH * spent["fp32"]:
        raise PrecisionError(
            f"precision {other} is slower than fp32 here: a layer takes {spent[other]:.2f} ms in {other} and "
            f"{spent['fp32']:.2f} ms in fp32 on {device}; take fp32 or auto" + (f", or {force_with}" * bool(force_with))
        )
    return Settled(asked, other, spent)


@cache
def measure(device: str, training: bool, other: Precision) -> dict[Precision, float]:
    """Milliseconds of one layer in fp32 and in ``other``: the least of a few rounds in which they take turns.

    Raises:
        PrecisionError: ``other`` cannot be computed here.
    """
    kind = torch.device(device).type
    positions, width, inner = SIZES[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.ModuleList([nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)]).to(device)
        states_PH = torch.randn(positions, width).to(device)
    step = _training_step if training else _forward
    steps: dict[Precision, Callable[[], None]] = {
        name: step(copy.deepcopy(layer), states_PH, name) for name in ("fp32", other)
    }
    least = dict.fromkeys(steps, float("inf"))
    began = time.perf_counter()
    for number in range(1 + ROUNDS):
        if number > LEAST_ROUNDS and time.perf_counter() - began > BUDGET_S:
            break
        for name, run in steps.items():
            spent = _timed(run, kind)
            if number:  # the first prepares
                least[name] = min(least[name], spent)
    return {name: 1000 * spent for name, spent in least.items()}


def _forward(layer: nn.ModuleList, states_PH: Tensor, precision: Precision) -> Callable[[], None]:
    """A forward pass of the layer as an artifact is loaded and run by the service."""
    layer.requires_grad_(False)
    if precision == "int8":
        quantise(layer)
    if precision == "bf16":
        prepack(layer.to(torch.bfloat16))
        states_PH = states_PH.to(torch.bfloat16)
    gate, up, down = layer

    @torch.inference_mode()
    def run() -> None:
        read = read_once(gate, states_PH)
        added(down, gated(gate, _SILU, up, read), states_PH)

    return run


def _training_step(layer: nn.ModuleList, states_PH: Tensor, precision: Precision) -> Callable[[], None]:
    """Forward and backward of the layer in mixed precision."""
    gate, up, down = layer

    def run() -> None:
        with torch.autocast(states_PH.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = down(_SILU(gate(states_PH)) * up(states_PH)) + states_PH
        out.float().square().mean().backward()
        layer.zero_grad()

    return run


_SILU = nn.SiLU()


def _timed(run: Callable[[], None], kind: str) -> float:
    if kind == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
