"""Titles as people and tokenizers see them: alike but for their writing, of which script, and known to a tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from index.text import is_wide

SAMPLE = 5000
WARN_UNKNOWN = 0.1
"""Share of tokens that a tokenizer does not know from which a warning is given."""
_SHOWN = 3


@dataclass(frozen=True)
class UnknownTokens:
    """Tokens of titles, those that are `[UNK]`, and titles that are nothing else."""

    backbone: str
    tokens: int
    unknown: int
    titles: int
    titles_lost: int

    @property
    def share(self) -> float:
        """Unknown tokens of all."""
        return self.unknown / self.tokens if self.tokens else 0.0


def compared(title: str) -> str:
    """A title as it is compared: width, case, white space and punctuation do not count."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", title).casefold())


def near_equal(item_ids: Sequence[str], titles: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Pairs of items (id, title, id, title) whose titles are the same once compared; the first of each group."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, title in enumerate(titles):
        if key := compared(title):
            groups[key].append(row)
    pairs = []
    for rows in groups.values():
        pairs += [(item_ids[rows[0]], titles[rows[0]], item_ids[row], titles[row]) for row in rows[1:]]
    return pairs


def share_wide(titles: Sequence[str]) -> float:
    """Share of titles with a Chinese, Japanese or Korean character."""
    looked_at = titles[:SAMPLE]
    return sum(any(map(is_wide, title)) for title in looked_at) / max(len(looked_at), 1)


def unknown_tokens(
    titles: Sequence[str], backbone: str, tokenize: Callable[[list[str]], list[list[int]]], unknown: int | None
) -> UnknownTokens:
    """Count what a tokenizer does not know, over the first titles of the (shuffled) catalog."""
    ids = tokenize([*titles[:SAMPLE]])
    if unknown is None:  # of bytes, which are all known
        return UnknownTokens(backbone, sum(map(len, ids)), 0, len(ids), 0)
    lost = sum(bool(row) and all(each == unknown for each in row) for row in ids)
    return UnknownTokens(backbone, sum(map(len, ids)), sum(row.count(unknown) for row in ids), len(ids), lost)
