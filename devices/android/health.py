"""What a phone goes through while it is measured: temperatures, clocks, load, memory, and what holds it down.

Sources: Documentation/driver-api/thermal/sysfs-api.rst (zones in millidegrees; some vendors write degrees or tenths),
Documentation/admin-guide/pm/cpufreq.rst (kilohertz), proc(5). Every file may be absent or refused on some phone: what
read sanely when the phone was looked at is recorded, and each scale that was applied stands in the trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.snapshot import Snapshot
from edgewatt.devices.thermometers import COLDEST_C, HOTTEST_C
from edgewatt.harness.api import Channel, Device, Floats, Meter, Trace

THERMAL = "dumpsys thermalservice"
PATTERNS = (
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/thermal/cooling_device*/type",
    "/sys/class/thermal/cooling_device*/cur_state",
    "/sys/class/power_supply/*/type",
    "/sys/class/power_supply/*/temp",
    "/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq",
    "/sys/devices/system/cpu/cpufreq/policy*/cpuinfo_max_freq",
    "/sys/devices/system/cpu/cpufreq/policy*/related_cpus",
    "/sys/class/kgsl/kgsl-3d0/devfreq/cur_freq",
    "/sys/class/kgsl/kgsl-3d0/gpuclk",
    "/sys/class/devfreq/*mali*/cur_freq",
    "/proc/stat",
    "/proc/meminfo",
)
TOOLS: dict[str, list[str]] = {THERMAL: ["dumpsys", "thermalservice"]}

RATE_HZ = 4.0  # conditions change in seconds, and every reading wakes the processor
STATUS_EACH_S = 5.0  # a program has to be started for it
MOST_ZONES = 16  # some phones have a hundred, and some of them sit behind a slow bus

_FIRST = ("skin", "soc", "cpu", "big", "mid", "little", "gpu", "g3d", "tpu", "npu", "nsp", "ddr", "batt")
_NO_TEMPERATURE = re.compile(r"vbat|ibat|bcl|current|volt|-soc$|charge", re.I)
_NOT_COMPUTE = re.compile(r"charg|fcc|icl|usb|wlc|wlan|wifi|modem|batt|fan|lcd|display|panel|backlight|flash", re.I)
_TICKS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # proc(5), /proc/stat
_CLUSTERS = {1: ("cpu",), 2: ("little", "big"), 3: ("little", "mid", "big"), 4: ("little", "mid", "big", "prime")}


@dataclass(frozen=True)
class Watched:
    """One channel that is one file's integer: times `scale`; outside of least..most (and 0, if so told) it is none."""

    channel: Channel
    path: str
    scale: float
    least: float = -np.inf
    most: float = np.inf
    is_zero_none: bool = False

    def values(self, raw: Floats) -> Floats:
        scaled = raw * self.scale
        good = (scaled >= self.least) & (scaled <= self.most) & ((raw != 0) | (not self.is_zero_none))
        return np.where(good, scaled, np.nan)


def celsius_scale(raw: int | None) -> float | None:
    """Degrees Celsius of one unit of a thermal reading: 0.001, 0.1 or 1, by its size; None for a code.

    Codes for "no reading" are 0, -256 (of any unit) and -5700.
    """
    if not raw or raw in (-256, -256_000, -5700, -5_700_000):
        return None
    scale = 1e-3 if abs(raw) >= 2000 else 0.1 if abs(raw) > HOTTEST_C else 1.0
    return scale if COLDEST_C <= raw * scale <= HOTTEST_C else None


def hertz_scale(raw: int) -> float:
    """Hertz of one unit of a GPU's clock, by its size: these run at 0.1 to 3 GHz."""
    return 1.0 if raw >= 50_000_000 else 1e3 if raw >= 50_000 else 1e6


def watched(seen: Snapshot) -> list[Watched]:
    """What is read of a phone, each by a value it gave when it was looked at; names are made unique."""
    found: list[Watched] = []
    for w in [*_temperatures(seen), *_clocks(seen), *_cooling(seen)]:
        same = sum(w.channel.name in (f.channel.name, f.channel.name.rsplit(" #", 1)[0]) for f in found)
        name = f"{w.channel.name} #{same + 1}" if same else w.channel.name
        found.append(replace(w, channel=replace(w.channel, name=name)))
    return found


def _temperatures(seen: Snapshot) -> Iterator[Watched]:
    for path in seen.paths("/sys/class/power_supply/*/temp"):  # in tenths, by the kernel's rule
        raw, folder = seen.number(path), path.rsplit("/", 1)[0]
        if raw and seen.text(f"{folder}/type") == "Battery" and COLDEST_C <= raw * 0.1 <= HOTTEST_C:
            channel = Channel("battery", "temperature", "degC", "gauge", "the battery, read in 0.1 degC", quantum=0.1)
            yield Watched(channel, path, 0.1, COLDEST_C, HOTTEST_C, is_zero_none=True)
    zones = []
    for path in seen.paths("/sys/class/thermal/thermal_zone*/temp"):
        kind = (seen.text(path.replace("/temp", "/type")) or path.split("/")[-2])[:64]
        raw = seen.number(path)
        scale = celsius_scale(raw)
        if scale is not None and not _NO_TEMPERATURE.search(kind):
            zones.append((kind, path, scale))
    lead = [next((k for k, word in enumerate(_FIRST) if word in kind.lower()), len(_FIRST)) for kind, _, _ in zones]
    for k in sorted(sorted(range(len(zones)), key=lambda k: lead[k])[:MOST_ZONES]):
        kind, path, scale = zones[k]
        channel = Channel(
            f"zone {kind}", "temperature", "degC", "gauge", f"thermal zone {kind}, read in {scale:g} degC"
        )
        yield Watched(channel, path, scale, COLDEST_C, HOTTEST_C, is_zero_none=True)


