"""Token encodings of items for generative methods: the words of a title, or the codes of a semantic ID."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, cast
from zlib import crc32

import numpy as np

from modeling.backbone.loading import TextTokenizer
from modeling.encoder.prompt import FreeItem, TitleTokens
from modeling.encoder.user_encoder import CannotReadText

CODE_END = 0
"""End token of a semantic ID; the tokens of codes have higher ids."""


class ItemTokenizer(Protocol):
    """Converts between items and tokens."""

    reads: tuple[str, ...]

    def read(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free titles as items; raises `CannotReadText` if items are encoded by codes."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Readable text of an item's tokens, or of a prefix of them."""
        ...

    def code(self, tokens: Sequence[int]) -> tuple[int, ...] | None:
        """The codes of a semantic ID, level by level; None for titles."""
        ...


class TitleTokenizer:
    """Titles, truncated to ``limit`` tokens."""

    reads: tuple[str, ...] = ("ids", "text")

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self._pieces = TextTokenizer(tokenizer)

    def spell(self, titles: Sequence[str], end: int) -> TitleTokens:
        """Title tokens of a catalog, without special tokens.

        Raises:
            ValueError: a title has no token, or holds the end token.
        """
        tokens = TitleTokens.of_titles(titles, self._pieces, self.limit)
        for row, title in enumerate(titles):
            if not len(tokens[row]) or end in tokens[row]:
                raise ValueError(
                    f"item {row} has title {title[:80]!r}, for which its tokenizer has no tokens; give it another title"
                )
        return tokens

    def read(self, titles: Sequence[str]) -> list[FreeItem]:
        """The tokens that a catalog title would have."""
        tokens = [np.asarray(ids[: self.limit], np.int32) for ids in self._pieces(titles)]
        return [FreeItem(title, each) for title, each in zip(titles, tokens, strict=True)]

    def text(self, tokens: Sequence[int]) -> str:
        """The words."""
        return cast(str, self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def code(self, tokens: Sequence[int]) -> None:
        """Words are no codes."""
        return


class CodeTokenizer:
    """Semantic IDs: every level has tokens of its own, ``sizes[l]`` of them, after the end token.

    Behind them are ``user_buckets`` tokens that user ids are hashed to (Rajput et al. 2023, section 3.2).
    """

    reads: tuple[str, ...] = ("ids",)

    def __init__(self, sizes: Sequence[int], user_buckets: int = 0) -> None:
        self.sizes, self.user_buckets = tuple(sizes), user_buckets
        self._first = list(accumulate(self.sizes, initial=1))

    @property
    def vocabulary(self) -> int:
        """Tokens of all levels, of users, and the end token."""
        return self._first[-1] + self.user_buckets

    def user(self, user_id: str | None) -> int:
        """The token that begins a user's history: the end token where the user is unknown, or users have none."""
        if user_id is None or not self.user_buckets:
            return CODE_END
        return self._first[-1] + crc32(user_id.encode()) % self.user_buckets

    def spell(self, codes_NL: np.ndarray[Any, np.dtype[np.int64]]) -> TitleTokens:
        """The names of a catalog from its codes; -1, at the end only, is no code."""
        given_NL = codes_NL >= 0
        tokens_NL = codes_NL + np.asarray(self._first[:-1])
        offsets = np.concatenate([[0], np.cumsum(given_NL.sum(1))]).astype(np.int64)
        return TitleTokens(offsets, tokens_NL[given_NL].astype(np.int32))

    def read(self, titles: Sequence[str]) -> list[FreeItem]:
        """Raises `CannotReadText`: a title that the catalog does not know has no codes."""
        raise CannotReadText("this model reads semantic IDs, which only items of the catalog have; leave out titles")

    def text(self, tokens: Sequence[int]) -> str:
        """The path of codes, ``<12><7><201><0>``."""
        return "".join(f"<{code}>" for code in self.code(tokens))

    def code(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Codes of the levels reached."""
        return tuple(token - first for token, first in zip(tokens, self._first, strict=False))
