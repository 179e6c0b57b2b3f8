"""Tables of numbers that instruments export: CSV of any kind, and Parquet, as float columns with names and units."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.harness.api import Floats, HarnessError

HEAD_BYTES = 64 << 10  # looked at to see how a CSV file is written
DELIMITERS = "\t;,|"
COMMENTS = ("#", "//", "%")
_NUMBER = r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?"
_IS_NUMBER = re.compile(rf"\s*({_NUMBER}|[+-]?nan|[+-]?inf)?\s*", re.IGNORECASE)
_IS_TIME = re.compile(r"\s*(\d{4}-\d\d-\d\d[ T])?\d{1,2}:\d\d:\d\d([.,]\d+)?Z?\s*")
_IN_BRACKETS = re.compile(r"^(.*?)\s*[(\[]\s*([^()\[\]]+?)\s*[)\]]$")
_AT_END = re.compile(r"^(.+?)[\s_/]+([^\s_/]+)$")

# unit -> (quantity, factor to SI)
UNITS: dict[str, tuple[str, float]] = {
    "s": ("time", 1.0), "sec": ("time", 1.0), "seconds": ("time", 1.0), "min": ("time", 60.0), "h": ("time", 3600.0),
    "ms": ("time", 1e-3), "us": ("time", 1e-6), "ns": ("time", 1e-9),
    "W": ("power", 1.0), "kW": ("power", 1e3), "mW": ("power", 1e-3), "uW": ("power", 1e-6), "nW": ("power", 1e-9),
    "V": ("voltage", 1.0), "mV": ("voltage", 1e-3), "uV": ("voltage", 1e-6),
    "A": ("current", 1.0), "mA": ("current", 1e-3), "uA": ("current", 1e-6), "nA": ("current", 1e-9),
    "J": ("energy", 1.0), "mJ": ("energy", 1e-3), "uJ": ("energy", 1e-6), "kJ": ("energy", 1e3),
    "Wh": ("energy", 3600.0), "mWh": ("energy", 3.6), "kWh": ("energy", 3.6e6),
}  # fmt: skip
_A_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # ticks of a Parquet file's timestamps
_SMALL = {u.lower(): u for u in UNITS if u[0] in "mun" or len(u) == 1}  # "ma", "uw", "w": no other unit is meant


@dataclass(frozen=True)
class Table:
    """Columns (n,) by the names in the file, NaN where no number is; times of day in s (since 1970 if dated)."""

    names: tuple[str, ...]
    columns: Mapping[str, Floats]
    dated: tuple[str, ...] = ()  # columns that were times of day: their unit is s
    skipped: int = 0  # lines that were no rows


def unit_of(text: str) -> tuple[str, float] | None:
    """Quantity and factor to SI of a unit as it is written ("mA", "µW"); None if it is none we know."""
    name = text.strip().replace("µ", "u").replace("μ", "u")
    name = name if name in UNITS else _SMALL.get(name, "")
    return UNITS.get(name)


def split(text: str) -> tuple[str, str]:
    """A header's name and unit, "" where it tells none: "Main(mA)", "Current [A]", "power_mw", "P_main mW"."""
    for form in (_IN_BRACKETS, _AT_END):
        found = form.match(text.strip())
        if found and unit_of(found[2]):
            return found[1].strip(), found[2]
    return text.strip(), ""


def read(path: Path) -> Table:
    """The table in a file. HarnessError, saying what was found, if it is none."""
    try:
        return _parquet(path) if _is_parquet(path) else _csv(path)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read ({error.strerror or error})") from error


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise HarnessError(f"{path}: is a damaged Parquet file ({error}); was it still being written?") from error
    columns, dated = {}, []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_timestamp(column.type):
            columns[name] = column.cast(pa.int64()).to_numpy() / _A_SECOND[column.type.unit]
            dated.append(name)
        elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            columns[name] = column.cast(pa.float64(), safe=False).to_numpy()
    return Table(tuple(columns), columns, tuple(dated))


