"""Rows of different lengths without padding, in few launches: how a GPU reads a batch.

Positions of all rows stand one after the other and attention is told where each row ends, so nothing is computed for
padding. A small batch takes the GPU less time than launching its kernels takes the processor; for these the launches
are recorded once for a ladder of sizes (CUDA graphs) and played back, the batch standing in the first positions of the
next size. Larger batches keep the GPU busy and are launched as they come.

Shape legend: P positions of all rows, B rows, S positions that are attended to (the prefix and a row, for every row),
A heads, D width of a head, H width; R rows and P positions that a size has room for.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling.pieces import pieces_for
from modeling.stack import pooled_states

if TYPE_CHECKING:
    from modeling.fast import FastForward

SIZES = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Positions of the recorded batches."""
POSITIONS_OF_A_ROW = 16
"""A size has room for one row in so many of its positions."""
BLOCK = 128
"""Rows that attention takes at a time; what it launches for a row depends on the longest there may be."""

Run = Callable[[], Tensor]


class Plan:
    """Where the rows of a batch stand, as whole numbers in one tensor, so that one copy brings them to the device.

    Args:
        memory: int32, of `Plan.width` elements.
        positions, rows: what there is room for.
        prefix: positions before every row.
    """

    def __init__(self, memory: Tensor, positions: int, rows: int, prefix: int) -> None:
        self.memory = memory
        parts = memory.split(_widths(positions, rows, prefix))
        self.places_P, self.last_B, self.query_ends, self.key_ends, self.one_each, self.keys_S = parts

    @staticmethod
    def width(positions: int, rows: int, prefix: int) -> int:
        """Elements of the memory."""
        return sum(_widths(positions, rows, prefix))

    def write(self, lengths: NDArray[np.int64], prefix: int) -> None:
        """Put the rows of a batch at the beginning; those that are left have no length and come after it."""
        ends = np.cumsum(lengths)
        total, count = int(ends[-1]), len(lengths)
        rows = np.repeat(np.arange(count), lengths)
        self.places_P[:total] = torch.from_numpy(np.arange(total) - (ends - lengths)[rows] + prefix)
        self.places_P[total:] = 0
        self.last_B[:count] = torch.from_numpy(ends - 1)
        self.last_B[count:] = 0
        for kept, found in ((self.query_ends, ends), (self.key_ends, ends + prefix * np.arange(1, count + 1))):
            kept[0] = 0
            kept[1 : count + 1] = torch.from_numpy(found)
            kept[count + 1 :] = int(found[-1])
        self.one_each[:] = torch.arange(len(self.one_each))
        if prefix:
            attended = lengths + prefix
            of_row = np.repeat(np.arange(count), attended)
            within = np.arange(len(of_row)) - (np.cumsum(attended) - attended)[of_row]
            found = np.where(within < prefix, within, within + (ends - lengths)[of_row])
            self.keys_S[: len(found)] = torch.from_numpy(found)
            self.keys_S[len(found) :] = 0


def _widths(positions: int, rows: int, prefix: int) -> list[int]:
    return [positions, rows, rows + 1, rows + 1, rows + 1, positions + rows * prefix if prefix else 0]


class PackedForward:
    """Reads batches for one `FastForward`. Safe to use from several threads.

    Args:
        fast: its prefix read.
        sizes: positions of the batches that are recorded.
        record: makes a function that runs again what it is given; on a GPU, by recording a graph.
    """

    def __init__(self, fast: FastForward, sizes: Sequence[int], record: Callable[[Run], Run]) -> None:
        self._fast = weakref.ref(fast)
        self._stack, self._prefix = fast.stack, fast.prefix
        self._sizes, self._record = sizes, record
        self._pieces = pieces_for(fast.encoder.device)
        self._longest = _longest_row(fast)
        self._recorded: dict[int, _Recorded] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, fast: FastForward) -> PackedForward | None:
        """One for a GPU in half precision; None elsewhere: attention over packed rows has no other kernels."""
        encoder = fast.encoder
        if encoder.device.type != "cuda" or encoder.dtype not in (torch.bfloat16, torch.float16):
            return None
        return cls(fast, SIZES, Recorder())

    def __call__(self, embeds_PH: Tensor, lengths: NDArray[np.int64]) -> Tensor:
        """States [B, H] at the last position of every row."""
        recorded = self._room_for(lengths)
        if recorded is None:
            return self._read(embeds_PH, self._plan(lengths), int(lengths.max()))
        with self._lock:
            return recorded(embeds_PH, lengths)

    def record(self) -> None:
        """Record every size, so that no request waits for it. From now on no weight may move in memory."""
        fast = self._the_fast
        like_PH = torch.zeros(1, fast.encoder.hidden_size, dtype=fast.encoder.dtype, device=fast.encoder.device)
        for size in sorted(self._sizes, reverse=True):  # the largest first: the others fit into its memory
            self._recorded[size] = _Recorded(self, size, like_PH)

    def forget(self) -> None:
        """Launch everything as it comes."""
        self._recorded.clear()

    def _room_for(self, lengths: NDArray[np.int64]) -> _Recorded | None:
        """The smallest recorded size with room for the batch."""
        if int(lengths.max()) > self._longest:
            return None
        total = int(lengths.sum())
        fitting = [size for size in self._recorded if total <= size and len(lengths) <= rows_of(size)]
        return self._recorded[min(fitting)] if fitting else None

    def _plan(self, lengths: NDArray[np.int64]) -> Plan:
        """A plan of exactly this batch, on the device."""
        shape = int(lengths.sum()), len(lengths), self._prefix
        plan = Plan(torch.empty(Plan.width(*shape), dtype=torch.int32), *shape)
        plan.write(lengths, self._prefix)
        return Plan(plan.memory.to(self._the_fast.encoder.device), *shape)

    @property
    def _the_fast(self) -> FastForward:
        fast = self._fast()
        assert fast is not None, "rows of an encoder that is gone"
        return fast

    def _read(self, embeds_PH: Tensor, plan: Plan, longest: int) -> Tensor:
        """States [R, H] at the last positions of a plan's rows; ``longest`` is that of a row, without the prefix."""
        last, prefix_LKSAD = self._stack.layers - 1, self._the_fast.prefix_LKSAD

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

        return pooled_states(self._stack, embeds_PH, plan.places_P, plan.last_B, attend)


