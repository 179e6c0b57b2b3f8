"""A recording on a clock that nothing ties to the device's, tied by the pulses that the device played and it shows.

The busy and idle turns of the agent's `pulse` stand before and after the job. First they are looked for at every lag,
by normalised cross-correlation (the sliding Pearson coefficient of power and pattern); then the edges are located, by
least squares over the place and the width of a ramp between two free levels, all edges of one end together for the
estimate and each alone for its spread. Both ends give a line: the offset and the drift of the recording's clock.

The offset is that of the power's edges as the recording shows them: the delay of an instrument that averages is in it,
as its joules are late by just that. How late cannot be told from a clock that is off, so half the width of the edges is
in the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgewatt.harness import statistics
from edgewatt.harness.api import Floats, HarnessError

MOST_DRIFT = 1e-3  # between two clocks; crystals are off by 20 to 100 ppm, cheap resonators by up to 500
UNKNOWN_DRIFT = 300e-6  # what is assumed where one end alone was found
LEAST_MATCH = 0.6  # correlation below which a pattern is not there
LEAST_ALONE = 0.75  # the same where one end alone is there, and no second one confirms it
CLEAR = 0.85  # the next best place must stay below so much of the best one's correlation
STAMPS_S = 1e-3  # how well the pulses' stamps say when the power changed: workers start a little apart
# Of where one end is, by the spread of its edges, where that end stands alone and where the other confirms it. It is
# below 10 ms where they are of this run (20 ms on a device with other work to do), and nearly always above 25 ms where
# they are another's (simulated, 100 runs each, noise up to 0.8 of the pulses).
MOST_ERROR_S = (0.02, 0.03)
STEPS = 12  # steps of the coarse grid in the shortest pulse or pause
MOST_STEPS = 10_000_000  # of that grid in a recording: days
BINS = 120  # of the window around an edge
WIDEST = 0.45  # of the shortest pulse or pause: half a window around an edge


class AlignmentError(HarnessError):
    """The recording cannot be tied to the device's clock; the message says why, with figures."""


@dataclass(frozen=True)
class Alignment:
    """Recording's clock minus device's, as a line in device time: offset_s + drift * (t - at_s), within bound_s (95 %).

    `match` are the correlations (0..1) of the ends that were found; `note` says in words what is not known, or "".
    """

    offset_s: float
    drift: float
    at_s: float
    bound_s: float
    match: tuple[float, ...]
    note: str = ""

    def on_device(self, t_s: Floats) -> Floats:
        """Times (n,) of the recording, on the device's clock."""
        return (t_s - self.offset_s + self.drift * self.at_s) / (1 + self.drift)


@dataclass(frozen=True)
class _End:
    """One end's pattern found in the recording: offset (s) at the middle of its pulses, with its bound."""

    at_s: float
    offset_s: float
    bound_s: float
    match: float


def align(t_s: Floats, power_w: Floats, ends: Sequence[Floats]) -> Alignment:
    """How the recording's clock runs against the device's.

    Args:
        t_s: (n,) rising times of the recording, on its own clock; uneven ones and gaps are allowed.
        power_w: (n,) what it shows; NaN where a reading is missing. Any quantity that grows with the load will do.
        ends: start and end (k, 2) of the pulses on the device's clock, an array for each time they were played.

    Raises:
        AlignmentError: the pulses are not in it, or not clearly, or it is too slow to show them.
    """
    there = np.isfinite(t_s) & np.isfinite(power_w)
    t, p = t_s[there], power_w[there]
    ends = [np.asarray(e, np.float64) for e in ends if len(e) >= 2]
    if not ends:
        raise AlignmentError("no pulses were played in this run")
    shortest_s = min(float(np.diff(e.ravel()).min()) for e in ends)
    if len(t) < 10:
        raise AlignmentError(f"the recording has {len(t)} readings, too few to look for the pulses")
    period_s = float(np.median(np.diff(t)))
    if period_s > shortest_s / 2:
        raise AlignmentError(
            f"the recording has a reading every {period_s:.3g} s, too few for pulses of {shortest_s:.3g} s; "
            f"record at least {2 / shortest_s:.2g} readings a second"
        )
    if t[-1] - t[0] > MOST_STEPS * shortest_s / STEPS:
        raise AlignmentError(
            f"the recording goes on for {t[-1] - t[0]:.4g} s, {np.diff(t).max():.4g} s of that between two readings; "
            "see its stamps, and cut off what does not belong to the run"
        )
    origin_s = float(t[0])  # a clock that counts from 1970 leaves float64 too few digits for sums of squares
    series = _Series.of(t - origin_s, p, shortest_s / STEPS)
    places = [_places(series, e) for e in ends]
    chosen = _chosen(series, ends, places)
    most_s = MOST_ERROR_S[len(chosen) > 1]
    found = [_located(series, ends[k], lag, match, period_s, shortest_s, most_s) for k, lag, match in chosen]
    return _line(found, ends, series, origin_s)


