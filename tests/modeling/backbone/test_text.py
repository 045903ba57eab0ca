"""Plain text: what is equal to the eye is equal, and it changes nothing the second time."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling.text import plain_text


@pytest.mark.parametrize(
    "text",
    [
        "The  Mellow Pantry", "The\tMellow Pantry", "The Mellow\nPantry", "The\r\nMellow Pantry", " The Mellow Pantry ",
        "The\u00a0Mellow Pantry", "The\u3000Mellow\u2009Pantry", "The\u2028Mellow Pantry", "The Mel\u200blow Pantry",
        "\ufeffThe Mellow Pantry", "The Mellow\u200e Pantry", "The Mel\u00adlow Pantry", "The Mellow\x00 Pantry",
        "The \x07 Mellow Pantry", "The Mellow Pantry\ud83d", "\udc00The Mellow Pantry", "The Mel\u200dlow Pantry",
        "The\x1fMellow\x85Pantry", "The \u200b Mellow Pantry", "\u2066The Mellow Pantry\u2069",
        "The\u3164Mellow Pantry", "\u2800The Mellow\uffa0Pantry", "The Mel\u034flow Pantry",
        "The Mellow\U000e0041\U000e007f Pantry",
        "The Mel\u17b4low Pantry", "The Mellow\U0001d173 Pantry",
    ],
)  # fmt: skip
def test_what_cannot_be_seen_does_not_count(text: str) -> None:
    assert plain_text(text) == "The Mellow Pantry"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Cafe\u0301", "Caf\u00e9"),
        ("\uac00" , "\uac00"),
        ("\u1100\u1161", "\uac00"),
        ("\u212b", "\u00c5"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\u00bd \u2122 \uff21 \ufb01", "\u00bd \u2122 \uff21 \ufb01"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),
        ("\u2764\ufe0f", "\u2764\ufe0f"),
        ("\u00e9\u200d", "\u00e9"),
        ("\u200b\u200d \ufeff", ""),
        ("\u3164\u2800", ""),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f3f4\U000e0067\U000e0062\U000e007f"),
        ("<|end|> [SEP] {\"a\": 1} 1984 AC/DC", "<|end|> [SEP] {\"a\": 1} 1984 AC/DC"),
    ],
)  # fmt: skip
def test_composed_and_compatible_characters(text: str, plain: str) -> None:
    """NFC, not NFKC: a half, a trade mark and wide letters stay; joiners stay where they shape what is seen."""
    assert plain_text(text) == plain


ODD = st.text(st.one_of(st.characters(), st.sampled_from("e\u0301\u200c\u200d\u200b \t\u212a\u00e9\ud83d\ude00\u2000")))


@given(ODD)
def test_it_is_settled_valid_and_one_line(text: str) -> None:
    plain = plain_text(text)
    assert plain_text(plain) == plain
    plain.encode("utf-8")
    assert plain == unicodedata.normalize("NFC", plain) == " ".join(plain.split())


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_plain_ascii_stays(text: str) -> None:
    assert plain_text(text) == text
