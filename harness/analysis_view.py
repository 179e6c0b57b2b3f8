"""A run as the analysis sees it: sane phases, whole items, traces on the device's clock; and what is found in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewatt.harness import flags, pulses
from edgewatt.harness.alignment import AlignmentError
from edgewatt.harness.analysis_recording import aligned
from edgewatt.harness.api import ClockOffset, Flag, Floats, Ints, Items, Measurement, Phase, Run, Trace
from edgewatt.harness.calibrated import applied, calibration_of, in_full

SEED = 20230  # of every bootstrap: the same raw samples give the same numbers, to the last digit
WINDOW, WARMUP, IDLE = "window", "warmup", "idle"
WHOLE_RUN = "run"  # the phase of figures that belong to no phase in particular


@dataclass
class Findings:
    """Measurements, flags and warnings, as they are found."""

    measurements: list[Measurement] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def measured(self, *args: Any, **kwargs: Any) -> None:
        """Adds a Measurement; one that is not finite is left out with a warning: no number is better than a NaN."""
        m = Measurement(*args, **kwargs)
        if not np.isfinite(m.value):
            self.warnings.append(f"{m.meter or m.phase}: {m.metric} of {m.phase} came out as {m.value}; left out")
            return
        if m.uncertainty is not None and not np.isfinite(m.uncertainty):  # one value alone: its spread is unknown
            known = {k: v for k, v in m.parts.items() if np.isfinite(v)}
            m = dataclasses.replace(m, uncertainty=None, parts=known)
        self.measurements.append(m)

    def doubt(self, flag: str, detail: str, meter: str = "", voids: Sequence[str] | None = None) -> None:
        """Adds a Flag; `voids` None: everything that this flag voids where it applies in full."""
        self.flags.append(Flag(flag, flags.voided_by(flag) if voids is None else tuple(voids), detail, meter))


@dataclass(frozen=True)
class View:
    """A run's complete phases (n > 0 seconds long, in order of time) and the items with sane times."""

    run: Run
    phases: tuple[Phase, ...]
    items: Items

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the phases, in order of first occurrence."""
        return tuple(dict.fromkeys(p.phase for p in self.phases))

    def named(self, name: str) -> tuple[Phase, ...]:
        """The phases of that name, in order of time."""
        return tuple(p for p in self.phases if p.phase == name)

    def shortest_s(self, names: Iterable[str]) -> dict[str, float]:
        """Length of the shortest phase of each of these names, where there is one."""
        return {n: min(p.duration_s for p in self.named(n)) for n in names if self.named(n)}

    def intervals(self, name: str) -> Floats:
        """Start and end (k, 2) of the phases of that name, in order of time."""
        return np.array([(p.start_s, p.end_s) for p in self.named(name)], np.float64).reshape(-1, 2)

    def whole_items(self, name: str) -> WholeItems:
        """The items that ran in the phases of that name, each from its first phase's start to its last one's end."""
        return _whole_items(self.items, name, self.intervals(name))

    def counts(self, name: str) -> Ints:
        """Items (k,) in each of the phases of that name: those recorded, or where none were, those it says it had."""
        phases = self.named(name)
        recorded = self.whole_items(name)
        if len(recorded.start_s) == 0:
            return np.array([p.items for p in phases], np.int64)
        return np.bincount(recorded.interval, minlength=len(phases)).astype(np.int64)

    def tokens(self, part: str, phase: str) -> Ints:
        """Tokens (k,) that one phase of the items worked on in each of the intervals of a part."""
        steps = self.steps(part, phase)
        found = np.zeros(len(self.named(part)), np.int64)
        np.add.at(found, steps.interval, steps.tokens)
        return found

    def item_phases(self) -> tuple[str, ...]:
        """The phases an item of the window is made of, in order of first occurrence."""
        part = _index(self.items.parts, WINDOW)
        used = self.items.phase[self.items.part == part]
        firsts = {int(k): int(np.argmax(used == k)) for k in np.unique(used)}
        return tuple(self.items.names[k] for k in sorted(firsts, key=firsts.__getitem__))

    def steps(self, part: str, phase: str) -> Steps:
        """Every step of one phase of the items of one part, in the intervals of that part alone."""
        return steps_of(self.items, part, phase, self.intervals(part))

    def spans(self, part: str, phase: str) -> Steps:
        """The same with the steps of an item that follow one another taken together."""
        return self.steps(part, phase).together()


@dataclass(frozen=True)
class Steps:
    """Steps of one phase in order of time; all arrays (n,).

    `begun_s` is when the item began, `so_far` its tokens up to the step's end, over all its phases. `item` is a running
    number over all repeats, `stretch` one for each unbroken row of steps, `interval` that of the interval they ran in.
    """

    start_s: Floats
    end_s: Floats
    begun_s: Floats
    tokens: Ints
    so_far: Ints
    item: Ints
    stretch: Ints
    interval: Ints

    @property
    def duration_s(self) -> Floats:
        return self.end_s - self.start_s

    def where(self, mask: npt.NDArray[np.bool_]) -> Steps:
        """Those for which `mask` (n,) holds."""
        return Steps(*(getattr(self, f.name)[mask] for f in dataclasses.fields(self)))

    def together(self) -> Steps:
        """One for each stretch."""
        first = np.flatnonzero(np.diff(self.stretch, prepend=-1))
        if len(first) == len(self.stretch):
            return self
        last = np.append(first[1:], len(self.stretch)) - 1
        tokens = np.add.reduceat(self.tokens, first)
        kept = (c[first] for c in (self.item, self.stretch, self.interval))
        return Steps(self.start_s[first], self.end_s[last], self.begun_s[first], tokens, self.so_far[last], *kept)


@dataclass(frozen=True)
class WholeItems:
    """Items in order of time: start, end (n,), and which of the phases (a running number) each ran in."""

    start_s: Floats
    end_s: Floats
    interval: Ints

    @property
    def duration_s(self) -> Floats:
        return self.end_s - self.start_s

    def by_interval(self) -> list[Floats]:
        """The durations of the items of each phase that had any."""
        return [self.duration_s[self.interval == k] for k in np.unique(self.interval)]


def view(run: Run, found: Findings) -> View:
    """The run without what cannot be used: phases of no length, a window cut off by an error, items that run backwards.

    What was left out is said in the warnings.
    """
    phases = []
    for p in run.phases:
        if p.phase == pulses.PULSE:  # they tie clocks together, and are nothing of the job
            continue
        if not (np.isfinite(p.start_s) and np.isfinite(p.end_s) and p.end_s > p.start_s):
            found.warnings.append(f"{p.phase} of repeat {p.repeat} lasts {p.end_s - p.start_s:.3g} s; left out")
        elif _is_cut_off(p, run):
            found.warnings.append(
                f"{p.phase} of repeat {p.repeat} was cut off after {p.duration_s:.3g} s; its figures are left out"
            )
        else:
            phases.append(p)
    return View(run, tuple(sorted(phases, key=lambda p: p.start_s)), _sane_items(run.items, found))


def _is_cut_off(phase: Phase, run: Run) -> bool:
    """Whether an error ended this window before its time."""
    wanted_s = run.spec.get("window_s")
    if run.error is None or phase.phase != WINDOW or not isinstance(wanted_s, (int, float)):
        return False
    return phase.duration_s < wanted_s


def _sane_items(items: Items, found: Findings) -> Items:
    good = np.isfinite(items.start_s) & np.isfinite(items.end_s) & (items.end_s >= items.start_s)
    if not good.all():
        found.warnings.append(f"{np.sum(~good)} of {len(items)} item phases end before they start; left out")
    order = np.flatnonzero(good)
    order = order[np.argsort(items.start_s[order], kind="stable")]
    names = ("item", "picture", "phase", "part", "repeat", "start_s", "end_s", "tokens")
    return dataclasses.replace(items, **{k: getattr(items, k)[order] for k in names})


def _whole_items(items: Items, part: str, intervals: Floats) -> WholeItems:
    mask = items.part == _index(items.parts, part)
    order = np.lexsort((items.start_s[mask], items.item[mask], items.repeat[mask]))
    repeat, item = items.repeat[mask][order], items.item[mask][order]
    start, end = items.start_s[mask][order], items.end_s[mask][order]
    if len(item) == 0:
        return WholeItems(np.empty(0), np.empty(0), np.empty(0, np.int64))
    first = np.flatnonzero(np.diff(repeat, prepend=repeat[0] - 1) | np.diff(item, prepend=item[0] - 1))
    start, end = start[first], np.maximum.reduceat(end, first)
    within = _containing(start, end, intervals)
    order = np.flatnonzero(within >= 0)
    order = order[np.argsort(start[order], kind="stable")]
    return WholeItems(start[order], end[order], within[order])


def steps_of(items: Items, part: str, phase: str, intervals: Floats | None = None) -> Steps:
    """The steps of one phase of the items of one part; within one of the `intervals` (k, 2), where these are given."""
    mask = items.part == _index(items.parts, part)
    of_phase, tokens = items.phase[mask], items.tokens[mask]
    item = _runs(items.repeat[mask], items.item[mask])
    so_far = np.cumsum(tokens)
    first = np.searchsorted(item, item)  # row of each row's item
    before = (so_far - tokens)[first]  # tokens of the items before
    start, end = items.start_s[mask], items.end_s[mask]
    interval = np.zeros(len(start), np.int64) if intervals is None else _containing(start, end, intervals)
    every = Steps(start, end, start[first], tokens, so_far - before, item, _runs(item, of_phase), interval)
    return every.where((of_phase == _index(items.names, phase)) & (interval >= 0))


def _runs(*columns: Ints) -> Ints:
    """A running number (n,) of the rows: a new one wherever one of the columns changes."""
    changes = np.zeros(len(columns[0]), np.bool_)
    for c in columns:
        changes[1:] |= c[1:] != c[:-1]
    return np.cumsum(changes)


def _containing(start: Floats, end: Floats, intervals: Floats) -> Ints:
    """Which interval (of a rising, disjoint list) each [start, end] lies in; -1 for none."""
    if len(intervals) == 0:
        return np.full(len(start), -1, np.int64)
    slack_s = 1e-6  # times are kept as float seconds: a microsecond of uptime-sized rounding is not an escape
    k = np.searchsorted(intervals[:, 0] - slack_s, start, side="right") - 1
    inside = (k >= 0) & (end <= intervals[np.maximum(k, 0), 1] + slack_s)
    return np.where(inside, k, -1).astype(np.int64)


def _index(names: Sequence[str], name: str) -> int:
    """The name's place, or -1, which matches no row."""
    return names.index(name) if name in names else -1


