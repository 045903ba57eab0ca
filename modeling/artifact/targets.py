"""Which folders a command may replace: new ones, empty ones, and those that anyo wrote before.

A command that puts a folder in another's place deletes what was there. Every such command asks here first, before it
reads its data, so that a wrong `--out` costs nothing. Imports nothing heavy: it runs before anything else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

Kind = Literal["artifact", "data set", "backbone", "comparison", "search", "export", "recommendations", "new"]
"""Content of a folder that may be replaced; ``new``: nothing at all."""

SHOWN = 3
LONGEST_NAME = 200
"""Characters of a folder's name; folders beside it, while it is written, have longer ones."""
OF_THE_DESKTOP = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that a file manager leaves in any folder it shows."""
OF_AN_EXPORT = re.compile(r"(recommendations\.json|users\.parquet|part-[0-9]{5,}\.parquet)(\.part)?")
DATA_SET_FILES = {"source.json", "items.jsonl", "interactions.csv.gz", "interactions.parquet"}
COMPARISON = "comparison.json"
"""Says which data a folder of `training compare` is about."""
SEARCH = "search.json"
"""Says which recipe and data a folder of `training tune` is about."""


class TargetError(FileExistsError):
    """A folder or file must not be replaced; the message is one sentence."""

    def __str__(self) -> str:
        return str(self.args[0])


def check_target(target: Path, *, kind: Kind = "artifact", reads: Iterable[Path | str | None] = ()) -> None:
    """Raise `TargetError` unless ``target`` may be written or replaced.

    Args:
        target: the folder to write. It is new, or empty, or holds what anyo wrote as ``kind`` and nothing else. It is
            no link, neither the working folder nor around it, neither the home folder nor around it, no repository.
        kind: what may be replaced.
        reads: folders and files that the same command reads: the target is none of them, holds none of them and lies in
            none of them. A text where there is no such file or folder is a name of something, and passed over.
    """
    check_name(target)
    if os.path.lexists(target) and target.is_symlink():
        raise TargetError(f"{target} is a link to {os.readlink(target)}; name the folder itself")
    place = target.absolute().resolve()
    if target.exists() and not target.is_dir():
        raise TargetError(f"{target} is a file; a new or empty folder is allowed")
    _not_around(target, place, Path.cwd(), "the working folder")
    _not_around(target, place, Path(os.path.expanduser("~")), "the home folder")
    _not_around(target, place, Path(__file__).resolve().parents[2], "the program")
    if (place / ".git").exists():
        raise TargetError(f"{target} is a repository (it holds .git); name a folder of its own")
    for source in _paths(reads):
        _apart(target, place, source)
    if target.is_dir():
        _empty_or_ours(target, kind)


def check_name(target: Path) -> None:
    """Raise `TargetError` for a folder whose name no manifest may hold: it would be refused when all work is done."""
    name = target.name
    if name == ".." or not name.isprintable() or len(name) > LONGEST_NAME:
        raise TargetError(
            f"{name[:40]!a} cannot be the name of a folder here: at most {LONGEST_NAME} printable characters, and not "
            "'..', are allowed"
        )


def check_file(target: Path, *, fields: Iterable[str], reads: Iterable[Path | str | None] = ()) -> None:
    """Raise `TargetError` unless the file ``target`` is new, empty, or holds JSON lines with ``fields``, as we write.

    ``reads`` as in `check_target`.
    """
    if target.is_dir():
        raise TargetError(f"{target} is a folder; a file is written")
    if target.exists() and not target.is_file():
        return  # a pipe or a device: nothing is lost
    place = target.absolute().resolve()
    for source in _paths(reads):
        if source.resolve() in (place, *place.parents):
            raise TargetError(f"{target} lies in {source}, which is read; name a file elsewhere")
    if not target.is_file() or not target.stat().st_size:
        return
    with target.open("rb") as file:
        first = _object(file.readline(1 << 20))
    if not set(fields) <= first.keys():
        raise TargetError(f"{target} is there and was not written by this command; name a new file")


def _paths(reads: Iterable[Path | str | None]) -> Iterable[Path]:
    return (Path(source) for source in reads if isinstance(source, Path) or (source and Path(source).exists()))


def _not_around(target: Path, place: Path, inner: Path, name: str) -> None:
    inner = inner.resolve()
    if place == inner or place in inner.parents:
        relation = "is" if place == inner else "holds"
        raise TargetError(f"{target} {relation} {name}; name a folder of its own")


def _apart(target: Path, place: Path, source: Path) -> None:
    read = source.resolve()
    if place == read:
        raise TargetError(f"{target} is what is read; name another folder")
    if place in read.parents:
        raise TargetError(f"{target} holds {source}, which is read; name another folder")
    if read in place.parents:
        raise TargetError(f"{target} lies in {source}, which is read; name a folder outside of it")


def _empty_or_ours(target: Path, kind: Kind) -> None:
    top = sorted(name for name in os.listdir(target) if name not in OF_THE_DESKTOP)
    if not top:
        return
    ours = _ours(target, kind)
    if ours is None:
        wanted = "a new or empty folder" if kind == "new" else f"a new or empty folder or an earlier {kind} of anyo"
        raise TargetError(f"{target} is not empty (it holds {_some(top)}); {wanted} is allowed")
    strange = sorted(name for name in _files(target) if name not in ours)
    if strange:
        raise TargetError(f"{target} holds {_some(strange)} beside the {kind}; move that away or name a new folder")


def _ours(target: Path, kind: Kind) -> set[str] | None:
    """The files that anyo wrote to the folder; None where it is no such folder."""
    if kind == "artifact":
        manifest = _json_file(target / "manifest.json")
        files = manifest.get("files")
        known = isinstance(files, dict) and {"schema_version", "recipe", "version"} <= manifest.keys()
        return {"manifest.json", *files} if known and isinstance(files, dict) else None
    if kind == "data set":
        source = _json_file(target / "source.json")
        return DATA_SET_FILES if "name" in source else None
    if kind in ("comparison", "search"):
        marker = _json_file(target / (COMPARISON if kind == "comparison" else SEARCH))
        return set(_files(target)) if f"{kind}_of" in marker else None
    if kind == "export":  # of benchmarks, for other servers
        return set(_files(target)) if (target / "facts.json").is_file() else None
    if kind == "backbone":
        config = _json_file(target / "config.json")
        return set(_files(target)) if "model_type" in config or "architectures" in config else None
    if kind == "recommendations":
        plan = _json_file(target / "recommendations.json")
        return {name for name in _files(target) if OF_AN_EXPORT.fullmatch(name)} if "part_users" in plan else None
    return None


def _files(folder: Path) -> Iterable[str]:
    """Everything in a folder that is no folder, by its path inside; an empty inner folder too."""
    for path in folder.rglob("*"):
        empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
        if (empty or path.is_symlink() or not path.is_dir()) and path.name not in OF_THE_DESKTOP:
            yield path.relative_to(folder).as_posix()


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:SHOWN]) + (f" and {len(names) - SHOWN} more" * (len(names) > SHOWN))


def _json_file(path: Path) -> dict[str, Any]:
    try:
        return _object(path.read_bytes())
    except OSError:
        return {}


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
