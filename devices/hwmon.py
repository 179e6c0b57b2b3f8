"""Power and energy sensors that the kernel shows as hwmon: graphics cards, supplies, INA chips on rails.

Source: Documentation/hwmon/sysfs-interface.rst. `powerN_input`, `powerN_average` are microwatts, `energyN_input`
microjoules, `inN_input` millivolts, `currN_input` milliamperes.

One chip may show the same hardware twice: as energyN and powerN. The counter is preferred, since it misses nothing
between two reads; the power stays as a channel whose parent is the counter, so that the two are never added.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgewatt.devices import sysfs
from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.harness.api import Channel, Device, Meter

# One step of the power register is a step of the shunt voltage, over the shunt, times a factor in volts.
# Data sheets: INA219 (SBOS448), INA220 (SBOS459): 10 uV, 20; INA226 (SBOS547), INA230 (SBOS601), INA231 (SBOS644):
# 2.5 uV, 25.
_POWER_STEP_V2 = {"ina219": 200e-6, "ina220": 200e-6, "ina226": 62.5e-6, "ina230": 62.5e-6, "ina231": 62.5e-6}
_INA3221_SHUNT_STEP_V = 40e-6  # INA3221 data sheet (SBOS576), 13-bit shunt register

# Labels of what feeds everything else that a chip shows.
_TOTALS = ("card", "pin", "pin1", "power total")
_MODULE_INPUTS = ("vin", "vdd_in", "pom_5v_in")  # of Jetson modules, whose chip is an ina3221; AGX ones have none


class Hwmon(AgentMeter):
    """One chip's power and energy sensors."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        rate_hz = float(getattr(device, "rate_hz", 100.0))
        return [cls._of(device, chip, sensors, rate_hz) for chip, sensors in _survey(device)[0]]

    @classmethod
    def _of(cls, device: Device, chip: Chip, sensors: Sequence[Sensor], rate_hz: float) -> Hwmon:
        update_s = chip.update_s
        if update_s:  # two reads per refresh show how often it refreshes; more only load the bus
            rate_hz = min(rate_hz, max(2 / update_s, 1.0))
        job: dict[str, Any] = {"rate_hz": rate_hz}
        # A register renewed more rarely than it is read shows its age by repeating; this is for the others.
        age_s = min(update_s or 1 / rate_hz, 1 / rate_hz)
        sensors = [
            replace(s, channel=replace(s.channel, age_s=age_s if s.channel.kind == "gauge" else None)) for s in sensors
        ]
        if any(s.is_product for s in sensors):
            files = {s.channel.name: [str(f) for f in s.files] for s in sensors}
            job |= {"source": "edgewatt.devices.hwmon:source", "params": {"files": files}}
            channels = [c for s in sensors for c in s.channels]
            scale = [1.0] * len(channels)
        else:
            job |= {"nodes": [{"path": str(s.files[0])} for s in sensors]}
            channels, scale = [s.channel for s in sensors], [1e-6] * len(sensors)
        return cls(device, chip.meter, tuple(channels), job, scale, clock=device.clock)

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        """Why sensors that one might expect are not there, each with the next step."""
        return _survey(device)[1]


def source(params: Mapping[str, Any]) -> tuple[list[str], Callable[[], list[float | None]]]:
    """Columns and a reading of rails that tell voltage and current: V, A and W of each, read next to each other.

    For the agent. `params["files"]` maps a rail to its files in millivolts and milliamperes.
    """
    from edgewatt.devices.agent.agent import MISSING, Node  # keeps its file open and counts what fails

    rails = {n: (Node(volts, n).read, Node(amperes, n).read) for n, (volts, amperes) in params["files"].items()}
    columns = [column for name in rails for column in (f"{name} voltage", f"{name} current", name)]

    def reading() -> list[float | None]:
        out: list[float | None] = []
        for read_mv, read_ma in rails.values():
            mv, ma = read_mv(), read_ma()
            volts = None if mv == MISSING else mv * 1e-3
            amperes = None if ma == MISSING else ma * 1e-3
            out += [volts, amperes, None if volts is None or amperes is None else volts * amperes]
        return out

    return columns, reading


@dataclass(frozen=True)
class Chip:
    """One hwmon folder: the driver's name, and the meter's name, which differs between two chips of one driver."""

    folder: Path
    driver: str
    meter: str

    @property
    def update_s(self) -> float | None:
        """How long one round of conversions takes, where the driver tells."""
        ms = sysfs.number(self.folder / "update_interval")
        return ms * 1e-3 if ms and ms > 0 else None