class _Recorded:
    """One size: its inputs, at fixed places in memory, and what runs on them."""

    def __init__(self, packed: PackedForward, size: int, like_PH: Tensor) -> None:
        self._prefix, rows = packed._prefix, rows_of(size)
        shape = size, rows, self._prefix
        width = Plan.width(*shape)
        self._embeds_PH = like_PH.new_zeros(size, like_PH.shape[1])
        self._host = Plan(torch.zeros(width, dtype=torch.int32), *shape)
        device_plan = Plan(torch.zeros(width, dtype=torch.int32, device=like_PH.device), *shape)
        self._device_memory = device_plan.memory
        self._host.write(np.array([1]), self._prefix)
        self._device_memory.copy_(self._host.memory)
        longest = min(size, packed._longest)
        self._run = packed._record(lambda: packed._read(self._embeds_PH, device_plan, longest))

    def __call__(self, embeds_PH: Tensor, lengths: NDArray[np.int64]) -> Tensor:
        self._host.write(lengths, self._prefix)
        self._device_memory.copy_(self._host.memory)
        self._embeds_PH[: len(embeds_PH)] = embeds_PH
        return self._run()[: len(lengths)].clone()


class Recorder:
    """Records what a function launches on a CUDA device; what it returns runs that again, on what then stands in the
    function's inputs. The output stands at a fixed place too, which all functions of one recorder share: it is good
    until the next of them is run.
    """

    WARM_UPS = 3

    def __init__(self) -> None:
        self._memory: Any = None

    def __call__(self, run: Run) -> Run:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):  # compiles, and takes what libraries take at first
            for _ in range(self.WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # other threads may use the device meanwhile
        with (
            torch.inference_mode(),
            torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"),
        ):
            found = run()

        def again() -> Tensor:
            graph.replay()
            return found

        return again


def rows_of(size: int) -> int:
    """Rows that a recorded size has room for."""
    return max(4, size // POSITIONS_OF_A_ROW)


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
    # the operator itself: its public form (torch.nn.attention.varlen) has other arguments in every version of torch
    found: Tensor = torch.ops.aten._flash_attention_forward(
        queries_PAD, keys_SAD, values_SAD, query_ends, key_ends, most_queries, most_keys, 0.0, True, False
    )[0]
    return found


def _rows_one_by_one(
    queries_PAD: Tensor, keys_SAD: Tensor, values_SAD: Tensor, query_ends: list[int], key_ends: list[int]
) -> Tensor:
    """The same where there is no kernel for it."""
    from modeling.fast import attention

    out_PAD = torch.zeros_like(queries_PAD)
    for row in range(len(query_ends) - 1):
        begin, end, first, last = *query_ends[row : row + 2], *key_ends[row : row + 2]
        if end > begin and last > first:
            row_1ATD = queries_PAD[None, begin:end].transpose(1, 2)
            keys, values = (states[None, first:last].transpose(1, 2) for states in (keys_SAD, values_SAD))
            mask_TS = torch.ones(end - begin, last - first, dtype=torch.bool).tril(last - first - (end - begin))
            out_PAD[begin:end] = attention(row_1ATD, keys, values, attn_mask=mask_TS)[0].transpose(0, 1)
    return out_PAD


def _longest_row(fast: FastForward) -> int:
    """Most positions of a row of catalog items, without the prefix, in whole blocks of attention."""
    prompts = fast.encoder.prompts
    lengths = prompts.item_lengths
    item = len(prompts.slots) if lengths is None else int(lengths.max(initial=1))
    return min(-(-prompts.item_limit * item // BLOCK) * BLOCK, prompts.position_limit)
