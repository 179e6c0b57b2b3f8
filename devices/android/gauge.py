"""A phone's battery gauge: what leaves the battery, where there are no power rails, and only while nothing charges it.

Sources: Documentation/ABI/testing/sysfs-class-power (microvolts, microamperes, microampere hours; negative while
discharging), and what phones do instead: some tell milliamperes, some the opposite sign (home-assistant/android#2846,
perfetto#811 and #1441). Neither is guessed: they are told by what a phone can draw at all, or by how fast its charge
counter falls, or by the device file, and what was applied stands in every trace.
Gauges refresh every 0.2 to 30 s, so only long windows can be measured. Readings are V x I, sample by sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.android import odpm, powerstats
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import Channel, Device, Floats, Ints, Meter, Trace, UsageError

PATTERNS = tuple(
    f"/sys/class/power_supply/*/{name}"
    for name in ("type", "scope", "status", "current_now", "voltage_now", "charge_counter", "online")
)
TOOLS: dict[str, list[str]] = {}

STATUS = ["Unknown", "Charging", "Discharging", "Not charging", "Full"]
"""The words of `status`, in the kernel's order (power_supply_sysfs.c)."""

_FED = (STATUS.index("Charging"), STATUS.index("Not charging"), STATUS.index("Full"))

# Twice for each reading of the fastest gauges known, and out of step with them: reads that keep to one place between
# two refreshes do not show when those were. (Polled every 10 ms a gauge raises what it measures.)
RATE_HZ = 8.0 * powerstats.OFF_BEAT
UNITS = {"uA": 1e-6, "mA": 1e-3}
SIGNS = {1: "negative", -1: "positive"}
"""What `current_now` is while the battery is discharged; 1 is the kernel's rule."""

NOT_MA = 20_000  # a larger reading would be 20 A and more in milliamperes, which no phone draws
NOT_UA = 5_000  # a smaller one would be less than 5 mA in microamperes: 20 mW, less than a phone that is awake
_NAMES = ("battery", "Battery", "bms", "maxfg", "max77759fg", "max170xx_battery")
_INWARDS_A = -5e-3  # more than this into the battery is a charger's doing, not the gauge's noise
_WATCH_S, _WATCH_EACH_S = 6.0, 0.25
_WATCH = (
    'i=0; while [ $i -lt "$2" ]; do read -r u r < /proc/uptime; read -r c < "$1/current_now"; '
    'read -r q < "$1/charge_counter"; echo "$u $c $q"; i=$((i+1)); sleep "$3"; done'
)
_AGREE = 30.0  # the units are a factor of 1000 apart; this is about its root
_TOGETHER, _OFTEN = 0.9, 0.9  # see `refreshes`
_REGULAR, _CORRECTION = 0.75, 0.1  # see `_regular`
_FEW = 3  # a charge counter that moved fewer times may just have taken one coarse step


@dataclass(frozen=True)
class Gauge:
    """One battery's files, and how its current is to be read."""

    folder: str
    volts_per_unit: float
    unit: str = ""
    sign: int = 0
    why: str = ""  # how unit and sign were told
    has_counter: bool = False
    has_status: bool = False
    supplies: tuple[str, ...] = ()  # `online` of everything else that may feed the phone

    @property
    def name(self) -> str:
        return PurePosixPath(self.folder).name

    @property
    def drawn_a(self) -> float:
        """Amperes drawn from the battery, of one unit of `current_now`."""
        return -self.sign * UNITS[self.unit]


