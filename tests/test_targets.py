"""No command replaces or deletes what anyo did not make: every command that writes, on every kind of target."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import index.cli
import service.admin_cli
import training.cli
import training.data
from modeling.artifact.atomic import replaced_folder
from modeling.artifact.targets import TargetError, check_file, check_target
from scripts import peers
from scripts.setup import SetupError

APPS = {"training": training.cli.app, "index": index.cli.app, "service": service.admin_cli.app}
NAMES = {"out", "target", "top", "ledger_file"}
# How each output path of each command is given; {data} is a data set, {artifact} a folder, {out} the target.
COMMANDS = {
    ("training", "train", "out"): "train sasrec --data {data} --out {out}",
    ("training", "teacher", "out"): "teacher {artifact} --data {data} --out {out}",
    ("training", "reweigh", "out"): "reweigh {artifact} --data {data} --out {out}",
    ("training", "rewrite", "out"): "rewrite {artifact} --out {out}",
    ("training", "withhold", "out"): "withhold --data {data} --out {out}",
    ("training", "data fetch", "out"): "data demo --out {out}",
    ("training", "data import", "out"): "data import {data} --out {out}",
    ("training", "evaluate", "top"): "evaluate {artifact} --data {data} --top {out}",
    ("training", "evaluate", "ledger_file"): "evaluate {artifact} --data {data} --ledger-file {out}",
    ("training", "compare", "ledger_file"): "compare {artifact} --data {data} --ledger-file {out}",
    ("training", "compare", "out"): "compare {artifact} --data {data} --out {out}",
    ("training", "update", "out"): "update {artifact} --data {data} --out {out}",
    ("training", "choose", "out"): "choose --data {data} --out {out}",
    ("training", "tune", "out"): "tune sasrec --data {data} --out {out}",
    ("training", "floors", "ledger_file"): "floors --data {data} --ledger-file {out}",
    ("index", "build", "out"): "build {artifact} --out {out}",
    ("service", "pull", "target"): "pull {artifact} {out}",
    ("service", "export recommendations", "out"): "export recommendations {artifact} --data {data} --out {out}",
}
FOLDERS = {key: line for key, line in COMMANDS.items() if key[2] in ("out", "target")}
FILES = {key: line for key, line in COMMANDS.items() if key not in FOLDERS}


def outputs() -> Iterator[tuple[str, str, str]]:
    for program, app in APPS.items():
        for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
            for path, inner in {name: command, **nested(name, command)}.items():
                yield from ((program, path, each.name) for each in inner.params if each.name in NAMES)


def nested(name: str, command: Any) -> dict[str, Any]:
    return {f"{name} {sub}": inner for sub, inner in getattr(command, "commands", {}).items()}


def test_every_output_path_of_every_command_is_tried_here() -> None:
    assert set(outputs()) == set(COMMANDS)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a data set, the user's work, and nothing that could be read as data in time."""

    def read(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the data was read before the target was looked at")

    monkeypatch.setattr(training.data, "load_dataset", read)
    work = tmp_path / "work"
    (work / "shops" / "shop").mkdir(parents=True)
    (work / "shops" / "shop" / "items.jsonl").write_text('{"item_id": "a", "title": "A"}\n')
    (work / "shops" / "shop" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1\n")
    (work / "photos").mkdir()
    (work / "photos" / "cat.jpg").write_text("x")
    (work / "artifact" / "index").mkdir(parents=True)
    (work / "artifact" / "manifest.json").write_text(json.dumps({"name": "foreign", "files": {}}))
    (work / "empty").mkdir()
    (work / "page").mkdir()
    (work / "page" / "manifest.json").write_text('{"name": "a web page"}')
    mine = {"schema_version": 1, "recipe": "sasrec", "version": "1", "files": {"a.bin": ""}}
    (work / "mine").mkdir()
    for name, text in (("manifest.json", json.dumps(mine)), ("a.bin", ""), ("years-of-notes.txt", "x")):
        (work / "mine" / name).write_text(text)
    (work / "repository" / ".git").mkdir(parents=True)
    (work / "model").mkdir()
    (work / "model" / "config.json").write_text('{"model_type": "qwen3"}')
    os.symlink(work / "empty", work / "link")
    os.symlink(work / "nowhere", work / "dangling")
    monkeypatch.setenv("HOME", str(tmp_path / "work" / "home"))
    (work / "home").mkdir()
    monkeypatch.chdir(work)
    return work


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    } | {str(path.relative_to(folder)) + "/": "" for path in folder.rglob("*") if path.is_dir()}


def run(key: tuple[str, str, str], out: str) -> Any:
    words = COMMANDS[key].format(data="shops/shop", artifact="artifact", out=out).split()
    return CliRunner().invoke(APPS[key[0]], words)


TARGETS = {
    "a folder with a user's files": "photos",
    "a file": "photos/cat.jpg",
    "the data set": "shops/shop",
    "what holds the data set": "shops",
    "a link to a folder": "link",
    "a link to nowhere": "dangling",
    "another program's manifest": "page",
    "an artifact and a user's notes": "mine",
    "a repository": "repository",
    "a language model": "model",
    "the folder above": "..",
    "the root": "/",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("key", FOLDERS, ids=" ".join)
def test_a_folder_that_is_not_ours_is_left_alone(key: tuple[str, str, str], target: str, place: Path) -> None:
    before = tree(place)
    result = run(key, TARGETS[target])
    assert result.exit_code in (1, 2), result.output
    assert "error: " in result.stderr and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert tree(place) == before


@pytest.mark.parametrize("name", ["a\u000bb", "a\u200bb", "\udcff", "n" * 201, "x/.."])
@pytest.mark.parametrize("key", [key for key in FOLDERS if key[0] != "index"], ids=" ".join)
def test_a_name_that_no_artifact_can_have_is_refused_before_the_work(
    key: tuple[str, str, str], name: str, place: Path
) -> None:
    words = [word.format(data="shops/shop", artifact="artifact", out=name) for word in COMMANDS[key].split(" ")]
    before, result = tree(place), CliRunner().invoke(APPS[key[0]], words)
    assert result.exit_code in (1, 2) and "cannot be the name of a folder" in result.stderr, result.output
    assert tree(place) == before


@pytest.mark.parametrize("target", [".", "home", "shops/shop/inside"])
@pytest.mark.parametrize("command", ["train", "reweigh", "withhold"])
def test_neither_here_nor_home_nor_inside_the_data(command: str, target: str, place: Path) -> None:
    before = tree(place)
    result = run(("training", command, "out"), target)
    assert result.exit_code == 2 and result.stderr.startswith("error: "), result.output
    assert tree(place) == before


@pytest.mark.parametrize("target", ["photos/cat.jpg", "photos", "shops/shop/items.jsonl"])
@pytest.mark.parametrize("key", FILES, ids=" ".join)
def test_a_file_that_is_not_ours_is_left_alone(key: tuple[str, str, str], target: str, place: Path) -> None:
    before = tree(place)
    result = run(key, target)
    assert result.exit_code == 2 and result.stderr.startswith("error: "), result.output
    assert tree(place) == before


def test_what_anyo_wrote_and_what_is_new_or_empty_may_be_replaced(place: Path) -> None:
    (place / "mine" / "years-of-notes.txt").unlink()
    (place / "mine" / ".DS_Store").write_text("of the file manager")
    for name in ("mine", "empty", "new", "new/deep"):
        check_target(place / name)
    check_target(place / "model", kind="backbone")
    with replaced_folder(place / "mine") as work:
        (work / "manifest.json").write_text("{}")
    assert [path.name for path in (place / "mine").iterdir()] == ["manifest.json"]


def test_what_the_command_reads_is_not_replaced_though_it_is_ours(place: Path) -> None:
    (place / "mine" / "years-of-notes.txt").unlink()
    check_target(place / "mine", reads=[place / "model", "demo", None])
    for reads in (place / "mine", place / "mine" / "a.bin"):
        with pytest.raises(TargetError, match=r"which is read|what is read"):
            check_target(place / "mine", reads=[reads])
    with pytest.raises(TargetError, match="what is read"):
        check_target(place / "data" / "demo", reads=[place / "data" / "demo"])  # not there yet


def test_a_file_of_ours_may_be_written_again(place: Path) -> None:
    (place / "top.jsonl").write_text('{"user_id": "u", "top": []}\n')
    check_file(place / "top.jsonl", fields=("user_id", "top"))
    check_file(place / "new.jsonl", fields=("user_id", "top"))
    check_file(Path(os.devnull), fields=("user_id", "top"))


def test_the_writer_itself_refuses_whoever_calls_it(place: Path) -> None:
    before = tree(place)
    with pytest.raises(TargetError, match="is not empty"), replaced_folder(place / "photos"):
        pass
    assert tree(place) == before


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: os.symlink("/", path)], ids=["folder", "link"])
def test_an_environment_is_not_made_over_a_folder(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    make(tmp_path / peers.names()[0])
    if not (tmp_path / peers.names()[0]).is_symlink():
        (tmp_path / peers.names()[0] / "letter.txt").write_text("x")
    monkeypatch.setattr(peers, "run", lambda *args, **kwargs: pytest.fail("an environment was made"))
    with pytest.raises(SetupError, match="no environment of Python"):
        peers.make(peers.names()[0])
