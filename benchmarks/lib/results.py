"""The option `--result FOLDER/ID` of the benchmark programs: writes their figures to the file of a table.

A program prints its figures as one line of JSON in any case. With the option they are also written to
`benchmarks/results/FOLDER/ID.json`, with what a reader needs to judge them: commit, machine, command, versions, and
whether other programs ran meanwhile. A file of that name keeps its title, question, protocol and the headings of its
columns; rows and notes are replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import typer

from modeling.cores import affinity_cores
from scripts.pages.results import RESULTS, ROOT, Row, check

IDLE, BUSY = "idle", "other work on the machine"
OTHER_CORES = 0.1
"""Cores that other programs may use, in the mean over a run, on a machine that is called idle."""
NAME = re.compile(r"([a-z0-9-]+)/([a-z0-9-]+)")
WRITES = "also write the figures to benchmarks/results/FOLDER/ID.json"
PACKAGES = {
    "torch": "torch", "transformers": "transformers", "faiss": "faiss-cpu", "numpy": "numpy", "peft": "peft",
    "onnxruntime": "onnxruntime", "openvino": "openvino", "fastapi": "fastapi", "redis": "redis",
}  # fmt: skip
"""Modules whose version is named where they were imported, and their distributions."""
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "bf16", "amx_tile": "AMX"}
WIDE = "AVX-512"


class ResultFile:
    """Result file of a benchmark program. Create it when the program starts: the load is measured from then on.

    Args:
        file: of the program, its `__file__`.
        text: its docstring, whose first line is the title of a new file.
    """

    def __init__(self, file: str, text: str | None) -> None:
        self._module = ".".join(Path(file).resolve().relative_to(ROOT).with_suffix("").parts)
        self._title = (text or self._module).strip().splitlines()[0].rstrip(".:")
        self._started, self._others = time.monotonic(), others_cpu_s()

    def add_option(self, parser: argparse.ArgumentParser) -> None:
        """Add `--result` to the options of a program."""
        parser.add_argument(
            "--result",
            type=result_name,
            metavar="FOLDER/ID",
            help=WRITES,
        )

    def publish(self, figures: Any, result: str | None, rows: Sequence[Row] | None = None) -> None:
        """Print the figures as one line of JSON, and write them where a file is named.

        Args:
            figures: what the program found.
            result: FOLDER/ID; None: nothing is written.
            rows: of the table; None: those that `rows_of` makes of the figures.

        Raises:
            ResultError: the pages would not accept the file; nothing is written.
        """
        print(json.dumps(figures, ensure_ascii=False), flush=True)
        if result is None:
            return
        path = RESULTS / f"{result}.json"
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        experiment = self._experiment(path.stem, earlier, list(rows_of(figures) if rows is None else map(_flat, rows)))
        check(path, experiment)
        path.write_text(_text(experiment), encoding="utf-8")
        for note in earlier.get("notes", []):
            print(f"left out, since it was about the earlier figures: {note}", file=sys.stderr)
        print(f"written: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}", file=sys.stderr)

    def _experiment(self, name: str, earlier: Mapping[str, Any], rows: list[Row]) -> dict[str, Any]:
        columns = {column["key"]: column for column in earlier.get("columns", [])}
        keys = dict.fromkeys(key for row in rows for key in row)
        ordered = [*(key for key in columns if key in keys), *(key for key in keys if key not in columns)]
        return {
            "id": name,
            "title": earlier.get("title", self._title),
            "question": earlier.get("question"),
            "protocol": earlier.get("protocol"),
            "commit": commit(),
            "machine": machine(),
            "date": f"{date.today().day} {date.today():%B %Y}",
            "command": self.command(),
            "versions": versions(),
            "load": self.load(),
            "status": "current",
            "unit": earlier.get("unit"),
            "higher_is_better": earlier.get("higher_is_better"),
            "columns": [
                columns.get(key, {"key": key, "title": key.replace("_", " ").capitalize(), "digits": None})
                for key in ordered
            ],
            "rows": rows,
            "notes": [],
        }

    def command(self) -> str:
        """Return the command of this run: paths by their last part, `--result` left out."""
        words = iter(sys.argv[1:])
        kept = []
        for word in words:
            if word == "--result":
                next(words, None)
            elif not word.startswith("--result="):
                name, equals, value = word.rpartition("=")
                kept.append(f"{name}{equals}{Path(value).name}" if os.path.isabs(value) else word)
        return shlex.join(["python", "-m", self._module, *kept])

    def load(self) -> str:
        """Return whether other programs used the processor since the start."""
        seconds = max(time.monotonic() - self._started, 0.1)
        return IDLE if (others_cpu_s() - self._others) / seconds <= OTHER_CORES else BUSY


def result_name(text: str) -> str:
    """Return `text` if it names a file of results; raises `ArgumentTypeError` if not."""
    found = NAME.fullmatch(text)
    folders = sorted(path.name for path in RESULTS.iterdir() if path.is_dir())
    if not found or found[1] not in folders:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FOLDER/ID; allowed folders: {', '.join(folders)}; an ID has a-z, 0-9 and -"
        )
    other = [path for path in RESULTS.glob(f"*/{found[2]}.json") if path.parent.name != found[1]]
    if other:
        raise argparse.ArgumentTypeError(f"{text!r}: the id is used in {other[0].parent.name}; give another")
    return text


def checked_name(text: str | None) -> str | None:
    """Return what `result_name` returns, for programs whose options typer reads; raises `BadParameter`."""
    try:
        return None if text is None else result_name(text)
    except argparse.ArgumentTypeError as error:
        raise typer.BadParameter(str(error)) from error


def rows_of(figures: Any) -> list[Row]:
    """Return the rows of a table: one an object of a list, one a named object, else one a figure."""
    if isinstance(figures, list):
        return [_flat(each) for each in figures]
    if figures and all(isinstance(each, dict) for each in figures.values()):
        return [{"name": name, **_flat(each)} for name, each in figures.items()]
    return [{"figure": name, "value": value} for name, value in _flat(figures).items()]


def _flat(figures: Mapping[str, Any], before: str = "") -> Row:
    """A row of numbers, texts, intervals and lists: names of figures inside of figures are joined."""
    row: Row = {}
    for name, value in figures.items():
        inside = dict(enumerate(value)) if isinstance(value, list) and _has_objects(value) else value
        if isinstance(inside, dict) and "value" not in inside:
            row |= _flat({str(key): each for key, each in inside.items()}, f"{before}{name} ")
        else:
            row[before + name] = float(f"{inside:.6g}") if isinstance(inside, float) else inside
    return row


def _has_objects(values: Sequence[Any]) -> bool:
    return any(isinstance(each, dict | list) for each in values)


def others_cpu_s() -> float:
    """Return the processor time that programs other than this and those it started have used since the boot."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - sum(getattr(times, name, 0.0) for name in ("iowait", "steal", "guest"))
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            spent = process.cpu_times()
        except psutil.Error:  # it has ended, and its parent counts it
            continue
        busy -= spent.user + spent.system + spent.children_user + spent.children_system
    return float(busy)


