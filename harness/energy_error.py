"""The parts of an error bar: each the half-width of a 95 % interval, in J.

What a sensor did not see is told from what it saw: from the autocovariance of the record's own roughness (`_Laws`).
docs/decisions/0001-uncertainty.md says why these terms, how they were calibrated, and where they do not hold.
"""

from __future__ import annotations

import numpy as np

from edgewatt.harness.api import Floats, Ints
from edgewatt.harness.energy_curve import Curve
from edgewatt.harness.energy_samples import GAP_PERIODS

K = 1.96
"""Half-width of a 95 % interval over the standard deviation of a normal error whose spread is known."""

K_ESTIMATED = 2.7
"""The same where the spread is itself estimated, from some twenty samples or a few jumps; calibrated (0001)."""

NEAR_PERIODS = 20.0
"""Roughness is taken from at least so many update periods around a shorter interval."""

UNTOLD = 0.03
"""Share of a record's roughness that its autocovariance may put down to the wrong cause."""

CLIMB, CUT = 0.1, 0.4
"""How much of a level's rounding error is left where the power climbs through it, whole or cut off; calibrated."""

FILLED = 0.75
"""Noise that smears rounding visits at least this share of the levels between its lowest and highest."""

MOST_STEPS = 32
"""Within a clock's bound so many shifts are looked at, or one for each update period if those are fewer."""

LAGS = 6
TURNS = np.arange(0.0, 1.6, 0.3)
"""Smooth power shows in the roughness as cosines of so many radians a sample (0: slow; 1.5: four samples a turn)."""

# Autocovariances of roughness at the first lags.
# Levels (W), roughness is the second difference of the power: noise of variance 1 in each sample; a jump of height 1.
LEVEL_NOISE, LEVEL_JUMP = (6.0, -4.0, 1.0), (2.0, -1.0)
# Running sums (J), roughness is the second difference of the energy: noise of variance 1 in each sum; a jump of the
# power by 1, f of the way between two samples, which shows as f and 1 - f: mean squares 2 x 1/3, mean product 1/6.
SUM_NOISE, STEP_NOISE, SUM_JUMP = (6.0, -4.0, 1.0), (2.0, -1.0), (2 / 3, 1 / 6)


def of_intervals(curve: Curve, intervals: Floats, clock_bound_s: float, breaks_s: Floats) -> dict[str, Floats]:
    """The parts of the error bar of each of `intervals` (k, 2); at `breaks_s` the trace's clock was set anew."""
    if len(intervals) == 0:
        return {}
    parts = _sums(curve, intervals) if curve.samples.sums else _levels(curve, intervals)
    parts["gain"] = (curve.samples.channel.gain_error or 0.0) * np.abs(curve.energy(intervals))
    parts["clock"] = _clock(curve, intervals, clock_bound_s, breaks_s)
    # Sums of doubles: 2^-52 of the largest number in them, once for each of up to a million samples.
    parts["rounding"] = 1e-9 * np.abs(curve.energy(intervals)) + 4e-16 * float(np.max(np.abs(curve.energy_j)))
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Levels: gauges


def _levels(curve: Curve, intervals: Floats) -> dict[str, Floats]:
    s, p, h = curve.samples, curve.power_w, curve.h_s
    duration_s = intervals[:, 1] - intervals[:, 0]
    a, b = h[:-1], h[1:]
    bent = 2 * ((p[:-2] * b + p[2:] * a) / (a + b) - p[1:-1])  # at each inner sample; h^2 x the second derivative
    bent[np.maximum(a, b) > GAP_PERIODS * s.update.period_s] = 0.0
    rough = np.pad(bent * np.maximum(a, b), 1)
    laws = _Laws(curve, rough, intervals, LEVEL_NOISE, LEVEL_JUMP)
    noise, jumps = laws.parts
    # Noise moves the area of each sample by itself. A jump may lie anywhere between two samples, so the trapezoid is
    # off by a uniform error of its height x h, of variance h^2 / 12.
    random = laws.around(intervals) * (noise + jumps / 12)
    # Inside one interval between two samples the power is off to one side.
    k = curve.interval(intervals)
    random *= np.minimum(1.0, 2 * duration_s / h[k[:, 0]])
    # Where the power is smooth the trapezoid is off by h^3 / 12 x the second derivative, from sample to sample. Over
    # an even grid that comes to h^2 / 12 x (slope at the end - slope at the start) (Euler-Maclaurin).
    second = np.pad(bent / (a * b), 1)
    curved = np.concatenate([[0.0], h**3 * (second[1:] + second[:-1]) / 24])
    slope = h[k] * (p[k + 1] - p[k])
    smooth = curve.between(curved, intervals) ** 2 + ((slope[:, 1] - slope[:, 0]) / 12) ** 2
    parts = {"sampling": np.sqrt(K_ESTIMATED**2 * random + smooth)}
    if s.held:
        parts["edge"] = _held(curve, intervals)
    elif s.channel.age_s or s.stamp_s:
        # A register renewed faster than it is read: every reading is up to age_s old, so the window saw what happened
        # that much earlier. A read that takes long looks at the same place in it each time, nobody knows where.
        # Nothing is lost by either where power is the same at both ends.
        off_s = np.hypot(s.channel.age_s or 0.0, s.stamp_s)
        parts["edge"] = off_s * np.abs(np.diff(curve.near(intervals), axis=1)[:, 0])
    parts["quantisation"] = _quantisation(curve, intervals, noise * laws.mean_square)
    if curve.has_gaps:
        parts["gap"] = _gap(curve, intervals)
    return parts


