"""A board's condition beside its energy: temperatures, clocks, load, memory and what slows it down. For the agent.

Standard library only: boards ship old Pythons, and none of this may need a package.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgewatt.devices.agent.agent import MISSING, Node

_LOOK_S = 0.1  # the shortest time over which a share of processor time means something


def source(params: Mapping[str, Any]) -> tuple[list[str], Callable[[], list[float | None]]]:
    """Columns and a reading: "utilisation" (0 to 1), "memory" (bytes in use), then `params["nodes"]`.

    A node is {"name", "path", "scale", "least", "most"}: an integer file, times `scale`; a value outside of least..most
    is a code for "no reading" (a sleeping sensor says -256 degrees) and is missing.
    """
    load = Utilisation()
    time.sleep(_LOOK_S)
    nodes = [(Node(n["path"], n["name"]), n) for n in params["nodes"]]

    def reading() -> list[float | None]:
        return [load.since_last(), memory_used(), *(scaled(node.read(), n) for node, n in nodes)]

    return ["utilisation", "memory", *(n["name"] for n in params["nodes"])], reading


def scaled(raw: int, node: Mapping[str, Any]) -> float | None:
    """A file's integer in the unit of its channel; None for one that cannot be a reading."""
    if raw == MISSING:
        return None
    value = raw * float(node.get("scale", 1.0))
    return value if node.get("least", -float("inf")) <= value <= node.get("most", float("inf")) else None


class Utilisation:
    """Share of all processors' time that was in use, from the kernel's counters (/proc/stat, first line).

    Its fields are user, nice, system, idle, iowait, irq, softirq, steal, in ticks since boot (proc(5)).
    """

    def __init__(self) -> None:
        self._last = _ticks()

    def since_last(self) -> float | None:
        """0 to 1 since the last call; None if the kernel does not tell, or no tick has passed."""
        before, self._last = self._last, _ticks()
        if before is None or self._last is None:
            return None
        busy, total = self._last[0] - before[0], self._last[1] - before[1]
        return min(max(busy / total, 0.0), 1.0) if total > 0 else None


def _ticks() -> tuple[int, int] | None:
    """Ticks in use and in all."""
    try:
        with Path("/proc/stat").open("rb") as file:
            ticks = [int(n) for n in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(ticks) - ticks[3] - ticks[4], sum(ticks)) if len(ticks) >= 5 else None


def memory_used() -> float | None:
    """Bytes in use: what is not available to new programs (/proc/meminfo)."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    kb = {line.partition(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    try:
        return (int(kb["MemTotal"]) - int(kb["MemAvailable"])) * 1024.0
    except (KeyError, ValueError):
        return None


def busy(params: Mapping[str, Any]) -> dict[str, Any]:
    """How much of the processors' time is in use over `params["seconds"]`, for the agent's `call`."""
    load = Utilisation()
    time.sleep(float(params.get("seconds", 0.3)))
    return {"share": load.since_last(), "processors": os.cpu_count()}
