"""Data as tokens: titles and other text from people, whatever it spells, is text and never a control token.

A tokenizer cuts the strings of its special tokens out of any text and gives them their ids, so that a title that spells
``<|end|>`` would end a sentence. Here such a text is tokenized as if the tokenizer did not know these strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IN_BRACKETS = re.compile(r"<.+>|\[.+\]", re.DOTALL)


class DataTokens:
    """Token ids of data, without control tokens; nothing of the tokenizer is changed, so threads may share it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        known = cast(dict[int, Any], getattr(tokenizer, "added_tokens_decoder", {}))
        # Some models give tokens like <think> no flag and use them as control tokens all the same.
        self._control = {
            number: str(token.content)
            for number, token in known.items()
            if token.special or _IN_BRACKETS.fullmatch(token.content)
        }
        self._control |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        unknown = tokenizer.unk_token_id
        self._unknown = cast("int | None", unknown)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, in their order."""
        if not texts:
            return []
        encoded = cast(
            list[list[int]], self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        )
        return [
            ids if not self._suspect(text, ids) else self._literally(text)
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def _suspect(self, text: str, ids: Sequence[int]) -> bool:
        """Whether a control token is among the ids; that of unknown characters may be, unless it was spelled."""
        found = self._control.keys() & set(ids)
        return bool(found - {self._unknown}) or (self._unknown in found and self._control[self._unknown] in text)

    def _literally(self, text: str) -> list[int]:
        ids = self._encode(text)
        if self._suspect(text, ids):  # the model's own vocabulary holds it as a word
            ids = [token for part in self._broken(text) for token in self._encode(part)]
        return [token for token in ids if token == self._unknown or token not in self._control]

    def _encode(self, text: str) -> list[int]:
        if self._without_added is not None:
            return cast(list[int], self._without_added.encode(text, add_special_tokens=False).ids)
        options: dict[str, Any] = {"add_special_tokens": False, "verbose": False, "split_special_tokens": True}
        return cast(list[int], self._tokenizer(text, **options)["input_ids"])

    def _broken(self, text: str) -> list[str]:
        """The text in parts, none of which holds a control token's string: each is cut behind its first character."""
        longest_first = sorted(self._control.values(), key=len, reverse=True)
        pattern = "|".join(f"(?<={re.escape(word[0])})(?={re.escape(word[1:])})" for word in longest_first if word[1:])
        return [part for part in re.split(pattern, text) if part] if pattern else [text]

    @cached_property
    def _without_added(self) -> Any:
        """A fast tokenizer without the strings that are control tokens; None for one written in Python."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import Tokenizer

        state = json.loads(backend.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in self._control]
        state["truncation"] = state["padding"] = None
        return Tokenizer.from_str(json.dumps(state))


def needs_leading_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is byte-level and leaves the beginning of a text as it is."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    found = json.loads(backend.to_str())["pre_tokenizer"] if backend is not None else None
    steps = (found or {}).get("pretokenizers", [found])
    return any(step["type"] == "ByteLevel" and not step["add_prefix_space"] for step in steps if step)
