"""The layers of a backbone taken apart into their steps: what each position's keys and values are, how a query mixes
them, and what the layer makes of the result.

A backbone as `transformers` has it runs every layer at every position. Whoever needs the last layer at one position
only, or wants positions without padding, has to run the steps one by one; these classes name them for the families of
layers that we know. They hold no weights: every step calls the backbone's own modules. Which class fits a backbone is
decided by its type, and `modeling.fast` compares the result with the backbone itself before it is used.

Shape legend: P positions of all rows without padding, H width, A heads, D width of a head.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.transformer import OwnTransformer


class Stack(Protocol):
    """A backbone's steps."""

    layers: int
    heads: int

    def begin(self, embeds_PH: Tensor, places_P: Tensor) -> Tensor:
        """Input of the first layer; ``places_P`` are positions in their rows, from 0."""
        ...

    def turns(self, places_P: Tensor, like: Tensor) -> Any:
        """What positions do to queries and keys (rotary embeddings), for the dtype and device of ``like``."""
        ...

    def keys_values(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [P, A', D]; fewer heads than queries have are shared by groups of these."""
        ...

    def queries(self, layer: int, states_PH: Tensor, turns: Any) -> Tensor:
        """Queries [P, A, D]."""
        ...

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        """The layer's output [P, H] from its input and what attention mixed."""
        ...

    def end(self, states_PH: Tensor) -> Tensor:
        """What stands after the last layer."""
        ...


def stack_of(backbone: nn.Module) -> Stack | None:
    """The steps of a backbone; None for a kind of layer that is not known here."""
    if isinstance(backbone, OwnTransformer):
        return OwnStack(backbone)
    name = type(backbone).__name__
    config: Any = backbone.config
    windows = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    if name in ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"):
        if windows or (name == "MistralModel" and getattr(config, "sliding_window", None)):
            return None
        return RotaryStack(backbone)
    if name == "BertModel":
        return BertStack(backbone)
    return None


class RotaryStack:
    """Pre-normalised layers with rotary positions and a gated feed-forward: Llama, Mistral, Qwen2, Qwen3."""

    def __init__(self, backbone: Any) -> None:
        self._body = backbone
        self.layers = len(backbone.layers)
        self._width = int(backbone.layers[0].self_attn.head_dim)
        self.heads = int(backbone.config.num_attention_heads)

    def begin(self, embeds_PH: Tensor, places_P: Tensor) -> Tensor:
        return embeds_PH

    def turns(self, places_P: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        cos_1PD, sin_1PD = self._body.rotary_emb(like[None], places_P[None])
        half = cos_1PD.shape[-1] // 2
        # both halves of the angles are the same: the sine of the first enters with a minus
        signed_PD = torch.cat([-sin_1PD[0, :, :half], sin_1PD[0, :, half:]], -1)
        return cos_1PD[0, :, None], signed_PD[:, None]

    def keys_values(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor]:
        block = self._body.layers[layer]
        attention, normal_PH = block.self_attn, _rms(block.input_layernorm, states_PH)
        keys_PAD = attention.k_proj(normal_PH).view(len(states_PH), -1, self._width)
        values_PAD = attention.v_proj(normal_PH).view(len(states_PH), -1, self._width)
        if hasattr(attention, "k_norm"):
            keys_PAD = _rms(attention.k_norm, keys_PAD)
        return _turned(keys_PAD, turns), values_PAD

    def queries(self, layer: int, states_PH: Tensor, turns: Any) -> Tensor:
        block = self._body.layers[layer]
        attention, normal_PH = block.self_attn, _rms(block.input_layernorm, states_PH)
        queries_PAD = attention.q_proj(normal_PH).view(len(states_PH), -1, self._width)
        if hasattr(attention, "q_norm"):
            queries_PAD = _rms(attention.q_norm, queries_PAD)
        return _turned(queries_PAD, turns)

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        block = self._body.layers[layer]
        states_PH = states_PH + block.self_attn.o_proj(mixed_PAD.reshape(len(states_PH), -1))
        feed, normal_PH = block.mlp, _rms(block.post_attention_layernorm, states_PH)
        inner_PF = feed.act_fn(feed.gate_proj(normal_PH)).mul_(feed.up_proj(normal_PH))
        out_PH: Tensor = feed.down_proj(inner_PF)
        return out_PH.add_(states_PH)

    def end(self, states_PH: Tensor) -> Tensor:
        return _rms(self._body.norm, states_PH)


class BertStack:
    """Post-normalised layers with learned positions: BERT, read as a causal decoder."""

    def __init__(self, backbone: Any) -> None:
        self._body = backbone
        self.layers = len(backbone.encoder.layer)
        self.heads = int(backbone.config.num_attention_heads)

    def begin(self, embeds_PH: Tensor, places_P: Tensor) -> Tensor:
        given = self._body.embeddings
        whole: Tensor = embeds_PH + given.token_type_embeddings.weight[0] + given.position_embeddings(places_P)
        out: Tensor = given.LayerNorm(whole)
        return out

    def turns(self, places_P: Tensor, like: Tensor) -> None:
        return None

    def keys_values(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor]:
        inner = self._body.encoder.layer[layer].attention.self
        shape = (len(states_PH), self.heads, -1)
        return inner.key(states_PH).view(shape), inner.value(states_PH).view(shape)

    def queries(self, layer: int, states_PH: Tensor, turns: Any) -> Tensor:
        found: Tensor = self._body.encoder.layer[layer].attention.self.query(states_PH)
        return found.view(len(states_PH), self.heads, -1)

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        block = self._body.encoder.layer[layer]
        added = block.attention.output
        states_PH = added.LayerNorm(added.dense(mixed_PAD.reshape(len(states_PH), -1)) + states_PH)
        inner_PF = block.intermediate.intermediate_act_fn(block.intermediate.dense(states_PH))
        out: Tensor = block.output.LayerNorm(block.output.dense(inner_PF) + states_PH)
        return out

    def end(self, states_PH: Tensor) -> Tensor:
        return states_PH


class OwnStack:
    """The small transformer of the id models."""

    def __init__(self, backbone: OwnTransformer) -> None:
        self._body: Any = backbone
        self.layers = len(backbone.blocks)
        first: Any = backbone.blocks[0]
        self.heads = int(first.heads)

    def begin(self, embeds_PH: Tensor, places_P: Tensor) -> Tensor:
        out: Tensor = embeds_PH + self._body.positions(places_P)
        return out

    def turns(self, places_P: Tensor, like: Tensor) -> None:
        return None

    def keys_values(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor]:
        found = self._mapped(layer, states_PH, slice(states_PH.shape[-1], None)).view(len(states_PH), 2, self.heads, -1)
        return found[:, 0], found[:, 1]

    def queries(self, layer: int, states_PH: Tensor, turns: Any) -> Tensor:
        return self._mapped(layer, states_PH, slice(states_PH.shape[-1])).view(len(states_PH), self.heads, -1)

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        block = self._body.blocks[layer]
        states_PH = states_PH + block.attention_output(mixed_PAD.reshape(len(states_PH), -1))
        out: Tensor = states_PH + block.contract(F.gelu(block.expand(block.feed_forward_norm(states_PH))))
        return out

    def end(self, states_PH: Tensor) -> Tensor:
        out: Tensor = self._body.norm(states_PH)
        return out

    def _mapped(self, layer: int, states_PH: Tensor, part: slice) -> Tensor:
        block = self._body.blocks[layer]
        joint = block.query_key_value
        return F.linear(block.attention_norm(states_PH), joint.weight[part], joint.bias[part])


def _rms(norm: Any, states: Tensor) -> Tensor:
    """A root-mean-square norm. One pass for the lengths and one for the product; the library's takes four on a CPU."""
    if states.is_cuda:
        return F.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
    factor = length.square_().div_(states.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
    out: Tensor = (states * factor).mul_(norm.weight).to(states.dtype)
    return out


def _turned(states_PAD: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: every pair of elements half a head apart is turned by its angle."""
    cos_P1D, signed_P1D = turns
    return torch.addcmul(states_PAD * cos_P1D, states_PAD.roll(states_PAD.shape[-1] // 2, -1), signed_P1D)
