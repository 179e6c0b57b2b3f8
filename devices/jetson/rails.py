"""The power rails of a Jetson as its INA3221 (and, on Thor, INA238) chips show them in sysfs.

Sources: Documentation/hwmon/ina3221.rst and sysfs-interface.rst of the kernel for JetPack 5 and later; the rail_name,
in_voltage and in_current files of NVIDIA's 4.9 kernel for JetPack 4. INA3221 data sheet (SBOS576): 13-bit registers,
40 uV a step of the shunt voltage, 8 mV a step of the bus voltage. Folders are found, never numbered: hwmonN changes
from boot to boot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from edgewatt.devices.snapshot import Snapshot, natural
from edgewatt.harness.api import Channel

PATTERNS = tuple(
    f"/sys/bus/i2c/{where}/{folder}{names}"
    for where in ("devices/*", "drivers/ina*/*")
    for folder, names in (
        ("hwmon/hwmon*", ""),
        ("hwmon/hwmon*/", "name"),
        ("hwmon/hwmon*/", "in[1-3]_*"),
        ("hwmon/hwmon*/", "curr[1-3]_*"),
        ("hwmon/hwmon*/", "power[1-3]_*"),
        ("hwmon/hwmon*/", "shunt[1-3]_resistor"),
        ("hwmon/hwmon*/", "samples"),
        ("hwmon/hwmon*/", "update_interval"),
        ("iio:device*", ""),
        ("iio:device*/", "name"),
        ("iio:device*/", "rail_name_*"),
        ("iio:device*/", "in_*_input"),
    )
)
"""What `look` is asked for."""

LONGEST_NAME = 64  # characters; a board's labels are not trusted to be short
MOST_W = 500.0  # no rail of a module carries more; a reading above is a wrong unit or a broken sensor
BOUNDARY = "module"
_SHUNT_STEP_V = 40e-6  # INA3221 data sheet, table "register map": bits 3 to 15 of the shunt register, 40 uV each

TOTALS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails through which a whole module is fed: where there is one, the others are parts of it and never added to it."""

INSIDE = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rails taken as fed by another one. For AGX Orin nothing public settles it; the device file's `parents` overrides."""

MODULE_SHUNT_OHM = {"p3701": 2e-3, "p3767": 5e-3}
"""Module -> ohm of its shunts (the kernel's device trees tegra234-p3701 and -p3767), for boards that do not tell."""

COARSEST_SHUNT_OHM = 2e-3
"""The smallest shunt of any module above, so the coarsest step: what is assumed of one that nothing tells about."""


@dataclass(frozen=True)
class Rail:
    """One rail: the files it is read from, and what it read when it was looked at.

    `files` are millivolts and milliamperes, or microwatts alone where the chip multiplies itself.
    """

    name: str
    files: tuple[str, ...]
    watts: float
    volts: float | None
    shunt_ohm: float | None = None
    update_s: float | None = None  # one round of the chip's conversions
    averages: bool = False  # whether the chip tells that it averages over that round
    alarms: tuple[str, ...] = ()

    @property
    def is_product(self) -> bool:
        """Whether power is the product of two readings."""
        return len(self.files) == 2


def quantum_w(shunt_ohm: float | None, volts: float | None) -> float | None:
    """One step of the power of a rail at so many volts: 40 uV over the shunt, times the voltage."""
    return _SHUNT_STEP_V / shunt_ohm * volts if shunt_ohm and volts else None


def rails(seen: Snapshot) -> tuple[list[Rail], list[str]]:
    """The rails that read sanely, in the chips' order, and why others do not, each with its file."""
    found: list[Rail] = []
    problems: list[str] = []
    for folder in _chips(seen):
        here, why = _hwmon(seen, folder) if "/hwmon/" in folder else _iio(seen, folder)
        problems += why
        if here and all(r.watts == 0 for r in here):
            problems.append(f"{folder}: all its rails read 0 W, so nothing seems to be fitted there; left out")
        else:
            found += here
    twice = {r.name for r in found if [x.name for x in found].count(r.name) > 1}
    if twice:  # two supplies of one name are two rails; nobody may take one for the other
        found = [replace(r, name=f"{r.name} {_chip_of(r)}") if r.name in twice else r for r in found]
    return found, problems


