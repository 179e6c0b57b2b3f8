"""The parts of an error bar: each the half-width of a 95 % interval, in J."""

from __future__ import annotations

import numpy as np

from edgewatt.harness.api import Floats
from edgewatt.harness.energy_curve import Curve

K = 1.96
"""Half-width of a 95 % interval over the standard deviation of a normal error."""


def of_window(curve: Curve, start_s: float, end_s: float, clock_bound_s: float) -> dict[str, float]:
    """The parts of one window's error bar."""
    parts = of_intervals(curve, np.array([[start_s, end_s]]), clock_bound_s)
    return {name: float(p[0]) for name, p in parts.items()}


def of_intervals(curve: Curve, intervals: Floats, clock_bound_s: float) -> dict[str, Floats]:
    """The parts of the error bar of each of `intervals` (k, 2)."""
    s = curve.samples
    energy_j = curve.energy(intervals)
    duration_s = np.diff(intervals, axis=1)[:, 0]
    parts: dict[str, Floats] = {}
    k = curve.interval(intervals)
    h = curve.h_s
    if curve.is_gauge:
        variance = (np.diff(curve.power_w) * h) ** 2 / 12
        total = np.concatenate([[0.0], np.cumsum(variance)])
        upto = np.interp(intervals, curve.t_s, total)
        parts["sampling"] = K * np.sqrt(np.maximum(0.0, np.diff(upto, axis=1)[:, 0]))
        slack = s.slack_s[np.minimum(k, len(s.slack_s) - 1)]
        step = np.abs(np.diff(curve.power_w))[k]
        parts["edge"] = K * np.sqrt(np.sum((step * slack) ** 2 / 3, axis=1))
    else:
        slack = np.append(s.slack_s, s.slack_s[-1])
        x = np.clip((intervals - curve.t_s[k]) / h[k], 0, 1)
        timing = ((1 - x) * slack[k]) ** 2 + (x * slack[np.minimum(k + 1, len(slack) - 1)]) ** 2
        power = curve.power_w
        before, after = power[np.maximum(k - 1, 0)], power[np.minimum(k + 1, len(power) - 1)]
        shape = np.minimum(np.abs(power[k] - before) * x, np.abs(power[k] - after) * (1 - x)) * h[k]
        parts["edge"] = K * np.sqrt(np.sum(power[k] ** 2 * timing / 3 + shape**2, axis=1))
    q = s.channel.quantum or 0.0
    if curve.is_gauge:
        n = np.maximum(1.0, duration_s / s.update.period_s)
        parts["quantisation"] = K * q / np.sqrt(12) * duration_s / np.sqrt(n)
    else:
        parts["quantisation"] = np.full(len(intervals), K * q / np.sqrt(6))
    parts["gain"] = (s.channel.gain_error or 0.0) * np.abs(energy_j)
    parts["clock"] = _clock(curve, intervals, clock_bound_s)
    return parts


def _clock(curve: Curve, intervals: Floats, bound_s: float) -> Floats:
    """|dt| x |power inside - power outside| at each boundary (measuring: clock offset on a phase), in quadrature."""
    if bound_s <= 0:
        return np.zeros(len(intervals))
    span = max(bound_s, curve.samples.update.period_s)
    a, b = curve.t_s[0], curve.t_s[-1]
    squares = np.zeros(len(intervals))
    for at in intervals.T:
        low, high = np.maximum(a, at - span), np.minimum(b, at + span)
        left = (curve.at(at) - curve.at(low)) / np.maximum(at - low, 1e-12)
        right = (curve.at(high) - curve.at(at)) / np.maximum(high - at, 1e-12)
        squares += (bound_s * np.where((at > low) & (high > at), right - left, 0.0)) ** 2
    return np.sqrt(squares)
