"""Two meters of one device side by side: mean powers in the same bins, how far apart they are, how late one is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgewatt.harness import statistics
from edgewatt.harness.analysis_meter import Source, sources
from edgewatt.harness.api import Channel, Floats, Trace
from edgewatt.harness.channels import WIDEST_FIRST
from edgewatt.harness.energy_curve import Curve
from edgewatt.harness.energy_samples import GapError, samples

BIN_PERIODS = 5  # a bin is at least so many update periods of the slower meter long: its edges cost little of it
MOST_BINS = 500
MOST_STEPS = 1 << 17  # of the grid that a lag is looked for on
# A lag is looked for up to this, or so many update periods, but never in under 3/4 overlap.
FAR_S, FAR_PERIODS = 5.0, 20
ALIKE = 0.6  # correlation at the peak below which two powers have too little in common to say which is late
TIE = 0.02  # peaks of a load that repeats itself are as good as each other within this: the nearest to 0 is taken
BLOCKS = 20  # of the run, by which the lag's interval is had: errors within a block may depend on each other


@dataclass(frozen=True)
class Pair:
    """An external meter (`a`) and another meter of the same device (`b`)."""

    a: Source
    b: Source

    @property
    def name(self) -> str:
        """As measurements and flags name the two."""
        return f"{self.a.meter} vs {self.b.meter}"

    @property
    def period_s(self) -> float:
        """Update period of the slower one."""
        return max(self.a.update.period_s, self.b.update.period_s)

    @property
    def wider(self) -> int:
        """1 if `a` counts its joules further out than `b`, -1 if further in, 0 if the same or unknown."""
        places = [WIDEST_FIRST.index(s.boundary) if s.boundary in WIDEST_FIRST else -1 for s in (self.a, self.b)]
        # A "supply" nobody said more of may be any of the lines into the device: of two such, none is the wider one.
        lines = {"dc-input", "usb", "supply", "battery"}
        if -1 in places or {self.a.boundary, self.b.boundary} <= lines:
            return 0
        return int(np.sign(places[1] - places[0]))


@dataclass(frozen=True)
class BlandAltman:
    """Agreement of two meters, bin by bin: means and differences a - b (n,) in W.

    `bias_w` is the mean difference; 95 % of the differences lie from `low_w` to `high_w` if they are normal (Bland
    and Altman, Lancet 1986: bias ± 1.96 standard deviations).
    """

    mean_w: Floats
    difference_w: Floats
    bias_w: float
    low_w: float
    high_w: float
    bin_s: float


def is_external(trace: Trace) -> bool:
    """Whether somebody put this meter into the device's supply."""
    return "wiring" in trace.facts


def pairs(traces: Sequence[tuple[Trace, float]]) -> Iterator[Pair]:
    """Each external meter with each other meter's widest figure; two external ones once."""
    known = [(t, s) for t, bound_s in traces if (s := _widest(t, bound_s)) is not None]
    for k, (trace, a) in enumerate(known):
        if not is_external(trace):
            continue
        for j, (other, b) in enumerate(known):
            if j > k or (j < k and not is_external(other)):
                yield Pair(a, b)


def _widest(trace: Trace, bound_s: float) -> Source | None:
    """The source of the meter's widest root; None if it measures no energy, or gave no readings of it."""
    found = next((s for s in sources(trace, bound_s) if not s.is_part), None)
    if found is None or any(_readings(trace, c) < 2 for c in found.channels):
        return None
    return found


def _readings(trace: Trace, channel: Channel) -> int:
    return int(np.isfinite(trace.column(channel.name)).sum())


def power(source: Source, edges_s: Floats) -> Floats:
    """Mean power (n - 1,) in W between the edges (n,); NaN where a gap of a channel reaches into a bin."""
    total = np.zeros(len(edges_s) - 1)
    for c in source.channels:
        s = samples(source.trace, c.name)
        mean = np.diff(Curve(s).at(edges_s)) / np.diff(edges_s)
        for start_s, end_s in s.gaps():
            mean[(edges_s[:-1] < end_s) & (edges_s[1:] > start_s)] = np.nan
        mean[(edges_s[:-1] < s.first_s) | (edges_s[1:] > s.last_s)] = np.nan
        total += mean
    return total


def common_s(pair: Pair) -> tuple[float, float]:
    """From when to when both were read; GapError if never."""
    every = [samples(s.trace, c.name) for s in (pair.a, pair.b) for c in s.channels]
    start_s, end_s = max(s.first_s for s in every), min(s.last_s for s in every)
    if not end_s > start_s:
        raise GapError(f"{pair.name}: the two were never read at the same time")
    return start_s, end_s


def bland_altman(pair: Pair) -> BlandAltman | None:
    """The two powers in bins of the run; None with fewer than three bins that both meters saw whole."""
    start_s, end_s = common_s(pair)
    n = min(MOST_BINS, int((end_s - start_s) / (BIN_PERIODS * pair.period_s)))
    if n < 3:
        return None
    edges = np.linspace(start_s, end_s, n + 1)
    a, b = power(pair.a, edges), power(pair.b, edges)
    seen = np.isfinite(a) & np.isfinite(b)
    if np.count_nonzero(seen) < 3:
        return None
    mean, difference = (a + b)[seen] / 2, (a - b)[seen]
    bias, spread = float(np.mean(difference)), 1.96 * float(np.std(difference, ddof=1))
    return BlandAltman(mean, difference, bias, bias - spread, bias + spread, (end_s - start_s) / n)


