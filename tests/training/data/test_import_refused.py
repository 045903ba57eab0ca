"""What an import refuses says what to type, and what it says helps."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from testing.sources.import_files import (
    ITEMS,
    PLAIN,
    ROWS,
    START,
    Files,
    dates,
    files,
    made,
    sequences,
    table,
    times,
    zipped,
)
from training.data import DataError
from training.data.importing import ReadOptions, parse_core, parse_events, parse_map
from training.data.report import Tolerances


def with_column(name: str, values: list[object]) -> str:
    rows = [(*row, values[at % len(values)]) for at, row in enumerate(ROWS)]
    return table(rows, f"user_id,item_id,timestamp,{name}")


REFUSED: dict[str, tuple[Files, str]] = {
    "no header": (
        files(interactions=table().split("\n", 1)[1]),
        "--yes; to say what is what: --map user=1,item=2,time=3",
    ),
    "kinds of events": (files(interactions=with_column("event", ["view", "buy", "dislike"])), "--events view,"),
    "no times": (files(interactions=table([(u, i) for u, i, _ in ROWS], "user_id,item_id")), "--map time=none"),
    "day or month": (
        files(interactions=dates("%d/%m/%Y").replace("14/11", "04/11").replace("15/11", "05/11")),
        "--time-format",
    ),
    "rounded by a spreadsheet": (files(interactions=times(lambda t: f"{t:.6E}")), "rounded by a spreadsheet"),
    "times that are words": (files(interactions=times(lambda t: "soon")), "give it as --time-format"),
    "a third without a user": (
        files(interactions=table([("" if at % 3 else u, i, t) for at, (u, i, t) in enumerate(ROWS)])),
        "have no user_id; refused, allowed: 1 %; --allow missing_id=0.66 goes on",
    ),
    "commas in titles without quotes": (files(ITEMS.replace(" ", ", ")), "put quotes around cells"),
    "a header alone": (files(interactions="user_id,item_id,timestamp\n"), "give --no-header"),
    "an empty file": (files(interactions=" \n"), "interactions.csv is empty"),
    "a workbook": (files(None, items__xlsx=zipped("[Content_Types].xml", "x")), "save each of its sheets as csv"),
    "half a file": (files(None, items__csv__gz=gzip.compress(ITEMS.encode())[:-9]), "is the file complete?"),
    "no such columns": (files(interactions=table(header="a,b,c")), "--map user=COLUMN,item=COLUMN,time=COLUMN"),
    "other items": (files(ITEMS.replace("\ni", "\nx")), "--unknown-items keep (without a title) or drop"),
}
REFUSED["two logs"] = (
    files(likes__csv=table([(*row, 5) for row in ROWS], "user_id,item_id,timestamp,rating")),
    "name only the files that belong together, as data import interactions.csv items.csv",
)
REFUSED["orders and their lines"] = (
    {
        "orders.csv": table([(f"o{at}", user) for at, (user, _, _) in enumerate(ROWS)], "order_id,user_id"),
        "lines.csv": table([(f"o{at}", item) for at, (_, item, _) in enumerate(ROWS)], "order_id,item_id"),
    },
    "--join orders.csv:order_id",
)
REFUSED["items with names of nobody"] = (
    files(ITEMS.replace("item_id,title", "code,label")),
    "--map user=user_id,item=item_id,time=timestamp --map items.csv:item=code,title=label",
)
REFUSED["a name whose end is known"] = (
    files(interactions=table(header="viewer_user_id,click_article_id,click_timestamp")),
    "--map user=viewer_user_id,item=click_article_id,time=click_timestamp",
)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_says_what_to_type(name: str, tmp_path: Path) -> None:
    given, words = REFUSED[name]
    with pytest.raises(DataError) as raised:
        made(tmp_path, given)
    assert words in str(raised.value)
    assert not (tmp_path / "out").exists()


CURED: dict[str, tuple[Files, dict[str, object]]] = {
    "no header": (files(interactions=table().split("\n", 1)[1]), {"columns": parse_map(["user=1,item=2,time=3"])}),
    "the order of rows": (
        files(interactions=table([(u, i) for u, i, _ in ROWS], "user_id,item_id")),
        {"columns": parse_map(["time=none"])},
    ),
    "names of nobody": (files(interactions=table(header="a,b,c")), {"columns": parse_map(["user=a,item=b,time=c"])}),
    "items with names of nobody": (
        files(ITEMS.replace("item_id,title", "code,label")),
        {"columns": parse_map(["user=user_id,item=item_id,time=timestamp", "items.csv:item=code,title=label"])},
    ),
    "a form of dates": (files(interactions=dates("%H:%M at %d %m %Y")), {"time_format": "%H:%M at %d %m %Y"}),
    "an encoding": (files(ITEMS.encode("cp500"), table().encode("cp500")), {"reading": ReadOptions(encoding="cp500")}),
    "events that count": (
        files(
            interactions=table([(*row, "buy") for row in ROWS] + [("u1", "i5", START, "hide")], "user,item,time,event")
        ),
        {"events": parse_events("buy")},
    ),
    "low ratings": (
        files(interactions=table([(*row, 4) for row in ROWS] + [("u1", "i5", START, 2)], "user,item,time,rating")),
        {"min_rating": 3.0},
    ),
    "decimal commas": (
        files(
            interactions=table([(*row, "4,5") for row in ROWS] + [("u1", "i5", START, "2,5")], "user,item,time,rating")
            .replace("4,5", "x")
            .replace("2,5", "y")
            .replace(",", ";")
            .replace("x", "4,5")
            .replace("y", "2,5")
        ),
        {"min_rating": 3.0},
    ),
    "a core": (files(interactions=table([*ROWS, ("u99", "i0", START)])), {"core": parse_core("user=5")}),
    "the first of repeats": (
        files(interactions=table([*ROWS, *((u, i, t + 10**6) for u, i, t in ROWS)])),
        {"repeats": "first"},
    ),
    "the heaviest event": (
        files(
            interactions=table(
                [(*row, "buy") for row in ROWS] + [(u, i, t - 10**6, "view") for u, i, t in ROWS],
                "user,item,time,event",
            )
        ),
        {"events": parse_events("view=1,buy=3")},
    ),
    "unknown items": (files(interactions=table([*ROWS, ("u1", "gone", START)])), {"unknown_items": "drop"}),
    "rows without users": (
        files(interactions=table([*ROWS, *[("", "i1", START)] * 50])),
        {"tolerances": Tolerances(by_kind={"missing_id": 0.4})},
    ),
}


@pytest.mark.parametrize("file", ["", "log.csv:"])
def test_one_column_is_not_the_user_and_the_item(file: str) -> None:
    with pytest.raises(DataError, match="one column cannot be the user and the item"):
        parse_map([f"{file}user=a,item=a"])
    assert parse_map([f"{file}user=1,item=2,item=1"])[f"{file}item"] == ("2", "1"), "the latter in the items' file"


@pytest.mark.parametrize("name", CURED)
def test_what_it_says_helps(name: str, tmp_path: Path) -> None:
    given, options = CURED[name]
    with pytest.raises((DataError, AssertionError)):
        (tmp_path / "without").mkdir()
        assert sequences(made(tmp_path / "without", given)) == PLAIN
    assert sequences(made(tmp_path, given, **options)) == PLAIN
