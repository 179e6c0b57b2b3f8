"""What would spoil a measurement that starts now on a phone: its battery, its heat, its screen, other work.

Sources: AOSP (what `dumpsys battery`, `power` and `thermalservice` print, the types of the thermal HAL), proc(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgewatt.devices.android import facts, health
from edgewatt.devices.snapshot import Snapshot
from edgewatt.devices.thermometers import COLDEST_C, HOTTEST_C
from edgewatt.harness import flags
from edgewatt.harness.api import Flag, HarnessError

if TYPE_CHECKING:
    from edgewatt.devices.android.device import Android

POWER, SYS = "dumpsys power", "sys"
MOUNTS = "/proc/mounts"
PATTERNS = (MOUNTS,)
TOOLS: dict[str, list[str]] = {
    POWER: ["sh", "-c", "dumpsys power | grep -E 'mWakefulness=|Display Power: state=|mStayOn='"],
    SYS: ["stat", "-f", "-c", "%t", "/sys"],
}

GAUGE = "gauge"
MIN_BATTERY = 20.0
_SYSFS, _FUSE = "62656572", "65735546"  # statfs(2)
_BUSY_S, _BUSY_SHARE = 0.3, 0.2  # a larger share of all processors' time competes with what is measured
_NEAR_LIMIT_K = 5.0
_WARM_C = {2: 42.0, 3: 42.0}  # where no threshold is told: battery and skin; phones begin to slow down about there
_HOT_CHIP_C = 85.0  # CPU, GPU, NPU, TPU
_CHIPS = (0, 1, 9, 10)
_NO_TEMPERATURES = (6, 7, 8)  # battery current limiting: volts, amperes, percent
_COOLS_CHIPS = (2, 3, 5, 7)  # CoolingType: CPU, GPU, NPU, TPU

STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_STAT = (
    'read -r a < /proc/stat; sleep "$1"; read -r b < /proc/stat; echo "$a"; echo "$b"; '
    "cat /sys/devices/system/cpu/online"
)


@dataclass(frozen=True)
class Heat:
    """What Android's thermal service says: its status, temperatures and cooling devices of the HAL's own section."""

    status: int | None
    is_forced: bool
    celsius: dict[str, tuple[int, float]]  # name -> HAL's type, degrees C
    limits_c: dict[str, float]  # name -> where it is "severe", or the first limit that is told
    cooling: dict[str, tuple[int, int]]  # name -> HAL's type, how far it holds down


def heat(seen: Snapshot) -> Heat:
    """The thermal service's dump, read; without the service, nothing in it."""
    text = (seen.answer(health.THERMAL) or "").replace("\r", "")
    status = re.search(r"^\s*Thermal Status: (\d)\s*$", text, re.M)
    celsius: dict[str, tuple[int, float]] = {}
    for values in _entries(_section(text, "Current temperatures from HAL:"), "Temperature"):
        kind, value = _whole(values.get("mType")), _number(values.get("mValue"))
        if kind is None or value is None or kind in _NO_TEMPERATURES:
            continue
        if value != 0.0 and COLDEST_C <= value <= HOTTEST_C:  # exactly 0 is a sensor that is not fitted
            celsius[values["mName"]] = (kind, value)
    cooling = {}
    for values in _entries(_section(text, "Current cooling devices from HAL:"), "CoolingDevice"):
        kind, state = _whole(values.get("mType")), _whole(values.get("mValue"))
        if kind is not None and state is not None:
            cooling[values["mName"]] = (kind, state)
    limits = {}
    for values in _entries(_section(text, "Temperature static thresholds from HAL:"), "TemperatureThreshold"):
        told = [_number(v) for v in values.get("mHotThrottlingThresholds", "").split(",")]
        severe = next((v for v in (*told[3:4], *told[1:]) if v is not None and COLDEST_C < v <= HOTTEST_C), None)
        if severe is not None:
            limits[values["mName"]] = severe
    return Heat(
        int(status[1]) if status else None,
        bool(re.search(r"^\s*IsStatusOverride: true\s*$", text, re.M)),
        celsius,
        limits,
        cooling,
    )


def screen_is_on(seen: Snapshot) -> bool | None:
    """Whether the screen is lit, as the power service has it; None if it does not tell."""
    text = seen.answer(POWER) or ""
    if state := re.search(r"^\s*Display Power: state=(\w+)\s*$", text, re.M):
        return state[1] not in ("OFF", "DOZE_SUSPEND")
    awake = re.search(r"^\s*mWakefulness=(\w+)\s*$", text, re.M)
    return awake[1] == "Awake" if awake else None


