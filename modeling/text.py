"""Plain text: the one normalisation of titles and other data, in training and serving alike.

A title is what a person reads. What cannot be seen must not change how a model reads it: which white space stands
between two words and how much of it, whether an accent is a character of its own, and marks that a copy from a web page
brings along.
"""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE = dict.fromkeys(
    [
        0x00AD,  # soft hyphen
        0x034F,  # joins combining marks, in sorting only
        *range(0x17B4, 0x17B6),
        *range(0x1BCA0, 0x1BCA4),
        *range(0x1D173, 0x1D17B),
        0x061C,  # directions of writing, as the three ranges after it
        *range(0x200E, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x2070),
        0x180E,
        0x200B,  # zero-width space
        *range(0x2060, 0x2065),
        0xFEFF,  # byte order mark
        *range(0xFFF9, 0xFFFC),
    ]
)
_BLANK = dict.fromkeys([0x2800, 0x3164, 0xFFA0], " ")
"""Letters that are drawn as white space: Hangul fillers, a pattern of Braille without a dot."""
_IDLE_TAGS = re.compile("(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+")
"""Tags make a black flag the flag of a region; behind anything else they are not drawn."""
_JOINERS = "\u200c\u200d"


def plain_text(text: str) -> str:
    """``text`` as everything here reads it: what is equal to the eye is equal.

    - Every run of white space (tabs, line ends, no-break and wide spaces) is one space; none at the ends.
    - Control characters and characters without width go. The two joiners stay behind a letter that is not ASCII,
      where they shape words (Persian, Hindi) and emoji.
    - Halves of surrogate pairs, which are no characters, go; two that belong together become their character.
    - Composed characters (Unicode NFC). Not NFKC: that would also make ``½`` into ``1⁄2``, ``™`` into ``TM`` and wide
      letters into narrow ones, which are other titles to the eye, and change the tokens of titles that models know.

    It changes nothing the second time. Text of visible ASCII with single spaces stays as it is.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    spaced = " ".join(_IDLE_TAGS.sub("", whole.translate(_BLANK)).split())
    seen = "".join(each for each in spaced.translate(_INVISIBLE) if unicodedata.category(each) != "Cc")
    composed = unicodedata.normalize("NFC", " ".join(seen.split()))
    if not any(joiner in composed for joiner in _JOINERS):
        return composed
    return " ".join(unicodedata.normalize("NFC", _without_idle_joiners(composed)).split())


def _without_idle_joiners(text: str) -> str:
    """Without joiners that do not stand between two characters, the first of them not ASCII."""
    kept: list[str] = []
    for character in [*text, " "]:
        if character.isspace() and kept and kept[-1] in _JOINERS:
            kept.pop()
        if character not in _JOINERS or (kept and not kept[-1].isascii() and kept[-1] not in _JOINERS):
            kept.append(character)
    return "".join(kept)
