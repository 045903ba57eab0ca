"""Rankers that ask a causal language model about candidates: a prompt holds the history, and the logits of a few label
tokens behind it are the scores. Nothing is written.

The labels (``Yes`` and ``No``, or letters) are single tokens where the answer stands, which is proved when a prompt is
built. What all candidates of a request share is read once (`modeling.generation.shared_prefix`).

Shape legend: C candidates, A labels, K items of an answer, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from modeling.artifact.manifest import ArtifactError, one_line
from modeling.artifact.part_names import Part
from modeling.backbone.loading import TextTokenizer
from modeling.encoder.prompt import FreeItem
from modeling.generation.api import GenerationPrompt, ListQuery, Turn
from modeling.generation.base import ItemIdentifiers, NamedItems
from modeling.generation.shared_prefix import SharedPrefixScorer
from modeling.methods.base import LoadContext
from modeling.methods.base_generative import GenerativeMethod, GeneratorRecord, title_end
from modeling.methods.base_ranking import NOTHING_WRITTEN, Item, Ranker, best_rows
from modeling.methods.dense_scores import COLLABORATIVE, CollaborativeModel


@dataclass(frozen=True)
class HistoryPrompt(GenerationPrompt):
    """Also all items of the history, free titles among them; the dense artifact may read more than the model."""

    history: tuple[Item, ...] = ()


def label_tokens(tokenizer: Any, before: str, labels: Sequence[str]) -> tuple[int, ...]:
    """The token of every label where it stands behind the text ``before``.

    Raises:
        ValueError: a label is not one token there, or two have the same one.
    """
    pieces = TextTokenizer(tokenizer)
    alone, *joined = pieces.fixed([before, *(before + label for label in labels)])
    for label, tokens in zip(labels, joined, strict=True):
        if tokens[:-1] != alone:
            raise ValueError(
                f"label {label!r} is not a single token behind {before!r}: {tokens} does not continue {alone} by one; "
                "take other labels"
            )
    found = tuple(tokens[-1] for tokens in joined)
    if len(set(found)) < len(found):
        twice = next(label for label, token in zip(labels, found, strict=True) if found.count(token) > 1)
        raise ValueError(
            f"label {twice!r} has the token of another label (the unknown one of a small tokenizer, for instance); "
            "take other labels"
        )
    return found


class PromptRanker(NamedItems, Ranker):  # type: ignore[misc]  # its title tokens are never None
    """A ranker around a causal language model; how candidates are put to it is the method's (`shared`,
    `prepare_candidates`, `score`).

    Candidates of a list are the best items of a dense artifact of the same catalog, the most popular ones where there
    is none. The model orders the first ``candidates`` of them; further ones follow in the order they were found in.

    Args:
        model: the Hugging Face model, with its head.
        names: of the catalog's items, titles.
        end: token that closes a title where one is written.
        prefix: token ids that begin every prompt.
        labels: tokens whose logits are read.
        retriever: finds candidates; None: popular ones are taken.
        candidates: how many the model orders.
        titles: newest items of a history that the prompt holds; the retriever may read more.
    """

    def __init__(
        self,
        model: nn.Module,
        names: ItemIdentifiers,
        *,
        end: int,
        prefix: Sequence[int],
        labels: Sequence[int],
        retriever: CollaborativeModel | None,
        candidates: int,
        titles: int,
    ) -> None:
        self.model, self.names, self.end, self.tuned = model, names, end, None
        self.reads, self.titles, self.default = names.spelling.reads, titles, NOTHING_WRITTEN
        self.history_limit = max(titles, 0 if retriever is None else retriever.encoder.history_limit)
        self.retriever, self.candidates, self.catalog_size = retriever, candidates, len(names.tokens)
        self._place_N = names.place_N
        self.scorer = SharedPrefixScorer(model, labels, prefix)

    @property
    def networks(self) -> dict[Part, nn.Module]:
        """The language model, and the dense artifact that finds candidates."""
        found: dict[Part, nn.Module] = {Part.WEIGHTS: self.model}
        return found if self.retriever is None else {**found, Part.COLLABORATIVE: self.retriever}

    def shared(self, history: Sequence[Item]) -> list[int]:
        """What is read of a history before all candidates, after the prefix."""
        raise NotImplementedError

    def most_positions(self, title_tokens: int) -> int:
        """Positions that ``candidates`` candidates with titles of so many tokens take."""
        raise NotImplementedError

    def prepare(self, history: Sequence[Item], user_id: str | None = None) -> HistoryPrompt:
        """The newest items of a history; candidates follow when it is known what is wanted."""
        history = history[-self.history_limit :]
        rows = tuple(item for item in history if not isinstance(item, FreeItem))
        longest = int(np.diff(self.names.tokens.offsets).max(initial=1))
        return HistoryPrompt(
            tuple(self.shared(history[-self.titles :])), rows, self.most_positions(longest), tuple(history)
        )

    def retrieve(self, rows: Sequence[int], wanted: ListQuery) -> NDArray[np.int64]:
        """Eligible rows, best first, at least ``candidates`` where there are so many."""
        asked = ListQuery(max(self.candidates, wanted.k), wanted.exclude, wanted.allowed)
        if self.retriever is None or not rows:
            return best_rows(-self._place_N, asked)[0]
        return best_rows(self.retriever(rows), asked)[0]

    def rank_items(
        self, history: Sequence[Item], rows: Sequence[int], wanted: ListQuery, *, turn: Turn = nullcontext
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """As `Ranker.rank`; also how many of the rows the model was not asked about, which are the last.

        Args:
            history: free titles among it.
            rows: the catalog's items in it, by which candidates are found.
            wanted: how many, and which may be.
            turn: see `CandidateRanker.score`.
        """
        with turn():
            found = self.retrieve(rows, wanted)
        asked, others = found[: self.candidates], found[self.candidates :]
        if not len(asked):
            return asked, np.empty(0, np.float32), 0
        (scores,) = self.score([self.prepare_candidates(history, asked.tolist())], turn=turn)
        order = np.lexsort((asked, -scores))
        behind = float(scores.min()) - 1 - np.arange(len(others), dtype=np.float32)
        rows_K = np.concatenate([asked[order], others])[: wanted.k]
        scores_K = np.concatenate([scores[order], behind])[: wanted.k].astype(np.float32)
        return rows_K, scores_K, max(0, len(rows_K) - len(asked))

    def rank(
        self, rows: Sequence[int], wanted: ListQuery, *, turn: Turn = nullcontext
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Ranker.rank`."""
        return self.rank_items(list(rows), rows, wanted, turn=turn)[:2]

    def answer(
        self, prompt: GenerationPrompt, wanted: ListQuery, *, turn: Turn = nullcontext
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """See `Ranker.answer`; free titles of the history are read too."""
        assert isinstance(prompt, HistoryPrompt)
        return self.rank_items(prompt.history, prompt.rows, wanted, turn=turn)


class PromptedRecord(GeneratorRecord):
    """How candidates are put to the model.

    Attributes:
        instruction: of the prompt.
        labels: texts of the answers whose logits are the scores.
        candidates: how many items of a list the model orders.
        retriever: whether a dense artifact inside this one finds them.
        titles: newest items of a history that the prompt holds; ``history_limit`` counts what the dense artifact reads.
    """

    instruction: str
    labels: tuple[str, ...]
    candidates: int
    retriever: bool
    titles: int


P = TypeVar("P", bound=PromptedRecord)


class PromptedMethod(GenerativeMethod[P]):
    """Stores and loads a `PromptRanker`: beside the language model stands the dense artifact, where there is one."""

    def save_parts(self, folder: Path, model: Any) -> dict[str, Any]:
        """Copy the dense artifact, and say how candidates are put."""
        if model.retriever is not None:
            model.retriever.copy_to(folder)
        return {
            "instruction": model.prompt.instruction, "labels": model.prompt.labels, "candidates": model.candidates,
            "retriever": model.retriever is not None, "titles": model.titles,
        }  # fmt: skip

    def parts(self, record: P, context: LoadContext, names: ItemIdentifiers, prompt: Any) -> dict[str, Any]:
        """Arguments of the ranker that the record holds, its prompt made by ``prompt.of``; raises `ArtifactError`."""
        files, inner = context.files, None
        if record.retriever:
            inner = CollaborativeModel(files.below(COLLABORATIVE), context.manifest.catalog_size)
        try:
            found = prompt.of(cast(Any, names.spelling).tokenizer, record.instruction, record.labels)
        except ValueError as error:
            raise ArtifactError(f"the prompt of {files.name} cannot be made: {one_line(error)}") from error
        return {
            "prompt": found, "end": title_end(record, context, "a prompt"), "retriever": inner,
            "candidates": record.candidates, "titles": record.titles,
        }  # fmt: skip
