"""Two meters of the same device against each other: their ratio, their lag, and whether they contradict each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgewatt.harness import agreement, flags, statistics
from edgewatt.harness.agreement import Pair
from edgewatt.harness.analysis_meter import Source, attempt
from edgewatt.harness.analysis_view import SEED, WINDOW, Findings, View
from edgewatt.harness.api import Trace
from edgewatt.harness.energy import COMMON, Energy, GapError, sum_of

PARTS_OF_A_DEVICE = ("package", "rails")  # what is counted there is never the whole device's energy
# Doubts after which a meter's joules are none; of the others (throttled, not steady) both meters saw the same.
SPOILT = (flags.CHARGING, flags.STALE, flags.GAP, flags.LOW_COVERAGE, flags.CLOCK_SKEW, flags.COUNTER_RESET,
          flags.WINDOW_TOO_SHORT, flags.ALIASED, flags.RAIL_MISSING, flags.OVER_RANGE)  # fmt: skip


def crosscheck(view: View, traces: Sequence[tuple[Trace, float]], found: Findings) -> None:
    """`meter_ratio` and `meter_lag_s` of every external meter with another one, and the flag `meters_disagree`.

    Each trace comes on the phases' clock with the bound (s) of that, as the doubts about it were found before.
    """
    for pair in agreement.pairs(traces):
        why = next((w for s in (pair.a, pair.b) if (w := _spoilt(s, found))), "")
        if why:
            found.warnings.append(f"{pair.name}: not compared, {why}")
            continue
        _ratio(view, pair, found)
        _lag(pair, found)


def _spoilt(source: Source, found: Findings) -> str:
    for f in found.flags:
        is_of_it = f.meter == source.meter or source.meter.startswith(f"{f.meter}/")
        if is_of_it and f.flag in SPOILT and "energy_j" in f.voids:
            return f"{source.meter} has no joules to be trusted ({f.flag.replace('_', ' ')})"
    return ""


def _ratio(view: View, pair: Pair, found: Findings) -> None:
    phases = view.named(WINDOW)
    (a, why_a), (b, why_b) = (attempt(s, WINDOW, phases) for s in (pair.a, pair.b))
    if why_a or why_b or not a:
        found.warnings.append(f"{pair.name}: no ratio, {why_a or why_b or 'there is no window'}")
        return
    total_a, total_b = sum_of(a), sum_of(b)
    if not (total_a.energy_j > 0 and total_b.energy_j > 0):
        found.warnings.append(f"{pair.name}: no ratio of {total_a.energy_j:.3g} J and {total_b.energy_j:.3g} J")
        return
    ratio = total_a.energy_j / total_b.energy_j
    parts = _shares(pair.a, total_a, ratio) | _shares(pair.b, total_b, ratio)
    words = f"sum of energies over {len(a)} windows by the other's"
    if len(a) > 1:
        _, spread = statistics.ratio_of_sums([e.energy_j for e in a], [e.energy_j for e in b], SEED)
        random = math.hypot(*(v for k, v in parts.items() if k.partition(" of ")[0] not in COMMON))
        if spread > random:
            parts["repeats"] = math.sqrt(spread**2 - random**2)
            words += ", whose spread is larger than the meters' random errors"
    width = math.hypot(*parts.values())
    method = f"{_place(pair.a)} / {_place(pair.b)}: {words}{_unknown(pair)}"
    boundary = pair.a.boundary if pair.a.boundary == pair.b.boundary else f"{pair.a.boundary} / {pair.b.boundary}"
    found.measured("meter_ratio", ratio, width, "1", WINDOW, len(a), method, pair.name, boundary, parts)
    if math.isfinite(width) and abs(ratio - 1) > width and (words := _contradiction(pair, ratio)):
        detail = f"{_place(pair.a)} / {_place(pair.b)} = {ratio:.4f} ± {width:.2g}, and 1 is outside: {words}"
        found.doubt(flags.METERS_DISAGREE, f"{detail}{_unknown(pair)}", pair.name)


def _shares(source: Source, total: Energy, ratio: float) -> dict[str, float]:
    """The parts of one meter's bar as parts of the ratio's."""
    parts = dict(total.parts)
    if source.is_still:
        parts["quantisation"] = math.nan  # and with it the whole bar
    return {f"{k} of {source.meter}": v / total.energy_j * ratio for k, v in parts.items()}


def _place(source: Source) -> str:
    return f"{source.meter} ({source.boundary or 'boundary unknown'})"


def _unknown(pair: Pair) -> str:
    """Whose gain error is not in the interval, in words."""
    names = [s.meter for s in (pair.a, pair.b) if not s.is_gain_told]
    return f"; the interval holds no gain error of {' and '.join(names)}, which is not stated" if names else ""


def _contradiction(pair: Pair, ratio: float) -> str:
    """What it means that the ratio is not 1, and what to do; "" where a part is merely less than the whole."""
    if pair.wider == 0:
        where = "both count at the same place" if pair.a.boundary == pair.b.boundary else "both feed the whole device"
        return f"{where}, so one of them is wrong; {_step(pair)}"
    wide, narrow = (pair.a, pair.b) if pair.wider > 0 else (pair.b, pair.a)
    if (ratio < 1) == (pair.wider > 0):
        return (
            f"{_place(narrow)} shows more than {_place(wide)}, in which it is contained; that cannot be: one of them "
            "is wrong, or the wiring is not as it is told"
        )
    if narrow.boundary in PARTS_OF_A_DEVICE:
        return ""
    return (
        f"{_place(wide)} may hold more than {_place(narrow)} (a carrier board, a converter's loss); what is left is an "
        f"error of one of them: {_step(pair)}"
    )


def _step(pair: Pair) -> str:
    if agreement.is_external(pair.b.trace):
        return "put both on a load that is known"
    return "`edgewatt calibrate` fits the device's own sensor to the other"


def _lag(pair: Pair, found: Findings) -> None:
    try:
        lag = agreement.lag(pair)
    except GapError as error:
        found.warnings.append(f"{pair.name}: lag unknown, {error}")
        return
    if isinstance(lag, str):
        found.warnings.append(f"{pair.name}: lag unknown, {lag}")
        return
    method = (
        f"how much later the readings of {pair.b.meter} come than those of {pair.a.meter}: peak of the correlation "
        f"({lag.correlation:.3f}) of both powers over the whole run, refined by least squares"
    )
    width = math.hypot(*lag.parts.values())
    found.measured("meter_lag_s", lag.lag_s, width, "s", WINDOW, lag.n, method, pair.name, "", lag.parts)
