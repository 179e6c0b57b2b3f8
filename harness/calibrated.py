"""A calibration that was asked for, applied to a trace: facts["calibration"] tells it, the stored values stay raw.

facts["calibration"] holds: channel, gain, offset_w, gain_error (relative, 95 %: of the fit and the reference),
reference_gain_error (None: it states none), delay_s, delay_error_s, averaging_s (None: unknown), boundary, covers,
reference, date, sha256 (of the calibration's file) and run (where its raw samples are).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgewatt.harness.api import Channel, Floats, Trace


def calibration_of(trace: Trace) -> Mapping[str, Any] | None:
    """What is to be applied to the trace; None if nothing is, or it has no such channel."""
    told = trace.facts.get("calibration")
    is_there = isinstance(told, Mapping) and told["channel"] in [c.name for c in trace.channels]
    return told if is_there else None


def applied(trace: Trace) -> tuple[Trace, float]:
    """The trace as its calibration has it, and the bound (s) that the delay adds to its times.

    reference = gain * reading + offset, at the time of the reading less the delay. A counter grows by offset x time.
    The joules are then those the reference would have shown: they are counted at its boundary.
    """
    told = calibration_of(trace)
    if told is None:
        return trace, 0.0
    k = [c.name for c in trace.channels].index(told["channel"])
    gain, offset_w = float(told["gain"]), float(told["offset_w"])
    values = trace.values.copy()
    of_offset = _seen_s(trace.t_s, values[:, k]) if trace.channels[k].kind == "counter" else 1.0
    values[:, k] = gain * values[:, k] + offset_w * of_offset
    channels = (*trace.channels[:k], _channel(trace.channels[k], told, gain), *trace.channels[k + 1 :])
    facts = {**trace.facts, "gain_error_told": told.get("reference_gain_error")}
    moved = dataclasses.replace(trace, t_s=trace.t_s - float(told.get("delay_s") or 0.0), values=values, facts=facts)
    return dataclasses.replace(moved, channels=channels), float(told.get("delay_error_s") or 0.0)


def _seen_s(t_s: Floats, counted: Floats) -> Floats:
    """When each reading (n,) of a counter was seen first, in s since the first: until it is renewed it stays the same,
    and the energy of the offset comes with the next."""
    found = np.zeros(len(t_s))
    there = np.isfinite(counted)
    if there.any():
        is_new = np.diff(counted[there], prepend=np.nan) != 0
        first = np.maximum.accumulate(np.where(is_new, np.arange(len(is_new)), 0))
        found[there] = t_s[there][first] - t_s[there][0]
    return found


def _channel(c: Channel, told: Mapping[str, Any], gain: float) -> Channel:
    def scaled(x: float | None) -> float | None:
        return None if x is None else gain * x

    averaging_s = c.averaging_s if told.get("averaging_s") is None else float(told["averaging_s"])
    return dataclasses.replace(
        c,
        gain_error=told.get("gain_error"),
        averaging_s=averaging_s,
        age_s=c.age_s if told.get("delay_s") is None else 0.0,
        quantum=scaled(c.quantum),
        wraps_at=scaled(c.wraps_at),
        boundary=str(told["boundary"]),
        covers=str(told["covers"]),
    )


def in_words(told: Mapping[str, Any]) -> str:
    """Against what and when."""
    return f"calibrated against {told['reference']} on {str(told['date'])[:10]}"


def in_full(meter: str, told: Mapping[str, Any]) -> str:
    """What was applied, in one line."""
    known = f"within {float(told['gain_error']):.2%}"
    known += ", and the reference's own gain error, which it does not state" * (told["reference_gain_error"] is None)
    delay = "" if told.get("delay_s") is None else f", {float(told['delay_s']):.3g} s earlier"
    return (
        f"{meter}/{told['channel']}: {in_words(told)}, as was asked: x {float(told['gain']):.5g} "
        f"{float(told['offset_w']):+.3g} W{delay} ({known}); its joules are those of {told['boundary']}, its raw "
        "values are kept as they were read"
    )
