"""Runs whose numbers are written by hand, so that a report's text can be too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache

import numpy as np

from edgewatt.harness.api import Channel, Flag, Items, Measurement, Phase, Run, Trace
from support.example_run import example_run

GAIN_AND_EDGE = {"gain": 0.0004, "edge": 0.0003}  # 0.0005 together

MEASURED = (
    Measurement("latency_s", 0.0199536, 0.00008, "s", "window", 1503, "by hand"),
    Measurement("latency_p90_s", 0.02075, 0.00012, "s", "window", 1503, "by hand"),
    Measurement("latency_p99_s", 0.0259, 0.001, "s", "window", 1503, "by hand"),
    Measurement("latency_s", 0.0139, 0.0001, "s", "detect", 1503, "by hand"),
    Measurement("latency_s", 0.0041, 0.0001, "s", "preprocess", 1503, "by hand"),
    Measurement("throughput_fps", 50.1234, 0.2, "1/s", "window", 1503, "by hand"),
    Measurement("energy_per_inference_j", 0.0123456, 0.0005, "J", "window", 1503, "by hand", "rapl", "package",
                GAIN_AND_EDGE),
    Measurement("energy_per_inference_net_j", 0.0103, 0.0006, "J", "window", 1503, "by hand", "rapl", "package"),
    Measurement("power_w", 5.4321, 0.043, "W", "window", 3, "by hand", "rapl", "package"),
    Measurement("power_w", 1.0, 0.02, "W", "idle", 4, "by hand", "rapl", "package"),
    Measurement("ap", 0.2345, None, "1", "", 90, "by hand"),
    Measurement("ap50", 0.4567, None, "1", "", 90, "by hand"),
)  # fmt: skip


@cache
def _example(with_power: bool) -> Run:
    return example_run(1, with_power=with_power)


def hand_run(
    *,
    measured: Sequence[Measurement] = MEASURED,
    flags: Sequence[Flag] = (),
    with_power: bool = True,
    **changes: object,
) -> Run:
    """The example run with other conclusions, and whatever else is to be changed; without power it has no joules."""
    if not with_power:
        measured = [m for m in measured if m.unit not in ("J", "W")]
    run = dataclasses.replace(_example(with_power), measurements=tuple(measured), flags=tuple(flags), warnings=())
    return dataclasses.replace(run, **changes)  # type: ignore[arg-type]


def bare_run(*, phases: Sequence[Phase] = (), traces: Sequence[Trace] = (), **changes: object) -> Run:
    """A run that holds nothing but what is given."""
    run = Run("20260101T000000-00000000", "2026-01-01T00:00:00Z", "board", "femtodet", {}, {})
    return dataclasses.replace(run, phases=tuple(phases), traces=tuple(traces), **changes)  # type: ignore[arg-type]


def items_of(latencies_s: Sequence[float], start_s: float = 10.0) -> tuple[Items, Phase]:
    """Items of one phase, one right after the other, in one window that they fill."""
    ends = start_s + np.cumsum(latencies_s)
    starts = np.concatenate([[start_s], ends[:-1]])
    n, zeros = np.arange(len(ends)), np.zeros(len(ends), np.int64)
    items = Items(("detect",), n, n, zeros, zeros, zeros, starts, ends, ("window",))
    return items, Phase("window", start_s, float(ends[-1]), len(ends))


def trace_of(
    channel: Channel, t_s: Sequence[float], values: Sequence[float], meter: str = "m", **facts: object
) -> Trace:
    """The samples of one channel."""
    return Trace(meter, "boottime", (channel,), np.asarray(t_s, float), np.asarray(values, float)[:, None], facts)
