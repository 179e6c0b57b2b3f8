"""Meters that send a line for each reading (INA226 or INA219 boards, and most of what is built at home). For the agent.

The columns are described (`devices/agent/line_layout.py`), or the board tells them in a line of its own, such as
`# columns: ms,bus_mV,current_uA,power_uW`, or its JSON keys do. Lines that begin with # and lines of words are passed
over. A line is believed if it is plain ASCII, has as many numbers as columns, and its time follows; and where it has
voltage, current and power, if they agree: that is a check of each line. Where they do not, a digit that was lost
inside a number cannot be seen, so that lines next to a damaged one are not believed either.

Rows have a column `doubt`: 1 says that the row before, sent on already, turned out to be beside a damaged line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from edgewatt.devices.agent.line_clock import FOLLOWS, JUMPED, SAME, WAITS, Count, Times
from edgewatt.devices.agent.line_layout import Column, Layout, LayoutError, announced, checked, fields, layout, of_keys
from edgewatt.devices.agent.serial_port import MeterError, Port

LONGEST = 1024  # bytes of a line
AGREE = 0.01  # voltage x current may differ so much from power, their rounding apart: chips read them one by one
UNDECIDED_NS = 1_500_000_000  # lines that made no sense for so long: why is told, better ones do not come
REPEAT_NS = 1_000_000_000  # the same line with the same time, within so long, came twice
HISTORY = 4096  # lines
LOOKED_AT = 500  # lines whose decimals are looked at
EXAMPLES = 3
QUANTITIES = ("power", "voltage", "current")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.(\d*))?|\.(\d+))(?:[eE][+-]?\d+)?", re.ASCII)
_WORDS = re.compile(r"[A-DF-Za-df-z]{2,}", re.ASCII)  # no number has two letters in a row
_SHUNT = re.compile(r"shunt\D{0,4}(\d+(?:\.\d+)?) ?(m?)(?:ohm|Ω)", re.ASCII | re.IGNORECASE)


class RefusedError(Exception):
    """A line that is not believed; the message is the reason, to be counted."""


class Decoder:
    """Lines in, rows of power, voltage and current out."""

    columns = (*QUANTITIES, "doubt")

    def __init__(self, options: dict[str, Any]) -> None:
        """`options`: columns, volts, rate_hz, start, stop, and power_steps (the chip's step of power x 1/V, in steps of
        current)."""
        self._volts = options.get("volts")
        told = options.get("columns")
        self._layout = layout(told, self._volts is not None) if told else None
        self._rate_hz = options.get("rate_hz")
        self._start, self._stop = str(options.get("start") or ""), str(options.get("stop") or "")
        self.silence_s = 5.0 if self._start else 1e6  # who talks without being told will do so again
        self._power_steps = float(options.get("power_steps") or 0.0)
        self._times, self._count = Times(), Count(float(self._rate_hz or 1.0))
        self._rest, self._is_cut, self._is_after_damage, self._doubts_last = b"", True, False, False
        self._refused: Counter[str] = Counter()
        self._examples: list[str] = []
        self._banner, self._first_line = "", ""
        self._shunt_ohm: float | None = None
        self._lines = self._rows = self._comments = self._breaks = 0
        self._decimals: dict[str, int] = {}
        self._history: dict[str, int] = {}
        self._now_ns = self._first_ns = self._repeats_ns = 0
        self._tick, self._tick_before, self._latest = 0, 0, ""  # lines of this step of the clock, and of the last one

    # -----------------------------------------------------------------------------------------------------------------
    # The port

    def begin(self, port: Port) -> None:
        """It is told to start, where it has to be. The first line may be half of one."""
        self._rest, self._is_cut = b"", True
        self._broken()
        if self._start:
            port.write(self._start.encode("ascii"))

    def request(self, now_ns: int) -> bytes:
        """It talks by itself."""
        return b""

    def end(self, port: Port) -> None:
        """It is told to stop, where it can be."""
        if self._stop:
            port.write(self._stop.encode("ascii"))

    @property
    def notes(self) -> dict[str, Any]:
        """What was read and refused, the layout, how finely each quantity is told (in SI), and what times are from."""
        factor = {c.quantity: c.factor for c in self._layout.columns} if self._layout else {}
        told = {
            "lines": self._lines,
            "rows": self._rows,
            "refused": {**self._refused, "time out of turn": self._times.waiting_lost},
            "refused_examples": self._examples,
            "comments": self._comments,
            "clock_breaks": self._breaks,
            "columns": self._layout.words() if self._layout else [],
            "clock": self._clock_from(),
            "is_checked": self._is_checked(),
            "steps": {q: factor.get(q, 1.0) * 10.0**-n for q, n in self._decimals.items()},
        }
        if self._banner:
            told["banner"] = self._banner
        if self._shunt_ohm:
            told["shunt_ohm"] = self._shunt_ohm
        return told

    # -----------------------------------------------------------------------------------------------------------------
    # Lines

    def take(self, data: bytes, now_ns: int) -> list[tuple[int, float, list[float]]]:
        """The rows of the lines that `data` completes. MeterError if nobody told what the columns are."""
        self._now_ns = now_ns
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        found: list[tuple[int, float, list[float]]] = []
        same = 1
        for line in lines:
            if not line:
                continue
            was_cut, self._is_cut = self._is_cut, False
            if was_cut and not line.startswith(b"#"):
                continue
            row = self._row(line)
            if row is None:
                continue
            if found and row[:2] == found[-1][:2]:  # of lines within one step of the clock, the mean
                same += 1
                found[-1][2][:3] = [a + (b - a) / same for a, b in zip(found[-1][2], row[2][:3])]  # noqa: B905 - 3.8
                self._doubts_last |= row[2][3] > 0
            else:
                found.append(row)
                same = 1
        if len(self._rest) > LONGEST:
            self._rest, self._is_cut = b"", True
            self._damaged("too long")
        self._rows += len(found)
        return found

    def _row(self, line: bytes) -> tuple[int, float, list[float]] | None:
        """The row of a line; None if there is none in it."""
        self._lines += 1
        self._first_ns = self._first_ns or self._now_ns
        try:
            text = self._text(line)
            if self._is_comment(text):
                return None
            if not self._first_line:
                self._first_line = text[:80]
            if self._layout is None:
                self._find_layout(text)
            values = self._values(text)
            return self._placed(values, text)
        except RefusedError as error:
            self._damaged(str(error), line)
            return None

    def _text(self, line: bytes) -> str:
        if len(line) > LONGEST:
            raise RefusedError("too long")
        try:
            text = line.decode("ascii")
        except UnicodeDecodeError:
            if not line.startswith(b"#"):
                raise RefusedError("not ASCII") from None
            text = line.decode("utf-8", "replace")
        if not text.replace("\t", " ").isprintable():
            raise RefusedError("not ASCII")
        return text.strip()

    def _is_comment(self, text: str) -> bool:
        """Whether it is a line of words; a banner in between says that the board was started anew."""
        if not text.startswith("#") and (text.startswith("{") or not _WORDS.search(text) or self._is_row(text)):
            return False
        self._comments += 1
        told = announced(text)
        if told is not None:
            self._banner = text[:200]
            shunt = _SHUNT.search(text)
            self._shunt_ohm = float(shunt[1]) * (1e-3 if shunt[2] else 1.0) if shunt else None
            if self._layout is None:  # a later one may be damaged
                self._layout = _accepted(told, self._volts is not None)
            if self._rows:
                self._breaks += 1
                self._broken()
        return True

    def _is_row(self, text: str) -> bool:
        """Whether it was meant as a row, with words in a column that is passed over, or with damage."""
        if self._layout is None or len(told := fields(text)) != len(self._layout.columns):
            return False
        numbers = sum(_NUMBER.fullmatch(field) is not None for field in told)
        return "" in self._layout or (self._rows > 0 and 2 * numbers >= len(told))

    def _find_layout(self, text: str) -> None:
        """That of JSON keys which tell their unit; else a banner is waited for, for a while."""
        if text.startswith("{"):
            told = of_keys(self._loaded(text))
            if told is not None:
                self._layout = _accepted(told, self._volts is not None)
                return
        if self._has_waited():
            raise MeterError(
                f"its lines, such as {self._first_line!r}, do not say what their columns are; describe them, such as "
                'columns = ["time ms", "voltage mV", "current uA", "power uW"] ("-" passes one over)'
            )
        raise RefusedError("before the columns were known")

    def _loaded(self, text: str) -> dict[str, Any]:
        try:
            loaded = json.loads(text, parse_float=str, parse_int=str)  # digits as they were sent
        except ValueError:
            loaded = None
        if not isinstance(loaded, dict):
            raise RefusedError("no JSON")
        return loaded

    def _values(self, text: str) -> dict[str, float]:
        """Quantity -> SI value of each column that counts."""
        assert self._layout is not None
        columns = self._layout.columns
        told: list[Any]
        if self._layout.is_json:
            loaded = self._loaded(text)
            told = [loaded.get(c.key) for c in columns]
        else:
            told = list(fields(text))
            if len(told) != len(columns):
                self._give_up(f"has {len(told)} columns, wanted {len(columns)}", text)
                raise RefusedError("wrong number of columns")
        values = {}
        for c, field in zip(columns, told):  # noqa: B905 - Python 3.8
            if not c.quantity:
                continue
            number = _NUMBER.fullmatch(field) if isinstance(field, str) else None
            if number is None:
                self._give_up(f"has {field!r} for {c.quantity}, wanted a number", text)
                raise RefusedError("not a number")
            values[c.quantity] = float(field) * c.factor
            if self._lines <= LOOKED_AT:
                decimals = len(number[1] or number[2] or "")
                self._decimals[c.quantity] = max(decimals, self._decimals.get(c.quantity, 0))
        if self._is_checked():
            self._check(values, columns, text)
        return values

    def _check(self, values: dict[str, float], columns: tuple[Column, ...], text: str) -> None:
        """Voltage x current against power: a line in which they do not agree has been damaged."""
        power, volts, amperes = (values[q] for q in QUANTITIES)
        if volts * amperes < 0 < power:  # the chips' power has no sign
            power = values["power"] = -power
        step = {c.quantity: c.factor * 10.0 ** -self._decimals.get(c.quantity, 0) for c in columns}
        rounding = abs(volts) * step["current"] + abs(amperes) * step["voltage"] + step["power"]
        rounding += self._power_steps * step["current"]
        if abs(volts * amperes - power) > AGREE * abs(volts * amperes) + rounding:
            ratio = f"{power / (volts * amperes):.3g} times" if volts * amperes else "not"
            self._give_up(f"tells a power that is {ratio} its voltage x current; see the units of columns", text)
            raise RefusedError("voltage x current is not power")

    def _give_up(self, why: str, text: str) -> None:
        """MeterError once lines failed for so long, and none was good."""
        if not self._rows and self._has_waited():
            words = ", ".join(self._layout.words()) if self._layout else ""
            raise MeterError(f"its line {text[:80]!r} {why} (columns: {words})")

    def _has_waited(self) -> bool:
        return self._now_ns - self._first_ns > UNDECIDED_NS

    # -----------------------------------------------------------------------------------------------------------------
    # Time

    def _placed(self, values: dict[str, float], text: str) -> tuple[int, float, list[float]] | None:
        distrusted, self._is_after_damage = self._is_after_damage and not self._is_checked(), False
        segment, clock_s, how = 0, self._now_ns * 1e-9, FOLLOWS
        if "time" in values:
            if self._is_repeated(values["time"], text):
                self._refused["came twice"] += 1
                self._repeats_ns = self._repeats_ns or self._now_ns
                self._doubts_last = True
                return None
            clock_s = values["time"]
            before = self._times.segment
            how = self._times.place(clock_s, self._resolution_s(), self._now_ns)
            if how == WAITS:
                self._doubts_last |= not self._is_checked()
                return None
            is_twice = how == SAME and text == self._latest and self._tick_before == 1
            self._latest = text
            if is_twice:
                self._refused["came twice"] += 1
                return None
            if how != SAME:
                self._tick, self._tick_before = 0, self._tick
            self._tick += 1
            if self._repeats_ns and self._now_ns - self._repeats_ns > REPEAT_NS // 4:
                self._times.segment += 1  # lines that were taken for repeats were not: it had been started anew
            self._repeats_ns = 0
            segment = self._times.segment
            self._breaks += segment != before
        elif self._rate_hz:
            before = self._count.segment
            clock_s = self._count.next_s(self._now_ns)
            segment = self._count.segment
            self._breaks += segment != before
        if distrusted and how != JUMPED:
            self._refused["beside a damaged line"] += 1
            return None
        row = [self._power(values), values.get("voltage", self._volts_or_nan()), values.get("current", float("nan"))]
        doubt, self._doubts_last = float(self._doubts_last), False
        return segment, clock_s, [*row, doubt]

    def _is_repeated(self, time_s: float, text: str) -> bool:
        seen_ns = self._history.pop(text, None)
        self._history[text] = self._now_ns if seen_ns is None else seen_ns
        if len(self._history) > HISTORY:
            del self._history[next(iter(self._history))]
        return seen_ns is not None and self._now_ns - seen_ns < REPEAT_NS and self._times.is_back(time_s)

    def _power(self, values: dict[str, float]) -> float:
        if "power" in values:
            return values["power"]
        return values.get("voltage", self._volts_or_nan()) * values["current"]

    def _volts_or_nan(self) -> float:
        return float("nan") if self._volts is None else float(self._volts)

    def _resolution_s(self) -> float:
        assert self._layout is not None
        factor = next(c.factor for c in self._layout.columns if c.quantity == "time")
        return float(factor * 10.0 ** -self._decimals.get("time", 0))

    def _clock_from(self) -> str:
        if self._layout is not None and "time" in self._layout:
            return "column"
        return "count" if self._rate_hz else "arrival"

    def _is_checked(self) -> bool:
        return self._layout is not None and all(q in self._layout for q in QUANTITIES)

    def _damaged(self, reason: str, line: bytes = b"") -> None:
        self._refused[reason] += 1
        if line and len(self._examples) < EXAMPLES:
            self._examples.append(f"{reason}: {line[:60]!a}")
        self._is_after_damage = True
        self._doubts_last |= self._rows > 0 and not self._is_checked()
        if self._layout is not None and "time" not in self._layout:
            self._count.begin()

    def _broken(self) -> None:
        """The clock begins anew."""
        self._times.begin()
        self._count.begin()
        self._history.clear()
        self._doubts_last = self._is_after_damage = False
        self._repeats_ns = 0


def _accepted(told: Layout, has_volts: bool) -> Layout:
    """A layout that the board told; MeterError if it is of no use."""
    try:
        return checked(told, has_volts)
    except LayoutError as error:
        raise MeterError(f"by its own words its {error}; describe them with the option columns") from error
