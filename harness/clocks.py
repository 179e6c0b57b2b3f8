"""Two clocks tied together: how far a device's clock is from the harness's, how sure that is, and how it drifts.

A device time t answers a question asked at host time t0 and answered at t1, so it was read somewhere in between:
offset = t - (t0 + t1) / 2, wrong by at most (t1 - t0) / 2. The quickest of several answers has the least bound
(Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import ClockOffset, Floats, HarnessError

Ping = tuple[float, float, float]
"""Host clock before, device clock, host clock after, in seconds."""


def offset(samples: Sequence[Ping]) -> ClockOffset:
    """Device clock minus host clock, from the quickest of `samples`; at least 20 are wanted, one will do.

    HarnessError if there is none, or if time ran backwards in all of them.
    """
    sane = [s for s in samples if s[2] >= s[0]]
    if not sane:
        raise HarnessError(
            f"{len(samples)} clock readings and none between two rising host times, wanted at least one; "
            "see that the device's agent answers `clock`"
        )
    before, device, after = min(sane, key=lambda s: s[2] - s[0])
    middle = before + (after - before) / 2
    return ClockOffset(offset_s=device - middle, bound_s=(after - before) / 2, at_s=middle, n=len(sane))


def line(first: ClockOffset, last: ClockOffset) -> ClockOffset:
    """The line through two offsets, taken before and after a run.

    Between the two its bound is the larger of both: a line between two intervals leaves neither. ValueError if `last`
    was not taken after `first`.
    """
    if last.at_s <= first.at_s:
        raise ValueError(f"the last offset was taken at {last.at_s} s, not after the first at {first.at_s} s")
    drift = (last.offset_s - first.offset_s) / (last.at_s - first.at_s)
    return ClockOffset(first.offset_s, max(first.bound_s, last.bound_s), drift, first.at_s, first.n + last.n)


def offset_at(clock: ClockOffset, host_s: npt.ArrayLike) -> Floats:
    """Device minus host clock, in seconds, at host times of any shape."""
    return np.asarray(clock.offset_s + clock.drift * (np.asarray(host_s, float) - clock.at_s))


def to_device(clock: ClockOffset, host_s: npt.ArrayLike) -> Floats:
    """Host times, of any shape, on the device's clock."""
    return np.asarray(np.asarray(host_s, float) + offset_at(clock, host_s))


def to_host(clock: ClockOffset, device_s: npt.ArrayLike) -> Floats:
    """Device times, of any shape, on the host's clock: the inverse of `to_device`."""
    # device = host + offset + drift (host - at), solved for host - at.
    since = np.asarray(device_s, float) - clock.offset_s - clock.at_s
    return np.asarray(clock.at_s + since / (1 + clock.drift))


def bound_at(first: ClockOffset, last: ClockOffset, host_s: npt.ArrayLike) -> Floats:
    """How far `line(first, last)` may be off, in seconds, at host times of any shape.

    The true line passes through both intervals, so between them its bound runs straight from one to the other;
    outside it fans out as the steepest line through both.
    """
    x = (np.asarray(host_s, float) - first.at_s) / (last.at_s - first.at_s)
    return np.asarray(np.abs(1 - x) * first.bound_s + np.abs(x) * last.bound_s)
