"""The race: dense retrieval beside generation on the same backbone, the same histories and the same machine.

    python -m benchmarks.generation.dense_vs_generative --data DIR --backbone smollm2 --clients 16 --state FILE
    python -m benchmarks.generation.dense_vs_generative --data DIR [--rounds 5] [--minutes 4]
    python -m benchmarks.generation.dense_vs_generative … --state FILE --only prepare|latency|throughput|forced|quality
    python -m benchmarks.generation.dense_vs_generative … --state FILE --artifact tiger=DIR --artifact bigrec=DIR

The backbone is `small` (8 layers, 512 wide, random) or a pretrained one; TIGER and P5 have networks of their own, made
as wide and as deep. The artifacts are made for timing (`benchmarks.generation.race_artifacts`). Parts:

- prepare: make those that are missing; each is kept when it ends.
- latency: a service answers all methods, one request at a time, caches off, methods taking turns.
- throughput: so many clients ask each method all the time.
- forced: texts of given lengths by our search, by Hugging Face `generate` with the same beams, and the dense forward.
- quality: NDCG@10 of the artifacts given by `--artifact`, trained elsewhere, on the same validation users.

With `--state` a part that has ended is kept, so that the same command goes on, and parts can be run one by one; the
table holds what is there. Ratios are to the dense answer of the same depth. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.generation.race_artifacts import COMPRESSED, DENSE, MINUTES, Race, bounded, make, names_of
from benchmarks.generation.race_forced import BEAMS, NATURAL, forced_lengths
from benchmarks.generation.race_serving import SETTINGS, WAYS, Served, Way, histories
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server
from modeling.artifact.manifest import read_manifest
from training.cli_common import open_dataset
from training.compare import open_artifact
from training.data.dataset import Dataset
from training.data.splits import leave_one_out
from training.loop.fit import sample_targets

PARTS = ("prepare", "latency", "throughput", "forced", "quality")
LENGTHS = {True: [16], False: [8, 16, 32, 64]}
"""Forced lengths, by whether the backbone is pretrained."""
SMALL_MINUTES = 4.0
QUALITY_OF = {way.artifact: way.name for way in WAYS}
"""The row that has an artifact's quality; of two, the one with the beams of the evaluation."""
GENERATE = "Hugging Face `generate`, 4 beams"

RESULT = ResultFile(__file__, __doc__)


class Parts:
    """What the parts of one race gave, in a file or only in memory.

    Args:
        file: JSON; None: nothing is kept.
        decides: options on which the figures depend.

    Raises:
        SystemExit: the file holds another race.
    """

    def __init__(self, file: Path | None, decides: dict[str, Any]) -> None:
        self._file, self._race = file, {"decides": decides, "parts": {}}
        if file is not None and file.exists():
            known = json.loads(file.read_text(encoding="utf-8"))
            if known["decides"] != json.loads(json.dumps(decides)):
                raise SystemExit(
                    f"{file} holds a race with {known['decides']}; this one has {decides}: take another file"
                )
            self._race = known

    @property
    def found(self) -> dict[str, Any]:
        """By part: what it gave."""
        found: dict[str, Any] = self._race["parts"]
        return found

    def keep(self, part: str, name: str, figures: Any) -> None:
        """Keep what a piece of a part gave."""
        self.found.setdefault(part, {})[name] = figures
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            work = self._file.with_suffix(".writing")
            work.write_text(json.dumps(self._race), encoding="utf-8")
            work.replace(self._file)

    def lacks(self, part: str, name: str) -> bool:
        """Whether a piece has not ended yet."""
        return name not in self.found.get(part, {})


