"""Interface of generative models: the seam between the methods that write an item and whoever asks them.

A dense model answers a history with a vector; a generative one writes texts (titles, semantic IDs), and what it wrote
is grounded to items of the catalog. Every generative method, whatever it writes, is asked through `GenerativeModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from modeling.encoder.prompt import FreeItem

NO_ROWS: NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True)
class GenerationPrompt:
    """One history as the tokens that a generative model reads, and the catalog rows among its items."""

    tokens: tuple[int, ...]
    rows: tuple[int, ...] = ()
    later: int = 0
    """At most so many positions are added when it is written (candidates depend on what is wanted)."""

    @property
    def length(self) -> int:
        """Positions that the model reads, a shared prefix not counted."""
        return len(self.tokens) + self.later


@dataclass(frozen=True)
class ListQuery:
    """Query for one history: how many items, which rows never, which rows only (None: all)."""

    k: int = 10
    exclude: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    allowed: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Hypothesis:
    """One text that a model wrote, and the item that it stands for.

    Attributes:
        text: as a person reads it: a title, or a code path such as ``<12><7><201><0>``.
        code: the path of a semantic ID, level by level; None where the method writes titles.
        row: catalog row it was grounded to; None where there is none.
        score: log probability under the model, divided by length ** length_penalty.
        distance: how far the grounding had to go: 0 where the text names an item as written; None where nothing was
            grounded, or by another rule than a distance.
        valid: whether the text, as written, is a real item.
    """

    text: str
    score: float
    valid: bool
    row: int | None = None
    distance: float | None = None
    code: tuple[int, ...] | None = None


@dataclass(frozen=True)
class GeneratedList:
    """The answer to one history.

    Attributes:
        rows_K: distinct eligible catalog rows, best first; fewer than k only if fewer are eligible.
        scores_K: of these rows, descending; their scale depends on the method.
        filled: number of rows at the end that were not generated, but filled in by the method's rule.
        generated: generated texts, best first.
        prompt_tokens: positions read for this history, without a shared prefix.
        new_tokens: tokens generated for this history, summed over the beams.
        seconds: of the batch, by stage: ``prefill``, ``decode``, ``ground``, ``search``.
    """

    rows_K: NDArray[np.int64]
    scores_K: NDArray[np.float32]
    filled: int
    generated: tuple[Hypothesis, ...]
    prompt_tokens: int
    new_tokens: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class GenerationSettings:
    """Decoding settings; None: the value that the artifact was evaluated with."""

    beams: int | None = None
    max_new_tokens: int | None = None


OnWriting = Callable[[int, list[str]], None]
"""Called after each decoding step with its number and each history's best text so far; an exception ends decoding."""

Turn = Callable[[], AbstractContextManager[object]]
"""Returns a context manager that is held during each use of the device, at most one decoding step, so that other users
of the device wait no longer than that."""


class GenerativeModel(Protocol):
    """A loaded generative artifact. Not thread-safe."""

    reads: tuple[str, ...]
    """Accepted inputs: ``ids``, and ``text`` if titles outside the catalog can be read."""
    history_limit: int
    """Maximum number of items read, counted from the newest."""
    default: GenerationSettings
    """Settings that the artifact was evaluated with; both fields are set."""
    limit: GenerationSettings
    """Largest values that a request may set; both fields are set."""

    @property
    def adds_items(self) -> bool:
        """Whether items that it was not trained on can be generated; see `change_items`."""
        return False

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free titles as items of a history; raises `CannotReadText` if the model reads item ids only."""
        ...

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> GenerationPrompt:
        """The prompt of one history, oldest item first; ``user_id`` is used only by a model that reads users."""
        ...

    def write(
        self,
        prompts: Sequence[GenerationPrompt],
        wanted: Sequence[ListQuery],
        settings: GenerationSettings = GenerationSettings(),
        *,
        on_step: OnWriting | None = None,
        turn: Turn = nullcontext,
    ) -> list[GeneratedList]:
        """Write for several histories at once, ground what was written, and rank.

        The same history gives the same answer alone and in any batch.

        Raises:
            GenerationError: settings beyond `limit`, or a prompt that is too long for the model.
        """
        ...

    def item_refusal(self, title: str) -> str | None:
        """Why an item with this title, which the model was not trained on, cannot be written; None where it can."""
        return "this method recommends the items that it was trained on only; items cannot be added to it"

    def change_items(self, closed: Set[int], added: Mapping[int, str]) -> None:
        """Take over which items there are, from the next `write` on; it may be called while one runs.

        Args:
            closed: all rows of the catalog that are not to be written.
            added: titles, by row, of all items that it was not trained on; rows above those of the catalog, none of
                which `item_refusal` refuses. Nothing where ``adds_items`` is false.
        """
        return
