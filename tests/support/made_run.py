"""Runs made by hand from closed forms: power is constant in every phase and changes half-way between two phases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgewatt.harness.api import Channel, Floats, Items, Measurement, Phase, Run, Trace

ITEM = {"preprocess": 0.02, "detect": 0.07, "postprocess": 0.01}  # s; an item lasts 0.1 s
PAUSE_S = 1.0  # between two phases; the power changes in its middle
WATTS = {"load": 5.0, "idle": 2.0, "warmup": 8.0, "window": 10.0, "preprocess": 9.0, "detect": 11.0, "postprocess": 4.0}


def phases(
    repeats: int = 2, *, window_s: float = 20.0, idle_s: float = 10.0, isolated_s: float = 0.0, items: int | None = None
) -> tuple[Phase, ...]:
    """Load, idle, and then warm-up, window, isolated phases, idle for each repeat; the first begins at 100 s."""
    found: list[Phase] = []

    def then(name: str, seconds: float, n: int = 0, repeat: int = 0) -> None:
        start = found[-1].end_s + PAUSE_S if found else 100.0
        found.append(Phase(name, start, start + seconds, n, repeat))

    then("load", 1.0)
    then("idle", idle_s)
    for r in range(repeats):
        then("warmup", 2.0, 20, r)
        then("window", window_s, round(window_s / 0.1) if items is None else items, r)
        for name, seconds in ITEM.items() if isolated_s else ():
            then(name, round(isolated_s / seconds) * seconds, round(isolated_s / seconds), r)
        then("idle", idle_s, 0, r)
    return tuple(found)


def items(of: Sequence[Phase], lengths: Mapping[str, float] = ITEM, first_s: float | None = None) -> Items:
    """Items one after the other in every warm-up and window; `first_s` is the length of the run's very first."""
    rows: list[tuple[int, int, int, int, float, float]] = []
    names, parts = tuple(lengths), ("warmup", "window")
    for p in of:
        now = p.start_s
        for n in range(p.items if p.phase in parts else 0):
            slower = 1.0 if rows or first_s is None else first_s / sum(lengths.values())
            for k, seconds in enumerate(lengths.values()):
                rows.append((n, k, parts.index(p.phase), p.repeat, now, now + seconds * slower))
                now += seconds * slower
    if not rows:
        return Items.none()
    item, phase, part, repeat, start, end = (np.array(c) for c in zip(*rows, strict=True))
    return Items(names, item, item % 7, phase, part, repeat, start, end, parts)


def lasting(durations_s: Sequence[float], start_s: float = 100.0, repeat: int = 0) -> tuple[Phase, Items]:
    """A window of items of one phase with the given lengths."""
    ends = start_s + np.cumsum(durations_s)
    starts = np.concatenate([[start_s], ends[:-1]])
    n = np.arange(len(ends))
    zero = np.zeros(len(ends), np.int64)
    window = Phase("window", start_s, float(ends[-1]), len(ends), repeat)
    return window, Items(("detect",), n, n, zero, zero, zero + repeat, starts, ends)


def knots(of: Sequence[Phase], watts: Mapping[str, float] | Sequence[float] = WATTS) -> tuple[Floats, Floats]:
    """Times (n + 1,) at which the power changes, and the power (n,) in between; one level per phase."""
    levels = [watts[p.phase] for p in of] if isinstance(watts, Mapping) else list(watts)
    middle = [p.end_s + PAUSE_S / 2 for p in of[:-1]]
    return np.array([of[0].start_s - 10.0, *middle, of[-1].end_s + 10.0]), np.array(levels, np.float64)


def joules(t_s: Floats, at: tuple[Floats, Floats]) -> Floats:
    """Energy since the first knot, at each of the times: the closed form."""
    times, levels = at
    return np.interp(t_s, times, np.concatenate([[0.0], np.cumsum(np.diff(times) * levels)]))


def stamps(of: Sequence[Phase], rate_hz: float = 100.0) -> Floats:
    """Sample times from before the first phase to after the last."""
    return np.arange(of[0].start_s - 5.0, of[-1].end_s + 5.0, 1 / rate_hz)


def counter(name: str = "package-0", boundary: str = "package", **more: Any) -> Channel:
    return Channel(name, "energy", "J", "counter", name, boundary, **more)


def gauge(name: str = "VDD_IN", boundary: str = "module", **more: Any) -> Channel:
    return Channel(name, "power", "W", "gauge", name, boundary, **more)


def counted(
    of: Sequence[Phase], watts: Mapping[str, float] | Sequence[float] = WATTS, *, rate_hz: float = 100.0,
    channel: Channel | None = None, meter: str = "rapl", **facts: Any,
) -> Trace:  # fmt: skip
    """A counter refreshed at every read."""
    t = stamps(of, rate_hz)
    return Trace(meter, "boottime", (channel or counter(),), t, joules(t, knots(of, watts))[:, None], facts)


def level(t_s: Floats, at: tuple[Floats, Floats]) -> Floats:
    """Power at each of the times."""
    times, levels = at
    return levels[np.clip(np.searchsorted(times, t_s, side="right") - 1, 0, len(levels) - 1)]


def gauged(
    of: Sequence[Phase], watts: Mapping[str, float] | Sequence[float] = WATTS, *, rate_hz: float = 100.0,
    noise_w: float = 0.01, channel: Channel | None = None, meter: str = "hwmon", **facts: Any,
) -> Trace:  # fmt: skip
    """A gauge with a new reading at every read: the level and a little noise, by which its period can be told."""
    t = stamps(of, rate_hz)
    noise = noise_w * np.random.default_rng(1).standard_normal(len(t))
    return Trace(meter, "boottime", (channel or gauge(),), t, (level(t, knots(of, watts)) + noise)[:, None], facts)


def run(of: Sequence[Phase], traces: Sequence[Trace] = (), its: Items | None = None, **more: Any) -> Run:
    whole: dict[str, Any] = {"spec": {"window_s": 1.0}, "device": {"kind": "host"}} | more
    return Run(
        "20260314T101500-ab", "2026-03-14T10:15:00Z", "host", "femtodet", phases=tuple(of), traces=tuple(traces),
        items=items(of) if its is None else its, **whole,
    )  # fmt: skip


def with_column(trace: Trace, values: Floats, column: int = 0) -> Trace:
    """The trace with other values in one column."""
    every = trace.values.copy()
    every[:, column] = values
    return dataclasses.replace(trace, values=every)


def one(
    measurements: Sequence[Measurement], metric: str, phase: str = "window", meter: str | None = None
) -> Measurement:
    """The one measurement of that name; fails where there is none, or more than one."""
    found = [m for m in measurements if (m.metric, m.phase) == (metric, phase) and meter in (None, m.meter)]
    assert len(found) == 1, f"{metric} of {phase}: {len(found)} found"
    return found[0]


def names(measurements: Sequence[Measurement]) -> set[tuple[str, str]]:
    return {(m.metric, m.phase) for m in measurements}
