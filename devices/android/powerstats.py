"""The same rails without root: what the phone's PowerStats service prints of them.

Source: AOSP, hardware/google/pixel/powerstats/aidl/PowerStats.cpp: for each channel `[RAIL]:SUBSYSTEM`, the energy
since boot in milliwatt seconds with two decimals, and in brackets that since the dump before. The first is read, never
the second: whoever else asks for a dump shortens it. There is no stamp: a reading is of some moment while the program
ran.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.android import odpm, rails
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import Device, Floats, Meter, Trace

DUMP = "dumpsys PowerStats"
COMMAND = ["dumpsys", "android.hardware.power.stats.IPowerStats/default", "delta"]
PATTERNS: tuple[str, ...] = ()
TOOLS: dict[str, list[str]] = {DUMP: COMMAND}

# Every reading starts a program and wakes a service; less often, out of step with whole seconds.
RATE_HZ = 2.0
OFF_BEAT = 0.9236
LIMIT_S = 5.0
DECIMALS = 2
QUANTUM_J = 1e-5  # the last decimal of a milliwatt second

_LINE = re.compile(r"^\s*(\[([^\]\n]{1,64})\]:)\S*\s+(\d{1,15}\.\d{2}) mWs( \(\s*-?\d{1,15}\.\d{2}\))?\s*$", re.M)


def found_in(seen: Snapshot) -> list[dict[str, Any]]:
    """Each rail of the dump as a field of the agent's `command` node; of rails of one name the first."""
    fields: dict[str, dict[str, Any]] = {}
    for start, name, _, delta in _LINE.findall(seen.answer(DUMP) or ""):
        # Counted from the end, since a subsystem's name may hold numbers.
        field = {"name": name, "line": start, "number": -2 if delta else -1, "decimals": DECIMALS}
        fields.setdefault(name, field)
    return list(fields.values())


def usable(device: Device) -> list[dict[str, Any]]:
    """The dump's rails, where they make a figure and no better source is used."""
    if device.kind != "android" or not odpm.wanted(device, "powerstats") or odpm.usable(device):
        return []
    fields = found_in(device.seen)  # type: ignore[attr-defined]
    return fields if rails.compute([f["name"] for f in fields]) else []


class PowerStats(AgentMeter):
    """Every rail of the dump; stamped in the middle of the command that prints it."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        fields = usable(device)
        return [cls(device, fields)] if fields else ()

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        if device.kind != "android" or not odpm.wanted(device, "powerstats") or odpm.usable(device):
            return ()
        names = [f["name"] for f in found_in(device.seen)]  # type: ignore[attr-defined]
        if not names:
            if getattr(device, "options", {}).get("power") != "powerstats":
                return ()  # most phones have no rails; that is said once, where no source is found at all
            said = f"powerstats: {' '.join(COMMAND)} prints no rails on {device.name}"
            return (f'{said}; take power = "auto", or attach a meter',)
        if not rails.compute(names):
            return (f"powerstats: no rail is known to feed the processor, found {', '.join(names)}; attach a meter",)
        unknown = rails.unmapped(names)
        return (f"powerstats: of unknown use, so in no sum: {', '.join(unknown)}",) if unknown else ()

    def __init__(self, device: Device, fields: Sequence[dict[str, Any]]) -> None:
        self._names = [f["name"] for f in fields]
        channels = rails.channels(self._names, quantum_j=QUANTUM_J, age_s=None)
        asked = float(getattr(device, "options", {}).get("rate_hz", RATE_HZ))
        node = {"command": COMMAND, "fields": list(fields), "limit_s": LIMIT_S}
        super().__init__(
            device,
            "powerstats",
            channels,
            {"rate_hz": OFF_BEAT * min(RATE_HZ, asked), "nodes": [node]},
            clock="boottime",
        )

    def converted(self, raw: Floats) -> Floats:
        """Hundredths of a milliwatt second as joules, their sum before them."""
        joules = raw * QUANTUM_J
        at = np.arange(len(joules), dtype=np.float64) * max(self.period_s, LIMIT_S)  # a command may take as long
        return rails.merged([rails.counted(self._names, at, joules)])[1]

    def _traced(self) -> Trace:
        trace = super()._traced()
        return replace(trace, facts={**trace.facts, "unmapped": rails.unmapped(self._names)})
