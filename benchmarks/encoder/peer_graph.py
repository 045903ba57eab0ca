"""The fast forward's body as a graph for other runtimes: input vectors in, pooled states out, no lm_head.

Export and runtimes need the extra `peers-cpu`, which no test installs: `PaddedBody`, from which the graph is made, is
tested against the encoder, and `benchmarks.encoder.peers` compares every runtime's vectors before it times them.

The graph is made of the same steps as `modeling.inference.encoder_forward` (the last layer asks at one position of a
row only), over rows that are padded on the right: what a runtime would be given by somebody who serves with it.

Shape legend: B rows, T positions of the longest, H width, P = B * T, A heads, A' heads of keys and values, D width of
a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.encoder.prompt import Prompt
from modeling.inference.attention import attention
from modeling.inference.encoder_forward import EncoderForward
from modeling.inference.layers import layers_of, pooled_states

OPSET = 18
INPUTS = ("embeds", "last")
PRODUCTS = ("MatMul", "Gemm")

Inputs = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Vectors [B, T, H] of rows padded on the right, and the last position of each, [B]."""
Run = Callable[[Inputs], NDArray[np.float32]]
"""States [B, H] of a batch."""


class PaddedBody(nn.Module):
    """A backbone over padded rows.

    Args:
        backbone: of a family that `layers_of` knows, in fp32, its weights as they were trained.

    Raises:
        ValueError: the family is not known.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        stack = layers_of(backbone)
        if stack is None:
            raise ValueError(f"the layers of {type(backbone).__name__} are not known: there is no graph of them")
        self.backbone, self._stack = backbone, stack

    def forward(self, embeds_BTH: Tensor, last_B: Tensor) -> Tensor:
        """States [B, H] at the positions ``last_B`` int64 [B] of every row; what follows them is not read."""
        rows, longest, width = embeds_BTH.shape
        places_T = torch.arange(longest, device=embeds_BTH.device)
        places_P = places_T.expand(rows, longest).reshape(-1)
        wanted_B = last_B + longest * torch.arange(rows, device=embeds_BTH.device)
        seen_B11T = (places_T[None] <= last_B[:, None])[:, None, None]

        def padded(states_PAD: Tensor) -> Tensor:
            return states_PAD.reshape(rows, longest, *states_PAD.shape[1:]).transpose(1, 2)

        def attend(layer: int, queries: Tensor, keys_PAD: Tensor, values_PAD: Tensor) -> Tensor:
            keys_BATD, values_BATD = padded(keys_PAD), padded(values_PAD)
            if layer == self._stack.layers - 1:
                return attention(queries[:, :, None], keys_BATD, values_BATD, attn_mask=seen_B11T)[:, :, 0]
            mixed_BATD = attention(padded(queries), keys_BATD, values_BATD, is_causal=True)
            return mixed_BATD.transpose(1, 2).reshape(rows * longest, *queries.shape[1:])

        return pooled_states(self._stack, embeds_BTH.reshape(-1, width), places_P, wanted_B, attend)


def padded_inputs(fast: EncoderForward, prompts: Sequence[Prompt]) -> Inputs:
    """Input of `PaddedBody` for these prompts, the instruction included."""
    embeds_PH, _ = fast.embed(prompts, [0] * len(prompts))
    lengths = [prompt.length for prompt in prompts]
    rows = torch.nn.utils.rnn.pad_sequence(list(embeds_PH.float().split(lengths)), batch_first=True)
    return rows.numpy(), np.asarray(lengths, np.int64) - 1


def export_onnx(body: PaddedBody, hidden_size: int, file: Path) -> None:
    """Write the graph as ONNX, free in rows and positions; needs the packages of the extra `peers-cpu`."""
    example = (torch.zeros(2, 5, hidden_size), torch.tensor([4, 3]))
    rows = torch.export.Dim("rows")
    free: Any = ({0: rows, 1: torch.export.Dim("positions")}, {0: rows})
    with torch.no_grad():
        torch.onnx.export(
            body.eval(), example, file, input_names=[*INPUTS], output_names=["states"], dynamo=True,
            dynamic_shapes=free, opset_version=OPSET, external_data=False,
        )  # fmt: skip


def quantise_dynamic(file: Path, out: Path) -> None:
    """Weights to eight bits, a scale for each output; inputs of products are rounded when they are met."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(file, out, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=[*PRODUCTS])


def quantise_static(file: Path, out: Path, examples: Iterable[Inputs]) -> None:
    """The same, with scales of inputs that were chosen beforehand on example batches (least and largest value)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Examples(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._left = iter(examples)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self._left, None)
            return None if found is None else dict(zip(INPUTS, found, strict=True))

    quantize_static(
        file, out, Examples(), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8, per_channel=True, op_types_to_quantize=[*PRODUCTS],
    )  # fmt: skip


def onnx_runtime(file: Path, threads: int) -> Run:
    """The graph in ONNX Runtime, on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, dict(zip(INPUTS, inputs, strict=True)))[0]
        return found

    return run


def openvino(file: Path, threads: int, precision: str) -> Run:
    """The graph in OpenVINO, on the processor; ``precision`` ("f32", "bf16") of what is not eight-bit in it."""
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    compiled = core.compile_model(core.read_model(str(file)), "CPU", options)
    return lambda inputs: np.asarray(compiled(dict(zip(INPUTS, inputs, strict=True)))[0], np.float32)
