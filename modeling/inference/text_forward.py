"""The forward of a causal body over many short texts of which only the last states are wanted.

Against the body itself, with the same result up to rounding (and it is compared with it before it is used):

- texts are a tree of tokens: a beginning that several texts share is computed once, since a causal state depends on
  nothing behind it;
- positions stand one after the other without padding; only attention, a few percent of the work, sees padded rows;
- in the last layer only the last position of a text is computed, and no head at all;
- the weights are a copy in the precision and the layout that products are fastest in.

Shape legend: B texts, T tokens of the longest, P nodes of the tree, N texts of a catalog, H width, A heads, D width of
a head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.backbone.pretrained import weights_in
from modeling.inference.attention import attention, causal_attention
from modeling.inference.layers import DecoderLayers, RotaryLayers, layers_of, pooled_states, rms_norm
from modeling.inference.prepacked_linear import gated, prepack, prepack_where_faster

POSITIONS = 1024
"""Nodes of a pass: enough for products at full speed, few enough for memory and for texts of like beginnings."""
LARGEST_COPY = 4 << 30
"""Bytes of a copy of the weights; a larger body is read as it is."""
CHECKED_TEXTS = 8
TOLERANCE = 2e-4
"""Largest distance of a state in fp32 from the body's own, as a share of its length."""
HALF_TOLERANCE = 5e-2
"""The same in bf16, of the median: a model may read single texts otherwise when anything is rounded."""

Text = Sequence[int]