class Running:
    """One race as it is run: its artifacts, and the options of the command."""

    def __init__(self, race: Race, parts: Parts, options: argparse.Namespace) -> None:
        self.race, self.parts, self.options = race, parts, options
        self.names = names_of(race)
        self.ways = [way for way in WAYS if way.artifact in self.names]

    def prepare(self) -> None:
        """Make what is missing."""
        for name in self.names:
            started = time.monotonic()
            make(self.race, name)
            seconds = time.monotonic() - started
            self.race.console.print(f"{name}: {seconds:.0f} s")
            if self.parts.lacks("prepare", name):
                self.parts.keep("prepare", name, round(seconds, 1))

    def latency(self, served: Served) -> None:
        """One request at a time; the first round is left out."""
        asked = histories(self.race.split, seed=1)
        for number in range(self.options.rounds + 1):
            served.round([next(asked) for _ in range(self.options.requests if number else 1)], keep=number > 0)
        for name, row in served.table().items():
            self.race.console.print(name, row)
            self.parts.keep("latency", name, row)

    def throughput(self, served: Served) -> None:
        """Many clients at a time, each method on its own."""
        asked = histories(self.race.split, seed=2)
        for way in self.ways:
            if self.parts.lacks("throughput", way.name):
                row = served.throughput(way, self.options.clients, self.options.seconds, asked)
                self.race.console.print(way.name, row)
                self.parts.keep("throughput", way.name, row)

    def forced(self) -> None:
        """In this process."""
        asked = histories(self.race.split, seed=3)
        dense, bigrec = (self.race.folder(name) for name in (DENSE, "bigrec"))
        few = [next(asked) for _ in range(1 + min(3, self.options.rounds))]
        self.parts.keep("forced", "rows", forced_lengths(dense, bigrec, few, self.options.lengths))

    @contextlib.contextmanager
    def service(self) -> Iterator[Served]:
        """A service with all artifacts; the first is the default dense one."""
        first, *others = [self.race.folder(name) for name in self.names]
        settings = {**SETTINGS, "precision": self.options.precision}
        with Server(first, settings, others=others) as server:
            folders = {name: self.race.folder(name).name for name in self.names}
            yield Served(server.url, self.race.split.dataset.item_ids, folders, self.ways)


def quality(folder: Path, dataset: Dataset, users: int) -> dict[str, Any]:
    """NDCG@10 of an artifact on validation users drawn with seed 0; raises `ArtifactError` where it has seen them."""
    opened = open_artifact(folder, dataset, "validation")
    targets = sample_targets(opened.targets, users, 0)
    found = opened.answer(targets, opened.split.popularity(), seed=0)
    interval = found.metrics.to_dict(4)["ndcg@10"]
    return {"ndcg@10": interval, "users": len(targets), "quality_of": folder.name}


def run_parts(running: Running, dataset: Dataset, wanted: Sequence[str]) -> None:
    """Run the parts that are wanted and have not ended."""
    parts, options = running.parts, running.options
    if "prepare" in wanted:
        running.prepare()
    needed = running.names if {"latency", "throughput", "forced"} & {*wanted} else []
    if missing := [name for name in needed if not (running.race.folder(name) / "manifest.json").exists()]:
        raise SystemExit(f"these artifacts are missing: {', '.join(missing)}; run the part `prepare` first")
    asked: list[Callable[[Served], None]] = []
    if "latency" in wanted and any(parts.lacks("latency", way.name) for way in running.ways):
        asked.append(running.latency)
    lacking = any(parts.lacks("throughput", way.name) for way in running.ways)
    if "throughput" in wanted and options.clients and lacking:
        asked.append(running.throughput)
    if asked:
        with running.service() as served:
            for part in asked:
                part(served)
    if "forced" in wanted and parts.lacks("forced", "rows"):
        running.forced()
    for name, folder in options.artifact if "quality" in wanted else ():
        if parts.lacks("quality", key := f"{name} {read_manifest(folder).version} {options.users}"):
            parts.keep("quality", key, {"row": QUALITY_OF[name], **quality(folder, dataset, options.users)})


