"""Files as people have them, each made here in small: read rightly, or refused in a sentence that says what to do.

None may end in a trace, and none may lose or bend rows without a word.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest

from training.data import DataError, Dataset, read_dataset

TITLES = ["Red Kettle", "Blue Mug", "Green Plate", "Oak Spoon", "Wool Hat", "Clay Vase"]
ITEMS = "item_id,title\n" + "".join(f"i{n},{title}\n" for n, title in enumerate(TITLES))
ROWS = [(f"u{u}", f"i{(u + step) % 6}", 1_700_000_000 + 60 * (10 * u + step)) for u in range(20) for step in range(5)]


def table(
    rows: Sequence[tuple[object, ...]] = tuple(ROWS), header: str = "user_id,item_id,timestamp", sign: str = ","
) -> str:
    return "\n".join([header.replace(",", sign), *(sign.join(map(str, row)) for row in rows)]) + "\n"


def write(
    folder: Path, items: str | bytes | None = ITEMS, interactions: str | bytes | None = None, **more: object
) -> Path:
    files: dict[str, object] = {"items.csv": items, "interactions.csv": interactions or table(), **more}
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if content is not None:
            data = content.encode() if isinstance(content, str) else content
            assert isinstance(data, bytes)
            (folder / name.replace("__", ".").replace("_2", "-2")).write_bytes(data)
    return folder


def lines(records: list[dict[str, object]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def items_with(**columns: Callable[[int], object]) -> str:
    return lines(
        [
            {"item_id": f"i{n}", "title": title, **{name: make(n) for name, make in columns.items()}}
            for n, title in enumerate(TITLES)
        ]
    )


@pytest.fixture
def plain(tmp_path: Path) -> Dataset:
    return read_dataset(write(tmp_path / "plain"))


def same(made: Dataset, plain: Dataset) -> bool:
    def sequences(data: Dataset) -> dict[str, list[str]]:
        return {user: [data.item_ids[row] for row in data.sequence(at)] for at, user in enumerate(data.user_ids)}

    return sequences(made) == sequences(plain) and sorted(zip(made.item_ids, made.titles, strict=True)) == sorted(
        zip(plain.item_ids, plain.titles, strict=True)
    )


READ = {
    "CR line ends": lambda folder: write(folder, ITEMS.replace("\n", "\r"), table().replace("\n", "\r")),
    "CR line ends, quoted": lambda folder: write(
        folder, ITEMS.replace("Red Kettle", '"Red Kettle"').replace("\n", "\r")
    ),
    "CRLF line ends": lambda folder: write(folder, ITEMS.replace("\n", "\r\n"), table().replace("\n", "\r\n")),
    "jsonl with CR line ends": lambda folder: write(folder, None, items__jsonl=items_with().replace("\n", "\r")),
    "row numbers of pandas": lambda folder: write(folder, numbered(ITEMS), numbered(table())),
    "row numbers of pandas, a quoted cell": lambda folder: write(
        folder, numbered(ITEMS).replace("Red Kettle", '"Red Kettle"'), numbered(table()).replace("u0", '"u0"')
    ),
    "two unnamed columns": lambda folder: write(folder, numbered(numbered(ITEMS)).replace("Blue Mug", '"Blue Mug"')),
    "an unnamed column beside column_1": lambda folder: write(
        folder,
        "".join(f"{line},x\n" for line in numbered(ITEMS).replace("title", "title,column_1", 1).splitlines()).replace(
            "column_1,x", "column_1"
        ),
    ),
    "the mark of UTF-8": lambda folder: write(folder, "\ufeff" + ITEMS),
    "a blank line at the end": lambda folder: write(folder, ITEMS + "\n", table() + "\n\n"),
    "parquet with coded text": lambda folder: parquet(folder, pl.Categorical),
    "parquet with enumerated text": lambda folder: parquet(folder, pl.Enum([f"i{n}" for n in range(6)])),
}


def numbered(text: str) -> str:
    first, *rest = text.splitlines()
    return "\n".join([f",{first}", *(f"{n},{line}" for n, line in enumerate(rest))]) + "\n"


def parquet(folder: Path, dtype: object) -> Path:
    write(folder, None, "x")
    (folder / "interactions.csv").unlink()
    item_type = {"dtype": dtype}
    names = pl.Series("item_id", [f"i{n}" for n in range(6)], **item_type)  # type: ignore[arg-type]
    pl.DataFrame([names, pl.Series("title", TITLES, dtype=pl.Categorical)]).write_parquet(folder / "items.parquet")
    users, items, times = zip(*ROWS, strict=True)
    pl.DataFrame(
        [
            pl.Series("user_id", users, dtype=pl.Categorical),
            pl.Series("item_id", items, **item_type),  # type: ignore[arg-type]
            pl.Series("timestamp", times),
        ]
    ).write_parquet(folder / "interactions.parquet")
    return folder


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_the_plain_files_are(name: str, plain: Dataset, tmp_path: Path) -> None:
    assert same(read_dataset(READ[name](tmp_path / "made")), plain)


def with_column(name: str, values: list[object]) -> str:
    rows = [(*row, values[at % len(values)]) for at, row in enumerate(ROWS)]
    return table(rows, f"user_id,item_id,timestamp,{name}")


def quoted_categories(names: str) -> str:
    return "item_id,title,categories\n" + "".join(f'i{n},{title},"{names}"\n' for n, title in enumerate(TITLES))


def two_thirds(column: int, word: str) -> str:
    """The interactions with a word in two cells of three of a column."""
    rows = [[*row[:column], word, *row[column + 1 :]] if at % 3 else row for at, row in enumerate(ROWS)]
    return table([tuple(row) for row in rows])


SAID = {
    "event types": (
        lambda folder: write(folder, interactions=with_column("event", ["view", "purchase", "dislike", "view"])),
        "column 'event' is not read, every row counts as something the user wanted; it holds 'view' 50 times, "
        "'dislike' 25 times, 'purchase' 25 times",
    ),
    "low ratings": (
        lambda folder: write(folder, interactions=with_column("rating", [1, 2, 4, 5])),
        "ratings go from 1 to 5; the 50 of 100 (50 %) under 3 count as wanted like all others",
    ),
    "ratings in jsonl": (
        lambda folder: write(folder, None, items__jsonl=items_with(), interactions=with_column("rating", [0, 1])),
        "ratings go from 0 to 1; the 50 of 100 (50 %) under 0.5 count as wanted",
    ),
    "another column": (
        lambda folder: write(folder, interactions=with_column("price", [1.5, 2, 3])),
        "column 'price' is not read",
    ),
    "categories with commas": (
        lambda folder: write(folder, quoted_categories("Drama, Romance")),
        "6 of 6 categories hold ',' and are read as one name each, as 'Drama, Romance'; names are separated by '|'",
    ),
    "marks of titles that are no marks": (
        lambda folder: write(folder, None, items__jsonl=items_with(title_missing=lambda n: {"a": n})),
        "items.jsonl: 6 of 6 rows (100 %) hold something else than is allowed as title_missing; cell emptied",
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_it_is_read_and_said(name: str, plain: Dataset, tmp_path: Path) -> None:
    make, words = SAID[name]
    made = read_dataset(make(tmp_path / "made"))
    assert same(made, plain)
    assert words in "\n".join(made.report.lines())


def test_good_ratings_and_plain_columns_are_not_talked_about(plain: Dataset, tmp_path: Path) -> None:
    made = read_dataset(write(tmp_path / "made", interactions=with_column("rating", [3, 4, 5])))
    assert not any("ratings" in line for line in made.report.lines())
    assert plain.report.lines() == []


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([["Home", "Kitchen"], ["Gifts", "Home"]], ("Home", "Kitchen", "Gifts")),
        ([], ()),
        (None, ()),
        ("['科幻', '战斗']", ("科幻", "战斗")),
        ('["a, b", "c"]', ("a, b", "c")),
        ("[REC]", ("[REC]",)),
        ("[" * 5000, ("[" * 5000,)),
        ("a|b", ("a", "b")),
    ],
)
def test_categories_in_lists_and_in_text(given: object, read: tuple[str, ...], tmp_path: Path) -> None:
    made = read_dataset(write(tmp_path / "made", None, items__jsonl=items_with(categories=lambda n: given)))
    assert made.categories == (read,) * 6


def test_nested_lists_in_parquet_and_other_types_where_nothing_reads_them(tmp_path: Path, plain: Dataset) -> None:
    folder = write(tmp_path / "made", None)
    frame = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(6)], "title": TITLES, "categories": [[["Home", "Pot"], ["Home"]]] * 6,
            "brand": [*range(6)], "description": [["A fine thing.", "By hand."]] * 6,
        }
    )  # fmt: skip
    frame.write_parquet(folder / "items.parquet")
    made = read_dataset(folder)
    assert same(made, plain)
    assert made.categories[0] == ("Home", "Pot")
    assert made.items["description"][0] == "A fine thing. By hand."


def mixed(unit: int, share: int) -> str:
    return table([(u, i, t * unit if at % share == 0 else t) for at, (u, i, t) in enumerate(ROWS)])


REFUSED = {
    "a second file": (
        lambda folder: write(folder, interactions_2__csv=table()),
        "holds interactions-2.csv beside interactions.csv; one file is read",
    ),
    "daily parts": (
        lambda folder: write(folder, interactions__2024__csv=table()),
        "holds interactions.2024.csv beside interactions.csv",
    ),
    "seconds and milliseconds": (
        lambda folder: write(folder, interactions=mixed(1000, 4)),
        "25 of 100 rows (25 %) have a time in another unit than most (milliseconds beside seconds); refused",
    ),
    "its lines": (lambda folder: write(folder, interactions=mixed(1000, 4)), "interactions.csv:2: column timestamp"),
    "seconds and nanoseconds in jsonl": (
        lambda folder: jsonl(folder, mixed(10**9, 3)),
        "(nanoseconds beside seconds)",
    ),
    "half an emoji": (
        lambda folder: write(folder, None, items__jsonl=items_with().replace("Red Kettle", "Kettle \\ud83c")),
        "items.jsonl:1: holds half a character",
    ),
    "half an emoji as a name": (
        lambda folder: write(folder, None, items__jsonl=items_with(x=lambda n: 1).replace('"x"', '"\\udf81"')),
        "holds half a character",
    ),
    "UTF-16": (lambda folder: write(folder, ITEMS.encode("utf-16")), "items.csv is UTF-16; save it as UTF-8"),
    "Shift-JIS": (lambda folder: write(folder, "item_id,title\ni0,南部鉄器\n".encode("shift-jis")), "is not UTF-8"),
    "one JSON array": (lambda folder: write(folder, None, items__jsonl="[\n{}\n]"), "one JSON object a line is read"),
    "tabs": (lambda folder: write(folder, interactions=table(sign="\t")), "looks separated by tabs; commas are read"),
    "semicolons": (lambda folder: write(folder, interactions=table(sign=";")), "looks separated by semicolons"),
    "double colons": (lambda folder: write(folder, interactions=table(sign="::")), "looks separated by '::'"),
    "no header": (lambda folder: write(folder, interactions=table()[27:]), "has no column user_id"),
    "a header in capitals": (
        lambda folder: write(folder, interactions=table(header="User_ID, Item_ID,Timestamp")),
        "Names are read as they stand, small and without spaces",
    ),
    "ids with a decimal part": (
        lambda folder: write(folder, ITEMS.replace("\ni", "\n"), table([(u, f"{i[1:]}.0", t) for u, i, t in ROWS])),
        "(without a decimal part they would be found: '0.0' here, '0' there)",
    ),
    "lost leading zeros": (
        lambda folder: write(folder, ITEMS.replace("\ni", "\n000"), table([(u, i[1:], t) for u, i, t in ROWS])),
        "without leading zeros they would be found",
    ),
    "two Unicode forms": (
        lambda folder: write(
            folder, ITEMS.replace("\ni", "\né"), table([(u, "e\u0301" + i[1:], t) for u, i, t in ROWS])
        ),
        "in one Unicode form they would be found",
    ),
    "users that are words for nothing": (
        lambda folder: write(folder, interactions=two_thirds(0, "NULL")),
        "66 of 100 rows (66 %) have no user_id but a word",
    ),
    "times that are words for nothing": (
        lambda folder: write(folder, interactions=two_thirds(2, "\\N")),
        "have no timestamp",
    ),
    "empty cells": (
        lambda folder: write(folder, interactions=two_thirds(0, "")),
        "66 of 100 rows (66 %) have no user_id",
    ),
    "titles that are words for nothing": (
        lambda folder: write(folder, ITEMS.replace("Red Kettle", "NULL")),
        "1 of 6 rows (17 %) have no title",
    ),
    # a lambda, for the function stands below
    "a zip called gz": (lambda folder: zipped(folder), "interactions.csv.gz cannot be unpacked"),
    "another kind of file": (
        lambda folder: write(folder, None, items__xlsx="x"),
        "holds no items file (it holds items.xlsx)",
    ),
    "a header alone": (
        lambda folder: write(folder, interactions="user_id,item_id,timestamp\n"),
        "holds no readable rows",
    ),
    "a comma at the end": (
        lambda folder: write(folder, interactions=table([(*row, "") for row in ROWS])),
        "4 fields, the header has 3",
    ),
    "a header that is not closed": (lambda folder: write(folder, 'item_id,"title\n'), "items.csv"),
    "a CR in an unquoted header": (lambda folder: write(folder, "item_id\r,title\ni0,a\n"), "items.csv"),
    "JSON that is very deep": (
        lambda folder: write(folder, None, items__jsonl='{"item_id": ' + "[" * 100_000 + "\n"),
        "is not JSON",
    ),
    "lists of items a user": (
        lambda folder: jsonl_of(folder, [{"user_id": "u", "item_ids": ["i0", "i1"]}]),
        "has no column item_id, timestamp",
    ),
    "dates of other countries": (
        lambda folder: write(folder, interactions=table([(u, i, "11/14/2023 10:13:20 PM") for u, i, t in ROWS])),
        "hold something else than is allowed as timestamp",
    ),
}


def jsonl(folder: Path, text: str) -> Path:
    rows = [line.split(",") for line in text.splitlines()[1:]]
    return jsonl_of(folder, [{"user_id": u, "item_id": i, "timestamp": int(t)} for u, i, t in rows])


def jsonl_of(folder: Path, records: list[dict[str, object]]) -> Path:
    write(folder)
    (folder / "interactions.csv").rename(folder / "interactions.jsonl")
    (folder / "interactions.jsonl").write_text(lines(records))
    return folder


def zipped(folder: Path) -> Path:
    write(folder)
    (folder / "interactions.csv").unlink()
    with zipfile.ZipFile(folder / "interactions.csv.gz", "w") as archive:
        archive.writestr("interactions.csv", table())
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words(name: str, tmp_path: Path) -> None:
    make, words = REFUSED[name]
    with pytest.raises(DataError) as raised:
        read_dataset(make(tmp_path / "made"))
    assert words in str(raised.value)


def test_one_time_in_another_unit_of_many_is_left_out_and_shown(tmp_path: Path) -> None:
    made = read_dataset(write(tmp_path / "made", interactions=mixed(1000, 100)))
    assert made.report.count("mixed_units") == 1
    assert "interactions.csv:2: column timestamp holds '1700000000000'" in "\n".join(made.report.lines())
    assert made.n_interactions == 99


@pytest.mark.parametrize("unit", [1, 1000, 10**6])
def test_any_one_unit_is_read(unit: int, tmp_path: Path) -> None:
    made = read_dataset(write(tmp_path / "made", interactions=table([(u, i, t * unit) for u, i, t in ROWS])))
    assert made.report.lines() == []


def with_times(folder: Path, dtype: pl.DataType | type[pl.DataType], shift: int = 0) -> Path:
    users, item_ids, times = zip(*ROWS, strict=True)
    series = pl.Series("timestamp", [time + shift for time in times], pl.Int128).cast(dtype)
    frame = pl.DataFrame([pl.Series("user_id", users), pl.Series("item_id", item_ids), series])
    frame.write_parquet(write(folder, interactions=None) / "interactions.parquet")
    (folder / "interactions.csv").unlink()
    return folder


def test_times_of_every_width(tmp_path: Path) -> None:
    for dtype in (pl.Int64, pl.UInt32, pl.UInt64, pl.Float64):
        assert read_dataset(with_times(tmp_path / str(dtype), dtype)).n_interactions == len(ROWS)
    with pytest.raises(DataError, match="type Float32, which rounds times of this size to steps of minutes"):
        read_dataset(with_times(tmp_path / "rounded", pl.Float32))
    with pytest.raises(DataError, match="hold something else than is allowed as timestamp"):
        read_dataset(with_times(tmp_path / "unsigned", pl.UInt64, shift=2**63))


def test_a_folder_whose_name_no_artifact_could_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be printed"):
        read_dataset(write(tmp_path / "a\nb"))