def _held(curve: Curve, intervals: Floats) -> Floats:
    """Not knowing when a held value was made: each refresh is off by up to its slack.

    Moving sample k by d moves the trapezoid by d x (power before - power after) / 2.
    """
    s, p = curve.samples, curve.power_w
    moved = np.zeros(len(p))
    inner = slice(1, len(p) - 1)
    moved[inner] = (s.slack_s[: len(p)][inner] * (p[2:] - p[:-2]) / 2) ** 2 / 3
    squares = K**2 * (curve.between(moved, intervals) + np.sum(_beyond(curve, intervals), axis=1))
    if s.channel.averaging_s is None:
        # A value may be that of its moment or the mean since the last refresh: up to half a period of lag.
        squares += (s.update.period_s / 2 * np.diff(curve.near(intervals), axis=1)[:, 0]) ** 2
    return np.asarray(np.sqrt(squares))


def _quantisation(curve: Curve, intervals: Floats, noise: float) -> Floats:
    """Rounding to quanta: all the time the sensor shows one level shares one error, uniform in +- quantum / 2.

    - Levels are independent of each other, so the squares of (time at the level x quantum) / 12 add.
    - A power that climbs (or falls) through a level by single quanta is as long below it as above: little is left.
    - Noise smears the rounding: exp(-2 pi^2 sigma^2 / quantum^2) of the bias is left (Widrow & Kollar, Quantization
      Noise, 2008: the first term of the bias's Fourier series), and the noise itself is part of `sampling`. A load that
      switches between levels far apart looks like noise but smears nothing: it leaves most levels between them empty.
    """
    q = curve.samples.quantum
    duration_s = intervals[:, 1] - intervals[:, 0]
    if q <= 0:
        return np.zeros(len(intervals))
    code = np.round(curve.power_w / q).astype(np.int64)
    within = code[slice(*np.searchsorted(curve.t_s, [np.min(intervals), np.max(intervals)]))]
    is_smeared = len(within) > 0 and len(np.unique(within)) >= FILLED * (np.ptp(within) + 1)
    left = np.exp(-2 * np.pi**2 * noise / (np.median(curve.h_s) * q) ** 2) if is_smeared else 1.0
    most = q / 2 * duration_s
    if len(intervals) > 1 or left < 1e-6:  # many are short: one level each
        return np.asarray(left * most)
    t, (start, end) = curve.t_s, intervals[0]
    turn = np.flatnonzero(np.diff(code)) + 1
    first = np.concatenate([[0], turn])
    edges = np.concatenate([t[:1], (t[turn] + t[turn - 1]) / 2, t[-1:]])
    stay_s = np.maximum(0.0, np.minimum(edges[1:], end) - np.maximum(edges[:-1], start))
    move = np.diff(code[first])
    climbs = np.pad((np.abs(move[1:]) == 1) & (move[1:] == move[:-1]), 1)[: len(first)]
    is_cut = (edges[:-1] < start) | (edges[1:] > end)
    stay_s *= np.where(climbs, np.where(is_cut, CUT, CLIMB), 1.0)
    level_s = np.bincount(code[first] - np.min(code), stay_s)
    return np.asarray(np.minimum(left * K * q * np.sqrt(np.sum(level_s**2) / 12), most))


