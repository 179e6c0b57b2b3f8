"""What a meter's energy figures are made of, and every doubt about its samples, each with numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewatt.harness import flags
from edgewatt.harness.analysis_view import IDLE, WINDOW, Findings, View
from edgewatt.harness.api import Channel, Floats, Phase, Trace
from edgewatt.harness.channels import groups, parts
from edgewatt.harness.energy import (
    Energy,
    GapError,
    UpdatePeriod,
    energies,
    energy,
    minimum_window_s,
    sum_of,
    update_period,
)

COVERED = 0.95  # the least share of a window that must lie near a fresh reading
EDGES = 0.02  # the most that the edges of a window may add to its energy's uncertainty
STALE_PERIODS = 20  # a sensor whose readings change by chance stands still for so long once in a million times
USUAL_READS, USUAL_SHARE = 100, 0.95  # a sensor that gave so many readings, and so many of them new, is no still load
STALE_SHARE = 0.05  # and a shorter part of the window than this does not matter
CLOCK_SHARE = 0.01  # the most of a phase's energy that may hang on which clock is right
SLICE_PERIODS = 20  # see `supported`


def supported(update_period_s: float, phase_length_s: float) -> bool:
    """Whether a sensor is fast enough to slice a window into phases that short.

    Interpolating between refreshes smears a step of power over one update period, so a phase loses up to about T/6 of
    the step at each of its ends, to the same side each time: many items do not average it out. With at least 20
    periods in a phase that is less than 2 % of the step.
    """
    return phase_length_s >= SLICE_PERIODS * update_period_s


@dataclass(frozen=True)
class Source:
    """Channels of one meter whose joules make one figure: a root, a sum of roots, or one part shown as a split."""

    trace: Trace
    channels: tuple[Channel, ...]
    meter: str  # as measurements and flags name it
    boundary: str
    name: str  # "package-0", "sum of GPU + CPU"
    bound_s: float  # how well the trace's clock is tied to that of the phases
    is_part: bool = False

    def energy(self, start_s: float, end_s: float) -> Energy:
        """Energy between two times; GapError where a channel's samples do not carry it."""
        each = [energy(self.trace, c.name, start_s, end_s, clock_bound_s=self.bound_s) for c in self.channels]
        return each[0] if len(each) == 1 else sum_of(each)

    @property
    def is_still(self) -> bool:
        """Whether a channel showed one reading all along, in steps of a size nobody told us.

        What it stands for may then be anything that rounds to that reading: there is no error bar to be had.
        """
        return any(not c.quantum and update_period(self.trace, c.name).fresh == 1 for c in self.channels)

    @property
    def is_gain_told(self) -> bool:
        """Whether the error bars hold the sensor's own gain error.

        One that has another part there (rounding, a calibration's fit) tells as facts["gain_error_told"] None that its
        own is not known.
        """
        is_told = self.trace.facts.get("gain_error_told", 0.0) is not None
        return is_told and all(c.gain_error is not None for c in self.channels)

    @property
    def renewal(self) -> str:
        """How often it gives a new reading, in words: it may be slower than it is read, never faster."""
        often = "" if self.update.known else " or less often"
        return f"renews its reading every {self.update.period_s:.3g} s{often}"

    def budget(self, intervals: Floats) -> tuple[Floats, dict[str, Floats]]:
        """Energies (k,) of many intervals (k, 2), and the parts of their error bars; GapError as `energy`."""
        each = [energies(self.trace, c.name, intervals, clock_bound_s=self.bound_s) for c in self.channels]
        parts = {
            name: np.sum([e.parts[name] for e in each], axis=0)
            if name in ("gain", "clock")
            else np.sqrt(np.sum([e.parts[name] ** 2 for e in each if name in e.parts], axis=0))
            for name in dict.fromkeys(p for e in each for p in e.parts)
        }
        return np.sum([e.energy_j for e in each], axis=0), parts

    @property
    def update(self) -> UpdatePeriod:
        """Of the slowest of the channels."""
        return max((update_period(self.trace, c.name) for c in self.channels), key=lambda u: u.period_s)


