"""Keys and values of histories that were read: a user who comes back with one more item costs that item only.

With causal attention what a position is does not depend on what comes after it, so the states of a history are also
those of every longer history that begins with it. They are kept by exactly what was read (kinds, tokens, rows), within
a bound of bytes, the ones not used for the longest time going first. What is computed for the new positions is what the
whole history would give, up to rounding.

It ends where the window over a history longer than `history.limit` moves: then every position is another one, and the
whole window is read again. The service can let it move by several items at a time
(`service.recommend.histories.window_start`).

Shape legend: P new positions of all rows, H width, L layers, A heads of keys and values, D width of a head, S positions
kept for a row.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling.encoder.prompt import Prompt
from modeling.inference.attention import causal_attention
from modeling.inference.encoder_forward import EncoderForward
from modeling.inference.layers import pooled_states

Key = tuple[bytes, bytes]


class PrefixCache:
    """Encodes prompts and keeps their keys and values. Safe to use from several threads.

    Args:
        fast: the forward of the encoder.
        limit: bytes that are kept at most.

    Raises:
        ValueError: the states of a history depend on more than its own positions up to there.
    """

    def __init__(self, fast: EncoderForward, limit: int) -> None:
        if not fast.encoder.capabilities.prefix_reuse:
            raise ValueError("states of this encoder hold for one history only (capabilities.prefix_reuse is off)")
        self._fast, self._limit = fast, limit
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        first_LKASD = fast.prefix_LKSAD.transpose(2, 3).contiguous() if fast.prefix else None
        self._first = first_LKASD  # what every row begins with

    def new_positions(self, prompt: Prompt) -> int:
        """Positions that reading this prompt would take now, at least one."""
        with self._lock:
            return prompt.length - self._longest(prompt)[0]

    @torch.inference_mode()
    def encode(
        self, prompts: Sequence[Prompt], looked_up: Callable[[int, int], None] = lambda hits, misses: None
    ) -> NDArray[np.float32]:
        """User vectors [B, D]; what was read is kept for the next time. `looked_up` is told how many were continued,
        and how many were read from their beginning."""
        with self._lock:
            before = self.hits, self.misses
            found = [self._longest(prompt, use=True) for prompt in prompts]
            looked_up(self.hits - before[0], self.misses - before[1])
        starts = [start for start, _ in found]
        lengths = [prompt.length - start for prompt, start in zip(prompts, starts, strict=True)]
        embeds_PH, free_FC = self._fast.embed(prompts, starts)
        states_BH, read = self._read(embeds_PH, starts, lengths, [past for _, past in found])
        encoder = self._fast.encoder
        user_BD = encoder.finish(states_BH, encoder.recent(prompts), free_FC)
        with self._lock:
            for prompt, kept_LKASD in zip(prompts, read, strict=True):
                self._keep(prompt, kept_LKASD)
        vectors: NDArray[np.float32] = user_BD.float().cpu().numpy()
        return vectors

    def _read(
        self, embeds_PH: Tensor, starts: Sequence[int], lengths: Sequence[int], pasts: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        """States [B, H] at the last positions, and keys and values of every row from its beginning, [L, 2, A, S, D]."""
        stack, device = self._fast.stack, embeds_PH.device
        ends = np.cumsum(lengths).tolist()
        spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        places_P = torch.cat(
            [torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        ).to(device)
        read = list[list[Tensor]]()

        def attend(layer: int, queries_PAD: Tensor, keys_PAD: Tensor, values_PAD: Tensor) -> Tensor:
            new_KPAD = torch.stack([keys_PAD, values_PAD])
            rows = [
                _joined(None if past is None else past[layer], new_KPAD[:, begin:end].transpose(1, 2))
                for past, (begin, end) in zip(pasts, spans, strict=True)
            ]
            read.append(rows)
            # in the last layer only the last position of a row asks
            asking = spans if layer < stack.layers - 1 else [(row, row + 1) for row in range(len(rows))]
            return torch.cat(
                [_mixed(queries_PAD[begin:end], row) for row, (begin, end) in zip(rows, asking, strict=True)]
            )

        last_B = torch.tensor(ends, device=device) - 1
        states_BH = pooled_states(stack, embeds_PH, places_P, last_B, attend)
        return states_BH, [torch.stack([rows[row] for rows in read]) for row in range(len(lengths))]

    # -- what is kept ------------------------------------------------------------------------------------------------

    def _longest(self, prompt: Prompt, *, use: bool = False) -> tuple[int, Tensor | None]:
        """Positions of the longest kept beginning and its keys and values; the last item is always read anew."""
        if not prompt.free_vectors:  # rows of free titles mean another title in every prompt
            for boundary in prompt.boundaries_M[-2::-1].tolist():
                key = _key(prompt, boundary + 1)
                if (kept := self._kept.get(key)) is not None:
                    if use:
                        self._kept.move_to_end(key)
                        self.hits += 1
                    return boundary + 1, kept
        self.misses += use
        return self._fast.prefix, self._first

    def _keep(self, prompt: Prompt, kept_LKASD: Tensor) -> None:
        size = kept_LKASD.numel() * kept_LKASD.element_size()
        if prompt.free_vectors or size > self._limit:
            return
        key = _key(prompt, prompt.length)
        if (before := self._kept.pop(key, None)) is not None:
            self.bytes -= before.numel() * before.element_size()
        self._kept[key] = _on_pages_of_its_own(kept_LKASD)
        self.bytes += size
        while self.bytes > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.numel() * oldest.element_size()


def _on_pages_of_its_own(kept: Tensor) -> Tensor:
    """A copy outside the heap. There, megabytes of any size that come and go leave holes: within a quarter of an hour a
    process had grown by twice what was kept."""
    if kept.device.type != "cpu":
        return kept
    pages = mmap.mmap(-1, kept.numel() * kept.element_size())  # given back when the tensor is gone
    return torch.frombuffer(pages, dtype=kept.dtype).view(kept.shape).copy_(kept)


def _key(prompt: Prompt, length: int) -> Key:
    return prompt.kinds_T[:length].tobytes(), prompt.values_T[:length].tobytes()


def _joined(past_KASD: Tensor | None, new_KATD: Tensor) -> Tensor:
    return new_KATD if past_KASD is None else torch.cat([past_KASD, new_KATD], 2)


def _mixed(queries_TAD: Tensor, row_KASD: Tensor) -> Tensor:
    """Attention of the newest positions of one row over all of it, [T, A, D]."""
    return causal_attention(queries_TAD.transpose(0, 1)[None], row_KASD[:1], row_KASD[1:])[0].transpose(0, 1)