# ---------------------------------------------------------------------------------------------------------------------
# How late one of them is


@dataclass(frozen=True)
class Lag:
    """By how much the readings of `b` come later than those of `a`; `parts` are 95 % half-widths in s."""

    lag_s: float
    parts: dict[str, float]
    correlation: float
    n: int


def lag(pair: Pair) -> Lag | str:
    """The lag of a pair's second meter over the whole run; or, in words, why it cannot be told.

    The peak of the correlation of both powers (means of a quarter of the slower one's update period) is refined by
    least squares, b(t) = offset + gain * a(t - lag); the interval is that of the fit, robust to errors that are
    alike within a 20th of the run.
    """
    start_s, end_s = common_s(pair)
    span_s = end_s - start_s
    step_s = max(pair.period_s / 4, span_s / MOST_STEPS)
    n = int(span_s / step_s)
    far = int(min(span_s / 4, max(FAR_S, FAR_PERIODS * pair.period_s)) / step_s)
    if n < 8 * BLOCKS or far < 2:
        return f"{span_s:.3g} s of both are too short for meters that renew their readings every {pair.period_s:.3g} s"
    edges: Floats = start_s + step_s * np.arange(n + 1, dtype=np.float64)
    a, b = _standard(power(pair.a, edges)), _standard(power(pair.b, edges))
    if a is None or b is None:
        return f"the power that {(pair.a if a is None else pair.b).meter} shows does not vary"
    found = _peak(a, b, far)
    if isinstance(found, str):
        return found
    k, correlation = found
    refined = _refined(a, b, float(k))
    if refined is None:
        return "the power does not vary enough for it"
    steps, width = refined
    every = [samples(s.trace, c.name) for s in (pair.a, pair.b) for c in s.channels[:1]]
    parts = {
        "fit": width * step_s,
        "clock": float(np.hypot(pair.a.bound_s, pair.b.bound_s)),
        "reads": math.hypot(*(float(np.median(s.slack_s)) + s.stamp_s for s in every)),
        # A step of power between two readings may have been anywhere between them, and if the load keeps time with the
        # readings it is on the same side each time. A meter that averages or counts has seen where it was.
        "sampling": math.hypot(*(0.0 if s.sums else s.update.period_s / 2 for s in every)),
    }
    return Lag(steps * step_s, parts, correlation, n)


def _standard(x: Floats) -> Floats | None:
    """The same with mean 0 and spread 1, missing bins 0; None if it is as good as constant."""
    seen = np.isfinite(x)
    if np.count_nonzero(seen) < len(x) / 2:
        return None
    spread = float(np.std(x[seen]))
    if not spread > 1e-6 * abs(float(np.mean(x[seen]))):
        return None
    return np.where(seen, (x - np.mean(x[seen])) / spread, 0.0)


def _peak(a: Floats, b: Floats, far: int) -> tuple[int, float] | str:
    """Where b is most like a shifted by whole steps, and how much; in words, why that is nowhere."""
    n = len(a)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size)
    products = np.fft.irfft(spectrum, size)
    shifts = np.arange(-far, far + 1)
    squares_a, squares_b = (np.concatenate([[0.0], np.cumsum(x * x)]) for x in (a, b))
    first, last = np.maximum(shifts, 0), n + np.minimum(shifts, 0)  # the part of b that a shifted a lies over
    of_b = squares_b[last] - squares_b[first]
    of_a = squares_a[last - shifts] - squares_a[first - shifts]
    r = products[shifts] / np.sqrt(np.maximum(of_a * of_b, 1e-12))
    inner = r[1:-1]
    tops = 1 + np.flatnonzero((inner >= r[:-2]) & (inner > r[2:]))
    best = float(r[tops].max(initial=-1.0))
    if best < ALIKE:
        return f"the power does not vary enough: the two have a correlation of {best:.2g} at most (limit {ALIKE:g})"
    near = tops[r[tops] >= best - TIE]
    k = int(near[np.argmin(np.abs(shifts[near]))])
    return int(shifts[k]), float(r[k])


def _refined(a: Floats, b: Floats, steps: float) -> tuple[float, float] | None:
    """The lag in (parts of) steps and its 95 % half-width, by least squares; None if there is nothing to fit."""
    at = np.arange(len(a), dtype=float)
    slope = np.gradient(a)
    start = steps
    for _ in range(8):
        inside = (at - steps >= 1) & (at - steps <= len(a) - 2)
        x, d = np.interp(at - steps, at, a)[inside], -np.interp(at - steps, at, slope)[inside]
        design = np.stack([np.ones(len(x)), x, d], axis=1)
        normal = design.T @ design
        if np.linalg.cond(normal) > 1e12:
            return None
        solved = np.linalg.solve(normal, design.T @ b[inside])
        if solved[1] <= 0:
            return None
        steps += float(np.clip(solved[2] / solved[1], -1.0, 1.0))
    if abs(steps - start) > 4:
        return None
    left = b[inside] - design @ solved
    scores = np.array([s.sum(axis=0) for s in np.array_split(design * left[:, None], BLOCKS)])
    inverse = np.linalg.inv(normal)
    covariance = inverse @ (scores.T @ scores) @ inverse * BLOCKS / (BLOCKS - 1)
    return steps, statistics.student(BLOCKS - 1) * float(np.sqrt(covariance[2, 2])) / float(solved[1])
