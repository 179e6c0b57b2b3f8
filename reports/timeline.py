"""A run over time: what every channel read, and which phase the run was in. Shared by the page and the paper figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgewatt.harness.analysis_view import Findings, on_device_clock
from edgewatt.harness.api import Channel, Floats, Phase, Run, Trace
from edgewatt.harness.energy_samples import GapError, samples
from edgewatt.reports import colours, numbers
from edgewatt.reports.thinning import Drawn, drawn

_QUANTITIES = {
    "power": "Power",
    "temperature": "Temperature",
    "frequency": "Clock frequency",
    "utilisation": "Utilisation",
    "throttled": "Throttling",
    "throttle": "Throttling",
    "memory": "Memory",
    "over_range": "At the meter's limit",
    "logic": "Digital inputs",
    "voltage": "Voltage",
    "current": "Current",
}
_GAP_READS = 3.0  # a line breaks where reads are this many times further apart than usual


@dataclass(frozen=True)
class Series:
    """One channel, as it is drawn: seconds since the run began, values in the panel's unit."""

    label: str
    covers: str
    colour: str
    dashed: bool
    points: Drawn
    is_step: bool  # a value stands for the time since the point before it
    is_difference: bool  # a counter, shown as power between two fresh readings
    idle: float | None = None  # measured idle level, in the panel's unit


@dataclass(frozen=True)
class Panel:
    """All channels of one quantity, in one unit."""

    quantity: str
    title: str
    unit: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Span:
    """A stretch of time, in seconds since the run began."""

    name: str
    start_s: float
    end_s: float
    words: str


@dataclass(frozen=True)
class Timeline:
    """Everything over time. `events` are gaps and restarts of counters; `notes` say what is not drawn."""

    panels: tuple[Panel, ...]
    phases: tuple[Span, ...]
    names: tuple[str, ...]  # of the phases, in order of first occurrence
    events: tuple[Span, ...]
    start_s: float
    end_s: float
    notes: tuple[str, ...]


def timeline(run: Run) -> Timeline:
    """The run over time, from its first phase on; without phases from its first sample on."""
    notes: list[str] = []
    traces = list(_on_one_clock(run, notes))
    starts = [p.start_s for p in run.phases] or [t.t_s[0] for t in traces if len(t.t_s)]
    origin_s = min(starts, default=0.0)
    events: list[Span] = []
    columns: dict[str, list[tuple[Channel, Series]]] = {}
    for trace in traces:
        for channel in trace.channels:
            if channel.quantity == "time":  # a meter's own clock, kept so that its times can be had again
                continue
            found = _series(run, trace, channel, origin_s, events, notes)
            if found:
                quantity = "power" if channel.is_energy else channel.quantity
                columns.setdefault(quantity, []).append((channel, found))
    order = list(_QUANTITIES)
    ordered = sorted(columns, key=lambda q: order.index(q) if q in order else len(order))
    ends = [p.end_s - origin_s for p in run.phases] + [float(t.t_s[-1]) - origin_s for t in traces if len(t.t_s)]
    begins = [0.0] + [float(t.t_s[0]) - origin_s for t in traces if len(t.t_s)]
    return Timeline(
        panels=tuple(_panel(q, columns[q]) for q in ordered),
        phases=tuple(_span(p, origin_s) for p in run.phases),
        names=tuple(dict.fromkeys(p.phase for p in run.phases)),
        events=tuple(events),
        start_s=min(begins),
        end_s=max(ends, default=1.0),
        notes=tuple(notes),
    )


def _on_one_clock(run: Run, notes: list[str]) -> Iterator[Trace]:
    """The traces with their times on the clock of the phases; one that nothing ties to it is left out and told."""
    clock = run.phases[0].clock if run.phases else ""
    for trace in run.traces:
        found = Findings()
        moved = on_device_clock(trace, run, found)[0]
        if clock and moved.clock != clock and trace.facts.get("clock_of") != "harness":
            why = [f.detail for f in found.flags] or [f"its clock is {trace.clock}, the phases' is {clock}"]
            notes.append(f"{trace.meter} is not drawn: {why[0]}")
            continue
        yield moved


def _span(p: Phase, origin_s: float) -> Span:
    items = f", {p.items} items" if p.items else ""
    words = f"{p.phase}, repeat {p.repeat + 1}: {numbers.format_quantity(p.duration_s, None, 's')}{items}"
    return Span(p.phase, p.start_s - origin_s, p.end_s - origin_s, words)


