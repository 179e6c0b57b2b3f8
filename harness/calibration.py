"""A sensor fitted to a reference: gain, offset, delay and averaging window, with an interval for each.

A reading of the sensor at time t is taken to be

    (mean of the reference's power from t - delay - averaging to t - delay  -  offset) / gain

so that reference = gain * reading + offset. Gain and offset are linear and solved for inside; delay and averaging are
searched for, on ever finer grids, by least squares. The intervals of delay and averaging are those of the profile
likelihood: every pair is inside whose sum of squares exceeds the least by no more than chi-squared with one degree of
freedom allows (Venzon and Moolgavkar, Applied Statistics 37, 1988), for as many readings as are independent. Those of
gain and offset come from the spread of 20 stretches of the record, which need not be independent within.
A counter, and a sensor faster than the reference, is compared by means of equal stretches of time: then the averaging
cannot be told.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgewatt.harness import statistics
from edgewatt.harness.api import Channel, Floats, HarnessError, Trace
from edgewatt.harness.energy_curve import Curve
from edgewatt.harness.energy_samples import Samples, samples

CHI2 = 3.841  # 95 % of chi-squared with one degree of freedom
BLOCKS = 20
MOST = 20_000  # readings that are fitted: more say no more, and take long
EXPLAINED = 0.8  # share of the readings' variance that a fit must explain
LINEAR = 0.1  # the most a level may be off the line, as a share of the range of powers
VARIES = 0.05  # range of powers, as a share of their mean, below which gain and offset cannot be told apart
NOISE_RANGE = 5.0  # times the noise of one reading: more lies between the 5 % and the 95 % quantile of no noise (3.3)
LEVELS = 6  # stretches of the power's range by which linearity is looked at
WIDTH = 12  # of the grids, in steps to each side


@dataclass(frozen=True)
class Fit:
    """What was found; errors are half-widths of 95 % intervals. None: it cannot be told from this record."""

    gain: float
    gain_error: float
    offset_w: float
    offset_error_w: float | None
    delay_s: float | None
    delay_error_s: float | None
    averaging_s: float | None
    averaging_error_s: float | None
    scatter_w: float  # standard deviation of what is left of the readings
    explained: float  # share of their variance
    nonlinearity_w: float  # the mean of what is left, in the level where it is largest
    relative_error: float  # of a calibrated power, at the calibrated level where it is largest; the reference's apart
    least_w: float  # range of the reference's power it was found in, less the outer twentieths
    most_w: float
    n: int
    words: str  # what could not be told, and how the intervals were had

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class FitError(HarnessError):
    """The reference does not explain what the sensor showed."""


def fit(reference: Trace, reference_channel: str, own: Trace, own_channel: str, bound_s: float = 0.0) -> Fit:
    """The sensor `own` against `reference`, both on one clock, tied within `bound_s`.

    Raises:
        FitError: no line explains the readings, with the figures.
        GapError: one of them has too few readings.
    """
    truth = samples(reference, reference_channel)
    plain = _undated(own, own_channel)
    s = samples(plain, own_channel)
    is_binned = s.sums or truth.update.period_s > s.update.period_s
    data = _binned(truth, s) if is_binned else _readings(truth, s)
    who = f"{own.meter}/{own_channel} against {reference.meter}/{reference_channel}"
    if len(data.value) < 2 * BLOCKS:
        raise FitError(
            f"{who}: {len(data.value)} readings that both cover, wanted at least {2 * BLOCKS}; calibrate for longer"
        )
    flat = _flat(data)
    if flat is not None:
        return flat
    c, w = _searched(data)
    line = _line(data, c, w)
    if line.explained < EXPLAINED or line.slope <= 0:
        raise FitError(
            f"{who}: the best line explains {line.explained:.1%} of what the sensor showed (limit {EXPLAINED:.0%}, "
            f"slope {line.slope:.3g}, {line.scatter:.3g} W left of {np.std(data.value):.3g} W); is it the same "
            "device's power, and does the load move it?"
        )
    off, worst = _nonlinearity(line)
    if worst > LINEAR:
        raise FitError(
            f"{who}: no straight line: {off:.3g} W off at one level, {worst:.1%} of the range (limit {LINEAR:.0%}); "
            "the two do not measure the same power"
        )
    return _fit(data, line, c, w, off, bound_s)


# ---------------------------------------------------------------------------------------------------------------------
# What is compared


@dataclass(frozen=True)
class _Data:
    """Readings (n,), each of a stretch that ends at `end_s`; `span_s` (n,) of them, None where it is searched for."""

    truth: Curve
    end_s: Floats
    value: Floats
    span_s: Floats | None
    period_s: float  # of the sensor's readings
    least_s: float  # of the reference's
    slack_s: float  # how far the readings' times may all be off

    def mean(self, centre_s: float, averaging_s: float) -> Floats:
        """The reference's mean power (n,) before each reading; `centre_s` is the delay of the stretch's middle."""
        if self.span_s is None:
            span: Floats | float = max(averaging_s, self.least_s)
            end = self.end_s - centre_s + span / 2
        else:
            span, end = self.span_s, self.end_s - centre_s
        return np.asarray((self.truth.at(end) - self.truth.at(end - span)) / span)


def _undated(own: Trace, name: str) -> Trace:
    """The trace without what its maker says of averaging: that is what is looked for."""
    k = next(k for k, c in enumerate(own.channels) if c.name == name)
    c = own.channels[k]
    bare = Channel(c.name, c.quantity, c.unit, c.kind, c.covers, c.boundary, quantum=c.quantum, wraps_at=c.wraps_at,
                   age_s=c.age_s)  # fmt: skip
    return Trace(own.meter, own.clock, (bare,), own.t_s, own.values[:, k : k + 1], own.facts)


def _readings(truth: Samples, s: Samples) -> _Data:
    far_s = _far_s(s)
    good = _apart(truth, s.t_s - 2 * far_s, s.t_s + far_s) & np.isfinite(s.value)
    every = np.flatnonzero(good)[:: max(1, math.ceil(np.count_nonzero(good) / MOST))]
    slack_s = float(np.median(s.slack_s)) + s.stamp_s
    return _Data(
        Curve(truth), s.t_s[every], s.value[every], None, s.update.period_s, truth.update.period_s, slack_s
    )  # fmt: skip


def _binned(truth: Samples, s: Samples) -> _Data:
    """Means of stretches; of a counter between its own readings where these are slower than the reference."""
    if s.sums and s.update.period_s >= truth.update.period_s:
        edges = s.t_s
    else:
        step_s = 2 * max(truth.update.period_s, s.update.period_s)
        edges = np.arange(s.first_s, s.last_s, step_s)
    mine, far_s = Curve(s), _far_s(s)
    start, end = edges[:-1], edges[1:]
    good = _apart(truth, start - far_s, end + far_s) & _apart(s, start, end) & (end > start)
    span = (end - start)[good]
    value = (mine.at(end[good]) - mine.at(start[good])) / span
    slack_s = float(np.median(s.slack_s)) + s.stamp_s + (truth.update.period_s / 2 if not truth.sums else 0.0)
    return _Data(Curve(truth), end[good], value, span, float(np.median(span)), truth.update.period_s, slack_s)


def _apart(s: Samples, start_s: Floats, end_s: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which stretches lie between the first and the last read, and touch no gap."""
    good = (start_s >= s.first_s) & (end_s <= s.last_s)
    for a, b in s.gaps():
        good &= (end_s <= a) | (start_s >= b)
    return good