def found_in(seen: Snapshot) -> tuple[Gauge | None, str]:
    """The battery that can be read, its current's unit and sign still open; or why there is none."""
    candidates, why = [], []
    for path in seen.paths("/sys/class/power_supply/*/current_now"):
        folder = str(PurePosixPath(path).parent)
        name = PurePosixPath(folder).name
        if (seen.text(f"{folder}/type") != "Battery" and name not in _NAMES) or seen.text(
            f"{folder}/scope"
        ) == "Device":
            continue
        problem = seen.problem(path) or seen.problem(f"{folder}/voltage_now")
        if problem:
            why.append(problem)
            continue
        volts_per_unit = _volts_per_unit(seen.number(f"{folder}/voltage_now") or 0)
        if volts_per_unit is None:
            why.append(
                f"{folder}/voltage_now is {seen.number(f'{folder}/voltage_now')}, no voltage of a phone's battery"
            )
            continue
        candidates.append((folder, volts_per_unit))
    if not candidates:
        return None, "; ".join(why) or "no battery with current_now and voltage_now was found"
    folder, volts_per_unit = min(candidates, key=lambda c: _rank(PurePosixPath(c[0]).name))
    supplies = [p for p in seen.paths("/sys/class/power_supply/*/online") if not p.startswith(f"{folder}/")]
    gauge = Gauge(
        folder,
        volts_per_unit,
        has_counter=seen.number(f"{folder}/charge_counter") is not None,
        has_status=seen.text(f"{folder}/status") in STATUS,
        supplies=tuple(p for p in supplies if seen.number(p) is not None),
    )
    return gauge, ""


def _rank(name: str) -> int:
    return _NAMES.index(name) if name in _NAMES else len(_NAMES)


def _volts_per_unit(reading: int) -> float | None:
    """Microvolts by the kernel's rule, millivolts on some phones; one or two cells."""
    return next((scale for scale in (1e-6, 1e-3) if 2.5 <= reading * scale <= 10.0), None)


# ---------------------------------------------------------------------------------------------------------------------
# Unit and sign of the current


def told_unit(reading: int) -> tuple[str, str]:
    """The unit of a current by physics alone, and the reason; ("", reason) where one reading does not decide."""
    size = abs(reading)
    if size > NOT_MA:
        return "uA", f"current_now {reading} would be {size * 1e-3:.3g} A in mA, more than a phone can draw"
    if 0 < size < NOT_UA:
        return "mA", f"current_now {reading} would be {size * 1e-3:.3g} mA in uA, less than a phone that is awake draws"
    return "", f"current_now {reading} may be mA or uA: {size * 1e-3:.3g} A or {size * 1e-3:.3g} mA"


def told_sign(reading: int, status: str | None) -> tuple[int, str]:
    """The sign of the current (see SIGNS) by what `status` says meanwhile, and the reason; (0, reason) if nothing."""
    if reading == 0 or status not in ("Discharging", "Charging"):
        return 0, f"current_now is {reading} while status is {status or 'unknown'}, which tells no direction"
    return (
        1 if (reading < 0) == (status == "Discharging") else -1
    ), f"current_now is {reading} while status is {status}"


def by_counter(t_s: Floats, current: Floats, counter_uah: Floats) -> tuple[str, int, str]:
    """Unit and sign by how fast the charge counter moves, and the reason; ("", 0, reason) if it does not decide.

    Readings (n,) of `current_now` in its own unit and of `charge_counter` in microampere hours.
    """
    good = np.isfinite(current) & np.isfinite(counter_uah)
    t, c, q = t_s[good], current[good], counter_uah[good]
    moves = int(np.count_nonzero(np.diff(q)))
    if len(t) < 2 or moves < _FEW:
        return "", 0, f"the charge counter moved {moves} times, too few to tell a pace"
    coulombs = (q[-1] - q[0]) * 3.6e-3
    units_s = float(np.sum(np.diff(t) * (c[1:] + c[:-1]) / 2))
    if abs(units_s) < np.sum(np.diff(t) * np.abs(c[1:] + c[:-1]) / 2) / 2:
        return "", 0, "the current went both ways, so the charge counter tells little"
    for unit, amperes in UNITS.items():
        ratio = coulombs / (units_s * amperes) if units_s else np.inf
        if 1 / _AGREE <= abs(ratio) <= _AGREE:
            sign = 1 if ratio > 0 else -1  # the counter falls as the battery is discharged
            return unit, sign, f"the charge counter moved {abs(ratio):.2g} x as fast as current_now in {unit} says"
    return "", 0, "the charge counter moves neither as fast as mA nor as fast as uA would have it"


