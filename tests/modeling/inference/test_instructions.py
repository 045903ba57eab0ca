"""Every kind of processor, on this one: oneDNN's environment variable hides the instructions that others lack."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.linux
ROOT = Path(__file__).resolve().parents[3]
MEASURE = """
import json, torch
from torch import nn
from modeling.inference.prepacked_linear import added, gated, prepack
from modeling.inference.int8_linear import PrecisionError, quantise, exact_products
from modeling.inference.precision_choice import settle

def far(found, exact):
    return float((found.float() - exact).norm() / exact.norm())

def layer():
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(96, 160), nn.Linear(96, 160), nn.Linear(160, 96)]).requires_grad_(False)

def through(maps, states):
    gate, up, down = maps
    return added(down, gated(gate, nn.SiLU(), up, states), states)

states, out = torch.randn(37, 96, generator=torch.Generator().manual_seed(1)), {}
with torch.inference_mode():
    exact = through(layer(), states)
    half = layer().to(torch.bfloat16)
    out["blocks"] = prepack(half)
    out["bf16"] = far(through(half, states.to(torch.bfloat16)), exact)
    eighth = layer()
    out["exact"] = exact_products()
    try:
        quantise(eighth)
        out["int8"] = far(through(eighth, states), exact)
    except PrecisionError as error:
        out["refused"] = str(error)
def chosen(asked, training):
    try:
        return settle(asked, "cpu", training=training).taken
    except PrecisionError as error:
        return str(error)

for training in (False, True):
    out[f"training {training}"] = [chosen(asked, training) for asked in ("auto", "bf16", "int8")[: 3 - training]]
print(json.dumps(out))
"""


def hidden(instructions: str, *command: str) -> subprocess.CompletedProcess[str]:
    more = {"ONEDNN_MAX_CPU_ISA": instructions}
    if instructions == "AVX2":
        more["ATEN_CPU_CAPABILITY"] = "avx2"
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, **more}, cwd=ROOT, capture_output=True, text=True, timeout=250
    )


@pytest.mark.parametrize(
    "instructions",
    [
        *("AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "DEFAULT"),
        pytest.param("AVX512_CORE_AMX", marks=pytest.mark.amx),
    ],
)
def test_a_layer_is_right_or_refused_whatever_the_processor_has(instructions: str) -> None:
    done = hidden(instructions, "-c", MEASURE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bf16"] < 0.02
    assert found["exact"] == ("refused" not in found)
    assert found["int8"] < 0.03 if found["exact"] else "use fp32" in found["refused"]
    if instructions == "AVX2":
        assert found["blocks"] == 0 and not found["exact"]
        for training in (False, True):  # multiplied number by number: five to ten times slower
            auto, bf16, *_ = found[f"training {training}"]
            assert auto == "fp32" and "bf16 is slower than fp32 here" in bf16


@pytest.mark.slow
def test_all_tests_of_fewer_bits_pass_on_a_processor_without_them() -> None:
    """With skips as failures; what needs the instructions is left out, and the summary says how many."""
    files = [
        f"tests/modeling/inference/{name}.py" for name in ("test_blocked", "test_precision", "test_precision_choice")
    ]
    done = hidden("AVX2", "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout[-3000:]
    counts = dict(
        re.findall(r"left out: (\d+) tests? needs? a processor with (products in bf16|exact products)", done.stdout)
    )
    assert len(counts) == 2 and "skipped" not in done.stdout.splitlines()[-1]
