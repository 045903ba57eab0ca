"""The batching core: entries in, next batch out.

Knows neither HTTP nor torch nor asyncio nor threads: it counts positions, and its clock is handed in. Whoever
drives it (`engine.py`) holds a lock around every call.

The rules:

* What costs is positions, padding included: a batch of n entries costs n times its longest one. Where the model
  computes no padding (`Limits.packed`) it costs their sum.
* The oldest entry is in the next batch, always, so none starves. The rest of the batch are the entries
  nearest to it in length, older before younger, out of a window of the oldest: a batch of mixed lengths can
  be slower than no batch at all. Packed, they are simply the next oldest.
* What came at once is shared among the lanes that have nothing to do.
* A batch that has enough positions to be efficient takes no more: they would all wait for its end.
* Nothing waits for a batch to fill. Whoever asks for the next batch gets what is there.
* The queue is bounded in positions (where asked, in entries too), and says so at admission, not later.
* Entries that cannot be computed together (of different groups) are not put together.
* Identical entries in flight are one entry with several waiters, also while it is being computed.
* An entry whose waiters have all left, or whose deadlines have passed, is dropped here and never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

P = TypeVar("P")  # what is computed
W = TypeVar("W")  # what identifies whoever waits for it

# The oldest entries among which a batch looks for similar lengths, in full batches.
WINDOW_BATCHES = 8


class QueueFull(Exception):
    """The queue holds as many positions or requests as it may; the message says how many."""

    def __init__(self, queued: int, limit: int, of_what: str = "positions") -> None:
        super().__init__(f"{queued} of {limit} {of_what} are queued")


class EntryTooLong(Exception):
    """One entry alone is longer than a batch may be."""

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"{length} positions, a batch holds {limit}")
        self.length = length
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a batch and of the queue: positions (padding counted), entries, queued positions, padding share, and
    queued entries (None: as many as the positions allow). `packed`: the model computes no padding. `enough`: positions
    beyond which a batch takes no further entry (None: as many as it may hold)."""

    max_batch_tokens: int
    max_batch_requests: int
    max_queued_tokens: int
    max_padding: float = 0.3
    max_queued_requests: int | None = None
    packed: bool = False
    enough: int | None = None


@dataclass(eq=False, slots=True)
class Waiter(Generic[W]):
    """One who waits for an entry: `deadline` on the batcher's clock, `gone` once it has left."""

    ticket: W
    deadline: float
    gone: bool = False


@dataclass(eq=False, slots=True)
class Entry(Generic[P, W]):
    """One thing to compute: its length in positions, when it arrived, and everyone who waits for it.

    Only entries of one `group` share a batch.
    """

    key: Hashable
    length: int
    work: P
    arrived: float
    waiters: list[Waiter[W]] = field(default_factory=list)
    running: bool = False
    group: Hashable = None

    def wanted(self, now: float) -> bool:
        """Return whether anyone still waits whose deadline has not passed."""
        for waiter in self.waiters:  # noqa: SIM110 - every batch asks it of the whole queue, and a generator is slow
            if not waiter.gone and waiter.deadline > now:
                return True
        return False


@dataclass(frozen=True, slots=True)
class Batch(Generic[P, W]):
    """Entries to compute in one forward pass: the oldest, then the nearest to it in length."""

    entries: tuple[Entry[P, W], ...]
    packed: bool = False

    @property
    def tokens(self) -> int:
        """Positions that carry something."""
        return sum(entry.length for entry in self.entries)

    @property
    def computed_tokens(self) -> int:
        """Positions the model computes: packed, their sum; else the longest entry times their number."""
        if self.packed:
            return self.tokens
        return max(entry.length for entry in self.entries) * len(self.entries)

    @property
    def padding(self) -> float:
        """Share of computed positions that are padding, 0 ≤ share < 1."""
        return 1 - self.tokens / self.computed_tokens


