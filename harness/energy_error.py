"""The parts of an error bar: each the half-width of a 95 % interval, in J.

What a sensor did not see is estimated from what it saw, by three covariances of the record's own roughness (`_laws`).
docs/decisions/0001-uncertainty.md tells why these terms, how they were calibrated, and where they do not hold.
"""

from __future__ import annotations

import numpy as np

from edgewatt.harness.api import Floats, Ints
from edgewatt.harness.energy_curve import Curve
from edgewatt.harness.energy_samples import GAP_PERIODS

K = 1.96
"""Half-width of a 95 % interval over the standard deviation of a normal error whose spread is known."""

K_ESTIMATED = 2.4
"""The same where the spread is itself estimated from some twenty samples or a few edges; calibrated (0001)."""

NEAR_PERIODS = 20.0
"""Roughness is taken from at least so many update periods around a shorter interval."""

CLIMB, CUT = 0.1, 0.4
"""How much of a level's rounding error is left when the power climbs through it whole, or is cut off half way."""

# Autocovariances, at lags 0, 1 and 2, of roughness (columns) made by: white noise of variance 1 in each sample,
# a jump of height 1, and a slow curve of mean square 1. Samples: roughness is the second difference of the power.
_GAUGE = np.array([[6.0, 2.0, 1.0], [-4.0, -1.0, 1.0], [1.0, 0.0, 1.0]])
# Counters: the second difference of the energy; a jump of power falls anywhere between two refreshes, f of the way:
# it shows as f and 1 - f, of mean squares 2 x 1/3 and mean product 1/6.
_COUNTER = np.array([[6.0, 2 / 3, 1.0], [-4.0, 1 / 6, 1.0], [1.0, 0.0, 1.0]])
# A gauge that averages between its refreshes has noise in each of its means, not in their running sum.
_MEANS = np.array([[2.0, 2 / 3, 1.0], [-1.0, 1 / 6, 1.0], [0.0, 0.0, 1.0]])


def of_intervals(curve: Curve, intervals: Floats, clock_bound_s: float) -> dict[str, Floats]:
    """The parts of the error bar of each of `intervals` (k, 2)."""
    s = curve.samples
    energy_j = curve.energy(intervals)
    parts = _gauge(curve, intervals) if curve.is_gauge else _counter(curve, intervals)
    parts["gain"] = (s.channel.gain_error or 0.0) * np.abs(energy_j)
    parts["clock"] = _clock(curve, intervals, clock_bound_s)
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Gauges


def _gauge(curve: Curve, intervals: Floats) -> dict[str, Floats]:
    s, t, p, h = curve.samples, curve.t_s, curve.power_w, curve.h_s
    a, b = h[:-1], h[1:]
    bare = np.maximum(a, b) > GAP_PERIODS * s.update.period_s
    second = 2 * ((p[:-2] * b + p[2:] * a) / (a + b) - p[1:-1])
    rough = np.pad(np.where(bare, 0.0, second * np.maximum(a, b)), 1)  # J, at each sample
    (noise, jumps, _), squares, wide = _laws(curve, rough, intervals, _GAUGE)
    # Noise shifts the area of each sample by itself; a jump may lie anywhere between two samples, so the trapezoid is
    # off by a uniform error of its height x h: h^2 / 12.
    share = (noise + jumps / 12) / max(noise * 6 + jumps * 2, 1e-300)
    duration_s = np.diff(intervals, axis=1)[:, 0]
    k = curve.interval(intervals)
    # Inside one interval between samples the power is off by up to a whole jump, all in one direction.
    inside = np.minimum(1.0, 2 * duration_s / h[k[:, 0]])
    # Where the power is smooth: Euler-Maclaurin, h^2 / 12 x (slope at the end - slope at the start).
    slope = h[k] * (p[k + 1] - p[k])
    smooth_j = np.abs(slope[:, 1] - slope[:, 0]) / 12
    sampling = np.hypot(K_ESTIMATED * np.sqrt(share * squares * duration_s / wide * inside), smooth_j)
    parts = {"sampling": sampling}
    if s.held:
        slack = np.append(s.slack_s, np.zeros(len(t) - len(s.slack_s)))
        moved = np.zeros(len(t))
        moved[1:-1] = (slack[1:-1] * (p[2:] - p[:-2]) / 2) ** 2 / 3
        edge = K * np.sqrt(curve.between(moved, intervals))
        if s.channel.averaging_s is None:
            # Whether a value is that of its moment or the mean since the last refresh: up to T / 2 of lag.
            edge = np.hypot(edge, s.update.period_s / 2 * np.abs(np.diff(curve.near(intervals), axis=1)[:, 0]))
        parts["edge"] = edge
    parts["quantisation"] = _quantisation(curve, intervals, noise)
    gap = _gap(curve, intervals)
    if gap.any():
        parts["gap"] = gap
    return parts


