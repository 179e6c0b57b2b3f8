"""This machine as a device: the agent runs here as a process of its own, the meters are the ones found here."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from edgewatt.devices import battery, governor, health, host_facts, sysfs, thermometers
from edgewatt.devices.agent.agent import CLOCK
from edgewatt.devices.transport import Subprocess
from edgewatt.harness import plugins
from edgewatt.harness.api import AgentProcess, Device, Facts, Flag, Meter, UsageError

OPTIONS = ("rate_hz", "sysfs")
RATE_HZ = 100.0
_MOST_HZ = 2000.0  # above it a sampler costs more than it tells: RAPL itself refreshes at 1000 Hz
_BUSY_SHARE = 0.2  # of all processors' time; what uses more than this competes with what is measured
_BUSY_LOOK_S = 0.3
_NEAR_CRITICAL_K = 10.0
_THROTTLE_LOOK_S = 0.2


class Host(Device):
    """The machine edgewatt runs on. `sysfs` is the root of its sensors, `rate_hz` how often they are asked."""

    kind = "host"
    clock = CLOCK

    def __init__(self, name: str = "host", sysfs: str = "/sys", rate_hz: float = RATE_HZ) -> None:
        self.name, self.sysfs, self.rate_hz = name, sysfs, rate_hz
        self._agents = Subprocess()

    @classmethod
    def from_config(cls, name: str, address: str, options: Mapping[str, Any]) -> Host:
        if address not in ("", "local"):
            raise UsageError(f"{name}: a host has no address, found {address!r}; leave it out")
        for key in options:
            if key not in OPTIONS:
                raise UsageError(f"{name}: a host has no option {key!r}; {plugins.nearest(key, OPTIONS)}")
        rate_hz, root = options.get("rate_hz", RATE_HZ), options.get("sysfs", "/sys")
        if isinstance(rate_hz, bool) or not isinstance(rate_hz, (int, float)) or not 0.1 <= rate_hz <= _MOST_HZ:
            raise UsageError(f"{name}: rate_hz is {rate_hz!r}; wanted a number from 0.1 to {_MOST_HZ:g}")
        if not isinstance(root, str) or ("sysfs" in options and not Path(root).is_dir()):
            raise UsageError(f"{name}: sysfs is {root!r}; wanted a folder laid out as /sys is")
        return cls(name, root, float(rate_hz))

    def describe(self) -> Facts:
        return {"kind": self.kind, "rate_hz": self.rate_hz, **host_facts.facts(Path(self.sysfs))}

    def start(self, verb: str, job: Facts) -> AgentProcess:
        return self._agents.start(verb, job)

    def put(self, path: Path) -> str:
        return self._agents.put(path)

    def get(self, remote: str, into: Path) -> Path:
        return self._agents.get(remote, into)

    def scratch(self) -> str:
        return self._agents.scratch()

    def meters(self) -> Sequence[Meter]:
        return plugins.meters_found_on(self)

    def why_absent(self) -> dict[str, list[str]]:
        """Meter kind -> why its sensors are not used here, one sentence each with the next step."""
        said = {}
        for name in plugins.available("meters"):
            problems = getattr(plugins.load("meters", name), "problems", None)
            said[name] = list(problems(self)) if problems else []
        return said

    def controls(self, wanted: Mapping[str, Any]) -> AbstractContextManager[Facts]:
        for key in wanted:
            if key != "governor":
                raise UsageError(f"{self.name}: has no control {key!r}; known: governor")
        if "governor" not in wanted:
            return contextlib.nullcontext({})
        return governor.governor(Path(self.sysfs), str(wanted["governor"]))

    def steady_nodes(self) -> Sequence[Facts]:
        root = sysfs.root(self)
        return health.steady_nodes(root) if root else ()

    def health(self) -> Sequence[Flag]:
        root = sysfs.root(self)
        found = list(_busy())
        if root:
            found += [*_simulated(root), *_charging(root), *_hot(root), *_throttling(root), *_slow_clocks(root)]
        return found

    def close(self) -> None:
        self._agents.close()


def _busy() -> Iterator[Flag]:
    """Whether others compute here right now. The load average alone would still tell of our own last run."""
    import psutil

    share = float(psutil.cpu_percent(interval=_BUSY_LOOK_S)) / 100
    if share > _BUSY_SHARE:
        load = f", load average {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
        yield Flag(
            "busy",
            (),
            f"{share:.0%} of {os.cpu_count()} processors were in use before the run{load} (quiet: below "
            f"{_BUSY_SHARE:.0%}); what else computes here slows the run and is counted in its joules",
        )


def _simulated(root: Path) -> Iterator[Flag]:
    """Whether the sensors are a made tree's."""
    if not sysfs.is_real(root):
        yield Flag(
            "simulated",
            (),
            f"sensors are read below {root}, which no kernel fills: no figure says anything of hardware",
        )


