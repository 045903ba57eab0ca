"""A guess in words, and as the options that say the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import PurePosixPath

from training.data.importing.table import INTERACTION_ROLES, ITEM_ROLES, Guess
from training.data.report import shown


def describe(guess: Guess) -> str:
    """One paragraph on a table: how it was read, what it is taken for, and examples of what is in its columns."""
    table = guess.table
    kind = "neither interactions nor items" if guess.kind == "other" else guess.kind
    lines = [f"{table.name} ({table.form}): {table.frame.height:,} rows, {kind} by {guess.by}"]
    first = table.frame.head(1).to_dicts()[0] if table.frame.height else {}
    for role, column in guess.columns.items() if guess.kind != "other" else ():
        lines.append(f"  {role:<12} {column}   e.g. {shown(first.get(column))}")
    unused = [name for name in table.frame.columns if name not in guess.columns.values()]
    if unused and guess.kind != "other":
        lines.append(f"  not used     {', '.join(unused[:12])}" + (", …" if len(unused) > 12 else ""))
    return "\n".join([*lines, *(f"  note: {note}" for note in guess.notes)])


def as_options(interactions: Sequence[Guess], items: Sequence[Guess], other: Sequence[Guess] = ()) -> str:
    """The roles of the interactions, and of items that are doubtful, as ``--map`` takes them.

    A file is named where several have no header, as then the number of a column does not say whose it is.
    """
    doubtful = [guess for guess in items if guess.doubts]
    bare = [guess for guess in (*items, *other) if not guess.table.header]
    parts = [_of(interactions[0], _pattern(interactions) if bare and not interactions[0].table.header else "")]
    parts += [_of(guess, PurePosixPath(guess.table.name).name) for guess in doubtful]
    return " ".join(parts)


def _of(guess: Guess, file: str) -> str:
    columns = guess.columns if guess.table.header else {
        role: name.removeprefix("column_") for role, name in guess.columns.items()
    }  # fmt: skip
    roles = [*(f"{role}={columns[role]}" for role in (*INTERACTION_ROLES, *ITEM_ROLES) if role in columns)]
    if guess.kind == "interactions" and "time" not in columns:
        roles.append("time=none")
    return "--map " + _quoted((f"{file}:" if file else "") + ",".join(roles))


def _pattern(guesses: Sequence[Guess]) -> str:
    """The name of the files, with a star for where they differ."""
    names = [PurePosixPath(guess.table.name).name for guess in guesses]
    if len({*names}) == 1:
        return names[0]
    start = _common_start(names)
    end = _common_start([name.removeprefix(start)[::-1] for name in names])[::-1]
    return f"{start}*{end}"


def _common_start(names: Sequence[str]) -> str:
    alike = takewhile(lambda characters: len({*characters}) == 1, zip(*names, strict=False))
    return "".join(characters[0] for characters in alike)


def _quoted(text: str) -> str:
    return text if text and not set(text) & set(" '\"()*;&|<>$`\\") else "'" + text.replace("'", "'\\''") + "'"