def _quantisation(curve: Curve, intervals: Floats, noise: float) -> Floats:
    """Rounding to quanta: all the time the sensor shows one level shares one error, uniform in +- quantum / 2.

    - Levels are independent of each other, so the squares of (time at the level x quantum) / 12 add.
    - A power that climbs (or falls) through a level by single quanta is as long below it as above: such a stretch
      cancels, but for its curvature.
    - Noise smears the rounding: what is left of the bias is exp(-2 pi^2 sigma^2 / q^2) of it (Widrow & Kollar,
      Quantization Noise, 2008, ch. 9: the first term of its Fourier series); the noise itself is in `sampling`.
    """
    s, t, h = curve.samples, curve.t_s, curve.h_s
    q = s.channel.quantum or 0.0
    duration_s = np.diff(intervals, axis=1)[:, 0]
    if q <= 0:
        return np.zeros(len(intervals))
    left = np.exp(-2 * np.pi**2 * noise / (np.mean(h) * q) ** 2)
    whole = q / 2 * duration_s
    if len(intervals) > 1:  # many short ones: one level each
        return left * whole
    code = np.round(curve.power_w / q).astype(np.int64)
    turn = np.flatnonzero(np.diff(code)) + 1
    first, last = np.concatenate([[0], turn]), np.concatenate([turn, [len(code)]])
    edges = np.concatenate([[t[0]], (t[turn] + t[turn - 1]) / 2, [t[-1]]])
    stay_s = np.maximum(0.0, np.minimum(edges[1:], intervals[0, 1]) - np.maximum(edges[:-1], intervals[0, 0]))
    move = np.diff(code[first])
    climbs = np.zeros(len(first), bool)
    climbs[1:-1] = (np.abs(move[1:]) == 1) & (move[1:] == move[:-1])
    level = np.unique(code[first], return_inverse=True)[1]
    cut = (edges[:-1] < intervals[0, 0]) | (edges[1:] > intervals[0, 1])
    weight = np.where(climbs, np.where(cut, CUT, CLIMB), 1.0)
    time_s = np.bincount(level, stay_s * weight)
    return np.minimum(left * K * q * np.sqrt(np.sum(time_s**2, keepdims=True) / 12), whole)