def rows_of(found: dict[str, Any], ways: Sequence[Way]) -> list[dict[str, Any]]:
    """One row a method, of the parts that have ended."""
    latency, forced = found.get("latency", {}), found.get("forced", {}).get("rows", [])
    qualities = {row["row"]: {k: v for k, v in row.items() if k != "row"} for row in found.get("quality", {}).values()}
    bases = {
        name: next(
            (latency[way.name]["total_ms"] for way in ways if way.artifact == artifact and way.name in latency), None
        )
        for name, artifact in (("over_titles", DENSE), ("over_compressed", COMPRESSED))
    }
    rows = []
    for way in ways:
        row: dict[str, Any] = {"method": way.name, "beams": way.beams, **latency.get(way.name, {})}
        for name, base in bases.items():
            row[name] = round(row["total_ms"] / base, 2) if base is not None and "total_ms" in row else None
        rows.append({**row, **found.get("throughput", {}).get(way.name, {}), **qualities.get(way.name, {})})
        if way.beams == max(BEAMS):
            rows += [_generated(each) for each in forced if each["beams"] == way.beams and each["tokens"] == NATURAL]
    return rows


def _generated(forced: dict[str, Any]) -> dict[str, Any]:
    """The row of Hugging Face's search over BIGRec's model, in a process without a service."""
    return {
        "method": GENERATE, "beams": forced["beams"], "total_ms": forced["hugging_face_ms"],
        "over_titles": forced["hugging_face_over_dense"],
    }  # fmt: skip


def named_artifact(text: str) -> tuple[str, Path]:
    """NAME=FOLDER of an option; raises `ArgumentTypeError`."""
    name, _, folder = text.partition("=")
    if name not in QUALITY_OF or not (Path(folder) / "manifest.json").exists():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=FOLDER with an artifact in FOLDER; names: {', '.join(sorted(QUALITY_OF))}"
        )
    return name, Path(folder)


def positive(text: str) -> int:
    """A whole number from 1 on; raises `ArgumentTypeError`."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--out", type=Path, default=Path("artifacts/.benchmarks"))
    parser.add_argument("--backbone", help="a pretrained backbone, as `--backbone` of `train`, instead of `small`")
    parser.add_argument("--items", type=positive, help="only so many of the most popular items; left out: all")
    parser.add_argument("--minutes", type=float, help="of training of a writer that has to learn where texts end")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--requests", type=positive, default=1, help="of a round, for every way")
    parser.add_argument("--clients", type=int, default=0, help="that ask each method all the time; 0: none")
    parser.add_argument("--seconds", type=float, default=8.0, help="for which they ask each method")
    parser.add_argument("--lengths", type=positive, nargs="*", help="of forced texts, in tokens")
    parser.add_argument("--precision", default="fp32", choices=("auto", "fp32", "bf16"), help="of the service")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; left out: all")
    parser.add_argument("--state", type=Path, help="file of the parts that have ended; left out: none is kept")
    parser.add_argument("--artifact", type=named_artifact, action="append", default=[], metavar="NAME=FOLDER",
                        help="a trained artifact whose quality stands in the row of that name")  # fmt: skip
    parser.add_argument("--users", type=positive, default=200, help="validation users of the quality")
    RESULT.add_option(parser)
    options = parser.parse_args(words)
    pretrained = options.backbone is not None
    options.minutes = options.minutes or (MINUTES if pretrained else SMALL_MINUTES)
    options.lengths = LENGTHS[pretrained] if options.lengths is None else options.lengths
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Run the parts, then publish what is there."""
    options, console = parsed(words), Console(stderr=True)
    torch.set_num_threads(1)
    dataset = open_dataset(options.data, ties="file", seed=0, strict=False, console=console)
    raced = dataset if options.items is None else bounded(dataset, options.items)
    out = options.out / f"race-{raced.sha256[:8]}"
    race = Race(leave_one_out(raced), out, options.backbone, options.minutes, console)
    names = ("backbone", "items", "rounds", "requests", "clients", "seconds", "lengths", "precision")
    decides = {"data": dataset.sha256, **{name: getattr(options, name) for name in names}}
    parts = Parts(options.state, decides)
    running = Running(race, parts, options)
    run_parts(running, dataset, options.only or PARTS)
    RESULT.publish(parts.found, options.result, rows_of(parts.found, running.ways))


if __name__ == "__main__":
    main()
