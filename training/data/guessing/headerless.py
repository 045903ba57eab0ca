"""Columns of a file without a header, by what is in them. It is a guess, and whoever imports the file is asked."""

from __future__ import annotations

import polars as pl

from training.data.importing.content import is_epoch, share
from training.data.importing.table import Guess, Table
from training.data.importing.times import are_dates

BY_CONTENT = "what is in the columns"
_LOOKED_AT = 1000
_COUNTED = 100_000
_RATING = r"^(10|\d([.,]\d+)?)$"
_FRACTION = r"^-?\d+\.\d+$"
_WORD = r"^[^\W\d]+([_-][^\W\d]+)*$"
_MOST_KINDS = 10
_ROWS_OF_A_KIND = 5
ROLE_IN_WORDS = {"title": "title", "categories": "category"}
_VALUES_OF_AN_ITEM = 1.05
"""Values of a column for an item, in the mean, up to which the column says something about items."""


def by_content(table: Table) -> Guess:
    """The kind of a table without a header; "other" where nothing speaks for interactions or for items."""
    frame, roles = table.frame.head(_COUNTED), {}
    ids: list[str] = []
    ratings: list[str] = []
    kinds: list[str] = []
    texts: list[str] = []
    for name in frame.columns:
        column = frame[name]
        first = column.head(_LOOKED_AT)
        if column.dtype.is_nested() or column.drop_nulls().n_unique() < 2:
            continue
        if "time" not in roles and (is_epoch(first) or are_dates(first)):
            roles["time"] = name
        elif share(first, _RATING) == 1 and name != table.marker:
            ratings.append(name)
        elif share(first, _FRACTION) > 0.5:
            continue  # a measure, such as a latitude
        elif is_text(column):
            texts.append(name)
        elif _tells_kinds(column):
            kinds.append(name)
        else:
            ids.append(name)
    for left in (kinds, ratings):  # few ids look like kinds, and ids of one digit like ratings
        while left and len(ids) + bool(texts) < 2:
            ids.append(left.pop(0))
    ids.sort(key=lambda name: (name == table.marker, frame.columns.index(name)))
    roles |= {"rating": ratings[-1]} if ratings else {}
    roles |= {"event": kinds[0]} if kinds else {}
    return _of(table, frame, roles, ids, texts)


def _of(table: Table, frame: pl.DataFrame, roles: dict[str, str], ids: list[str], texts: list[str]) -> Guess:
    """Interactions where a first id comes again and there is something to take; else items, if they have a text."""
    user = ids[0] if ids else ""
    if user and frame[user].n_unique() < frame.height and (len(ids) > 1 or texts):
        item = next((name for name in ids[1:] if frame[name].n_unique() < frame.height), (ids[1:] or texts)[0])
        roles |= {"user": user, "item": item} | _about_items(frame, item, [name for name in texts if name != item])
        words = " and no times" if "time" not in roles else ""
        order = ", and the order of its rows as the order in time" if words else ""
        doubt = f"the file has no header{words}; its columns are taken by what is in them{order}"
        return Guess(table, "interactions", roles, BY_CONTENT, doubts=(doubt,))
    if user and texts:
        return as_items(table, user, fullest(frame, texts), f"{table.name} has no header")
    return Guess(table, "other", by=BY_CONTENT)


def as_items(table: Table, item: str, text: str, why: str) -> Guess:
    """A table of items, about which somebody has to be asked. A text that few items have alone is a category."""
    role = "title" if 2 * table.frame[text].n_unique() > table.frame.height else "categories"
    doubt = f"{why}; {item} is taken as the item's id and {text} as its {ROLE_IN_WORDS[role]}"
    return Guess(table, "items", {"item": item, role: text}, BY_CONTENT, doubts=(doubt,))


def _about_items(frame: pl.DataFrame, item: str, texts: list[str]) -> dict[str, str]:
    """Texts that say the same wherever an item stands: a title differs from item to item, a category does not."""
    items = frame[item].n_unique()
    said = [name for name in texts if frame.select(item, name).n_unique() <= _VALUES_OF_AN_ITEM * items]
    titles = [name for name in said if 2 * frame[name].n_unique() > items]
    found = {"title": fullest(frame, titles)} if titles else {}
    categories = [name for name in said if name not in titles]
    return {**found, "categories": categories[0]} if categories else found


def fullest(frame: pl.DataFrame, names: list[str]) -> str:
    """The column with most different values; of several the last."""
    return max(reversed(names), key=lambda name: frame[name].n_unique())


def is_text(column: pl.Series) -> bool:
    """Whether the cells are words, with spaces in some of them."""
    first = column.head(_LOOKED_AT)
    return share(first, r"^\S+$") < 0.9 and share(first, r"[^\W\d_]{2}") > 0.5


def _tells_kinds(column: pl.Series) -> bool:
    """Whether the cells are a few words that come again and again: kinds of events."""
    values = column.drop_nulls()
    few = values.n_unique() <= min(_MOST_KINDS, len(values) / _ROWS_OF_A_KIND)
    return few and share(values.head(_LOOKED_AT), _WORD) == 1
