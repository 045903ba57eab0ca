"""Arguments and results of a search: settings, generated texts, counts, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class GenerationError(ValueError):
    """A search was asked for something that cannot be generated."""


@dataclass(frozen=True)
class BeamSettings:
    """Settings of beam search.

    Attributes:
        beams: W.
        max_new_tokens: maximum length of a text in tokens, including the end token.
        length_penalty: exponent of the length by which a score is divided; 0 ranks by the sum of log probabilities.
        early_stopping: True: a prompt is finished as soon as W texts have ended; False: when the best running beam, at
            its current length, scores below the worst ended text.
        renormalize: renormalise probabilities over the tokens that the trie allows after a state. Off (default): a
            text's score is its log probability under the model. On: its log probability given that only texts of the
            trie are generated; use it for a model trained with that softmax. For other models it favours prefixes with
            few continuations. ``max_new_tokens`` then does not count tokens without an alternative at the end of a
            text.
    """

    beams: int = 4
    max_new_tokens: int = 48
    length_penalty: float = 1.0
    early_stopping: bool = False
    renormalize: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.beams < 1 or self.max_new_tokens < 1:
            raise GenerationError(
                f"beams is {self.beams} and max_new_tokens {self.max_new_tokens}; both must be 1 or more"
            )


@dataclass(frozen=True)
class Text:
    """One generated text: its tokens without the end token, its score, whether it ended or was cut, and the trie
    state it reached (-1 in a free search)."""

    tokens: tuple[int, ...]
    score: float
    ended: bool
    state: int = -1


@dataclass
class Counts:
    """Counts of one search: prompt positions read, decoding steps, tokens written (all beams)."""

    prompt_tokens: int = 0
    steps: int = 0
    new_tokens: int = 0


OnStep = Callable[[int, list[tuple[int, ...]]], None]
"""Called after each step with its number and the best beam so far of every prompt."""
