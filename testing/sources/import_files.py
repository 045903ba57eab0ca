"""Files of a small shop in every form, for tests of the import; what they hold stands in `PLAIN`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from training.data import Dataset, read_dataset
from training.data.importing import ImportOptions, import_data

TITLES = ["Red Kettle", "Blue Mug", "Green Plate", "Oak Spoon", "Wool Hat", "Clay Vase"]
ITEMS = "item_id,title\n" + "".join(f"i{n},{title}\n" for n, title in enumerate(TITLES))
START = 1_700_000_000
ROWS = [(f"u{u}", f"i{(u + step) % 6}", START + 60 * (10 * u + step)) for u in range(20) for step in range(5)]
Files = dict[str, str | bytes]


def table(rows: Sequence[tuple[object, ...]] = tuple(ROWS), header: str = "user_id,item_id,timestamp") -> str:
    """Interactions as csv."""
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def files(items: str | bytes | None = ITEMS, interactions: str | bytes | None = None, **more: str | bytes) -> Files:
    """The two files of the shop; a name in the other arguments has `__` for a dot."""
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
    """The titles of every user's sequence."""
    return {user: [data.titles[row] for row in data.sequence(at)] for at, user in enumerate(data.user_ids)}


PLAIN = {f"u{u}": [TITLES[(u + step) % 6] for step in range(5)] for u in range(20)}


def times(write: Callable[[int], object]) -> str:
    """Interactions with times as `write` has them."""
    return table([(u, i, write(t)) for u, i, t in ROWS])


def dates(form: str) -> str:
    """Interactions with dates of a form of strftime."""
    return times(lambda t: datetime.fromtimestamp(t, UTC).strftime(form))


def array(text: str) -> list[dict[str, str]]:
    """The rows of a csv as objects."""
    names, *rows = [line.split(",") for line in text.splitlines()]
    return [dict(zip(names, row, strict=True)) for row in rows]


def lines(text: str) -> str:
    """A csv as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in array(text))


def numbered(text: str) -> str:
    """A csv with row numbers in a column without a name, as pandas writes it."""
    first, *rest = text.splitlines()
    return "\n".join([f",{first}", *(f"{n},{line}" for n, line in enumerate(rest))]) + "\n"


def zipped(name: str, text: str) -> bytes:
    """A zip with one member."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, text)
    return content.getvalue()


SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def workbook(sheets: dict[str, list[list[object]]]) -> bytes:
    """A workbook of Excel with rows of text and numbers on each sheet; the least that its format asks for."""

    def cell(value: object) -> str:
        if isinstance(value, (int, float)):
            return f"<c><v>{value}</v></c>"
        return f'<c t="inlineStr"><is><t>{value}</t></is></c>'

    numbered = list(enumerate(sheets.items(), 1))
    listed = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, (name, _) in numbered)
    related = "".join(
        f'<Relationship Id="r{n}" Type="{RELATION}/worksheet" Target="worksheets/sheet{n}.xml"/>' for n, _ in numbered
    )
    package = "http://schemas.openxmlformats.org/package/2006"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="xml" ContentType='
        '"application/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="w" Type="{RELATION}'
        '/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{SHEET}" xmlns:r="{RELATION}"><sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">{related}</Relationships>',
    }
    for n, (_, rows) in numbered:
        body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
        parts[f"xl/worksheets/sheet{n}.xml"] = f'<worksheet xmlns="{SHEET}"><sheetData>{body}</sheetData></worksheet>'
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return content.getvalue()


def saved(frame: pl.DataFrame, form: str) -> bytes:
    """A frame in a binary form of polars: parquet, ipc, ipc_stream."""
    content = io.BytesIO()
    getattr(frame, f"write_{form}")(content)
    return content.getvalue()


def zstandard(text: str) -> bytes:
    """A csv compressed by Zstandard."""
    frame = pl.read_csv(text.encode(), infer_schema=False)
    content = io.BytesIO()
    frame.lazy().sink_csv(content, compression="zstd")
    return content.getvalue()


def frame(text: str) -> pl.DataFrame:
    """A csv as a frame."""
    return pl.read_csv(text.encode())


def per_user(write: Callable[[list[str]], object]) -> str:
    """JSON lines of users with all their items in one cell."""
    ids = {f"u{u}": [f"i{(u + step) % 6}" for step in range(5)] for u in range(20)}
    return "".join(json.dumps({"user_id": user, "item_ids": write(items)}) + "\n" for user, items in ids.items())
