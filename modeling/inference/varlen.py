"""Rows of different lengths without padding, in few launches: how a GPU reads a batch.

Positions of all rows stand one after the other and attention is told where each row ends, so nothing is computed for
padding. A small batch takes the GPU less time than launching its kernels takes the processor; for these the launches
are recorded once for a ladder of sizes (CUDA graphs) and played back, the batch standing in the first positions of the
next size. Larger batches keep the GPU busy and are launched as they come.

Shape legend: P positions of all rows, B rows, S positions that are attended to (the prefix and a row, for every row),
A heads, D width of a head, H width; R rows and P positions that a size has room for.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling.encoder.prompt import TEXT, TOKEN, Prompt, recent_rows
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.attention import attention
from modeling.inference.fused_ops import fused_ops_for
from modeling.inference.layers import DecoderLayers, pooled_states
from modeling.torch_private import flash_attention

SIZES = tuple(step * base // 4 for base in (1 << power for power in range(6, 16)) for step in (4, 5, 6, 7))
"""Positions of the recorded batches, from 64 on: four an octave, so that an eighth of a batch is filling, about."""
FEWEST_ROWS, POSITIONS_OF_A_ROW = 4, 16
"""A size has room for so many rows, and for one in so many of its positions."""
LOCKED = 500
"""Elements up to which numpy keeps Python's lock while it copies or computes."""
BLOCK = 128
"""Rows that attention takes at a time; what it launches for a row depends on the longest there may be."""

Run = Callable[[], Tensor]


class CompiledEncoder(Protocol):
    """An encoder with the tables that its inference-only forward reads; see `EncoderForward`."""

    stack: DecoderLayers
    prefix: int
    prefix_LKSAD: Tensor
    table_RH: Tensor | None

    @property
    def encoder(self) -> UserEncoder:
        """The encoder itself."""


class VarlenBatch:
    """Layout and contents of a batch of rows without padding: integers in one array or tensor, copied to the device at
    once.

    It is filled while the device waits, in a thread next to a busy event loop. For more than `LOCKED` elements numpy
    releases the GIL, and reacquiring it takes longer than the copy; so rows are assembled from small arrays. After the
    last row there is data of earlier batches, which attention does not read.

    Args:
        memory: int32, of `VarlenBatch.width` elements.
        positions, rows: what there is room for.
        prefix: positions before every row.
        recent: newest items of a row that its vector is made of, R.

    Attributes:
        kinds_P, values_P: what stands at a position, as in `Prompt`.
        places_P: positions within rows, the prefix counted.
        last_B: the last position of every row.
        recent_N: the catalog rows of its newest items, newest first, [B * R]; -1 where it has fewer.
        query_ends, key_ends, one_each: [B + 1], where rows begin and end in the positions, in `keys_S`, and among the
            last positions.
        keys_S: the prefix and each row, for each row; places in the prefix and the positions behind it.
    """

    def __init__(self, memory: Any, positions: int, rows: int, prefix: int, recent: int = 1) -> None:
        self.memory, self.prefix, self.recent = memory, prefix, recent
        ends = np.cumsum([0, *self._widths(positions, rows, prefix, recent)]).tolist()
        parts = [memory[start:end] for start, end in itertools.pairwise(ends)]
        self.kinds_P, self.values_P, self.places_P, self.last_B, self.recent_N, *parts = parts
        self.query_ends, self.key_ends, self.one_each, self.keys_S = parts

    @classmethod
    def width(cls, positions: int, rows: int, prefix: int, recent: int = 1) -> int:
        """Elements of the memory."""
        return sum(cls._widths(positions, rows, prefix, recent))

    @staticmethod
    def _widths(positions: int, rows: int, prefix: int, recent: int) -> list[int]:
        attended = positions + rows * prefix if prefix else 0
        return [*[positions] * 3, rows, rows * recent, *[rows + 1] * 3, attended]

    @classmethod
    def empty(cls, positions: int, rows: int, prefix: int, recent: int = 1) -> VarlenBatch:
        """One to be written."""
        memory = np.zeros(cls.width(positions, rows, prefix, recent), np.int32)
        plan = cls(memory, positions, rows, prefix, recent)
        plan.one_each[:] = np.arange(rows + 1)
        return plan

    def write(self, lengths: NDArray[np.int64]) -> None:
        """Put the rows of a batch at the beginning; those that are left have no length and come after it."""
        prefix, count, ends = self.prefix, len(lengths), np.cumsum(lengths)
        spans = list(itertools.pairwise([0, *ends.tolist()]))
        numbers = _numbers(prefix + int(ends[-1]))
        _join(self.places_P, [numbers[prefix : prefix + end - start] for start, end in spans])
        self.last_B[:count] = ends - 1
        for kept, found in ((self.query_ends, ends), (self.key_ends, ends + prefix * np.arange(1, count + 1))):
            kept[1 : count + 1] = found
            for start in range(count + 1, len(kept), LOCKED):
                kept[start : start + LOCKED] = found[-1]
        if prefix:
            pairs = [(numbers[:prefix], numbers[prefix + start : prefix + end]) for start, end in spans]
            _join(self.keys_S, list(itertools.chain.from_iterable(pairs)))

    def fill(self, prompts: Sequence[Prompt], unknown: int) -> None:
        """Say what stands at the positions.

        Args:
            prompts: the rows that were written, with the prefix.
            unknown: row of unknown items, the last that there is.
        """
        _join(self.kinds_P, [prompt.kinds_T[self.prefix :] for prompt in prompts])
        _join(self.values_P, [prompt.values_T[self.prefix :] for prompt in prompts])
        recent_N = np.minimum(recent_rows(prompts, self.recent, unknown), unknown).reshape(-1)
        self.recent_N[: len(recent_N)] = recent_N


