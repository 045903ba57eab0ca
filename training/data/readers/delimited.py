"""Text in columns: csv, tab-separated, `::` and the like, and lines of numbers with spaces between.

It comes last and takes what no other format is. polars reads the file; Python's csv reader is asked only where polars
refuses it, because it knows the lines of broken rows.
"""

from __future__ import annotations

import re
from dataclasses import replace

import polars as pl

from training.data.importing.encodings import to_utf8
from training.data.importing.names import is_known
from training.data.importing.table import ReadOptions, Table
from training.data.importing.text_rows import has_markers, rest_in_last, rows_below_markers
from training.data.report import SHOWN, DataError, Place
from training.data.tables import LINE, header_names, read_csv_slowly

PRIORITY = 9
UNIT = "\x1f"
"""Stands for a separator of several characters, which no csv reader takes."""
_SEPARATORS = ("\t", "<SEP>", "::", "\x01", ";", "|", ",")
_NAMES = {"\t": "tabs", " ": "spaces", "\x01": "^A"}
_LOOKED_AT = 50
_LOOKED_AT_IDS = 5000
_LONGEST_NAME = 60
_NUMBER = re.compile(r"^[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?$")
_NUMBERS = re.compile(r"^ *\d+( +\d+)* *$")
_SHORTEST_ID = 8


def matches(name: str, data: bytes) -> bool:
    """Anything."""
    return True


def read(name: str, data: bytes, options: ReadOptions) -> list[Table]:
    """The one table of the file."""
    data, encoding, broken = to_utf8(name, data, options.encoding)
    skipped = len(re.match(rb"(?:#[^\n]*\n|\s*\n)*", data)[0].splitlines())  # type: ignore[index]
    body = data.split(b"\n", skipped)[-1] if skipped else data
    if b"\0" in body[:1000] and not body[:1000].isascii():
        raise DataError(f"{name} is not text; csv, JSON, parquet, Arrow and archives of these are read")
    if has_markers(_lines(body, _LOOKED_AT)):
        return [_below_markers(name, body, encoding, broken, skipped, options)]
    return [_plain(name, body, encoding, broken, skipped, options)]


def _lines(body: bytes, most: int) -> list[str]:
    return [line for line in body[:1_000_000].decode("utf-8", "replace").split("\n")[:most] if line.strip()]


def _below_markers(
    name: str, body: bytes, encoding: str, broken: tuple[Place, ...], skipped: int, options: ReadOptions
) -> Table:
    """Rows below lines such as `17:`, which become their last column."""
    rows = [line for line in _lines(body, _LOOKED_AT) if not line.rstrip().endswith(":")]
    separator = options.separator or (_sniffed(rows) if rows else None) or ","
    body, numbers = rows_below_markers(body, separator)
    options = replace(options, separator=separator, header=False)
    table = _plain(name, body, encoding, (), 0, options)
    places = table.lines - 1 if table.lines is not None else pl.int_range(table.frame.height, eager=True)
    found = tuple(replace(place, line=numbers[place.line - 1] + skipped) for place in table.broken)
    last = table.frame.columns[-1]
    form = f"{table.form}, {last} from the lines above the rows that end in ':'"
    return replace(table, form=form, lines=numbers[places] + skipped, broken=broken + found, marker=last)


def _plain(
    name: str, body: bytes, encoding: str, broken: tuple[Place, ...], skipped: int, options: ReadOptions
) -> Table:
    first = _lines(body, _LOOKED_AT_IDS)
    sample = first[:_LOOKED_AT]
    separator = options.separator or _sniffed(sample)
    if separator is None and sample and all(map(_NUMBERS.match, sample)):
        if not _is_table_of_numbers(first):
            return _of_numbers(name, body, encoding, skipped)
        separator, body = " ", re.sub(rb"(?m)^ +| +$", b"", re.sub(rb" +", b" ", body))
    separator = separator or ","
    quote = '"' if _is_quoted(sample, separator) or (b'"' in body and separator != "::") else None
    has_header = (
        options.header if options.header is not None else _has_header([_cells(line, separator) for line in sample])
    )
    if len(separator) > 1:
        body, quote = body.replace(separator.encode(), UNIT.encode()), None
    table = _read(name, body, UNIT if len(separator) > 1 else separator, quote, has_header, skipped)
    form = f"{encoding}, separated by {_NAMES.get(separator, repr(separator))}" + ("" if has_header else ", no header")
    return replace(table, form=form + table.form, header=has_header, broken=broken + table.broken)


def _sniffed(lines: list[str]) -> str | None:
    """The separator that all lines have alike, at least once; several alike: the one that is there most often."""
    best, found = 0.0, None
    for sign in _SEPARATORS:
        counts = [len(_cells(line, sign)) - 1 for line in lines]
        usual = max(set(counts), key=counts.count)
        alike = counts.count(usual) / len(counts)
        if usual and alike >= 0.8 and (score := alike * 10 + min(usual, 9) / 10) > best:
            best, found = score, sign
    if found is None and lines and any("," in line for line in lines):
        return ","
    return found


