"""Arguments and results of a search: settings, generated texts, counts, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class GenerationError(ValueError):
    """A search was asked for something that cannot be generated."""


@dataclass(frozen=True)
class BeamSettings:
    """How to search.

    Attributes:
        beams: W.
        max_new_tokens: longest text, its end token included.
        length_penalty: exponent of the length by which a score is divided; 0 ranks by the sum of log probabilities.
        early_stopping: True: a prompt is done as soon as W texts have ended; False: when the best running beam, at its
            present length, is behind the worst of them.
        renormalize: divide probabilities among the allowed children of a state. Off by default: a text's score is then
            its probability under the model. On, it is the probability of being reached when only allowed texts exist,
            which is what a model was trained for whose loss knew the trie, and favours prefixes with few continuations
            in one whose loss did not. ``max_new_tokens`` then bounds what the model writes, the rest of a text that is
            determined by it not counted.
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
