"""A Jetson board as a device: the one this runs on (`jetson:local`), or one in the lab (`jetson:ssh://user@board`)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from edgewatt.devices.agent.agent import CLOCK
from edgewatt.devices.jetson import checks, conditions, facts, meters, rails
from edgewatt.devices.snapshot import Snapshot
from edgewatt.devices.ssh import Ssh
from edgewatt.devices.transport import Subprocess, Transport
from edgewatt.harness import plugins
from edgewatt.harness.api import (
    AgentProcess,
    Check,
    ClockOffset,
    Device,
    Facts,
    Flag,
    HarnessError,
    Meter,
    TransientError,
    UsageError,
)

OPTIONS = ("power", "rate_hz", "interval_s", "python", "jtop_python", "parents", "shunts_ohm", "ssh_config")
CONTROLS = ("power_mode", "jetson_clocks", "fan_speed", "fan_profile")
SOURCES = ("ina3221", "tegrastats", "jtop")
"""Ways to the rails, the most trusted first."""

RATE_HZ = 100.0
_MOST_HZ = 1000.0
INTERVAL_S = 0.5


@dataclass(frozen=True)
class Told:
    """What a way to the rails said when it was tried: watts and volts by rail, or why it cannot be used."""

    watts: Mapping[str, float] = field(default_factory=dict)
    volts: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


class Jetson(Device):
    """One board. `power` is the way to its rails ("auto": the most trusted that gives sane values)."""

    kind = "jetson"
    clock = CLOCK

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        address: str = "local",
        power: str = "auto",
        rate_hz: float = RATE_HZ,
        interval_s: float = INTERVAL_S,
        jtop_python: str | None = None,
        parents: Mapping[str, str] | None = None,
        shunts_ohm: Mapping[str, float] | None = None,
    ) -> None:
        """`interval_s` is for tegrastats and jtop, `rate_hz` for the files; `parents`, `shunts_ohm`: docs/meters.md."""
        self.name, self.address, self.transport = name, address, transport
        self.power, self.rate_hz, self.interval_s = power, rate_hz, interval_s
        self.parents, self._shunts_ohm = dict(parents or {}), dict(shunts_ohm or {})
        self._jtop_python = jtop_python

    @classmethod
    def from_config(cls, name: str, address: str, options: Mapping[str, Any]) -> Jetson:
        place, _, query = address.partition("?")
        given = {**options, **dict(parse_qsl(query))}
        for key in given:
            if key not in OPTIONS:
                raise UsageError(f"{name}: a jetson has no option {key!r}; {plugins.nearest(key, OPTIONS)}")
        power = given.get("power", "auto")
        if power not in ("auto", *SOURCES):
            raise UsageError(f"{name}: power is {power!r}; wanted auto, {', '.join(SOURCES)}")
        common = {
            "power": power,
            "rate_hz": _number(name, "rate_hz", given.get("rate_hz", RATE_HZ), 0.1, _MOST_HZ),
            "interval_s": meters.interval(f"{name}: interval_s", given.get("interval_s", INTERVAL_S)),
            "jtop_python": _text(name, "jtop_python", given.get("jtop_python")),
            "parents": _table(name, "parents", given.get("parents", {}), str),
            "shunts_ohm": _table(name, "shunts_ohm", given.get("shunts_ohm", {}), float),
        }
        python = _text(name, "python", given.get("python"))
        if place in ("", "local"):
            return cls(name, Subprocess(python) if python else Subprocess(), address="local", **common)
        if not place.startswith("ssh://"):
            raise UsageError(f"{name}: address {place!r}; wanted local or ssh://user@board")
        config = _text(name, "ssh_config", given.get("ssh_config"))
        ssh = Ssh(place, python or "python3", Path(config).expanduser() if config else None)
        return cls(name, ssh, address=place, **common)

    # -- what every device can do

    def describe(self) -> Facts:
        seen = self.look()
        told = facts.facts(seen)
        jtop = self.jtop
        for key in ("model", "module", "soc", "l4t", "jetpack"):
            told[key] = told[key] or jtop.get(key)
        told["libraries"] = {**(jtop.get("libraries") or {}), **told["libraries"]}
        return {
            "kind": self.kind,
            "address": self.address,
            "rate_hz": self.rate_hz,
            "interval_s": self.interval_s,
            "power_source": self.power_source,
            "parents": rails.parents([r.name for r in self.rails], self.parents),
            "agent": self.hello,
            **told,
            "jtop": jtop,
        }

    def start(self, verb: str, job: Facts) -> AgentProcess:
        """As everywhere; `python` in the job is another Python of the board's to run it."""
        return self.transport.start(verb, {k: v for k, v in job.items() if k != "python"}, python=job.get("python"))

    def put(self, path: Path) -> str:
        return self.transport.put(path)

    def get(self, remote: str, into: Path) -> Path:
        return self.transport.get(remote, into)

    def scratch(self) -> str:
        return self.transport.scratch()

    def clock_offset(self) -> ClockOffset:
        return self.transport.clock_offset()

    def meters(self) -> Sequence[Meter]:
        return plugins.meters_found_on(self)

    def health(self) -> Sequence[Flag]:
        return list(conditions.gate(self))

    def steady_nodes(self) -> Sequence[Facts]:
        return conditions.steady_nodes(self.seen)

    def checks(self) -> Sequence[Check]:
        return list(checks.of(self))

    def controls(self, wanted: Mapping[str, Any]) -> AbstractContextManager[Facts]:
        """Sets power mode, clocks and fan on the board, by an agent there that puts them back whatever happens here."""
        for key in wanted:
            if key not in CONTROLS:
                raise UsageError(f"{self.name}: has no control {key!r}; {plugins.nearest(key, CONTROLS)}")
        if not wanted:
            return nullcontext({})
        params = {key: _control(self.name, key, value) for key, value in wanted.items()}
        if "problem" not in self.jtop:
            return self.transport.hold("edgewatt.devices.agent.jtop:held", params, python=self.jtop_python)
        return self.transport.hold("edgewatt.devices.agent.nvpmodel:held", params)

    def close(self) -> None:
        self.transport.close()

    # -- what is known of this board

    def call(self, function: str, params: Facts, python: str | None = None) -> Any:
        """What a function answers on the board."""
        return self.transport.call(function, params, python=python)

    def look(self) -> Snapshot:
        """The board as it is now. HarnessError if it is no Jetson."""
        wanted = {"files": [*facts.PATTERNS, *rails.PATTERNS], "tools": facts.TOOLS}
        seen = Snapshot.of(self.call("edgewatt.devices.agent.look:look", wanted))
        if not facts.is_jetson(seen):
            raise UsageError(
                f"{self.name}: this is no Jetson (no /etc/nv_tegra_release, no tegra in its device tree); "
                + ("use the device host" if self.address == "local" else "give the address of one")
            )
        return seen

    @functools.cached_property
    def seen(self) -> Snapshot:
        """The board as it was when it was first looked at: what does not change in a run."""
        return self.look()

    @functools.cached_property
    def hello(self) -> dict[str, Any]:
        """What the agent's Python says of itself and its machine."""
        process = self.start("hello", {})
        try:
            told = next((dict(e) for e in process.events(30.0) if e["event"] == "hello"), {})
        except TimeoutError as error:
            raise TransientError(f"{self.name}: the agent does not answer: {error}") from error
        finally:
            process.stop()
        return {k: v for k, v in told.get("facts", {}).items() if k not in ("boot_id",)}

    @functools.cached_property
    def _rails_and_problems(self) -> tuple[list[rails.Rail], list[str]]:
        return rails.rails(self.seen)

    @property
    def rails(self) -> list[rails.Rail]:
        """The rails whose files read sanely."""
        return self._rails_and_problems[0]

    @property
    def problems(self) -> list[str]:
        """Why other rails are not among them, with their files."""
        return self._rails_and_problems[1]

    def volts(self, rail: str) -> float | None:
        """A rail's voltage as its file told it."""
        return next((r.volts for r in self.rails if r.name == rail), None)

    def shunt_ohm(self, rail: str) -> float:
        """The shunt of a rail: by hand, as the chip tells, by the module's device tree, or the coarsest known."""
        by_hand = self._shunts_ohm.get(rail)
        told = next((r.shunt_ohm for r in self.rails if r.name == rail and r.shunt_ohm), None)
        module = (facts.module(self.seen) or "").partition("-")[0]
        return by_hand or told or rails.MODULE_SHUNT_OHM.get(module, rails.COARSEST_SHUNT_OHM)

    # -- ways to the rails

    @functools.cached_property
    def power_source(self) -> str | None:
        """The most trusted way that gives sane values, or the one that was asked for; None: there is none."""
        wanted = SOURCES if self.power == "auto" else (self.power,)
        return next((s for s in wanted if self.told_by(s).watts), None)

    @functools.cache  # noqa: B019  a device lives as long as its run
    def told_by(self, source: str) -> Told:
        """What one way to the rails says when it is tried."""
        if source == "ina3221":
            found, problems = self._rails_and_problems
            why = "; ".join(problems) or "no INA3221 or INA238 chip below /sys/bus/i2c shows its rails"
            return Told({r.name: r.watts for r in found}, {r.name: r.volts for r in found if r.volts}, why)
        if source == "tegrastats":
            return self._tried_tegrastats()
        told = self.jtop
        power = told.get("rails") or {}
        watts = {n: r["power_w"] for n, r in power.items() if r.get("power_w") is not None}
        volts = {n: r["voltage_v"] for n, r in power.items() if r.get("voltage_v")}
        return Told(watts, volts, str(told.get("problem") or "its service tells of no rail"))

    def _tried_tegrastats(self) -> Told:
        try:
            told = self.call("edgewatt.devices.agent.tegrastats:probe", {"lines": 2, "interval_ms": 100})
        except HarnessError as error:
            return Told(problem=str(error))
        watts = dict(told.get("rails") or {})
        return Told(watts, {}, str(told.get("problem") or "no rail in its lines"))

    def why_not(self, source: str) -> list[str]:
        """Why one way to the rails is not the one used, in a sentence; nothing for the one that is."""
        used = self.power_source
        if source == "ina3221":
            said = [f"{self.name}: {p}" for p in self.problems]
            return said if self.rails or said else [f"{self.name}: {self.told_by(source).problem}"]
        if source == used or (used and self.power == "auto"):
            return []
        told = self.told_by(source)
        return [] if told.watts else [f"{source}: {told.problem}"]

    @functools.cached_property
    def jtop(self) -> Mapping[str, Any]:
        """What jtop says of the board, or {"problem": why it does not}."""
        problem = ""
        for python in self._jtop_pythons():
            try:
                told: dict[str, Any] = self.call("edgewatt.devices.agent.jtop:facts", {}, python)
            except HarnessError as error:
                problem = problem or str(error)
                continue
            if not told.get("problem"):
                self._jtop_python = python
                return told
            problem = str(told["problem"])
        return {"problem": problem or "no Python with jetson-stats was found"}

    @property
    def jtop_python(self) -> str | None:
        """The Python that jtop answered to; None: the agent's own."""
        return self._jtop_python

    def _jtop_pythons(self) -> list[str | None]:
        """Pythons that may have jetson-stats: the one given, else the agent's, and that of the jtop command."""
        if self._jtop_python:
            return [self._jtop_python]
        first = (self.seen.answer("jtop") or "").strip()
        shebang = first[2:].split(" ")[0] if first.startswith("#!/") and "python" in first else None
        return list(dict.fromkeys([None, shebang, "/usr/bin/python3"] if shebang else [None, "/usr/bin/python3"]))


def _number(name: str, key: str, value: Any, least: float, most: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not least <= number <= most:
        raise UsageError(f"{name}: {key} is {value!r}; wanted a number from {least:g} to {most:g}")
    return number


def _text(name: str, key: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise UsageError(f"{name}: {key} is {value!r}; wanted a path")
    return value


def _table(name: str, key: str, value: Any, kind: type) -> dict[str, Any]:
    """A table of the device file: rail -> value."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}: {key} is {value!r}; wanted a table of rails, such as {{ VDD_IN = ... }}")
    try:
        return {str(k): kind(v) for k, v in value.items()}
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: {key}: {error}") from error


def _control(name: str, key: str, value: Any) -> Any:
    """A control's value as the board takes it; UsageError for what can be none."""
    text = str(value).strip()
    if key == "jetson_clocks":
        known = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        if text.lower() not in known:
            raise UsageError(f"{name}: jetson_clocks={value}: wanted true or false")
        return known[text.lower()]
    if key == "fan_speed":
        return _number(name, key, value, 0, 100)
    return text
