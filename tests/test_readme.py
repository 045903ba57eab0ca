"""The documents say what is there: commands exist, links lead somewhere, every recipe has a row.

(Settings and metrics are held to their pages by the tests of the service.)
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from service.http.schemas import RecommendAnswer, RecommendRequest
from training.data import known_names
from training.recipes import recipe_names

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "README.md", ROOT / "README.ja.md"]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z_]+) +\?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def shell_lines(page: Path) -> list[str]:
    """Every command of a page's shell blocks, continued lines joined, comments and prompts dropped."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def rows(page: Path) -> set[str]:
    """What stands in backticks in the first cell of any table row."""
    first_cells = re.findall(r"^\| ([^|]+) \|", page.read_text(), flags=re.MULTILINE)
    return {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}


def command_tree(package: str) -> Any:
    """The command line of a package, as click sees it."""
    app = importlib.import_module(f"{package}.cli").app
    return typer.main.get_command(app)


def check_program(package: str, words: list[str]) -> None:
    """Fail unless the (sub)command and every --option of a `python -m …` line exist."""
    command = command_tree(package)
    if package == "service" and words[:1] in (["pull"], ["key"]):
        command = typer.main.get_command(importlib.import_module("service.admin_cli").app)
    if hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"{package} has no command {words[:1]}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used - known - {"--help"} == set(), f"{package} {words[:1]} has no option {used - known}"
    if "--help" not in words and not {"…", "..."} & set(words):
        command.make_context(package, [*words])  # the real parser: arguments, kinds and ranges of values
    data = words[words.index("--data") + 1] if "--data" in words else ""
    check_data(data)


def check_data(name: str) -> None:
    """Fail unless a data set that a page names is a known one, a path, or a placeholder in capitals."""
    assert not name or "/" in name or name.isupper() or name in known_names(), f"{name} is no named data set"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_shell_block_exists(page: Path) -> None:
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            targets = {word for word in words[1:] if "=" not in word}
            given = {word.split("=")[0] for word in words[1:] if "=" in word}
            assert targets <= TARGETS, line
            assert given <= VARIABLES, line
            check_data("".join(word.removeprefix("DATA=") for word in words if word.startswith("DATA=")))
        elif words[:2] == ["python", "-m"]:
            check_program(words[2], words[3:])
        elif words[0] == "anyo":
            check_program(*importlib.import_module("anyo").route(words[1:]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_named_in_the_text_exist(page: Path) -> None:
    named = set(re.findall(r"`make ([a-z-]+)[^`]*`", page.read_text()))
    assert named <= TARGETS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_page_of_docs_is_listed() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    assert [name for name in pages if f"({name})" not in index] == []


@pytest.mark.parametrize("page", [*READMES, ROOT / "docs" / "training.md"], ids=lambda page: page.name)
def test_every_recipe_has_a_row(page: Path) -> None:
    assert set(recipe_names()) - rows(page) == set()


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_readme_shows_a_request_and_an_answer_of_the_api(page: Path) -> None:
    curl = next(line for line in shell_lines(page) if line.startswith("curl"))
    words = shlex.split(curl)
    assert words[2].endswith("/recommend")
    request = RecommendRequest.model_validate_json(words[words.index("-d") + 1])
    answer = RecommendAnswer.model_validate_json(blocks(page, "json")[0])
    assert len(answer.items) == request.k
    assert answer.source == "model"


def test_both_readmes_show_the_same_commands_and_the_same_answer() -> None:
    english, japanese = ([shlex.split(line, comments=True) for line in shell_lines(page)] for page in READMES)
    assert english == japanese
    assert [json.loads(text) for text in blocks(READMES[0], "json")] == [
        json.loads(text) for text in blocks(READMES[1], "json")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert "TODO" not in page.read_text()


def test_the_first_screen_holds_both_commands_and_the_answer() -> None:
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:60])
    assert "make run" in screen
    assert "curl" in screen
    assert '"items"' in screen
