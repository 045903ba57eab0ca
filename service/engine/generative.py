"""The generative engine: from prompts to written and grounded items, in batches, on one thread of its own.

Requests with the same beams and length are written together. Those whose candidates a ranker scores, and those that
want a sentence, are computed and answered one after the other. More candidates than a batch holds are divided first and
scored in several batches. The device is held for one pass at a time (`device_lock.py`), so dense requests wait for one
pass at most. After every step, and while it waits for the device, the writing looks whether anyone still wants it: when
all clients of a batch have left or run out of time, it ends there.

A failing batch is written again request by request, so that only the request at fault sees the error.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from modeling.generation.api import GeneratedList, GenerativeModel, ListQuery
from modeling.generation.beam_search import GenerationError
from modeling.generation.sentence import Sentence, sentence_writer
from modeling.methods.base_ranking import CandidateRanker, RankPart
from service.engine.base import OnStep, PendingResult, QueuedEngine, failed, smoothed
from service.engine.batcher import Batch, Entry, Limits, QueueFull, Waiter
from service.engine.device_lock import DeviceLock
from service.engine.work import (
    Divided,
    DivisionWork,
    RankWork,
    Said,
    Scored,
    SentenceWork,
    WriteWork,
    Writing,
    one_by_one_on_failure,
)
from service.errors import AnyoError, InvalidInput, Overloaded
from service.observability.metrics import Metrics

AnyWork = WriteWork | DivisionWork | RankWork | SentenceWork
AnyResult = Writing | Divided | Scored | Said
AnyEntry = Entry[AnyWork, PendingResult[AnyResult]]
AnyBatch = Batch[AnyWork, PendingResult[AnyResult]]
DIVIDING, RANKING, SAYING = "dividing", "ranking", "saying"
"""The groups of what is divided, of what is scored, and of sentences; what is written is grouped by its settings."""


class GenerationCancelled(Exception):
    """The request for this text was cancelled."""


class GenerativeEngine(QueuedEngine[AnyWork, AnyResult]):
    """Lets one generative model write for many requests; `start`, then `run`, then `close`."""

    full_reason = "generative_queue_full"
    batch_setting = "ANYO_GENERATIVE_BATCH_TOKENS"
    running_what = "a step of generation"

    def __init__(
        self,
        model: GenerativeModel,
        limits: Limits,
        metrics: Metrics,
        *,
        recipe: str,
        catalog_size: int,
        device: DeviceLock,
        max_dense_waiting: int,
        stall_seconds: float = 60.0,
    ) -> None:
        super().__init__(limits, metrics, stall_seconds)
        self._model: GenerativeModel | None = model
        self.sentences = sentence_writer(model)
        self._recipe = recipe
        self._catalog_size = catalog_size
        self._device = device
        self._max_dense_waiting = max_dense_waiting
        for series in (metrics.generated_tokens, metrics.generated_texts, metrics.invalid_generations,
                       metrics.grounding_distance, metrics.filled_items):  # fmt: skip
            series(recipe)  # there from the start, so that none can be told from zero

    # -- from the event loop ---------------------------------------------------------------------------------

    async def run(self, work: WriteWork, key: Hashable, deadline: float, on_step: OnStep | None = None) -> Writing:
        """Write for one request; `key` names identical work, `deadline` is a time of `time.monotonic`.

        `on_step` gets the number of each step and the best text so far. Raises TooLarge, Overloaded, InvalidInput,
        DeadlineExceeded, ModelError, NotReady. Cancelling it ends the writing, unless others wait for it too.
        """
        answer = await self._answer_to(lambda waiter: self._admit(work, key, work.settings, waiter), deadline, on_step)
        assert isinstance(answer, Writing)
        return answer

    async def divide(self, work: DivisionWork, key: Hashable, deadline: float) -> Divided:
        """Divide the candidates of one request, by a model that is a `CandidateRanker`; otherwise as `run`."""
        answer = await self._answer_to(lambda waiter: self._admit(work, key, DIVIDING, waiter), deadline)
        assert isinstance(answer, Divided)
        return answer

    async def score(self, work: RankWork, key: Hashable, deadline: float) -> Scored:
        """Score candidates for one request, by a model that is a `CandidateRanker`; otherwise as `run`."""
        answer = await self._answer_to(lambda waiter: self._admit(work, key, RANKING, waiter), deadline)
        assert isinstance(answer, Scored)
        return answer

    async def say(self, work: SentenceWork, key: Hashable, deadline: float) -> Said:
        """Decode a sentence for one request, where `sentences` is not None; otherwise as `run`."""
        answer = await self._answer_to(lambda waiter: self._admit(work, key, SAYING, waiter), deadline)
        assert isinstance(answer, Said)
        return answer

    async def close(self, within: float) -> None:
        """Finish what is in flight for at most `within` seconds, fail the rest with NotReady, stop the thread."""
        await super().close(within)
        self._model = self.sentences = None

    def _loops(self) -> Iterable[tuple[str, Callable[[], None]]]:
        return (("generation", self._write_loop),)

    def _admit(
        self, work: AnyWork, key: Hashable, group: Hashable, waiter: Waiter[PendingResult[AnyResult]]
    ) -> AnyEntry:
        if (waiting := self._device.dense_requests()) > self._max_dense_waiting:
            self._metrics.rejected("generative_after_dense").inc()
            raise Overloaded(
                f"{waiting} dense requests wait for the device, and beyond {self._max_dense_waiting} no generative one "
                "is taken (ANYO_GENERATIVE_DENSE_WAITING); POST /recommend is answered",
                retry_after=1,
            )
        with self._wake:
            return self._queue(key, work.positions, work, waiter, group)

    def _what_is_long(self) -> str:
        return "history with these beams and new tokens"

    # -- the thread ------------------------------------------------------------------------------------------

    def _write_loop(self) -> None:
        while (batch := self._take()) is not None:
            written = isinstance(batch.entries[0].work, WriteWork)
            for part in [batch] if written else [Batch((entry,)) for entry in batch.entries]:
                self._compute(part)

    def _compute(self, batch: AnyBatch) -> None:
        """Compute and deliver; what is not written has passes of its own, so nobody waits for another's."""
        started = time.monotonic()
        others: dict[type, Callable[[Sequence[AnyEntry]], Sequence[object]]]
        others = {DivisionWork: self._divide, RankWork: self._score, SentenceWork: self._say}
        compute = others.get(type(batch.entries[0].work), self._write)
        results = one_by_one_on_failure(compute, batch.entries)
        self._forward_since = None
        rate = batch.tokens / max(time.monotonic() - started, 1e-6)
        self._tokens_per_second = smoothed(self._tokens_per_second, rate)
        self._metrics.generative_batch_requests.observe(len(batch.entries))
        self._on_loop(self._deliver, batch, results, started)

    def _take(self) -> AnyBatch | None:
        with self._wake:
            while not self._stopping:
                if (batch := self._batcher.next_batch()) is not None:
                    return batch
                self._wake.wait()
        return None

    def _divide(self, entries: Sequence[AnyEntry]) -> list[list[RankPart] | None]:
        """Return the parts of each; None for all where the request was cancelled."""
        works = [entry.work for entry in entries if isinstance(entry.work, DivisionWork)]
        model: object = self._model
        assert isinstance(model, CandidateRanker)
        try:
            self._refuse_if_abandoned(entries)
            divided = [model.divide(work.prompt, work.most, turn=lambda: self._turn(entries)) for work in works]
        except GenerationCancelled:
            return [None] * len(entries)
        for work, parts in zip(works, divided, strict=True):
            places = sorted(place for part in parts for place in part.places)
            if places != list(range(len(work.prompt.candidates))):
                raise RuntimeError(f"the ranker divided {len(work.prompt.candidates)} candidates into {len(places)}")
        return list(divided)

    def _score(self, entries: Sequence[AnyEntry]) -> list[NDArray[np.float32] | None]:
        """Return the scores of each; None for all where the request was cancelled."""
        prompts = [entry.work.prompt for entry in entries if isinstance(entry.work, RankWork)]
        model: object = self._model
        assert isinstance(model, CandidateRanker)
        try:
            self._refuse_if_abandoned(entries)
            self._forward_since = time.monotonic()
            scored = model.score(prompts, turn=lambda: self._turn(entries))
        except GenerationCancelled:
            return [None] * len(entries)
        shapes = [np.shape(scores_C) for scores_C in scored]
        if shapes != [(len(prompt.candidates),) for prompt in prompts]:
            raise RuntimeError(f"the ranker returned scores of shapes {shapes[:5]} for {len(prompts)} prompts")
        if not all(np.isfinite(scores_C).all() for scores_C in scored):
            raise RuntimeError("the ranker returned a score that is not finite")
        return list(scored)

    def _say(self, entries: Sequence[AnyEntry]) -> list[Sentence | None]:
        """Return the sentence of each; None for all where the request was cancelled."""
        prompts = [entry.work.prompt for entry in entries if isinstance(entry.work, SentenceWork)]
        writer = self.sentences
        assert writer is not None
        try:
            self._refuse_if_abandoned(entries)
            self._forward_since = time.monotonic()
            return [writer.write(prompt, turn=lambda: self._turn(entries)) for prompt in prompts]
        except GenerationCancelled:
            return [None] * len(entries)

    def _write(self, entries: Sequence[AnyEntry]) -> list[GeneratedList | None]:
        """Return what was written for each; None for all where the request was cancelled."""
        works = [entry.work for entry in entries if isinstance(entry.work, WriteWork)]
        model = self._model
        assert model is not None
        try:
            self._refuse_if_abandoned(entries)
            self._forward_since = time.monotonic()
            written = model.write(
                [work.prompt for work in works],
                [work.wanted for work in works],
                works[0].settings,
                on_step=lambda number, texts: self._after_step(entries, number, texts),
                turn=lambda: self._turn(entries),
            )
        except GenerationCancelled:
            return [None] * len(entries)
        if len(written) != len(works):
            raise RuntimeError(f"the model wrote {len(written)} answers for {len(works)} prompts")
        for work, answer in zip(works, written, strict=True):
            check_written(answer, work.wanted, self._catalog_size)
        return list(written)

    def _after_step(self, entries: Sequence[AnyEntry], number: int, texts: list[str]) -> None:
        self._forward_since = time.monotonic()
        self._refuse_if_abandoned(entries)
        if any(waiter.ticket.on_step is not None for entry in entries for waiter in tuple(entry.waiters)):
            self._on_loop(_tell, entries, number, texts)

    def _refuse_if_abandoned(self, entries: Sequence[AnyEntry]) -> None:
        now = time.monotonic()
        if self._stopping or not any(entry.wanted(now) for entry in entries):
            raise GenerationCancelled

    @contextlib.contextmanager
    def _turn(self, entries: Sequence[AnyEntry]) -> Iterator[None]:
        """Hold the device for one pass, unless nobody wants it any more; waiting for dense passes is no stall."""
        self._refuse_if_abandoned(entries)
        self._forward_since = None
        with self._device.turn(lambda: self._refuse_if_abandoned(entries)):
            self._forward_since = started = time.monotonic()
            try:
                yield
            finally:
                self._metrics.generative_pass_seconds.observe(time.monotonic() - started)

    # -- back on the event loop ------------------------------------------------------------------------------

    def _deliver(
        self,
        batch: AnyBatch,
        results: Sequence[GeneratedList | list[RankPart] | NDArray[np.float32] | Sentence | Exception | None],
        started: float,
    ) -> None:
        finished = time.monotonic()
        with self._wake:
            self._batcher.done(batch)
        for entry, result in zip(batch.entries, results, strict=True):
            if result is None:
                self._queue_again(entry)
                continue
            answer: AnyResult | AnyoError
            queued = max(0.0, started - entry.arrived)
            if isinstance(result, GenerationError):
                answer = InvalidInput(str(result))
            elif isinstance(result, Exception):
                answer = failed(result)
            elif isinstance(result, GeneratedList):
                self._count(result)
                answer = Writing(result, {"queue": queued, **result.seconds})
            elif isinstance(result, list):
                answer = Divided(result, {"queue": queued, "divide": finished - started})
            elif isinstance(result, Sentence):
                answer = Said(result, {"queue": queued, "sentence": finished - started})
            else:
                answer = Scored(result, {"queue": queued, "rank": finished - started})
            self._resolve(entry, answer)

    def _queue_again(self, entry: AnyEntry) -> None:
        """Someone may have joined an entry just after the last of its waiters had left."""
        with self._wake:
            for waiter in entry.waiters:
                if waiter.gone or waiter.ticket.done():
                    continue
                try:
                    self._batcher.admit(entry.key, entry.length, entry.work, waiter, entry.group)
                except QueueFull as full:
                    waiter.ticket.set_exception(self._overloaded(f"the queue is full ({full})", 0))
            self._wake.notify()

    def _count(self, written: GeneratedList) -> None:
        metrics, recipe = self._metrics, self._recipe
        metrics.generated_tokens(recipe).inc(written.new_tokens)
        metrics.generated_texts(recipe).inc(len(written.generated))
        metrics.invalid_generations(recipe).inc(sum(not text.valid for text in written.generated))
        metrics.filled_items(recipe).inc(written.filled)
        for text in written.generated:
            if text.distance is not None:
                metrics.grounding_distance(recipe).observe(text.distance)


