"""The temperatures of a Linux machine: hwmon chips, or thermal zones where there is no such chip.

Sources: Documentation/hwmon/sysfs-interface (millidegrees, tempN_label, tempN_crit), driver-api/thermal/sysfs-api.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewatt.devices.sysfs import folders, number, text

HOTTEST_C, COLDEST_C = 130.0, -30.0  # outside of it a "temperature" is an error code, such as -256 or -5700


@dataclass(frozen=True)
class Thermometer:
    """One temperature of the machine: name ("coretemp/Package id 0"), file in millidegrees, critical point if told."""

    name: str
    path: Path
    critical_c: float | None

    def celsius(self) -> float | None:
        """The temperature now, degrees C; None if it cannot be one (an unfitted or sleeping sensor)."""
        return celsius(number(self.path))


def celsius(millidegrees: float | None) -> float | None:
    """Degrees C of a sysfs reading; None for the codes sensors give when they have no temperature (0, -256000)."""
    if millidegrees is None or not math.isfinite(millidegrees) or millidegrees == 0:
        return None
    return millidegrees / 1000 if COLDEST_C <= millidegrees / 1000 <= HOTTEST_C else None


# Drivers whose temperature is the processor's, from Documentation/hwmon (coretemp, k10temp, ...), best first.
_PROCESSOR = (
    "coretemp",
    "k10temp",
    "zenpower",
    "cpu_thermal",
    "cpu-thermal",
    "soc_thermal",
    "x86_pkg_temp",
    "scpi_sensors",
)
_WHOLE = ("package", "tctl", "tdie")  # one sensor of the chip that stands for all its cores


def thermometers(sysfs: Path, limit: int = 8) -> tuple[Thermometer, ...]:
    """The machine's temperatures that read sanely now, the processor's first, at most `limit`.

    hwmon where it has any, else the thermal zones (which hwmon mirrors under other names: never both).
    Where a chip has a sensor for the whole package, those of its single cores are left out.
    """
    found = _hwmon_thermometers(sysfs) or _zone_thermometers(sysfs)
    sane = [t for t in found if t.celsius() is not None]

    def rank(t: Thermometer) -> tuple[int, bool]:
        chip, _, label = t.name.partition("/")
        order = next((i for i, p in enumerate(_PROCESSOR) if chip.startswith(p)), len(_PROCESSOR))
        return order, not label.lower().startswith(_WHOLE)

    return tuple(sorted(sane, key=rank)[:limit])


def _hwmon_thermometers(sysfs: Path) -> list[Thermometer]:
    found: list[Thermometer] = []
    for chip in folders(sysfs / "class" / "hwmon", "hwmon*"):
        name = text(chip / "name") or chip.name
        here = []
        for path in sorted(chip.glob("temp*_input")):
            stem = path.name.removesuffix("_input")
            label = text(chip / f"{stem}_label") or stem
            critical = celsius(number(chip / f"{stem}_crit")) or celsius(number(chip / f"{stem}_max"))
            here.append(Thermometer(f"{name}/{label}", path, critical))
        if any(t.name.partition("/")[2].lower().startswith(_WHOLE) for t in here):
            here = [t for t in here if not re.match(r"core \d", t.name.partition("/")[2].lower())]
        found += here
    return _distinct(found)


def _zone_thermometers(sysfs: Path) -> list[Thermometer]:
    found = []
    for zone in folders(sysfs / "class" / "thermal", "thermal_zone*"):
        trips = [p for p in sorted(zone.glob("trip_point_*_type")) if text(p) == "critical"]
        critical = celsius(number(zone / trips[0].name.replace("_type", "_temp"))) if trips else None
        found.append(Thermometer(text(zone / "type") or zone.name, zone / "temp", critical))
    return _distinct(found)


def _distinct(found: Sequence[Thermometer]) -> list[Thermometer]:
    """The same, names that occur twice (two sockets, two disks) told apart by a number."""
    seen: dict[str, int] = {}
    out = []
    for t in found:
        seen[t.name] = seen.get(t.name, 0) + 1
        out.append(t if seen[t.name] == 1 else Thermometer(f"{t.name} #{seen[t.name]}", t.path, t.critical_c))
    return out
