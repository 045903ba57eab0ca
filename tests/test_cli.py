"""The commands: each answers --help, and `anyo` hands on to the right program."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import anyo
import index.cli
import service.admin_cli
import service.cli
import service.local_cli
import service.ray_serve.__main__
import training.cli

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {"training": training.cli.app, "index": index.cli.app, "service": service.cli.app}
APPS = {
    **PROGRAMS,
    "service, tools": service.admin_cli.app,
    "service, local": service.local_cli.app,
    "service, on Ray": service.ray_serve.__main__.app,
}
WIDE = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def every_command() -> Iterator[tuple[str, ...]]:
    """(program,) and (program, command) for all programs."""
    for name, app in APPS.items():
        yield (name,)
        command = typer.main.get_command(app)
        if hasattr(command, "commands"):
            for sub, inner in command.commands.items():
                yield (name, sub)
                yield from ((name, sub, each) for each in getattr(inner, "commands", ()))


@pytest.mark.parametrize("words", [*every_command()], ids=" ".join)
def test_help_answers_and_every_option_says_what_it_does(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(APPS[words[0]], [*words[1:], "--help"], env=WIDE)
    assert result.exit_code == 0, result.output
    command: Any = typer.main.get_command(APPS[words[0]])
    for sub in words[1:]:
        command = command.commands[sub]
    assert command.help
    silent = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
    assert silent == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_python_m_starts_quickly_enough_to_ask_for_help(program: str) -> None:
    started = time.monotonic()
    command = [sys.executable, "-m", program, "--help"]
    finished = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **WIDE}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "Usage" in finished.stdout
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("given", "module", "rest"),
    [
        ("train anyo --data demo", "training", "train anyo --data demo"),
        ("evaluate a --data demo", "training", "evaluate a --data demo"),
        ("training recipes", "training", "recipes"),
        ("serve artifacts/a --port 1", "service", "artifacts/a --port 1"),
        ("index inspect a", "index", "inspect a"),
        ("recommend a item", "service", "recommend a item"),
        ("doctor --json", "service", "doctor --json"),
    ],
)
def test_anyo_hands_on(given: str, module: str, rest: str) -> None:
    assert anyo.route(given.split()) == (module, rest.split())


def run_anyo(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "anyo.py"), *words]
    environment = {**os.environ, **WIDE, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_anyo_without_a_command_shows_what_there_is_and_passes_on_the_exit_code() -> None:
    overview = run_anyo()
    assert overview.returncode == 0
    assert all(word in overview.stdout for word in ("anyo train", "anyo serve", "anyo index"))
    assert "sasrec" in run_anyo("recipes").stdout
    wrong = run_anyo("tarin")
    assert wrong.returncode == 2
    assert "tarin" in wrong.stderr


def test_every_first_word_is_known_before_anything_is_imported_and_is_completed() -> None:
    groups = (training.cli.app, service.admin_cli.app, service.local_cli.app)
    commands: Any = [typer.main.get_command(app) for app in groups]
    known = {name for command in commands for name in command.commands}
    assert known | {"serve", "index", "service", "training", "completion"} == set(anyo.COMMANDS)
    assert len(set(anyo.COMMANDS)) == len(anyo.COMMANDS)
    near = run_anyo("recomend")
    assert (near.returncode, near.stdout) == (2, "") and "did you mean 'recommend'?" in near.stderr
    script = run_anyo("completion", "bash").stdout
    asked = f"{script}\nCOMP_WORDS=(anyo train --see); COMP_CWORD=2; _anyo; echo ${{COMPREPLY[@]}}"
    shell = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert shell.stdout.split() == ["--seed"]
    assert "--seed" in run_anyo("completion", "fish").stdout
    assert run_anyo("completion", "tcsh").returncode == 2


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project
    assert anyo.__doc__
    assert project["version"] not in (ROOT / "anyo.py").read_text()
