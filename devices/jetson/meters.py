"""The three ways to a Jetson's rails, in the order they are trusted: the chips' own files, tegrastats, jtop.

All three show the same chips. The files are read at the pace asked for and cost least; tegrastats and jtop read them
in a rhythm of their own, truncated to milliwatts. Which one a board has is told by values read, never by a program or
a package being there (`Jetson.power_source`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.jetson import rails
from edgewatt.harness.api import Channel, Device, Floats, Meter, Trace, UsageError

if TYPE_CHECKING:
    from edgewatt.devices.jetson.device import Jetson

TEGRASTATS = "edgewatt.devices.agent.tegrastats:stream"
JTOP = "edgewatt.devices.agent.jtop:stream"

# A load that repeats in step with the reads is invisible to them. Round intervals meet round loads (0.5 s against
# 10 Hz), so what is asked for is a little less: times this, 5, 10, 20, 25, 30, 50 and 60 Hz are out of step.
OFF_BEAT = 0.9236
# Both cut a product of millivolts and milliamperes down to whole milliwatts: up to 1 mW too low, on top of the step.
TRUNCATED_W = 2e-3
SHORTEST_S, LONGEST_S = 0.1, 10.0  # below it jtop's client gives up on a busy board


def board(device: Device, source: str) -> Jetson | None:
    """The device, if it is a Jetson that this source of power is used on."""
    return device if device.kind == "jetson" and device.power_source == source else None  # type: ignore[return-value, attr-defined]


def jetson(device: Device, what: str) -> Jetson:
    """The device as a Jetson; UsageError if it is none."""
    if device.kind != "jetson":
        raise UsageError(f"meter {what}: {device.name} is a {device.kind}, wanted a jetson; leave it out")
    return device  # type: ignore[return-value]


class Ina3221(AgentMeter):
    """The rails' own files: voltage, current and their product of each, read one right after the other."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        found = board(device, "ina3221")
        return [cls.of(found)] if found else []

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        return device.why_not("ina3221") if device.kind == "jetson" else ()  # type: ignore[attr-defined]

    @classmethod
    def attached_to(cls, device: Device, address: str, **options: Any) -> Meter:
        _no_options("ina3221", options)
        if address:
            raise UsageError(f"meter ina3221: found by itself, has no address, found {address!r}; leave it out")
        return cls.of(jetson(device, "ina3221"))

    @classmethod
    def of(cls, device: Jetson) -> Ina3221:
        """The meter of a board whose files can be read; UsageError if none can."""
        if not device.rails:
            raise UsageError(f"meter ina3221: {'; '.join(device.why_not('ina3221'))}")
        return cls(device, device.rails)

    def __init__(self, device: Jetson, found: Sequence[rails.Rail]) -> None:
        self._rails = tuple(found)
        update_s = max((r.update_s for r in found if r.update_s), default=None)
        rate_hz = device.rate_hz
        if update_s:  # two reads for each round of conversions show its pace; more only load the bus
            rate_hz = min(rate_hz, 2 / update_s)
        powers = rails.channels(
            [r.name for r in found],
            {r.name: rails.quantum_w(device.shunt_ohm(r.name), r.volts) for r in found},
            overrides=device.parents,
            age_s=min(update_s or 1 / rate_hz, 1 / rate_hz),
            averaging={r.name: r.update_s if r.averages else None for r in found},
        )
        channels = [c for rail, power in zip(found, powers, strict=True) for c in _with_factors(rail, power)]
        nodes = [
            {"path": path, "name": name}
            for r in found
            for path, name in zip(r.files, _factors(r) if r.is_product else [r.name], strict=True)
        ]
        super().__init__(device, "ina3221", channels, {"rate_hz": rate_hz, "nodes": nodes}, clock=device.clock)

    def converted(self, raw: Floats) -> Floats:
        """Millivolts and milliamperes (or microwatts) of each rail as V, A and W."""
        columns: list[Floats] = []
        k = 0
        for rail in self._rails:
            here = raw[:, k : k + len(rail.files)]
            k += len(rail.files)
            if rail.is_product:
                columns += [here[:, 0] * 1e-3, here[:, 1] * 1e-3]
            columns.append(np.prod(here, axis=1) * 1e-6)
        return np.stack(columns, axis=1)

    def stop(self) -> Trace:
        """As every meter's; a file's errors are told for the power that is made of it, too."""
        trace = super().stop()
        errors = dict(trace.facts.get("errors") or {})
        for rail in self._rails:
            failing = [errors[name] for name in _factors(rail) if name in errors]
            if failing:
                errors.setdefault(rail.name, failing[0])
        return replace(trace, facts={**trace.facts, "errors": errors}) if errors else trace


