"""Golden cases: histories with the answers of the process that trained the artifact, for every later load to repeat.

Real histories of item ids; where the model reads text also free titles alone and beside ids, so that every form of
input a request may have is held to what it was in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index import Catalog, ItemIndex
from modeling.artifact.golden import GoldenCase, GoldenItem, GoldenTitle, WrittenCase
from modeling.encoder.user_encoder import read_history
from modeling.generation.api import ListQuery
from modeling.methods.base import HistoryEncoder, ListMethod

GOLDEN_TOP = 10
TITLES_TOGETHER = 4
UNKNOWN_TITLE = "  A title\u00a0that is\tin no  cafe\u0301 "
"""Of no catalog, and in need of `modeling.text.plain_text`."""

History = Sequence[int | str]
"""Catalog rows and free titles, oldest first."""


def with_titles(histories: Sequence[Sequence[int]], catalog: Catalog, reads_text: bool) -> list[History]:
    """The histories, and some of free titles made from the longest one where the model reads text."""
    plain: list[History] = [list(history) for history in histories]
    if not reads_text:
        return plain
    lengths = [len(history) for history in histories]
    newest = list(histories[lengths.index(max(lengths))])[-2 * TITLES_TOGETHER :]
    titles = [catalog.titles[row] for row in newest]
    mixed: History = [
        title if place % 2 else row for place, (row, title) in enumerate(zip(newest, titles, strict=True))
    ]
    return [*plain, titles[-1:], titles[-TITLES_TOGETHER:], mixed, [*newest[-2:], UNKNOWN_TITLE]]


def golden_cases(
    encoder: HistoryEncoder, index: ItemIndex, catalog: Catalog, histories: Sequence[History]
) -> list[GoldenCase]:
    """Answers of this very process, as the service gives them: items given by their ids are left out."""
    vectors = encoder.encode([encoder.prepare(read_history(history, encoder.read_titles)) for history in histories])
    _, rows_BK = index.search(vectors, GOLDEN_TOP, exclude=[_rows(history) for history in histories])
    return [
        GoldenCase(
            history=_named(history, catalog),
            vector=[float(value) for value in vector],
            top=[catalog.item_ids[row] for row in rows if row >= 0],
        )
        for history, vector, rows in zip(histories, vectors, rows_BK, strict=True)
    ]


def written_cases(writer: ListMethod, catalog: Catalog, histories: Sequence[History]) -> list[WrittenCase]:
    """Texts that this very process generates, and the items they stand for."""
    prompts = [writer.prepare(read_history(history, writer.read_titles)) for history in histories]
    wanted = [ListQuery(GOLDEN_TOP, _rows(history)) for history in histories]
    return [
        WrittenCase(
            history=_named(history, catalog),
            texts=[text.text for text in written.generated],
            top=[catalog.item_ids[row] for row in written.rows_K],
        )
        for history, written in zip(histories, writer.write(prompts, wanted), strict=True)
    ]


def _rows(history: History) -> NDArray[np.int64]:
    return np.asarray([item for item in history if not isinstance(item, str)], np.int64)


def _named(history: History, catalog: Catalog) -> list[GoldenItem]:
    return [GoldenTitle(title=item) if isinstance(item, str) else catalog.item_ids[item] for item in history]
