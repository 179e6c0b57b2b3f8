"""Whether a gauge is read too slowly for a load that changes faster than that: then its readings are drawn by chance.

Readings of a load that is slower than the reads resemble their neighbours. Of one that is faster they do not: their
mean square successive difference over their variance (von Neumann, The Annals of Mathematical Statistics 12 (1941)
367) is near 2 where they are drawn by chance, above it where they alternate, and far below it where they are followed.
A load in step with the reads looks constant, or slow, and cannot be told from its samples (docs/measuring.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewatt.harness.analysis_meter import Source
from edgewatt.harness.api import Floats, Phase, Trace
from edgewatt.harness.energy import Energy
from edgewatt.harness.energy_samples import Samples, samples

RATIO = 1.3
"""Chance stays above it (1.5 and more in 95 of 100 records of 43 readings), steps every two seconds read every half
second below it (1.23 at most); by simulation, decision 1."""

LOST = 0.03
"""The share of the energy by which what was not seen may move it, before it is no figure any more."""

HOLD_AGES = 3  # a register read twice for each of its refreshes holds a value for two of the ages it is known to have
LEAST = 8  # fewer readings do not tell chance from anything


def aliased(source: Source, phases: Sequence[Phase], each: Sequence[Energy], least_w: float = 0.0) -> str:
    """Evidence that the readings in one of the phases are chance, and what that may cost; "" where they are not.

    The phase that suffers most is told. `least_w` is a power of which a share of LOST does not matter: that above
    idle, where it is idle that is judged.
    """
    worst, evidence = LOST, ""
    for k, (phase, energy) in enumerate(zip(phases, each, strict=True)):
        lost_w, mean_w = energy.parts.get("sampling", 0.0) / phase.duration_s, energy.power_w
        share = lost_w / max(abs(mean_w), least_w, 1e-12)
        if share <= worst:
            continue
        t_s, values, quantum_w = _readings(source, phase)
        scatter_w = float(np.std(values, ddof=1)) if len(values) >= LEAST else 0.0
        if scatter_w <= quantum_w or np.mean(np.diff(values) ** 2) < RATIO * scatter_w**2:
            continue
        worst = share
        evidence = (
            f"{source.name} was read every {np.median(np.diff(t_s)):.3g} s; its readings in {phase.phase} {k + 1} "
            f"scatter by {scatter_w:.3g} W around {mean_w:.4g} W, each unlike the one before, so the load changes "
            f"faster than that and the energy may be off by {share:.1%} (limit {LOST:.0%}): use a faster meter, or "
            "longer windows"
        )
    return evidence


def _readings(source: Source, phase: Phase) -> tuple[Floats, Floats, float]:
    """Times and power (n,) of the readings of a source's gauges in a phase, and one step of their sum (W).

    Nothing of counters and of gauges that average over all their period: they have seen all of the load.
    """
    each = [samples(source.trace, c.name) for c in source.channels if c.kind == "gauge"]
    each = [s for s in each if not s.sums]
    if not each:
        return np.empty(0), np.empty(0), 0.0
    points = [_points(source.trace, s) for s in each]
    fewest = min((t_s for t_s, _ in points), key=len)
    t_s = fewest[slice(*np.searchsorted(fewest, [phase.start_s, phase.end_s]))]
    total = np.sum([np.interp(t_s, *p) for p in points], axis=0)
    return t_s, total, float(np.linalg.norm([s.quantum for s in each]))


def _points(trace: Trace, s: Samples) -> tuple[Floats, Floats]:
    """Times and levels (n,) of a gauge: its refreshes, where it is known for a register at that pace, else its reads.

    Readings that repeat may come of a sensor that holds its values, of a load that moves in steps, or of a fast one
    that is read in coarse steps. As they are they look the more alike the longer they are held, so that only the last
    passes for chance.
    """
    if s.held and s.update.period_s > HOLD_AGES * (s.channel.age_s or 0.0):
        column = trace.column(s.channel.name)
        return s.reads_s, np.asarray(column[np.isfinite(column)])
    return s.t_s, s.value