def is_simulated(seen: Snapshot) -> bool:
    """Whether something else than a kernel fills /sys."""
    mounted = re.search(r"^\S+ /sys (\S+) ", seen.text(MOUNTS) or "", re.M)
    if mounted:
        return mounted[1] != "sysfs"
    kind = (seen.answer(SYS) or "").strip().lower()
    return bool(kind) and kind.lstrip("0") != _SYSFS


def steady_nodes(seen: Snapshot) -> list[dict[str, Any]]:
    """What warm-up watches beside latency: one temperature of the processors, steady within 1 degree C."""
    zones = [w for w in health.watched(seen) if w.channel.unit == "degC" and "thermal_zone" in w.path]
    for word in ("big", "cpu", "soc"):
        for zone in zones:
            if word in zone.channel.name.lower():
                return [{"name": zone.channel.name, "path": zone.path, "scale": zone.scale, "tolerance": 1.0}]
    return []


def gate(device: Android) -> Iterator[Flag]:
    """Doubts about a run that starts now, each with numbers."""
    seen = device.look()
    if is_simulated(seen):
        kind = (seen.answer(SYS) or "").strip()
        named = f"file system 0x{kind}" if kind and kind != _FUSE else "FUSE"
        detail = f"/sys of {device.name} is a {named}, which no kernel fills: no figure says anything of hardware"
        yield Flag(flags.SIMULATED, (), detail)
    yield from _battery(device, seen)
    yield from _heat(seen)
    yield from _clocks(seen)
    if screen_is_on(seen):
        detail = "the screen is on before the run: its power is in the battery's joules; --set controls.screen=off"
        yield Flag(flags.SCREEN_ON, (), detail)
    share, n = busy(device)
    if share is not None and share > _BUSY_SHARE:
        detail = (
            f"{share:.0%} of {n or 'all'} processors were in use before the run (quiet: below {_BUSY_SHARE:.0%}); what "
            "else computes there slows the run and is counted in its joules"
        )
        yield Flag(flags.BUSY, (), detail)


def least_battery(device: Android) -> float:
    """Percent below which a run is doubtful: the device file's `min_battery`."""
    given = getattr(device, "options", {}).get("min_battery", MIN_BATTERY)
    return float(given) if isinstance(given, (int, float)) and not isinstance(given, bool) else MIN_BATTERY


def _battery(device: Android, seen: Snapshot) -> Iterator[Flag]:
    told = facts.battery(seen)
    if facts.updates_stopped(seen):
        detail = (
            "the battery service shows made-up values (UPDATES STOPPED), so nobody knows whether the phone is charged; "
            "on the phone: dumpsys battery reset"
        )
        yield Flag(flags.STALE, flags.ENERGY_METRICS, detail, GAUGE)
    else:
        status = told.get("status", 0)
        is_powered = facts.is_powered(seen)
        if is_powered or status == 2 or (is_powered is None and status == 5):
            said = facts.BATTERY_STATUS.get(status, "unknown")
            fed = "is fed by a cable or a charger" if is_powered else "is charged"
            detail = f"the phone {fed} (status {said}), so what leaves its battery is not what it uses; unplug it"
            yield Flag(flags.CHARGING, flags.ENERGY_METRICS, detail, GAUGE)
        level, least = told.get("level"), least_battery(device)
        if level is not None and 0 <= level < least:
            detail = f"the battery is at {level} % (wanted {least:g} % or more); charge it, or set min_battery"
            yield Flag(flags.LOW_BATTERY, (), detail)


