"""Text for comparison: full-width and half-width are alike; Chinese, Japanese and Korean go by characters."""

from __future__ import annotations

import re
import unicodedata

_WIDE = (
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x20000, 0x3FFFF),
)
_WIDE_RUN = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _WIDE) + "]+")


def folded(text: str) -> str:
    """Text as it is compared: compatibility forms, width and case do not count (Unicode 3.13, D146, of NFKC forms)."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def title_key(title: str) -> str:
    """A title as titles are compared: `folded`, and white space between words does not count."""
    return " ".join(folded(title).split())


def is_wide(character: str) -> bool:
    """Whether a character is Chinese, Japanese or Korean."""
    return any(first <= ord(character) <= last for first, last in _WIDE)


def terms(text: str) -> list[str]:
    """Words of a text; in scripts without spaces between words, pairs of characters that stand together.

    A run of one such character is a term by itself.
    """
    found: list[str] = []
    for word in re.findall(r"\w+", folded(text)):
        start = 0
        for run in _WIDE_RUN.finditer(word):
            if run.start() > start:
                found.append(word[start : run.start()])
            characters = run[0]
            found += [characters[at : at + 2] for at in range(max(len(characters) - 1, 1))]
            start = run.end()
        if start < len(word):
            found.append(word[start:])
    return found
