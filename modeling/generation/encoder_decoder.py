"""Beam search with an encoder-decoder model (T5, Raffel et al. 2020).

The encoder reads a prompt once, in both directions, and what the decoder's cross-attention wants of it (keys and
values of every layer) is computed once: all beams of a prompt read the same, without copies. What the beams write is
kept as for a decoder alone (`modeling/generation/kv_cache.py`), so that the search itself is that of
`modeling/generation/beam_search.py`.

`transformers` runs the encoder. The decoder is run layer by layer with its own modules, because its relative positions
are counted by place in the cache there, and beams of one step stand side by side in ours.

Shape legend: B prompts, T new tokens of each, S entries of the cache, R positions of the prompts, A heads, D width of a
head, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.generation.api import Turn
from modeling.generation.beam_search import BeamSearch, Sees
from modeling.transformers_private import relative_position_buckets


@dataclass
class EncoderMemory:
    """Keys and values of the prompts for one layer of the decoder; nothing is added to them.

    Attributes:
        keys_BARD, values_BARD: of the encoder's states.
        mask_B11R: which of them are no padding; None: all.
    """

    keys_BARD: Tensor
    values_BARD: Tensor
    mask_B11R: Tensor | None

    def keep_rows(self, rows_R: Tensor) -> None:
        """Go on with these rows of the batch only."""
        self.keys_BARD, self.values_BARD = self.keys_BARD[rows_R], self.values_BARD[rows_R]
        self.mask_B11R = None if self.mask_B11R is None else self.mask_B11R[rows_R]


class EncoderDecoderBeamSearch(BeamSearch):
    """Beam search over a T5 model; prompts are what its encoder reads.

    Args:
        model: with its head; `T5ForConditionalGeneration`.
        end_tokens: ids that end a text; none where texts have one length, which ``max_new_tokens`` then is.
    """

    def __init__(self, model: nn.Module, *, end_tokens: Sequence[int]) -> None:
        given = cast(Any, model)
        super().__init__(given.get_decoder(), given.get_output_embeddings().weight, end_tokens=end_tokens)
        config = given.config
        self._encoder = given.get_encoder().eval()
        self._blocks = cast(Any, self.body).block
        self._heads, self._start = int(config.num_heads), int(config.decoder_start_token_id)
        self._scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0

    def logits(self, states_PH: Tensor, tokens_A: Tensor | None = None) -> Tensor:
        """See `BeamSearch.logits`; T5 scales states where head and embeddings are one."""
        return super().logits(states_PH * self._scale, tokens_A)

    def begin(
        self, prompts: Sequence[Sequence[int]], turn: Turn, pass_positions: int | None
    ) -> tuple[Sequence[Sequence[int]], list[Any]]:
        """Read the prompts, several of them in one pass; what is written continues the start token."""
        lengths_B = torch.tensor([len(prompt) for prompt in prompts])
        mask_BR = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        ids_BR = torch.zeros(mask_BR.shape, dtype=torch.long)
        ids_BR[mask_BR] = torch.tensor([token for prompt in prompts for token in prompt])
        rows, longest = ids_BR.shape
        size = rows if pass_positions is None else max(1, pass_positions // longest)
        even = bool(mask_BR.all())
        ids_BR, mask_BR = ids_BR.to(self.device), mask_BR.to(self.device)
        passes = []
        for start in range(0, rows, size):
            part = slice(start, start + size)
            with turn():
                passes.append(self._read(ids_BR[part], None if even else mask_BR[part]))
        mask_B11R = None if even else mask_BR[:, None, None]
        memory = [
            EncoderMemory(torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]), mask_B11R)
            for layer in zip(*passes, strict=True)
        ]
        return [(self._start,)] * rows, memory

    def _read(self, ids_BR: Tensor, mask_BR: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [B, A, R, D] of every layer of the decoder."""
        states_BRH = self._encoder(input_ids=ids_BR, attention_mask=mask_BR).last_hidden_state
        crosses = [block.layer[1].EncDecAttention for block in self._blocks]
        return [(self._split(cross.k(states_BRH)), self._split(cross.v(states_BRH))) for cross in crosses]

    def _run_plain(self, embeds_BTH: Tensor, cache: Any, sees: Sees | None) -> Tensor:
        """The decoder, layer by layer. All rows are at the same positions, since each began with one token."""
        states_BTH = embeds_BTH
        bias = self._bias(int(cache.get_seq_length()), embeds_BTH.shape[1], sees)
        for number, block in enumerate(self._blocks):
            own, cross, feed = block.layer
            memory = cache.layers[len(self._blocks) + number]
            normal_BTH = own.layer_norm(states_BTH)
            attention = own.SelfAttention
            keys, values = cache.layers[number].update(
                self._split(attention.k(normal_BTH)), self._split(attention.v(normal_BTH))
            )
            states_BTH = states_BTH + self._mix(attention, normal_BTH, keys, values, bias)
            attention, normal_BTH = cross.EncDecAttention, cross.layer_norm(states_BTH)
            mixed_BTH = self._mix(attention, normal_BTH, memory.keys_BARD, memory.values_BARD, memory.mask_B11R)
            states_BTH = feed(states_BTH + mixed_BTH)
        return cast(Tensor, cast(Any, self.body).final_layer_norm(states_BTH))

    def _bias(self, begun: int, new: int, sees: Sees | None) -> Tensor:
        """Bias of the scores of self-attention, [1 or B, A, T, S]: relative positions, and the mask."""
        if sees is None:
            places_S = torch.arange(begun + new, device=self.device)
            positions_T = places_S[begun:]
            mask = places_S <= positions_T[:, None]
        else:
            places_S, positions_T, mask = sees.places_BS[0], sees.positions_BT[0], sees.mask_BXTS
        first = self._blocks[0].layer[0].SelfAttention
        buckets_TS = relative_position_buckets(first, places_S - positions_T[:, None])
        bias_ATS = first.relative_attention_bias(buckets_TS).permute(2, 0, 1)
        return cast(Tensor, bias_ATS[None].masked_fill(~mask, -torch.inf))

    def _mix(self, attention: Any, normal_BTH: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of new tokens, [B, T, H]; T5 does not scale its scores."""
        queries_BATD = self._split(attention.q(normal_BTH))
        mixed_BATD = F.scaled_dot_product_attention(queries_BATD, keys, values, attn_mask=mask, scale=1.0)
        return cast(Tensor, attention.o(mixed_BATD.transpose(1, 2).flatten(2)))

    def _split(self, mapped_BTX: Tensor) -> Tensor:
        """[B, T, A * D] to [B, A, T, D]."""
        rows, length = mapped_BTX.shape[:2]
        return mapped_BTX.view(rows, length, self._heads, -1).transpose(1, 2)