@cache
def _numbers_up_to(most: int) -> NDArray[np.int32]:
    return np.arange(most, dtype=np.int32)


def _numbers(most: int) -> NDArray[np.int32]:
    """All numbers below ``most``, and some more; not to be written to."""
    return _numbers_up_to(1 << most.bit_length())


def _join(out: NDArray[np.int32], parts: Sequence[NDArray[Any]]) -> None:
    """Write parts one after the other; numbers in them are below 2^31, whatever their type."""
    np.concatenate(parts, out=out[: sum(map(len, parts))], casting="same_kind")


class VarlenForward:
    """Reads batches for one `EncoderForward`. Safe to use from several threads.

    Args:
        fast: its prefix read and its table made.
        sizes: positions of the batches that are recorded.
        record: makes a function that runs again what it is given; on a GPU, by recording a graph.
    """

    def __init__(self, fast: CompiledEncoder, sizes: Sequence[int], record: Callable[[Run], Run]) -> None:
        self._weak = weakref.ref(fast)
        self._prefix, self._longest = fast.prefix, _longest_row(fast)
        self._sizes, self._record = sizes, record
        self._pieces = fused_ops_for(fast.encoder.device)
        self._recorded: list[_CudaGraph] = []
        self._lock = threading.Lock()

    @classmethod
    def of(cls, fast: CompiledEncoder) -> VarlenForward | None:
        """One for a GPU in half precision; None elsewhere: attention over packed rows has no other kernels."""
        encoder = fast.encoder
        if encoder.device.type != "cuda" or encoder.dtype not in (torch.bfloat16, torch.float16):
            return None
        return cls(fast, SIZES, GraphRunner())

    def record(self, positions: int) -> None:
        """Record the sizes up to the one that holds so many, so that no request waits for it. From now on no weight
        may move in memory."""
        if self._fast.table_RH is None:
            return
        wanted = [size for size in self._sizes if size <= positions]
        wanted += [size for size in self._sizes if size > positions][:1]
        found = [_CudaGraph(self, size) for size in reversed(wanted)]  # the largest first: others fit into its memory
        self._recorded = found[::-1]

    def forget(self) -> None:
        """Launch everything as it comes."""
        self._recorded = []

    def encode(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """User vectors [B, D] by recorded launches; None where none were recorded that fit."""
        lengths = np.array([prompt.length - self._prefix for prompt in prompts])
        recorded = self._room_for(lengths) if not any(prompt.free_vectors for prompt in prompts) else None
        if recorded is None:
            return None
        with self._lock:
            return recorded(prompts, lengths)

    def _room_for(self, lengths: NDArray[np.int64]) -> _CudaGraph | None:
        """The smallest recorded size with room for the batch."""
        total, count = int(lengths.sum()), len(lengths)
        if int(lengths.max()) > self._longest:
            return None
        return next((each for each in self._recorded if total <= each.size and count <= each.rows), None)

    def pooled(self, embeds_PH: Tensor, lengths: NDArray[np.int64]) -> Tensor:
        """States [B, H] at the last position of every row."""
        shape = int(lengths.sum()), len(lengths), self._prefix
        plan = VarlenBatch.empty(*shape)
        plan.write(lengths)
        on_device = VarlenBatch(torch.from_numpy(plan.memory).to(embeds_PH.device), *shape)
        return self._pooled(embeds_PH, on_device, int(lengths.max()))

    @property
    def _fast(self) -> CompiledEncoder:
        fast = self._weak()
        assert fast is not None, "rows of an encoder that is gone"
        return fast

    def _vectors(self, plan: VarlenBatch, longest: int) -> Tensor:
        """User vectors [R, D] of what a plan holds."""
        fast = self._fast
        encoder, table_RH = fast.encoder, fast.table_RH
        assert table_RH is not None
        unknown = encoder.items.size
        slots_P, rows_P = plan.kinds_P != TOKEN, plan.values_P.clamp(max=unknown)
        if len(table_RH) > unknown + 1:  # two positions an item: texts stand behind ids
            rows_P = rows_P + (unknown + 1) * (plan.kinds_P == TEXT)
        embeds_PH = table_RH[torch.where(slots_P, rows_P, 0)]
        if encoder.prompts.form == "titles":  # otherwise there are no tokens behind the instruction
            words_PH = cast(Any, encoder.backbone).get_input_embeddings()(torch.where(slots_P, 0, plan.values_P))
            embeds_PH = torch.where(slots_P[:, None], embeds_PH, words_PH)
        recent_BR = plan.recent_N.view(-1, plan.recent).long()
        return encoder.finish(self._pooled(embeds_PH, plan, longest), recent_BR, None)

    def _pooled(self, embeds_PH: Tensor, plan: VarlenBatch, longest: int) -> Tensor:
        """States [R, H] at the last positions of a plan's rows; ``longest`` is that of a row, without the prefix."""
        stack, prefix_LKSAD = self._fast.stack, self._fast.prefix_LKSAD
        last = stack.layers - 1

        def attend(layer: int, queries_PAD: Tensor, keys_PAD: Tensor, values_PAD: Tensor) -> Tensor:
            if self._prefix:
                keys_PAD, values_PAD = (
                    self._pieces.behind(prefix_SAD, states_PAD, plan.keys_S)
                    for prefix_SAD, states_PAD in zip(prefix_LKSAD[layer], (keys_PAD, values_PAD), strict=True)
                )
            ends, most = (plan.one_each, 1) if layer == last else (plan.query_ends, longest)
            return attention_of_rows(
                queries_PAD, keys_PAD, values_PAD, ends, plan.key_ends, most, self._prefix + longest
            )

        return pooled_states(stack, embeds_PH, plan.places_P, plan.last_B, attend)


class _CudaGraph:
    """One size: its inputs, at a fixed place in memory, and what runs on them."""

    def __init__(self, packed: VarlenForward, size: int) -> None:
        fast = packed._fast
        self.size, self.rows = size, max(FEWEST_ROWS, size // POSITIONS_OF_A_ROW)
        assert fast.table_RH is not None
        self._unknown = fast.encoder.items.size
        self._recent = fast.encoder.recent_items
        shape, longest = (size, self.rows, packed._prefix, self._recent), min(size, packed._longest)
        self._plan = VarlenBatch.empty(*shape)
        self._plan.write(np.array([1]))
        self._host = torch.from_numpy(self._plan.memory)
        self._device = self._host.to(fast.encoder.device, copy=True)
        on_device = VarlenBatch(self._device, *shape)
        self._run = packed._record(lambda: packed._vectors(on_device, longest))

    def __call__(self, prompts: Sequence[Prompt], lengths: NDArray[np.int64]) -> Tensor:
        plan = self._plan
        plan.write(lengths)
        plan.fill(prompts, self._unknown)
        self._device.copy_(self._host)
        return self._run()[: len(lengths)].clone()


class GraphRunner:
    """Records what a function launches on a CUDA device; what it returns runs that again, on what then stands in the
    function's inputs. The output stands at a fixed place too, which all functions of one recorder share: it is good
    until the next of them is run.
    """

    WARM_UPS = 3

    def __init__(self) -> None:
        self._memory: Any = None

    @torch.inference_mode()
    def __call__(self, run: Run) -> Run:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, and takes what libraries take at first
            for _ in range(self.WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # other threads may use the device meanwhile
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            found = run()

        def again() -> Tensor:
            graph.replay()
            return found

        return again


def attention_of_rows(
    queries_PAD: Tensor, keys_SAD: Tensor, values_SAD: Tensor, query_ends: Tensor, key_ends: Tensor, most_queries: int,
    most_keys: int,
) -> Tensor:  # fmt: skip
    """Causal attention within rows, [P, A, D]: the queries of a row are its last positions.

    Args:
        queries_PAD: of all rows, one after the other.
        keys_SAD, values_SAD: likewise, of fewer heads where heads share them.
        query_ends, key_ends: int32 [B + 1], where rows begin and end.
        most_queries, most_keys: of any row.
    """
    if not queries_PAD.is_cuda:
        return _rows_one_by_one(queries_PAD, keys_SAD, values_SAD, query_ends.tolist(), key_ends.tolist())
    return flash_attention(queries_PAD, keys_SAD, values_SAD, query_ends, key_ends, most_queries, most_keys)


def _rows_one_by_one(
    queries_PAD: Tensor, keys_SAD: Tensor, values_SAD: Tensor, query_ends: list[int], key_ends: list[int]
) -> Tensor:
    """The same where there is no kernel for it."""
    out_PAD = torch.zeros_like(queries_PAD)
    for row in range(len(query_ends) - 1):
        begin, end, first, last = *query_ends[row : row + 2], *key_ends[row : row + 2]
        if end > begin and last > first:
            row_1ATD = queries_PAD[None, begin:end].transpose(1, 2)
            keys, values = (states[None, first:last].transpose(1, 2) for states in (keys_SAD, values_SAD))
            mask_TS = torch.ones(end - begin, last - first, dtype=torch.bool).tril(last - first - (end - begin))
            out_PAD[begin:end] = attention(row_1ATD, keys, values, attn_mask=mask_TS)[0].transpose(0, 1)
    return out_PAD


def _longest_row(fast: CompiledEncoder) -> int:
    """Most positions of a row of catalog items, without the prefix, in whole blocks of attention."""
    prompts = fast.encoder.prompts
    lengths = prompts.item_lengths
    item = len(prompts.slots) if lengths is None else int(lengths.max(initial=1))
    return min(-(-prompts.item_limit * item // BLOCK) * BLOCK, prompts.position_limit)
