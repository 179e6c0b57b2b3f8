"""The on-device power meters of Google's Tensor phones: counters of energy in sysfs, where we may read them.

Source: drivers/iio/power/odpm.c of the public Pixel kernels. `energy_value` holds a line `t=MS`, the time at which the
chip was read (milliseconds of CLOCK_BOOTTIME), then a line for each channel with its time T and energy in microwatt
seconds. The driver reads the chip again only 50 ms, or 20 of its samples, after the last time: most reads are repeats.
Folders are found by what their `name` says; their numbers change from boot to boot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.android import rails
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import Device, Floats, HarnessError, Meter, Trace

PATTERNS = tuple(
    f"/sys/bus/iio/devices/iio:device*/{name}" for name in ("name", "energy_value", "enabled_rails", "sampling_rate")
)
TOOLS: dict[str, list[str]] = {}

# Faster than a chip at its usual 125 Hz is read by its driver (6 a second), so that each of its readings is seen, and
# fast enough for the driver's fastest rule (every 50 ms). Each read that brings something new costs 1 to 2 ms there.
RATE_HZ = 25.0
QUANTUM_J = 1e-6  # one microwatt second

_STAMP = re.compile(r"^t=(\d{1,18})\s*$", re.M)
_CHANNEL = re.compile(r"^(CH\d{1,2})(?:(\()T=(\d{1,18})\))?\[([^\]\n]{1,64})\],\s*(\d{1,18})\s*$", re.M)


@dataclass(frozen=True)
class Chip:
    """One power meter chip: its `energy_value`, and the rail on each of its channels."""

    name: str  # "s2mpg12-odpm"
    folder: str
    lines: tuple[str, ...]  # how each channel's line begins: "CH0(", "CH0["
    rails: tuple[str, ...]
    sampling_hz: float | None

    @property
    def path(self) -> str:
        return f"{self.folder}/energy_value"

    @property
    def fields(self) -> list[dict[str, Any]]:
        """What is read of it: its stamp, then each channel's energy, then each one's own time where it is told."""
        energies = [{"name": r, "line": line} for r, line in zip(self.rails, self.lines, strict=True)]
        times = [{"name": f"{f['name']} T", "line": f["line"], "number": 0} for f in energies if f["line"][-1] == "("]
        return [{"name": f"{self.name} t", "line": "t="}, *energies, *times]


def chips(seen: Snapshot) -> tuple[list[Chip], list[str]]:
    """The chips that read sanely, in order, and what is wrong with the others."""
    found: list[Chip] = []
    problems: list[str] = []
    for path in seen.paths("/sys/bus/iio/devices/iio:device*/name"):
        name = seen.text(path)
        folder = str(PurePosixPath(path).parent)
        if name is None and "error" in seen.files[path]:
            problems.append(
                f"{path} cannot be read ({seen.files[path]['error']}), so power meters in sysfs stay unknown"
            )
        if name is None or not name.endswith("-odpm"):
            continue
        told = _chip(seen, name, folder)
        if isinstance(told, str):
            problems.append(f"{name}: {told}")
        else:
            found.append(told)
    names = [r for c in found for r in c.rails]
    twice = {r for r in names if names.count(r) > 1}
    if twice:
        problems.append(f"rails {', '.join(sorted(twice))} are metered by more than one chip; one is used of each")
    seen_names: set[str] = set()
    kept = []
    for chip in found:
        own = [k for k, r in enumerate(chip.rails) if r not in seen_names and r not in chip.rails[:k]]
        seen_names.update(chip.rails)
        if own:
            kept.append(replace(chip, lines=tuple(chip.lines[k] for k in own), rails=tuple(chip.rails[k] for k in own)))
    return kept, problems


def _chip(seen: Snapshot, name: str, folder: str) -> Chip | str:
    """A chip as its energy_value shows it, or what is wrong with that."""
    path = f"{folder}/energy_value"
    text = seen.text(path)
    if text is None:
        return f"{path} {seen.files.get(path, {}).get('error') or 'is empty or not there'}"
    told = [(m[1], m[2] or "[", m[4]) for m in _CHANNEL.finditer(text)]
    if not _STAMP.search(text) or not told:
        return f"{path} does not hold a stamp and channels; its first line is {text.splitlines()[0][:60]!r}"
    rate = re.fullmatch(r"\d{1,6}(\.\d{1,9})?", seen.text(f"{folder}/sampling_rate") or "")
    hz = float(rate[0]) if rate else None
    return Chip(name, folder, tuple(ch + end for ch, end, _ in told), tuple(r for _, _, r in told), hz or None)


def wanted(device: Device, source: str) -> bool:
    """Whether the device file lets this source of power be used: it names it, or none."""
    options = getattr(device, "options", {})
    return options.get("power", "auto") in ("auto", source)


def usable(device: Device) -> list[Chip]:
    """The chips whose rails make a figure; none where the device file wants another source."""
    if device.kind != "android" or not wanted(device, "odpm"):
        return []
    found, _ = chips(device.seen)  # type: ignore[attr-defined]
    return found if rails.compute([r for c in found for r in c.rails]) else []


class Odpm(AgentMeter):
    """Every rail of every chip, stamped by the chips themselves: repeats are dropped, restarts are kept."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        found = usable(device)
        return [cls(device, found)] if found else ()

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        if device.kind != "android" or not wanted(device, "odpm"):
            return ()
        found, why = chips(device.seen)  # type: ignore[attr-defined]
        step = "" if device.is_root else ": adb root may open them where the build allows it (userdebug)"  # type: ignore[attr-defined]
        said = [f"odpm: {w}{step}" for w in why]
        names = [r for c in found for r in c.rails]
        if names and not rails.compute(names):
            said.append(f"odpm: no rail is known to feed the processor, found {', '.join(names)}; attach a meter")
        elif unknown := rails.unmapped(names):
            said.append(f"odpm: of unknown use, so in no sum: {', '.join(unknown)}")
        return said

    def __init__(self, device: Device, found: Sequence[Chip]) -> None:
        self._chips = tuple(found)
        self._names = [r for c in found for r in c.rails]
        channels = rails.channels(self._names, quantum_j=QUANTUM_J, age_s=0.0)
        nodes = [{"path": c.path, "fields": c.fields} for c in found]
        job = {"rate_hz": min(RATE_HZ, float(getattr(device, "options", {}).get("rate_hz", RATE_HZ))), "nodes": nodes}
        super().__init__(device, "odpm", channels, job, clock="boottime")
        self._enabled_before: dict[str, str] = {}

    def start(self) -> None:
        self._enabled_before = self._enabled()
        super().start()

    def converted(self, raw: Floats) -> Floats:
        """As read: what the columns make is put together in `_traced`, by the chips' own stamps."""
        return raw

    def _traced(self) -> Trace:
        trace = super()._traced()
        after = self._enabled()
        changed = sorted(c for c, text in self._enabled_before.items() if after.get(c, text) != text)
        t_s, values, told = merged(self._chips, trace.values)
        facts = {
            **{k: v for k, v in trace.facts.items() if k not in ("read_s", "missing")},
            **told,
            # What a reading is uncertain by in time is one of the chip's own samples; it does not depend on our reads.
            "read_s": max((1 / c.sampling_hz for c in self._chips if c.sampling_hz), default=0.0),
            "command_s": trace.facts.get("read_s"),
            "reads": len(trace.t_s),
            "sampling_hz": {c.name: c.sampling_hz for c in self._chips},
            "enabled_rails_changed": changed,
            "unmapped": rails.unmapped(self._names),
        }
        return replace(trace, t_s=t_s, values=values, facts=facts)

    def _enabled(self) -> dict[str, str]:
        """Which rail is on each channel now, by chip; empty where that cannot be read."""
        found = {}
        for chip in self._chips:
            try:
                told = self.device.shell('cat "$1"', f"{chip.folder}/enabled_rails")  # type: ignore[attr-defined]
            except HarnessError:  # a link lost at the end: the samples are what matters
                continue
            if told.status in (0, None) and told.stdout:
                found[chip.name] = told.stdout.decode("utf-8", "replace")
        return found


