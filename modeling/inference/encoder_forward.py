"""The forward of a user encoder that serves: what a request's answer does not need is not computed.

Against `UserEncoder.forward`, with the same result up to rounding (and it is compared with it before it is used):

- an item's vectors, mapped to the backbone's width, are rows of a table made once;
- the static instruction has its keys and values once, for all requests;
- positions stand one after the other without padding; only attention, a few percent of the work, sees padded rows;
- in the last layer only the position that is pooled asks, is mixed and goes through the feed-forward; the others give
  their keys and values.

Shape legend: B users, P positions of all of them, T positions of the longest, S those that are attended to (prefix and
T), H width, A heads, D width of a head, N items.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from modeling.encoder.prompt import ID, TEXT, TOKEN, Prompt
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.attention import attention, causal_attention
from modeling.inference.layers import DecoderLayers, layers_of, meet_lengths, pooled_states
from modeling.inference.prepacked_linear import prepack_where_faster
from modeling.inference.varlen import VarlenForward

LARGEST_TABLE = 256 << 20
"""Bytes; a catalog whose mapped vectors would take more is mapped request by request."""
LONG = 64
"""Mean positions of a row from which its attention is worth a kernel call of its own."""
CHECKED_ITEMS = 5
TOLERANCE = 2e-4
"""Largest difference of an element of a unit-length user vector from the plain forward's, in fp32."""
HALF_TOLERANCE = 5e-2
"""The same where numbers are rounded to fewer bits: what differs by a rounding may be rounded the other way."""


def compile_encoder(encoder: UserEncoder) -> str:
    """Let `UserEncoder.encode` use the inference-only forward from now on; the weights must be final.

    On a CPU whose products are faster with weights in blocks, the backbone's maps are replaced by such
    (`modeling.inference.prepacked_linear`), so its weights can be neither saved nor trained afterwards.

    Returns:
        An empty string, or the reason why the plain forward stays in use: an unknown kind of layer, or vectors that
        would differ.
    """
    encoder.fast, reason = EncoderForward.of(encoder)
    return reason