@dataclass(frozen=True)
class _Form:
    """How a CSV file is written: its first row of data (line number from 0), names, delimiter, decimal mark."""

    first: int
    names: tuple[str, ...]
    delimiter: str
    decimal: str
    dated: tuple[int, ...]


def _csv(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.csv as pc

    content = path.read_bytes()
    if b"\0" in content[:HEAD_BYTES]:
        raise HarnessError(f"{path}: is no text; wanted CSV (UTF-8) or Parquet")
    if content and not content.endswith((b"\n", b"\r")):
        # A number cut in half is a number too; what is still being written ends so, and so do some finished files.
        content = content[: max(content.rfind(b"\n"), content.rfind(b"\r")) + 1]
    form = _form(path, content[:HEAD_BYTES].decode("utf-8-sig", "replace"))
    if form.delimiter == " ":
        content = re.sub(rb"[ \t]+", b" ", re.sub(rb"(?m)^[ \t]+|[ \t]+$", b"", content))
    skipped = 0

    def skip(row: Any) -> str:
        nonlocal skipped
        skipped += not row.text.lstrip().startswith(COMMENTS) if row.text else 1
        return "skip"

    options: dict[str, Any] = {
        "read_options": pc.ReadOptions(skip_rows=form.first, column_names=list(form.names), use_threads=False),
        "parse_options": pc.ParseOptions(delimiter=form.delimiter, invalid_row_handler=skip),
    }
    kinds = {n: pa.string() if k in form.dated else pa.float64() for k, n in enumerate(form.names)}
    try:
        plain = pc.ConvertOptions(column_types=kinds, decimal_point=form.decimal)
        table = pc.read_csv(io.BytesIO(content), convert_options=plain, **options)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        skipped = 0
        texts = pc.ConvertOptions(column_types=dict.fromkeys(form.names, pa.string()), check_utf8=False)
        try:
            table = pc.read_csv(io.BytesIO(content), convert_options=texts, **options)
        except pa.ArrowInvalid as error:
            raise HarnessError(f"{path}: is no table of numbers ({error})") from error
    columns = {}
    for k, (name, column) in enumerate(zip(form.names, table.columns, strict=True)):
        if k in form.dated:
            columns[name] = _times(column.to_pylist())
        elif pa.types.is_string(column.type):
            columns[name] = _numbers(column, form.decimal)
        else:
            columns[name] = column.to_numpy()
    return Table(form.names, columns, tuple(form.names[k] for k in form.dated), skipped)


def _numbers(column: Any, decimal: str) -> Floats:
    """Texts as numbers, NaN where one is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(column)
    text = pc.replace_substring(text, ",", ".") if decimal == "," else text
    is_number = pc.match_substring_regex(text, rf"^{_NUMBER.replace('.,', '.')}$")
    return np.asarray(pc.if_else(is_number, text, None).cast(pa.float64()).to_numpy(), np.float64)


def _times(texts: Sequence[str | None]) -> Floats:
    """Times of day as seconds: since 1970 (as if UTC) where they have a date; NaN where one is none."""
    found = np.full(len(texts), np.nan)
    days: dict[str, float] = {}
    for k, text in enumerate(texts):
        if text is None or not _IS_TIME.fullmatch(text):
            continue
        date, _, clock = text.strip().rstrip("Z").replace("T", " ").rpartition(" ")
        if date not in days:
            days[date] = _day_s(date) if date else 0.0
        hours, minutes, seconds = clock.split(":")
        found[k] = days[date] + int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    if len(found) and not any(days):
        there = np.flatnonzero(np.isfinite(found))
        for row in np.flatnonzero(np.diff(found[there]) < -43200):  # past midnight
            found[there[row + 1] :] += 86400
    return found


def _day_s(date: str) -> float:
    """A day's beginning in s since 1970; NaN where there is no such day (a logger whose clock was not set)."""
    try:
        return float(np.datetime64(date, "s").astype(np.int64))
    except ValueError:
        return np.nan


def _form(path: Path, head: str) -> _Form:
    """How a file is written, by its first lines. HarnessError, quoting them, if it is no table of numbers."""
    lines = head.splitlines()
    lines = lines[:-1] if len(lines) > 1 and len(head) >= HEAD_BYTES // 2 else lines
    shown = [k for k, line in enumerate(lines) if line.strip() and not line.lstrip().startswith(COMMENTS)]
    best: tuple[float, int, int, str] = (0.0, 0, 0, "")
    for delimiter in (*DELIMITERS, " "):
        first, n = _numeric_from([lines[k] for k in shown], delimiter)
        row = _fields(lines[shown[first]], delimiter) if n else []
        # "1,5;2,5" is two numbers, and not three of which the middle one is none.
        share = sum(bool(_IS_NUMBER.fullmatch(f) or _IS_TIME.fullmatch(f)) for f in row) / max(1, len(row))
        if n and (share * (len(row) > 1), n, len(row)) > best[:3]:
            best = (share * (len(row) > 1), n, len(row), delimiter)
    _, n, width, delimiter = best
    if not n:
        quoted = lines[shown[0]][:80] if shown else ""
        raise HarnessError(f"{path}: no rows of numbers found; it begins with {quoted!r}")
    at, _ = _numeric_from([lines[k] for k in shown], delimiter)
    row = [f.strip() for f in _fields(lines[shown[at]], delimiter)]
    above, first = [], shown[at]
    for k in reversed(shown[max(0, at - 3) : at]):  # rows that are cut short may stand between
        fields = _fields(lines[k], delimiter)
        if len(fields) == width and not _is_data(fields):
            above, first = fields, k + 1
            break
    commented = [line.lstrip("#/% \t") for line in lines[: shown[at]] if line.lstrip().startswith(COMMENTS)]
    if not above and commented:  # a header that is written as a comment
        above = _fields(commented[-1], delimiter)
    names = [h.strip() or str(k + 1) for k, h in enumerate(above)] if len(above) == width else []
    names = names or [str(k + 1) for k in range(width)]
    twice = next((h for h in names if names.count(h) > 1), None)
    if twice is not None:
        names = [f"{h} #{k + 1}" if names.count(h) > 1 else h for k, h in enumerate(names)]
    rows = [_fields(lines[k], delimiter) for k in shown[at:]]
    has_comma = delimiter != "," and any(re.fullmatch(r"\s*[+-]?\d*,\d+.*", f) for r in rows for f in r)
    dated = tuple(k for k, f in enumerate(row) if _IS_TIME.fullmatch(f))
    return _Form(first, tuple(names), delimiter, "," if has_comma else ".", dated)


def _fields(line: str, delimiter: str) -> list[str]:
    if delimiter == " ":
        return line.split()
    return next(csv.reader([line], delimiter=delimiter), [])


def _numeric_from(lines: Sequence[str], delimiter: str) -> tuple[int, int]:
    """Where the rows begin that are numbers (mostly), and how many of them follow with as many fields."""
    rows = [_fields(line, delimiter) for line in lines]
    for share in (0.51, 0.5):  # of a row's fields, that must be numbers
        good = [_is_data(row, share) for row in rows]
        for k, row in enumerate(rows):
            if good[k]:
                same = sum(len(r) == len(row) and g for r, g in zip(rows[k:], good[k:], strict=True))
                if same >= max(1, (len(rows) - k) // 2):
                    return k, same
    return 0, 0


def _is_data(row: Sequence[str], share: float = 0.51) -> bool:
    """Whether so many of a row's fields are numbers or times (or empty), and at least one is not empty."""
    good = [bool(_IS_NUMBER.fullmatch(f) or _IS_TIME.fullmatch(f)) for f in row]
    return sum(bool(f.strip()) and g for f, g in zip(row, good, strict=True)) >= 1 and sum(good) >= share * len(good)
