"""A file that any other instrument recorded (Monsoon, Otii, Joulescope, a power analyser), as a meter of a run.

    --meter file:supply.csv,power="P_main mW",boundary=dc-input

CSV of any kind or Parquet. A column is known by its unit in the header ("Main(mA)", "power_w") or is named by an
option: time, power, voltage, current, energy. Where current stands alone, `volts` tells the voltage. The instrument
records on its own while the run goes on; the file is read when the run is over, or later by `edgewatt attach`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.devices import table
from edgewatt.devices.agent.agent import CLOCK, now_ns
from edgewatt.devices.wiring import Wiring, refuse_rest
from edgewatt.harness.api import Channel, Device, Floats, HarnessError, Meter, Trace, UsageError

ROLES = ("time", "power", "voltage", "current", "energy")
CLOCKS = {"pattern": None, "realtime": time.CLOCK_REALTIME, "monotonic": time.CLOCK_MONOTONIC, "boottime": None}
NUMBERS = ("volts", "rate_hz", "clock_bound_s", "wait_s")
OPTIONS = (*ROLES, *NUMBERS, "clock")
QUIET_S = 1.5  # a file that has not grown for so long is taken to be finished
WAIT_S = 10.0


class Recording(Meter):
    """One file. Its clock is its own, tied to the device's by pulses, unless `clock` names one of the harness's."""

    name = "file"
    period_s = 0.1  # what is recorded after the last pulse
    shares_clock = False

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self._path = path
        self._wiring, rest = Wiring.of("file", options)
        refuse_rest("file", rest.keys() - set(OPTIONS), OPTIONS)
        self._columns = {k: str(rest[k]) for k in ROLES if k in rest}
        numbers = {k: _positive(k, rest[k]) for k in NUMBERS if k in rest}
        self._volts, self._rate_hz = numbers.get("volts"), numbers.get("rate_hz")
        self._wait_s, self._bound_s = numbers.get("wait_s", WAIT_S), numbers.get("clock_bound_s")
        self._clock_of = str(rest.get("clock", "pattern"))
        if self._clock_of not in CLOCKS:
            raise UsageError(f"file: clock is {self._clock_of!r}; wanted {', '.join(CLOCKS)}")
        self.shares_clock = self._clock_of != "pattern"
        if self.shares_clock and self._bound_s is None:
            raise UsageError(
                f"file: clock={self._clock_of} needs clock_bound_s, how far its stamps may be off (s): nothing in the "
                "file tells; or leave clock out, and the run plays pulses that do"
            )
        if self.shares_clock and "time" not in self._columns and self._rate_hz:
            raise UsageError(f"file: clock={self._clock_of} needs a time column, not rate_hz")
        self.clock = CLOCK if self.shares_clock else "recording"
        self.channels = (self._channel("energy" if "energy" in self._columns else "power"),)
        self._lead_s: tuple[float, ...] = ()

    @classmethod
    def attached_to(cls, device: Device, address: str, **options: Any) -> Recording:
        if not address:
            raise UsageError("file: wanted the recording's path: file:PATH")
        return cls(Path(address).expanduser(), options)

    def start(self) -> None:
        """Nothing yet: the instrument records. UsageError if there is no folder for its file."""
        if not self._path.absolute().parent.is_dir():
            raise UsageError(
                f"file {self._path}: there is no folder {self._path.absolute().parent}; make it, or mend the path"
            )
        if self._path.is_dir():
            raise UsageError(f"file {self._path}: is a folder; name the file that is recorded")
        self._lead_s = (self._ahead_s(),)

    def stop(self) -> Trace:
        """What was recorded; empty, with the reason in facts["ended"], where there is nothing to read."""
        self._lead_s = (*self._lead_s, self._ahead_s())
        until, size, since = time.monotonic() + self._wait_s, -1, time.monotonic()
        while (now := time.monotonic()) < until:
            found = self._path.stat().st_size if self._path.is_file() else -1
            if found != size:
                size, since = found, now
            elif size > 0 and now - since >= QUIET_S:
                break
            time.sleep(0.1)
        try:
            if not self._path.is_file():
                raise HarnessError(f"{self._path} is not there")
            return self.read()
        except Exception as error:  # whatever is in a file of others, it must not cost the run
            why = str(error) if isinstance(error, HarnessError) else f"{self._path}: cannot be read ({error!r})"
            how = f"; mend it and attach it to the stored run: edgewatt attach RUN file:{self._path}"
            nothing = np.empty((0, len(self.channels)))
            return Trace(
                self.name, self.clock, self.channels, np.empty(0), nothing, self._facts() | {"ended": f"{why}{how}"}
            )

    def read(self) -> Trace:
        """What is in the file now. HarnessError if it is not what was said, naming the columns that were found."""
        seen = table.read(self._path)
        columns = self._chosen(seen)
        t_s = columns.pop("time", None)
        if t_s is None:
            assert self._rate_hz
            t_s = np.arange(len(next(iter(columns.values())))) / self._rate_hz
        if "power" not in columns and "energy" not in columns:
            columns = {"power": columns["current"] * columns.get("voltage", self._volts or 0.0), **columns}
        channels = [self._channel(role) for role in columns]
        values = np.column_stack(list(columns.values()))
        t_s, values, told = _rising(self._path, t_s, values)
        if self.shares_clock:
            t_s = t_s - np.mean(self._lead_s or [self._ahead_s()])
        facts = self._facts() | told | {"lines_skipped": seen.skipped, "missing": int(np.isnan(values).sum())}
        if len(t_s) > 1:
            apart = np.diff(t_s)
            facts |= {"rate_hz": float(1 / np.median(apart)), "gap_max_s": float(apart.max()),
                      "gap_p99_s": float(np.quantile(apart, 0.99))}  # fmt: skip
        return Trace(self.name, self.clock, tuple(channels), t_s, values, facts)

    def _channel(self, role: str) -> Channel:
        if role == "power":
            return self._wiring.channel(age_s=0.0)
        w = self._wiring
        if role == "energy":
            covers = w.covers or f"all that it feeds ({w.boundary})"
            return Channel("energy", "energy", "J", "counter", covers, w.boundary, gain_error=w.gain_error, age_s=0.0)
        return Channel(role, role, {"voltage": "V", "current": "A"}[role], "gauge", f"{role} of the supply", w.boundary)

    def _ahead_s(self) -> float:
        """How far the recording's clock, where it is one of ours, is ahead of the trace's."""
        clock = CLOCKS[self._clock_of]
        return 0.0 if clock is None else time.clock_gettime(clock) - now_ns() / 1e9

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"file": self._path.name, "wiring": self._wiring.facts(), "clock_of": "recording"}
        if self.shares_clock:  # a clock that was set meanwhile is off by as much
            moved_s = max(self._lead_s, default=0.0) - min(self._lead_s, default=0.0)
            facts |= {"clock_of": "harness", "clock_bound_s": (self._bound_s or 0.0) + moved_s}
        return facts

    def _chosen(self, seen: table.Table) -> dict[str, Floats]:
        """The columns of each role in SI units."""
        found = {role: self._named(seen, role, text) for role, text in self._columns.items()}
        by_unit: dict[str, list[str]] = {}
        for name in seen.names:
            unit = ("time", 1.0) if name in seen.dated else table.unit_of(table.split(name)[1])
            if unit:
                by_unit.setdefault(unit[0], []).append(name)
        wanted = [r for r in ("time", "power", "voltage", "current") if r not in found]
        if self._rate_hz:
            wanted.remove("time")
        if "energy" in found:
            wanted = [r for r in wanted if r == "time"]
        for role in wanted:
            names = by_unit.get(role, [])
            needed = role in ("time", "power") or ("power" not in found and (role == "current" or self._volts is None))
            if len(names) == 1:
                found[role] = self._named(seen, role, names[0])
            elif len(names) > 1 and needed:
                raise HarnessError(f"{self._path}: {role} may be any of {_listed(names)}; say which, {role}=NAME")
        if "time" not in found and not self._rate_hz:
            raise HarnessError(
                f"{self._path}: has the columns {_listed(seen.names)}, none with a unit of time; "
                'name it, time="NAME ms", or tell rate_hz'
            )
        if self._volts is not None and "power" not in found:
            found.pop("voltage", None)
        has_product = "current" in found and ("voltage" in found or self._volts is not None)
        if not ("energy" in found or "power" in found or has_product):
            raise HarnessError(
                f"{self._path}: has the columns {_listed(seen.names)}; no power by its unit: "
                'name it, power="NAME mW", or voltage and current, or current and volts=VOLTAGE'
            )
        order = [r for r in ("time", "power", "energy", "voltage", "current") if r in found]
        return {r: found[r] for r in order}

    def _named(self, seen: table.Table, role: str, text: str) -> Floats:
        """The column that `text` names, its unit in it or in the header, in SI."""
        stem, unit = table.split(text)
        names = {table.split(n)[0]: n for n in reversed(seen.names)}
        places = ((text, ""), (names.get(text, ""), ""), (stem, unit), (names.get(stem, ""), unit))
        name, told = next((p for p in places if p[0] in seen.columns), ("", ""))
        if not name:
            raise HarnessError(f"{self._path}: has no column {text!r} for {role}; it has {_listed(seen.names)}")
        factor = ("time", 1.0) if name in seen.dated else table.unit_of(told or table.split(name)[1])
        if factor is None:
            raise HarnessError(
                f'{self._path}: the unit of {name!r} is not told; say it with the name, {role}="{name} UNIT"'
            )
        if factor[0] != role:
            raise HarnessError(f"{self._path}: {text!r} is in a unit of {factor[0]}, wanted one of {role}")
        return seen.columns[name] * factor[1]


def _rising(path: Path, t_s: Floats, values: Floats) -> tuple[Floats, Floats, dict[str, int]]:
    """Rows in order of time; of rows with one stamp the mean, so that no energy is lost. HarnessError if times fall."""
    there = np.isfinite(t_s)
    told = {"rows_without_time": int(np.sum(~there))}
    t_s, values = t_s[there], values[there]
    if not len(t_s):
        raise HarnessError(f"{path}: has no rows with a time")
    back = np.flatnonzero(np.diff(t_s) < 0)
    if len(back):
        raise HarnessError(
            f"{path}: its times fall back at row {back[0] + 2} ({t_s[back[0]]:.10g} to {t_s[back[0] + 1]:.10g}); "
            "keep one recording in a file"
        )
    first = np.flatnonzero(np.diff(t_s, prepend=-np.inf) > 0)
    if len(first) < len(t_s):
        told["rows_with_one_stamp"] = len(t_s) - len(first)
        is_there = np.isfinite(values)
        n = np.add.reduceat(is_there.astype(np.float64), first, axis=0)
        total = np.add.reduceat(np.where(is_there, values, 0.0), first, axis=0)
        values = np.where(n > 0, total / np.maximum(n, 1), np.nan)
        t_s = t_s[first]
    return t_s, values, told


def _positive(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if isinstance(value, bool) or not 0 < number < 1e9:
        raise UsageError(f"file: {key} is {value!r}; wanted a number above 0")
    return number


def _listed(names: Any) -> str:
    return ", ".join(repr(n) for n in names)