def _far_s(s: Samples) -> float:
    """How late a sensor may be, or over how long it may average, to be found."""
    return float(np.clip(4 * s.update.period_s, 1.0, 5.0))


# ---------------------------------------------------------------------------------------------------------------------
# Least squares


@dataclass(frozen=True)
class _Line:
    """reading = level + slope * mean of the reference."""

    slope: float
    level: float
    mean: Floats
    left: Floats

    @property
    def squares(self) -> float:
        return float(self.left @ self.left)

    @property
    def scatter(self) -> float:
        return math.sqrt(self.squares / max(len(self.left) - 4, 1))

    @property
    def explained(self) -> float:
        value = self.level + self.slope * self.mean + self.left
        return 1.0 - self.squares / max(float(np.sum((value - value.mean()) ** 2)), 1e-300)


def _line(data: _Data, centre_s: float, averaging_s: float) -> _Line:
    m, v = data.mean(centre_s, averaging_s), data.value
    about = m - m.mean()
    slope = float(about @ v) / max(float(about @ about), 1e-300)
    level = float(v.mean() - slope * m.mean())
    return _Line(slope, level, m, v - level - slope * m)


def _searched(data: _Data) -> tuple[float, float]:
    """Delay of the middle, and length, of the stretch that explains the readings best."""
    far_s = float(np.clip(4 * data.period_s, 1.0, 5.0))
    spans = [0.0] if data.span_s is not None else list(np.linspace(0.0, far_s, 13))
    step = far_s / 40
    tried = [(_line(data, c, w).squares, c, w) for c in np.arange(-far_s / 2, far_s, step) for w in spans]
    _, c, w = min(tried)
    step_w = far_s / 12
    while step > max(1e-5, data.period_s / 500):
        cs = c + step * np.linspace(-1, 1, 7)
        ws = [0.0] if data.span_s is not None else np.maximum(0.0, w + step_w * np.linspace(-1, 1, 7))
        _, c, w = min((_line(data, x, y).squares, float(x), float(y)) for x in cs for y in ws)
        step, step_w = step / 2, step_w / 2
    return c, w


