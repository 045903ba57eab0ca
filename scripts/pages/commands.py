"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import index.cli
import service.admin_cli
import service.cli
import service.local_cli
import service.ray_serve.__main__
import training.cli
from scripts.pages.results import ROOT

PAGE = ROOT / "docs" / "reference" / "command-line.md"
PROGRAMS = (
    ("python -m training", training.cli.app),
    ("python -m index", index.cli.app),
    ("python -m service", service.cli.app),
    ("python -m service", service.admin_cli.app),
    ("python -m service", service.local_cli.app),
    ("python -m service.ray_serve", service.ray_serve.__main__.app),
)
HEADER = """\
# Command line

`anyo train …` is `python -m training train …`, `anyo serve …` is `python -m service …`; `anyo recommend`, `doctor`,
`pull` and `key` are commands of `python -m service` too. `anyo completion bash`, `zsh` or `fish` prints a
script for the shell. Errors are one sentence on standard error. Exit status: 1 the machine refused (disk, memory,
permission), 2 what was given is not allowed, 70 an internal error, 130 interrupted.

This page is generated from the commands by `python -m scripts.pages`.
"""


def command_reference() -> dict[Path, str]:
    """The page by its path."""
    sections = [_section(name, command) for name, command in _commands()]
    return {PAGE: HEADER + "".join(sections)}


def _commands() -> Iterator[tuple[str, Any]]:
    for program, app in PROGRAMS:
        yield from _leaves(program, typer.main.get_command(app))


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command, or all commands of a group, of groups inside it too."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from _leaves(f"{name} {word}", inner)


def _section(name: str, command: Any) -> str:
    text = " ".join((command.help or "").split())
    lines = [
        f"\n## {name}\n",
        f"{text}\n",
        "| argument or option | type | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    rows = [_row(each) for each in command.params if each.opts != ["--help"]]
    return "\n".join([*lines, *rows]) + "\n" if rows else "\n".join(lines[:2])


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.opts[0].upper()
    else:
        name = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
    default = "required" if parameter.required else "" if parameter.default in (None, (), []) else _shown(parameter)
    return "| " + " | ".join((name, _type(parameter), default, cell(parameter.help or ""))) + " |"


def _shown(parameter: Any) -> str:
    value = parameter.default
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`"


def _type(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    name = getattr(annotation, "__name__", str(annotation))
    several = str(annotation).startswith("list")
    inner = str(annotation)[5:-1].rpartition(".")[2] if several else name
    word = {"str": "text", "Path": "path", "int": "integer", "float": "number", "bool": "flag"}.get(inner, inner)
    return f"{word}, several" if several else word


def cell(text: str) -> str:
    """Text of a docstring or a description as a cell of a table."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())
