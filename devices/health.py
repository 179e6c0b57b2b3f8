"""The machine's condition beside its energy: load, memory, temperature, clocks and how often it throttled.

Load and memory come from psutil; the rest from sysfs. A sensor that is missing is an absent channel, never a zero:
virtual machines often have neither temperature nor real clocks.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewatt.devices import host_facts, sysfs
from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.thermometers import celsius, thermometers
from edgewatt.harness.api import Channel, Device, Meter

RATE_HZ = 4.0  # each reading wakes the processor; conditions change in seconds
_MOST_CLOCKS = 32  # more lines than this tell a reader nothing
_LOAD_S = 0.1  # the shortest time over which psutil's utilisation means something
Reading = Callable[[], float | None]


class Health(AgentMeter):
    """One slow meter for everything that tells whether a measurement was made in good conditions."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        if not sysfs.is_here(device):
            return ()
        root = str(getattr(device, "sysfs", ""))
        channels = tuple(channel for channel, _ in _readings(root))
        job = {
            "rate_hz": min(RATE_HZ, float(getattr(device, "rate_hz", RATE_HZ))),
            "source": "edgewatt.devices.health:source",
            "params": {"sysfs": root, "columns": [c.name for c in channels]},
        }
        return [cls(device, "health", channels, job, None, clock=device.clock)]

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        """What this machine cannot tell of its condition."""
        root = sysfs.root(device)
        if root is None:
            return ()
        said = []
        if not thermometers(root):
            said.append("health: no temperature sensor, so heating up is not seen (usual in a virtual machine)")
        if not frequency_files(root):
            said.append("health: no cpufreq, so the processor's clocks are not seen (usual in a virtual machine)")
        return said


def source(params: Mapping[str, Any]) -> tuple[list[str], Callable[[], list[float | None]]]:
    """Columns and a reading, in SI units, of the channels named in `params["columns"]`. For the agent."""
    found = {channel.name: read for channel, read in _readings(params["sysfs"])}
    columns = list(params["columns"])
    time.sleep(_LOAD_S)  # the first utilisation is that since the line above
    readings = [found.get(c, _missing) for c in columns]  # one that has gone since it was found stays a gap
    return columns, lambda: [read() for read in readings]


def frequency_files(root: Path) -> dict[str, Path]:
    """ "cpu0" -> the file (kHz) of its clock, one processor per core: the threads of a core share it."""
    found: dict[tuple[int | None, int | str | None], tuple[str, Path]] = {}
    for cpu in sysfs.folders(root / "devices" / "system" / "cpu", "cpu[0-9]*"):
        path = cpu / "cpufreq" / "scaling_cur_freq"
        if sysfs.number(path):
            core = sysfs.number(cpu / "topology" / "core_id")
            package = sysfs.number(cpu / "topology" / "physical_package_id")
            found.setdefault((package, cpu.name if core is None else core), (cpu.name, path))
    return dict(found.values())


def throttle_files(root: Path, what: str) -> list[Path]:
    """The kernel's counters of thermal slowdowns, `what` being core or package: one per core, or one per package."""
    files: dict[tuple[int | None, int | None], Path] = {}
    for cpu in sysfs.folders(root / "devices" / "system" / "cpu", "cpu[0-9]*"):
        path = cpu / "thermal_throttle" / f"{what}_throttle_count"
        if sysfs.number(path) is not None:
            package = sysfs.number(cpu / "topology" / "physical_package_id")
            unit = sysfs.number(cpu / "topology" / "core_id") if what == "core" else None
            files.setdefault((package, unit), path)  # both threads of a core, all cores of a package, show the same
    return list(files.values())


def steady_nodes(root: Path) -> list[dict[str, Any]]:
    """Files the agent watches while it warms up: the processor's temperature, steady within 1 degree C."""
    return [{"name": t.name, "path": str(t.path), "scale": 1e-3, "tolerance": 1.0} for t in thermometers(root, limit=1)]


def _readings(root: str) -> list[tuple[Channel, Reading]]:
    """Every channel this machine can give now, and how it is read."""
    import psutil

    folder = Path(root)
    psutil.cpu_percent()  # the first call has nothing to compare with and always says 0; later ones look back to it
    found: list[tuple[Channel, Reading]] = [
        (Channel("utilisation", "utilisation", "1", "gauge", "all processors, mean"), _utilisation),
        (Channel("memory", "memory", "B", "gauge", "the machine, in use"), lambda: float(psutil.virtual_memory().used)),
    ]
    found += _clocks(folder)
    for t in thermometers(folder):
        found.append((Channel(t.name, "temperature", "degC", "gauge", t.name), functools.partial(_celsius, t.path)))
    for what in ("core", "package"):
        counters = throttle_files(folder, what)
        if counters:
            channel = Channel(
                f"{what}_throttle_count", "throttled", "1", "counter", f"all {what}s, slowdowns from heat since boot"
            )
            found.append((channel, functools.partial(_sum, counters)))
    return found


def _clocks(root: Path) -> list[tuple[Channel, Reading]]:
    """One clock per core; of a machine with very many, only the fastest: what the processor is allowed to run at."""
    files = frequency_files(root)
    if len(files) > _MOST_CLOCKS:
        channel = Channel("fastest cpu", "frequency", "Hz", "gauge", f"the fastest of {len(files)} cores")
        return [(channel, functools.partial(_fastest_hz, list(files.values())))]
    if files:
        return [
            (Channel(cpu, "frequency", "Hz", "gauge", f"the core of {cpu}"), functools.partial(_fastest_hz, [path]))
            for cpu, path in files.items()
        ]
    if root == Path("/sys") and host_facts.virtual(root, Path("/proc")) is False and _mean_hz() is not None:
        # /proc/cpuinfo; in a virtual machine (or on a Mac) it says a nominal clock, which is no reading
        channel = Channel("cpu", "frequency", "Hz", "gauge", "all processors, mean")
        return [(channel, _mean_hz)]
    return []


def _utilisation() -> float | None:
    """Share of the processors' time in use since the last call, 0 to 1."""
    import psutil

    return float(psutil.cpu_percent()) / 100


def _mean_hz() -> float | None:
    """The processors' mean clock as psutil tells it; None where it cannot.

    On kernels and boards it does not know, what it makes of /proc and /sys differs: None, no such function, an
    AttributeError or a ValueError from within.
    """
    import psutil

    try:
        return float(psutil.cpu_freq().current) * 1e6 or None
    except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError):
        return None


def _fastest_hz(files: Iterable[Path]) -> float | None:
    khz = [n for n in map(sysfs.number, files) if n]  # a processor that is off line has no clock
    return max(khz) * 1e3 if khz else None


def _celsius(path: Path) -> float | None:
    return celsius(sysfs.number(path))


def _sum(files: Sequence[Path]) -> float | None:
    counts = [n for n in map(sysfs.number, files) if n is not None]
    return float(sum(counts)) if len(counts) == len(files) else None


def _missing() -> float | None:
    return None
