"""RAPL: the energy counters of x86 processors, as the kernel's powercap interface shows them.

Source: Documentation/power/powercap/powercap.rst and drivers/powercap/intel_rapl_common.c. `energy_uj` counts
microjoules and starts at 0 again after `max_energy_range_uj`. The hardware adds to it about every millisecond, in steps
the interface does not tell (15.3 and 61 uJ are common), so the quantum stays unknown; no accuracy is published either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewatt.devices import sysfs
from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.harness.api import Channel, Device, Meter

_PSYS_PROBE_S = 0.3  # long enough that a counter refreshed every 100 ms is judged within a third
_RENEWED_S = 1e-3  # "updated every ~1msec": Intel SDM volume 3B, package energy status register
_PART_PATIENCE_S = 0.25  # a part that draws 1 mW adds a step of 61 uJ every 61 ms
_ZONE = re.compile(r"[a-z]+-rapl(-mmio)?:\d+(:\d+)?")


class Rapl(AgentMeter):
    """The processor's counters: packages, what they contain, memory beside them, and the platform around them."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        zones, _ = _survey(device)
        if not zones:
            return ()
        return [
            cls(
                device,
                "rapl",
                _channels(zones),
                {"rate_hz": getattr(device, "rate_hz", 100.0), "nodes": [{"path": str(z.counter)} for z in zones]},
                [1e-6] * len(zones),
                clock=device.clock,
            )
        ]

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        """Why counters that one might expect are not there, each with the next step."""
        return _survey(device)[1]


@dataclass(frozen=True)
class Zone:
    """One powercap zone: `key` is the folder's name ("intel-rapl:0:1"), `name` the maker's ("package-0", "dram")."""

    key: str
    name: str
    folder: Path

    @property
    def counter(self) -> Path:
        return self.folder / "energy_uj"

    @property
    def wraps_at_uj(self) -> int | None:
        return sysfs.number(self.folder / "max_energy_range_uj") or None

    @property
    def is_platform(self) -> bool:
        return self.name.startswith("psys")


def zones_in(root: Path) -> list[Zone]:
    """Every zone once, whether the tree is flat, nested or both, as in a real /sys.

    `intel-rapl-mmio` shows a package's counter a second time by another way: left out where the first way is there.
    """
    found: dict[str, Zone] = {}
    top = root / "class" / "powercap"
    for folder in [*sysfs.folders(top, "*-rapl*:*"), *sysfs.folders(top, "*-rapl*:*/*-rapl*:*")]:
        if not _ZONE.fullmatch(folder.name) or not (folder / "energy_uj").exists():
            continue
        found.setdefault(folder.name, Zone(folder.name, sysfs.text(folder / "name") or folder.name, folder))
    direct = {z.name for key, z in found.items() if "-mmio" not in key}
    return [z for key, z in found.items() if not ("-mmio" in key and (direct & {z.name, _parent_name(z, found)}))]


def _parent_name(zone: Zone, zones: Mapping[str, Zone]) -> str:
    """Name of the zone this one lies in ("" for one at the top)."""
    parent = zones.get(zone.key.rpartition(":")[0])
    return parent.name if parent else ""