def commit() -> str | None:
    """Return the commit of this checkout, and whether it has changes; None outside of git."""
    try:
        name, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name} with changes" if changes else name


def machine() -> dict[str, Any]:
    """Return processor with its instructions for matrices, memory and GPU, and the cores this process may use."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        found = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = found.get("model name", name), set(found.get("flags", "").split())
    known = [title for flag, title in INSTRUCTIONS.items() if flag in flags]
    known = [title for title in known if title != "AVX2" or WIDE not in known]
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "no GPU"
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    return {
        "processor": ", ".join([f"{name} ({', '.join(known)})" if known else name, memory, gpu]),
        "cores": affinity_cores(),
    }


def versions() -> str:
    """Return the versions of Python and of the libraries that were imported."""
    found = [f"Python {platform.python_version()}"]
    for module, distribution in PACKAGES.items():
        if module not in sys.modules:
            continue
        for name in (distribution, distribution.replace("-cpu", "-gpu-cu12")):
            try:
                found.append(f"{module} {version(name)}")
                break
            except PackageNotFoundError:
                continue
    return ", ".join(found)


def _text(experiment: Mapping[str, Any]) -> str:
    """The file: one field a line, and one line a column and a row."""
    parts = []
    for name, value in experiment.items():
        if isinstance(value, list) and value:
            inside = ",\n".join(f"  {json.dumps(each, ensure_ascii=False)}" for each in value)
            parts.append(f' "{name}": [\n{inside}\n ]')
        else:
            parts.append(f' "{name}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
