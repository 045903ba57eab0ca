"""Options of an import, and their texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from training.data.importing.joins import Join
from training.data.importing.table import ITEM_ROLES, NONE, ROLES, ReadOptions
from training.data.report import DataError, Tolerances

Repeats = Literal["keep", "first", "last"]
Unknown = Literal["keep", "drop"]
MAY_BE_NONE = ("time", "rating", "event", "split", "review", "summary", *ITEM_ROLES)
ALL = "all"


@dataclass(frozen=True)
class ImportOptions:
    """The settings of an import; see the command for each.

    `columns` holds the columns named for a role, in the order in which a table is asked for them. `events` maps the
    kinds of events that count to their weight; None: not said, empty: all count.
    """

    reading: ReadOptions = field(default_factory=ReadOptions)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    time_format: str | None = None
    events: Mapping[str, float] | None = None
    min_rating: float | None = None
    core: tuple[int, int] = (1, 1)  # least interactions of a user, and of an item
    repeats: Repeats = "keep"
    ties: Literal["shuffle", "file"] = "shuffle"
    unknown_items: Unknown | None = None  # None: kept unless they are most
    tolerances: Tolerances = field(default_factory=Tolerances)
    seed: int = 0
    joins: tuple[Join, ...] = ()


def parse_map(given: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """``user=reviewerID,item=asin``; a role may be given again, for the other file. Raises `DataError`.

    ``FILE:user=1,item=2`` holds for one file, or those of a pattern as ``part_*.txt``; the keys are then ``FILE:user``.
    """
    found: dict[str, tuple[str, ...]] = {}
    for each in given:
        named = re.match(rf"([^=]+:)(?=(?:{'|'.join(ROLES)})=)", each)
        file = named[1] if named else ""
        text = each.removeprefix(file)
        for part in re.split(rf",(?=(?:{'|'.join(ROLES)})=)", text):
            role, sign, column = part.partition("=")
            if not sign or role.strip() not in ROLES or not column.strip():
                raise DataError(f"--map {part!r} is not ROLE=COLUMN; roles are {', '.join(ROLES)}")
            role, column = role.strip(), column.strip()
            if column == NONE and role not in MAY_BE_NONE:
                raise DataError(f"--map {role}=none is not allowed; a {role} is needed")
            found[file + role] = (*found.get(file + role, ()), column)
    _check_apart(found)
    return found


def _check_apart(found: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse one column as both the user and the item."""
    for key, columns in found.items():
        file = key.removesuffix("user")
        if file != key and columns == found.get(f"{file}item"):
            raise DataError(
                f"--map {file}user={columns[0]},item={columns[0]}: one column cannot be the user and the item"
            )


def parse_events(given: str | None) -> dict[str, float] | None:
    """``purchase,cart``, ``purchase=3,view=1`` or ``all``. Raises `DataError`."""
    if given is None:
        return None
    if given.strip() == ALL:
        return {}
    found = {}
    for part in given.split(","):
        name, _, weight = part.strip().rpartition("=") if "=" in part else (part.strip(), "", "1")
        try:
            found[name] = float(weight)
        except ValueError:
            raise DataError(f"--events {part!r} is not NAME or NAME=WEIGHT") from None
        if not name or not found[name] > 0:
            raise DataError(f"--events {part!r}: a name and a weight over 0 are needed; leave out what does not count")
    return found


def parse_core(given: str | None) -> tuple[int, int]:
    """``5``, or ``user=5,item=3``. Raises `DataError`."""
    if given is None:
        return 1, 1
    if given.isdecimal() and int(given):
        return int(given), int(given)
    found = dict(part.partition("=")[::2] for part in given.split(","))
    if found and found.keys() <= {"user", "item"} and all(n.isdecimal() and int(n) for n in found.values()):
        return int(found.get("user", 1)), int(found.get("item", 1))
    raise DataError(f"--core {given!r} is neither a number of interactions, as 5, nor user=5,item=3")


def parse_allowed(given: Iterable[str]) -> dict[str, float]:
    """``unknown_item=0.2``, the share of rows allowed for a kind of finding. Raises `DataError`."""
    found = {}
    for text in given:
        for part in text.split(","):
            kind, _, share = part.strip().partition("=")
            try:
                found[kind] = float(share)
            except ValueError:
                raise DataError(f"--allow {part!r} is not KIND=SHARE, e.g. unknown_item=0.2") from None
    return found