def _survey(device: Device) -> tuple[list[Zone], list[str]]:
    """The zones that count, and what is wrong with the others."""
    root = sysfs.root(device)
    if root is None:
        return [], []
    zones = zones_in(root)
    if not zones:
        return [], [
            f"RAPL: no zone below {root}/class/powercap: a virtual machine or container hides it, the processor has "
            "none, or its driver is not loaded (sudo modprobe intel_rapl_msr, for AMD too)"
        ]
    problems = []
    for reason in {z.key: sysfs.why_unreadable(z.counter) for z in zones}.values():
        if reason:
            problems.append(f"RAPL is there, but {reason}")
    readable = [z for z in zones if sysfs.why_unreadable(z.counter) is None]
    moved = _advances(readable)
    good = []
    for zone in readable:
        advance = moved[zone.key]
        if advance is None:
            problems.append(f"RAPL: {zone.counter} does not hold a number; left out")
        elif advance.joules == 0:
            problems.append(f"RAPL: {zone.name} ({zone.counter}) stood still for {advance.over_s:.1f} s; left out")
        elif not advance.is_sane:
            problems.append(f"RAPL: {zone.name} ({zone.counter}) went {advance.watts:.3g} W, not credible; left out")
        else:
            good.append(zone)
    watts = {z.key: a.watts for z in good if (a := moved[z.key]) is not None}
    packages_w = sum(watts[z.key] for z in good if z.name.startswith("package"))
    platform_w = sum(watts[z.key] for z in good if z.is_platform)
    if platform_w and platform_w < 0.8 * packages_w:
        # Many makers leave psys uncalibrated (turbostat's manual warns of it); a whole less than its part is no whole.
        problems.append(
            f"RAPL: psys shows {platform_w:.3g} W, less than the packages it contains ({packages_w:.3g} W); left out"
        )
        good = [z for z in good if not z.is_platform]
    return good, problems


def _advances(zones: Sequence[Zone]) -> dict[str, sysfs.Advance | None]:
    """How far each zone's counter goes: the whole first, given time; then the parts, which refresh with the whole."""
    whole = [z for z in zones if z.key.count(":") == 1]
    parts = [z for z in zones if z not in whole]
    at_least_s = _PSYS_PROBE_S if any(z.is_platform for z in whole) else 0.02
    moved = sysfs.advances(
        {z.key: z.counter for z in whole}, {z.key: z.wraps_at_uj for z in whole}, at_least_s=at_least_s
    )
    return moved | sysfs.advances(
        {z.key: z.counter for z in parts}, {z.key: z.wraps_at_uj for z in parts}, patience_s=_PART_PATIENCE_S
    )


def _channels(zones: Sequence[Zone]) -> tuple[Channel, ...]:
    """One counter per zone; a part carries its package's name before its own, so that names differ."""
    by_key = {z.key: z for z in zones}
    platforms = [z for z in zones if z.is_platform]
    platform = platforms[0].name if len(platforms) == 1 else None
    channels = []
    for zone in zones:
        inside = _parent_name(zone, by_key)
        prefix = inside or _package_of(zone)
        name = f"{prefix}/{zone.name}" if prefix else zone.name
        wraps_uj = zone.wraps_at_uj
        boundary, covers, parent = _place(zone, inside or None, platform)
        channels.append(
            Channel(
                name,
                "energy",
                "J",
                "counter",
                covers,
                boundary,
                parent=parent,
                wraps_at=wraps_uj * 1e-6 if wraps_uj else None,
                age_s=_RENEWED_S,
            )
        )
    return tuple(channels)


def _package_of(zone: Zone) -> str:
    """A name for the package of a part whose own zone is unreadable or dead: "zone-0" by the folder's numbers."""
    numbers = zone.key.split(":")[1:]
    return f"zone-{numbers[0]}" if len(numbers) == 2 else ""


def _place(zone: Zone, package: str | None, platform: str | None) -> tuple[str, str, str | None]:
    """(boundary, what it covers, the channel that contains it) of one zone."""
    if zone.is_platform:
        return "board", "the platform behind the processor's power delivery (RAPL psys)", None
    if zone.name == "dram":  # the package domain leaves memory out (Intel SDM vol. 3B, 16.10)
        return "dram", f"memory of {package or 'the processor'}", platform
    if zone.name.startswith("package"):
        return "package", f"processor {zone.name}: cores, caches, graphics, memory controller", platform
    words = {"core": "processor cores (on AMD: one core)", "uncore": "graphics of the processor"}.get(
        zone.name, zone.name
    )
    return "rails", f"{words} of {package}" if package else words, package or platform
