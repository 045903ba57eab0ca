"""Files into tables with line numbers: csv, jsonl (both also gzipped) and parquet, found by name.

A table keeps the line of every row, so that validation can point at it, and a list of the rows that could
not be read at all. Csv has two ways in. Where a file has no quotes and every line the same number of
commas, polars reads it and the line of a row is its position. Anything else goes through Python's csv
reader, which knows the line a record began on.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from training.data.report import DataError, Place, shown

LINE = "_line"
ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")

csv.field_size_limit(1 << 24)  # a long description is no error


@dataclass(frozen=True)
class RawTable:
    """A file as read: `frame` has every readable row (plus its line in `_line`), `broken` the rest."""

    file: str
    frame: pl.DataFrame
    broken: tuple[Place, ...]
    sha256: str  # of the content, decompressed

    @property
    def total(self) -> int:
        """Rows in the file, unreadable ones included."""
        return self.frame.height + len(self.broken)


def find_file(folder: Path, stem: str) -> Path:
    """The one file `stem` + ending in `folder`; raises `DataError` where there is none, or more than one."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; a data set is a folder with items and interactions files")
    found = [folder / (stem + ending) for ending in ENDINGS if (folder / (stem + ending)).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds {' and '.join(path.name for path in found)}; keep one of them")
    like = sorted(path.name for path in folder.iterdir() if path.name.startswith(stem) and path not in found)
    if not found:
        there = f" (it holds {', '.join(like[:3])})" if like else ""
        raise DataError(f"{folder} holds no {stem} file{there}; expected one of {', '.join(stem + e for e in ENDINGS)}")
    parts = [name for name in like if name.endswith(ENDINGS)]
    if parts:
        listed = ", ".join(parts[:3]) + (", …" if len(parts) > 3 else "")
        raise DataError(
            f"{folder} holds {listed} beside {found[0].name}; one file is read: put them together, or move what is not "
            "meant out of the folder"
        )
    return found[0]


def read_table(path: Path) -> RawTable:
    """Read one file; a cell that is empty or absent is null. Raises `DataError` if it is unreadable."""
    data = _content(path)
    digest = hashlib.sha256(data).hexdigest()
    if path.suffix == ".parquet":
        return RawTable(path.name, _read_parquet(data, path.name), (), digest)
    if ".jsonl" in path.name:
        frame, broken = _read_jsonl(data, path.name)
    else:
        frame, broken = _read_csv(data, path.name)
    return RawTable(path.name, frame, tuple(broken), digest)


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path.name} cannot be unpacked ({error}); is the file complete?") from None
    if path.suffix != ".parquet":
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{path.name} is UTF-16; save it as UTF-8")
        data = data.removeprefix(b"\xef\xbb\xbf")  # the mark some spreadsheets put before UTF-8
    if not data.strip():
        raise DataError(f"{path.name} is empty")
    return data


def _read_parquet(data: bytes, file: str) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(data)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read as parquet: {str(error).splitlines()[0]}") from None
    frame = frame.with_columns(frame[name].cast(_plain(frame[name].dtype)) for name in frame.columns)
    return frame.with_columns(pl.int_range(1, frame.height + 1, dtype=pl.Int64).alias(LINE))


def _plain(dtype: pl.DataType) -> pl.DataType | type[pl.DataType]:
    """The type of a column with text as text, whatever coding it is stored in, also inside lists."""
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_plain(dtype.inner))  # type: ignore[arg-type]
    return dtype


def _read_jsonl(data: bytes, file: str) -> tuple[pl.DataFrame, list[Place]]:
    lines: list[int] = []
    records: list[dict[str, Any]] = []
    broken: list[Place] = []
    if data.lstrip().startswith(b"["):
        raise DataError(f"{file} begins with '[', as one JSON array; one JSON object a line is read")
    for number, line in enumerate(_with_line_ends(data).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:  # both a JSON and a UTF-8 error is a ValueError
            why = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"is not JSON ({error})"
            broken.append(Place(file, number, "", f"{why}: {shown(line.decode('utf-8', 'replace'))}"))
            continue
        if not isinstance(record, dict):
            broken.append(Place(file, number, "", f"is not a JSON object: {shown(record)}"))
            continue
        if b"\\u" in line and _torn(record):
            broken.append(Place(file, number, "", f"holds half a character: {shown(line.decode('utf-8'))}"))
            continue
        lines.append(number)
        records.append(record)
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: pl.Series(name, [record.get(name) for record in records], dtype=pl.Object) for name in names}
    return pl.DataFrame([pl.Series(LINE, lines, dtype=pl.Int64), *columns.values()]), broken


