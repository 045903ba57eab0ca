"""JSON: one object a line, an array of objects, or one object that holds arrays or objects; dictionaries of Python too.

Lines are read by polars; one that it refuses is looked for line by line, so that a broken line costs itself alone.
"""

from __future__ import annotations

import ast
from typing import Any

import orjson
import polars as pl

from training.data.importing.encodings import to_utf8
from training.data.importing.table import ReadOptions, Table
from training.data.report import DataError, Place, shown

PRIORITY = 3
KEY = "id"
"""The column of the names under which one object holds others."""
_ENDINGS = (".json", ".jsonl", ".ndjson")


def matches(name: str, data: bytes) -> bool:
    """Whether the content begins as an object or an array; text in other encodings goes by the name."""
    start = data[:200].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return start in (b"{", b"[") or any(ending in name.lower() for ending in _ENDINGS)


def read(name: str, data: bytes, options: ReadOptions) -> list[Table]:
    """The tables of the file: one, or one for each array in a single object."""
    data, encoding, broken = to_utf8(name, data, options.encoding)
    whole = _whole(data)
    if whole is None:
        return [_lines(name, data, encoding, broken)]
    tables = [
        Table(f"{name}:{part}" if part else name, _frame(name, records), f"JSON, {encoding}", broken=broken)
        for part, records in _parts(whole)
        if records
    ]
    if not tables:
        raise DataError(f"{name} holds no JSON objects; an array of objects or one object a line is read")
    return tables


def _whole(data: bytes) -> Any:
    """The one JSON value of the file; None where the first line is a value by itself."""
    first = data.lstrip().split(b"\n", 1)[0].strip()
    rest = data.lstrip()[len(first) :].strip()
    if rest and isinstance(_loaded(first), dict):
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _parts(whole: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    if isinstance(whole, list):
        return [("", [each for each in whole if isinstance(each, dict)])]
    if not isinstance(whole, dict):
        return []
    if whole and all(isinstance(value, dict) for value in whole.values()):
        return [("", [value if KEY in value else {KEY: key, **value} for key, value in whole.items()])]
    arrays = {key: value for key, value in whole.items() if isinstance(value, list) and value}
    if arrays and all(isinstance(each, dict) for value in arrays.values() for each in value):
        return list(arrays.items())
    return [("", [whole])]


def _lines(name: str, data: bytes, encoding: str, broken: tuple[Place, ...]) -> Table:
    form = f"JSON lines, {encoding}"
    if not broken and b"\n\n" not in data:
        try:
            return Table(name, pl.read_ndjson(data, infer_schema_length=None), form)
        except pl.exceptions.PolarsError:
            pass
    records, lines, wrong = [], [], list(broken)
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        record = _loaded(line)
        if isinstance(record, dict):
            records.append(record)
            lines.append(number)
        else:
            wrong.append(Place(name, number, "", f"is not a JSON object: {shown(line.decode('utf-8', 'replace'))}"))
    if not records:
        examples = "".join(f"\n  {place}" for place in wrong[:3])
        raise DataError(f"{name} holds no JSON objects; an array of objects or one object a line is read{examples}")
    return Table(name, _frame(name, records), form, lines=pl.Series(lines, dtype=pl.Int64), broken=tuple(wrong))


def _loaded(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:  # the metadata of Amazon 2014 are dictionaries as Python writes them
        return ast.literal_eval(line.decode()) if line.lstrip().startswith(b"{'") else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _frame(name: str, records: list[dict[str, Any]]) -> pl.DataFrame:
    try:
        return pl.read_ndjson(b"\n".join(map(orjson.dumps, records)), infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, orjson.JSONEncodeError) as error:
        raise DataError(f"{name} holds values that make no table: {str(error).splitlines()[0]}") from None