def _tell(entries: Sequence[AnyEntry], number: int, texts: Sequence[str]) -> None:
    for entry, text in zip(entries, texts, strict=True):
        for waiter in entry.waiters:
            if waiter.ticket.on_step is not None and not waiter.ticket.done():
                waiter.ticket.on_step(number, text)


def check_written(written: GeneratedList, wanted: ListQuery, catalog_size: int) -> None:
    """Hold an answer to what every answer is: real items, none twice, none excluded, none that is not allowed.

    Raises RuntimeError, which one request sees, instead of showing anybody an item that there is not.
    """
    rows_K = written.rows_K
    if len(rows_K) > wanted.k or len(rows_K) != len(written.scores_K):
        raise RuntimeError(f"{len(rows_K)} rows and {len(written.scores_K)} scores were written, {wanted.k} are wanted")
    if len(rows_K) and not (int(rows_K.min()) >= 0 and int(rows_K.max()) < catalog_size):
        raise RuntimeError(f"a row outside the catalog of {catalog_size} items was written")
    if len(np.unique(rows_K)) != len(rows_K):
        raise RuntimeError("an item was written twice")
    if np.isin(rows_K, wanted.exclude).any():
        raise RuntimeError("an excluded item was written")
    if wanted.allowed is not None and not np.isin(rows_K, wanted.allowed).all():
        raise RuntimeError("an item of another category was written")
