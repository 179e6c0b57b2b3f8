"""Energy of gauges and counters, with an error bar for each.

A gauge (W) is integrated by the trapezoid rule, a counter (J) is subtracted; both are interpolated at the ends of the
window. The error bar is the half-width of a 95 % interval and the root of the sum of the squares of its parts
(docs/decisions/0001-uncertainty.md says where each comes from and how the whole was calibrated).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewatt.harness import energy_error
from edgewatt.harness.api import Floats, Trace
from edgewatt.harness.energy_curve import Curve
from edgewatt.harness.energy_samples import GapError, Samples, UpdatePeriod, samples

__all__ = [
    "Energies",
    "Energy",
    "GapError",
    "Net",
    "UpdatePeriod",
    "energies",
    "energy",
    "minimum_window_s",
    "net",
    "sum_of",
    "update_period",
]

COMMON = ("gain", "clock", "quantisation")
"""Parts that go the same way in every window of one meter; the others are independent from window to window."""


@dataclass(frozen=True)
class Energy:
    """Energy of one window, and how well it is known.

    `uncertainty_j` is the half-width of the 95 % interval; `parts` are its contributions (name -> half-width in J),
    combined in quadrature. `coverage` is the share of the window within one update period of a fresh sample; over
    gaps the power was interpolated, which the part `gap` pays for.
    """

    energy_j: float
    uncertainty_j: float
    parts: Mapping[str, float]
    coverage: float
    n: int  # distinct refreshes of the sensor in the window
    update_period_s: float
    gaps: tuple[tuple[float, float], ...]  # stretches without fresh samples, on the trace's clock
    stale_share: float  # share of the reads that brought nothing new
    resets: int  # restarts of a counter in the window
    method: str
    duration_s: float = 0.0
    sensor: str = ""  # "meter/channel"; energies of the same meter share its gain and its clock

    @property
    def power_w(self) -> float:
        """Mean power over the window."""
        return self.energy_j / self.duration_s

    @property
    def power_uncertainty_w(self) -> float:
        """Half-width of the 95 % interval of the mean power."""
        return self.uncertainty_j / self.duration_s


@dataclass(frozen=True)
class Energies:
    """Energies of many intervals, such as the phases of items; arrays of shape (k,).

    Intervals that follow each other partition the energy of the whole: their energies sum to it.
    """

    energy_j: Floats
    uncertainty_j: Floats  # half-widths of 95 % intervals, each for its own interval
    parts: Mapping[str, Floats]
    coverage: Floats
    update_period_s: float
    sensor: str

    def __len__(self) -> int:
        return len(self.energy_j)


@dataclass(frozen=True)
class Net:
    """Energy above idle. `drift_w` is by how much the idle after differs from the idle before; `noise_w` is the 95 %
    half-width of that difference by the error bars alone, so that |drift_w| > noise_w is a real drift."""

    energy_j: float
    uncertainty_j: float
    parts: Mapping[str, float]
    idle_w: float
    drift_w: float
    noise_w: float
    duration_s: float = 0.0

    @property
    def power_w(self) -> float:
        """Mean power above idle."""
        return self.energy_j / self.duration_s

    @property
    def power_uncertainty_w(self) -> float:
        """Half-width of the 95 % interval of the mean power above idle."""
        return self.uncertainty_j / self.duration_s


def update_period(trace: Trace, channel: str) -> UpdatePeriod:
    """How often the sensor behind `channel` refreshes, from how often its readings change: refreshes, not reads.

    Raises:
        KeyError: the trace has no such channel.
        GapError: it has fewer than two readings.
    """
    return samples(trace, channel).update


def minimum_window_s(update_period_s: float, relative: float = 0.02) -> float:
    """The shortest window in which a sensor's two ends cost no more than `relative` of the energy: 2 T / relative.

    At each end a counter is off by up to power x T (worst case).
    """
    return 2.0 * update_period_s / relative


def energy(trace: Trace, channel: str, start_s: float, end_s: float, *, clock_bound_s: float = 0.0) -> Energy:
    """Energy that `channel` used from `start_s` to `end_s`, in joules, with its error bar.

    Args:
        trace: samples; readings may be unevenly spaced, missing (NaN) or repeated.
        channel: name of a channel of power (a gauge in W) or energy (a counter in J).
        start_s: start of the window on the trace's clock.
        end_s: end of the window.
        clock_bound_s: how far the window's clock may be off against the trace's; where the trace's facts tell rows at
            which its clock was set anew (`clock_starts`), each stretch between two of them by itself.

    Raises:
        KeyError: the trace has no such channel.
        ValueError: the window does not end after its start, or the channel holds neither power nor energy.
        GapError: the samples do not reach both ends of the window, or none of it is covered.
    """
    intervals = np.array([[start_s, end_s]])
    s = _checked(trace, channel, intervals)
    curve = Curve(s)
    of_all = energy_error.of_intervals(curve, intervals, clock_bound_s, _breaks(trace))
    parts = {k: float(p[0]) for k, p in of_all.items()}
    gaps = _gaps_within(s, intervals[0])
    coverage = float(_coverage(s, intervals)[0])
    if coverage <= 0:
        raise GapError(
            f"{trace.meter}/{channel}: nothing was measured between {start_s:.6f} and {end_s:.6f} s, wanted a fresh "
            f"sample at least every {s.update.period_s:g} s; measure for longer or with a faster sensor"
        )
    reads = int(np.count_nonzero((s.reads_s >= start_s) & (s.reads_s <= end_s)))
    fresh = int(np.count_nonzero((s.fresh_s >= start_s) & (s.fresh_s <= end_s)))
    lost = np.count_nonzero((s.t_s[s.lost] < end_s) & (s.t_s[s.lost + 1] > start_s))
    return Energy(
        energy_j=float(curve.energy(intervals)[0]),
        uncertainty_j=float(np.sqrt(sum(p * p for p in parts.values()))),
        parts=parts,
        coverage=coverage,
        n=fresh,
        update_period_s=s.update.period_s,
        gaps=gaps,
        stale_share=max(0.0, 1.0 - fresh / reads) if reads else 0.0,
        resets=int(lost),
        method=_method(s),
        duration_s=float(end_s - start_s),
        sensor=f"{trace.meter}/{channel}",
    )


def energies(trace: Trace, channel: str, intervals: npt.ArrayLike, *, clock_bound_s: float = 0.0) -> Energies:
    """Energies of `intervals` (k, 2), each a start and an end in seconds; adjacent ones partition that of the whole.

    Raises as `energy` does, but an interval that no sample covers has coverage 0 instead.
    """
    between = np.asarray(intervals, float).reshape(-1, 2)
    s = _checked(trace, channel, between)
    curve = Curve(s)
    parts = energy_error.of_intervals(curve, between, clock_bound_s, _breaks(trace))
    return Energies(
        energy_j=curve.energy(between),
        uncertainty_j=np.sqrt(sum((p * p for p in parts.values()), np.zeros(len(between)))),
        parts=parts,
        coverage=_coverage(s, between),
        update_period_s=s.update.period_s,
        sensor=f"{trace.meter}/{channel}",
    )


def sum_of(energies: Sequence[Energy]) -> Energy:
    """Energy of several channels, or several windows, together.

    Gain, clock and quantisation go the same way in all energies of one meter: their half-widths add. Everything else
    is independent and adds in quadrature, as do the meters.
    Durations add over windows of a channel, so that the mean power is one over time; channels run at the same time.
    """
    if not energies:
        raise ValueError("no energies to add")
    by_meter: dict[str, list[Energy]] = {}
    by_channel: dict[str, float] = {}
    for e in energies:
        by_meter.setdefault(e.sensor.partition("/")[0], []).append(e)
        by_channel[e.sensor] = by_channel.get(e.sensor, 0.0) + e.duration_s
    parts: dict[str, float] = {}
    for name in dict.fromkeys(p for e in energies for p in e.parts):
        if name in COMMON:
            squares = [sum(e.parts.get(name, 0.0) for e in group) ** 2 for group in by_meter.values()]
        else:
            squares = [e.parts.get(name, 0.0) ** 2 for e in energies]
        parts[name] = float(np.sqrt(sum(squares)))
    return Energy(
        energy_j=float(sum(e.energy_j for e in energies)),
        uncertainty_j=float(np.sqrt(sum(p * p for p in parts.values()))),
        parts=parts,
        coverage=min(e.coverage for e in energies),
        n=sum(e.n for e in energies),
        update_period_s=max(e.update_period_s for e in energies),
        gaps=tuple(sorted({g for e in energies for g in e.gaps})),
        stale_share=max(e.stale_share for e in energies),
        resets=sum(e.resets for e in energies),
        method="; ".join(dict.fromkeys(e.method for e in energies)),
        duration_s=max(by_channel.values()),
        sensor=" + ".join(dict.fromkeys(e.sensor for e in energies)),
    )


def net(gross: Energy, before: Energy, after: Energy) -> Net:
    """Energy of a window above idle: gross - idle power x duration; `before` and `after` are the idles around it.

    The idle power is the time-weighted mean of both. Its part of the error bar, `idle`, holds the random errors of
    the idles; `drift` is half of their disagreement, since the idle under the load may lie anywhere between them.
    The gain error goes the same way in all three, so it is that of the difference.
    """
    idle_s = before.duration_s + after.duration_s
    idle_w = (before.energy_j + after.energy_j) / idle_s
    duration_s = gross.duration_s
    random_j = [np.sqrt(sum(p * p for name, p in e.parts.items() if name != "gain")) for e in (before, after)]
    noise_w = float(np.hypot(random_j[0] / before.duration_s, random_j[1] / after.duration_s))
    drift_w = after.power_w - before.power_w
    energy_j = gross.energy_j - idle_w * duration_s
    parts = dict(gross.parts)
    gain = [e.parts.get("gain", 0.0) for e in (gross, before, after)]
    parts["gain"] = abs(gain[0] - (gain[1] + gain[2]) / idle_s * duration_s)
    parts["idle"] = float(np.hypot(*random_j)) / idle_s * duration_s
    parts["drift"] = abs(drift_w) / 2 * duration_s
    return Net(
        energy_j=energy_j,
        uncertainty_j=float(np.sqrt(sum(p * p for p in parts.values()))),
        parts=parts,
        idle_w=idle_w,
        drift_w=drift_w,
        noise_w=noise_w,
        duration_s=duration_s,
    )


# ---------------------------------------------------------------------------------------------------------------------


def _checked(trace: Trace, name: str, intervals: Floats) -> Samples:
    """The samples, once it is sure that they can give the energy of `intervals` (k, 2)."""
    if not trace.channel(name).is_energy:
        raise ValueError(f"{trace.meter}/{name}: holds {trace.channel(name).quantity}, wanted power or energy")
    s = samples(trace, name)
    if len(intervals) == 0:
        return s
    if not np.all(intervals[:, 1] > intervals[:, 0]):
        raise ValueError(f"{trace.meter}/{name}: a window must end after its start")
    start, end = float(np.min(intervals)), float(np.max(intervals))
    if not (s.first_s <= start and end <= s.last_s):
        raise GapError(
            f"{trace.meter}/{name}: samples from {s.first_s:.6f} to {s.last_s:.6f} s, wanted {start:.6f} to {end:.6f}; "
            "start sampling before the first phase and stop it after the last"
        )
    return s


def _breaks(trace: Trace) -> Floats:
    """When the trace's clock was set anew, after its first row."""
    rows = np.asarray(trace.facts.get("clock_starts") or (), np.int64)
    return trace.t_s[rows[(rows > 0) & (rows < len(trace.t_s))]]


