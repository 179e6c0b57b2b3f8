"""Whether power stood still while it was measured: within the windows, and in idle before and after them."""

from __future__ import annotations

import math

import numpy as np

from edgewatt.harness import flags, statistics
from edgewatt.harness.analysis_meter import Source
from edgewatt.harness.analysis_timing import DRIFT, moved
from edgewatt.harness.analysis_view import WINDOW, Findings, View
from edgewatt.harness.api import Phase
from edgewatt.harness.energy import Energy

BLOCKS = 10  # a stretch is cut into so many to see how its power scatters
BLOCK_PERIODS = 5  # and a block is at least so many update periods long
IDLE_SHARE = 0.02  # the most by which an idle that changed may move the net power
GROSS_SHARE = 0.001  # and a change smaller than this share of the whole power is none, be the net power ever so small


def power_drift(view: View, source: Source, found: Findings) -> None:
    """Compares the mean power of the first and the last third of each window."""
    seen: list[tuple[float, str]] = []
    for k, p in enumerate(view.named(WINDOW)):
        third_s = p.duration_s / 3
        first = _power(source, p.start_s, p.start_s + third_s)
        last = _power(source, p.end_s - third_s, p.end_s)
        change = moved(first, last) if first and last else None
        if first and last and change is not None:
            detail = (
                f"power went from {first[0]:.4g} ± {first[1]:.2g} W in the first third of window {k + 1} to "
                f"{last[0]:.4g} ± {last[1]:.2g} W in the last ({change:+.1%}, limit {DRIFT:.0%})"
            )
            seen.append((abs(change), detail))
    if seen:
        found.doubt(flags.NOT_STEADY, f"{source.name}: {max(seen)[1]}", source.meter, flags.ENERGY_METRICS)


def idle_steps(
    view: View, source: Source, windows: list[Energy], idles: list[tuple[Phase, Energy]], found: Findings
) -> None:
    """Compares idle before each window with idle after it; a difference beyond the noise voids the net figures."""
    if not windows or not idles:
        return
    worst: tuple[float, str] | None = None
    for k, (p, e) in enumerate(zip(view.named(WINDOW), windows, strict=True)):
        around = idles_around(p, idles)
        if len(around) < 2:
            continue
        (before_w, before_bar), (after_w, after_bar) = (_idle_power(source, *i) for i in around)
        step_w, noise_w = after_w - before_w, math.hypot(before_bar, after_bar)
        gross_w = e.energy_j / p.duration_s
        net_w = gross_w - (before_w + after_w) / 2
        limit_w = max(noise_w, 2 * IDLE_SHARE * abs(net_w), GROSS_SHARE * abs(gross_w))
        if abs(step_w) > limit_w and (worst is None or abs(step_w) > worst[0]):
            worst = (
                abs(step_w),
                (
                    f"{source.name}: idle drew {before_w:.4g} W before window {k + 1} and {after_w:.4g} W after it, a "
                    f"difference of {abs(step_w):.3g} W (limit {limit_w:.3g} W: noise {noise_w:.3g} W, and "
                    f"{IDLE_SHARE:.0%} of the net power either way): let it rest longer, end other programs"
                ),
            )
    if worst:
        found.doubt(flags.NOT_STEADY, worst[1], source.meter, flags.NET_METRICS)


def idles_around(phase: Phase, idles: list[tuple[Phase, Energy]]) -> list[tuple[Phase, Energy]]:
    """The last idle before a phase and the first after it, those that there are."""
    before = [i for i in idles if i[0].end_s <= phase.start_s + 1e-6]
    after = [i for i in idles if i[0].start_s >= phase.end_s - 1e-6]
    return before[-1:] + after[:1]


def without_gain(e: Energy) -> float:
    """Half-width (J) of an energy without the sensor's gain error, which is the same in all that it measures."""
    return math.hypot(*(v for k, v in e.parts.items() if k != "gain"))


def _idle_power(source: Source, phase: Phase, e: Energy) -> tuple[float, float]:
    """Mean power (W) of an idle phase and the half-width of its noise."""
    scatter = _power(source, phase.start_s, phase.end_s)
    noise_w = scatter[1] if scatter else 0.0
    return e.energy_j / phase.duration_s, max(noise_w, without_gain(e) / phase.duration_s)


def _power(source: Source, start_s: float, end_s: float) -> tuple[float, float] | None:
    """Mean power (W) and the half-width that its scatter over blocks gives; None where too few blocks fit in."""
    n = min(BLOCKS, int((end_s - start_s) / (BLOCK_PERIODS * source.update.period_s)))
    if n < 3:
        return None
    edges = np.linspace(start_s, end_s, n + 1)
    joules, _ = source.budget(np.column_stack([edges[:-1], edges[1:]]))
    return statistics.mean_t(joules / np.diff(edges))
