"""`anyo recommend` answers as the artifact does and says what it cannot read; `anyo doctor` says what it found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import anyo
from service import doctor
from service.local_cli import app
from service.recommend.local import LocalRecommender
from testing.artifacts import write_id_artifact
from tests.service.recommend.test_local import with_attributes

WIDE = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write_id_artifact(tmp_path_factory.mktemp("artifacts"), "plain")


def test_titles_and_ids_are_read_and_the_answer_is_the_artifacts(artifact: Path) -> None:
    told = CliRunner().invoke(app, ["recommend", str(artifact), "thing 7", "B00012'\"", "--k", "3", "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["history"] == ["B00007'\"", "B00012'\""]
    same = anyo.load(artifact).recommend(found["history"], k=3)
    assert [(row["item_id"], row["score"]) for row in found["items"]] == [(each.item_id, each.score) for each in same]
    plain = CliRunner().invoke(app, ["recommend", str(artifact), "Thing 7", "--k", "2"]).stdout.splitlines()
    assert plain[0] == "read: Thing 7" and len(plain) == 3


def test_what_cannot_be_read_is_said_with_what_is_close(artifact: Path) -> None:
    typo = CliRunner().invoke(app, ["recommend", str(artifact), "Thnig 77"])
    assert (typo.exit_code, typo.stdout) == (2, "")
    assert "'Thnig 77' is neither an id nor a title" in typo.stderr and "'Thing 77'" in typo.stderr
    missing = CliRunner().invoke(app, ["recommend", str(artifact / "none"), "x"])
    assert missing.exit_code == 2 and "does not exist" in missing.stderr


def test_fields_of_items_are_shown_and_an_unknown_one_is_refused(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.recommend.local.load", lambda _: LocalRecommender(with_attributes()))
    asked = ["recommend", str(artifact), "item-0001", "--k", "2", "--fields", "categories, price"]
    rows = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["items"]
    assert all(row["categories"] and set(row["attributes"]) == {"price"} for row in rows)
    shown = CliRunner().invoke(app, asked).stdout.splitlines()[1:]
    assert [line.endswith(f"({row['categories'][0]}; price {row['attributes']['price']})")
            for line, row in zip(shown, rows, strict=True)] == [True, True]  # fmt: skip
    wrong = CliRunner().invoke(app, [*asked[:-1], "prise"])
    assert wrong.exit_code == 2 and "attribute 'prise' is not in the catalog" in wrong.stderr


def test_doctor_reports_the_machine_and_fails_where_something_will_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert found["processor"]["cores"] >= 1 and found["packages"]["torch"] and found["precision"]["milliseconds"]
    assert set(found["precision"]["faster_than_fp32"]) <= {"bf16", "int8"}
    monkeypatch.setattr(doctor, "examine", lambda: {**found, "problems": doctor.problems(found | {"packages": {}})})
    told = CliRunner().invoke(app, ["doctor"], env=WIDE)
    assert told.exit_code == 1 and "faiss is not installed" in told.stderr
    assert told.stdout.splitlines()[0].startswith("python")
