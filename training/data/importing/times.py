"""Times as people write them: numbers in any unit, dates of many forms. Dates without a zone are taken as UTC.

Numbers stay as they are unless units are mixed: then all become seconds. Dates become seconds since 1970.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from training.data.columns import NOTHING, UNITS, of_another_unit
from training.data.importing.content import share
from training.data.report import DataError, shown

_MICROSECONDS = 1_000_000
_LOOKED_AT = 1000
_DAY = 86_400
_ENDS = ("", " %H:%M:%S%.f", " %H:%M", " %H", " %I:%M:%S %p", " %I:%M %p", " %I %p")
_ZONED = (" %H:%M:%S%.f%z", " %H:%M:%S%.f %z")
_WORDS = (
    "%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S %z", "%a, %d %b %Y %H:%M:%S",
    "%d/%b/%Y:%H:%M:%S %z", "%m %d, %Y",
    *(day + end for day in ("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y") for end in _ENDS),
)  # fmt: skip
_DIGITS = {
    r"^(19|20)\d{2}[01]\d[0-3]\d$": "%Y%m%d",
    r"^(19|20)\d{2}[01]\d[0-3]\d[0-2]\d[0-5]\d[0-5]\d$": "%Y%m%d%H%M%S",
    r"^(19|20)\d{2}[01]\d[0-3]\d[0-2]\d[0-5]\d$": "%Y%m%d%H%M",
    # As seconds since 1970 these are times from 2033 on.
    r"^20\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])([01]\d|2[0-3])$": "%Y%m%d%H",
}
_LOOKS_DATED = (
    r"^(\d{1,4}[-/.年]\d|[A-Z][a-z]{2,8},? .*\d{4}|\d{1,2}[- /][A-Z][a-z]{2}|(19|20)\d{6}([0-2]\d[0-5]\d[0-5]\d)?$)"
)
_DAYS = ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%y/%m/%d", "%y.%m.%d")
_ORDERS = {"%m/%d": "month/day", "%d/%m": "day/month", "%y/%m": "year/month/day", "%y.%m": "year.month.day"}


@dataclass(frozen=True)
class Times:
    """Times of R rows: Int64 or Float64 `values` (null: none), which rows are `wrong`, and the form in words.

    `doubt`: what is not certain, as the order of day and month; "" where nothing is.
    """

    values: pl.Series
    wrong: pl.Series
    form: str
    doubt: str = ""
    note: str = ""


def read_times(column: pl.Series, form: str | None) -> Times:
    """Read a column of times.

    Args:
        column: numbers, text, dates.
        form: of dates as strftime writes it; None: found out.

    Raises:
        DataError: none of the times is of a form that is known.
    """
    if isinstance(column.dtype, pl.Datetime | pl.Date):
        return Times(_seconds(column), _none(column), "dates")
    if column.dtype.is_integer() and (compact := _compact(column.cast(pl.String))):
        return _dates(column.cast(pl.String), compact)
    if column.dtype.is_integer() or column.dtype.is_float():
        return _numbers(column, column.cast(pl.Float64) if column.dtype.is_float() else column)
    texts = column.cast(pl.String).str.strip_chars()
    texts = texts.set(texts.is_in(["", *NOTHING]), None)
    if form is not None:
        return _dates(texts, form)
    whole = texts.cast(pl.Int64, strict=False)
    numbers = whole if whole.null_count() == texts.null_count() else texts.cast(pl.Float64, strict=False)
    if numbers.null_count() - texts.null_count() <= 0.5 * (len(texts) - texts.null_count()):
        compact = _compact(texts)
        return _dates(texts, compact) if compact else _numbers(texts, numbers)
    return _best_dates(texts)


def are_dates(column: pl.Series) -> bool:
    """Whether all cells are dates written out, in a form that is known."""
    if isinstance(column.dtype, pl.Datetime | pl.Date):
        return True
    if column.dtype != pl.String or share(column, _LOOKS_DATED) < 1:
        return False
    try:
        read = read_times(column, None)
    except DataError:
        return False
    return read.form.startswith("dates") and not read.wrong.any()


def _compact(texts: pl.Series) -> str | None:
    """The form of dates that are written in digits alone; None where the cells are other numbers."""
    return next((form for pattern, form in _DIGITS.items() if share(texts, pattern) == 1), None)


def _numbers(given: pl.Series, numbers: pl.Series) -> Times:
    if numbers.dtype.is_float():
        numbers = numbers.set(~numbers.is_finite().fill_null(True), None)
        if (numbers.cast(pl.Int64, strict=False).cast(pl.Float64) == numbers).all():
            numbers = numbers.cast(pl.Int64)
    numbers = numbers.cast(pl.Int64, strict=False) if numbers.dtype.is_integer() else numbers
    wrong = numbers.is_null() & given.is_not_null()
    doubt = ""
    if given.dtype == pl.String and share(given.head(_LOOKED_AT), r"[eE]\+") > 0.5:
        doubt = (
            f"times such as {shown(given.drop_nulls()[0])} were rounded by a spreadsheet, so that their order is lost; "
            "export the column as whole numbers"
        )
    _, units = of_another_unit(numbers)
    if units:
        return Times(
            _in_seconds(numbers),
            wrong,
            f"{units}, all turned into seconds",
            doubt,
            f"times in {units}; all were turned into seconds",
        )
    unit = next((unit for unit, start in UNITS.items() if _within(numbers, start)), "")
    return Times(numbers, wrong, f"{unit} since 1970" if unit else "numbers", doubt)


def _within(numbers: pl.Series, start: float) -> bool:
    inside = ((numbers >= start) & (numbers < 100 * start)).drop_nulls()
    return bool(len(inside) and inside.all())


def _in_seconds(numbers: pl.Series) -> pl.Series:
    value = pl.col("t").cast(pl.Float64)
    result = value
    for start in list(UNITS.values())[1:]:
        result = pl.when(value >= start).then(value / (start / UNITS["seconds"])).otherwise(result)
    seconds = pl.DataFrame({"t": numbers}).select(result.alias(numbers.name)).to_series()
    return _whole(seconds)


def _best_dates(texts: pl.Series) -> Times:
    plain = _plain(texts)
    sample = plain.drop_nulls().unique(maintain_order=True).head(_LOOKED_AT)
    parsed = {form: sample.len() - _parse(sample, form).null_count() for form in _forms(sample)}
    best = max(parsed, key=lambda form: (parsed[form], -_in_future(sample, form)), default=None)
    if best is None or parsed[best] * 2 < len(sample):
        example = shown(texts.drop_nulls()[0]) if len(sample) else "nothing"
        raise DataError(
            f"times such as {example} are of no known form; give it as --time-format, e.g. '%d.%m.%Y %H:%M', or map "
            "another column: --map time=COLUMN"
        )
    values = _parse(plain, best)
    for form in sorted(parsed, key=lambda form: -parsed[form]):
        if values.null_count() == plain.null_count():
            break
        if _order(form) == _order(best):
            values = values.fill_null(_parse(plain, form))
    doubt = _doubt(plain, best)
    return Times(_seconds(values), values.is_null() & texts.is_not_null(), f"dates, {best}", doubt)


def _plain(texts: pl.Series) -> pl.Series:
    """Dates with one sign between the numbers and without the words for UTC."""
    return (
        texts.str.replace_all(r"[年月]", "-").str.replace_all(r"[時时分]", ":").str.replace_all(r"日", " ")
        .str.replace_all(r"[秒]", "").str.replace(r":\s*$", "").str.replace_all(r"\s+", " ")
        .str.replace(r"^(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:T|\s|$)", "$1-$2-$3 ")
        .str.replace(r"^(\d{1,2})[-/](\d{1,2})[-/](\d{4}|\d{2})(,?)", "$1/$2/$3")
        .str.replace(r"\s*(?:Z|UTC|GMT)$", "").str.strip_chars()
    )  # fmt: skip


def _forms(sample: pl.Series) -> Iterator[str]:
    if share(sample, r"^\d{4}-") > 0.5:
        yield from ("%Y-%m-%d" + end for end in (*_ENDS, *_ZONED))
    elif share(sample, r"^\d{1,2}[/.]\d{1,2}[/.]\d{2,4}") > 0.5:
        sign = "." if share(sample, r"^\d{1,2}\.") > 0.5 else "/"
        year = "%Y" if share(sample, r"^\d{1,2}[/.]\d{1,2}[/.]\d{4}") > 0.5 else "%y"
        days = [f"{day}{year}" for day in (("%d.%m.",) if sign == "." else ("%m/%d/", "%d/%m/"))]
        days += [f"%y{sign}%m{sign}%d"] if year == "%y" else []
        yield from (day + end for day in days for end in (*_ENDS, *_ZONED))
    else:
        yield from _WORDS


def _order(form: str) -> str:
    return _ORDERS.get(form[:5], "")


def _in_future(texts: pl.Series, form: str) -> int:
    """Number of times that lie in the future, where a form with two digits for the year is taken; else 0."""
    if "%y" not in form:
        return 0
    return int((_parse(texts, form).dt.epoch("s") > time.time() + _DAY).sum())


def _doubt(plain: pl.Series, best: str) -> str:
    """Said where day, month and year could as well change places."""
    end, late, unread = best[8:], _in_future(plain, best), _parse(plain, best).null_count()
    others = [
        form
        for form in _forms(plain)
        if form[8:] == end
        and form != best
        and _order(form) != _order(best)
        and _parse(plain, form).null_count() <= unread
        and _in_future(plain, form) <= late
    ]
    if not others:
        return ""
    orders = " or ".join(_order(form) or "day.month.year" for form in (best, *others))
    forms = " or ".join(repr(form) for form in (best, *others))
    return f"dates such as {shown(plain.drop_nulls()[0])} may be {orders}; say which with --time-format {forms}"


def _parse(texts: pl.Series, form: str) -> pl.Series:
    if re.search("%[HI]", form) and "%M" not in form:  # polars reads no hour without its minute
        texts, form = "00 " + texts, "%M " + form
    try:
        parsed = texts.str.to_datetime(form, strict=False, time_unit="us")
    except pl.exceptions.PolarsError:
        return pl.Series(texts.name, [None] * len(texts), dtype=pl.Datetime("us"))
    return parsed.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if parsed.dtype.time_zone else parsed  # type: ignore[attr-defined]


def _dates(texts: pl.Series, form: str) -> Times:
    plain = _plain(texts)
    values = _parse(texts, form).fill_null(_parse(plain, form))
    for other in _forms(plain) if form[:8] in _DAYS else ():  # days with and without a time of day
        if values.null_count() > plain.null_count() and other[:8] == form[:8]:
            values = values.fill_null(_parse(plain, other))
    if values.null_count() == len(values) and len(texts.drop_nulls()):
        raise DataError(f"times such as {shown(texts.drop_nulls()[0])} are not of the form {form!r} (--time-format)")
    return Times(_seconds(values), values.is_null() & texts.is_not_null(), f"dates, {form}")


def _seconds(dates: pl.Series) -> pl.Series:
    return _whole(dates.dt.epoch("us").cast(pl.Float64) / _MICROSECONDS)


def _whole(values: pl.Series) -> pl.Series:
    whole = values.cast(pl.Int64, strict=False)
    return whole if (whole.cast(pl.Float64) == values).all() else values


def _none(column: pl.Series) -> pl.Series:
    return pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)