def _gap(curve: Curve, intervals: Floats) -> Floats:
    """Gaps: what a straight line over as long a stretch misses elsewhere in the record, root mean square."""
    t, p, e, period_s = curve.t_s, curve.power_w, curve.energy_j, curve.samples.update.period_s
    level = np.concatenate([p[:1], p]) if curve.samples.sums else p  # the reading at each sample
    missed = np.zeros(len(t))
    for k in np.flatnonzero(curve.h_s > GAP_PERIODS * period_s):
        stride = min(round(curve.h_s[k] / period_s), len(t) // 2)
        over = t[stride:] - t[:-stride]
        elsewhere = (level[stride:] + level[:-stride]) / 2 - (e[stride:] - e[:-stride]) / over
        missed[k + 1] = np.mean(elsewhere**2) * curve.h_s[k] ** 2
    return np.asarray(K_ESTIMATED * np.sqrt(curve.between(missed, intervals)))


# ---------------------------------------------------------------------------------------------------------------------
# Running sums: counters, and gauges that average over their whole update period


def _sums(curve: Curve, intervals: Floats) -> dict[str, Floats]:
    s, p, h = curve.samples, curve.power_w, curve.h_s
    rough = np.diff(p) * np.minimum(h[1:], h[:-1])
    rough[np.maximum(h[1:], h[:-1]) > GAP_PERIODS * s.update.period_s] = 0.0
    is_counter = s.channel.kind == "counter"
    parts = _counter(curve, rough, intervals) if is_counter else _means(curve, rough, intervals)
    if not s.held and s.channel.age_s != 0:
        # Refreshed faster than it is read, nobody knows how much: a reading is up to a read old, half on average. A
        # data sheet's pace does not narrow that: drivers and emulators between it and us have one of their own.
        lag = s.read_s / 2 * np.diff(curve.near(intervals), axis=1)[:, 0]
        parts["edge"] = np.hypot(parts["edge"], lag)
    return parts


def _counter(curve: Curve, rough: Floats, intervals: Floats) -> dict[str, Floats]:
    s, t = curve.samples, curve.t_s
    laws = _Laws(curve, np.pad(rough, 1), intervals, SUM_NOISE, SUM_JUMP)
    noise = laws.parts[0] * laws.mean_square
    # Read faster than it refreshes, slack is known; otherwise a reading is up to `age_s` old, half of that on average.
    unknown_s = np.hypot(s.stamp_s, 0.0 if s.held else (s.channel.age_s or 0.0) / 2)
    slack = np.hypot(np.append(s.slack_s, s.slack_s[-1:])[: len(t)], unknown_s)
    k = curve.interval(intervals)
    x = _share(curve, intervals, k)
    near, far = (1 - x) ** 2, x**2  # how the two samples around an end weigh in its variance
    # Each sample is known in time to +- slack (uniform); it moves the line by power x time.
    timing = curve.power_w[k] ** 2 * (near * slack[k] ** 2 + far * slack[k + 1] ** 2) / 3
    # What noise there is beyond that is the load's own: it swings around the line at the end itself as well.
    swing = np.maximum(0.0, noise - np.mean(curve.power_w**2) * np.mean(slack**2) / 3)
    squares = np.sum(timing + swing * (1 + near + far) + _bent(curve, k, x) + _beyond(curve, intervals), axis=1)
    parts = {
        "edge": np.asarray(K_ESTIMATED * np.sqrt(squares)),
        "quantisation": np.full(len(intervals), K * s.quantum / np.sqrt(6)),  # one reading at each end
    }
    if len(s.lost):
        # A restart: bridged by the mean of the powers before and after. A change of the power may have come anywhere in
        # between; and such bridges miss elsewhere what they miss here.
        i = s.lost
        step = _step(curve, t[i], t[i + 1], curve.h_s[i])
        bridge = np.zeros(len(t))
        missed = [_missed(curve, span_s) for span_s in curve.h_s[i]]
        bridge[i + 1] = np.maximum(step**2 / 12, missed) * curve.h_s[i] ** 2
        parts["gap"] = np.asarray(K_ESTIMATED * np.sqrt(curve.between(bridge, intervals)))
    return parts


def _missed(curve: Curve, span_s: float) -> float:
    """Mean square, in W^2, of what bridges of that length, built elsewhere in the record, miss of the mean power."""
    t, e = curve.t_s, curve.energy_j
    n = max(1, min(round(span_s / curve.samples.update.period_s), (len(t) - 1) // 3))
    mean_w = (e[n:] - e[:-n]) / (t[n:] - t[:-n])
    missed_w = mean_w[n:-n] - (mean_w[: -2 * n] + mean_w[2 * n :]) / 2
    return float(np.mean(missed_w**2)) if len(missed_w) else 0.0


def _means(curve: Curve, rough: Floats, intervals: Floats) -> dict[str, Floats]:
    s, p, h = curve.samples, curve.power_w, curve.h_s
    duration_s = intervals[:, 1] - intervals[:, 0]
    # Moving a sample by d moves energy between two means: d x their difference.
    moved = np.pad((s.slack_s[1 : len(p)] * np.diff(p)) ** 2 / 3, 1)
    # A refresh that was not read is bridged; a jump in it may have been anywhere.
    unread_s = np.where(h[1:-1] > 1.5 * s.update.period_s, h[1:-1] - s.update.period_s, 0.0)
    moved[2:-1] += ((p[2:] - p[:-2]) * unread_s) ** 2 / 12
    # Noise is there all the time: what is rougher than most of the record is the load, which the means have seen.
    # Second differences, free of slopes, have six times its variance; chi^2 of one degree has the median 0.4549.
    # And no more of it than the autocovariance shows.
    laws = _Laws(curve, np.pad(rough, 1), intervals, STEP_NOISE, SUM_JUMP)
    noise = min(np.median(np.diff(rough) ** 2) / 0.4549 / 6, (laws.parts[0] + UNTOLD) * laws.mean_square)
    k = curve.interval(intervals)
    squares = curve.between(moved, intervals) + noise * duration_s / s.update.period_s
    squares += np.sum(_bent(curve, k, _share(curve, intervals, k)) + _beyond(curve, intervals), axis=1)
    parts = {"edge": np.asarray(K_ESTIMATED * np.sqrt(squares)), "quantisation": s.quantum / 2 * duration_s}
    if curve.has_gaps:
        parts["gap"] = _gap(curve, intervals)
    return parts


def _share(curve: Curve, t: Floats, k: Ints) -> Floats:
    """How far each time is into its interval k between two samples, from 0 to 1."""
    return np.clip((t - curve.t_s[k]) / curve.h_s[k], 0.0, 1.0)


def _beyond(curve: Curve, t: Floats) -> Floats:
    """Squares, in J^2, of what can have happened between the last refresh and a time after it: one change of power.

    The last power itself is known from two samples, each to +- slack of the time between them.
    """
    s, p = curve.samples, curve.power_w
    since_s = np.maximum(0.0, t - s.t_s[-1])
    known = (p[-1] * s.slack_s[-1] / curve.h_s[-1]) ** 2 * 2 / 3 if s.sums else 0.0
    return np.asarray(since_s**2 * (np.mean(np.diff(p) ** 2) + known))


def _bent(curve: Curve, k: Ints, x: Floats) -> Floats:
    """Squares, in J^2, of what a straight line misses of the energy at share x of interval k."""

    def change(k: Ints) -> Floats:
        return np.abs(curve.power(k + 1) - curve.power(k))

    # A jump of the power in the interval: the line before it goes on (or the one after it begins) up to the kink.
    # Changes that go on beside the interval are no jump but a slope.
    before = np.maximum(0.0, change(k - 1) - change(k - 2)) * x
    after = np.maximum(0.0, change(k) - change(k + 1)) * (1 - x)
    jump = np.minimum(before, after)
    # A slope: the energy is a parabola, h^2 / 2 x slope x x (1 - x) below the line.
    slope = x * (1 - x) * np.abs(curve.power(k + 1) - curve.power(k - 1)) / 4
    return np.asarray((jump**2 + slope**2) * curve.h_s[k] ** 2)


# ---------------------------------------------------------------------------------------------------------------------
# Both


class _Laws:
    """What roughness (n,), one value per sample, is made of, over all that the intervals span.

    Its autocovariance at LAGS lags is the sum of what each cause leaves there, in unknown shares: least squares
    without negative shares. Smooth power leaves cosines, and costs a trapezoid nothing but at its ends.
    """

    def __init__(self, curve: Curve, rough: Floats, intervals: Floats, *causes: tuple[float, ...]) -> None:
        from scipy.optimize import nnls  # here: the command line imports this, and scipy takes its time

        self._curve = curve
        self._squares = rough**2
        span = np.array([[np.min(intervals), np.max(intervals)]])
        low, high = np.searchsorted(curve.t_s, self._widened(span)[0])
        r = rough[low:high]
        lags = np.array([np.dot(r[i:], r[: len(r) - i]) if i < len(r) else 0.0 for i in range(LAGS)])
        matrix = np.zeros((LAGS, len(causes) + len(TURNS)))
        for k, cause in enumerate(causes):
            matrix[: len(cause), k] = cause
        matrix[:, len(causes) :] = np.cos(np.outer(np.arange(LAGS), TURNS))
        shares = nnls(matrix, lags / lags[0])[0] if len(r) and lags[0] > 0 else np.zeros(len(causes))
        self.mean_square = float(lags[0]) / max(1, len(r))
        self.parts = tuple(float(x) for x in shares[: len(causes)])  # variance of each cause, in mean squares

    def around(self, intervals: Floats) -> Floats:
        """Sum of the squares of the roughness over each of the intervals (k, 2), in J^2.

        A short interval gets its share of what NEAR_PERIODS around it hold.
        """
        wide = self._widened(intervals)
        share = (intervals[:, 1] - intervals[:, 0]) / (wide[:, 1] - wide[:, 0])
        return self._curve.between(self._squares, wide) * share

    def _widened(self, intervals: Floats) -> Floats:
        least_s = NEAR_PERIODS * self._curve.samples.update.period_s
        more_s = np.maximum(0.0, least_s - (intervals[:, 1] - intervals[:, 0])) / 2
        return np.stack([intervals[:, 0] - more_s, intervals[:, 1] + more_s], axis=1)


def _clock(curve: Curve, intervals: Floats, bound_s: float, breaks_s: Floats) -> Floats:
    """The most energy that moves at each boundary while it is shifted by up to +- bound_s, in quadrature.

    Times that are off by as much everywhere shift the interval, and those off by more at one end than at the other
    stretch it with its energy: either way a boundary costs what the power there is not the mean. At a break what comes
    before was placed by itself and what comes after was: it costs as much as two boundaries there.
    """
    if bound_s <= 0:
        return np.zeros(len(intervals))
    mean_w = curve.energy(intervals) / (intervals[:, 1] - intervals[:, 0])
    squares = np.sum(_moved(curve, intervals, mean_w[:, None], bound_s) ** 2, axis=1)
    for t in breaks_s:
        inside = (intervals[:, 0] < t) & (t < intervals[:, 1])
        squares[inside] += 2 * _moved(curve, np.full(np.sum(inside), t), mean_w[inside], bound_s) ** 2
    return np.asarray(np.sqrt(squares))


def _moved(curve: Curve, t: Floats, mean_w: Floats, bound_s: float) -> Floats:
    """The most energy, less that of the mean power, between each of the times and any shift of it by up to bound_s.

    A load that swings faster than the bound costs most somewhere within it, not at its ends.
    """
    period_s = curve.samples.update.period_s
    reach_s = max(bound_s, period_s)
    steps = int(np.clip(np.ceil(reach_s / period_s), 1, MOST_STEPS))
    largest = np.zeros(np.shape(t))
    for share in np.arange(1, steps + 1) / steps:
        before, after = _sides(curve, t, t, share * reach_s)
        largest = np.maximum(largest, share * np.maximum(np.abs(before - mean_w), np.abs(after - mean_w)))
    return np.asarray(bound_s * largest)


def _step(curve: Curve, start_s: Floats, end_s: Floats, span_s: Floats | float) -> Floats:
    """Mean power over span_s after each of end_s less that before each of start_s, in W; 0 where a side is empty."""
    before, after = _sides(curve, start_s, end_s, span_s)
    return after - before


def _sides(curve: Curve, start_s: Floats, end_s: Floats, span_s: Floats | float) -> tuple[Floats, Floats]:
    """Mean power (W) over span_s before each of start_s and after each of end_s; the other's where one is empty."""
    before_s, after_s = np.minimum(span_s, start_s - curve.t_s[0]), np.minimum(span_s, curve.t_s[-1] - end_s)
    before = (curve.at(start_s) - curve.at(start_s - before_s)) / np.maximum(before_s, 1e-12)
    after = (curve.at(end_s + after_s) - curve.at(end_s)) / np.maximum(after_s, 1e-12)
    return np.where(before_s > 0, before, after), np.where(after_s > 0, after, before)
