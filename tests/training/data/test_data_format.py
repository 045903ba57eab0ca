"""Reading a data folder: every format gives the same data set, and every kind of bad input is told by file and line."""

from __future__ import annotations

import gzip
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import DataError, read_dataset, shuffle_ties, tables
from training.data.tables import read_table

ITEMS = [{"item_id": f"i{n}", "title": f"Title {n}", "categories": ["A", "B"][: n % 3]} for n in range(20)]
ROWS = [(f"u{u}", f"i{(u * 3 + step) % 20}", 1000 + 10 * step) for u in range(30) for step in range(5)]


def items_jsonl(items=ITEMS):
    return "".join(json.dumps(item) + "\n" for item in items)


def interactions_csv(rows=ROWS, header="user_id,item_id,timestamp"):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def folder_with(path, items=None, interactions=None, items_name="items.jsonl", rows_name="interactions.csv"):
    path.mkdir(parents=True, exist_ok=True)
    for name, content in ((items_name, items or items_jsonl()), (rows_name, interactions or interactions_csv())):
        content = content.encode() if isinstance(content, str) else content
        (path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def content(dataset):
    """What a data set says, whatever its rows and the file format."""
    sequences = {
        user: [dataset.item_ids[row] for row in dataset.sequence(u)] for u, user in enumerate(dataset.user_ids)
    }
    items = {i: (t, c) for i, t, c in zip(dataset.item_ids, dataset.titles, dataset.categories, strict=True)}
    return sequences, items, dataset.timestamps.tolist()


# ---------------------------------------------------------------------------------------------- formats


def test_csv_jsonl_and_parquet_plain_or_gzipped_give_the_same_data_set(tmp_path):
    expected = content(read_dataset(folder_with(tmp_path / "a")))
    items_csv = "item_id,title,categories\n" + "".join(
        f"{i['item_id']},{i['title']},{'|'.join(i['categories'])}\n" for i in ITEMS
    )
    rows_jsonl = "".join(
        json.dumps(dict(zip(("user_id", "item_id", "timestamp"), r, strict=True))) + "\n" for r in ROWS
    )
    variants = [
        ("items.csv", items_csv, "interactions.jsonl", rows_jsonl),
        ("items.csv.gz", items_csv, "interactions.csv.gz", interactions_csv()),
        ("items.jsonl.gz", items_jsonl(), "interactions.jsonl.gz", rows_jsonl),
    ]
    for number, (items_name, items, rows_name, rows) in enumerate(variants):
        dataset = read_dataset(folder_with(tmp_path / str(number), items, rows, items_name, rows_name))
        assert content(dataset) == expected
        assert dataset.report.findings == ()
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    pl.DataFrame(ITEMS).write_parquet(parquet / "items.parquet")
    columns = ("user_id", "item_id", "timestamp")
    pl.DataFrame(ROWS, schema=columns, orient="row").write_parquet(parquet / "interactions.parquet")
    assert content(read_dataset(parquet)) == expected


def test_integer_ids_date_times_windows_line_ends_a_byte_order_mark_and_quotes_are_understood(tmp_path):
    items = b'\xef\xbb\xbfitem_id,title\r\n1,"One, ""two"" and\r\nthree"\r\n2,  Plain \r\n'
    rows = "".join(
        json.dumps({"user_id": 7, "item_id": item, "timestamp": time}) + "\n"
        for item, time in ((2, "2024-05-01T10:00:00Z"), (1, "2024-05-01 09:59:59"))
    )
    dataset = read_dataset(folder_with(tmp_path, items, rows, "items.csv", "interactions.jsonl"))
    sequences, described, times = content(dataset)
    assert sequences == {"7": ["1", "2"]}
    assert described == {"1": ('One, "two" and three', ()), "2": ("Plain", ())}
    assert times == [1714557599, 1714557600]


def test_rows_are_a_permutation_set_by_the_content_alone(tmp_path):
    first = read_dataset(folder_with(tmp_path / "a"))
    again = read_dataset(folder_with(tmp_path / "b", rows_name="interactions.csv.gz"))
    other = read_dataset(folder_with(tmp_path / "c", interactions=interactions_csv(ROWS[:-1])))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.item_ids == again.item_ids and sorted(first.item_ids) == sorted(other.item_ids)
    assert first.item_ids != other.item_ids
    in_file_order = tuple(item["item_id"] for item in ITEMS)
    assert first.item_ids != in_file_order
    assert [first.row_of[item_id] for item_id in first.item_ids] == list(range(20))


def test_optional_columns_are_kept_with_their_rows(tmp_path):
    items = items_jsonl([{**item, "brand": "B" + item["item_id"], "year": 2000, "odd": 1} for item in ITEMS])
    items = items.replace('"odd": 1', '"odd": "x"', 1)
    rows = interactions_csv(
        [(*row, n % 5 + 1, f"text {n}") for n, row in enumerate(ROWS)][::-1], "user_id,item_id,timestamp,rating,review"
    )
    dataset = read_dataset(folder_with(tmp_path, items, rows))
    assert all(brand == "B" + i for brand, i in zip(dataset.items["brand"], dataset.item_ids, strict=True))
    assert "year" in dataset.items.columns and "odd" not in dataset.items.columns  # of two types
    assert dataset.columns.columns == ["rating", "review"]
    user = dataset.user_of["u4"]
    number = ROWS.index(("u4", dataset.item_ids[dataset.sequence(user)[2]], 1020))
    assert dataset.columns.row(int(dataset.offsets_U1[user]) + 2) == (number % 5 + 1, f"text {number}")


cells = st.text(st.characters(exclude_characters="\x00\r", exclude_categories=("Cs",)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells, cells, cells), max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_both_ways_of_reading_csv_agree_and_give_back_what_was_written(tmp_path_factory, rows, end, final_end):
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=end)
    writer.writerow(["a", "b", "c"])
    writer.writerows(rows)
    text = buffer.getvalue() if final_end else buffer.getvalue().removesuffix(end)
    path = tmp_path_factory.mktemp("csv") / "items.csv"
    path.write_bytes(text.encode())
    table = read_table(path)
    assert table.broken == ()
    assert table.frame.select("a", "b", "c").rows() == [tuple(cell or None for cell in row) for row in rows]
    slow, broken = tables.read_csv_slowly(text.encode(), ["a", "b", "c"], "items.csv")
    assert broken == [] and slow.rows() == table.frame.select(slow.columns).rows()


# ---------------------------------------------------------------------------------------------- bad input


def many(good=400):
    """Interactions enough for 1 % to be a few rows."""
    return [(f"u{n // 8}", f"i{n % 20}", 1000 + n) for n in range(good)]


def read_with(tmp_path, lines, items=None, **options):
    text = "user_id,item_id,timestamp\n" + "".join(line + "\n" for line in lines)
    return read_dataset(folder_with(tmp_path, items, text), **options)


BAD_ROWS = [
    ("broken_row", "u9,i1", "interactions.csv:402: 2 fields, the header has 3: 'u9,i1'"),
    ("broken_row", "u9,i1,5,6", "interactions.csv:402: 4 fields, the header has 3: 'u9,i1,5,6'"),
    ("broken_row", 'u9,"i1,5', "interactions.csv:402: is not csv (unexpected end of data): 'u9,\"i1,5'"),
    ("wrong_value", "u9,i1,soon", "interactions.csv:402: column timestamp holds 'soon'"),
    ("missing_time", "u9,i1,nan", "interactions.csv:402: column timestamp holds 'nan'"),
    ("missing_time", "u9,i1,", "interactions.csv:402: column timestamp holds nothing"),
    ("missing_id", "u9,,5", "interactions.csv:402: column item_id holds nothing"),
    ("missing_id", ",i1,5", "interactions.csv:402: column user_id holds nothing"),
    ("unknown_item", "u9,i77,5", "interactions.csv:402: column item_id holds 'i77'"),
    ("unknown_item", "u9, i1,5", "interactions.csv:402: column item_id holds ' i1'"),
    ("duplicate_interaction", "u0,i3,1003", "interactions.csv:402: column item_id holds 'i3'"),
]


@pytest.mark.parametrize(("kind", "line", "place"), BAD_ROWS)
def test_a_bad_interaction_is_left_out_and_shown(tmp_path, kind, line, place):
    good = [",".join(map(str, row)) for row in many()]
    clean = content(read_with(tmp_path / "clean", good))
    dataset = read_with(tmp_path / "bad", [*good, line])
    assert content(dataset) == clean
    (finding,) = dataset.report.findings
    assert (finding.kind, finding.file, finding.count, finding.of) == (kind, "interactions.csv", 1, 401)
    assert str(finding.places[0]) == place
    assert "left out, allowed: 1 %" in str(finding)


@pytest.mark.parametrize(("kind", "line", "place"), BAD_ROWS)
def test_strict_refuses_each_of_them(tmp_path, kind, line, place):
    good = [",".join(map(str, row)) for row in many()]
    with pytest.raises(DataError) as caught:
        read_with(tmp_path, [*good, line], strict=True)
    message = str(caught.value)
    assert message.startswith("interactions.csv: 1 of 401 rows (0.25 %)") and "refused, allowed: none" in message
    assert place in message


@pytest.mark.parametrize(("kind", "line", "place"), BAD_ROWS)
def test_more_than_the_tolerance_is_refused_with_the_first_lines(tmp_path, kind, line, place):
    good = [",".join(map(str, row)) for row in many()]
    with pytest.raises(DataError) as caught:
        read_with(tmp_path, [*good, *[line] * 9])
    message = str(caught.value)
    assert "interactions.csv: 9 of 409 rows (2.2 %)" in message and "refused, allowed: 1 %" in message
    assert "interactions.csv:402:" in message and "interactions.csv:404:" in message
    assert "interactions.csv:405:" not in message
    if kind not in ("duplicate_interaction", "broken_row"):
        read_with(tmp_path, [*good, *[line] * 9], tolerance=0.05)


def test_lines_are_right_when_earlier_cells_hold_line_breaks(tmp_path):
    items = 'item_id,title\na,"two\nlines"\nb,""\nc,C\n'
    with pytest.raises(DataError, match=r"items\.csv:4: column title holds nothing"):
        read_dataset(folder_with(tmp_path, items, interactions_csv([("u", "a", 1)]), items_name="items.csv"))


def test_one_stray_quote_costs_one_row_and_not_the_rows_up_to_the_next_quote(tmp_path):
    lines = [f"i{n},Title {n}" for n in range(300)]
    lines[10] = 'i10,"Title 10'
    lines[200] = 'i200,"Title, 200"'
    items = "item_id,title\n" + "\n".join(lines) + "\n"
    dataset = read_dataset(folder_with(tmp_path, items, items_name="items.csv"), tolerance=0.1)
    assert dataset.n_items == 299 and dataset.report.count("broken_row") == 1
    assert str(dataset.report.findings[0].places[0]).startswith("items.csv:12: is not csv")


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('{"item_id": "x"', "items.jsonl:21: is not JSON"),
        ('["x", "X"]', "items.jsonl:21: is not a JSON object: ['x', 'X']"),
        ('{"item_id": "x", "title": 5}', "items.jsonl:21: column title holds 5"),
        ('{"item_id": 1.5, "title": "X"}', "items.jsonl:21: column item_id holds 1.5"),
        ('{"item_id": true, "title": "X"}', "items.jsonl:21: column item_id holds True"),
        ('{"item_id": "x", "title": NaN}', "items.jsonl:21: is not JSON (NaN is not a JSON value)"),
        ('{"item_id": "x", "title": "  "}', "items.jsonl:21: column title holds '  '"),
        ('{"item_id": "x"}', "items.jsonl:21: column title holds nothing"),
        ('{"title": "X"}', "items.jsonl:21: column item_id holds nothing"),
        ('{"item_id": "i3", "title": "X"}', "items.jsonl:21: column item_id holds 'i3'"),
        ('{"item_id": "x", "title": "X", "categories": [1]}', "items.jsonl:21: column categories holds [1]"),
    ],
)
def test_a_bad_item_is_shown_and_refused_where_it_is_too_large_a_share(tmp_path, line, place):
    folder_with(tmp_path, items_jsonl() + line + "\n")
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert place in str(caught.value) and "1 of 21 rows (4.8 %)" in str(caught.value)
    dataset = read_dataset(tmp_path, tolerance=0.05)
    kept = "x" in dataset.item_ids
    assert kept == ("categories" in line)  # only an optional cell is emptied; a needed one costs the row
    assert dataset.titles[dataset.row_of["i3"]] == "Title 3"


