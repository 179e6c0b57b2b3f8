"""The battery's own gauge: what a laptop draws while nothing charges it.

Source: Documentation/ABI/testing/sysfs-class-power and Documentation/power/power_supply_class.rst: `power_now` is in
microwatts, `current_now` in microamperes, `voltage_now` in microvolts. Drivers disagree on the sign, so the size is
taken from the reading and the sign from `status`. Gauges refresh slowly (from 0.2 s to 30 s): long windows only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewatt.devices import sysfs
from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.harness.api import Channel, Device, Meter

# Reading a gauge goes over a slow bus and wakes its driver; polled every 10 ms it raises what it measures.
RATE_HZ = 5.0
_LEAST_W, _MOST_W = 0.05, 500.0  # a draw outside of it is a wrong unit: 12 mA said to be 12 uA is 0.0001 W


class Battery(AgentMeter):
    """One battery: the power that leaves it (negative while it is charged), and whether something charges it."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        return [cls._of(device, folder) for folder, problem in _survey(device) if problem is None]

    @classmethod
    def _of(cls, device: Device, folder: Path) -> Battery:
        name = folder.name
        channels = (
            Channel(f"{name} power", "power", "W", "gauge", f"what battery {name} feeds", "battery", age_s=1 / RATE_HZ),
            Channel(f"{name} charging", "charging", "1", "gauge", f"{name}: 1 while something else feeds the device"),
            Channel(f"{name} voltage", "voltage", "V", "gauge", f"battery {name}"),
        )
        job = {
            "rate_hz": min(RATE_HZ, float(getattr(device, "rate_hz", RATE_HZ))),
            "source": "edgewatt.devices.battery:source",
            "params": {"folder": str(folder)},
        }
        return cls(device, f"battery-{name}", channels, job, None, clock=device.clock)

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        """Why a battery is not used as a meter, each with the next step."""
        return [f"battery {folder.name}: {problem}" for folder, problem in _survey(device) if problem is not None]


def source(params: Mapping[str, Any]) -> tuple[list[str], Callable[[], list[float | None]]]:
    """Columns and a reading of one battery: W drawn from it, 1 or 0 for external power, V. For the agent."""
    folder = Path(params["folder"])

    def reading() -> list[float | None]:
        external = is_on_external_power(folder)
        watts = draw_w(folder)
        microvolts = sysfs.number(folder / "voltage_now")
        return [
            watts,
            None if external is None else float(external),
            None if microvolts is None else microvolts * 1e-6,
        ]

    return ["power", "charging", "voltage"], reading


def batteries_in(root: Path) -> list[Path]:
    """The batteries that feed the machine: not those of a mouse (`scope` Device), nor an empty bay."""
    return [
        folder
        for folder in sysfs.folders(root / "class" / "power_supply", "*")
        if sysfs.text(folder / "type") == "Battery"
        and sysfs.text(folder / "scope") != "Device"
        and sysfs.text(folder / "present") != "0"
    ]


def draw_w(folder: Path) -> float | None:
    """Power that leaves a battery now, in watts: negative while it charges; None if the gauge does not tell."""
    microwatts = sysfs.number(folder / "power_now")
    if microwatts is None:
        factors = [sysfs.number(folder / name) for name in ("current_now", "voltage_now")]
        numbers = [n for n in factors if n is not None]
        if len(numbers) < 2:
            return None
        microwatts = round(math.prod(numbers) * 1e-6)
    # Full, Not charging, Unknown: the reading has no direction, and the battery is not what feeds the device.
    sign = {"Discharging": 1, "Charging": -1}.get(sysfs.text(folder / "status") or "")
    return None if sign is None else sign * abs(microwatts) * 1e-6


def is_on_external_power(folder: Path) -> bool | None:
    """Whether something else than this battery feeds the device; None if neither battery nor adapter tells."""
    adapters = [
        sysfs.number(p / "online")
        for p in sysfs.folders(folder.parent, "*")
        if sysfs.text(p / "type") in ("Mains", "USB", "USB_PD", "USB_C", "Wireless")
        and sysfs.text(p / "scope") != "Device"
    ]
    if any(online is not None and online > 0 for online in adapters):
        return True
    status = sysfs.text(folder / "status")
    return None if status in (None, "Unknown") else status != "Discharging"


def _survey(device: Device) -> list[tuple[Path, str | None]]:
    """Every battery, with what keeps it from being a meter."""
    root = sysfs.root(device)
    return [] if root is None else [(folder, _problem(folder)) for folder in batteries_in(root)]


def _problem(folder: Path) -> str | None:
    files = (
        [folder / "power_now"] if (folder / "power_now").exists() else [folder / "current_now", folder / "voltage_now"]
    )
    for path in files:
        if reason := sysfs.why_unreadable(path):
            return reason
    status, watts = sysfs.text(folder / "status") or "no status", draw_w(folder)
    if status in ("Full", "Not charging"):
        return f"on external power ({status}), so its gauge shows nothing; unplug the charger to measure with it"
    if watts is None:
        return f"status {status!r} and {' x '.join(p.name for p in files)} give no power; left out"
    if not _LEAST_W <= abs(watts) <= _MOST_W:
        said = ", ".join(f"{p.name} {sysfs.text(p)}" for p in files)
        return f"{said} would be {watts:.3g} W, not credible (is it in milliamperes?); left out"
    return None