def _cells(line: str, separator: str) -> list[str]:
    """The cells of one line, separators between quotes passed over."""
    if '"' not in line or len(separator) > 1:
        return line.split(separator)
    inside, cells, start = False, [], 0
    for at, character in enumerate(line):
        if character == '"':
            inside = not inside
        elif character == separator and not inside:
            cells.append(line[start:at])
            start = at + 1
    return [*cells, line[start:]]


def _is_quoted(lines: list[str], separator: str) -> bool:
    return any(cell.startswith('"') for line in lines for cell in _cells(line, separator))


def _has_header(rows: list[list[str]]) -> bool:
    """Whether a first line names columns: it has a known name, or nothing that is a number, long, repeated or an id."""
    first = [cell.strip().strip('"') for cell in rows[0]]
    if any(map(is_known, first)):
        return True
    below = [{row[at].strip().strip('"') for row in rows[1:] if at < len(row)} for at in range(len(first))]
    again = any(cell and (cell in cells or _is_id(cell, cells)) for cell, cells in zip(first, below, strict=True))
    return not again and not any(_NUMBER.match(cell) or len(cell) > _LONGEST_NAME for cell in first)


def _is_id(cell: str, below: set[str]) -> bool:
    """Whether a cell is one of a column of ids that are all as long, with digits in them."""
    as_long = below and all(len(other) == len(cell) for other in below)
    return bool(as_long and len(cell) >= _SHORTEST_ID and re.search(r"\d", cell))


def _read(name: str, body: bytes, separator: str, quote: str | None, has_header: bool, skipped: int) -> Table:
    try:
        frame = pl.read_csv(body, separator=separator, quote_char=quote, has_header=has_header, infer_schema=False)
    except pl.exceptions.PolarsError:
        whole = None if has_header else _whole_rows(body, separator)
        if whole is not None:
            form = f", {separator!r} inside of column_{whole.width} kept"
            return Table(name, whole, form, header=False, first=skipped + 1)
        return _read_slowly(name, body, separator, has_header, skipped)
    if frame.is_empty():
        raise DataError(f"{name} holds one line and no rows after it; if that line is no header, give --no-header")
    header_lines = 1 + sum(column.count("\n") for column in frame.columns) if has_header else 0
    if not has_header:
        frame.columns = [f"column_{at}" for at in range(1, frame.width + 1)]
    return Table(name, frame, "", has_header, skipped + header_lines + 1, multiline=b'"' in body)


def _whole_rows(body: bytes, separator: str) -> pl.DataFrame | None:
    """Rows of as many cells as most have; see `rest_in_last`."""
    widths = [len(_cells(line, separator)) for line in _lines(body, _LOOKED_AT)]
    return None if separator == UNIT else rest_in_last(body, separator, max(set(widths), key=widths.count))


def _read_slowly(name: str, body: bytes, separator: str, has_header: bool, skipped: int) -> Table:
    first = body.split(b"\n", 1)[0].decode()
    header = header_names(body, name, separator) if has_header else None
    width = len(header) if header else len(_cells(first, separator))
    header = header or [f"column_{at}" for at in range(1, width + 1)]
    rows = [_cells(line, separator) for line in body[:100_000].decode("utf-8", "replace").split("\n")[1:_LOOKED_AT]]
    rows = [row for row in rows if row != [""]][:-1] or rows[:1]
    if rows and all(len(row) == width + 1 and not row[-1].strip() for row in rows):
        header.append("column_" + str(width + 1))  # a separator at the end of every line
    frame, broken = read_csv_slowly(body, header, name, separator, skip_header=has_header)
    if frame.is_empty():
        examples = "".join(f"\n  {place}" for place in broken[:SHOWN])
        raise DataError(
            f"{name}: no row has as many cells as the first line; put quotes around cells that hold {separator!r}, or "
            f"give the right --separator{examples}"
        )
    shifted = tuple(Place(each.file, each.line + skipped, each.column, each.found) for each in broken)
    return Table(name, frame.drop(LINE), "", has_header, lines=frame[LINE] + skipped, broken=shifted)


def _is_table_of_numbers(lines: list[str]) -> bool:
    """Whether lines of numbers are rows of three or more columns, such as user, item and rating, and not a user and
    the items of this user: then each user has one line, and lines differ in length."""
    rows = [line.split() for line in lines[:-1] or lines]  # the last one may be cut
    width = len(rows[0])
    return width > 2 and all(len(row) == width for row in rows) and len({row[0] for row in rows}) < len(rows)


def _of_numbers(name: str, body: bytes, encoding: str, skipped: int) -> Table:
    """Lines of a user and one or more items: two columns, the second a list."""
    lines = pl.Series("line", body.decode().split("\n")).str.strip_chars()
    cells = pl.DataFrame({"cells": lines.str.split(" "), "line": pl.int_range(1, len(lines) + 1, eager=True) + skipped})
    cells = cells.filter(lines != "")
    frame = cells.select(
        pl.col("cells").list.first().alias("column_1"),
        pl.col("cells").list.slice(1).list.filter(pl.element() != "").alias("column_2"),
    )
    return Table(name, frame, f"{encoding}, numbers separated by spaces", False, lines=cells["line"])