def test_text_that_is_not_utf8_is_a_broken_row(tmp_path):
    items = items_jsonl().encode() + b'{"item_id": "x", "title": "caf\xe9"}\n'
    with pytest.raises(DataError, match=r"items\.jsonl:21: is not UTF-8"):
        read_dataset(folder_with(tmp_path / "a", items))
    rows = interactions_csv().encode() + b"caf\xe9,i1,5\n"
    dataset = read_dataset(folder_with(tmp_path / "b", interactions=rows))
    assert (
        str(dataset.report.findings[0].places[0])
        == "interactions.csv:152: is not UTF-8: 'caf\N{REPLACEMENT CHARACTER},i1,5'"
    )


def test_interactions_of_an_item_left_out_are_told_apart_from_unknown_ones(tmp_path):
    items = items_jsonl([*ITEMS, {"item_id": "x", "title": ""}])
    rows = [*many(), ("u1", "x", 5)]
    dataset = read_dataset(folder_with(tmp_path, items, interactions_csv(rows)), tolerance=0.06)
    assert [finding.kind for finding in dataset.report.findings] == ["empty_title", "item_left_out"]
    assert "was left out of items.jsonl" in str(dataset.report.findings[1])


def test_times_out_of_order_are_sorted_told_and_refused_only_by_strict(tmp_path):
    rows = [("u", "i1", 30), ("u", "i2", 10), ("v", "i3", 5), ("u", "i4", 20)]
    folder_with(tmp_path, interactions=interactions_csv(rows))
    dataset = read_dataset(tmp_path)
    assert content(dataset)[0] == {"u": ["i2", "i4", "i1"], "v": ["i3"]}
    (finding,) = dataset.report.findings
    assert (finding.kind, finding.count, str(finding.places[0])) == (
        "unsorted", 1, "interactions.csv:3: column timestamp holds '10'",
    )  # fmt: skip
    with pytest.raises(DataError, match="are older than the row before of the same user; refused, allowed: none"):
        read_dataset(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"items": "item_id,name\na,A\n", "items_name": "items.csv"},
            "items.csv has no column title; it has: 'item_id', 'name'; it needs: item_id, title",
        ),
        (
            {"interactions": "u1;i1;5\nu2;i2;6\n"},
            "interactions.csv has no column user_id, item_id, timestamp; it has: 'u1;i1;5'",
        ),
        ({"interactions": "user_id,item_id,timestamp\n"}, "interactions.csv holds no readable rows"),
        ({"interactions": "\n \n"}, "interactions.csv is empty"),
        ({"interactions": "user_id,user_id,timestamp\na,b,1\n"}, "interactions.csv:1: column 'user_id' stands twice"),
        ({"items": "{\n", "items_name": "items.jsonl"}, "items.jsonl holds no readable rows"),
        ({"items": b"PAR1", "items_name": "items.parquet"}, "items.parquet cannot be read as parquet"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_says_what_it_has_and_what_it_needs(tmp_path, change, message):
    with pytest.raises(DataError) as caught:
        read_dataset(folder_with(tmp_path, **change))
    assert message in str(caught.value)


def test_missing_doubled_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        read_dataset(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no items file; expected one of items\.jsonl, "):
        read_dataset(tmp_path)
    folder = folder_with(tmp_path / "a", rows_name="interactions.csv.gz")
    packed = (folder / "interactions.csv.gz").read_bytes()
    (folder / "interactions.csv.gz").write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"interactions\.csv\.gz cannot be unpacked"):
        read_dataset(folder)
    (folder / "items.csv").write_text("item_id,title\na,A\n")
    with pytest.raises(DataError, match=r"holds items\.jsonl and items\.csv; keep one of them"):
        read_dataset(folder)


def test_a_parquet_column_of_another_type_is_refused(tmp_path):
    pl.DataFrame({"item_id": [1.5], "title": ["A"]}).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "interactions.csv").write_text(interactions_csv())
    with pytest.raises(DataError, match=r"items\.parquet: column item_id has type Float64; expected text or integers"):
        read_dataset(tmp_path)


