"""The page of claims: no verdict without a figure, and no figure that is not in the results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.pages.claims import CLAIMS, REFERENCE, ClaimError, page_block, read_claims, value
from scripts.pages.results import load_results

RESULTS = load_results()
CLAIM: dict[str, Any] = {
    "topic": {"en": "a", "ja": "b"}, "en": "It is fast", "ja": "速い", "verdict": "holds",
    "figure": {"en": "{x|y|z} ms", "ja": "{x|y|z} ms"},
}  # fmt: skip


def test_every_figure_of_a_claim_comes_from_the_results() -> None:
    """Beside references there are only the numbers of set-ups: cut-offs, sizes and names of models."""
    claims = read_claims()
    assert len(claims) >= 40
    for claim in claims:
        for text in claim["figure"].values():
            for name, row, column in REFERENCE.findall(text):
                assert value(RESULTS, name, row, column)
            assert not re.search(r"\d\.\d|\.\d\d", re.sub(r"Llama-3\.2|Qwen3-0\.6B", "", REFERENCE.sub("", text))), text


def test_both_pages_show_every_claim_and_its_verdict() -> None:
    for language, verdict in (("en", "not measured yet"), ("ja", "未測定")):
        text, claims = page_block(language)(RESULTS, None), read_claims()
        assert all(claim[language] in text for claim in claims)
        assert text.count(f"*{verdict}*") == sum(claim["verdict"] == "open" for claim in claims)
        assert "{" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"figure": {"en": "It took 3 ms.", "ja": "3 ms"}},
        {"figure": {"en": "{x|y|z}", "ja": ""}},
        {"verdict": "open"},
        {"verdict": "perhaps"},
        {"figure": {"en": "{x|y|z}"}},
        {"note": "x"},
    ],
    ids=str,
)
def test_a_claim_without_its_evidence_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text(json.dumps([CLAIM]))
    assert read_claims(tmp_path / "claims.json") == [CLAIM]
    (tmp_path / "claims.json").write_text(json.dumps([CLAIM | changes]))
    with pytest.raises(ClaimError, match="It is fast"):
        read_claims(tmp_path / "claims.json")


def test_a_reference_means_one_row() -> None:
    with pytest.raises(ClaimError, match="2 rows"):
        value(RESULTS, "offline-online-parity", "anyo", "lists")
    with pytest.raises(ClaimError, match="0 rows"):
        value(RESULTS, "offline-online-parity", "nobody", "lists")
    with pytest.raises(ClaimError, match="not there"):
        value(RESULTS, "nothing", "anyo", "lists")
    assert CLAIMS.is_file()