def parents(names: Sequence[str], overrides: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """Rail -> the rail that contains it, None for those that may be added.

    `overrides` is the same by hand, "" for none.
    """
    total = next((t for t in TOTALS if t in names), None)
    found: dict[str, str | None] = {}
    for name in names:
        above = INSIDE.get(name)
        found[name] = None if name == total else above if above in names else total
        if overrides and name in overrides:
            found[name] = overrides[name] or None
    return found


def channels(
    names: Sequence[str],
    quanta: Mapping[str, float | None],
    *,
    overrides: Mapping[str, str] | None = None,
    age_s: float | None = None,
    averaging: Mapping[str, float | None] | None = None,
) -> tuple[Channel, ...]:
    """A power channel for every rail, each with what contains it."""
    above = parents(names, overrides)
    is_summed = sum(parent is None for parent in above.values()) > 1
    return tuple(
        Channel(
            name,
            "power",
            "W",
            "gauge",
            _covers(name, above[name], is_summed),
            BOUNDARY,
            quantum=quanta.get(name),
            parent=above[name],
            averaging_s=(averaging or {}).get(name),
            age_s=age_s,
        )
        for name in names
    )


def _covers(name: str, parent: str | None, is_summed: bool) -> str:
    if parent:
        return f"the module's rail {name}, a part of {parent}"
    return f"the module's rail {name}" if is_summed else f"the whole module, fed through {name}"


def _chip_of(rail: Rail) -> str:
    """The address of the chip ("1-0040"), which is the same after every boot."""
    return next(part for part in PurePosixPath(rail.files[0]).parts if part[:1].isdigit())


def _chips(seen: Snapshot) -> list[str]:
    """One folder for each chip; the same chip is found by bus and by driver."""
    by_place: dict[str, str] = {}
    for folder in sorted(seen.real, key=natural):
        if PurePosixPath(folder).name.startswith(("hwmon", "iio:device")):
            by_place.setdefault(seen.real[folder], folder)
    return [folder for folder in by_place.values() if "ina" in (seen.text(f"{folder}/name") or "")]


def _hwmon(seen: Snapshot, folder: str) -> tuple[list[Rail], list[str]]:
    driver = seen.text(f"{folder}/name") or ""
    update_ms = seen.number(f"{folder}/update_interval")
    update_s = update_ms * 1e-3 if update_ms and update_ms > 0 else None
    found: list[Rail] = []
    problems: list[str] = []
    if driver.startswith("ina238"):
        # The chip multiplies by itself and has no label; it measures what feeds the carrier of a Thor.
        name = seen.text(f"{folder}/in1_label") or "VIN"
        return _checked(seen, [Rail(name, (f"{folder}/power1_input",), 0.0, None, update_s=update_s)])
    for n in (1, 2, 3):
        name = (seen.text(f"{folder}/in{n}_label") or "")[:LONGEST_NAME]
        files = (f"{folder}/in{n}_input", f"{folder}/curr{n}_input")
        if name == "NC" or not (name or any(f in seen.files for f in files)):
            continue
        if seen.number(f"{folder}/in{n}_enable") == 0:
            problems.append(f"{name or files[0]}: its channel is switched off (in{n}_enable is 0); left out")
            continue
        if not name:
            problems.append(f"{files[0]}: has no label, so nobody knows which rail it is; left out")
            continue
        shunt_uohm = seen.number(f"{folder}/shunt{n}_resistor")
        found.append(
            Rail(
                name,
                files,
                0.0,
                None,
                shunt_ohm=shunt_uohm * 1e-6 if shunt_uohm and shunt_uohm > 0 else None,
                update_s=update_s,
                averages=bool(update_s and seen.number(f"{folder}/samples")),
                alarms=tuple(seen.paths(f"{folder}/curr{n}_*_alarm")),
            )
        )
    here, why = _checked(seen, found)
    return here, problems + why


def _iio(seen: Snapshot, folder: str) -> tuple[list[Rail], list[str]]:
    """JetPack 4: channels 0 to 2. The shunts are not told there."""
    found = []
    for n in (0, 1, 2):
        name = (seen.text(f"{folder}/rail_name_{n}") or "")[:LONGEST_NAME]
        if name and name != "NC":
            found.append(Rail(name, (f"{folder}/in_voltage{n}_input", f"{folder}/in_current{n}_input"), 0.0, None))
    return _checked(seen, found)


def _checked(seen: Snapshot, candidates: Sequence[Rail]) -> tuple[list[Rail], list[str]]:
    """Those that read sanely, with what they read, and what is wrong with the others."""
    found, problems = [], []
    for rail, told in ((r, _reading(seen, r)) for r in candidates):
        if isinstance(told, str):
            problems.append(f"{rail.name}: {told}; left out")
        else:
            found.append(told)
    return found, problems


def _reading(seen: Snapshot, rail: Rail) -> Rail | str:
    """The rail with what it read, or what is wrong with it."""
    why = next(_problems(seen, rail), None)
    if why:
        return why
    numbers = [seen.number(f) or 0 for f in rail.files]
    watts = numbers[0] * numbers[1] * 1e-6 if rail.is_product else numbers[0] * 1e-6
    if not 0 <= watts <= MOST_W:
        return f"{' x '.join(rail.files)} would be {watts:.3g} W, not credible"
    return replace(rail, watts=watts, volts=numbers[0] * 1e-3 if rail.is_product else None)


def _problems(seen: Snapshot, rail: Rail) -> Iterator[str]:
    for f in rail.files:
        if why := seen.problem(f):
            yield why