# ---------------------------------------------------------------------------------------------- ties


def tied_folder(tmp_path):
    rows = [(f"u{u}", f"i{n}", 5 if n < 10 else 6) for u in range(20) for n in range(20)]
    return folder_with(tmp_path, interactions=interactions_csv(rows))


def test_ties_keep_file_order_or_are_shuffled_with_a_seed_within_their_second(tmp_path):
    dataset = read_dataset(tied_folder(tmp_path))
    in_file = [f"i{n}" for n in range(20)]
    assert all(sequence == in_file for sequence in content(dataset)[0].values())
    assert any("99 %" in note or "100 %" in note for note in dataset.report.notes), "file order follows ids: say so"
    assert any("shuffle ties" in note for note in dataset.report.notes)
    shuffled = read_dataset(tmp_path, ties="shuffle", seed=1)
    assert content(shuffled)[0] == content(shuffle_ties(dataset, 1))[0] != content(shuffle_ties(dataset, 2))[0]
    assert "put in random order, seed 1" in shuffled.report.notes[-1]
    assert shuffled.ties == "shuffled with seed 1" and dataset.ties == "file"
    for sequence in content(shuffled)[0].values():
        assert sorted(sequence[:10]) == sorted(in_file[:10]) and sequence != in_file
    assert np.array_equal(shuffled.timestamps, dataset.timestamps)


