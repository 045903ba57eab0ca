"""A history of catalog titles becomes positions without a loop over its items: the same as item by item."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from modeling.encoder.prompt import ID, TOKEN, FreeItem, PromptBuilder, TitleTokens

PREFIX = [101, 102]


@st.composite
def asked(draw: st.DrawFn) -> tuple[list[list[int]], list[int], int, int]:
    """Titles (some are empty), a history of their rows and the unknown one, and limits that bind now and then."""
    titles = draw(st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=6))
    history = draw(st.lists(st.integers(0, len(titles)), min_size=1, max_size=12))
    return titles, history, draw(st.integers(1, 12)), draw(st.integers(len(PREFIX) + 1, 40))


def builder(titles: list[list[int]], items: int, positions: int) -> PromptBuilder:
    tokens = TitleTokens.of_titles([str(row) for row in range(len(titles))], lambda _: titles, 5)
    return PromptBuilder(
        form="titles", vectors_per_item=1, catalog_size=len(titles), prefix=PREFIX, titles=tokens, item_limit=items,
        position_limit=positions,
    )  # fmt: skip


@given(asked())
@example(([[1, 2]], [0, 0, 0, 0], 12, len(PREFIX) + 6))  # what stays fills the positions exactly
@example(([[1, 2, 3]], [1, 0], 12, len(PREFIX) + 2))  # the newest has to be cut
@example(([[]], [0, 1], 12, 40))  # no title has a token
def test_titles_of_the_catalog_are_put_together_as_item_by_item(
    given_: tuple[list[list[int]], list[int], int, int],
) -> None:
    titles, history, items, positions = given_
    pieces: list[list[int]] = []
    room = positions - len(PREFIX)
    for row in reversed(history[-items:]):
        title = titles[row] if row < len(titles) else []
        if not pieces:
            title = title[: room - 1]  # the newest is cut before it is left out
        if len(title) + 1 > room:
            break
        room -= len(title) + 1
        pieces.insert(0, [*title, row])
    prompt = builder(titles, items, positions).build(history)
    assert prompt.values_T.tolist() == PREFIX + [value for piece in pieces for value in piece]
    ends = (len(PREFIX) - 1 + np.cumsum([len(piece) for piece in pieces])).tolist()
    assert prompt.boundaries_M.tolist() == ends
    assert prompt.kinds_T.tolist() == [ID if place in ends else TOKEN for place in range(prompt.length)]


@given(asked())
def test_a_free_title_leaves_those_of_the_catalog_as_they_are(
    given_: tuple[list[list[int]], list[int], int, int],
) -> None:
    titles, history, _, _ = given_
    made = builder(titles, 100, 1000)
    alone, after = made.build(history), made.build([FreeItem("a lamp", tokens=np.array([7], np.int32)), *history])
    shift = len(PREFIX) + 2
    assert after.values_T[shift:].tolist() == alone.values_T[len(PREFIX) :].tolist()
    assert after.kinds_T[shift:].tolist() == alone.kinds_T[len(PREFIX) :].tolist()
