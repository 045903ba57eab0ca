"""Tokens behind a text whose states sum it up (Li et al. 2024, Llama2Vec): one set for what a text says, the words of
an item, and one for what comes next, the words of the item after a history.

They are words that no tokenizer has by itself: a stage of adaptation adds them to the vocabulary.
"""

from __future__ import annotations

from typing import Literal

Purpose = Literal["own", "next"]


def summary_words(purpose: Purpose, count: int) -> list[str]:
    """The ``count`` words of a set, in the order in which they are read."""
    return [f"<|{purpose}-{number}|>" for number in range(1, count + 1)]