def sources(trace: Trace, bound_s: float) -> Iterator[Source]:
    """The groups of roots, the widest first under the meter's own name, then every part under the channel's."""
    for k, g in enumerate(groups(trace.channels)):
        meter = trace.meter if k == 0 else f"{trace.meter}/{g.label}"
        yield Source(trace, g.roots, meter, g.boundary, g.label, bound_s)
    for c in parts(trace.channels):
        yield Source(trace, (c,), f"{trace.meter}/{c.name}", c.boundary, c.name, bound_s, is_part=True)


def is_complete(source: Source, found: Findings) -> bool:
    """Whether every channel gave readings; if not, the flag `rail_missing` is raised."""
    silent = [c.name for c in source.channels if np.isfinite(source.trace.column(c.name)).sum() < 2]
    if silent:
        n = len(source.trace.t_s)
        why = "; ".join(f"{c}: {_error(source.trace, c)}" for c in silent)
        detail = f"{len(silent)} of {len(source.channels)} channels gave fewer than 2 readings in {n} samples ({why})"
        found.doubt(flags.RAIL_MISSING, detail, source.meter)
    return not silent


def _error(trace: Trace, channel: str) -> str:
    errors = trace.facts.get("errors") or {}
    seen = errors.get(channel) or {}
    return f"{seen.get('count')} errors, the last {seen.get('text')}" if seen else "no error was told"


def sample_doubts(view: View, trace: Trace, found: Findings) -> None:
    """Doubts about a whole trace: charging, and why it ended."""
    if trace.facts.get("ended"):
        found.warnings.append(f"{trace.meter} stopped before it was asked to: {trace.facts['ended']}")
    _pace(trace, found)
    share = trace.facts.get("charging")
    if isinstance(share, (bool, int, float)) and share > 0:
        detail = f"something fed the device beside its battery during {float(share):.1%} of the readings (limit: none)"
        found.doubt(flags.CHARGING, f"{detail}; unplug it", trace.meter)
    _over_range(view, trace, found)
    for channel in trace.channels:
        if channel.quantity != "charging":
            continue
        on = {p: _readings(trace, channel.name, view.named(p)) > 0 for p in (WINDOW, IDLE)}
        where = next((p for p in (WINDOW, IDLE) if on[p].any()), None)
        if where:
            detail = f"{channel.name}: {on[where].sum()} of {len(on[where])} readings in {where} say so (limit: none)"
            voids = flags.ENERGY_METRICS if where == WINDOW else flags.NET_METRICS
            found.doubt(flags.CHARGING, f"{detail}; unplug it", trace.meter, voids)


def _over_range(view: View, trace: Trace, found: Findings) -> None:
    """A meter that tells which of its samples were at its limit: what lay above is not in them."""
    for channel in trace.channels:
        if channel.quantity != "over_range":
            continue
        shares = {p: _readings(trace, channel.name, view.named(p)) for p in (WINDOW, IDLE)}
        where = next((p for p in (WINDOW, IDLE) if (shares[p] > 0).any()), None)
        if where:
            detail = (
                f"{channel.name}: {np.mean(shares[where]):.2%} of the samples in {where} were at the limit of the "
                "meter's range (limit: none); use one with a wider range"
            )
            voids = flags.ENERGY_METRICS if where == WINDOW else flags.NET_METRICS
            found.doubt(flags.OVER_RANGE, detail, trace.meter, voids)


def _pace(trace: Trace, found: Findings) -> None:
    """A service that goes at the pace of somebody else."""
    notes = _notes(trace)
    asked, got = notes.get("interval_asked_s"), notes.get("interval_service_s") or notes.get("interval_s")
    if notes.get("other_client") and isinstance(asked, (int, float)) and isinstance(got, (int, float)):
        detail = (
            f"asked for a reading every {asked:.3g} s, the service gives one every {got:.3g} s, as its first client "
            "wanted (limit: the interval asked for): close other programs that use it"
        )
        found.doubt(flags.SHARED_METER, detail, trace.meter)