class _Stream(AgentMeter):
    """Rails as a program on the board tells them, in its own rhythm."""

    kind_name: str
    stream: str

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        found = board(device, cls.kind_name)
        return [cls.of(found, found.interval_s)] if found else []

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        return device.why_not(cls.kind_name) if device.kind == "jetson" else ()  # type: ignore[attr-defined]

    @classmethod
    def attached_to(cls, device: Device, address: str, **options: Any) -> Meter:
        _no_options(cls.kind_name, options)
        found = jetson(device, cls.kind_name)
        return cls.of(found, interval(cls.kind_name, address) if address else found.interval_s)

    @classmethod
    def of(cls, device: Jetson, interval_s: float) -> _Stream:
        """The meter of a board that answers; UsageError with the reason if it does not."""
        told = device.told_by(cls.kind_name)
        if not told.watts:
            raise UsageError(f"meter {cls.kind_name}: {told.problem}")
        period_s = interval_s * OFF_BEAT
        known = [r.name for r in device.rails]  # a sum is called the same whoever tells its rails
        names = [*(n for n in known if n in told.watts), *(n for n in told.watts if n not in known)]
        steps_w = {
            name: rails.quantum_w(device.shunt_ohm(name), told.volts.get(name) or device.volts(name)) for name in names
        }
        quanta = {name: step_w and step_w + TRUNCATED_W for name, step_w in steps_w.items()}
        channels = rails.channels(names, quanta, overrides=device.parents)
        return cls(device, cls.kind_name, channels, cls.wanted(device, period_s, names), clock=device.clock)

    @classmethod
    def wanted(cls, device: Jetson, period_s: float, names: Sequence[str]) -> dict[str, Any]:
        """What the agent is asked to sample."""
        raise NotImplementedError


class Tegrastats(_Stream):
    """NVIDIA's own printer of one line an interval; the first figure of each rail, never its running average."""

    kind_name = "tegrastats"
    stream = TEGRASTATS

    @classmethod
    def wanted(cls, device: Jetson, period_s: float, names: Sequence[str]) -> dict[str, Any]:
        params = {"interval_ms": round(period_s * 1e3), "rails": list(names)}
        return {"rate_hz": 1 / period_s, "stream": cls.stream, "params": params}


class Jtop(_Stream):
    """The service of jetson-stats, asked by its own client; power now, never its filtered average or its total."""

    kind_name = "jtop"
    stream = JTOP

    @classmethod
    def wanted(cls, device: Jetson, period_s: float, names: Sequence[str]) -> dict[str, Any]:
        params = {"interval_s": round(period_s, 4), "rails": list(names)}
        return {"rate_hz": 1 / period_s, "stream": cls.stream, "params": params, "python": device.jtop_python}


def interval(what: str, value: Any) -> float:
    """Seconds between two readings as somebody wrote them; UsageError for what is none."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if isinstance(value, bool) or not SHORTEST_S <= seconds <= LONGEST_S:
        raise UsageError(f"{what}: an interval of {value!r}; wanted {SHORTEST_S:g} to {LONGEST_S:g} seconds")
    return seconds


def _no_options(what: str, options: Mapping[str, Any]) -> None:
    if options:
        raise UsageError(f"meter {what}: has no option {next(iter(options))!r}; leave it out")


def _factors(rail: rails.Rail) -> tuple[str, str]:
    return f"{rail.name} voltage", f"{rail.name} current"


def _with_factors(rail: rails.Rail, power: Channel) -> tuple[Channel, ...]:
    """Voltage and current as read, before their product; the product alone where the chip makes it."""
    if not rail.is_product:
        return (power,)
    volts, amperes = _factors(rail)
    covers = f"the module's rail {rail.name}"
    return Channel(volts, "voltage", "V", "gauge", covers), Channel(amperes, "current", "A", "gauge", covers), power