@dataclass(frozen=True)
class Sensor:
    """One quantity of a chip: the channel, and the file it is read from, or the two (mV, mA) it is the product of."""

    channel: Channel
    files: tuple[Path, ...]

    @property
    def is_product(self) -> bool:
        """Whether power is the product of two readings."""
        return len(self.files) == 2

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What `source` gives of it: voltage and current as read, and their product."""
        c = self.channel
        volts = replace(c, name=f"{c.name} voltage", quantity="voltage", unit="V", quantum=None)
        amperes = replace(c, name=f"{c.name} current", quantity="current", unit="A", quantum=None)
        return volts, amperes, c

    def watts(self) -> float | None:
        """Power now, of a gauge; None if it cannot be read."""
        values = [n for n in map(sysfs.number, self.files) if n is not None]
        return math.prod(values) * 1e-6 if len(values) == len(self.files) else None  # uW, or mV x mA


def chips_in(root: Path) -> list[Chip]:
    """Every chip that may measure power; those that only mirror a battery or charger are left to its own meter."""
    supplies = {p.name.replace("-", "_") for p in sysfs.folders(root / "class" / "power_supply", "*")}
    found = []
    for folder in sysfs.folders(root / "class" / "hwmon", "hwmon*"):
        driver = sysfs.text(folder / "name") or folder.name
        if driver not in supplies:
            found.append((folder, driver))
    drivers = [driver for _, driver in found]
    chips, seen = [], dict.fromkeys(drivers, 0)
    for folder, driver in found:
        name = f"hwmon-{driver}"
        if drivers.count(driver) > 1:  # the address is stable from boot to boot, the number of the hwmon folder is not
            link = folder / "device"
            name += f"-{link.resolve().name if link.is_symlink() else seen[driver]}"
            seen[driver] += 1
        chips.append(Chip(folder, driver, name))
    return chips


def _survey(device: Device) -> tuple[list[tuple[Chip, list[Sensor]]], list[str]]:
    """The chips with their sane sensors, and what is wrong with the others."""
    root = sysfs.root(device)
    if root is None:
        return [], []
    found: list[tuple[Chip, list[Sensor]]] = []
    problems: list[str] = []
    chips = chips_in(root)
    candidates = [(chip, _counters(chip), _gauges(chip)) for chip in chips]
    paths = {f"{chip.meter}/{s.channel.name}": s.files[0] for chip, counters, _ in candidates for s in counters}
    moved = sysfs.advances({k: p for k, p in paths.items() if sysfs.why_unreadable(p) is None}, {})
    for chip, counters, gauges in candidates:
        reasons = {s: _counter_problem(s, moved.get(f"{chip.meter}/{s.channel.name}")) for s in counters}
        all_zero = not any(r is None for r in reasons.values()) and all(s.watts() in (0, None) for s in gauges)
        reasons |= {s: _gauge_problem(s, all_zero) for s in gauges}
        problems += [f"{chip.meter} {s.channel.name}: {reason}" for s, reason in reasons.items() if reason]
        good = [s for s, reason in reasons.items() if reason is None]
        if good:
            found.append((chip, _with_parents(chip.driver, good)))
    if not any(counters or gauges for _, counters, gauges in candidates):
        problems.append(f"hwmon: none of {len(chips)} chips below {root}/class/hwmon measures power or energy")
    return found, problems


def _counter_problem(sensor: Sensor, advance: sysfs.Advance | None) -> str | None:
    """What is wrong with an energy counter; None if it goes up at a credible rate."""
    path = sensor.files[0]
    if reason := sysfs.why_unreadable(path):
        return reason
    if advance is None:
        return f"{path} does not hold a number; left out"
    if advance.joules == 0:
        return f"{path} stood still for {advance.over_s:.1f} s; left out"
    return None if advance.is_sane else f"{path} went {advance.watts:.3g} W, not credible; left out"


def _gauge_problem(sensor: Sensor, all_zero: bool) -> str | None:
    """What is wrong with a power gauge; None if it shows a credible power.

    A rail that is switched off shows 0 W and may be switched on in the run; a chip on which all is 0 W is not fitted.
    """
    for path in sensor.files:
        if reason := sysfs.why_unreadable(path):
            return reason
    watts = sensor.watts()
    if watts is None:
        return f"{sensor.files[0]} does not hold a number; left out"
    if not 0 <= watts <= sysfs.MOST_W:
        return f"{sensor.files[0]} says {watts:.3g} W, not credible; left out"
    return "reads 0 W, as everything of this chip; left out" if all_zero else None


def _counters(chip: Chip) -> list[Sensor]:
    """The energy counters of a chip; per-core ones are left out where the same chip counts whole sockets."""
    found = []
    for n, path in _numbered(chip, "energy", "input"):
        label = sysfs.text(chip.folder / f"energy{n}_label") or f"energy{n}"
        found.append(Sensor(_channel(chip, label, "energy", "J", "counter"), (path,)))
    whole = [s for s in found if s.channel.name.startswith("Esocket")]  # amd_energy: Esocket0, Ecore000 ...
    return whole or found


def _gauges(chip: Chip) -> list[Sensor]:
    """The power gauges of a chip: its own, else volts times amperes where the two surely belong together."""
    found = []
    numbers = dict(_numbered(chip, "power", "average")) | dict(_numbered(chip, "power", "input"))
    for n, path in sorted(numbers.items()):
        label = sysfs.text(chip.folder / f"power{n}_label") or f"power{n}"
        channel = _channel(chip, label, "power", "W", "gauge")
        if path.name.endswith("_average"):
            ms = sysfs.number(chip.folder / f"power{n}_average_interval")
            channel = replace(channel, averaging_s=ms * 1e-3 if ms and ms > 0 else None)
        elif chip.driver in _POWER_STEP_V2:
            shunt_uohm = sysfs.number(chip.folder / "shunt_resistor")
            step_w = _POWER_STEP_V2[chip.driver] / (shunt_uohm * 1e-6) if shunt_uohm and shunt_uohm > 0 else None
            # The chip averages over its own conversion time, which is what `update_interval` sets.
            channel = replace(channel, quantum=step_w, averaging_s=chip.update_s)
        found.append(Sensor(channel, (path,)))
    return found or _pairs(chip)


def _pairs(chip: Chip) -> list[Sensor]:
    """Rails of which voltage and current are told apart, matched by label, or by number where the maker does so.

    ina3221 labels only its voltages; its 4th current and 7th voltage are sums, not rails. For any other chip, a
    voltage and a current of the same number need not have to do with each other: unlabelled ones are left alone.
    """
    volts = {n: (p, sysfs.text(chip.folder / f"in{n}_label")) for n, p in _numbered(chip, "in", "input")}
    found = []
    for n, amperes in _numbered(chip, "curr", "input"):
        label = sysfs.text(chip.folder / f"curr{n}_label")
        if chip.driver == "ina3221":
            if n > 3 or n not in volts or volts[n][1] in (None, "NC"):
                continue
            path, name = volts[n]
        else:
            same = [p for p, of in volts.values() if of is not None and of == label]
            if len(same) != 1:
                continue
            path, name = same[0], label
        channel = _channel(chip, str(name), "power", "W", "gauge")
        shunt_uohm, mv = sysfs.number(chip.folder / f"shunt{n}_resistor"), sysfs.number(path)
        if chip.driver == "ina3221":
            step_a = _INA3221_SHUNT_STEP_V / (shunt_uohm * 1e-6) if shunt_uohm and shunt_uohm > 0 else None
            step_w = step_a * mv * 1e-3 if step_a and mv and mv > 0 else None
            samples = sysfs.number(chip.folder / "samples")
            # The driver counts the averaged samples in its update interval (drivers/hwmon/ina3221.c).
            channel = replace(channel, quantum=step_w, averaging_s=chip.update_s if samples else None)
        found.append(Sensor(channel, (path, amperes)))
    return found


def _numbered(chip: Chip, quantity: str, what: str) -> list[tuple[int, Path]]:
    """The files QUANTITYn_WHAT of a chip, by n."""
    found = []
    for path in chip.folder.glob(f"{quantity}*_{what}"):
        match = re.fullmatch(rf"{quantity}(\d+)_{what}", path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


def _channel(chip: Chip, label: str, quantity: str, unit: str, kind: Any) -> Channel:
    return Channel(label, quantity, unit, kind, f"{chip.driver} {label}", _boundary(chip.driver, label))


def _boundary(driver: str, label: str) -> str:
    """Where a driver's joules are counted, from its page in Documentation/hwmon or /gpu; "device" where none tells."""
    lower = label.lower()
    if driver in ("amdgpu", "radeon", "i915", "fam15h_power", "amd_energy", "zenpower"):
        return "package"
    if driver == "xe":
        return "package" if "pkg" in lower else "board"
    if driver == "nouveau":
        return "board"
    if driver.startswith("ina") or driver in ("ltc2945", "ltc2947", "max34417", "pac1934"):
        return "rails"
    if driver in ("power_meter", "ibmpowernv", "ibmaem"):
        return "system"  # as the firmware reports it; some boards mean the wall, some the supply's output
    if driver.endswith("psu") or lower.startswith(("pin", "pout")):
        return "psu-input" if lower.startswith("pin") else "psu-output" if lower.startswith("pout") else "psu"
    return "device"


def _with_parents(driver: str, sensors: Sequence[Sensor]) -> list[Sensor]:
    """The same sensors, each with a name of its own and the one that contains it."""
    names: set[str] = set()
    named = []
    for s in sensors:
        name = s.channel.name
        if name in names:  # energy1 and power1 of one label, or a label that occurs twice
            name = f"{name} {s.channel.quantity}"
        while name in names:
            name += "'"
        names.add(name)
        named.append(replace(s, channel=replace(s.channel, name=name)))
    counters = {_number(s): s.channel.name for s in named if s.channel.quantity == "energy"}
    inputs = (*_TOTALS, *(_MODULE_INPUTS if driver == "ina3221" else ()))
    totals = [s.channel.name for s in named if s.channel.name.lower() in inputs]
    out = []
    for s in named:
        parent = counters.get(_number(s)) if s.channel.quantity == "power" else None
        if parent is None and len(totals) == 1 and s.channel.name != totals[0]:
            parent = totals[0]
        out.append(replace(s, channel=replace(s.channel, parent=parent)))
    return out


def _number(sensor: Sensor) -> str:
    return "".join(re.findall(r"\d+", sensor.files[0].name)[:1])