def _coverage(s: Samples, intervals: Floats) -> Floats:
    """Share of each interval (k, 2) within one update period of a fresh sample; inside a gap only its rims are."""
    gaps = s.gaps()
    if len(gaps) == 0:
        return np.ones(len(intervals))
    rim = s.update.period_s
    lost = np.isin(gaps[:, 0], s.t_s[s.lost])
    bare = np.where(lost[:, None], gaps, np.stack([gaps[:, 0] + rim, gaps[:, 1] - rim], axis=1))
    # Uncovered time up to t: the sum over gaps of how far t is into each, by interpolation on their ends.
    x = bare.ravel()
    y = np.repeat(np.cumsum(bare[:, 1] - bare[:, 0]), 2)
    y[0::2] = np.concatenate([[0.0], y[1:-1:2]])
    covered = 1 - np.diff(np.interp(intervals, x, y), axis=1)[:, 0] / np.diff(intervals, axis=1)[:, 0]
    return np.asarray(np.clip(covered, 0.0, 1.0))


def _gaps_within(s: Samples, window: Floats) -> tuple[tuple[float, float], ...]:
    gaps = s.gaps()
    inside = gaps[(gaps[:, 1] > window[0]) & (gaps[:, 0] < window[1])]
    return tuple((float(max(a, window[0])), float(min(b, window[1]))) for a, b in inside)


def _method(s: Samples) -> str:
    if s.channel.kind == "counter":
        return "counter: difference, ends interpolated"
    held = ", values held by the sensor put back to when they were made" if s.held else ""
    return f"gauge: trapezoid, ends interpolated{held}"
