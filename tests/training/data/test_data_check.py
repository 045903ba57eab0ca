"""`data check`: what is lost, and what a reader of the figures has to know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import training.cli
from index.text import folded, terms
from training.data.checking import check_folder
from training.data.checking.titles import near_equal, unknown_tokens
from training.data.report import Tolerances

START = 1_700_000_000


def folder(where: Path, titles: list[str], rows: list[tuple[object, ...]]) -> Path:
    items = [{"item_id": f"i{n}", "title": title} for n, title in enumerate(titles)]
    (where / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    text = "user_id,item_id,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (where / "interactions.csv").write_text(text)
    return where


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(training.cli.app, ["data", "check", *words])
    return done.exit_code, done.stdout


def test_repeated_and_tied_targets_are_counted(tmp_path: Path) -> None:
    rows = [
        ("a", "i0", 1),
        ("a", "i1", 2),
        ("a", "i0", 3),
        ("b", "i0", 1),
        ("b", "i1", 2),
        ("b", "i2", 2),
        ("c", "i1", 1),
    ]
    facts = check_folder(folder(tmp_path, ["A", "B", "C"], rows), tolerances=Tolerances()).facts
    assert (facts["users_with_targets"], facts["test_targets_repeated"], facts["test_targets_tied"]) == (2, 1, 1)


def test_it_reads_to_the_end_and_says_for_what_commands_refuse(tmp_path: Path) -> None:
    rows = [("a", f"i{n}", START + n) for n in range(3)] + [("a", "gone", START + 9), ("", "i1", START)]
    place = str(folder(tmp_path, ["A", "B", "C"], rows))
    code, text = run(place, "--json")
    found = json.loads(text)
    assert (code, found["refused"]) == (2, ["missing_id", "unknown_item"])
    assert found["interactions"] == 3
    assert "interactions.csv:5: column item_id holds 'gone'" in found["report"]["findings"][1]["examples"][0]
    code, text = run(place, "--allow", "missing_id=0.3", "--allow", "unknown_item=0.3", "--json")
    assert (code, json.loads(text)["refused"]) == (0, [])
    assert (
        "kinds are broken_row"
        in CliRunner().invoke(training.cli.app, ["data", "check", place, "--allow", "x=1"]).stderr
    )


def test_what_one_command_allows_the_others_allow_too(tmp_path: Path) -> None:
    rows = [(u, f"i{n}", START + n) for u in "abc" for n in range(3)] + [("a", "gone", START + 9)]
    place = str(folder(tmp_path, ["A", "B", "C"], rows))
    words = ["floors", "--data", place, "--no-ledger", "--json"]
    refused = CliRunner().invoke(training.cli.app, words)
    assert refused.exit_code == 2 and "--allow unknown_item=0.1" in refused.stderr
    assert CliRunner().invoke(training.cli.app, [*words, "--allow", "unknown_item=0.1"]).exit_code == 0


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([1, 2, 3, 4], "a counter over all rows"),
        ([START] * 4, "all interactions have the same time"),
        ([86_400 * n for n in (15_000, 15_001, 15_003, 15_007)], "times are days"),
        ([4_000_000_000 + n for n in range(4)], "lie in the future"),
        ([7.5, 1.25, 9, 3], "no moments counted from 1970"),
    ],
)
def test_times_that_cannot_be_right(times: list[float], words: str, tmp_path: Path) -> None:
    rows = [("a" if at < 3 else "b", f"i{at}", time) for at, time in enumerate(times)]
    found = check_folder(folder(tmp_path, ["A", "B", "C", "D"], rows), tolerances=Tolerances())
    assert any(words in warning for warning in found.warnings)


def test_titles_that_differ_in_writing_only_are_found() -> None:
    titles = ["マグカップ", "ﾏｸﾞｶｯﾌﾟ", "Ｔシャツ  白", "Tシャツ 白", "Blue Mug!", "blue mug", "Red"]
    pairs = [(a, b) for a, _, b, _ in near_equal([*"abcdefg"], titles)]
    assert pairs == [("a", "b"), ("c", "d"), ("e", "f")]


def test_half_and_full_width_are_compared_alike_and_characters_stand_for_words() -> None:
    assert folded("ﾏｸﾞ ＡＢＣ") == folded("マグ abc")
    assert terms("檜の石鹸 Soap2個") == ["檜の", "の石", "石鹸", "soap2", "個"]
    assert terms("Red mug, large") == ["red", "mug", "large"]


def test_a_tokenizer_that_does_not_know_the_language_is_told(tmp_path: Path) -> None:
    rows = [("a", f"i{n}", START + n) for n in range(3)]
    place = folder(tmp_path, ["檜の石鹸", "冷凍餃子 20個入り", "柚子胡椒"], rows)
    found = check_folder(place, tolerances=Tolerances(), backbone="minilm")
    assert found.unknown is not None and found.unknown.share > 0.2
    assert any("take --backbone tiny" in warning for warning in found.warnings)
    asked = check_folder(place, tolerances=Tolerances())
    assert any("minilm does not read" in warning for warning in asked.warnings)


def test_tokens_of_bytes_are_all_known() -> None:
    assert unknown_tokens(["あ"], "x", lambda texts: [[1, 2, 3]] * len(texts), None).share == 0