@dataclass(frozen=True)
class _Series:
    """The recording from its first reading on: its integral at its times, and its means on a grid of `step_s`."""

    t_s: Floats
    integral: Floats
    step_s: float
    grid: Floats

    @staticmethod
    def of(t: Floats, p: Floats, step_s: float) -> _Series:
        p = p - np.median(p)
        integral = np.concatenate([[0.0], np.cumsum(np.diff(t) * (p[1:] + p[:-1]) / 2)])
        edges = np.arange(0.0, t[-1], step_s)
        return _Series(t, integral, step_s, np.diff(np.interp(edges, t, integral)) / step_s)

    @property
    def length_s(self) -> float:
        return float(self.t_s[-1])

    def means(self, edges: Floats) -> Floats:
        """Means between neighbouring times (..., n + 1) of the last axis: (..., n)."""
        return np.diff(np.interp(edges, self.t_s, self.integral), axis=-1) / np.diff(edges, axis=-1)


def _margin_s(pulses: Floats) -> float:
    """Idle time that belongs to the pattern on either side of its pulses."""
    return float(np.median(np.diff(pulses.ravel())))


def _places(series: _Series, pulses: Floats) -> Floats:
    """Where the pattern may stand: (m, 2) lags (recording minus device, s) and correlations, the best first.

    Lags are those of the local maxima; where the recording is shorter than the pattern there are none.
    """
    from scipy.signal import fftconvolve  # here: the command line imports this, and scipy takes its time

    margin_s = _margin_s(pulses)
    begin, end = pulses[0, 0] - margin_s, pulses[-1, 1] + margin_s
    edges = np.arange(begin, end, series.step_s)
    busy = np.concatenate([[0.0], np.cumsum(np.diff(pulses.ravel()) * (np.arange(2 * len(pulses) - 1) % 2 == 0))])
    pattern = np.diff(np.interp(edges, pulses.ravel(), busy))
    n, x = len(pattern), series.grid
    if len(x) < n:
        return np.empty((0, 2))
    pattern = (pattern - pattern.mean()) / np.linalg.norm(pattern - pattern.mean())
    one, two = (np.concatenate([[0.0], np.cumsum(v)]) for v in (x, x * x))
    spread = (two[n:] - two[:-n]) - (one[n:] - one[:-n]) ** 2 / n
    # What is flat to the last digits correlates with nothing.
    least = max(1e-9 * float(np.max(spread, initial=0.0)), 1e-12 * float(two[-1]) / len(x), 1e-300)
    match = fftconvolve(x, pattern[::-1], mode="valid") / np.sqrt(np.maximum(spread, least))
    match = np.where(spread > least, np.clip(match, -1, 1), 0.0)
    peaks = np.flatnonzero((match >= np.append(match[1:], -1)) & (match >= np.insert(match[:-1], 0, -1)) & (match > 0))
    peaks = peaks[np.argsort(-match[peaks])][:400]
    return np.column_stack([peaks * series.step_s - begin, match[peaks]])


