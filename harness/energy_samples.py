"""From a meter's reads to what its sensor really measured: distinct refreshes, each with the time it stands for.

A sensor refreshes by itself, every T; the harness reads it whenever it likes, every R. Reading faster than the sensor
refreshes returns the same value again, and such repeats are no measurements: n, gaps and update periods count
refreshes. A new value is first seen up to R after it was made; it is put in the middle of (previous read, this read],
and half of that interval is kept as its slack.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace

import numpy as np

from edgewatt.harness.api import Channel, Floats, HarnessError, Ints, Trace

GAP_PERIODS = 3.0
"""A stretch without a fresh reading longer than this many update periods is a gap (nothing is known of it)."""

HELD_SHARE = 0.04
"""With a smaller share of repeated reads a sensor counts as refreshed at every read."""

MEAN_SHARE = 0.75
"""A gauge that averages over at least this share of its update period has seen (nearly) all of it."""

_NONE: Ints = np.empty(0, np.int64)


class GapError(HarnessError):
    """The samples do not carry the energy asked for: too few, or they do not reach both ends."""


@dataclass(frozen=True)
class UpdatePeriod:
    """How often a sensor refreshes: `fresh` distinct refreshes were seen in `reads` reads.

    `known` is False where the readings cannot show it (a constant or piecewise constant gauge): `period_s` is then
    the period of the reads. A sensor with a new value at every read refreshes at least that often.
    """

    period_s: float
    fresh: int
    reads: int
    known: bool


@dataclass(frozen=True)
class Samples:
    """What the sensor of one channel measured: values at the times they stand for.

    `value` is a level (W) for a gauge, and a running sum (J) for a counter: wraps added, restarts bridged. A gauge
    whose readings are the means of all the time since the one before is a running sum too.
    """

    channel: Channel
    t_s: Floats  # (n,) rising
    value: Floats  # (n,)
    slack_s: Floats  # (n,) half-width of the interval in which the refresh fell; 0 where it was read as it was made
    lost: Ints  # indices i: the counter restarted between samples i and i + 1
    update: UpdatePeriod
    sums: bool  # value is a running sum
    held: bool  # reads come faster than refreshes
    quantum: float  # smallest step of a reading in the channel's unit; 0: none known or seen
    read_s: float  # median time between two reads
    first_s: float  # first and last read: energy can be had between them
    last_s: float
    fresh_s: Floats  # when the distinct refreshes were made
    reads_s: Floats  # when the channel was read
    stamp_s: float = 0.0  # half the median duration of a read: stamped in its middle, it may be from either end

    def gaps(self) -> Floats:
        """Stretches (k, 2), in order, in which nothing was measured: missing reads, and the restarts of a counter."""
        long = np.flatnonzero(np.diff(self.t_s) > GAP_PERIODS * self.update.period_s * (1 + 1e-9))
        k = np.union1d(long, self.lost).astype(np.int64)
        return np.stack([self.t_s[k], self.t_s[k + 1]], axis=1)


_made: dict[int, tuple[weakref.ref[Trace], dict[str, Samples]]] = {}


def samples(trace: Trace, channel: str) -> Samples:
    """The fresh samples of one channel; KeyError if there is no such channel, GapError with fewer than two readings.

    Kept as long as the trace lives: an analysis asks for dozens of windows of the same channel.
    """
    key = id(trace)
    if key not in _made or _made[key][0]() is not trace:
        _made[key] = weakref.ref(trace, lambda _: _made.pop(key, None)), {}
    known = _made[key][1]
    if channel not in known:
        known[channel] = _samples(trace, channel)
    return known[channel]


def _samples(trace: Trace, name: str) -> Samples:
    channel, column = trace.channel(name), trace.column(name)
    good = np.isfinite(column)
    t, v = np.asarray(trace.t_s[good], float), np.asarray(column[good], float)
    if len(t) < 2:
        raise GapError(
            f"{trace.meter}/{name}: {len(t)} readings, wanted at least 2; sample for longer, or see that it can be read"
        )
    found = _counter(channel, t, v) if channel.kind == "counter" else _gauge(channel, t, v)
    return replace(found, stamp_s=float(trace.facts.get("read_s") or 0.0) / 2)


def _gauge(channel: Channel, t: Floats, v: Floats) -> Samples:
    seen = 1 + np.flatnonzero(np.diff(v))
    quantum = channel.quantum or _quantum(v, seen)
    if _is_held(t, v, seen, quantum):
        found = _refreshes(channel, t, v, seen, _NONE)
    else:
        read_s = float(np.median(np.diff(t)))
        known = len(seen) > (1 - HELD_SHARE) * (len(t) - 1)
        update = UpdatePeriod(read_s, len(seen) + 1, len(t), known)
        found = Samples(channel, t, v, np.zeros(len(t)), _NONE, update, False, False, 0.0, read_s, t[0], t[-1], t, t)
    found = replace(found, sums=False, quantum=quantum)
    averaging_s, period_s = channel.averaging_s or 0.0, found.update.period_s
    if averaging_s < MEAN_SHARE * period_s:
        # A reading that is the mean of the last averaging_s stands for the middle of that time.
        return replace(found, t_s=found.t_s - averaging_s / 2)
    span = np.diff(found.t_s)
    w = found.value
    mean = np.where(span > 1.5 * period_s, (w[1:] + w[:-1]) / 2, w[1:])
    joules = np.concatenate([[0.0], np.cumsum(mean * span)])
    return replace(found, t_s=found.t_s - (averaging_s - period_s) / 2, value=joules, sums=True)


def _quantum(v: Floats, seen: Ints) -> float:
    """The step all readings are whole numbers of, in their unit, if there is one; else 0."""
    if len(seen) < 8:
        return 0.0
    step = float(np.min(np.abs(v[seen] - v[seen - 1])))
    some = v[seen[:1000]]
    if step < 1e-9 * np.max(np.abs(some)) or len(np.unique(some)) < 5:
        return 0.0
    off = np.abs(some / step - np.round(some / step))
    return step if np.max(off) < 1e-3 else 0.0


def _is_held(t: Floats, v: Floats, seen: Ints, quantum: float) -> bool:
    """Whether a gauge's reads repeat because the sensor holds its value, and not because the power stands still.

    Four signs together. New values are new: a load that switches between a few levels returns to them. Most steps
    are larger than a quantum: a slow power repeats a level until it reaches the next. There are more repeats than by
    chance: a power that often moves by one quantum often moves by none. And a period explains them: most of the
    refreshes it makes one expect are seen.
    """
    if len(seen) < 8:
        return False
    single = np.count_nonzero(np.abs(v[seen] - v[seen - 1]) < 1.5 * quantum)
    repeats = len(v) - 1 - len(seen) - single
    w = v[seen]
    returns = np.count_nonzero(w[2:] == w[:-2]) / (len(w) - 2)
    read_s = float(np.median(np.diff(t)))
    expected = len(v) * read_s / _period(t[seen], read_s)
    enough = repeats >= 8 and repeats > HELD_SHARE * len(v)
    return bool(enough and single < len(seen) / 2 and returns < 0.5 and len(seen) > expected / 2)


def _counter(channel: Channel, t: Floats, v: Floats) -> Samples:
    grown = np.diff(v)
    drops = np.flatnonzero(grown < 0)
    if len(drops) and channel.wraps_at:
        wrapped = grown[drops] + channel.wraps_at
        # A wrap is as fast as the rest of the record, give or take; a restart that passed for one would be far off.
        rate = np.max(np.where(grown > 0, grown, 0.0) / np.diff(t), initial=0.0)
        plausible = (wrapped >= 0) & (wrapped <= 10 * rate * np.diff(t)[drops] + 1e-3 * channel.wraps_at)
        grown[drops[plausible]] = wrapped[plausible]
        drops = drops[~plausible]
    grown[drops] = 0.0
    joules = np.concatenate([[0.0], np.cumsum(grown)])
    change = grown > 0
    change[drops] = True
    seen = 1 + np.flatnonzero(change)
    if len(seen) == 0:
        read_s = float(np.median(np.diff(t)))
        update = UpdatePeriod(read_s, 1, len(t), False)
        return Samples(
            channel, t, joules, np.zeros(len(t)), _NONE, update, True, False, 0.0, read_s, t[0], t[-1], t[:1], t
        )
    return _bridged(_refreshes(channel, t, joules, seen, drops))


def _bridged(s: Samples) -> Samples:
    """Restarts of a counter bridged by the mean of the powers before and after: never unwrapped, marked as lost.

    Those powers are means over as long a time as the bridge is. A held counter may restart between two refreshes, and
    nobody knows what its next value counts from: the read that found the restart is left out, and the bridge goes on to
    the refresh after it.
    """
    if not len(s.lost):
        return s
    after = s.lost + 1
    left_out = after[(after + 1 < len(s.t_s)) & ~np.isin(after, s.lost)] if s.held else _NONE
    t, value, slack = (np.delete(x, left_out) for x in (s.t_s, s.value, s.slack_s))
    lost = s.lost - np.searchsorted(left_out, s.lost)
    whole = np.delete(np.arange(len(t) - 1), lost)
    if not len(whole):
        raise GapError(f"{s.channel.name}: restarted at every reading; check that it is an energy counter in joules")
    overall_w = np.sum(np.diff(value)[whole]) / np.sum(np.diff(t)[whole])  # where restarts follow each other
    starts, ends = np.append(0, lost + 1), np.append(lost, len(t) - 1)  # of the segments between restarts
    for n, i in enumerate(lost):
        span_s = t[i + 1] - t[i]
        before = max(starts[n], min(i - 1, np.searchsorted(t, t[i] - span_s)))
        after = min(ends[n + 1], max(i + 2, np.searchsorted(t, t[i + 1] + span_s)))
        powers = [(value[k] - value[j]) / (t[k] - t[j]) for j, k in ((before, i), (i + 1, after)) if k > j]
        bridge_j = np.mean(powers or overall_w) * span_s
        value = np.concatenate([value[: i + 1], value[i + 1 :] + value[i] + bridge_j - value[i + 1]])
    return replace(s, t_s=t, value=value, slack_s=slack, lost=lost)


def _refreshes(channel: Channel, t: Floats, v: Floats, seen: Ints, drops: Ints) -> Samples:
    """The refreshes behind the reads t, v: first sights at `seen`, and refreshes that brought the same value again.

    A value that stays for several periods was refreshed meanwhile, as far as reads saw it. The value of the first
    read was made a whole number of periods before the first change.
    """
    read_s = float(np.median(np.diff(t)))
    held = len(t) - 1 - len(seen) > HELD_SHARE * (len(t) - 1)
    period_s = _period(t[seen], read_s) if held and len(seen) > 2 else read_s
    known = len(seen) > 2
    if held:
        since = np.maximum(t[seen - 1], t[seen] - period_s)
        made, slack = (t[seen] + since) / 2, (t[seen] - since) / 2
    else:
        made, slack = t[seen], np.zeros(len(seen))
    first = made[0] - period_s * max(1.0, np.ceil((made[0] - t[0]) / period_s * (1 - 1e-9)))
    made = np.concatenate([[first], made])
    slack = np.concatenate([slack[:1], slack])
    value = v[np.concatenate([[0], seen])]
    last_read = t[np.concatenate([seen - 1, [len(t) - 1]])]
    following = np.append(made[1:], np.inf)
    until = np.where(following <= last_read + period_s / 2, following, last_read)  # unread, it may have changed at once
    times = np.maximum(1, np.round((until - made) / period_s)).astype(np.int64)
    start = np.cumsum(times) - times
    k = np.repeat(np.arange(len(made)), times)
    at = made[k] + (np.arange(len(k)) - start[k]) * ((until - made) / times)[k]
    lost = start[1 + np.searchsorted(seen, drops + 1)] - 1
    update = UpdatePeriod(period_s, len(seen) + 1, len(t), known)
    quantum = channel.quantum or 0.0
    return Samples(channel, at, value[k], slack[k], lost, update, True, held, quantum, read_s, t[0], t[-1], made, t)


def _period(seen_s: Floats, read_s: float) -> float:
    """Mean time between changes (n,), in seconds, without those that span several refreshes.

    Changes are seen on a grid of reads, so single intervals are off by up to a read; their mean is not.
    """
    spans = np.diff(seen_s)
    return float(np.mean(spans[spans <= 1.5 * np.quantile(spans, 0.25) + 1.01 * read_s]))
