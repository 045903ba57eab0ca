"""The language model behind a beam search: reads a prompt once, and the newest token of every beam at each step.

Shape legend: B prompts, T new tokens, S entries of the cache, P tokens of a pass, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from modeling.generation.api import Turn
from modeling.generation.kv_cache import GrowingLayer, new_cache
from modeling.generation.token_inputs import TokenInputs
from modeling.inference.attention import attention
from modeling.inference.layers import DecoderLayers, layers_of


@dataclass(frozen=True)
class Sees:
    """Positions and mask of new tokens in attention.

    Attributes:
        positions_BT: their own positions.
        mask_BXTS: which of the S entries of the cache each may see, [B, 1, T, S], themselves included.
        places_BS: the position of each of these entries.
    """

    positions_BT: Tensor
    mask_BXTS: Tensor
    places_BS: Tensor


KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, [1, heads, T, width] each."""


class BeamDecoder:
    """A causal language model that reads prompts and continues the beams of a search.

    Args:
        body: the model without its head, called with ``input_ids`` or ``inputs_embeds``; a Hugging Face decoder.
        head_VH: the head's weights (the input embeddings where they are tied).
        end_tokens: ids that end a text.
        bias_V: the head's bias, where it has one.
        prefix: token ids that begin every prompt; their keys and values are computed once, here.
        inputs: how tokens become inputs of the model; None: by its token embeddings.
    """

    def __init__(
        self,
        body: nn.Module,
        head_VH: Tensor,
        *,
        end_tokens: Sequence[int],
        bias_V: Tensor | None = None,
        prefix: Sequence[int] = (),
        inputs: TokenInputs | None = None,
    ) -> None:
        self.body = body.eval()
        self.inputs = inputs or TokenInputs()
        self.head_VH, self.bias_V = head_VH, bias_V
        self.device = head_VH.device
        self.end_tokens = torch.tensor(sorted(set(end_tokens)), dtype=torch.long, device=self.device)
        self._config = cast(Any, body).config
        self._layers = int(self._config.num_hidden_layers)
        self._stack = layers_of(self.body)
        self.multiple = 1 if self._stack is None else self._stack.multiple
        self._words = cast(Any, body).get_input_embeddings()
        self.prefix = tuple(prefix)
        self._prefix_kv = self._read_prefix()

    @property
    def limit(self) -> int | None:
        """Most positions of prefix, prompt and text; None: any number."""
        found = getattr(self._config, "max_position_embeddings", None) or getattr(self._config, "n_positions", None)
        return cast("int | None", found)

    def logits(self, states_PH: Tensor, tokens_A: Tensor | None = None) -> Tensor:
        """Head over states, [P, V] in fp32; of some tokens only, [P, A], where they are given."""
        if tokens_A is None:
            return nn.functional.linear(states_PH, self.head_VH, self.bias_V).float()
        bias_A = None if self.bias_V is None else self.bias_V[tokens_A]
        return nn.functional.linear(states_PH, self.head_VH[tokens_A], bias_A).float()

    @torch.inference_mode()
    def _read_prefix(self) -> list[KeysValues]:
        if not self.prefix:
            return []
        cache = new_cache(self._layers, len(self.prefix))
        ids_1T = torch.tensor([self.prefix], device=self.device)
        self.run_body(ids_1T, cache, features_BT=self.inputs.features(ids_1T))
        return [(layer.keys, layer.values) for layer in cast(list[Any], cache.layers)]

    def begin(
        self, prompts: Sequence[Sequence[int]], turn: Turn, pass_positions: int | None
    ) -> tuple[Sequence[Sequence[int]], list[Any]]:
        """The prompts that the texts continue, and further layers of their cache that are not written to: here the
        prompts themselves, and none."""
        return prompts, []

    def new_cache(self, rows: int, positions: int, begin: Sequence[KeysValues] = ()) -> Any:
        """A cache with room for ``positions`` behind the prefix.

        Args:
            rows, positions: size of the cache.
            begin: keys and values, by layer, of the prefix and what is behind it already; empty: of the prefix.
        """
        cache = new_cache(self._layers, len(self.prefix) + positions)
        held = begin or self._prefix_kv
        for layer, (keys, values) in zip(cast(list[GrowingLayer], cache.layers), held, strict=False):
            layer.preset(keys, values, rows)
        return cache

    def run_body(
        self,
        ids_BT: Tensor,
        cache: Any,
        sees: Sees | None = None,
        wanted_W: Tensor | None = None,
        features_BT: Tensor | None = None,
    ) -> Tensor:
        """States of new tokens, which enter the cache.

        Args:
            ids_BT: the tokens.
            cache: keys and values of what came before.
            sees: what the tokens may look at; None: everything before them.
            wanted_W: places among the B * T tokens whose states are needed; None: all of them.
            features_BT: of the tokens, as ``inputs`` gave them.

        Returns:
            States [B, T, H], or [W, H] where places are given.
        """
        embeds_BTH = self.inputs.vectors(self._words, ids_BT, features_BT)
        if self._stack is not None:
            return self._run_stack(self._stack, embeds_BTH, cache, sees, wanted_W)
        states_BTH = self._run_plain(embeds_BTH, cache, sees)
        return states_BTH if wanted_W is None else states_BTH.flatten(0, 1)[wanted_W]

    def _run_stack(
        self, stack: DecoderLayers, embeds_BTH: Tensor, cache: Any, sees: Sees | None, wanted_W: Tensor | None
    ) -> Tensor:
        """Layer by layer, the last one only for the states that are wanted."""
        rows, length = embeds_BTH.shape[:2]
        begun = int(cache.get_seq_length())
        places_BT = torch.arange(begun, begun + length, device=embeds_BTH.device).expand(rows, -1)
        places_P = (places_BT if sees is None else sees.positions_BT).reshape(-1)
        states_PH = stack.begin(embeds_BTH.flatten(0, 1), places_P)
        turns, last = stack.turns(places_P, states_PH), stack.layers - 1
        for layer in range(stack.layers):
            new = [each.view(rows, length, *each.shape[1:]).transpose(1, 2) for each in
                   stack.keys_values(layer, states_PH, turns)]  # fmt: skip
            keys_BASD, values_BASD = cache.layers[layer].update(*new)
            if layer == last and wanted_W is not None and not len(wanted_W):
                return states_PH[:0]
            queries_PAD = stack.queries(layer, states_PH, turns)
            queries_BATD = queries_PAD.view(rows, length, *queries_PAD.shape[1:]).transpose(1, 2)
            mask = None if sees is None else sees.mask_BXTS
            causal = mask is None and length > 1
            mixed_BATD = attention(queries_BATD, keys_BASD, values_BASD, attn_mask=mask, is_causal=causal)
            mixed_PAD = mixed_BATD.transpose(1, 2).flatten(0, 1)
            if layer == last and wanted_W is not None:
                states_PH, mixed_PAD = states_PH[wanted_W], mixed_PAD[wanted_W]
            states_PH = stack.finish(layer, states_PH, mixed_PAD)
        out_PH = stack.end(states_PH)
        return out_PH if wanted_W is not None else out_PH.view(rows, length, -1)

    def _run_plain(self, embeds_BTH: Tensor, cache: Any, sees: Sees | None) -> Tensor:
        """States [B, T, H] of all new tokens, for a body without `layers_of`: by default its own forward."""
        options: dict[str, Any] = {}
        if sees is not None:
            options = {"position_ids": sees.positions_BT, "attention_mask": self._masks(sees)}
        out = self.body(inputs_embeds=embeds_BTH, past_key_values=cache, use_cache=True, **options)
        return cast(Tensor, out.last_hidden_state)

    def _masks(self, sees: Sees) -> Any:
        """One mask, or one for each kind of layer where some see a window only (Gemma 3)."""
        window, kinds = getattr(self._config, "sliding_window", None), getattr(self._config, "layer_types", None)
        if window is None or (kinds is not None and "sliding_attention" not in kinds):
            return sees.mask_BXTS
        near_BXTS = sees.mask_BXTS & (sees.positions_BT[:, None, :, None] - sees.places_BS[:, None, None] < window)
        if kinds is None:
            return near_BXTS
        return {"full_attention": sees.mask_BXTS, "sliding_attention": near_BXTS}
