"""What stands in several files or sheets: joined by a column, or read as sheets of one workbook."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from testing.sources.import_files import PLAIN, ROWS, START, TITLES, files, made, sequences, table, workbook
from training.data import read_dataset
from training.data.importing import ImportOptions, import_data, parse_joins
from training.data.importing.rows import UNNAMED
from training.data.report import DataError, Tolerances

# As receipts are kept: lines have an order, orders have a customer, and products have a name.
USERS = [f"u{n}" for n in range(20)]
ORDERS = "no,customer,date\n" + "".join(f"{n},{u},{START + 600 * n}\n" for n, u in enumerate(USERS))
LINES = "order,product\n" + "".join(f"{u[1:]},i{i[1:]}\n" for u, i, _ in ROWS)
PRODUCTS = "id,name\n" + "".join(f"i{n},{title}\n" for n, title in enumerate(TITLES))


def receipts(where: Path, **more: str) -> Path:
    where.mkdir()
    for name, text in {"lines": LINES, "orders": ORDERS, "products": PRODUCTS, **more}.items():
        (where / f"{name}.csv").write_text(text)
    return where


@pytest.mark.parametrize("names", ["files", "the folder"])
def test_lines_of_orders_get_their_customer_and_title(names: str, tmp_path: Path) -> None:
    folder = receipts(tmp_path / "shop")
    sources = [folder] if names == "the folder" else [folder / "lines.csv"]
    joins = parse_joins([f"{folder}/orders.csv:order=no", f"{folder}/products.csv:product=id"])
    seen: list[str] = []
    options = ImportOptions(joins=joins, ties="file")
    import_data(sources, tmp_path / "out", options, lambda text, doubts: bool(seen.append(text)) or not doubts)
    assert sequences(read_dataset(tmp_path / "out", ties="file")) == PLAIN
    assert "customer" in seen[0] and "name" in seen[0]


def test_a_join_by_the_role_of_a_column(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text(PRODUCTS.replace("i5,Clay Vase\n", ""))
    joins = parse_joins([f"{tmp_path}/names.csv:item=id"])
    data = made(tmp_path, files(None, table(header="customer,sku,time")), joins=joins)
    assert {*data.titles} == {*TITLES[:5], UNNAMED}


@pytest.mark.parametrize(
    ("join", "said"),
    [
        ("orders.csv:order=none", "orders.csv has no column 'none'; orders.csv has 'no', 'customer', 'date'"),
        ("orders.csv:nothing=no", "no other file has a column 'nothing'"),
        ("twice.csv:order=no", "several rows for no '0'"),
        ("absent.csv:order", "absent.csv is not there"),
    ],
)
def test_a_join_that_cannot_be_is_refused(join: str, said: str, tmp_path: Path) -> None:
    folder = receipts(tmp_path / "shop", twice=ORDERS + "0,u7,1700000000\n")
    options = ImportOptions(joins=parse_joins([f"{folder}/{join}"]))
    with pytest.raises(DataError, match=said):
        import_data([folder / "lines.csv"], tmp_path / "out", options, lambda _, doubts: True)


@pytest.mark.parametrize("text", ["orders.csv", ":a=b", "orders.csv:a=", "orders.csv:=a"])
def test_an_option_that_is_no_join_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="FILE:COLUMN"):
        parse_joins([text])


def test_rows_without_a_match_are_counted(tmp_path: Path) -> None:
    folder = receipts(tmp_path / "shop", orders=ORDERS.replace("7,u7,", "77,u7,"))
    joins = parse_joins([f"{folder}/orders.csv:order=no"])
    with pytest.raises(DataError, match="missing_id"):
        import_data([folder / "lines.csv"], tmp_path / "out", ImportOptions(joins=joins), lambda _, doubts: True)
    options = ImportOptions(joins=joins, tolerances=Tolerances(by_kind={"missing_id": 0.1}))
    done = import_data([folder / "lines.csv"], tmp_path / "out", options, lambda _, doubts: True)
    assert any("5 of 100 rows of lines.csv have no row in orders.csv" in note for note in done.report.notes)


def test_sheets_of_a_workbook_are_the_tables(tmp_path: Path) -> None:
    numbers = [[int(u[1:]), int(i[1:]), t] for u, i, t in ROWS]
    book = workbook({
        "items": [["item_id", "title"], *([n, title] for n, title in enumerate(TITLES))],
        "sold": [["user_id", "item_id", "timestamp"], *numbers],
        "empty": [],
    })  # fmt: skip
    data = made(tmp_path, {"shop.xlsx": book})
    assert sequences(data) == {user[1:]: titles for user, titles in PLAIN.items()}, "ids are 17850, not 17850.0"


def test_a_workbook_without_its_reader_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    with pytest.raises(DataError, match=r"extra 'excel'.*save each of its sheets as csv"):
        made(tmp_path, {"shop.xlsx": workbook({"sold": [["user_id"], [1]]})})