def calibrated(device: Device, gauge: Gauge) -> tuple[Gauge | None, str]:
    """The gauge with the unit and sign of its current, or why they cannot be told, with the next step."""
    options: Mapping[str, Any] = getattr(device, "options", {})
    for key, known in (("current_unit", UNITS), ("current_sign", SIGNS)):
        if key in options and options[key] not in known:
            raise UsageError(f"{device.name}: {key} is {options[key]!r}; wanted {' or '.join(map(repr, known))}")
    seen: Snapshot = device.seen  # type: ignore[attr-defined]
    reading = seen.number(f"{gauge.folder}/current_now") or 0
    unit, why_unit = told_unit(reading)
    sign, why_sign = told_sign(reading, seen.text(f"{gauge.folder}/status"))
    if "current_unit" in options:
        unit, why_unit = options["current_unit"], "the device file says so"
    if "current_sign" in options:
        sign, why_sign = options["current_sign"], "the device file says so"
    if not (unit and sign) and gauge.has_counter:
        counted_unit, counted_sign, why = by_counter(*_watched(device, gauge))
        if not unit:
            unit, why_unit = counted_unit, f"{why_unit}; {why}"
        if not sign:
            sign, why_sign = counted_sign, f"{why_sign}; {why}"
    if not unit or not sign:
        missing = [key for key, known in (("current_unit", unit), ("current_sign", sign)) if not known]
        said = "; ".join(dict.fromkeys([why_unit] * (not unit) + [why_sign] * (not sign)))
        return None, (
            f"{said}; try again off the charger and under load, or write {' and '.join(missing)} into the device file "
            "(docs/android.md)"
        )
    return replace(gauge, unit=unit, sign=sign, why=f"unit: {why_unit}; sign: {why_sign}"), ""


def _watched(device: Device, gauge: Gauge) -> tuple[Floats, Floats, Floats]:
    """Times (s), current_now and charge_counter, read for a few seconds in the phone's shell."""
    n = round(_WATCH_S / _WATCH_EACH_S)
    told = device.shell(_WATCH, gauge.folder, str(n), str(_WATCH_EACH_S), timeout_s=30.0 + _WATCH_S)  # type: ignore[attr-defined]
    rows = [line.split() for line in told.stdout.decode("utf-8", "replace").splitlines()]
    numbers = [[_number(x) for x in row] for row in rows if len(row) == 3]
    table = np.array(numbers or np.empty((0, 3)), np.float64)
    return table[:, 0], table[:, 1], table[:, 2]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def found_on(device: Device) -> tuple[Gauge | None, str]:
    """The gauge of a phone ready to be read, or why not; looked for once (it may take seconds)."""
    known: tuple[Gauge | None, str] | None = getattr(device, "_gauge", None)
    if known is None:
        gauge, why = found_in(device.seen)  # type: ignore[attr-defined]
        known = calibrated(device, gauge) if gauge else (None, f"{why}; attach a meter in the device file")
        device._gauge = known  # type: ignore[attr-defined]
    return known


# ---------------------------------------------------------------------------------------------------------------------


