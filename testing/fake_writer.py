"""A generative artifact without training: a model that writes the titles of the items that a `TableEncoder` likes best.

It keeps the seam of `modeling.generation.api` and is honest about it: what is written follows from every item read
and from their order, the same alone and in a batch; one beam is one text, one step one word, and the device is held
for one step at a time. Every third text has a letter wrong and is grounded over a distance. Items that no text
reached are filled up by the encoder's ranking. Knobs make it slow or faulty where a test is about that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from modeling.artifact.golden import WrittenCase
from modeling.encoder.prompt import FreeItem, Prompt
from modeling.generation.api import (
    GeneratedList,
    GenerationPrompt,
    GenerationSettings,
    GenerativeModel,
    Hypothesis,
    ListQuery,
    OnWriting,
    Turn,
)
from modeling.generation.beam_search import GenerationError
from service.artifacts.loading import LoadedArtifact, LoadedGenerative
from testing.fake_parts import TableEncoder, make_parts

WRONG_LETTER_DISTANCE = 0.2
AS_EVALUATED = GenerationSettings()
SPELT_WRONG = 3  # every so many texts


@dataclass(frozen=True)
class ReadPrompt(GenerationPrompt):
    """A prompt that remembers what it was made of."""

    read: Prompt | None = None


class TitleWriter(GenerativeModel):
    """Writes titles."""

    reads: tuple[str, ...] = ("ids", "text")
    default = GenerationSettings(4, 12)
    limit = GenerationSettings(20, 32)

    def __init__(self, encoder: TableEncoder, titles: Sequence[str], *, step_s: float = 0.0) -> None:
        self.encoder = encoder
        self.titles = titles
        self.history_limit = encoder.history_limit
        self.step_s = step_s
        self.poison: int | None = None  # a row whose prompts fail
        self.fatal: int | None = None  # a row that kills the thread
        self.repeats = False  # answers with an item twice
        self.batches: list[int] = []  # requests of each batch
        self.steps = 0  # begun
        self.gate = threading.Event()  # closed: a step waits, on the device
        self.gate.set()

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        return self.encoder.read_titles(titles)

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> ReadPrompt:
        read = self.encoder.prepare(history)
        return ReadPrompt(tuple(read.values_T.tolist()), read=read)

    def write(
        self,
        prompts: Sequence[GenerationPrompt],
        wanted: Sequence[ListQuery],
        settings: GenerationSettings = AS_EVALUATED,
        *,
        on_step: OnWriting | None = None,
        turn: Turn = nullcontext,
    ) -> list[GeneratedList]:
        beams = settings.beams or self.default.beams
        longest = settings.max_new_tokens or self.default.max_new_tokens
        assert beams and longest
        if beams > (self.limit.beams or 0) or longest > (self.limit.max_new_tokens or 0):
            raise GenerationError(f"{beams} beams of {longest} tokens are more than {self.limit}")
        self.batches.append(len(prompts))
        started = time.monotonic()
        with turn():
            self._step(prompts)
            ranked = [self._rank(prompt) for prompt in prompts]
        prefilled = time.monotonic()
        texts = [[self._text(place, row) for place, row in enumerate(rows[:beams])] for rows in ranked]
        steps = min(longest, max(len(text.split()) for own in texts for text in own))
        for step in range(1, steps + 1):
            with turn():
                self._step(prompts)
            if on_step is not None:
                on_step(step, [" ".join(own[0].split()[:step]) for own in texts])
        seconds = {"prefill": prefilled - started, "decode": time.monotonic() - prefilled, "ground": 0.0, "search": 0.0}
        return [
            self._answer(prompt, rows, want, own, steps, seconds)
            for prompt, rows, want, own in zip(prompts, ranked, wanted, texts, strict=True)
        ]

    def _step(self, prompts: Sequence[GenerationPrompt]) -> None:
        self.steps += 1
        self.gate.wait()
        if self.step_s:
            time.sleep(self.step_s)
        rows = {row for prompt in prompts for row in prompt.tokens}
        if self.fatal in rows:
            raise SystemExit("the generation thread is told to die")
        if self.poison in rows:
            raise RuntimeError("poisoned row")

    def _rank(self, prompt: GenerationPrompt) -> list[int]:
        assert isinstance(prompt, ReadPrompt) and prompt.read is not None
        scores_N = self.encoder.table_ND @ self.encoder._encode_one(prompt.read)
        rows: list[int] = np.argsort(-scores_N, kind="stable").tolist()
        return rows

    def _text(self, place: int, row: int) -> str:
        title = self.titles[row]
        return title.replace("the", "teh") if place % SPELT_WRONG == SPELT_WRONG - 1 else title

    def _answer(
        self,
        prompt: GenerationPrompt,
        ranked: Sequence[int],
        wanted: ListQuery,
        texts: Sequence[str],
        steps: int,
        seconds: dict[str, float],
    ) -> GeneratedList:
        generated = tuple(
            Hypothesis(
                text, -0.1 * place, valid := text == self.titles[row], row, 0.0 if valid else WRONG_LETTER_DISTANCE
            )
            for place, (row, text) in enumerate(zip(ranked, texts, strict=False))
        )
        never = set(wanted.exclude.tolist())
        only = None if wanted.allowed is None else set(wanted.allowed.tolist())
        rows = [row for row in ranked if row not in never and (only is None or row in only)][: wanted.k]
        reached = {text.row for text in generated}
        if self.repeats:
            rows[-1] = rows[0]
        scores_K = -np.arange(len(rows), dtype=np.float32)
        return GeneratedList(
            np.array(rows, np.int64), scores_K, sum(row not in reached for row in rows), tuple(generated),
            prompt.length, steps * len(texts), dict(seconds),
        )  # fmt: skip


def make_generative_parts(
    parts: LoadedArtifact | None = None, *, name: str = "fake-writer", step_s: float = 0.0
) -> LoadedGenerative:
    """Parts on the same catalog as `parts`."""
    parts = parts or make_parts()
    source = parts.encoder
    assert isinstance(source, TableEncoder)
    encoder = TableEncoder(source.table_ND, limit=source.history_limit, reads_text=True)
    model = TitleWriter(encoder, parts.catalog.titles)
    golden = tuple(_golden(model, parts, case.ids) for case in parts.golden[:5])
    model.batches.clear()
    return LoadedGenerative(
        name=name, version="ba9876543210", recipe="fake-writing", reads=model.reads, model=model,
        catalog=parts.catalog, golden=golden,
    )  # fmt: skip


def _golden(model: TitleWriter, parts: LoadedArtifact, history: list[str]) -> WrittenCase:
    rows = np.array([parts.catalog.row(item) for item in history], np.int64)
    (written,) = model.write([model.prepare(rows.tolist())], [ListQuery(10, rows)])
    top = [parts.catalog.item_ids[row] for row in written.rows_K]
    return WrittenCase(history=list(history), texts=[text.text for text in written.generated], top=top)