def _chosen(series: _Series, ends: Sequence[Floats], places: Sequence[Floats]) -> list[tuple[int, float, float]]:
    """The ends that are there: (number, lag, correlation) of each."""
    if len(ends) >= 2 and (pair := _pair(ends, places)):
        return pair
    singles = [(k, p[0, 0], p[0, 1]) for k, p in enumerate(places) if len(p) and p[0, 1] >= LEAST_ALONE]
    if not singles:
        best = [f"{p[0, 1]:.2f}" if len(p) else "none" for p in places]
        raise AlignmentError(
            f"the pulses of this run are not in the recording: best correlation {' and '.join(best)}, wanted "
            f"{LEAST_MATCH:g} at both ends or {LEAST_ALONE:g} at one; it lasts {series.length_s:.4g} s"
        )
    k, lag, match = max(singles, key=lambda s: s[2])
    _is_clear(places[k], lag, match, _margin_s(ends[k]))
    for other, pulses in enumerate(ends):
        if other == k:
            continue
        slack_s = MOST_DRIFT * abs(pulses[0, 0] - ends[k][0, 0]) + 2 * series.step_s
        begin, end = pulses[0, 0] + lag - slack_s, pulses[-1, 1] + lag + slack_s
        margin_s = _margin_s(pulses) + 2 * series.step_s
        if begin - margin_s >= 0 and end + margin_s <= series.length_s:
            near = places[other][np.abs(places[other][:, 0] - lag) <= slack_s] if len(places[other]) else places[other]
            there = f"{near[:, 1].max():.2f}" if len(near) else "0"
            raise AlignmentError(
                f"pulses like those of this run are in the recording once (correlation {match:.2f}), but "
                f"{abs(pulses[0, 0] - ends[k][0, 0]):.4g} s {'later' if other > k else 'earlier'} it shows no others "
                f"(correlation {there}, wanted {LEAST_MATCH:g}); is it the recording of another run?"
            )
    return [(k, lag, match)]


def _pair(ends: Sequence[Floats], places: Sequence[Floats]) -> list[tuple[int, float, float]]:
    """Both ends, so far apart as on the device's clock; nothing if there is no such pair."""
    first, last = [p[p[:, 1] >= LEAST_MATCH] for p in (places[0], places[-1])]
    if not (len(first) and len(last)):
        return []
    slack_s = MOST_DRIFT * abs(ends[-1][0, 0] - ends[0][0, 0]) + 0.5 * _margin_s(ends[0]) / STEPS * 4
    score = np.where(np.abs(first[:, None, 0] - last[None, :, 0]) <= slack_s, first[:, None, 1] + last[None, :, 1], 0.0)
    if not score.any():
        return []
    i, j = np.unravel_index(int(np.argmax(score)), score.shape)
    best = float(score[i, j])
    apart = np.abs(first[:, 0] - first[i, 0]) > _margin_s(ends[0]) / 2
    if apart.any() and (next_ := float(score[apart].max())) > CLEAR * best:
        raise AlignmentError(
            f"the pulses are in the recording more than once: correlations {best / 2:.2f} and {next_ / 2:.2f} at two "
            "places; cut the recording to this run"
        )
    return [(0, float(first[i, 0]), float(first[i, 1])), (len(ends) - 1, float(last[j, 0]), float(last[j, 1]))]


def _is_clear(places: Floats, lag: float, match: float, apart_s: float) -> None:
    """AlignmentError if the next best place is nearly as good."""
    others = places[np.abs(places[:, 0] - lag) > apart_s / 2]
    if len(others) and others[0, 1] > CLEAR * match:
        raise AlignmentError(
            f"the pulses are not clearly in the recording: correlation {match:.2f}, and {others[0, 1]:.2f} "
            f"{abs(others[0, 0] - lag):.3g} s away (wanted less than {CLEAR:.0%} of the best)"
        )