def _charging(root: Path) -> Iterator[Flag]:
    """Whether a battery is being charged: the machine's power then does not come from it alone."""
    for folder in battery.batteries_in(root):
        status, watts = sysfs.text(folder / "status"), battery.draw_w(folder)
        if status == "Charging":
            rate = "" if watts is None else f" at {-watts:.1f} W"
            yield Flag(
                "charging",
                (),
                f"battery {folder.name} is being charged{rate}: its gauge does not show what the machine draws, and "
                "meters at the wall see the charger too; unplug it, or wait until it is full",
                f"battery-{folder.name}",
            )


def _hot(root: Path) -> Iterator[Flag]:
    """Whether a sensor is already close to where the hardware slows down or shuts off."""
    for t in thermometers.thermometers(root):
        now_c = t.celsius()
        if now_c is not None and t.critical_c is not None and now_c > t.critical_c - _NEAR_CRITICAL_K:
            yield Flag(
                "hot",
                (),
                f"{t.name} is at {now_c:.0f} degC before the run, critical is {t.critical_c:.0f}; let it cool",
            )


def _throttling(root: Path) -> Iterator[Flag]:
    """Whether the processor slows itself down right now, by the kernel's counters over a moment."""
    files = {what: health.throttle_files(root, what) for what in ("core", "package")}
    if not any(files.values()):
        return
    before = {what: _count(paths) for what, paths in files.items()}
    time.sleep(_THROTTLE_LOOK_S)
    for what, paths in files.items():
        more = _count(paths) - before[what]
        if more > 0:
            yield Flag(
                "throttled",
                (),
                f"{what}_throttle_count went up by {more} within {_THROTTLE_LOOK_S:g} s before the run "
                f"(now {_count(paths)} since boot); let the machine cool",
            )


def _count(paths: Sequence[Path]) -> int:
    return sum(n for n in map(sysfs.number, paths) if n is not None)


def _slow_clocks(root: Path) -> Iterator[Flag]:
    """Whether the processor is told to stay slow, or may not reach its clock."""
    told = host_facts.frequency(root)
    # The "powersave" of intel_pstate and amd-pstate follows the load; everyone else's pins the lowest clock.
    if "powersave" in told["governors"] and not any(d.endswith(("pstate", "pstate-epp")) for d in told["drivers"]):
        yield Flag(
            "slow_clocks",
            (),
            f"governor powersave holds the processor at {_ghz(told['min_hz'])} of {_ghz(told['max_hz'])}; "
            "choose the control governor=performance (root), or cpupower frequency-set -g performance",
        )
    limit, most = told["limit_hz"], told["max_hz"]
    if limit and most and limit < 0.9 * most:
        yield Flag("slow_clocks", (), f"clocks are limited to {_ghz(limit)} of {_ghz(most)} (scaling_max_freq)")


def _ghz(hertz: float | None) -> str:
    return "an unknown clock" if hertz is None or not math.isfinite(hertz) else f"{hertz * 1e-9:.2f} GHz"
