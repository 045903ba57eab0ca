"""Rankers that prompt a causal language model: the prompt holds history and candidates, and the scores are the logits
of a few label tokens after it. No text is generated.

Each label (``Yes`` and ``No``, or a letter) must be a single token at the answer's position; this is checked when a
prompt is built. The part of a prompt that all candidates share is encoded once (`modeling.generation.shared_prefix`).

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
    """Adds all items of the history, including free titles; the retriever may read more of them than the model."""

    history: tuple[Item, ...] = ()


def label_tokens(tokenizer: Any, before: str, labels: Sequence[str]) -> tuple[int, ...]:
    """The token of each label directly after the text ``before``.

    Raises:
        ValueError: a label is not a single token there, or two labels have the same token.
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
    """A ranker around a causal language model. Subclasses define the prompt (`shared`, `prepare_candidates`, `score`).

    Candidates of a list are the best items of a dense artifact of the same catalog, or the most popular items without
    one. The model orders the first ``candidates`` of them; the rest follow in retrieval order.

    Args:
        model: the Hugging Face model, with its head.
        names: titles of the catalog's items, as tokens.
        end: token that ends a title.
        prefix: token ids at the beginning of every prompt.
        labels: tokens whose logits are the scores.
        retriever: finds candidates; None: the most popular items are taken.
        candidates: number of candidates that the model orders.
        titles: number of newest items in the prompt; the retriever may read more.
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
        """The language model, and the dense artifact that retrieves candidates."""
        found: dict[Part, nn.Module] = {Part.WEIGHTS: self.model}
        return found if self.retriever is None else {**found, Part.COLLABORATIVE: self.retriever}

    def shared(self, history: Sequence[Item]) -> list[int]:
        """Tokens of a history that all candidates share, after the prefix."""
        raise NotImplementedError

    def most_positions(self, title_tokens: int) -> int:
        """Positions that ``candidates`` candidates take if each title has ``title_tokens`` tokens."""
        raise NotImplementedError

    def prepare(self, history: Sequence[Item], user_id: str | None = None) -> HistoryPrompt:
        """The newest items of a history as a prompt; candidates are added when the requested list is known."""
        history = history[-self.history_limit :]
        rows = tuple(item for item in history if not isinstance(item, FreeItem))
        longest = int(np.diff(self.names.tokens.offsets).max(initial=1))
        return HistoryPrompt(
            tuple(self.shared(history[-self.titles :])), rows, self.most_positions(longest), tuple(history)
        )

    def retrieve(self, rows: Sequence[int], wanted: ListQuery) -> NDArray[np.int64]:
        """Eligible rows, best first: at least ``candidates`` of them, or all if there are fewer."""
        asked = ListQuery(max(self.candidates, wanted.k), wanted.exclude, wanted.allowed)
        if self.retriever is None or not rows:
            return best_rows(-self._place_N, asked)[0]
        return best_rows(self.retriever(rows), asked)[0]

    def rank_items(
        self, history: Sequence[Item], rows: Sequence[int], wanted: ListQuery, *, turn: Turn = nullcontext
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """Rows and scores as of `Ranker.rank`, and the number of rows at the end that the model did not score.

        Args:
            history: items including free titles, oldest first.
            rows: catalog rows of the history, with which candidates are retrieved.
            wanted: length of the list, and eligible rows.
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
        """See `Ranker.answer`; free titles in the history are read too."""
        assert isinstance(prompt, HistoryPrompt)
        return self.rank_items(prompt.history, prompt.rows, wanted, turn=turn)


class PromptedRecord(GeneratorRecord):
    """Manifest record of a `PromptRanker`.

    Attributes:
        instruction: first text of the prompt.
        labels: texts of the answers whose logits are the scores.
        candidates: number of candidates that the model orders.
        retriever: whether the artifact contains a dense artifact that retrieves candidates.
        titles: number of newest items in the prompt; ``history_limit`` also covers what the retriever reads.
    """

    instruction: str
    labels: tuple[str, ...]
    candidates: int
    retriever: bool
    titles: int


P = TypeVar("P", bound=PromptedRecord)


class PromptedMethod(GenerativeMethod[P]):
    """Stores and loads a `PromptRanker`: the language model and, if there is one, the dense artifact."""

    def save_parts(self, folder: Path, model: Any) -> dict[str, Any]:
        """See `GenerativeMethod.save_parts`: copies the dense artifact and returns the prompt's settings."""
        if model.retriever is not None:
            model.retriever.copy_to(folder)
        return {
            "instruction": model.prompt.instruction, "labels": model.prompt.labels, "candidates": model.candidates,
            "retriever": model.retriever is not None, "titles": model.titles,
        }  # fmt: skip

    def parts(self, record: P, context: LoadContext, names: ItemIdentifiers, prompt: Any) -> dict[str, Any]:
        """Constructor arguments of the ranker.

        Args:
            record, context, names: see `GenerativeMethod.generator`.
            prompt: class of the prompt; its ``of`` builds one from tokenizer, instruction and labels.

        Raises:
            ArtifactError: the prompt cannot be built, or the dense artifact cannot be loaded.
        """
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