def _located(
    series: _Series, pulses: Floats, lag: float, match: float, period_s: float, shortest_s: float, most_error_s: float
) -> _End:
    """Where the edges of one end really are."""
    half_s = WIDEST * shortest_s
    grid = np.linspace(-half_s, half_s, BINS + 1)
    shifts = np.linspace(-half_s * 0.6, half_s * 0.6, 6 * BINS // 5 + 1)
    widths = np.concatenate([[0.0], np.geomspace(half_s / 30, half_s * 1.5, 12)])
    edges = pulses.ravel()
    signs = np.where(np.arange(len(edges)) % 2 == 0, 1.0, -1.0)
    width_s, each = 0.0, np.zeros(len(edges))
    for _ in range(3):  # the window is put around what was found
        around = edges[:, None] + lag + grid
        inside = (around[:, 0] >= 0) & (around[:, -1] <= series.length_s) & _is_sampled(series, around, period_s)
        if inside.sum() < max(4, len(edges) // 2):
            raise AlignmentError(f"only {inside.sum()} of {len(edges)} edges of the pulses are in the recording")
        profiles = series.means(around[inside]) * signs[inside, None]
        shift, width_s = _ramp(profiles.mean(axis=0), grid, shifts, widths)
        each = np.array([_ramp(profile, grid, shifts, np.array([width_s]))[0] for profile in profiles])
        lag += shift
    spread_s = float(np.sqrt(np.mean((each - np.median(each)) ** 2)))
    if width_s > shortest_s / 2:
        raise AlignmentError(
            f"the recording is too slow for the pulses: its edges are {width_s:.2g} s wide, pulses {shortest_s:.2g} s"
        )
    error_s = statistics.student(len(each) - 1) * spread_s / np.sqrt(len(each))
    if error_s > most_error_s + 0.2 * period_s:
        raise AlignmentError(
            f"what looks like the pulses (correlation {match:.2f}) has its edges elsewhere, {spread_s:.2g} s off in "
            "the mean: the pulses of another run, a load like them, or too much noise"
        )
    # One step of the grid more: so well is the width known.
    widest_s = float(widths[min(int(np.searchsorted(widths, width_s)) + 1, len(widths) - 1)])
    bound_s = float(np.hypot(error_s, period_s / 2)) + widest_s / 2 + STAMPS_S
    return _End(float(edges.mean()), lag, bound_s, match)


def _is_sampled(series: _Series, around: Floats, period_s: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which windows (m, n) have about as many readings as they should: a gap has no edge in it."""
    first, last = (np.searchsorted(series.t_s, around[:, k]) for k in (0, -1))
    return (last - first + 1) * period_s >= 0.7 * (around[:, -1] - around[:, 0])


def _ramp(profile: Floats, grid: Floats, shifts: Floats, widths: Floats) -> tuple[float, float]:
    """Place and width (s) of the ramp between two levels that comes nearest to a profile (n,) of bin means, by least
    squares; the place between two of `shifts` by the parabola through the best three."""
    y = profile - profile.mean()
    norms = []
    for width in widths:
        at = grid[None, :] - shifts[:, None]
        # the integral of a ramp from 0 to 1 of that width around 0
        area = np.maximum(at, 0.0) if width == 0 else _ramp_area(at, width)
        model = np.diff(area, axis=1)
        model -= model.mean(axis=1, keepdims=True)
        norms.append(model @ y / np.maximum(np.linalg.norm(model, axis=1), 1e-15))
    match = np.array(norms)
    w, k = np.unravel_index(int(np.argmax(match)), match.shape)
    shift = float(shifts[k])
    if 0 < k < len(shifts) - 1:
        a, b, c = match[w, k - 1], match[w, k], match[w, k + 1]
        if (curve := a - 2 * b + c) < 0:
            shift += 0.5 * float((a - c) / curve) * float(shifts[1] - shifts[0])
    return shift, float(widths[w])


def _ramp_area(at: Floats, width: float) -> Floats:
    x = np.clip(at, -width / 2, width / 2) + width / 2
    return x * x / (2 * width) + np.maximum(at - width / 2, 0.0)


def _line(found: Sequence[_End], ends: Sequence[Floats], series: _Series, origin_s: float) -> Alignment:
    """The line through what was found at one end or at both."""
    match = tuple(e.match for e in found)
    first, last = found[0], found[-1]
    if len(found) > 1:
        drift = (last.offset_s - first.offset_s) / (last.at_s - first.at_s)
        bound_s = max(first.bound_s, last.bound_s)
        return Alignment(first.offset_s + origin_s, drift, first.at_s, bound_s, match)
    reach_s = max(abs(float(t) - first.at_s) for e in ends for t in (e[0, 0], e[-1, 1]))
    bound_s = first.bound_s + UNKNOWN_DRIFT * reach_s
    if len(ends) > 1:
        note = (
            f"the pulses {'after' if first.at_s < ends[-1][0, 0] else 'before'} the job are not in the recording (it "
            f"lasts {series.length_s:.4g} s), so its drift is unknown; {UNKNOWN_DRIFT * 1e6:.0f} ppm are allowed for"
        )
    else:
        note = f"the pulses were played once, so the drift is unknown; {UNKNOWN_DRIFT * 1e6:.0f} ppm are allowed for"
    return Alignment(first.offset_s + origin_s, 0.0, first.at_s, bound_s, match, note)
