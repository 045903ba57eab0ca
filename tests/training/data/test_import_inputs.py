"""Files as people have them, one fault or form each: imported as the plain files are."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from testing.sources.import_files import (
    ITEMS,
    PLAIN,
    ROWS,
    START,
    TITLES,
    Files,
    array,
    dates,
    files,
    frame,
    lines,
    made,
    numbered,
    per_user,
    saved,
    sequences,
    table,
    times,
    zipped,
    zstandard,
)
from training.data.importing import ImportOptions, import_data
from training.data.importing.times import read_times

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
    "items with the ids of another shop first": files(
        "product_id,book_id,title\n" + "".join(f"B{n},i{n},{title}\n" for n, title in enumerate(TITLES)),
    ),
    "commas before the end of a title": files(ITEMS.replace("Red Kettle", '"Red Kettle"')),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_imported_as_the_plain_files_are(name: str, tmp_path: Path) -> None:
    data = made(tmp_path, READ[name])
    found = sequences(data)
    assert {user: found[user] for user in PLAIN} == PLAIN
    assert len(found) == len(PLAIN)
    assert data.n_interactions == len(ROWS)


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
    ("texts", "first", "doubt"),
    [
        (["24/03/05", "24/03/31"], "2024-03-05 00:00", ""),
        (["24-03-05 10:20", "24-03-30 11:00"], "2024-03-05 10:20", ""),
        (["24.03.05", "24.03.31"], "2024-03-05 00:00", ""),
        (["05/03/24", "31/03/24"], "2024-03-05 00:00", ""),
        (["24/03/05", "24/03/06"], None, "day/month or year/month/day; say which with --time-format '%d/%m/%y' or"),
        (["05/03/2024", "06/03/2024 10:00"], None, "may be month/day or day/month"),
        (["2024030517", "2024030609"], "2024-03-05 17:00", ""),
        (["202403051730", "202403060900"], "2024-03-05 17:30", ""),
        ([20240305, 20240306], "2024-03-05 00:00", ""),
        (["1700000000", "1700000100"], "2023-11-14 22:13", ""),
    ],
)
def test_the_order_of_day_month_and_year_is_known_or_asked(texts: list[object], first: str | None, doubt: str) -> None:
    """Of two digits for the year too; a reading that leads into the future is no other reading."""
    found = read_times(pl.Series("time", texts), None)
    assert doubt in found.doubt and bool(found.doubt) == bool(doubt)
    if first is not None:
        assert datetime.fromtimestamp(found.values[0], UTC).strftime("%Y-%m-%d %H:%M") == first


@pytest.mark.parametrize("texts", [["05-03-24", "06-03-24"], ["05/03/2024", "06/03/2024 10:00"]])
def test_the_form_that_a_doubt_names_reads_the_times(texts: list[str]) -> None:
    column = pl.Series("time", texts)
    forms = re.findall(r"'(%[^']*)'", read_times(column, None).doubt)
    read = [read_times(column, form) for form in forms]
    assert len(forms) >= 2 and not any(times.wrong.any() for times in read)
    assert len({times.values[0] for times in read}) == len(forms)


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("Drama, Romance", ["Drama", "Romance"]),
        ("A|B", ["A", "B"]),
        ("['科幻', '战斗']", ["科幻", "战斗"]),
        ("[{'id': 16, 'name': 'Drama'}, {'id': 3, 'name': 'Romance'}]", ["Drama", "Romance"]),
        ("Home", ["Home"]),
    ],
)
def test_names_of_categories_are_taken_apart(cell: str, names: list[str], tmp_path: Path) -> None:
    items = "item_id,title,genre\n" + "".join(f'i{n},{title},"{cell}"\n' for n, title in enumerate(TITLES))
    assert list(made(tmp_path, files(items)).categories[0]) == names


def test_the_name_of_a_user_is_no_title(tmp_path: Path) -> None:
    rows = [(*row, f"Ann {row[0]}") for row in ROWS]
    data = made(tmp_path, {"log.csv": table(rows, "user_id,item_id,timestamp,name")})
    assert set(data.titles) == {"Unnamed item"}


def test_items_without_titles_are_marked_and_not_named_by_their_ids(tmp_path: Path) -> None:
    data = made(tmp_path, {"log.csv": table(header="session_id,aid,ts")})
    assert set(data.titles) == {"Unnamed item"}
    assert data.items["title_missing"].all()
