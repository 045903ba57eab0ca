"""Notices about content of a data set that is not read, or is read otherwise than meant: printed, not refused.

Every interaction counts as something the user wanted. A table of events or of ratings may mean otherwise, and its owner
has to know; so does the owner of categories that are separated by something else than a bar.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

import polars as pl

from training.data.report import shown
from training.data.tables import LINE, RawTable

MOST_KINDS = 20
"""A text column with so few different values is one of kinds (of events, of devices), and its values are counted."""
SHOWN_KINDS = 6
LOOKED_AT = 1000
_SEPARATORS = (",", ";", "/")


def on_items(raw: RawTable) -> list[str]:
    """Notes about categories that look like several names in one."""
    cells = raw.frame["categories"].to_list() if "categories" in raw.frame.columns else []
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    if any("|" in text for text in texts):
        return []
    for sign in _SEPARATORS:
        found = [text for text in texts if sign in text and not text.lstrip().startswith("[")]
        if len(found) * 2 > len(texts):
            return [
                f"{raw.file}: {len(found):,} of {len(texts):,} categories hold {sign!r} and are read as one name each, "
                f"as {shown(found[0])}; names are separated by '|'"
            ]
    return []


def on_interactions(raw: RawTable, read: Iterable[str], ratings: pl.Series | None) -> list[str]:
    """Notes about columns of interactions that nothing reads, with the kinds they tell apart, and about low ratings."""
    notes = []
    for name in _unread(raw, read):
        kinds = _kinds(raw.frame[name])
        if kinds:
            notes.append(
                f"{raw.file}: column {name!r} is not read, every row counts as something the user wanted; it holds "
                + ", ".join(f"{shown(value)} {count:,} times" for value, count in kinds[:SHOWN_KINDS])
                + (f" and {len(kinds) - SHOWN_KINDS} more" if len(kinds) > SHOWN_KINDS else "")
            )
        else:
            notes.append(f"{raw.file}: column {name!r} is not read")
    if ratings is not None and (note := low_ratings(raw.file, ratings)):
        notes.append(note)
    return notes


def hint_for_unknown(wanted: Iterable[str], known: Iterable[str]) -> str:
    """A hint on the change that makes most unknown ids known, such as ": without '.0' …"; empty if there is none."""
    known, wanted = set(known), list(dict.fromkeys(wanted))[:LOOKED_AT]
    for words, change in _CHANGES.items():
        changed = {change(name): name for name in known}
        found = [(name, changed[change(name)]) for name in wanted if change(name) in changed]
        if len(found) * 2 > len(wanted):
            return f" ({words} they would be found: {shown(found[0][0])} here, {shown(found[0][1])} there)"
    return ""


def respelled(wanted: Iterable[str], known: Iterable[str]) -> tuple[dict[str, str], str]:
    """The known id that each wanted id stands for, by the first change that finds more than half, and that in words.

    Empty where no change does, or where one would make two known ids the same.
    """
    known, wanted = [*dict.fromkeys(known)], [*dict.fromkeys(wanted)]
    for words, change in _CHANGES.items():
        changed = {change(name): name for name in known}
        found = {name: changed[change(name)] for name in wanted if change(name) in changed}
        if len(found) * 2 > len(wanted) and len(changed) == len(known):
            return found, words
    return {}, ""


_CHANGES: dict[str, Callable[[str], str]] = {
    "without a decimal part": lambda name: name.removesuffix(".0"),
    "without spaces at the ends": str.strip,
    "without leading zeros": lambda name: name.lstrip("0") or "0",
    "in one Unicode form": lambda name: unicodedata.normalize("NFC", name),
    "in one case": str.casefold,
}


def _unread(raw: RawTable, read: Iterable[str]) -> list[str]:
    return [name for name in raw.frame.columns if name not in (LINE, *read)]


def _kinds(column: pl.Series) -> list[tuple[str, int]]:
    """Values of a text column with their counts, the commonest first; none where it is no column of kinds."""
    if column.dtype == pl.Object:
        values = column.to_list()
        if not all(value is None or isinstance(value, str) for value in values):
            return []
        column = pl.Series(column.name, values, dtype=pl.String)
    if column.dtype != pl.String:
        return []
    texts = column.drop_nulls()
    if texts.is_empty() or texts.n_unique() > MOST_KINDS or texts.str.contains(r"^[-+.\d]*\d[-+.\d]*$").all():
        return []
    counts = texts.value_counts(sort=True, name="count").sort("count", column.name, descending=[True, False])
    return [(value, count) for value, count in counts.iter_rows()]


def low_ratings(file: str, ratings: pl.Series) -> str:
    """A note on ratings in the lower half of their scale; "" where there are none."""
    values = ratings.drop_nulls()
    if values.is_empty():
        return ""
    least, most = float(values.min()), float(values.max())  # type: ignore[arg-type]
    middle = (min(least, 1) + most) / 2  # few give the lowest rating, so that of a small table may be missing
    low = int((values < middle).sum())
    if not low:
        return ""
    share = f"{low:,} of {len(values):,} ({100 * low / len(values):.0f} %)"
    return (
        f"{file}: ratings go from {least:g} to {most:g}; the {share} under {middle:g} count as wanted like "
        "all others; leave rows out where that is not meant"
    )
