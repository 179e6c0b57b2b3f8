"""Runs of questions asked one after the other, made from closed forms: power is constant while one is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgewatt.harness.api import Channel, Floats, Items, Phase, Trace
from support import made_run as made

# Two questions: one takes 2 s at 5 W, 0.5 s of it until the first token; the other 1 s at 25 W, 0.75 s of it.
SECONDS, FIRST_S, WATTS = (2.0, 1.0), (0.5, 0.75), (5.0, 25.0)
JOULES = (10.0, 25.0)
TURNS = ((0, 1, 0, 1, 0), (1, 0, 1))  # two windows; each is asked four times


def asked(
    windows: Sequence[Sequence[int]], seconds: Sequence[float] = SECONDS, first_s: Sequence[float] = FIRST_S
) -> tuple[list[Phase], Items]:
    """Windows of items, each the index of its input, one after the other from 100 s on; 1 s between two windows."""
    rows: list[tuple[float, ...]] = []
    phases, now = [], 100.0
    for repeat, pictures in enumerate(windows):
        start = now
        for k, p in enumerate(pictures):
            rows.append((k, p, 0, repeat, now, now + first_s[p], 100))
            rows.append((k, p, 1, repeat, now + first_s[p], now + seconds[p], 1))
            now += seconds[p]
        phases.append(Phase("window", start, now, len(pictures), repeat))
        now += 1.0
    item, picture, phase, repeat, start_s, end_s, tokens = (np.array(c) for c in zip(*rows, strict=True))
    zero = np.zeros(len(item), np.int64)
    return phases, Items(("prefill", "decode"), item, picture, phase, zero, repeat, start_s, end_s, ("window",), tokens)


def knots(items: Items, watts: Sequence[float] = WATTS) -> tuple[Floats, Floats]:
    """Times (n + 1,) at which the power changes, and the power in between: that of the input, 1 W outside."""
    first = np.flatnonzero(np.diff(items.item, prepend=-1) | np.diff(items.repeat, prepend=0))
    last = np.append(first[1:], len(items)) - 1
    times, levels = [items.start_s[0] - 10], []
    for a, b in zip(first, last, strict=True):
        if items.start_s[a] > times[-1] + 1e-9:
            times.append(items.start_s[a])
            levels.append(1.0)
        times.append(items.end_s[b])
        levels.append(watts[items.picture[a]])
    return np.array([*times, times[-1] + 10]), np.array([*levels, 1.0])


def counted(
    items: Items, watts: Sequence[float] = WATTS, rate_hz: float = 100.0, channel: Channel | None = None, **facts: Any
) -> Trace:
    """A counter refreshed at every read."""
    at = knots(items, watts)
    t = np.arange(round((at[0][-1] - at[0][0]) * rate_hz) + 1) / rate_hz + at[0][0]
    return Trace("rapl", "boottime", (channel or made.counter(),), t, made.joules(t, at)[:, None], facts)


def gauged(items: Items, watts: Sequence[float] = WATTS, rate_hz: float = 1000.0, noise_w: float = 0.01) -> Trace:
    """Read at uneven times, as by any program: the power changes at another place between two reads each time."""
    random, at = np.random.default_rng(1), knots(items, watts)
    n = round((at[0][-1] - at[0][0]) * rate_hz)
    t = (np.arange(n) + random.uniform(0.1, 0.9, n)) / rate_hz + at[0][0]
    noise = noise_w * random.standard_normal(n)
    return Trace("hwmon", "boottime", (made.gauge(),), t, (made.level(t, at) + noise)[:, None])