class TextForward:
    """Reads texts with one body, on a processor.

    Args:
        body: a copy of its own, its weights final.
        stack: the steps of its layers.
    """

    def __init__(self, body: nn.Module, stack: DecoderLayers) -> None:
        self._words = cast(Any, body).get_input_embeddings()
        self._stack = stack

    @classmethod
    def of(
        cls, body: nn.Module, texts: Sequence[Text], dtype: torch.dtype = torch.float32
    ) -> tuple[TextForward | None, str]:
        """The forward of a copy of ``body``, or None and why there is none.

        Args:
            body: causal, in fp32, without its head and without any adapter.
            texts: of which a few are read both ways.
            dtype: to compute in, fp32 or bf16.
        """
        weights = list(body.parameters())
        if any(weight.device.type != "cpu" for weight in weights):
            return None, "it is for processors"
        if sum(weight.numel() for weight in weights) * dtype.itemsize > LARGEST_COPY:
            return None, f"a copy of the weights would take more than {LARGEST_COPY >> 30} GiB"
        if not isinstance(layers_of(body), RotaryLayers):
            return None, f"the layers of {type(body).__name__} are not known to it"
        twin = weights_in(copy.deepcopy(body).requires_grad_(False).eval(), dtype)
        if exact := dtype == torch.float32:
            prepack_where_faster(twin)
        else:
            prepack(twin)
        fast = cls(twin, RotaryLayers(twin) if exact else _ExactResidual(twin))
        differences = fast.differences(body, sorted(texts, key=len, reverse=True)[:: -(-len(texts) // CHECKED_TEXTS)])
        difference = float(differences.max() if exact else np.median(differences))
        if not difference <= (TOLERANCE if exact else HALF_TOLERANCE):
            return None, f"its states differ by {difference:.2g} of their length from those of the body"
        return fast, ""

    @torch.inference_mode()
    def differences(self, body: nn.Module, texts: Sequence[Text]) -> NDArray[np.float64]:
        """Distances [B] of states from the body's own, which reads texts one by one, as shares of their length."""
        ids = [torch.tensor([list(text)]) for text in texts]
        expected_BH = torch.cat([body(input_ids=ids_1T, use_cache=False).last_hidden_state[:, -1] for ids_1T in ids])
        distances_B = (self(texts) - expected_BH).norm(dim=-1) / expected_BH.norm(dim=-1)
        return cast("NDArray[np.float64]", distances_B.double().numpy())

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Text]) -> Tensor:
        """Last states [B, H] of texts, none of them empty, in fp32; those that begin alike had better be together."""
        tree, last = _Tree(texts), self._stack.layers - 1

        def attend(layer: int, queries_PAD: Tensor, keys_PAD: Tensor, values_PAD: Tensor) -> Tensor:
            keys_BATD, values_BATD = (tree.rows(states_PAD) for states_PAD in (keys_PAD, values_PAD))
            if layer == last:  # one query a text
                mixed_BA1D = attention(queries_PAD[:, :, None], keys_BATD, values_BATD, attn_mask=tree.valid_B11T)
                return mixed_BA1D[:, :, 0]
            return tree.nodes(causal_attention(tree.rows(queries_PAD), keys_BATD, values_BATD))

        embeds_PH = self._words(tree.ids_P)
        return pooled_states(self._stack, embeds_PH, tree.places_P, tree.last_B, attend).float()

    def read(
        self, texts: Sequence[Text], *, progress: Callable[[int], object] = lambda done: None
    ) -> NDArray[np.float32]:
        """Last states [N, H] of the texts of a catalog, in their order."""
        found: list[NDArray[np.float32]] = []
        order = sorted(range(len(texts)), key=lambda number: tuple(texts[number]))
        for numbers in _passes(texts, order):
            found.append(self([texts[number] for number in numbers]).numpy())
            progress(len(numbers))
        states_NH = np.empty((len(texts), found[0].shape[1]), np.float32)
        states_NH[order] = np.concatenate(found)
        return states_NH


class _ExactResidual(RotaryLayers):
    """Layers with bf16 weights and the sums between layers in fp32: a decoder's first positions have elements of some
    thousands, beside which what a layer adds is lost in bf16. Half the rounding error, at no cost.
    """

    def begin(self, embeds_PH: Tensor, places_P: Tensor) -> Tensor:
        return embeds_PH.float()

    def _normal(self, layer: int, states_PH: Tensor) -> Any:
        return rms_norm(self._body.layers[layer].input_layernorm, states_PH).bfloat16()

    def finish(self, layer: int, states_PH: Tensor, mixed_PAD: Tensor) -> Tensor:
        block = self._body.layers[layer]
        states_PH = states_PH + cast(Tensor, block.self_attn.o_proj(mixed_PAD.reshape(len(states_PH), -1)))
        feed, normal_PH = block.mlp, rms_norm(block.post_attention_layernorm, states_PH).bfloat16()
        inner_PF = gated(feed.gate_proj, feed.act_fn, feed.up_proj, normal_PH)
        return states_PH + cast(Tensor, feed.down_proj(inner_PF))


class _Tree:
    """The distinct beginnings of a few texts, each a node: its last token, whose states depend on its path alone.

    Attributes:
        ids_P, places_P: token of a node, and its position in every text that it is in.
        last_B: the node of a text's last token.
        valid_B11T: where a row holds a token.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        known: dict[tuple[int, int], int] = {}  # (node before, token) to node
        ids: list[int] = []
        places: list[int] = []
        first: list[int] = []  # place of a node in the rows, flat
        longest = max(map(len, texts))
        nodes_BT = np.zeros((len(texts), longest), np.int64)  # what stands in the padding is never looked at
        for row, text in enumerate(texts):
            node = -1
            for place, token in enumerate(text):
                step = (node, token)
                if step not in known:
                    known[step] = len(ids)
                    ids.append(token)
                    places.append(place)
                    first.append(row * longest + place)
                node = nodes_BT[row, place] = known[step]
        lengths_B = np.array(list(map(len, texts)))
        self.ids_P, self.places_P, self._first_P = map(torch.tensor, (ids, places, first))
        self._nodes_BT = torch.from_numpy(nodes_BT)
        self.last_B = self._nodes_BT[torch.arange(len(texts)), torch.from_numpy(lengths_B - 1)]
        self.valid_B11T = torch.from_numpy(np.arange(longest) < lengths_B[:, None])[:, None, None]

    def rows(self, states_PAD: Tensor) -> Tensor:
        """[P, A, D] to [B, A, T, D]: the states along every text."""
        return states_PAD[self._nodes_BT].transpose(1, 2)

    def nodes(self, states_BATD: Tensor) -> Tensor:
        """[B, A, T, D] to [P, A, D]: those of the first text that a node is in; in the others they are the same."""
        return states_BATD.transpose(1, 2).flatten(0, 1)[self._first_P]


def _passes(texts: Sequence[Text], order: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts that are read together, about `POSITIONS` nodes each."""
    numbers: list[int] = []
    before: Text = ()
    nodes = 0
    for number in order:
        text = texts[number]
        new = len(text) - _common(before, text)
        if numbers and nodes + new > POSITIONS:
            yield numbers
            numbers, nodes, new = [], 0, len(text)
        numbers.append(number)
        nodes, before = nodes + new, text
    yield numbers


def _common(one: Text, other: Text) -> int:
    """Tokens that two texts begin with."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
