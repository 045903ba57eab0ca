"""Files as people have them, one fault each: imported rightly, or refused in a sentence that says what to type."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest

from training.data import DataError, Dataset, read_dataset
from training.data.importing import ImportOptions, ReadOptions, import_data, parse_core, parse_events, parse_map
from training.data.report import Tolerances

TITLES = ["Red Kettle", "Blue Mug", "Green Plate", "Oak Spoon", "Wool Hat", "Clay Vase"]
ITEMS = "item_id,title\n" + "".join(f"i{n},{title}\n" for n, title in enumerate(TITLES))
START = 1_700_000_000
ROWS = [(f"u{u}", f"i{(u + step) % 6}", START + 60 * (10 * u + step)) for u in range(20) for step in range(5)]
Files = dict[str, str | bytes]


def table(rows: Sequence[tuple[object, ...]] = tuple(ROWS), header: str = "user_id,item_id,timestamp") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def files(items: str | bytes | None = ITEMS, interactions: str | bytes | None = None, **more: str | bytes) -> Files:
    found = {"items.csv": items, "interactions.csv": interactions or table(), **{_name(k): v for k, v in more.items()}}
    return {name: content for name, content in found.items() if content is not None}


def _name(name: str) -> str:
    return name.replace("__", ".")


def made(where: Path, given: Files, confirmed: bool = False, **options: object) -> Dataset:
    """Import files as the command does where nobody can be asked; `confirmed`: as with --yes."""
    source = where / "source"
    source.mkdir(exist_ok=True)
    for name, content in given.items():
        (source / name).write_bytes(content.encode() if isinstance(content, str) else content)
    import_data([source], where / "out", ImportOptions(**options), lambda _, doubts: confirmed or not doubts)  # type: ignore[arg-type]
    return read_dataset(where / "out", ties="file")


def sequences(data: Dataset) -> dict[str, list[str]]:
    return {user: [data.titles[row] for row in data.sequence(at)] for at, user in enumerate(data.user_ids)}


PLAIN = {f"u{u}": [TITLES[(u + step) % 6] for step in range(5)] for u in range(20)}


def times(write: Callable[[int], object]) -> str:
    return table([(u, i, write(t)) for u, i, t in ROWS])


def dates(form: str) -> str:
    from datetime import UTC, datetime

    return times(lambda t: datetime.fromtimestamp(t, UTC).strftime(form))


def array(text: str) -> list[dict[str, str]]:
    names, *rows = [line.split(",") for line in text.splitlines()]
    return [dict(zip(names, row, strict=True)) for row in rows]


def lines(text: str) -> str:
    return "".join(json.dumps(row) + "\n" for row in array(text))


def numbered(text: str) -> str:
    first, *rest = text.splitlines()
    return "\n".join([f",{first}", *(f"{n},{line}" for n, line in enumerate(rest))]) + "\n"


def zipped(name: str, text: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, text)
    return content.getvalue()


def saved(frame: pl.DataFrame, form: str) -> bytes:
    content = io.BytesIO()
    getattr(frame, f"write_{form}")(content)
    return content.getvalue()


def zstandard(text: str) -> bytes:
    frame = pl.read_csv(text.encode(), infer_schema=False)
    content = io.BytesIO()
    frame.lazy().sink_csv(content, compression="zstd")
    return content.getvalue()


def frame(text: str) -> pl.DataFrame:
    return pl.read_csv(text.encode())


def per_user(write: Callable[[list[str]], object]) -> str:
    ids = {f"u{u}": [f"i{(u + step) % 6}" for step in range(5)] for u in range(20)}
    return "".join(json.dumps({"user_id": user, "item_ids": write(items)}) + "\n" for user, items in ids.items())


quoted = ITEMS.replace("Red Kettle", '"Red Kettle"')
READ: dict[str, Files] = {
    "as it is": files(),
    "CR": files(ITEMS.replace("\n", "\r"), table().replace("\n", "\r")),
    "CRLF, quoted": files(quoted.replace("\n", "\r\n"), table().replace("\n", "\r\n")),
    "row numbers of pandas": files(numbered(quoted), numbered(table().replace("u0", '"u0"'))),
    "two unnamed columns": files(numbered(numbered(ITEMS))),
    "UTF-16": files(ITEMS.encode("utf-16"), table().encode("utf-16")),
    "UTF-16 with tabs, no mark": files(ITEMS.replace(",", "\t").encode("utf-16-le")),
    "the mark of UTF-8": files("\ufeff" + ITEMS),
    "one JSON array": files(None, items__json=json.dumps(array(ITEMS), indent=1)),
    "one JSON array in a line": files(None, items__jsonl=json.dumps(array(ITEMS))),
    "one JSON object of objects": files(
        None, items__json=json.dumps({r["item_id"]: {"title": r["title"]} for r in array(ITEMS)})
    ),
    "one JSON object of arrays": files(None, all__json=json.dumps({"items": array(ITEMS)})),
    "JSON lines": files(None, lines(table()), items__ndjson=lines(ITEMS)),
    "tabs": files(interactions=table().replace(",", "\t")),
    "semicolons": files(ITEMS.replace(",", ";"), table().replace(",", ";")),
    "double colons": files(ITEMS.replace(",", "::"), table().replace(",", "::")),
    "bars": files(interactions=table().replace(",", "|")),
    "a comment before": files(interactions="# exported\n" + table()),
    "a comma at the end": files(interactions=table([(*row, "") for row in ROWS])),
    "blank lines": files(ITEMS + "\n\n", table().replace("u3", "\nu3", 1)),
    "names in capitals with spaces": files(interactions=table(header="User_ID, Item ID,TimeStamp")),
    "other names": files(
        ITEMS.replace("item_id,title", "asin,Product Name"), table(header="reviewerID,asin,unixReviewTime")
    ),
    "Japanese names": files(
        ITEMS.replace("item_id,title", "商品番号,商品名"), table(header="会員番号,商品番号,購入日時")
    ),
    "Chinese names": files(ITEMS.replace("item_id,title", "商品ID,商品名称"), table(header="用户ID,商品ID,时间戳")),
    "a header with a line end": files(
        '"item_id","title","long\nnote"\n' + ITEMS.split("\n", 1)[1].replace("\n", ",x\n")
    ),
    "quotes inside": files(interactions=table([(*row, 'a "word"') for row in ROWS], "user_id,item_id,timestamp,note")),
    "gzip": {"items.csv": ITEMS, "x.gz": gzip.compress(table().encode())},
    "bzip2": {"items.csv": ITEMS, "x.bz2": bz2.compress(table().encode())},
    "xz": {"items.csv": ITEMS, "x.csv.xz": lzma.compress(table().encode())},
    "Zstandard": {"items.csv": ITEMS, "x.csv.zst": zstandard(table())},
    "a zip called gz": {"items.csv": ITEMS, "interactions.csv.gz": zipped("a/interactions.csv", table())},
    "parquet": {"items.csv": ITEMS, "x.parquet": saved(frame(table()), "parquet")},
    "Feather": {"items.csv": ITEMS, "x.feather": saved(frame(table()), "ipc")},
    "Arrow streams": {"items.csv": ITEMS, "data-00000.arrow": saved(frame(table()), "ipc_stream"), "state.json": "{}"},
    "several files": files(interactions=table(ROWS[:40]), more__csv=table(ROWS[40:])),
    "daily parts, gzipped": {
        "items.csv": ITEMS,
        "d1.csv": table(ROWS[:40]),
        "d2.csv.gz": gzip.compress(table(ROWS[40:]).encode()),
    },
    "lists of items a user": files(interactions=per_user(list)),
    "lists as text": files(interactions=per_user(str)),
    "am and pm": files(interactions=dates("%m/%d/%Y %I:%M:%S %p")),
    "short American": files(interactions=dates("%m/%d/%y %H:%M")),
    "Twitter": files(interactions=dates("%a %b %d %H:%M:%S +0000 %Y")),
    "slashes, year first": files(interactions=dates("%Y/%m/%d %H:%M:%S")),
    "UTC in words": files(interactions=dates("%Y-%m-%d %H:%M:%S UTC")),
    "Japanese dates": files(interactions=dates("%Y年%m月%d日 %H時%M分%S秒")),
    "dots": files(interactions=dates("%d.%m.%Y %H:%M")),
    "ISO with a zone": files(interactions=dates("%Y-%m-%dT%H:%M:%S+00:00")),
    "ISO with Z": files(interactions=dates("%Y-%m-%dT%H:%M:%SZ")),
    "compact": files(interactions=dates("%Y%m%d%H%M%S")),
    "names of months": files(interactions=dates('"%b %d\\, %Y %H:%M"').replace("\\,", ",")),
    "milliseconds": files(interactions=times(lambda t: 1000 * t)),
    "seconds with a fraction": files(interactions=times(lambda t: t + 0.25)),
    "seconds and milliseconds": files(interactions=times(lambda t: t if t % 7 else 1000 * t)),
    "a counter": files(interactions=times(lambda t: t - START + 1)),
    "ids with a decimal part": files(ITEMS.replace("\ni", "\n"), table([(u, f"{i[1:]}.0", t) for u, i, t in ROWS])),
    "lost leading zeros": files(ITEMS.replace("\ni", "\n000"), table([(u, i[1:], t) for u, i, t in ROWS])),
    "spaces around ids": files(interactions=table([(f" {u} ", f" {i}", t) for u, i, t in ROWS])),
    "numbers with gaps in parquet": {
        "items.csv": ITEMS.replace("\ni", "\n"),
        "x.parquet": saved(
            pl.DataFrame(
                {
                    "user_id": [u for u, _, _ in ROWS],
                    "item_id": [float(i[1:]) for _, i, _ in ROWS],
                    "time": [t for *_, t in ROWS],
                }
            ),
            "parquet",
        ),
    },
    "repeated rows": files(interactions=table([row for row in ROWS for _ in range(2)])),
    "items repeated, one row a sale": files(ITEMS + ITEMS.split("\n", 1)[1]),
    "titles beside the interactions": {
        "sales.csv": table([(u, i, t, TITLES[int(i[1:])]) for u, i, t in ROWS], "customer_id,sku,date,Description")
    },
    "prices of two kinds": files(
        None,
        items__jsonl="".join(
            json.dumps({**row, "price": 12.99 if at % 2 else "12.99"}) + "\n" for at, row in enumerate(array(ITEMS))
        ),
    ),
    "words for nothing": files(interactions=table([*ROWS * 3, ("u1", "i1", "NULL"), ("NULL", "i1", START)])),
    "commas before the end of a title": files(ITEMS.replace("Red Kettle", '"Red Kettle"')),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_imported_as_the_plain_files_are(name: str, tmp_path: Path) -> None:
    data = made(tmp_path, READ[name])
    found = sequences(data)
    assert {user: found[user] for user in PLAIN} == PLAIN
    assert len(found) == len(PLAIN)
    assert data.n_interactions == len(ROWS)


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
    "name only the files that belong together",
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


@pytest.mark.parametrize("name", CURED)
def test_what_it_says_helps(name: str, tmp_path: Path) -> None:
    given, options = CURED[name]
    with pytest.raises((DataError, AssertionError)):
        (tmp_path / "without").mkdir()
        assert sequences(made(tmp_path / "without", given)) == PLAIN
    assert sequences(made(tmp_path, given, **options)) == PLAIN


@pytest.mark.parametrize(
    ("titles", "encoding"),
    [
        (["南部鉄器の急須", "猫柄マグカップ", "竹の箸", "藍染の手拭い", "畳の敷物", "木のさじ"], "cp932"),
        (["南部鉄器の急須", "猫柄マグカップ", "竹の箸", "藍染の手拭い", "畳の敷物", "木のさじ"], "euc_jp"),
        (["蓝色的茶杯", "红色水壶", "竹筷子", "木勺", "羊毛帽", "花瓶"], "gb18030"),
        (["Café crème", "Fantômas", "Straße", "Señor", "Müller", "Çava"], "latin-1"),
    ],
)
def test_encodings_are_found_out(titles: list[str], encoding: str, tmp_path: Path) -> None:
    text = "item_id,title\n" + "".join(f"i{n},{title}\n" for n, title in enumerate(titles))
    assert sorted(made(tmp_path, files(text.encode(encoding))).titles) == sorted(titles)


def test_two_lines_in_another_encoding_are_lost_and_told(tmp_path: Path) -> None:
    many = "item_id,title\n" + "".join(f"i{n},Thing {n}\n" for n in range(300))
    source = tmp_path / "items.csv"
    source.write_bytes(many.encode() + "i300,Café\n".encode("latin-1"))
    (tmp_path / "interactions.csv").write_text(table())
    done = import_data([source, tmp_path / "interactions.csv"], tmp_path / "out", ImportOptions(), lambda *_: True)
    assert "items.csv:302: is not UTF-8" in "\n".join(done.report.lines())
    assert done.items == 300


def test_a_broken_line_is_lost_alone_and_named(tmp_path: Path) -> None:
    rows = table([*ROWS, *ROWS]).splitlines()
    rows[7] = "u0,i1,1,2,3"
    source = tmp_path / "log.csv"
    source.write_text("\n".join(rows))
    done = import_data([source], tmp_path / "out", ImportOptions(), lambda *_: True)
    assert "log.csv:8: 5 fields, the header has 3" in "\n".join(done.report.lines())
    assert done.interactions == len(ROWS)


def test_what_is_odd_is_shown_with_its_line_where_cells_hold_line_ends(tmp_path: Path) -> None:
    text = 'user_id,item_id,timestamp,note\nu0,i0,5,"a\nb"\nu0,i1,soon,c\n' + "u0,i2,6,d\n" * 200
    (tmp_path / "log.csv").write_text(text)
    done = import_data([tmp_path / "log.csv"], tmp_path / "out", ImportOptions(), lambda *_: True)
    assert "log.csv:4: column timestamp holds 'soon'" in "\n".join(done.report.lines())


def test_parts_named_by_files_are_kept(tmp_path: Path) -> None:
    given = {
        "items.csv": ITEMS,
        "train.csv": table(ROWS[:60]),
        "valid.csv": table(ROWS[60:80]),
        "test.csv": table(ROWS[80:]),
    }
    data = made(tmp_path, given)
    assert data.columns["split"].value_counts().sort("split").rows() == [
        ("test", 20),
        ("train", 60),
        ("validation", 20),
    ]


def test_ties_are_shuffled_or_kept(tmp_path: Path) -> None:
    same = files(interactions=times(lambda t: START))
    (tmp_path / "a").mkdir()
    kept = sequences(made(tmp_path, same, ties="file"))
    assert kept == PLAIN
    assert sequences(made(tmp_path / "a", same)) != PLAIN


def test_what_is_known_about_items_is_kept(tmp_path: Path) -> None:
    items = [
        {
            **row, "category": ["Home", "Pots"], "brand": "Oriel", "description": ["A fine thing.", "By hand."],
            "price": "$12.99", "details": {"Colour": "red", "Size": None, "Weight": 2},
        }
        for row in array(ITEMS)
    ]  # fmt: skip
    data = made(tmp_path, files(None, meta__jsonl="".join(json.dumps(item) + "\n" for item in items)))
    row = data.items.row(0, named=True)
    assert row["categories"] == ["Home", "Pots"]
    assert (row["brand"], row["description"], row["price"]) == ("Oriel", "A fine thing. By hand.", "$12.99")
    assert row["attributes"] == "Colour: red; Weight: 2"


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("Drama, Romance", ["Drama", "Romance"]),
        ("A|B", ["A", "B"]),
        ("['科幻', '战斗']", ["科幻", "战斗"]),
        ("Home", ["Home"]),
    ],
)
def test_names_of_categories_are_taken_apart(cell: str, names: list[str], tmp_path: Path) -> None:
    items = "item_id,title,genre\n" + "".join(f'i{n},{title},"{cell}"\n' for n, title in enumerate(TITLES))
    assert list(made(tmp_path, files(items)).categories[0]) == names


def test_items_without_titles_are_marked_and_not_named_by_their_ids(tmp_path: Path) -> None:
    data = made(tmp_path, {"log.csv": table(header="session_id,aid,ts")})
    assert set(data.titles) == {"Unnamed item"}
    assert data.items["title_missing"].all()