class BatteryGauge(AgentMeter):
    """Power drawn from the battery, its factors, whether something else feeds the phone, and the charge counter."""

    probe_s = 6.0  # gauges renew their readings every 0.25 to 2 s; slower ones show in the run itself

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        if not _is_wanted(device) or device.is_usb:  # type: ignore[attr-defined]
            return ()
        gauge, _ = found_on(device)
        return [cls(device, gauge)] if gauge else ()

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        if not _is_wanted(device):
            return ()
        if device.is_usb:  # type: ignore[attr-defined]
            return (
                "gauge: the cable charges the battery, so its gauge does not see what the phone uses; measure over "
                f"Wi-Fi adb instead: edgewatt devices --tcpip {getattr(device, 'address', '') or 'SERIAL'}, then "
                "unplug it",
            )
        gauge, why = found_on(device)
        return () if gauge else (f"gauge: {why}",)

    def __init__(self, device: Device, gauge: Gauge) -> None:
        self._gauge = gauge
        scale = f"current_now in {gauge.unit}, {SIGNS[gauge.sign]} while discharging"
        covers = "everything the battery feeds"
        channels = (
            Channel(
                "battery power", "power", "W", "gauge", f"{covers}: voltage_now x current_now ({scale})", "battery"
            ),
            Channel("battery charging", "charging", "1", "gauge", "1 while something else than the battery feeds it"),
            Channel("battery voltage", "voltage", "V", "gauge", "the battery"),
            Channel("battery current", "current", "A", "gauge", f"the battery, positive while discharging ({scale})"),
            Channel("battery charge", "charge", "C", "gauge", "left in the battery by its own counter"),
        )
        nodes: list[dict[str, Any]] = [
            {"path": f"{gauge.folder}/voltage_now", "name": "battery voltage"},
            {"path": f"{gauge.folder}/current_now", "name": "battery current"},
        ]
        if gauge.has_counter:
            nodes.append({"path": f"{gauge.folder}/charge_counter", "name": "battery charge"})
        if gauge.has_status:
            nodes.append({"path": f"{gauge.folder}/status", "name": "battery charging", "words": STATUS})
        nodes += [{"path": p, "name": p} for p in gauge.supplies]
        asked = float(getattr(device, "options", {}).get("rate_hz", RATE_HZ))
        super().__init__(device, "gauge", channels, {"rate_hz": min(RATE_HZ, asked), "nodes": nodes}, clock="boottime")

    def converted(self, raw: Floats) -> Floats:
        """The files' integers as the channels: W drawn, 1 or 0 for outside power, V, A drawn, C."""
        gauge, nan = self._gauge, np.full(len(raw), np.nan)
        k = 2 + gauge.has_counter
        volts, amperes = raw[:, 0] * gauge.volts_per_unit, raw[:, 1] * gauge.drawn_a
        charge = raw[:, 2] * 3.6e-3 if gauge.has_counter else nan
        status = raw[:, k] if gauge.has_status else nan
        online = raw[:, k + gauge.has_status :]
        is_fed = np.isin(status, _FED) | (online > 0).any(axis=1) | (amperes < _INWARDS_A)
        is_known = np.isfinite(status) | np.isfinite(amperes)
        return np.column_stack([volts * amperes, np.where(is_known, is_fed, np.nan), volts, amperes, charge])

    def _traced(self) -> Trace:
        trace = super()._traced()
        gauge, facts = self._gauge, dict(trace.facts)
        told = refreshes(trace.t_s, trace.column("battery current"), trace.column("battery voltage"))
        facts |= {
            "current_unit": gauge.unit,
            "current_sign": gauge.sign,
            "current_told_by": gauge.why,
            "update_period_s": told.period_s,
            "reads": len(trace.t_s),
            "refreshes": int(told.is_new.sum()) + bool(len(trace.t_s)),
        }
        wrong = self._contradiction(trace)
        if told.period_s:
            # A reading may be that of its moment or the mean since the one before it, so it stands for the moment it
            # was made or for half a period earlier. Midway between both it is off by a quarter either way.
            read_s = float(np.median(np.diff(trace.t_s)))
            fed = _since(trace.column("battery charging"), told.rows)
            values = trace.values[told.rows]
            values[:, 1] = fed
            trace = replace(trace, t_s=told.t_s - told.period_s / 4, values=values)
            facts |= {"read_s": read_s, "command_s": facts.get("read_s"), "missing": int(np.isnan(values).sum())}
        if wrong:
            values = trace.values.copy()
            values[:, 0] = np.nan
            trace = replace(trace, values=values)
            facts["errors"] = {**(facts.get("errors") or {}), "battery power": {"count": len(values), "text": wrong}}
        volts = trace.column("battery voltage")
        power = replace(
            trace.channels[0],
            quantum=UNITS[gauge.unit] * float(np.nanmedian(volts)) if np.isfinite(volts).any() else None,
            # Twice that quarter: the power at the ends is known as a mean over two periods, smoother than it is.
            age_s=told.period_s / 2 if told.period_s else None,
        )
        return replace(trace, channels=(power, *trace.channels[1:]), facts=facts)

    def _contradiction(self, trace: Trace) -> str:
        """What the charge counter has against the unit or the sign that was applied; "" where nothing."""
        gauge = self._gauge
        raw = trace.column("battery current") / gauge.drawn_a
        unit, sign, why = by_counter(trace.t_s, raw, trace.column("battery charge") / 3.6e-3)
        if not unit or (unit, sign) == (gauge.unit, gauge.sign):
            return ""
        return f"{why}, {SIGNS[sign]} while discharging; {gauge.unit}, {SIGNS[gauge.sign]}, was applied ({gauge.why})"