def on_device_clock(trace: Trace, run: Run, found: Findings) -> tuple[Trace, float]:
    """The trace with its times on the clock of the run's phases, and the bound (s) of what that adds to each time.

    A meter of the device shares its clock. One that is read by the harness (facts["clock_of"] == "harness") is moved
    by the measured offset; a recording ("recording") by the pulses in it, or not at all, and then its own clock stays
    and a flag says why. A meter that knows a bound of its own tells it as facts["clock_bound_s"].
    Times that do not rise are left out.
    """
    trace, delay_error_s = applied(trace)
    bound_s = float(trace.facts.get("clock_bound_s") or 0.0) + delay_error_s
    if told := calibration_of(trace):
        found.warnings.append(in_full(trace.meter, told))
    t_s = trace.t_s
    if trace.facts.get("clock_of") == "harness":
        t_s = _to_device(t_s, run.clock_offset)
        bound_s += run.clock_offset.bound_s
    elif trace.facts.get("clock_of") == "recording":
        try:
            trace, tied = aligned(trace, run)
        except AlignmentError as error:
            found.doubt(flags.CLOCK_SKEW, str(error), trace.meter)
        else:
            t_s, bound_s = trace.t_s, bound_s + tied.bound_s
            if tied.note:
                found.warnings.append(f"{trace.meter}: {tied.note}")
    rising = np.isfinite(t_s)
    rising[rising] = np.diff(np.maximum.accumulate(t_s[rising]), prepend=-np.inf) > 0
    if not rising.all():
        found.warnings.append(
            f"{trace.meter}: {np.sum(~rising)} of {len(t_s)} samples are not later than the one before; left out"
        )
        facts = dict(trace.facts)
        if "clock_starts" in facts:
            facts["clock_starts"] = np.unique(np.r_[0, rising.cumsum()][facts["clock_starts"]]).tolist()
        return dataclasses.replace(trace, t_s=t_s[rising], values=trace.values[rising], facts=facts), bound_s
    return (trace if t_s is trace.t_s else dataclasses.replace(trace, t_s=t_s)), bound_s


def _to_device(t_s: Floats, c: ClockOffset) -> Floats:
    return t_s + c.offset_s + c.drift * (t_s - c.at_s)
