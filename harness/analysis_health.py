"""What the device went through while it was measured: temperature, clocks, load, throttling, the cost of sampling."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgewatt.harness import flags, statistics
from edgewatt.harness.analysis_view import WHOLE_RUN, WINDOW, Findings, View
from edgewatt.harness.api import Channel, Floats, Ints, Trace

THROTTLED_SHARE = 0.05  # a clock that falls by more than this within the windows was taken down
HOTTER_C = 1.0  # below it, a rise of temperature is not told from noise


def health(view: View, traces: Sequence[Trace], found: Findings) -> None:
    """Health figures over the windows, per meter, and the flag `throttled`."""
    for trace in traces:
        inside = [_samples(trace, p.start_s, p.end_s) for p in view.named(WINDOW)]
        inside = [k for k in inside if len(k)]
        if inside:
            _temperature(trace, inside, found)
            _levels(trace, inside, found)
        _cost(trace, found)
    _throttling(view, traces, found)


def _samples(trace: Trace, start_s: float, end_s: float) -> Ints:
    """Indices of the samples in [start, end]."""
    return np.arange(*np.searchsorted(trace.t_s, [start_s, end_s + 1e-9]))


@dataclass(frozen=True)
class _Level:
    """A level over the windows: its mean with half-width and parts, its extremes, and how many readings it is of."""

    mean: float
    width: float | None
    parts: dict[str, float]
    low: float
    high: float
    n: int


def _level(values: Floats, inside: Sequence[Ints], quantum: float | None) -> _Level | None:
    """None where there is no reading. The mean is taken over all readings; its spread is that of the windows' means."""
    by_window = [v[np.isfinite(v)] for v in (values[k] for k in inside)]
    by_window = [v for v in by_window if len(v)]
    if not by_window:
        return None
    every = np.concatenate(by_window)
    parts = {}
    if quantum:
        parts["quantisation"] = quantum / 2
    if len(by_window) > 1:
        parts["repeats"] = statistics.mean_t(np.array([v.mean() for v in by_window]))[1]
    width = math.hypot(*parts.values()) or None  # readings that are all alike say nothing of how well they are known
    return _Level(float(every.mean()), width, parts, float(every.min()), float(every.max()), len(every))


def _temperature(trace: Trace, inside: Sequence[Ints], found: Findings) -> None:
    levels = {}
    for k, channel in enumerate(trace.channels):
        if channel.quantity == "temperature":
            level = _level(trace.values[:, k], inside, channel.quantum)
            if level is None:
                found.warnings.append(f"{trace.meter}/{channel.name}: no temperature was read in the windows")
            else:
                levels[channel.name] = level
    if not levels:
        return
    name = max(levels, key=lambda c: levels[c].high)
    top = levels[name]
    which = name if len(levels) == 1 else f"{name}, the hottest of {len(levels)} channels"
    found.measured(
        "temperature_c", top.mean, top.width, "degC", WINDOW, top.n, f"mean over the windows of {which}; no account "
        "is taken of the sensor's own error", trace.meter, parts=top.parts,
    )  # fmt: skip
    found.measured(
        "temperature_max_c", top.high, None, "degC", WINDOW, top.n, f"highest reading in the windows of {which}",
        trace.meter,
    )  # fmt: skip


def stems(channels: Sequence[Channel], quantity: str) -> dict[str, list[int]]:
    """Columns of one quantity that belong together, by their name without its numbers: cpu0, cpu1 -> "cpu"."""
    found: dict[str, list[int]] = {}
    for k, c in enumerate(channels):
        if c.quantity == quantity:
            found.setdefault(re.sub(r"\d+", "", c.name).strip(" -_/.:"), []).append(k)
    return found


def _levels(trace: Trace, inside: Sequence[Ints], found: Findings) -> None:
    """Mean (and for clocks the lowest) of each kind of channel; cores of one kind are taken together."""
    for quantity, metric, unit in (("frequency", "frequency_hz", "Hz"), ("utilisation", "utilisation", "1")):
        groups = stems(trace.channels, quantity)
        for stem, columns in groups.items():
            values = _row_mean(trace.values[:, columns])
            level = _level(values, inside, trace.channels[columns[0]].quantum)
            meter = trace.meter if len(groups) == 1 else f"{trace.meter}/{stem}"
            if level is None:
                found.warnings.append(f"{meter}: no {quantity} was read in the windows")
                continue
            what = (
                trace.channels[columns[0]].name if len(columns) == 1 else f"the mean of {len(columns)} {stem} channels"
            )
            method = f"mean over the windows of {what}"
            found.measured(metric, level.mean, level.width, unit, WINDOW, level.n, method, meter, parts=level.parts)
            if quantity == "frequency":
                method = f"lowest reading in the windows of {what}"
                found.measured("frequency_min_hz", level.low, None, unit, WINDOW, level.n, method, meter)