def test_statistics_count_ties_and_see_positions_that_are_no_times(tmp_path):
    facts = read_dataset(tied_folder(tmp_path / "a")).statistics()
    assert (facts["users"], facts["items"], facts["interactions"]) == (20, 20, 400)
    assert (facts["tied_neighbours"], facts["users_with_tied_target"], facts["order_only"]) == (360, 20, False)
    rows = [(f"u{u}", f"i{n}", n) for u in range(3) for n in range(4)]
    positions = read_dataset(folder_with(tmp_path / "b", interactions=interactions_csv(rows)))
    assert positions.order_only and "positions" in positions.report.notes[0]


def test_repeats_and_short_users_are_noted(tmp_path):
    rows = [("u", "i1", 1), ("u", "i1", 2), ("u", "i2", 3), ("v", "i1", 1)]
    notes = read_dataset(folder_with(tmp_path, interactions=interactions_csv(rows))).report.notes
    assert "1 interactions are with an item the user had before; they are kept" in notes
    assert "1 users have fewer than 3 interactions and can only be trained on" in notes


def test_brand_and_price_are_what_requests_can_filter_by(tmp_path):
    prices = {"12.5": 12.5, "$3": 3.0, "¥100": 100.0, "about 5": None, None: None}
    given = [(f"B{n}" if n % 2 else None, list(prices)[n % 5]) for n in range(len(ITEMS))]
    items = items_jsonl([{**item, "brand": brand, "price": price, "year": 2000}
                         for item, (brand, price) in zip(ITEMS, given, strict=True)])  # fmt: skip
    dataset = read_dataset(folder_with(tmp_path, items))
    for item, (brand, price) in zip(ITEMS, given, strict=True):
        expected = {"brand": brand, "price": prices[price]}
        found = dataset.attributes[dataset.row_of[item["item_id"]]]
        assert found == {name: value for name, value in expected.items() if value is not None}