def _series(
    run: Run, trace: Trace, channel: Channel, origin_s: float, events: list[Span], notes: list[str]
) -> Series | None:
    """One channel as it is drawn, in SI units; None where it has too few readings."""
    label = f"{trace.meter}: {channel.name}"
    if channel.kind == "counter" and channel.is_energy:
        try:
            t, y, gaps = _power(trace, channel.name, events, label, origin_s)
        except GapError as error:
            notes.append(f"not drawn: {error}")
            return None
    else:
        y = trace.column(channel.name)
        if not np.isfinite(y).any():
            notes.append(f"{label} is not drawn: it gave no reading")
            return None
        t, gaps = trace.t_s, _gaps(trace, y)
    for start, end in gaps:
        words = f"{label}: no reading for {numbers.format_quantity(end - start, None, 's')}"
        events.append(Span("gap", start - origin_s, end - origin_s, words))
    is_counter = channel.kind == "counter"
    return Series(
        label=label,
        covers=channel.covers,
        colour="",
        dashed=False,
        points=drawn(t - origin_s, y, gaps - origin_s if len(gaps) else None),
        is_step=is_counter,
        is_difference=is_counter and channel.is_energy,
        idle=_idle_w(run, trace, channel) if channel.is_energy else None,
    )


def _power(trace: Trace, name: str, events: list[Span], label: str, origin_s: float) -> tuple[Floats, Floats, Floats]:
    """A counter as power (W): the mean between two fresh readings, put at the later one; and its gaps (k, 2)."""
    s = samples(trace, name)
    watts = np.concatenate([[np.nan], np.diff(s.value) / np.diff(s.t_s)])
    watts[s.lost + 1] = np.nan  # it restarted in between: nothing is known of it
    for k in s.lost:
        start, end = float(s.t_s[k]), float(s.t_s[k + 1])
        events.append(Span("restart", start - origin_s, end - origin_s, f"{label}: the counter started anew"))
    gaps = s.gaps()
    return s.t_s, watts, gaps[~np.isin(gaps[:, 0], s.t_s[s.lost])]


def _gaps(trace: Trace, y: Floats) -> Floats:
    """Stretches (k, 2) in which a gauge was not read, on the trace's clock."""
    t = trace.t_s[np.isfinite(y)]
    apart = np.diff(t)
    if not len(apart):
        return np.empty((0, 2))
    limit_s = _GAP_READS * float(np.median(apart))
    told = trace.facts.get("gap_limit_s")
    if isinstance(told, (int, float)):
        limit_s = max(limit_s, float(told))
    k = np.flatnonzero(apart > limit_s)
    return np.column_stack([t[k], t[k + 1]])


def _idle_w(run: Run, trace: Trace, channel: Channel) -> float | None:
    """The measured idle power of this very channel, if the run has it."""
    alone = sum(c.is_energy for c in trace.channels) == 1
    names = {f"{trace.meter}/{channel.name}", f"{trace.meter}:{channel.name}"} | ({trace.meter} if alone else set())
    for m in run.measurements:
        if m.meter in names and (m.metric == "idle_power_w" or (m.metric, m.phase) == ("power_w", "idle")):
            return m.value
    return None


def _panel(quantity: str, columns: Sequence[tuple[Channel, Series]]) -> Panel:
    unit = "W" if quantity == "power" else columns[0][0].unit
    tops = [float(np.nanmax(np.abs(s.points.y))) for _, s in columns if np.isfinite(s.points.y).any()]
    factor, written = numbers.axis(max(tops, default=1.0), unit)
    if quantity == "utilisation" and unit == "1":
        factor, written = 100.0, "%"
    series = tuple(
        replace(
            s,
            colour=colours.series(k),
            dashed=k >= len(colours.SERIES),
            points=replace(s.points, y=s.points.y * factor),
            idle=None if s.idle is None else s.idle * factor,
        )
        for k, (_, s) in enumerate(columns)
    )
    return Panel(quantity, _QUANTITIES.get(quantity, quantity.capitalize()), written, series)


def merged(events: Sequence[Span], most: int = 200) -> tuple[Span, ...]:
    """Events for drawing: those at the same time once, the longest `most` of them."""
    seen = {(e.name, e.start_s, e.end_s): e for e in reversed(events)}
    longest = sorted(seen.values(), key=lambda e: e.start_s - e.end_s)[:most]
    return tuple(sorted(longest, key=lambda e: e.start_s))
