"""The commands `data` and `floors` as a person types them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from training.cli import app
from training.evaluation.ledger import read_ledger


@pytest.fixture(autouse=True)
def in_an_empty_repository(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Title {n}\n" for n in range(12)))
    rows = [f"u{u},i{(u + step) % 12},{step}" for u in range(20) for step in range(5)]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def last_line(result):
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_data_makes_the_demo_where_it_is_told_to_and_says_what_is_in_it(tmp_path):
    made = run("data", "demo", "--out", "my-demo", "--json")
    assert made.exit_code == 0, made.output
    answer = last_line(made)
    assert (answer["items"], answer["users"], answer["folder"]) == (1200, 4000, "my-demo")
    assert sorted(path.name for path in (tmp_path / "my-demo").iterdir()) == [
        "interactions.csv.gz", "items.jsonl", "source.json",
    ]  # fmt: skip
    assert "1200" in run("data", "demo", "--out", "my-demo").stdout


def test_data_lists_names_and_refuses_others():
    assert "amazon-beauty" in run("data").stdout.splitlines()
    wrong = run("data", "movielens-2m")
    assert wrong.exit_code == 2
    assert "error: data set 'movielens-2m' is not known; known: demo, amazon-" in wrong.stderr


def test_floors_prints_a_table_one_line_of_json_and_enters_the_test_in_the_ledger(small, tmp_path):
    result = run("floors", "--data", small, "--json")
    assert result.exit_code == 0, result.output
    names = ["popularity", "markov-1", "item-knn", "title-tfidf", "hybrid-knn"]
    assert all(name in result.stderr for name in names)
    assert "seen items removed" in result.stderr
    answer = last_line(result)
    assert [row["method"] for row in answer["rows"]] == names
    assert answer["rows"][1]["recall@10"]["value"] == 1.0 and answer["rows"][1]["questions"] == 20
    entries = read_ledger(tmp_path / "artifacts" / "test-ledger.jsonl")
    assert [entry["config"]["method"] for entry in entries] == [row["method"] for row in answer["rows"]]
    assert all(entry["data_sha256"] == answer["data_sha256"] and entry["part"] == "test" for entry in entries)


def test_validation_and_no_ledger_leave_the_ledger_alone(small, tmp_path):
    assert run("floors", "--data", small, "--split", "validation").exit_code == 0
    assert run("floors", "--data", small, "--no-ledger").exit_code == 0
    assert not (tmp_path / "artifacts" / "test-ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "train"), "split is 'train'; it is test or validation"),
        (("--protocol", "random"), "protocol is 'random'; it is leave-one-out or global-time"),
        (("--protocol", "global-time"), "positions instead of times"),
        (("--ties", "id"), "ties is 'id'; it is 'file' or 'shuffle'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(small, arguments, message):
    result = run("floors", "--data", small, *arguments)
    assert result.exit_code == 2 and f"{message}" in result.stderr.replace("\n", " ")


def test_bad_data_is_shown_by_line(small):
    (small / "items.csv").write_text((small / "items.csv").read_text() + "i3,Again\n")
    result = run("floors", "--data", small)
    assert result.exit_code == 2
    assert "items.csv: 1 of 13 rows (7.7 %) repeat an item_id; refused, allowed: 1 %" in result.stderr
    assert "items.csv:14: column item_id holds 'i3'" in result.stderr