def restarted(trace: Trace) -> str:
    """In words, how often the program that gives the readings had to be started again, and why; "" if never."""
    notes = _notes(trace)
    times, why = notes.get("restarts"), notes.get("why")
    if not isinstance(times, int) or times < 1:
        return ""
    reasons = f" ({'; '.join(map(str, why))})" if isinstance(why, Sequence) and why and not isinstance(why, str) else ""
    return f"what gives its readings was started again {times} time(s){reasons}"


def _notes(trace: Trace) -> Mapping[str, Any]:
    """What a stream told beside its readings."""
    notes = trace.facts.get("notes")
    return notes if isinstance(notes, Mapping) else {}


def _readings(trace: Trace, channel: str, phases: tuple[Phase, ...]) -> Floats:
    """All readings of a channel that fall into the phases, missing ones left out."""
    column = trace.column(channel)
    each = [column[slice(*np.searchsorted(trace.t_s, [p.start_s, p.end_s]))] for p in phases]
    every = np.concatenate([np.empty(0), *each])
    return np.asarray(every[np.isfinite(every)])


def window_doubts(view: View, source: Source, by_phase: dict[str, list[Energy]], found: Findings) -> None:
    """Doubts about one source in the windows and in idle: what it could not see, and what it repeated."""
    _too_short(view, source, found)
    _gaps(view, source, found)
    _stale(view, source, found)
    for name, voids in ((WINDOW, flags.ENERGY_METRICS), (IDLE, flags.NET_METRICS)):
        each = by_phase.get(name, [])
        if not each:
            continue
        least = min(each, key=lambda e: e.coverage)
        if least.coverage < COVERED:
            detail = f"{source.name}: {least.coverage:.1%} of {name} has a fresh reading near it (limit {COVERED:.0%})"
            found.doubt(flags.LOW_COVERAGE, detail, source.meter, voids)
        resets = sum(e.resets for e in each)
        if resets:
            detail = (
                f"{source.name} jumped back {resets} time(s) in {name} (limit: none); the joules around it are lost"
            )
            found.doubt(flags.COUNTER_RESET, detail, source.meter, voids)


def clock_doubt(source: Source, name: str, total: Energy, found: Findings, voids: tuple[str, ...]) -> bool:
    """Whether the clocks are tied too loosely for this phase's energy; if so, the flag `clock_skew` is raised."""
    skew_j = total.parts.get("clock", 0.0)
    if skew_j <= CLOCK_SHARE * abs(total.energy_j):
        return False
    detail = (
        f"{source.name}: the meter's clock is tied to the device's within {source.bound_s * 1e3:.3g} ms, which moves "
        f"{skew_j:.3g} J of the {total.energy_j:.4g} J of {name} ({skew_j / abs(total.energy_j or np.nan):.1%}, "
        f"limit {CLOCK_SHARE:.0%})"
    )
    found.doubt(flags.CLOCK_SKEW, detail, source.meter, voids)
    return True


def too_short(source: Source, lengths_s: Mapping[str, float]) -> tuple[tuple[str, ...], str]:
    """Which phases (name -> s) are too short for the source's update period, and the same in words."""
    needed_s = minimum_window_s(source.update.period_s, EDGES)
    short = {name: length_s for name, length_s in lengths_s.items() if length_s < needed_s}
    lasted = ", ".join(f"{name} lasted {length_s:.3g} s" for name, length_s in short.items())
    words = (
        f"{source.name} {source.renewal}, so a phase must last {needed_s:.3g} s to be known within {EDGES:.0%} at its "
        f"edges; {lasted}"
    )
    return tuple(short), words


def _too_short(view: View, source: Source, found: Findings) -> None:
    short, why = too_short(source, view.shortest_s([WINDOW]))
    if short:
        found.doubt(flags.WINDOW_TOO_SHORT, f"{why}: raise window_s (and max_window_s)", source.meter)