def _torn(value: Any) -> bool:
    """Whether text somewhere in a JSON value has half of a pair of surrogates, which no file can hold as UTF-8."""
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(_torn(name) or _torn(inner) for name, inner in value.items())
    return isinstance(value, list) and any(map(_torn, value))


def _with_line_ends(data: bytes) -> bytes:
    """Text whose lines end with a carriage return alone, as old spreadsheets write it, with line feeds instead."""
    return data if b"\n" in data else data.replace(b"\r", b"\n")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _read_csv(data: bytes, file: str) -> tuple[pl.DataFrame, list[Place]]:
    data = _with_line_ends(data)
    header = header_names(data, file)
    regular = data.replace(b"\r\n", b"\n") if b'"' not in data else data
    if _is_regular(regular, len(header)):
        frame = pl.read_csv(
            regular, infer_schema=False, quote_char=None, has_header=False, skip_rows=1, new_columns=header
        )
        line = pl.int_range(2, frame.height + 2, dtype=pl.Int64).alias(LINE)
        return frame.with_columns(line), []
    return read_csv_slowly(data, header, file)


def header_names(data: bytes, file: str, delimiter: str = ",") -> list[str]:
    """Names of the columns in the first line; one without a name gets one. Raises `DataError`."""
    first = data.split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
    try:
        names = next(csv.reader([first], delimiter=delimiter), [])
    except csv.Error as error:
        raise DataError(f"{file}:1: the header is not csv ({error})") from None
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(f"{file}:1: column {twice[0]!r} stands twice in the header; names must be unique")
    return [name or _free_name(names, at) for at, name in enumerate(names, start=1)]


def _free_name(names: list[str], at: int) -> str:
    """A name for a column that has none, such as the row numbers that pandas writes."""
    name = f"column_{at}"
    while name in names:
        name += "_"
    return name


def _is_regular(data: bytes, width: int) -> bool:
    """Whether no line is blank or has a quote or carriage return, and all have `width` - 1 commas."""
    if b'"' in data or b"\r" in data or b"\n\n" in data or data.startswith(b"\n"):
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    bytes_ = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(bytes_ == ord("\n"))
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    commas = np.searchsorted(np.flatnonzero(bytes_ == ord(",")), ends)
    return bool((np.diff(commas, prepend=0) == width - 1).all()) and len(ends) > 1


def read_csv_slowly(
    data: bytes, header: list[str], file: str, delimiter: str = ",", *, skip_header: bool = True
) -> tuple[pl.DataFrame, list[Place]]:
    """Rows with the line on which each began, and the places of rows that cannot be read."""
    physical = list(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
    lines: list[int] = []
    rows: list[list[str]] = []
    broken: list[Place] = []
    for number, cells in _records(physical, delimiter):
        if (number == 1 and skip_header) or cells == []:
            continue
        if isinstance(cells, str):
            broken.append(Place(file, number, "", f"{cells}: {_raw(physical[number - 1])}"))
        elif len(cells) != len(header):
            found = f"{len(cells)} fields, the header has {len(header)}: {_raw(physical[number - 1])}"
            broken.append(Place(file, number, "", found))
        elif any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
            broken.append(Place(file, number, "", f"is not UTF-8: {_raw(physical[number - 1])}"))
        else:
            lines.append(number)
            rows.append(cells)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    series = [pl.Series(name, cells, dtype=pl.String) for name, cells in zip(header, columns, strict=True)]
    frame = pl.DataFrame([pl.Series(LINE, lines, dtype=pl.Int64), *series])
    empty_is_null = [pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in header]
    return frame.with_columns(empty_is_null), broken


def _records(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Each record with the line it began on: its cells, or why it cannot be read.

    After an error reading goes on with the next physical line, so that one stray quote costs one row and
    not all rows up to the next quote.
    """
    start = 0
    while start < len(lines):
        reader = csv.reader((lines[at] for at in range(start, len(lines))), delimiter=delimiter, strict=True)
        used = 0
        try:
            for cells in reader:
                yield start + used + 1, cells
                used = reader.line_num
            return
        except csv.Error as error:
            yield start + used + 1, f"is not csv ({error})"
            start += used + 1


def _raw(line: str) -> str:
    return shown(line.rstrip("\r\n").encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