def _clocks(seen: Snapshot) -> Iterator[Watched]:
    paths = [p for p in seen.paths("/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq") if seen.number(p)]
    fastest = [seen.number(p.replace("scaling_cur_freq", "cpuinfo_max_freq")) or 0 for p in paths]
    names = _CLUSTERS.get(len(paths)) or tuple(f"cluster {chr(97 + k)}" for k in range(len(paths)))
    for name, k in zip(names, sorted(range(len(paths)), key=lambda k: fastest[k]), strict=True):
        cpus = seen.text(paths[k].replace("scaling_cur_freq", "related_cpus")) or "?"
        yield Watched(Channel(name, "frequency", "Hz", "gauge", f"the cores {cpus}"), paths[k], 1e3, least=1.0)
    gpus = [
        *seen.paths("/sys/class/kgsl/kgsl-3d0/devfreq/cur_freq"),
        *seen.paths("/sys/class/kgsl/kgsl-3d0/gpuclk"),
        *seen.paths("/sys/class/devfreq/*mali*/cur_freq"),
    ]
    for path in [p for p in gpus if seen.number(p)][:1]:
        scale = hertz_scale(seen.number(path) or 0)
        yield Watched(Channel("gpu", "frequency", "Hz", "gauge", f"the GPU, read in {scale:g} Hz"), path, scale)


def _cooling(seen: Snapshot) -> Iterator[Watched]:
    for path in seen.paths("/sys/class/thermal/cooling_device*/cur_state"):
        kind = (seen.text(path.replace("/cur_state", "/type")) or "cooling")[:64]
        if seen.number(path) is not None and not _NOT_COMPUTE.search(kind):
            name = f"{kind} {path.split('/')[-2].removeprefix('cooling_device')}"
            yield Watched(Channel(name, "throttle", "1", "gauge", f"how far {kind} is held down"), path, 1.0)


class AndroidHealth(AgentMeter):
    """Load, memory, temperatures, clocks, and how far cooling devices hold the phone down."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        return [cls(device)] if device.kind == "android" else ()

    def __init__(self, device: Device) -> None:
        seen: Snapshot = device.seen  # type: ignore[attr-defined]
        self._watched = watched(seen)
        channels = (
            Channel("utilisation", "utilisation", "1", "gauge", "all processors, mean"),
            Channel("memory", "memory", "B", "gauge", "the phone, in use"),
            *(w.channel for w in self._watched),
        )
        ticks = [{"name": f"cpu {name}", "line": "cpu ", "number": k} for k, name in enumerate(_TICKS)]
        memory = [{"name": name, "line": f"{name}:", "number": 0} for name in ("MemTotal", "MemAvailable")]
        nodes: list[dict[str, Any]] = [
            {"path": "/proc/stat", "fields": ticks},
            {"path": "/proc/meminfo", "fields": memory},
            *({"path": w.path, "name": w.channel.name} for w in self._watched),
        ]
        super().__init__(device, "health", channels, {"rate_hz": RATE_HZ, "nodes": nodes}, clock="boottime")

    def converted(self, raw: Floats) -> Floats:
        """Ticks as the share in use since the row before, kibibytes as bytes in use, and every file in its unit."""
        n = len(_TICKS)
        files = [w.values(raw[:, n + 2 + k]) for k, w in enumerate(self._watched)]
        return np.column_stack([utilisation(raw[:, :n]), (raw[:, n] - raw[:, n + 1]) * 1024.0, *files])

    def _traced(self) -> Trace:
        trace = super()._traced()
        return replace(trace, facts={**trace.facts, "scales": {w.channel.name: w.scale for w in self._watched}})


def utilisation(ticks: Floats) -> Floats:
    """Share of all processors' time in use (n,) since the row before, of the kernel's counters (n, 8); first NaN.

    idle and iowait are not in use. Older kernels tell fewer columns; missing ones count as 0.
    """
    known = np.where(np.isfinite(ticks[:, :4]).all(axis=1), np.nansum(ticks, axis=1), np.nan)
    idle = ticks[:, 3] + np.nan_to_num(ticks[:, 4])
    total, spare = np.diff(known, prepend=np.nan), np.diff(idle, prepend=np.nan)
    share = 1.0 - spare / np.where(total > 0, total, np.nan)
    return np.asarray(np.clip(share, 0.0, 1.0))


class ThermalStatus(AgentMeter):
    """What Android itself says of the heat: 0 none, 1 light, 2 moderate, 3 severe, 4 critical, 5 emergency."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        if device.kind != "android":
            return ()
        told = device.seen.answer(THERMAL) or ""  # type: ignore[attr-defined]
        return [cls(device)] if re.search(r"^\s*Thermal Status: \d\s*$", told, re.M) else ()

    def __init__(self, device: Device) -> None:
        covers = "Android's thermal status: from 1 on it slows the phone down"
        channel = Channel("thermal status", "throttle", "1", "gauge", covers)
        fields = [{"name": channel.name, "line": "Thermal Status:", "number": 0}]
        node = {"command": TOOLS[THERMAL], "fields": fields, "limit_s": STATUS_EACH_S}
        job = {"rate_hz": 1 / STATUS_EACH_S, "nodes": [node]}
        super().__init__(device, "thermal-status", (channel,), job, clock="boottime")