def _heat(seen: Snapshot) -> Iterator[Flag]:
    now = heat(seen)
    if now.is_forced:
        detail = (
            f"somebody forced Android's thermal status (to {_status(now.status)}), so it cannot tell whether the phone "
            "slows down; on the phone: cmd thermalservice reset"
        )
        yield Flag(flags.THROTTLED, (*flags.TIMING_METRICS, *flags.ENERGY_METRICS), detail)
    elif now.status:
        yield Flag(flags.THROTTLED, (), f"thermal status {_status(now.status)} before the run; let the phone cool")
    for name, (kind, celsius) in (now.celsius or _zones(seen)).items():
        name = facts.plain(name) or "a sensor"
        limit = now.limits_c.get(name)
        if limit is not None and celsius > limit - _NEAR_LIMIT_K:
            yield Flag(flags.HOT, (), f"{name} is at {celsius:.0f} degC before the run, it slows down at {limit:.0f}")
        elif limit is None and celsius > (_HOT_CHIP_C if kind in _CHIPS else _WARM_C.get(kind, HOTTEST_C)):
            yield Flag(flags.HOT, (), f"{name} is at {celsius:.0f} degC before the run; let the phone cool")
    held = {
        facts.plain(n) or "?": state for n, (kind, state) in now.cooling.items() if state > 0 and kind in _COOLS_CHIPS
    }
    if not now.cooling:  # no service, or an old one: the kernel's own
        for w in health.watched(seen):
            if w.channel.quantity == "throttle" and (state := seen.number(w.path) or 0) > 0:
                held[w.channel.name] = state
    for name, state in held.items():
        yield Flag(flags.THROTTLED, (), f"{name} is held down (state {state}) before the run; let the phone cool")


def _zones(seen: Snapshot) -> dict[str, tuple[int, float]]:
    """The kernel's own temperatures, for phones whose service tells none: by name, a type like the HAL's, degrees C."""
    found = {}
    for w in health.watched(seen):
        raw, name = seen.number(w.path), w.channel.name
        if w.channel.unit == "degC" and raw is not None:
            kind = 2 if "batt" in name.lower() else 3 if "skin" in name.lower() else 0
            found[name] = (kind, raw * w.scale)
    return found


def _clocks(seen: Snapshot) -> Iterator[Flag]:
    for p in facts.policies(seen):
        if p.held_most_hz and p.most_hz and p.held_most_hz < 0.9 * p.most_hz:
            said = f"{p.held_most_hz / 1e9:.2f} GHz of {p.most_hz / 1e9:.2f} GHz"
            yield Flag(flags.SLOW_CLOCKS, (), f"cores {_cores(p)} are held at {said} at most before the run")
        elif p.governor == "powersave":
            yield Flag(flags.SLOW_CLOCKS, (), f"cores {_cores(p)} are under the governor powersave")


def busy(device: Android) -> tuple[float | None, int | None]:
    """Share of all processors' time in use over a moment, and how many there are; None where it cannot be told."""
    try:
        done = device.shell(_STAT, str(_BUSY_S))
    except HarnessError:
        return None, None
    lines = done.stdout.decode("ascii", "replace").splitlines()
    before, after = (_ticks(line) for line in [*lines, "", ""][:2])
    n = len(facts.cpu_list(lines[2])) if len(lines) > 2 else 0
    if before is None or after is None or after[1] <= before[1]:
        return None, n or None
    return min(max((after[0] - before[0]) / (after[1] - before[1]), 0.0), 1.0), n or None


def _ticks(line: str) -> tuple[int, int] | None:
    """Ticks in use and in all, of /proc/stat's first line: user nice system idle iowait irq softirq steal."""
    if not re.fullmatch(r"cpu(\s+\d{1,18}){5,12}\s*", line):
        return None
    ticks = [int(n) for n in line.split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _cores(policy: facts.Policy) -> str:
    return ", ".join(map(str, policy.cores)) or policy.name


def _status(status: int | None) -> str:
    return f"{status} ({STATUS[status]})" if status is not None and status < len(STATUS) else str(status)


def _section(text: str, head: str) -> str:
    """The indented lines behind a head line."""
    _, found, rest = text.partition(f"\n{head}\n")
    if not found:
        return ""
    kept = []
    for line in rest.split("\n"):
        if not line.startswith(("\t", " ")):
            break
        kept.append(line)
    return "\n".join(kept)


def _entries(section: str, kind: str) -> Iterator[dict[str, str]]:
    """The fields of lines `Kind{name=value, name=[a, b], …}` that have a name."""
    for match in re.finditer(rf"^\s+{kind}\{{(.*)\}}\s*$", section, re.M):
        fields = {k: v.strip("[]") for k, v in re.findall(r"(\w+)=(\[[^\]]*\]|[^,\[\]]*)(?:, |$)", match[1])}
        if fields.get("mName"):
            yield fields


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None  # also not a number


def _whole(text: str | None) -> int | None:
    value = _number(text)
    return int(value) if value is not None and value == int(value) else None
