"""The layers of a backbone taken apart into their steps: what each position's keys and values are, how a query mixes
them, and what the layer makes of the result.

A backbone as `transformers` has it runs every layer at every position. Whoever needs the last layer at one position
only, or wants positions without padding, has to run the steps one by one; these classes name them for the families of
layers that we know. They hold no weights: every step calls the backbone's own modules. Which class fits a backbone is
decided by its type, and `modeling.inference.encoder_forward` compares the result with the backbone itself before it
is used.

Shape legend: P positions of all rows without padding, H width, A heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.backbone.transformer import OwnTransformer
from modeling.inference.fused_ops import fused_ops_for
from modeling.inference.int8_linear import read_once
from modeling.inference.prepacked_linear import added, all_filled, blocks_of, filled, gated, multiple_of


class DecoderLayers(Protocol):
    """A backbone's steps."""

    layers: int
    heads: int
    multiple: int
    """Numbers of positions that its maps should be given are multiples of this; see
    `modeling.inference.prepacked_linear`.
    """

    def begin(self, embeds_PH: Tensor, places_P: Tensor) -> Tensor:
        """Input of the first layer; ``places_P`` are positions in their rows, from 0."""
        ...

    def turns(self, places_P: Tensor, like: Tensor) -> Any:
        """Rotary embeddings [P, ...] of positions, for states such as ``like``; None where a model has none."""
        ...

    def keys_values(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [P, A', D]; fewer heads than queries have are shared by groups of these."""
        ...

    def queries(self, layer: int, states_PH: Tensor, turns: Any) -> Tensor:
        """Queries [P, A, D]."""
        ...

    def mapped(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the same positions: what the two above give, at less cost."""
        ...

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        """The layer's output [P, H] from its input and what attention mixed."""
        ...

    def end(self, states_PH: Tensor) -> Tensor:
        """The normalisation after the last layer."""
        ...


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries, keys, values) to what attention mixed, [., A, D]: for every query; there is one for each position,
in the last layer for each position that is wanted."""


def pooled_states(
    stack: DecoderLayers, embeds_PH: Tensor, places_P: Tensor, wanted_B: Tensor, attend: Attend
) -> Tensor:
    """States [B, H] of some positions after all layers; in the last layer, theirs alone are computed.

    Where the stack has a ``multiple``, maps are given blocks of positions, and empty ones fill the last block up to a
    number that others have too: attention does not see them.
    """
    count, wanted = len(embeds_PH), len(wanted_B)
    empty, unwanted = (filled(each, stack.multiple) - each for each in (count, wanted))
    if empty:
        embeds_PH, places_P = F.pad(embeds_PH, (0, 0, 0, empty)), F.pad(places_P, (0, empty))
    states_PH = stack.begin(embeds_PH, places_P)
    blocks, last = blocks_of(len(states_PH), stack.multiple), stack.layers - 1
    turns = stack.turns(places_P, states_PH)
    parts = [(block, _turns_at(turns, block)) for block in blocks]
    for layer in range(last):
        mapped = _joined([stack.mapped(layer, states_PH[block], angles) for block, angles in parts])
        mixed_PAD = _with_empty(attend(layer, *(states[:count] for states in mapped)), empty)
        finished = [(stack.finish(layer, states_PH[block], mixed_PAD[block]),) for block in blocks]
        (states_PH,) = _joined(finished)
    read = _joined([stack.keys_values(last, states_PH[block], angles) for block, angles in parts])
    keys_PAD, values_PAD = (states[:count] for states in read)
    wanted_B = F.pad(wanted_B, (0, unwanted)) if unwanted else wanted_B
    states_BH = states_PH[wanted_B]
    queries_BAD = stack.queries(last, states_BH, _turns_at(turns, wanted_B))
    mixed_BAD = _with_empty(attend(last, queries_BAD[:wanted], keys_PAD, values_PAD), unwanted)
    return stack.end(stack.finish(last, states_BH, mixed_BAD)[:wanted])


def _turns_at(turns: Any, positions: slice | Tensor) -> Any:
    """Rotary embeddings of some of the positions, or nothing where there are none."""
    return None if turns is None else tuple(each[positions] for each in turns)


def _joined(blocks: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Concatenate results of blocks of positions."""
    return blocks[0] if len(blocks) == 1 else tuple(torch.cat(each) for each in zip(*blocks, strict=True))


def _with_empty(mixed_PAD: Tensor, empty: int) -> Tensor:
    return F.pad(mixed_PAD, (0, 0, 0, 0, 0, empty)) if empty else mixed_PAD


@torch.inference_mode()
def meet_lengths(stack: DecoderLayers, like_H: Tensor, positions: int) -> None:
    """Give the maps of a layer every number of positions that `pooled_states` gives them up to this many, so that no
    request waits for the products of one to be prepared. Layers are alike: one does for all. Nothing where the stack
    has no ``multiple``.

    Args:
        stack: whose maps.
        like_H: the dtype, device and width of states.
        positions: of the largest batch.
    """
    if stack.multiple == 1:
        return
    for count in all_filled(positions, stack.multiple):
        states_PH = like_H.new_zeros(count, len(like_H))
        places_P = torch.zeros(count, dtype=torch.long, device=like_H.device)
        queries_PAD, *_ = stack.mapped(0, states_PH, stack.turns(places_P, states_PH))
        stack.finish(0, states_PH, queries_PAD)


def layers_of(backbone: nn.Module) -> DecoderLayers | None:
    """The steps of a backbone; None for a kind of layer that is not known here."""
    if isinstance(backbone, OwnTransformer):
        return OwnLayers(backbone)
    name = type(backbone).__name__
    config: Any = backbone.config
    windows = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    if name in ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"):
        if windows or (name == "MistralModel" and getattr(config, "sliding_window", None)):
            return None
        fused = next(backbone.parameters()).is_cuda and FusedRotaryLayers.fits(backbone)
        return FusedRotaryLayers(backbone) if fused else RotaryLayers(backbone)
    if name == "BertModel":
        return BertLayers(backbone)
    return None


class RotaryLayers:
    """Pre-normalised layers with rotary positions and a gated feed-forward: Llama, Mistral, Qwen2, Qwen3."""

    def __init__(self, backbone: Any) -> None:
        self._body = backbone
        self.layers = len(backbone.layers)
        self.multiple = multiple_of(backbone)
        self._width = int(backbone.layers[0].self_attn.head_dim)
        self.heads = int(backbone.config.num_attention_heads)

    def begin(self, embeds_PH: Tensor, places_P: Tensor) -> Tensor:
        return embeds_PH

    def turns(self, places_P: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        # of `like`, dtype and device are read; on a processor positions are turned in fp32
        cos_1PD, sin_1PD = self._body.rotary_emb(like[None] if like.is_cuda else like[None].float(), places_P[None])
        half = cos_1PD.shape[-1] // 2
        # both halves of the angles are the same: the sine of the first enters with a minus
        signed_PD = torch.cat([-sin_1PD[0, :, :half], sin_1PD[0, :, half:]], -1)
        return cos_1PD[0, :, None], signed_PD[:, None]

    def keys_values(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor]:
        return self._keys_values(layer, self._normal(layer, states_PH), turns)

    def queries(self, layer: int, states_PH: Tensor, turns: Any) -> Tensor:
        return self._queries(layer, self._normal(layer, states_PH), turns)

    def mapped(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor, Tensor]:
        normal_PH = self._normal(layer, states_PH)
        return self._queries(layer, normal_PH, turns), *self._keys_values(layer, normal_PH, turns)

    def _normal(self, layer: int, states_PH: Tensor) -> Any:
        block = self._body.layers[layer]
        return read_once(block.self_attn.q_proj, rms_norm(block.input_layernorm, states_PH))

    def _keys_values(self, layer: int, normal_PH: Any, turns: Any) -> tuple[Tensor, Tensor]:
        attention = self._body.layers[layer].self_attn
        keys_PAD = attention.k_proj(normal_PH).unflatten(-1, (-1, self._width))
        values_PAD = attention.v_proj(normal_PH).unflatten(-1, (-1, self._width))
        return _placed(keys_PAD, getattr(attention, "k_norm", None), turns), values_PAD

    def _queries(self, layer: int, normal_PH: Any, turns: Any) -> Tensor:
        attention = self._body.layers[layer].self_attn
        queries_PAD = attention.q_proj(normal_PH).unflatten(-1, (-1, self._width))
        return _placed(queries_PAD, getattr(attention, "q_norm", None), turns)

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        block = self._body.layers[layer]
        states_PH = added(block.self_attn.o_proj, mixed_PAD.reshape(len(states_PH), -1), states_PH)
        feed = block.mlp
        normal_PH = read_once(feed.gate_proj, rms_norm(block.post_attention_layernorm, states_PH))
        return added(feed.down_proj, gated(feed.gate_proj, feed.act_fn, feed.up_proj, normal_PH), states_PH)

    def end(self, states_PH: Tensor) -> Tensor:
        return rms_norm(self._body.norm, states_PH)


class FusedRotaryLayers(RotaryLayers):
    """The same on a GPU, where a small kernel costs as much as its launch: maps of one input are one product, what
    stands between products is compiled to few kernels, and residuals are added by the products.

    The joint weights take no memory of their own: the backbone's become views of them.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        for block in backbone.layers:
            for maps in _joint_maps(block):
                _join(maps)
        self._pieces = fused_ops_for(next(backbone.parameters()).device)

    @staticmethod
    def fits(backbone: Any) -> bool:
        """Whether no map has a bias of its own (those of Qwen 2 have)."""
        maps = [
            each
            for block in backbone.layers
            for maps in (*_joint_maps(block), [block.self_attn.o_proj, block.mlp.down_proj])
            for each in maps
        ]
        return all(type(each) is nn.Linear and each.bias is None for each in maps)

    def mapped(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor, Tensor]:
        block = self._body.layers[layer]
        attention, (given, _) = block.self_attn, _joint_maps(block)
        joint_PAD = F.linear(self._normal(layer, states_PH), _joint(given)).view(len(states_PH), -1, self._width)
        norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        weights = [None if norm is None else norm.weight for norm in norms]
        epsilon = norms[0].variance_epsilon if norms[0] is not None else 0.0
        shared = attention.k_proj.out_features // self._width
        found: tuple[Tensor, Tensor, Tensor] = self._pieces.turned(
            joint_PAD, self.heads, shared, weights[0], weights[1], epsilon, *turns
        )
        return found

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        block = self._body.layers[layer]
        states_PH = torch.addmm(states_PH, mixed_PAD.reshape(len(states_PH), -1), block.self_attn.o_proj.weight.T)
        normal_PH = rms_norm(block.post_attention_layernorm, states_PH)
        _, given = _joint_maps(block)
        inner_PF = self._pieces.gated(F.linear(normal_PH, _joint(given)), block.mlp.act_fn)
        return states_PH.addmm_(inner_PF, block.mlp.down_proj.weight.T)


class BertLayers:
    """Post-normalised layers with learned positions: BERT, read as a causal decoder."""

    def __init__(self, backbone: Any) -> None:
        self._body = backbone
        self.layers, self.multiple = len(backbone.encoder.layer), multiple_of(backbone)
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
        heads = (self.heads, -1)
        return inner.key(states_PH).unflatten(-1, heads), inner.value(states_PH).unflatten(-1, heads)

    def queries(self, layer: int, states_PH: Tensor, turns: Any) -> Tensor:
        found: Tensor = self._body.encoder.layer[layer].attention.self.query(states_PH).unflatten(-1, (self.heads, -1))
        return found

    def mapped(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor, Tensor]:
        read = read_once(self._body.encoder.layer[layer].attention.self.query, states_PH)
        return self.queries(layer, read, turns), *self.keys_values(layer, read, turns)

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        block = self._body.encoder.layer[layer]
        added = block.attention.output
        states_PH = added.LayerNorm(added.dense(mixed_PAD.reshape(len(states_PH), -1)) + states_PH)
        inner_PF = block.intermediate.intermediate_act_fn(block.intermediate.dense(states_PH))
        out: Tensor = block.output.LayerNorm(block.output.dense(inner_PF) + states_PH)
        return out

    def end(self, states_PH: Tensor) -> Tensor:
        return states_PH


class OwnLayers:
    """The small transformer of the id models."""

    def __init__(self, backbone: OwnTransformer) -> None:
        self._body: Any = backbone
        self.layers, self.multiple = len(backbone.blocks), 1
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

    def mapped(self, layer: int, states_PH: Tensor, turns: Any) -> tuple[Tensor, Tensor, Tensor]:
        found = self._mapped(layer, states_PH, slice(None)).view(len(states_PH), 3, self.heads, -1)
        return found[:, 0], found[:, 1], found[:, 2]

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        block = self._body.blocks[layer]
        out: Tensor = block.add_feed_forward(block.add_attention(states_PH, mixed_PAD.reshape(len(states_PH), -1)))
        return out

    def end(self, states_PH: Tensor) -> Tensor:
        out: Tensor = self._body.norm(states_PH)
        return out

    def _mapped(self, layer: int, states_PH: Tensor, part: slice) -> Tensor:
        block = self._body.blocks[layer]
        joint = block.query_key_value
        return F.linear(block.attention_norm(states_PH), joint.weight[part], joint.bias[part])


def _joint_maps(block: Any) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """Maps of one input: queries, keys and values; gate and what it gates."""
    attention, feed = block.self_attn, block.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj], [feed.gate_proj, feed.up_proj]


def _join(maps: list[nn.Linear]) -> None:
    """Put the weights of maps of one input one after the other in memory."""
    if _adjacent(maps):
        return
    joint = torch.cat([each.weight.data for each in maps])
    for each, part in zip(maps, joint.split([each.out_features for each in maps]), strict=True):
        each.weight.data = part


def _adjacent(maps: list[nn.Linear]) -> bool:
    weights = [each.weight for each in maps]
    ends = [weight.data_ptr() + weight.nbytes for weight in weights]
    return len({weight.untyped_storage().data_ptr() for weight in weights}) == 1 and all(
        weight.data_ptr() == end for weight, end in zip(weights[1:], ends, strict=False)
    )


def _joint(maps: list[nn.Linear]) -> Tensor:
    """The weights of maps that stand one after the other, as one matrix; a copy where they no longer do (one of them
    was replaced by an equal one of another model)."""
    if not _adjacent(maps):
        return torch.cat([each.weight for each in maps])
    first = maps[0].weight
    return first.as_strided((sum(each.out_features for each in maps), first.shape[1]), first.stride())


def rms_norm(norm: Any, states: Tensor) -> Tensor:
    """A root-mean-square norm, computed in fp32: one pass for lengths and one a product, fewer than the library's."""
    if states.is_cuda:
        return F.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
    factor = _inverse_length(states, norm.variance_epsilon)
    # a product of two types is slow
    wide: Tensor = states * factor if states.dtype == torch.float32 else states.float().mul_(factor)
    return wide.mul_(norm.weight).to(states.dtype)


def _inverse_length(states: Tensor, epsilon: float) -> Tensor:
    """What a root-mean-square norm multiplies a row with, [..., 1], in fp32."""
    length: Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
    return length.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()


def _placed(states_PAD: Tensor, norm: Any | None, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys, fresh from their map: normalised where the layer has a norm for them, and turned by their
    positions, every pair of elements half a head apart by its angle. On a processor ``states_PAD`` is written to."""
    half, (cos_P1D, signed_P1D) = states_PAD.shape[-1] // 2, turns
    if states_PAD.is_cuda:
        normal_PAD = states_PAD if norm is None else rms_norm(norm, states_PAD)
        return torch.addcmul(normal_PAD * cos_P1D, normal_PAD.roll(half, -1), signed_P1D)
    wide_PAD = states_PAD.float()
    if norm is not None:
        wide_PAD.mul_(_inverse_length(wide_PAD, norm.variance_epsilon)).mul_(norm.weight)
    other_PAD = wide_PAD.roll(half, -1)
    return wide_PAD.mul_(cos_P1D).addcmul_(other_PAD, signed_P1D).to(states_PAD.dtype)