def merged(chips: Sequence[Chip], raw: Floats) -> tuple[Floats, Floats, dict[str, Any]]:
    """Reads (n, columns of all chips) as one trace by the chips' stamps: t_s (m,), joules (m, 1 + rails), and counts.

    A row is a moment at which a chip was read by its driver; the other chips' rails are NaN there, unless they were
    read in the same millisecond.
    """
    parts: list[rails.Counters] = []
    column = 0
    for chip in chips:
        width = len(chip.fields)
        parts.append(_refreshes(chip, raw[:, column : column + width] if raw.size else np.empty((0, width))))
        column += width
    t_s, values = rails.merged(parts)
    seconds = float(np.ptp(t_s)) if len(t_s) > 1 else 0.0
    named = list(zip(chips, parts, strict=True))
    return t_s, values, {
        "refreshes": {c.name: len(p.t_s) for c, p in named},
        "refresh_hz": {c.name: len(p.t_s) / seconds if seconds else None for c, p in named},
        "restarts": {c.name: int(p.fell.sum()) for c, p in named},
    }  # fmt: skip


def _refreshes(chip: Chip, read: Floats) -> rails.Counters:
    """What the chip itself measured, of reads (n, its columns): repeats dropped, restarts told.

    Energy, or a channel's own time, that falls is a restart, never a wrap. A reading holds what the chip had sampled up
    to then, so it stands for half a sample before its stamp.
    """
    known = read[np.isfinite(read[:, 0])]
    is_later = np.diff(np.maximum.accumulate(known[:, 0]), prepend=-1.0)[: len(known)] > 0
    fresh = known[is_later]
    half_s = 0.5 / chip.sampling_hz if chip.sampling_hz else 0.0
    joules = fresh[:, 1 : 1 + len(chip.rails)] * QUANTUM_J
    return rails.counted(chip.rails, fresh[:, 0] * 1e-3 - half_s, joules, rails.falls(fresh[:, 1:]))
