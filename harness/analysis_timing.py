"""How long things took: latency, throughput, duration of phases, and whether the speed held."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from edgewatt.harness import flags, statistics
from edgewatt.harness.analysis_view import SEED, WARMUP, WINDOW, Findings, View
from edgewatt.harness.api import Floats

QUANTILES = {"latency_s": 0.5, "latency_p90_s": 0.9, "latency_p99_s": 0.99}
PREFILL, FIRST_TOKEN = "prefill", {"ttft_s": 0.5, "ttft_p90_s": 0.9, "ttft_p99_s": 0.99}  # of items that have one
BURST_S = 1.0  # of work at the speed of a device that was idle before
DRIFT = 0.05  # a latency or a power that moved by more than this within the window was not steady


def timing(view: View, found: Findings) -> None:
    """Everything that is known from the phases and the items alone."""
    for name in view.names:
        phases = view.named(name)
        seconds = sum(p.duration_s for p in phases)
        found.measured("duration_s", seconds, None, "s", name, len(phases), _summed(len(phases), "duration"))
    _first(view, found)
    _latencies(view, found)
    _throughput(view, found)
    _latency_drift(view, found)


def needed_for(q: float) -> int:
    """The fewest items for which the quantile `q` has a 95 % interval at all.

    With fewer, all of them lie on one side of the true quantile more often than one time in forty: q^n > 0.025.
    """
    return math.ceil(math.log(0.025) / math.log(max(q, 1 - q)))


def moved(first: tuple[float, float], last: tuple[float, float]) -> float | None:
    """Relative change from first to last (value, 95 % half-width); None where it is within the noise or below DRIFT."""
    change = last[0] - first[0]
    if first[0] <= 0 or abs(change) <= math.hypot(first[1], last[1]) or abs(change) <= DRIFT * first[0]:
        return None
    return change / first[0]


def uneven(view: View) -> Mapping[str, str]:
    """Phase -> how items differ in kind in it, as the engine tells: a median over them would be that of none."""
    told = view.run.engine.get("uneven")
    return {str(phase): str(why) for phase, why in told.items()} if isinstance(told, Mapping) else {}


def _first(view: View, found: Findings) -> None:
    warm = view.whole_items(WARMUP)
    if len(warm.start_s) and view.named(WARMUP)[0].repeat == 0 and warm.interval[0] == 0:
        method = "the very first item after loading, once; sustained figures leave the warm-up out"
        found.measured("first_latency_s", float(warm.duration_s[0]), None, "s", WARMUP, 1, method)
        early = warm.duration_s[(warm.interval == 0) & (warm.start_s < warm.start_s[0] + warm.duration_s[0] + BURST_S)]
        if len(early) > needed_for(0.5):
            value, width = statistics.quantile(early[1:], 0.5, SEED)
            method = (
                f"median of the first {BURST_S:g} s of work after the very first item, on the device as it was found; "
                "the windows' figures are the sustained ones"
            )
            found.measured("burst_latency_s", value, width, "s", WARMUP, len(early) - 1, method)


def _latencies(view: View, found: Findings) -> None:
    whole = view.whole_items(WINDOW)
    if len(whole.start_s) == 0:
        if view.named(WINDOW):
            found.doubt(flags.FEW_SAMPLES, "no item was recorded in the windows", voids=flags.TIMING_METRICS)
        return
    quantiles(QUANTILES, WINDOW, whole.by_interval(), "item, from the start of its first phase to its end", found)
    phases = view.item_phases()
    different = uneven(view)
    for phase, why in different.items():
        found.warnings.append(f"{phase}: {why}, so it is given no time; items of one kind alone have one")
    for phase in phases if len(phases) > 1 else ():
        if phase in different:
            continue
        spans = view.spans(WINDOW, phase)  # all of a phase that has steps, so that the phases make up the item
        each = [spans.duration_s[spans.interval == k] for k in np.unique(spans.interval)]
        if each:
            quantiles(QUANTILES, phase, each, f"{phase} of every item of the windows", found)
    metrics = QUANTILES | (FIRST_TOKEN if PREFILL in phases else {})
    few(metrics, len(whole.start_s), "items", found)
    _few_repeats(len(view.named(WINDOW)), found)


def quantiles(
    metrics: Mapping[str, float], phase: str, by_window: Sequence[Floats], what: str, found: Findings
) -> None:
    """The quantile of each of `metrics` of values in seconds, those of each window apart; `what` they are."""
    every = np.concatenate(by_window)
    for metric, q in metrics.items():
        value, items = statistics.quantile(every, q, SEED)
        parts = {"items": items}
        method = f"{100 * q:g} % quantile of {len(every)} values ({what}); bootstrap over items"
        if len(by_window) > 1:
            parts["repeats"] = between([statistics.quantile(d, q, SEED) for d in by_window])
            method += f", and by how much more than that {len(by_window)} repeats differ"
        width = math.hypot(*parts.values())
        found.measured(metric, value, width, "s", phase, len(every), method, parts=parts)


def between(repeats: Sequence[tuple[float, float]]) -> float:
    """Half-width of the mean of `repeats` (value, half-width) by what they scatter beyond their own half-widths."""
    values = np.array([v for v, _ in repeats])
    within = np.mean([(w / 1.96) ** 2 for _, w in repeats])
    scatter = np.var(values, ddof=1)
    if not scatter > within:
        return 0.0
    return statistics.mean_t(values)[1] * math.sqrt(1 - within / scatter)


def few(metrics: Mapping[str, float], n: int, what: str, found: Findings) -> None:
    """The flag `few_samples` for those of the quantiles `metrics` that n values do not tell."""
    short = {metric: needed_for(q) for metric, q in metrics.items() if n < needed_for(q)}
    if short:
        needs = ", ".join(f"{metric} needs {least}" for metric, least in short.items())
        detail = f"the windows hold {n} {what}; {needs}: lengthen window_s or raise repeats"
        found.doubt(flags.FEW_SAMPLES, detail, voids=tuple(short))


def _few_repeats(repeats: int, found: Findings) -> None:
    if repeats == 1:
        detail = (
            "1 repeat: how far the figures would move from one repeat to the next is unknown; use repeats=3 or more"
        )
        found.doubt(flags.FEW_SAMPLES, detail, voids=())


def _throughput(view: View, found: Findings) -> None:
    n, spans = view.counts(WINDOW), view.intervals(WINDOW)
    said = np.array([p.items for p in view.named(WINDOW)])
    for phase, counted, claimed in zip(view.named(WINDOW), n, said, strict=True):
        if claimed and counted != claimed:
            found.warnings.append(
                f"window of repeat {phase.repeat} says it ran {claimed} items, {counted} are recorded; those are used"
            )
    if n.sum() == 0:
        return
    seconds = np.diff(spans, axis=1)[:, 0]
    parts, method = {}, "items by duration, one window: its spread over repeats is unknown"
    value, width = float(n.sum() / seconds.sum()), None
    if len(n) > 1:
        value, width = statistics.ratio_of_sums(n.astype(float), seconds, SEED)
        parts = {"repeats": width}
        method = f"sum of items by sum of durations of {len(n)} windows; bootstrap over windows"
    found.measured("throughput_fps", value, width, "1/s", WINDOW, int(n.sum()), method, parts=parts)


def _latency_drift(view: View, found: Findings) -> None:
    """Compares the median latency of the first and the last third of each window, and of all windows in a row."""
    whole = view.whole_items(WINDOW)
    by_window = whole.by_interval()
    stretches = [(f"window {k + 1}", d) for k, d in enumerate(by_window)]
    if len(by_window) > 1:
        stretches.append((f"all {len(by_window)} windows", whole.duration_s))
    seen: list[tuple[float, str]] = []
    for where, durations in stretches:
        third = len(durations) // 3
        if third < needed_for(0.5):
            continue
        first = statistics.quantile(durations[:third], 0.5, SEED)
        last = statistics.quantile(durations[-third:], 0.5, SEED)
        change = moved(first, last)
        if change is not None:
            detail = (
                f"median latency went from {first[0]:.4g} ± {first[1]:.2g} s in the first third of {where} to "
                f"{last[0]:.4g} ± {last[1]:.2g} s in the last ({change:+.1%}, limit {DRIFT:.0%})"
            )
            seen.append((abs(change), detail))
    if seen:
        found.doubt(flags.NOT_STEADY, max(seen)[1])
    steady = [e for e in view.run.engine.get("steady") or () if isinstance(e, dict)]
    unsettled = [e for e in steady if e.get("reached") is False]
    if unsettled:
        latest = unsettled[-1]
        after_s = latest.get("after_s")
        seconds = f"{after_s:.3g}" if isinstance(after_s, (int, float)) else "some"
        detail = (
            f"{len(unsettled)} of {len(steady)} warm-ups ended without becoming steady, the last after {seconds} s: "
            f"{latest.get('detail') or 'no detail'}; raise warmup_max_s"
        )
        found.doubt(flags.NOT_STEADY, detail, voids=())


def _summed(n: int, what: str) -> str:
    return f"{what} of the one phase" if n == 1 else f"{what}s of {n} phases, added"
