"""When the rows of a meter with a clock of its own were made, from when they arrived.

A row made at x on the meter's clock (a sample counter) arrives at y = offset + (1 + drift) x + lateness on ours, and
never early. So the line sought is the one that lies as high as it can below all arrivals: of all lines below them the
one with the least sum of distances (Moon, Skelly & Towsley, "Estimation and Removal of Clock Skew from Network Delay
Measurements", INFOCOM 1999). A backlog that arrives in a burst lies above it and does not move it.

Where the meter's clock broke (`segment`), the offset is another, the drift is not. Segments whose offsets agree are
one: nothing was lost between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import Floats, Ints

MOST_DRIFT = 5e-3  # relative; a crystal has 1e-4, a ceramic resonator 5e-3; more is a port that falls behind
BLOCK_S, BLOCK_ROWS = 0.25, 8  # of the quickest arrival in each such block the scatter is told
MOST_BLOCKS = 4096  # of a segment, for the search of the drift
TRANSPORT_S = 2e-3  # the quickest may all be late by so much: a frame of USB 2.0 at full speed, and waking a reader
SAME_S = 3e-3  # offsets closer than this are one: a millisecond lost is not to be told from one of waiting
LIVE = 0.5  # a segment whose rows arrived in less than this share of the time they span, arrived in a burst
SETTLED = (
    2 / 3
)  # in so much of a segment its quickest arrivals are found, unless they still wait for less and less time
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Times:
    """Times (n,) on our clock; NaN where a row cannot be placed, rising elsewhere.

    `bound_s`: how far they may be off; `drift`: by how much our clock runs faster than the meter's; `late_s`: how long
    after its time a row came, as median and most; `starts`: rows at which an offset of its own begins.
    """

    t_s: Floats
    bound_s: float
    drift: float
    late_s: tuple[float, float]
    starts: tuple[int, ...]
    unplaced: int


def times(
    segment: Floats, clock_s: Floats, arrival_s: Floats, step_s: float = 0.0, most_drift: float = MOST_DRIFT
) -> Times:
    """Times of rows (n,) in order of arrival; `step_s` is the step of the meter's clock, where it has coarse ones.
    `most_drift` is the most that its clock can be off.

    ValueError if the three have not the same length.
    """
    n = len(clock_s)
    if not len(segment) == n == len(arrival_s):
        raise ValueError(f"{len(segment)} segments, {n} clocks, {len(arrival_s)} arrivals; wanted as many of each")
    if n == 0:
        return Times(np.empty(0), TRANSPORT_S, 0.0, (0.0, 0.0), (), 0)
    starts = np.flatnonzero(np.r_[True, np.diff(segment) != 0])
    # Differences of large numbers: a day of boottime in doubles has steps of 1e-11 s, which is enough.
    x, wait_s = clock_s - clock_s[0], (arrival_s - arrival_s[0]) - (clock_s - clock_s[0])
    if step_s:  # rows of one tick came one after the other
        first = np.flatnonzero(np.r_[True, (np.diff(x) != 0) | (np.diff(segment) != 0)])
        each = np.diff(np.r_[first, n])
        x = x + step_s * (np.arange(n) - np.repeat(first, each)) / np.repeat(each, each)
        wait_s = (arrival_s - arrival_s[0]) - x
    drift = _drift(x, wait_s, arrival_s, starts, most_drift)
    left_s = wait_s - drift * x
    # What is lost, or passes while a port is closed, puts the meter's clock further behind: an offset never falls. So
    # one that is found later bounds all before it, which helps those that lasted too short a time.
    own = np.minimum.reduceat(left_s, starts)
    offsets = np.minimum.accumulate(own[::-1])[::-1]
    # What is left of a backlog, and what only a later offset bounds, has none of its own: it is placed only where
    # nothing can have been lost since what has one.
    is_live = _live(starts, x, arrival_s) & _settled(starts, left_s) & (own - offsets < SAME_S)
    before = np.maximum.accumulate(np.r_[-np.inf, np.where(is_live, offsets, -np.inf)])[:-1]
    is_placed = is_live | (offsets - before < SAME_S) | (len(starts) == 1)
    good = np.repeat(is_placed, np.diff(np.r_[starts, n]))
    starts, offsets = _merged(starts, offsets)
    lengths = np.diff(np.r_[starts, n])
    late_s = left_s - np.repeat(offsets, lengths)
    t_s = arrival_s[0] + x + drift * x + np.repeat(offsets, lengths)
    placed = np.where(good, t_s, -np.inf)
    good &= placed > np.r_[-np.inf, np.maximum.accumulate(placed)[:-1]]
    t_s[~good] = np.nan
    bound_s = _scatter(x, late_s, arrival_s, starts) + TRANSPORT_S + step_s
    told = late_s[good] if good.any() else late_s
    late = (float(np.median(told)), float(told.max()))
    return Times(t_s, bound_s, drift, late, tuple(int(k) for k in starts), int((~good).sum()))


def times_of_answers(middle_s: Floats, arrival_s: Floats) -> Times:
    """Times of rows (n,) that were asked for: the middle of question and answer on our clock, off by half of what lay
    between them at most; the longest one in a hundred are left out of that bound."""
    late_s = arrival_s - middle_s
    if len(late_s) == 0:
        return Times(np.empty(0), TRANSPORT_S, 0.0, (0.0, 0.0), (), 0)
    late = (float(np.median(late_s)), float(late_s.max()))
    return Times(middle_s, max(TRANSPORT_S, float(np.quantile(late_s, 0.99))), 0.0, late, (0,), 0)


def _drift(x: Floats, wait_s: Floats, arrival_s: Floats, starts: Ints, most: float) -> float:
    """The drift with which the lines below the arrivals of all segments, each with its own offset, lie highest.

    The sum of the distances is convex in the drift (a maximum of linear functions for each segment): a golden section
    finds its least.
    """
    block, begins = _blocks(x, wait_s, starts)
    bx, by = x[block], wait_s[block]
    ends = np.r_[starts[1:], len(x)]
    # A segment counts as long as it lasts; one that arrived in a burst does not.
    weight = (x[ends - 1] - x[starts]).clip(0) * (_live(starts, x, arrival_s) | (len(starts) == 1))
    if weight.sum() <= 0:
        return 0.0
    # The middle in time: rows are even, unless many came at once or are missing.
    middle = (x[ends - 1] + x[starts]) / 2

    def distance(drift: float) -> float:
        lowest = np.minimum.reduceat(by - drift * bx, begins)
        return float(-np.dot(weight, lowest + drift * middle))

    low, high = -most, most
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    fa, fb = distance(a), distance(b)
    while high - low > 1e-9:
        if fa <= fb:
            high, b, fb = b, a, fa
            a = high - GOLDEN * (high - low)
            fa = distance(a)
        else:
            low, a, fa = a, b, fb
            b = low + GOLDEN * (high - low)
            fb = distance(b)
    return (low + high) / 2


def _blocks(x: Floats, wait_s: Floats, starts: Ints) -> tuple[Ints, Ints]:
    """The quickest row of each block, at most MOST_BLOCKS a segment; and where each segment's blocks begin."""
    quickest: list[int] = []
    begins: list[int] = []
    for first, last in zip(starts, np.r_[starts[1:], len(x)], strict=True):
        rows = -(-(last - first) // MOST_BLOCKS)
        begins.append(len(quickest))
        whole = (last - first) // rows * rows
        grid = wait_s[first : first + whole].reshape(-1, rows)
        quickest += (first + np.arange(len(grid)) * rows + grid.argmin(axis=1)).tolist()
        if first + whole < last:
            quickest.append(int(first + whole + wait_s[first + whole : last].argmin()))
    return np.array(quickest, np.int64), np.array(begins, np.int64)


def _merged(starts: Ints, offsets: Floats) -> tuple[Ints, Floats]:
    """Neighbours whose offsets agree are one segment: nothing was lost between them."""
    kept, least = [int(starts[0])], [float(offsets[0])]
    for start, offset in zip(starts[1:].tolist(), offsets[1:].tolist(), strict=True):
        if abs(offset - least[-1]) < SAME_S:
            least[-1] = min(least[-1], offset)
        else:
            kept.append(start)
            least.append(offset)
    return np.array(kept, np.int64), np.array(least)


def _live(starts: Ints, x: Floats, arrival_s: Floats) -> npt.NDArray[np.bool_]:
    """Which stretches of rows arrived as they were made, and not, like what is left of a backlog, all at once."""
    ends = np.r_[starts[1:], len(x)] - 1
    return np.asarray((arrival_s[ends] - arrival_s[starts] >= LIVE * (x[ends] - x[starts])) & (ends > starts))


def _settled(starts: Ints, late_s: Floats) -> npt.NDArray[np.bool_]:
    """Which stretches were not, like what drains out of a backlog slowly, less and less late up to their end."""
    ends = np.r_[starts[1:], len(late_s)]
    rest = np.minimum(starts + np.round(SETTLED * (ends - starts)).astype(np.int64), ends - 1)
    first_s, rest_s = np.minimum.reduceat(late_s, np.column_stack([starts, rest]).ravel()).reshape(-1, 2).T
    return np.asarray(first_s - rest_s < SAME_S)


def _scatter(x: Floats, late_s: Floats, arrival_s: Floats, starts: Ints) -> float:
    """How late the quickest row of a block is at most: what an offset from so few rows may be off."""
    span_s = max(float(x[-1] - x[0]), 1e-9)
    rows = max(BLOCK_ROWS, round(BLOCK_S * len(x) / span_s))
    edges = np.unique(np.r_[starts, np.arange(0, len(x), rows)])
    live = _live(edges, x, arrival_s) & _settled(edges, late_s)
    quickest = np.minimum.reduceat(late_s, edges)
    return float(np.max(quickest[live] if live.any() else quickest))