def _row_mean(values: Floats) -> Floats:
    """Mean of each row's readings (n,); NaN where a row has none."""
    seen = np.isfinite(values)
    n = seen.sum(axis=1)
    total = np.where(seen, values, 0.0).sum(axis=1)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def sampling_cost(trace: Trace) -> tuple[float, float | None] | None:
    """CPU seconds a second that a meter cost where it was sampled: all of it, and what a service that reads for it had.

    The first holds the sampler, the programs it starts and that service; None where it was not told. The second is
    None where there is no such service, NaN where nobody saw what it used: then it is not in the first either.
    """
    notes = trace.facts.get("notes")
    own = _number(trace.facts.get("cpu_s_per_s"))
    if own is None or not isinstance(notes, Mapping) or "service_cpu_s_per_s" not in notes:
        return None if own is None else (own, None)
    service = _number(notes["service_cpu_s_per_s"])
    return (own, math.nan) if service is None else (own + service, service)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _cost(trace: Trace, found: Findings) -> None:
    cost = sampling_cost(trace)
    if cost is None:
        return
    every, service = cost
    share = "" if service is None else f", {service:.2g} of it the service's that reads for it"
    if service is not None and math.isnan(service):
        share = ", without the (unknown) one of the service that reads for it"
    method = f"processor time of the sampler by the time it ran{share}"
    found.measured("sampler_cpu_s_per_s", every, None, "1", WHOLE_RUN, 1, method, trace.meter)


# ---------------------------------------------------------------------------------------------------------------------
# Throttling


def _throttling(view: View, traces: Sequence[Trace], found: Findings) -> None:
    """A clock that falls while it gets hotter voids; a throttle counter that moved with the clock unmoved is told."""
    windows = view.named(WINDOW)
    if not windows:
        return
    falls, clocks_seen = [], False
    for trace in traces:
        for stem, columns in stems(trace.channels, "frequency").items():
            # Idle cores clock as they like: the fastest core of a kind shows what the kind is allowed.
            fastest = np.fmax.reduce(trace.values[:, columns], axis=1)
            ends = _first_and_later(trace, fastest, [(p.start_s, p.end_s) for p in windows])
            if ends is None:
                continue
            clocks_seen = True
            start_hz, low_hz, where = ends
            if start_hz > 0 and low_hz < (1 - THROTTLED_SHARE) * start_hz:
                falls.append((trace.meter, stem, start_hz, low_hz, where))
    rise = _warming(view, traces)
    for meter, stem, start_hz, low_hz, where in falls:
        fall = f"{stem} clock fell from {start_hz / 1e6:.4g} MHz to {low_hz / 1e6:.4g} MHz in window {where + 1}"
        limit = f"({low_hz / start_hz - 1:+.1%}, limit {-THROTTLED_SHARE:.0%})"
        if rise is None:
            found.doubt(flags.THROTTLED, f"{fall} {limit}; no temperature could be read beside it", meter, voids=())
        elif rise > HOTTER_C:
            found.doubt(
                flags.THROTTLED, f"{fall} {limit} while it got {rise:.1f} degC hotter; let it cool, or cap the clock"
            )
    for trace in traces:
        for k, channel in enumerate(trace.channels):
            if channel.quantity in ("throttle", "throttled"):
                _throttle_channel(view, trace, channel, trace.values[:, k], bool(clocks_seen and not falls), found)


def _throttle_channel(
    view: View, trace: Trace, channel: Channel, values: Floats, is_clock_held: bool, found: Findings
) -> None:
    said = []
    for k, p in enumerate(view.named(WINDOW)):
        column = values[_samples(trace, p.start_s, p.end_s)]
        column = column[np.isfinite(column)]
        if len(column) == 0:
            continue
        if channel.kind == "counter":
            if column[-1] > column[0]:
                said.append(f"rose from {column[0]:g} to {column[-1]:g} in window {k + 1} (limit: no rise)")
        elif column.max() > 0:
            said.append(f"was {column.max():g} at most, and above 0 for {np.mean(column > 0):.1%} of window {k + 1}")
    if said:
        held = "; the clock itself held, so the numbers stand" if is_clock_held else ""
        detail = f"{trace.meter}/{channel.name} {'; it '.join(said)}{held}"
        found.doubt(flags.THROTTLED, detail, voids=() if is_clock_held else None)


def _first_and_later(
    trace: Trace, values: Floats, windows: Sequence[tuple[float, float]]
) -> tuple[float, float, int] | None:
    """Median at the start of the first window, the lowest median of a window's last third, and which window's it is."""
    lows = []
    start = math.nan
    for k, (start_s, end_s) in enumerate(windows):
        if k == 0:
            start = _median(values[_samples(trace, start_s, start_s + 0.1 * (end_s - start_s))])
        lows.append(_median(values[_samples(trace, end_s - (end_s - start_s) / 3, end_s)]))
    if math.isnan(start) or all(map(math.isnan, lows)):
        return None
    where = int(np.nanargmin(lows))
    return start, lows[where], where


def _warming(view: View, traces: Sequence[Trace]) -> float | None:
    """Largest rise of a temperature from the start of the first window to the end of any, degC; None: none readable."""
    windows = view.named(WINDOW)
    tenth_s = 0.1 * windows[0].duration_s
    rises = []
    for trace in traces:
        for k, channel in enumerate(trace.channels):
            if channel.quantity == "temperature":
                first = _median(trace.values[_samples(trace, windows[0].start_s, windows[0].start_s + tenth_s), k])
                for p in windows:
                    rises.append(_median(trace.values[_samples(trace, p.end_s - p.duration_s / 3, p.end_s), k]) - first)
    rises = [r for r in rises if math.isfinite(r)]
    return max(rises) if rises else None


def _median(values: Floats) -> float:
    seen = values[np.isfinite(values)]
    return float(np.median(seen)) if len(seen) else math.nan