def _independent(left: Floats) -> float:
    """How many of the readings are independent, by how alike neighbours are."""
    n = len(left)
    squares = float(left @ left)
    alike = float(left[1:] @ left[:-1]) / squares if squares > 0 else 0.0
    alike = min(max(alike, 0.0), 0.95)
    return max(8.0, n * (1 - alike) / (1 + alike))


def _profile(data: _Data, c: float, w: float, best: _Line) -> tuple[tuple[float, float], tuple[float, float]]:
    """The 95 % ranges of the stretch's end (the delay) and of its length (the averaging)."""
    limit = best.squares * (1 + CHI2 / _independent(best.left))
    limit += 1e-12 * float(data.value @ data.value)
    half_c = half_w = data.period_s / 50
    for _ in range(24):
        cs = c + half_c * np.linspace(-1, 1, 2 * WIDTH + 1)
        ws = np.array([0.0]) if data.span_s is not None else np.unique(
            np.maximum(0.0, w + half_w * np.linspace(-1, 1, 2 * WIDTH + 1))
        )  # fmt: skip
        inside = np.array([[_line(data, x, y).squares <= limit for y in ws] for x in cs])
        rows, columns = np.any(inside, axis=1).tolist(), np.any(inside, axis=0).tolist()
        is_wide_c = bool(rows[0] or rows[-1])
        is_wide_w = len(ws) > 1 and bool(columns[-1] or (columns[0] and ws[0] > 0))
        if not is_wide_c and not is_wide_w:
            break
        half_c *= 1.6 if is_wide_c else 1.0
        half_w *= 1.6 if is_wide_w else 1.0
        if max(half_c, half_w) > 20:
            break
    grid_c, grid_w = half_c / WIDTH, half_w / WIDTH if len(ws) > 1 else 0.0
    at_c, at_w = np.nonzero(inside) if inside.any() else (np.array([WIDTH]), np.array([len(ws) // 2]))
    ends = cs[at_c] - (ws[at_w] / 2 if len(ws) > 1 else 0.0)
    return (
        (float(ends.min()) - grid_c, float(ends.max()) + grid_c),
        (max(0.0, float(ws[at_w].min()) - grid_w), float(ws[at_w].max()) + grid_w),
    )


def _nonlinearity(line: _Line) -> tuple[float, float]:
    """What is left at the level where most is, in W of the reference and as a share of the range of levels."""
    low, high = float(np.min(line.mean)), float(np.max(line.mean))
    level = np.clip(((line.mean - low) / (high - low) * LEVELS).astype(int), 0, LEVELS - 1)
    # A level that few readings fell into is a flank between two others.
    each = [abs(float(line.left[level == k].mean())) for k in range(LEVELS) if np.mean(level == k) >= 0.05]
    off = max(each, default=0.0) / abs(line.slope)
    return off, off / (high - low)


def _spread(line: _Line) -> tuple[Floats, float]:
    """Covariance (2, 2) of level and slope by blocks of the record, and the factor of a 95 % half-width."""
    design = np.stack([np.ones(len(line.mean)), line.mean], axis=1)
    scores = np.array([s.sum(axis=0) for s in np.array_split(design * line.left[:, None], BLOCKS)])
    inverse = np.linalg.inv(design.T @ design)
    covariance = inverse @ (scores.T @ scores) @ inverse * BLOCKS / (BLOCKS - 1)
    plain = inverse * line.scatter**2 * len(line.left) / _independent(line.left)
    larger = covariance if np.trace(covariance) > np.trace(plain) else plain
    return np.asarray(larger), statistics.student(BLOCKS - 1)


def _fit(data: _Data, line: _Line, c: float, w: float, off_w: float, bound_s: float) -> Fit:
    covariance, t = _spread(line)
    gain, offset_w = 1 / line.slope, -line.level / line.slope
    gain_error = t * gain**2 * math.sqrt(covariance[1, 1])
    slopes = np.array([-gain, line.level * gain**2])  # of the offset by level and slope
    offset_error_w = t * math.sqrt(float(slopes @ covariance @ slopes))
    least_w, most_w = (float(w) for w in np.quantile(line.mean, [0.05, 0.95]))
    # The reading at a power p is level + slope * p, and off by so much: as a share of p, at either end of the range.
    shares = []
    for p in (least_w if least_w > 0 else float(line.mean.mean()), most_w):
        at = np.array([1.0, p])
        shares.append(math.hypot(t * gain * math.sqrt(float(at @ covariance @ at)), off_w) / max(abs(p), 1e-12))
    (first, last), (short, long) = _profile(data, c, w, line)
    is_binned = data.span_s is not None
    # A stretch shorter than the reference's own is as good as none.
    averaging_s = None if is_binned else w
    delay_s = c - (0.0 if is_binned else w / 2)
    blur_s = data.slack_s + bound_s + data.least_s / 2
    delay_error_s = max(last - delay_s, delay_s - first) + blur_s
    words = "gain and offset by 20 stretches of the record, delay and averaging by profile likelihood"
    if is_binned:
        words += "; compared by means of stretches of time, so the averaging cannot be told"
    return Fit(
        gain, gain_error, offset_w, offset_error_w, delay_s, delay_error_s, averaging_s,
        None if averaging_s is None else max(long - w, w - short) + data.least_s,
        line.scatter, line.explained, off_w, max(shares), least_w, most_w, len(data.value), words,
    )  # fmt: skip


def _flat(data: _Data) -> Fit | None:
    """The gain alone, offset 0, where the reference's power did not vary enough for more; None where it did."""
    m = data.mean(0.0, data.period_s)
    low, high = np.quantile(m, [0.05, 0.95])
    noise = float(np.median(np.abs(np.diff(data.value)))) * 1.05  # of one reading: differences' median by sqrt(2) 0.67
    if high - low > max(VARIES * abs(float(m.mean())), 2 * noise):
        return None
    least, most = np.quantile(data.value, [0.05, 0.95])
    if most - least > max(VARIES * abs(float(data.value.mean())), NOISE_RANGE * noise):
        raise FitError(
            f"the sensor showed {least:.3g} to {most:.3g} W while the reference stayed between {low:.3g} and "
            f"{high:.3g} W; is it the same device's power?"
        )
    if not (m.mean() > 0 and data.value.mean() > 0):
        raise FitError(f"powers of {m.mean():.3g} W and {data.value.mean():.3g} W on average: nothing to be compared")
    gain, gain_error = statistics.ratio_of_sums(
        [x.sum() for x in np.array_split(m, BLOCKS)], [x.sum() for x in np.array_split(data.value, BLOCKS)], 1
    )
    left = data.value - m / gain
    words = (
        f"the power varied from {low:.3g} to {high:.3g} W only, too little to tell gain, offset, delay and averaging "
        "apart: the gain alone was fitted, with offset 0, its interval by 20 stretches of the record"
    )
    return Fit(
        gain, gain_error, 0.0, None, None, None, None, None, float(np.std(left)), 0.0, 0.0, gain_error / gain,
        float(low), float(high), len(m), words,
    )  # fmt: skip
