"""Joules and watts of every meter: by phase, by item, and above idle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgewatt.harness import flags, statistics
from edgewatt.harness.analysis_aliasing import aliased
from edgewatt.harness.analysis_meter import (
    Source,
    attempt,
    clock_doubt,
    is_complete,
    restarted,
    sample_doubts,
    sources,
    too_short,
    window_doubts,
)
from edgewatt.harness.analysis_slices import slices
from edgewatt.harness.analysis_steady import idle_steps, idles_around, power_drift
from edgewatt.harness.analysis_view import IDLE, SEED, WARMUP, WHOLE_RUN, WINDOW, Findings, View
from edgewatt.harness.analysis_wiring import wiring
from edgewatt.harness.api import Floats, Phase, Trace
from edgewatt.harness.calibrated import calibration_of, in_words
from edgewatt.harness.channels import roots
from edgewatt.harness.energy import Energy, net, sum_of

LOAD = "load"
GAIN_UNTOLD = "the sensor's gain error is not published, so it is not in the bar"  # in a measurement's method
CLOSURE = 0.02  # loops that add up to the whole within this agree well enough for any use


def metering(view: View, traces: Sequence[tuple[Trace, float]], found: Findings) -> None:
    """Energy figures of every meter that measures energy; where there is none, a warning says so.

    Each trace comes on the phases' clock, with the bound (s) of how well it is tied to it.
    """
    metered = [(t, bound_s) for t, bound_s in traces if any(c.is_energy for c in t.channels)]
    if not metered:
        found.warnings.append(
            f"{view.run.device_name} has no power sensor that this run could read, so no joules are reported; nothing "
            "is estimated. `edgewatt doctor` says why, and a meter can be attached in the device file"
        )
    clock = view.phases[0].clock if view.phases else ""
    for trace, bound_s in metered:
        if clock and trace.clock != clock and trace.facts.get("clock_of") != "harness":
            detail = f"its times are on the clock {trace.clock!r}, the phases' on {clock!r}, and nothing ties the two"
            if not any(f.flag == flags.CLOCK_SKEW and f.meter == trace.meter for f in found.flags):  # a better reason
                found.doubt(flags.CLOCK_SKEW, detail, trace.meter)
            continue
        sample_doubts(view, trace, found)
        wiring(view, trace, found)
        if not roots(trace.channels):
            found.warnings.append(f"{trace.meter}: its channels contain each other, so no total is formed of them")
        for source in sources(trace, bound_s):
            if not is_complete(source, found):
                continue
            if source.is_part:
                _part_figures(view, source, found)
            else:
                _figures(view, source, found)
        why = restarted(trace)
        if why and not any(f.flag == flags.GAP and f.meter.partition("/")[0] == trace.meter for f in found.flags):
            found.warnings.append(f"{trace.meter}: {why}, outside of the windows or too briefly to matter there")


# ---------------------------------------------------------------------------------------------------------------------
# One source


@dataclass(frozen=True)
class _Figure:
    """An amount (J) and its budget, ready to be divided by seconds or by items."""

    value: float
    parts: dict[str, float]
    method: str

    @staticmethod
    def of(source: Source, each: list[Energy]) -> _Figure:
        total = sum_of(each)
        gain = "" if source.is_gain_told else f"; {GAIN_UNTOLD}"
        parts = dict(total.parts)
        if source.is_still:
            parts["quantisation"] = math.nan  # and with it the whole bar
            gain += "; its reading never changed and its step is unknown, so there is no error bar"
        told = calibration_of(source.trace)
        by = f"; {in_words(told)}" if told and any(c.name == told["channel"] for c in source.channels) else ""
        return _Figure(total.energy_j, parts, f"{source.name}: {total.method}{gain}{by}")


def _part_figures(view: View, source: Source, found: Findings) -> None:
    """A part of a total is shown in the windows only: where the joules went, never added."""
    phases = view.named(WINDOW)
    each, why = attempt(source, WINDOW, phases)
    if why:
        found.warnings.append(f"{source.meter}: no energy, {why}")
    elif each:
        _gross(source, WINDOW, phases, each, found)


def _figures(view: View, source: Source, found: Findings) -> None:
    update = source.update
    method = f"{update.fresh} new values in {update.reads} reads of {source.name}"
    if update.known:
        found.measured("update_period_s", update.period_s, None, "s", WHOLE_RUN, update.fresh, method, source.meter)
    else:
        bars = "have no error bars" if source.is_still else "have error bars that take every reading for a fresh one"
        found.warnings.append(
            f"{source.meter}: how often its sensor renews a reading cannot be told from them ({method}); its figures "
            f"{bars}"
        )
    energies = {name: _phase_energies(view, source, name, found) for name in view.names}
    short, why = too_short(source, view.shortest_s(looped(view)))
    if short:
        energies |= {name: [] for name in short}
        found.doubt(flags.WINDOW_TOO_SHORT, f"{why}; no figure is given for it: raise isolated_s", source.meter, ())
    window_doubts(view, source, energies, found)
    _aliasing(view, source, energies, found)
    if energies.get(WINDOW):
        power_drift(view, source, found)
        slices(view, source, looped(view), found)
    idles = list(zip(view.named(IDLE), energies.get(IDLE) or (), strict=False))
    idle_steps(view, source, energies.get(WINDOW, []), idles, found)
    per_item: dict[str, tuple[float, float]] = {}
    for name, each in energies.items():
        if not each:
            continue
        phases = view.named(name)
        _gross(source, name, phases, each, found)
        if name in (IDLE, LOAD):
            continue
        counts, tokens = view.counts(name), view.tokens(name, name)
        pers = []  # what the energy is shared out over
        if name != WARMUP and counts.min() > 0:
            pers.append(_Per("inference", "items", counts.astype(np.float64)))
        if name != WARMUP and tokens.min() > 0:
            pers.append(_Per("token", "tokens", tokens.astype(np.float64)))
        for per in pers:
            value = _by(per, source, name, each, found)
            if per.one == "inference":
                per_item[name] = value
        if idles and name != WARMUP:
            _net(source, name, phases, each, pers, idles, found)
    _closure(view, source, per_item, found)


def _phase_energies(view: View, source: Source, name: str, found: Findings) -> list[Energy]:
    """The energy of every phase of that name; nothing, and the reason in the findings, where there can be none."""
    phases = view.named(name)
    each, why = attempt(source, name, phases)
    if why:
        if name == WINDOW:
            found.doubt(flags.GAP, why, source.meter, flags.ENERGY_METRICS)
        else:
            found.warnings.append(f"{source.meter}: no energy of {why}")
        return []
    voids = {WINDOW: flags.ENERGY_METRICS, IDLE: flags.NET_METRICS}.get(name, ())
    # Of loading and warm-up nobody compares joules: what the clocks cost them is in their bars.
    is_skewed = name not in (LOAD, WARMUP) and clock_doubt(source, name, sum_of(each), found, voids)
    return [] if is_skewed and name in looped(view) else each


def _aliasing(view: View, source: Source, energies: dict[str, list[Energy]], found: Findings) -> None:
    """Doubts about a load faster than the reads. A phase looped alone then gets no figure."""
    window_w, idle_w = (sum_of(energies[n]).power_w if energies.get(n) else 0.0 for n in (WINDOW, IDLE))
    for name, voids in ((WINDOW, flags.ENERGY_METRICS), (IDLE, flags.NET_METRICS), *((n, ()) for n in looped(view))):
        net_w = abs(window_w - idle_w) if name == IDLE else 0.0
        evidence = aliased(source, view.named(name), energies[name], net_w) if energies.get(name) else ""
        if evidence and not voids:
            energies[name], evidence = [], f"{evidence}; no figure is given for {name} alone"
        if evidence:
            found.doubt(flags.ALIASED, evidence, source.meter, voids)


def looped(view: View) -> list[str]:
    """The phases of items that ran alone, over and over."""
    return [name for name in view.names if name not in (WINDOW, IDLE, WARMUP, LOAD)]


def _gross(source: Source, name: str, phases: Sequence[Phase], each: list[Energy], found: Findings) -> None:
    seconds = np.array([p.duration_s for p in phases])
    total = _Figure.of(source, each)
    method = total.method + (f"; {len(each)} phases added" if len(each) > 1 else "")
    _put("energy_j", total, 1.0, "J", source, name, len(each), method, {}, found)
    spread, words = _spread([e.energy_j for e in each], seconds)
    method = f"{total.method}; energy by duration{words}"
    _put("power_w", total, float(seconds.sum()), "W", source, name, len(each), method, spread, found)


@dataclass(frozen=True)
class _Per:
    """What energy is shared out over: `counts` (k,) of the items, or of the tokens, of each phase."""

    one: str
    many: str
    counts: Floats


def _by(per: _Per, source: Source, name: str, each: list[Energy], found: Findings) -> tuple[float, float]:
    """Energy per item or token, and its half-width but for the gain error, the same in all that the sensor sees."""
    total, n = _Figure.of(source, each), per.counts.sum()
    spread, words = _spread([e.energy_j for e in each], per.counts)
    alone = "" if name == WINDOW else f", {name} looped alone"
    method = f"{total.method}; sum of energies by sum of {n:.0f} {per.many}{alone}{words}"
    return _put(f"energy_per_{per.one}_j", total, n, "J", source, name, int(n), method, spread, found)


def _spread(amounts: Sequence[float], per: Floats) -> tuple[dict[str, float], str]:
    """The part of the budget that comes from the spread over repeats, and how it was had, in words."""
    if len(amounts) < 2:
        return {}, "; one repeat, so its spread is unknown"
    _, width = statistics.ratio_of_sums(np.asarray(amounts, np.float64), per, SEED)
    return {"repeats": width}, f"; bootstrap over {len(amounts)} repeats"


def _put(
    metric: str, figure: _Figure, per: float, unit: str, source: Source, name: str, n: int, method: str,
    spread: dict[str, float], found: Findings,
) -> tuple[float, float]:  # fmt: skip
    """Reports `figure` divided by `per`; its value, and its half-width but for the sensor's gain error."""
    parts = {k: v / per for k, v in figure.parts.items()} | spread
    value, width = figure.value / per, math.hypot(*parts.values())
    found.measured(metric, value, width, unit, name, n, method, source.meter, source.boundary, parts)
    return value, math.hypot(*(v for k, v in parts.items() if k != "gain"))