def _is_wanted(device: Device) -> bool:
    return device.kind == "android" and odpm.wanted(device, "gauge")


@dataclass(frozen=True)
class Refreshes:
    """When a gauge renewed its readings: every `period_s` (None: it did not show), seen for the first time at `is_new`.

    `rows` (m,) are the reads that show what it held at `t_s` (m,): a value that stayed was renewed in between.
    """

    period_s: float | None
    is_new: npt.NDArray[np.bool_]
    rows: Ints
    t_s: Floats


def refreshes(t_s: Floats, current: Floats, voltage: Floats) -> Refreshes:
    """The refreshes behind reads (n,) of the current and the voltage.

    A still load may leave the current as it is at most refreshes. Where it changes only as the voltage does, which is
    read more often than it is refreshed, both come of one register, and either tells of a refresh. Else the current
    does, the slower of both.
    """
    moved_a = np.concatenate([[False], np.diff(current) != 0])[: len(t_s)] & np.isfinite(current)
    moved_v = np.concatenate([[False], np.diff(voltage) != 0])[: len(t_s)] & np.isfinite(voltage)
    either = moved_a | moved_v
    read_s = float(np.median(np.diff(t_s))) if len(t_s) > 1 else 0.0
    is_one = (moved_a & moved_v).sum() >= _TOGETHER * moved_a.sum() and np.mean(either) < _OFTEN
    is_new = either if is_one else moved_a
    period_s = _pace_s(t_s[is_new], read_s)
    every = np.arange(len(t_s))
    if period_s is None or period_s < read_s / _OFTEN:
        return Refreshes(None, is_new, every, t_s)
    first = np.flatnonzero(is_new)  # reads that saw something new; made since the read before
    made = _regular((t_s[first] + t_s[first - 1]) / 2, period_s, read_s)
    rows, stamps = [], []
    begin = np.arange(made[0] - period_s, t_s[0] - period_s, -period_s)[::-1]
    rows.append(np.zeros(len(begin), np.int64))
    stamps.append(begin)
    for k, i in enumerate(first):
        last = t_s[-1] if k + 1 == len(first) else made[k + 1] - period_s / 2
        at = np.arange(made[k], max(last, made[k]) + 1e-9, period_s)
        rows.append(np.full(len(at), i))
        stamps.append(at)
    return Refreshes(period_s, is_new, np.concatenate(rows), np.concatenate(stamps))


def _pace_s(at_s: Floats, read_s: float) -> float | None:
    """Mean time between changes (n,), without those that span several refreshes; None for too few."""
    if len(at_s) <= _FEW:
        return None
    spans = np.diff(at_s)
    return float(np.mean(spans[spans <= 1.5 * np.quantile(spans, 0.25) + 1.01 * read_s]))


def _regular(made_s: Floats, period_s: float, read_s: float) -> Floats:
    """Times of refreshes (n,), each known to half a read, on a straight line where they keep to one within that."""
    turn = np.zeros(len(made_s))
    expected = made_s[0]
    for k in range(1, len(made_s)):  # counted from where a slowly corrected clock of that period expects them
        turns = max(1.0, np.round((made_s[k] - expected) / period_s))
        expected += turns * period_s
        expected += _CORRECTION * (made_s[k] - expected)
        turn[k] = turn[k - 1] + turns
    line = np.polynomial.Polynomial.fit(turn, made_s, 1)(turn)
    return np.asarray(line if np.max(np.abs(line - made_s)) <= _REGULAR * read_s else made_s)


def _since(fed: Floats, rows: Ints) -> Floats:
    """For each of the rows whether anything fed the phone at it or at a read after it, up to the next row's."""
    after = np.append(rows[1:], len(fed))
    return np.array([np.nanmax(np.append(fed[i : max(j, i + 1)], fed[i])) for i, j in zip(rows, after, strict=True)])
