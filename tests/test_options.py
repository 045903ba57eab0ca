"""Ordinary mistakes at the command line: impossible numbers, typos, a full disk, a closed pipe, Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import index.cli
import service.admin_cli
import service.cli
import service.local_cli
import service.ray_serve.__main__
import training.cli
import training.cli_data
from index.command_line.border import FAILED, FAULT, INTERRUPTED, READER_GONE, BorderedGroup, printable

ROOT = Path(__file__).resolve().parent.parent
APPS = {
    "training": training.cli.app,
    "index": index.cli.app,
    "serve": service.cli.app,
    "service": service.admin_cli.app,
    "service, local": service.local_cli.app,
    "service, on Ray": service.ray_serve.__main__.app,
}
IMPOSSIBLE = ("nan", "inf", "-inf", "-1", "1e400", str(10**30), "text", "", "0x10", "1,5")
ALSO = {"--time-budget": ("0", "-5"), "--share": ("0", "1", "1.5"), "--k": ("0",), "--repeats": ("0",)}
HEAVY = ("torch", "transformers", "polars", "faiss", "numpy", "scipy")
WIDE = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}


def commands() -> Iterator[tuple[str, tuple[str, ...], Any]]:
    for program, app in APPS.items():
        command: Any = typer.main.get_command(app)
        if hasattr(command, "commands"):
            yield from ((program, (name,), sub) for name, sub in command.commands.items())
        else:
            yield program, (), command


def numeric(parameter: Any) -> bool:
    kinds = parameter.type_descriptor.annotation
    return kinds in (int, float)


def cases() -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    for program, words, command in commands():
        for parameter in command.params:
            if numeric(parameter):
                option = parameter.opts[0]
                for value in (*IMPOSSIBLE, *ALSO.get(option, ())):
                    yield program, words, option, value


def test_the_numeric_options_are_those_known_here() -> None:
    found = {option for _, _, option, _ in cases()}
    assert {"--seed", "--time-budget", "--share", "--k", "--repeats", "--port"} <= found


@pytest.mark.parametrize(("program", "words", "option", "value"), [*cases()], ids=str)
def test_an_impossible_number_is_one_sentence_and_status_2(
    program: str, words: tuple[str, ...], option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    needed = {"train": ["sasrec", "--data", "d", "--out", "o"], "reweigh": ["a", "--data", "d", "--out", "o"],
              "withhold": ["--data", "d", "--out", "o"], "evaluate": ["a", "--data", "d"],
              "compare": ["a", "--data", "d"], "floors": ["--data", "d"], "tune": ["a"], "build": ["a"],
              "rewrite": ["a"], "update": ["a", "--data", "d", "--out", "o"]}  # fmt: skip
    line = [*words, *needed.get(words[0] if words else "", []), f"{option}={value}"]
    result = CliRunner().invoke(APPS[program], line, env=WIDE)
    assert result.exit_code == 2, (line, result.output)
    assert "Invalid value for" in result.output and option in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def loaded_by(*words: str) -> tuple[int, list[str]]:
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules]))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, env={**os.environ, **WIDE, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    assert last.startswith("LOADED"), done.stderr
    return done.returncode, last.split()[1:]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("training --help", 0),
        ("training train --help", 0),
        ("training floors --help", 0),
        ("training trian", 2),
        ("training train sasrec --data d --out o --sede 1", 2),
        ("training train sasrec --data d --out o --seed -1", 2),
        ("training train sasrec --data d --out tests", 2),
        ("index --help", 0),
        ("index buidl", 2),
        ("index tune a --k nan", 2),
        ("service --help", 0),
        ("service --prot 1", 2),
        ("service pull --help", 0),
        ("anyo --help", 0),
        ("anyo train --help", 0),
        ("anyo tarin", 2),
    ],
)
def test_help_and_mistakes_load_no_heavy_library(line: str, code: int) -> None:
    assert loaded_by(*line.split()) == (code, [])


def program(raised: BaseException) -> typer.Typer:
    app = typer.Typer(cls=BorderedGroup, pretty_exceptions_enable=False, add_completion=False)

    @app.command()
    def work() -> None:
        print("half a result")
        raise raised

    @app.command()
    def other() -> None:
        pass

    return app


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b.bin"), FAILED, "a/b.bin: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), FAILED, "a: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), FAILED, "Read-only file system"),
        (RuntimeError("[enforce fail] PytorchStreamWriter: No space left on device"), FAILED, "No space left"),
        (MemoryError(), FAILED, "there is not enough memory"),
        (KeyError("x"), FAULT, "KeyError: 'x'. This is an internal error of anyo; ANYO_TRACE=1 shows the traceback"),
        (ValueError("two\nlines \x1b[31m"), FAULT, "ValueError: two lines \\x1b[31m. This is an internal error"),
        (AssertionError(), FAULT, "AssertionError. This is an internal error of anyo"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (typer.BadParameter("not so"), 2, "not so"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whatever_is_raised_ends_in_one_sentence(raised: BaseException, code: int, says: str) -> None:
    result = CliRunner().invoke(program(raised), ["work"], env=WIDE)
    assert result.exit_code == code
    assert says in result.stderr and "Traceback" not in result.stderr
    if code != 2:
        assert len(result.stderr.strip().splitlines()) == 1


def test_the_trace_is_shown_where_it_is_asked_for() -> None:
    result = CliRunner().invoke(program(KeyError("x")), ["work"], env={**WIDE, "ANYO_TRACE": "1"})
    assert result.exit_code == FAULT
    assert "Traceback" in result.stderr and "KeyError" in result.stderr


@pytest.mark.parametrize("name", APPS)
def test_every_program_has_the_border(name: str) -> None:
    command = typer.main.get_command(APPS[name])
    assert type(command).__name__ in ("BorderedGroup", "BorderedCommand")


def test_a_reader_that_went_away_and_a_full_disk_as_output() -> None:
    def recipes(output: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "training", "recipes"], cwd=ROOT, stdout=output,
                              stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip

    reading, writing = os.pipe()
    os.close(reading)
    closed = recipes(writing)
    os.close(writing)
    assert (closed.returncode, closed.stderr) == (READER_GONE, "")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = recipes(full.fileno())
        assert done.returncode == FAILED
        assert done.stderr.splitlines()[0].endswith("No space left on device")


SLOW = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what started the tests may have it ignored
import training.data.dataset
from training.cli import app
training.data.dataset.find_file = lambda folder, stem: folder / "fifo"
sys.argv = ["training", "floors", "--data", sys.argv[1]]
app()
"""


def test_ctrl_c_ends_with_a_word(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # whoever reads it waits
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        fifo = os.open(tmp_path / "fifo", os.O_WRONLY)  # goes on as soon as the other side has opened it too
        process.send_signal(signal.SIGINT)
        os.close(fifo)  # the signal may have come between opening and reading
        _, errors = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    assert errors.strip() == "interrupted"


def test_control_characters_are_spelled_out() -> None:
    assert printable("a\x1b[2J\r\nb\u202ec日本🎁") == "a\\x1b[2J\\r\nb\\u202ec日本🎁"