# ---------------------------------------------------------------------------------------------------------------------
# Above idle


def _net(
    source: Source, name: str, phases: Sequence[Phase], each: list[Energy], pers: Sequence[_Per],
    idles: list[tuple[Phase, Energy]], found: Findings,
) -> None:  # fmt: skip
    """Energy above idle: each phase's, less the mean power of the idles around it times its duration."""
    around = [idles_around(p, idles) for p in phases]
    if not all(around):
        return
    # One idle alone stands for both sides; its error then counts once, not as two independent ones.
    nets = [net(e, pair[0][1], pair[-1][1]) for e, pair in zip(each, around, strict=True)]
    gross = _Figure.of(source, each)
    parts = dict(gross.parts)
    parts["gain"] = math.fsum(n.parts["gain"] for n in nets)
    parts["idle"] = math.fsum(
        n.parts["idle"] * (1 if len(pair) == 2 else math.sqrt(2)) for n, pair in zip(nets, around, strict=True)
    )
    parts["drift"] = math.hypot(*(n.parts["drift"] for n in nets))
    amounts = [n.energy_j for n in nets]
    sides = "before and after" if all(len(pair) == 2 for pair in around) else "on one side only"
    figure = _Figure(math.fsum(amounts), parts, f"{gross.method}; less the mean idle power {sides}")
    seconds_each = np.array([p.duration_s for p in phases])
    _put("energy_net_j", figure, 1.0, "J", source, name, len(each), figure.method, {}, found)
    spread, words = _spread(amounts, seconds_each)
    method = f"{figure.method}, by duration{words}"
    _put("power_net_w", figure, float(seconds_each.sum()), "W", source, name, len(each), method, spread, found)
    for per in pers:
        n = per.counts.sum()
        spread, words = _spread(amounts, per.counts)
        method = f"{figure.method}; by {n:.0f} {per.many}{words}"
        _put(f"energy_per_{per.one}_net_j", figure, n, "J", source, name, int(n), method, spread, found)


# ---------------------------------------------------------------------------------------------------------------------
# Do the parts of an item make the whole?


def _closure(view: View, source: Source, per_item: dict[str, tuple[float, float]], found: Findings) -> None:
    """Phases looped alone against the item of the window: told where they disagree beyond their bars, and enough."""
    parts = [per_item[p] for p in view.item_phases() if p in per_item]
    if WINDOW not in per_item or not parts:
        return
    whole, bar = per_item[WINDOW]
    total, width = math.fsum(p[0] for p in parts), math.hypot(*(p[1] for p in parts))
    is_all = len(parts) == len(view.item_phases())
    excess = total - whole
    if abs(excess) > max(math.hypot(bar, width), CLOSURE * whole) and (is_all or excess > 0):
        found.warnings.append(
            f"{source.meter}: the phases looped alone add up to {total:.4g} ± {width:.2g} J an item, the windows show "
            f"{whole:.4g} ± {bar:.2g} J ({excess / whole:+.1%}): caches, clocks or the time between phases differ, so "
            "take the split with care"
        )