def _gap(curve: Curve, intervals: Floats) -> Floats:
    """Gaps (k, 2): what a straight line over as long a stretch misses elsewhere in the record, root mean square."""
    s = curve.samples
    if not np.any(curve.h_s > GAP_PERIODS * s.update.period_s):
        return np.zeros(len(intervals))
    t, p, e = curve.t_s, curve.power_w, curve.energy_j
    per_sample = np.zeros(len(t))
    n = len(t)
    for k in np.flatnonzero(curve.h_s > GAP_PERIODS * s.update.period_s):
        stride = int(min(max(2, round(curve.h_s[k] / s.update.period_s)), n // 2))
        if stride < 2:
            continue
        over = t[stride:] - t[:-stride]
        missed = (p[stride:] + p[:-stride]) / 2 - (e[stride:] - e[:-stride]) / over
        per_sample[k + 1] = np.mean(missed**2) * curve.h_s[k] ** 2
    return K_ESTIMATED * np.sqrt(curve.between(per_sample, intervals))


# ---------------------------------------------------------------------------------------------------------------------
# Counters


def _counter(curve: Curve, intervals: Floats) -> dict[str, Floats]:
    s, t, p, h = curve.samples, curve.t_s, curve.power_w, curve.h_s

    def at(k: Ints) -> Floats:
        return np.asarray(p[np.clip(k, 0, len(p) - 1)])

    bare = np.maximum(h[1:], h[:-1]) > GAP_PERIODS * s.update.period_s
    rough = np.pad(np.where(bare, 0.0, np.diff(p) * np.minimum(h[1:], h[:-1])), 1)
    (noise, _, _), _, _ = _laws(curve, rough, intervals, _COUNTER)
    k = curve.interval(intervals)
    x = np.clip((intervals - t[k]) / h[k], 0.0, 1.0)
    spread = (1 - x) ** 2 + x**2
    # Each bracketing refresh is known in time to +- slack (uniform).
    slack = np.append(s.slack_s, s.slack_s[-1:])
    timing = at(k) ** 2 * (((1 - x) * slack[k]) ** 2 + (x * slack[np.minimum(k + 1, len(slack) - 1)]) ** 2) / 3
    ripple = noise * (1 + spread)

    def change(k: Ints) -> Floats:
        return np.abs(at(k + 1) - at(k))

    # A jump of the power inside the bracket: the straight line misses the kink.
    before = np.maximum(0.0, change(k - 1) - change(k - 2)) * x
    after = np.maximum(0.0, change(k) - change(k + 1)) * (1 - x)
    jump = np.minimum(before, after) * h[k]
    smooth = x * (1 - x) * h[k] * np.abs(at(k + 1) - at(k - 1)) / 4
    edge = K_ESTIMATED * np.sqrt(np.sum(np.maximum(timing, ripple) + jump**2 + smooth**2, axis=1))
    if not s.held:
        # Refreshed faster than it is read, nobody knows how much: each reading is up to a read old.
        edge = np.hypot(edge, s.read_s / 2 * np.abs(np.diff(curve.near(intervals), axis=1)[:, 0]))
    parts = {"edge": edge, "quantisation": np.full(len(intervals), K * (s.channel.quantum or 0.0) / np.sqrt(6))}
    if len(s.lost):
        per_sample = np.zeros(len(t))
        i = s.lost
        change_j = (at(i + 1) - at(i - 1)) * h[i]
        per_sample[i + 1] = change_j**2 / 12 + 2 * noise + at(i) ** 2 * (slack[i] ** 2 + slack[i + 1] ** 2) / 3
        parts["gap"] = K_ESTIMATED * np.sqrt(curve.between(per_sample, intervals))
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Both


def _laws(
    curve: Curve, rough: Floats, intervals: Floats, matrix: Floats
) -> tuple[tuple[float, float, float], Floats, Floats]:
    """What roughness (n,), one per sample, is made of: mean squares per sample of noise, of jumps, of a slow curve.

    Least squares without negative parts, of the autocovariances over all that `intervals` span (and NEAR_PERIODS at
    least). Also the sum of rough^2 around each interval (k,), and over how long (k,) that was.
    """
    from scipy.optimize import nnls

    near_s = NEAR_PERIODS * curve.samples.update.period_s
    span = _widened(np.array([[np.min(intervals), np.max(intervals)]]), near_s)[0]
    low, high = np.searchsorted(curve.t_s, span)
    r = rough[low:high]
    n = max(1, len(r))
    lags = [float(np.dot(r[i:], r[: len(r) - i])) / n if len(r) > i else 0.0 for i in range(3)]
    scale = max(lags[0], 1e-300)
    noise, jumps, slow = nnls(matrix, np.array(lags) / scale)[0] * scale
    wide = _widened(intervals, near_s)
    return (noise, jumps, slow), curve.between(rough**2, wide), np.diff(wide, axis=1)[:, 0]


def _widened(intervals: Floats, least_s: float) -> Floats:
    more = np.maximum(0.0, least_s - (intervals[:, 1] - intervals[:, 0])) / 2
    return np.stack([intervals[:, 0] - more, intervals[:, 1] + more], axis=1)


def _clock(curve: Curve, intervals: Floats, bound_s: float) -> Floats:
    """|dt| x |power inside - power outside| at each boundary, in quadrature."""
    if bound_s <= 0:
        return np.zeros(len(intervals))
    span = max(bound_s, curve.samples.update.period_s)
    low, high = curve.t_s[0], curve.t_s[-1]
    left_s, right_s = np.minimum(span, intervals - low), np.minimum(span, high - intervals)
    here = curve.at(intervals)
    left = (here - curve.at(intervals - left_s)) / np.maximum(left_s, 1e-12)
    right = (curve.at(intervals + right_s) - here) / np.maximum(right_s, 1e-12)
    step = np.where((left_s > 0) & (right_s > 0), right - left, 0.0)
    return np.asarray(bound_s * np.sqrt(np.sum(step**2, axis=1)))
