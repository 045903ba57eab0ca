"""Documents and code agree: commands are parsed, links lead to files, every recipe has a row.

Settings, metrics, endpoints and alerts are compared with their pages by the tests of the service and of deploy/;
navigation, paths and decision records by `test_docs.py`.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from service.http.schemas import RecommendAnswer, RecommendRequest
from service.settings import PREFIX, Settings
from training.data import known_names
from training.recipes import get_recipe, recipe_names

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "README.md", ROOT / "README.ja.md"]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOT_PARSED = {
    "curl": "needs a running service; bodies of /recommend are validated below",
    "docker": "needs a container engine; tests/deploy reads the file",
    "docker-compose": "needs a container engine; tests/deploy reads the file",
    "locust": "another program; tests/clients runs the file",
    "kubectl": "needs a cluster; tests/deploy reads the manifests",
    "openssl": "another program",
    "redis-server": "another program",
    "source": "a builtin of the shell",
}
"""First words of commands that no parser of ours reads, and why."""
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
OPTIONS = ("--set", "--backbone")
PROGRAMS = ("training", "index", "service")
SETTINGS = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
SETTINGS |= {f"{PREFIX}{name.upper()}_FILE" for name in ("store", "cache", "api_keys", "admin_keys")}
VARIABLES = set(re.findall(r"^([A-Z_]+) +\?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def name_of(page: Path) -> str:
    """A page's path inside the repository."""
    return page.relative_to(ROOT).as_posix()


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
    homes = dict.fromkeys(("pull", "key", "export", "load"), "admin_cli") | dict.fromkeys(
        ("recommend", "doctor"), "local_cli"
    )
    if package == "service" and words and words[0] in homes:
        command = typer.main.get_command(importlib.import_module(f"service.{homes[words[0]]}").app)
    if hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"{package} has no command {words[:1]}"
        command, words = command.commands[words[0]], words[1:]
    if hasattr(command, "commands"):  # `data NAME` is `data fetch NAME`
        first = words[0] if words and words[0] in (*command.commands, "--help") else "fetch"
        words = words[1:] if words[:1] == [first] else words
        command = command.commands.get(first, command)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used - known - {"--help"} == set(), f"{package} {words[:1]} has no option {used - known}"
    if "--help" not in words and not {"…", "..."} & set(words):
        command.make_context(package, [*words])  # the real parser: arguments, kinds and ranges of values
    data = words[words.index("--data") + 1] if "--data" in words else ""
    check_data(data)
    if package == "training" and command.name == "train" and re.fullmatch(r"[a-z0-9|]+", words[0]):
        check_recipe(words[0], words)
    if package == "training" and command.name == "fetch" and words:
        assert words[0] in (*known_names(), "…", "--help"), f"training data takes a name, not {words[0]}"


def check_recipe(name: str, words: list[str]) -> None:
    """Fail unless a recipe takes the backbone and the settings of a `train` command."""
    given = {option: [after for word, after in itertools.pairwise(words) if word == option] for option in OPTIONS}
    for recipe in name.split("|"):
        get_recipe(recipe, given["--set"], backbone=next(iter(given["--backbone"]), None))


def check_data(name: str) -> None:
    """Fail unless a data set that a page names is a known one, a path, or a placeholder in capitals."""
    assert name in ("", "…") or "/" in name or name.isupper() or name in known_names(), f"{name} is no named data set"


def check_module(module: str) -> None:
    """Fail unless a program of benchmarks/ or scripts/ exists."""
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"there is no module {module}"


def without_variables(words: list[str]) -> list[str]:
    """A command without the variables in front of it; a variable of the service has to exist."""
    words = words[1:] if words[0] == "export" else words
    if "=$(" in words[0]:
        return [words[0].partition("=$(")[2]]  # a program whose output becomes a variable
    assignments = list(itertools.takewhile(re.compile(r"[A-Za-z_]+=").match, words))
    unknown = {word.split("=")[0] for word in assignments if word.startswith("ANYO_")} - SETTINGS
    assert unknown == set(), f"no such settings: {unknown}"
    return words[len(assignments) :]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_a_shell_block_is_one(page: Path) -> None:
    for line in shell_lines(page):
        words = without_variables(shlex.split(line, comments=True))
        words = list(itertools.takewhile(lambda word: word != ">", words))
        if not words or words[0] in NOT_PARSED:
            continue
        if words[0] == "make":
            targets = {word for word in words[1:] if "=" not in word}
            given = {word.split("=")[0] for word in words[1:] if "=" in word}
            assert targets <= TARGETS, line
            assert given <= VARIABLES, line
            check_data("".join(word.removeprefix("DATA=") for word in words if word.startswith("DATA=")))
        elif words[:3] == ["python", "-m", "pip"]:
            assert words[3] == "install", line
        elif words[:2] == ["python", "-m"] and words[2] not in PROGRAMS:
            check_module(words[2])
        elif words[:2] == ["python", "-m"]:
            check_program(words[2], words[3:])
        elif words[:2] == ["anyo", "completion"]:
            assert words[2] in ("bash", "zsh", "fish"), line
        elif words[0] == "anyo":
            check_program(*importlib.import_module("anyo").route(words[1:]))
        else:
            raise AssertionError(f"{line}: {words[0]} is neither a program of anyo nor in NOT_PARSED")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_program_named_in_the_text_exists(page: Path) -> None:
    inline = re.findall(r"`(?:[A-Z_]+=\S* )*(python -m [^`\n]+)`", page.read_text())
    for command in (each for text in inline for each in text.split(";")):
        _, _, program, *words = shlex.split(command)
        if program.startswith(("benchmarks", "scripts")):
            check_module(program)
        elif program in PROGRAMS and words and words[0] not in ("…", "ARTIFACT"):
            check_program(program, [*words, "…"])  # placeholders are not parsed


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_named_in_the_text_exist(page: Path) -> None:
    named = set(re.findall(r"`make ([a-z-]+)[^`]*`", page.read_text()))
    assert named <= TARGETS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_recipe_has_a_row_and_is_named_in_the_readmes() -> None:
    assert set(recipe_names()) - rows(ROOT / "docs" / "training" / "recipes.md") == set()
    for page in READMES:
        assert [name for name in recipe_names() if f"`{name}`" not in page.read_text()] == [], page.name


@pytest.mark.parametrize("page", READMES, ids=name_of)
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


def test_both_readmes_show_the_same_figures() -> None:
    english, japanese = (re.findall(r"\d\.\d{4} ± \d\.\d{4}", page.read_text()) for page in READMES)
    assert english == japanese
    assert english


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert "TODO" not in page.read_text()


def test_the_first_screen_holds_both_commands_and_the_answer() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    screen = "\n".join(lines[:40])
    assert "make run" in screen
    assert "curl" in screen
    assert '"items"' in screen
