"""Energy as a function of time: what the samples of one channel say, in between and at its ends too."""

from __future__ import annotations

import numpy as np

from edgewatt.harness.api import Floats, Ints
from edgewatt.harness.energy_samples import GAP_PERIODS, Samples


class Curve:
    """Energy since the first sample, in J, at any time between the first and the last read.

    Between two samples a level of power runs straight (so its energy is a parabola), and a running sum of energy does.
    Beyond the last sample the power stays what it was.
    """

    def __init__(self, s: Samples) -> None:
        self.samples = s
        t, v = s.t_s, s.value
        if t[-1] < s.last_s:
            power = (v[-1] - v[-2]) / (t[-1] - t[-2]) if s.sums and len(v) > 1 else 0.0
            v = np.append(v, v[-1] + power * (s.last_s - t[-1]))
            t = np.append(t, s.last_s)
        self.t_s = t
        self.h_s = np.diff(t)
        self.has_gaps = bool(np.any(self.h_s > GAP_PERIODS * s.update.period_s))
        if not s.sums:
            self.power_w = v  # at each sample
            self.energy_j = np.concatenate([[0.0], np.cumsum(self.h_s * (v[1:] + v[:-1]) / 2)])
        else:
            self.energy_j = v
            self.power_w = np.diff(v) / self.h_s  # between two samples

    def interval(self, t: Floats) -> Ints:
        """Index of the interval between two samples that each of the times falls into."""
        return np.clip(np.searchsorted(self.t_s, t, side="right") - 1, 0, len(self.h_s) - 1)

    def power(self, k: Ints) -> Floats:
        """Power of running sums in the intervals k; beyond the first and last that of those."""
        return np.asarray(self.power_w[np.clip(k, 0, len(self.power_w) - 1)])

    def at(self, t: Floats) -> Floats:
        """Energy from the first sample to each of the times."""
        if self.samples.sums:
            return np.asarray(np.interp(t, self.t_s, self.energy_j))
        k = self.interval(t)
        x = t - self.t_s[k]
        slope = (self.power_w[k + 1] - self.power_w[k]) / self.h_s[k]
        return np.asarray(self.energy_j[k] + x * (self.power_w[k] + slope * x / 2))

    def energy(self, intervals: Floats) -> Floats:
        """Energy of each of `intervals` (k, 2)."""
        return np.asarray(np.diff(self.at(intervals), axis=1)[:, 0])

    def between(self, per_sample: Floats, intervals: Floats) -> Floats:
        """Sum over each of `intervals` (k, 2) of something each sample (n,) has; shares of it at the ends."""
        return np.asarray(np.diff(np.interp(intervals, self.t_s, np.cumsum(per_sample)), axis=1)[:, 0])

    def near(self, t: Floats) -> Floats:
        """Mean power around each of the times, over one update period to each side, as far as there are samples."""
        period_s = self.samples.update.period_s
        low, high = np.maximum(self.t_s[0], t - period_s), np.minimum(self.t_s[-1], t + period_s)
        return np.asarray((self.at(high) - self.at(low)) / (high - low))