class Batcher(Generic[P, W]):
    """The queue and the rule that cuts batches from it; not thread-safe."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.queued_tokens = 0
        self.dropped = 0  # entries that left the queue uncomputed
        self._clock = clock
        self._queue: dict[Entry[P, W], None] = {}  # in order of arrival
        self._running: dict[Entry[P, W], None] = {}
        self._by_key: dict[Hashable, Entry[P, W]] = {}  # queued and running

    @property
    def depth(self) -> int:
        """Entries that wait for the device."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Return whether nothing is queued or being computed."""
        return not self._queue and not self._running

    def entries(self) -> Iterator[Entry[P, W]]:
        """Yield every entry in flight, running ones first."""
        yield from list(self._running)
        yield from list(self._queue)

    def admit(self, key: Hashable, length: int, work: P, waiter: Waiter[W], group: Hashable = None) -> Entry[P, W]:
        """Queue `work`, or join the identical entry in flight, and return the entry.

        `length` is at least 1. Raises EntryTooLong if it could never be computed, QueueFull if it may not
        wait.
        """
        twin = self._by_key.get(key)
        if twin is not None:
            twin.waiters.append(waiter)
            return twin
        if length > self.limits.max_batch_tokens:
            raise EntryTooLong(length, self.limits.max_batch_tokens)
        if self.queued_tokens + length > self.limits.max_queued_tokens:
            raise QueueFull(self.queued_tokens, self.limits.max_queued_tokens)
        most = self.limits.max_queued_requests
        if most is not None and len(self._queue) >= most:
            raise QueueFull(len(self._queue), most, "requests")
        entry: Entry[P, W] = Entry(key, length, work, self._clock(), [waiter], group=group)
        self._queue[entry] = None
        self._by_key[key] = entry
        self.queued_tokens += length
        return entry

    def leave(self, entry: Entry[P, W], waiter: Waiter[W]) -> None:
        """Take a waiter off an entry; an entry without waiters gives its place in the queue back at once."""
        waiter.gone = True
        if not entry.running and entry in self._queue and all(other.gone for other in entry.waiters):
            self._drop(entry)

    def next_batch(self, takers: int = 1) -> Batch[P, W] | None:
        """Cut the next batch from the queue, or return None if nothing is wanted; `done` takes it back.

        `takers` could have one now: a batch leaves the others their share.
        """
        candidates = self._oldest_wanted()
        if not candidates:
            return None
        share = -(-len(candidates) // takers)
        batch = Batch(tuple(self._choose(candidates)[:share]), self.limits.packed)
        for entry in batch.entries:
            del self._queue[entry]
            self._running[entry] = None
            entry.running = True
            self.queued_tokens -= entry.length
        return batch

    def done(self, batch: Batch[P, W]) -> None:
        """Forget a computed batch: from here on an identical request is a new entry."""
        for entry in batch.entries:
            del self._running[entry]
            del self._by_key[entry.key]

    def _oldest_wanted(self) -> list[Entry[P, W]]:
        now = self._clock()
        window = WINDOW_BATCHES * self.limits.max_batch_requests
        wanted: list[Entry[P, W]] = []
        while self._queue and len(wanted) < window:
            fresh = list(islice(self._queue, len(wanted), window))
            if not fresh:
                break
            for entry in fresh:
                if entry.wanted(now):
                    wanted.append(entry)
                else:
                    self._drop(entry)
        return wanted

    def _choose(self, candidates: list[Entry[P, W]]) -> list[Entry[P, W]]:
        limits = self.limits
        oldest = candidates[0]
        chosen, longest, tokens = [oldest], oldest.length, oldest.length
        most = min(limits.max_batch_tokens, limits.enough or limits.max_batch_tokens)
        alike = [entry for entry in candidates[1:] if entry.group == oldest.group]
        if not limits.packed:
            # `sorted` is stable: among equally near lengths the older comes first.
            alike = sorted(alike, key=lambda entry: abs(entry.length - oldest.length))
        for entry in alike:
            if len(chosen) == limits.max_batch_requests:
                break
            together = tokens + entry.length
            padded = together if limits.packed else max(longest, entry.length) * (len(chosen) + 1)
            if padded > most or together < (1 - limits.max_padding) * padded:
                continue
            chosen.append(entry)
            longest, tokens = max(longest, entry.length), tokens + entry.length
        return chosen

    def _drop(self, entry: Entry[P, W]) -> None:
        del self._queue[entry]
        del self._by_key[entry.key]
        self.queued_tokens -= entry.length
        self.dropped += 1