def _gaps(view: View, source: Source, found: Findings) -> None:
    """The longest time without a reading of a channel in a window, against the limit the sampler was held to.

    Channel by channel: those of different chips are read at moments of their own.
    """
    trace = source.trace
    told = trace.facts.get("gap_limit_s")
    worst_s, worst_k, of_limit_s = 0.0, 0, 0.0
    for channel in source.channels:
        t_s = trace.t_s[np.isfinite(trace.column(channel.name))]
        if len(t_s) < 2:
            continue
        gaps_s = np.diff(t_s)
        limit_s = 3 * max(source.update.period_s, float(np.median(gaps_s)))
        if isinstance(told, (int, float)):
            limit_s = max(limit_s, float(told))
        for k, p in enumerate(view.named(WINDOW)):
            within = slice(max(np.searchsorted(t_s, p.start_s) - 1, 0), np.searchsorted(t_s, p.end_s))
            gap_s = float(gaps_s[within].max(initial=0.0))
            if gap_s > max(limit_s, worst_s):
                worst_s, worst_k, of_limit_s = gap_s, k, limit_s
    if worst_s:
        detail = f"{source.name}: {worst_s:.3g} s without a reading in window {worst_k + 1} (limit {of_limit_s:.3g} s)"
        why = restarted(trace)
        found.doubt(flags.GAP, f"{detail}: {why}" if why else detail, source.meter)


def _stale(view: View, source: Source, found: Findings) -> None:
    """A sensor that used to change and then repeats itself, judged by its own update period over the whole trace.

    And counters that never grew: power may stand still for as long as it likes, energy cannot.
    """
    counters = [c for c in source.channels if c.kind == "counter"]
    if counters and all(update_period(source.trace, c.name).fresh == 1 for c in counters):
        seconds = float(np.ptp(source.trace.t_s))
        found.doubt(flags.STALE, f"{source.name} counted nothing in {seconds:.3g} s (limit: some growth)", source.meter)
    for channel in source.channels:
        column = source.trace.column(channel.name)
        usual_s = _usual_s(source.trace, channel.name)
        if usual_s is None:
            continue
        for k, p in enumerate(view.named(WINDOW)):
            inside = slice(*np.searchsorted(source.trace.t_s, [p.start_s, p.end_s]))
            good = np.isfinite(column[inside])
            t_s = source.trace.t_s[inside][good]
            longest_s = float(np.ptp(t_s[_longest_repeat(t_s, column[inside][good])])) if len(t_s) else 0.0
            limit_s = max(STALE_PERIODS * usual_s, STALE_SHARE * p.duration_s)
            if longest_s > limit_s:
                detail = (
                    f"{channel.name} repeated one reading for {longest_s:.3g} s of window {k + 1}; it usually changes "
                    f"every {usual_s:.3g} s (limit {limit_s:.3g} s)"
                )
                found.doubt(flags.STALE, detail, source.meter)
                break


def _usual_s(trace: Trace, channel: str) -> float | None:
    """How often a channel's readings change (s), where that can be told; else None.

    A sensor that hangs for most of a run hides its update period: then it is that of the reads, if apart from the
    longest repeat (nearly) every read brought something new. A load that stands still now and then is none such.
    """
    update = update_period(trace, channel)
    if update.known:
        return update.period_s
    good = np.isfinite(trace.column(channel))
    t_s, values = trace.t_s[good], trace.column(channel)[good]
    repeat = _longest_repeat(t_s, values)
    is_new = np.concatenate([np.diff(values[: repeat.start + 1]), np.diff(values[repeat.stop - 1 :])]) != 0
    return update.period_s if len(is_new) >= USUAL_READS and np.mean(is_new) >= USUAL_SHARE else None


def _longest_repeat(t_s: Floats, values: Floats) -> slice:
    """The samples, of one or more, over which the readings did not change for the longest time."""
    turns = np.flatnonzero(np.diff(values)) + 1  # first sample of each new value
    first = np.concatenate([[0], turns])
    last = np.concatenate([turns - 1, [len(t_s) - 1]])
    k = int(np.argmax(t_s[last] - t_s[first]))
    return slice(int(first[k]), int(last[k]) + 1)


def attempt(source: Source, name: str, phases: tuple[Phase, ...]) -> tuple[list[Energy], str]:
    """The energy of each phase, and "" - or nothing, and why the samples do not carry all of them."""
    try:
        return [source.energy(p.start_s, p.end_s) for p in phases], ""
    except GapError as error:
        return [], f"{name}: {error}"