class EncoderForward(nn.Module):
    """Encodes prompts of one frozen encoder.

    Args:
        encoder: in evaluation mode, its weights final.
        stack: the steps of its backbone.

    Attributes:
        prefix: positions of the instruction.
        prefix_LKSAD: their keys and values.
        table_RH: item vectors as the backbone reads them; None where they would take too much memory.
        packed: how rows are read on a GPU in half precision; None elsewhere.
    """

    table_RH: Tensor | None
    prefix_LKSAD: Tensor

    def __init__(self, encoder: UserEncoder, stack: DecoderLayers) -> None:
        super().__init__()
        self._encoder = weakref.ref(encoder)  # which holds this module: neither a part of it nor kept alive by it
        self.stack = stack
        self.prefix = len(encoder.prompts.prefix)
        self.register_buffer("table_RH", self._make_table(), persistent=False)
        self.register_buffer("prefix_LKSAD", self._read_prefix(), persistent=False)
        self.packed = VarlenForward.of(self)

    @classmethod
    def of(cls, encoder: UserEncoder) -> tuple[EncoderForward | None, str]:
        """The fast form, or None and why there is none."""
        if not encoder.spec.has_network:
            return None, "no network reads the history"
        if not encoder.capabilities.packed:
            spec = encoder.spec
            return None, (
                f"it reads causal histories whose last position is pooled, with adapters merged; this is attention "
                f"{spec.backbone.attention!r}, pooling {spec.pooling.kind!r}, history {spec.history.form!r}, adapter "
                f"{spec.adapter.kind!r}"
            )
        stack = layers_of(encoder.backbone)
        if stack is None:
            return None, f"the layers of {type(encoder.backbone).__name__} are not known to it"
        if not encoder.spec.backbone.own and prepack_where_faster(encoder.backbone):
            stack = layers_of(encoder.backbone)
            assert stack is not None, "maps in blocks leave a backbone what it is"
        fast = cls(encoder, stack)
        difference = fast.difference()
        if not difference <= (TOLERANCE if encoder.exact else HALF_TOLERANCE):
            return None, f"its vectors differ by {difference:.2g} from those of the plain forward"
        return fast, ""

    def record(self, positions: int) -> str:
        """Record what batches of up to so many positions launch on a GPU, once weights stay where they are; elsewhere
        there is nothing to do.

        Returns:
            Nothing, or why launches stay unrecorded.
        """
        if self.packed is None:
            return ""
        self.packed.record(positions)
        difference = self.difference()
        if difference <= HALF_TOLERANCE:
            return ""
        self.packed.forget()
        return f"recorded launches give vectors that differ by {difference:.2g} from those of the plain forward"

    def meet_lengths(self, positions: int) -> None:
        """Have products prepared for all batches of up to so many positions, with the threads that torch has now;
        there is nothing to do where weights are not in blocks."""
        meet_lengths(self.stack, torch.zeros(self.encoder.hidden_size, dtype=self.encoder.dtype), positions)

    @property
    def encoder(self) -> UserEncoder:
        """The encoder that this forward belongs to."""
        encoder = self._encoder()
        assert encoder is not None, "the fast form of an encoder that is gone"
        return encoder

    @torch.inference_mode()
    def difference(self) -> float:
        """Largest difference of an element from the plain forward's, over a few histories in one batch."""
        encoder = self.encoder
        rows = np.random.default_rng(0).integers(0, encoder.items.size, CHECKED_ITEMS)
        prompts = [encoder.prepare(rows[:count].tolist()) for count in (1, 2, CHECKED_ITEMS)]
        plain_BD = encoder(encoder.collate(prompts)).float()
        scale = plain_BD.norm(dim=-1).max().clamp(min=1.0)
        return float((self(prompts).float() - plain_BD).abs().max() / scale)

    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """User vectors [B, D]."""
        if self.packed is not None and (recorded_BD := self.packed.encode(prompts)) is not None:
            return recorded_BD
        lengths = np.array([prompt.length - self.prefix for prompt in prompts])
        embeds_PH, free_FC = self.embed(prompts, [self.prefix] * len(prompts))
        states_BH = self._pooled(embeds_PH, lengths)
        return self.encoder.finish(states_BH, self.encoder.recent(prompts), free_FC)

    # -- input -------------------------------------------------------------------------------------------------------

    def embed(self, prompts: Sequence[Prompt], starts: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Input vectors [P, H] of the positions from ``starts`` on, and the vectors of free titles [F, C]."""
        encoder, size, values, free = self.encoder, self.encoder.items.size, [], list[Any]()
        kinds = [prompt.kinds_T[start:] for prompt, start in zip(prompts, starts, strict=True)]
        for prompt, start, kinds_T in zip(prompts, starts, kinds, strict=True):
            values_T = prompt.values_T[start:]
            if free and prompt.free_vectors:
                values_T = values_T + ((values_T > size) & (kinds_T != TOKEN)) * len(free)
            values.append(values_T)
            free.extend(prompt.free_vectors)
        values_P = torch.from_numpy(np.concatenate(values)).to(encoder.device)
        free_FC = torch.from_numpy(np.stack(free)).to(encoder.device) if free else None
        return self._embed(np.concatenate(kinds), values_P, free_FC).to(encoder.dtype), free_FC

    def _embed(self, kinds: np.ndarray[Any, Any], values_P: Tensor, free_FC: Tensor | None) -> Tensor:
        """Input vectors [P, H]."""
        encoder = self.encoder
        slots = kinds != TOKEN
        if slots.all():
            return self._slots(torch.from_numpy(kinds).to(values_P.device), values_P, free_FC)
        words = cast(Any, encoder.backbone).get_input_embeddings()
        slots_P = torch.from_numpy(slots).to(values_P.device)
        out_PH = words(torch.where(slots_P, 0, values_P))
        places_S = slots_P.nonzero()[:, 0]
        kinds_S = torch.from_numpy(kinds[slots]).to(values_P.device)
        out_PH[places_S] = self._slots(kinds_S, values_P[places_S], free_FC).to(out_PH.dtype)
        return cast(Tensor, out_PH)

    def _slots(self, kinds_S: Tensor, values_S: Tensor, free_FC: Tensor | None) -> Tensor:
        """Input vectors [S, H] of item slots: rows of the table; free titles go through the maps."""
        encoder = self.encoder
        if self.table_RH is None:
            return encoder.slot_vectors(kinds_S, values_S, free_FC)
        size = encoder.items.size
        # two positions an item: texts stand behind ids in the table
        behind = size + 1 if len(self.table_RH) > size + 1 else 0
        rows_S = values_S.clamp(max=size) + (kinds_S == TEXT) * behind
        out_SH = self.table_RH[rows_S]
        if free_FC is not None:
            unknown_F = (values_S > size).nonzero()[:, 0]
            mapped_FH = encoder.slot_vectors(kinds_S[unknown_F], values_S[unknown_F], free_FC)
            out_SH[unknown_F] = mapped_FH.to(out_SH.dtype)
        return out_SH

    @torch.inference_mode()
    def _make_table(self) -> Tensor | None:
        """All vectors that a slot may hold, [R, H]: of every row and UNKNOWN; twice that where an item has two."""
        encoder = self.encoder
        kinds = [ID, TEXT] if len(encoder.prompts.slots) == 2 else [int(encoder.prompts.slots[0])]
        rows_N = torch.arange(encoder.items.size + 1, device=encoder.device)
        element = 4 if encoder.dtype == torch.float32 else 2
        if len(kinds) * len(rows_N) * encoder.hidden_size * element > LARGEST_TABLE:
            return None
        parts = [
            encoder.slot_vectors(torch.full((len(part),), kind, device=part.device), part, None).to(encoder.dtype)
            for kind in kinds
            for part in rows_N.split(8192)
        ]
        return torch.cat(parts).clone()

    # -- layers ------------------------------------------------------------------------------------------------------

    def _pooled(self, embeds_PH: Tensor, lengths: np.ndarray[Any, Any]) -> Tensor:
        """States [B, H] at the last position of every row."""
        if self.packed is not None:
            return self.packed.pooled(embeds_PH, lengths)
        layout, last = _Layout(lengths, self.prefix, embeds_PH.device), self.stack.layers - 1

        def attend(layer: int, queries_PAD: Tensor, keys_PAD: Tensor, values_PAD: Tensor) -> Tensor:
            if layer == last:
                return self._mix_last(queries_PAD, keys_PAD, values_PAD, layout)
            return self._mix(layer, queries_PAD, keys_PAD, values_PAD, layout)

        return pooled_states(self.stack, embeds_PH, layout.places_P, layout.last_B, attend)

    def _mix(self, layer: int, queries_PAD: Tensor, keys_PAD: Tensor, values_PAD: Tensor, layout: _Layout) -> Tensor:
        """Causal attention within every row, [P, A, D]."""
        if not layout.long:
            keys_BASD, values_BASD = self._attended(layer, keys_PAD, values_PAD, layout)
            return layout.packed(causal_attention(layout.padded(queries_PAD), keys_BASD, values_BASD))
        mixed = []  # long rows of different lengths: one by one, without padding
        for start, end in layout.spans:
            row = [states[None, start:end].transpose(1, 2) for states in (queries_PAD, keys_PAD, values_PAD)]
            row[1:] = [self._after_prefix(layer, number, states) for number, states in enumerate(row[1:])]
            mixed.append(causal_attention(*row)[0].transpose(0, 1))
        return torch.cat(mixed)

    def _mix_last(self, queries_BAD: Tensor, keys_PAD: Tensor, values_PAD: Tensor, layout: _Layout) -> Tensor:
        """The last position's attention, [B, A, D]."""
        keys_BASD, values_BASD = self._attended(self.stack.layers - 1, keys_PAD, values_PAD, layout)
        mixed_BA1D = attention(queries_BAD[:, :, None], keys_BASD, values_BASD, attn_mask=layout.valid_B11S)
        return mixed_BA1D[:, :, 0]

    def _attended(self, layer: int, keys_PAD: Tensor, values_PAD: Tensor, layout: _Layout) -> tuple[Tensor, Tensor]:
        """Keys and values of prefix and row, [B, A', S, D]."""
        keys_BASD, values_BASD = (
            self._after_prefix(layer, number, layout.padded(states_PAD))
            for number, states_PAD in enumerate((keys_PAD, values_PAD))
        )
        return keys_BASD, values_BASD

    def _after_prefix(self, layer: int, number: int, states_BATD: Tensor) -> Tensor:
        """The prefix's keys (0) or values (1) before those of the rows, [B, A', S, D]."""
        if not self.prefix:
            return states_BATD
        given_ASD = self.prefix_LKSAD[layer, number].transpose(0, 1)
        return torch.cat([given_ASD.expand(len(states_BATD), -1, -1, -1), states_BATD], 2)

    @torch.inference_mode()
    def _read_prefix(self) -> Tensor:
        """Keys and values of the instruction in every layer, [L, 2, S, A, D]."""
        stack, encoder, count = self.stack, self.encoder, self.prefix
        if not count:
            return torch.empty(0)
        words = cast(Any, encoder.backbone).get_input_embeddings()
        embeds_PH = words(torch.from_numpy(encoder.prompts.prefix).to(encoder.device))
        kept: list[Tensor] = []

        def attend(layer: int, queries_PAD: Tensor, keys_PAD: Tensor, values_PAD: Tensor) -> Tensor:
            kept.append(torch.stack([keys_PAD, values_PAD]))
            row = [states[None].transpose(1, 2) for states in (queries_PAD, keys_PAD, values_PAD)]
            # in the last layer the last position asks alone
            return causal_attention(*row)[0].transpose(0, 1)

        places_P = torch.arange(count, device=encoder.device)
        pooled_states(stack, embeds_PH, places_P, places_P[-1:], attend)
        return torch.stack(kept).clone()


class _Layout:
    """Layouts of a batch's positions: concatenated for linear maps, in padded rows for attention."""

    def __init__(self, lengths: np.ndarray[Any, Any], before: int, device: torch.device) -> None:
        rows, self.longest = len(lengths), int(lengths.max())
        self.even = bool((lengths == self.longest).all())
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        self.rows = rows
        self.long = not self.even and ends[-1] >= LONG * rows
        self.spans = list(zip((ends - lengths).tolist(), ends.tolist(), strict=True)) if self.long else []
        self.places_P = torch.from_numpy(within + before).to(device)
        self.last_B = torch.from_numpy(ends - 1).to(device)
        self._flat_P = None
        if not self.even:
            self._flat_P = torch.from_numpy(within + np.repeat(np.arange(rows) * self.longest, lengths)).to(device)
        seen_S = torch.arange(before + self.longest, device=device)
        lengths_B = torch.from_numpy(lengths).to(device)
        self.valid_B11S = None if self.even else (seen_S < before + lengths_B[:, None])[:, None, None]

    def padded(self, states_PAD: Tensor) -> Tensor:
        """[P, A, D] to [B, A, T, D]; what stands in the padding is never looked at by a valid position."""
        shape = (self.rows, self.longest, *states_PAD.shape[1:])
        if self._flat_P is None:
            return states_PAD.view(shape).transpose(1, 2)
        whole = states_PAD.new_zeros(self.rows * self.longest, *states_PAD.shape[1:])
        whole[self._flat_P] = states_PAD
        return whole.view(shape).transpose(1, 2)

    def packed(self, states_BATD: Tensor) -> Tensor:
        """[B, A, T, D] to [P, A, D]."""
        whole = states_BATD.transpose(1, 2).reshape(self.rows * self.longest, *states_BATD.shape[1::2])
        return whole if self._flat_P is None else whole[self._flat_P]
