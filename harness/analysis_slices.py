"""A window's energy shared out over the phases of its items and the time between them; the shares sum to the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from edgewatt.harness import flags, statistics
from edgewatt.harness.analysis_meter import CLOCK_SHARE, SLICE_PERIODS, Source, supported
from edgewatt.harness.analysis_view import SEED, WINDOW, Findings, View
from edgewatt.harness.api import Floats, Ints, Phase
from edgewatt.harness.energy import minimum_window_s

OTHER = "other"  # the time of a window in none of its slices
ALONG = ("gain", "clock")  # parts of the budget that go the same way in every slice of a phase


def slices(view: View, source: Source, alone: Iterable[str], found: Findings) -> None:
    """Energy of each phase of an item within the windows, as phase "window/NAME", where the sensor is fast enough.

    Phases too short for it are counted with the rest, "window/other". `alone` are those that were looped; a
    phase that is neither sliced nor looped gets no number but a flag.
    """
    names = view.item_phases()
    if len(names) < 2 or not view.named(WINDOW):
        return
    update = source.update
    lengths_s = {name: _median_length_s(view, name) for name in names}
    fine = [name for name in names if update.known and supported(update.period_s, lengths_s[name])]
    refused = [name for name in names if name not in fine and name not in set(alone)]
    if refused:
        spans = ", ".join(f"{name} lasts {lengths_s[name]:.3g} s" for name in refused)
        detail = (
            f"in an item {spans}, and {source.name} {source.renewal}: no energy of its own is given. "
            f"It takes {SLICE_PERIODS * update.period_s:.3g} s in the item, or "
            f"{minimum_window_s(update.period_s):.3g} s in a loop"
        )
        found.doubt(flags.WINDOW_TOO_SHORT, detail, source.meter, ())
    if fine:
        _share_out(view, source, fine, found)


def partition(window: Phase, slices: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Ints]:
    """Adjacent intervals (k, 2) that fill the window, and which of `slices` each belongs to; -1: to none.

    Slices are cut at the window's ends, and where one begins before the last has ended. What lies between two is
    theirs when it is shorter than the nanosecond to which times are known.
    """
    start = np.concatenate([s for s, _ in slices])
    end = np.concatenate([e for _, e in slices])
    label = np.repeat(np.arange(len(slices)), [len(s) for s, _ in slices])
    order = np.argsort(start, kind="stable")
    start, end = np.clip((start[order], end[order]), window.start_s, window.end_s)
    end = np.maximum.accumulate(end)
    last = np.concatenate([[window.start_s], end])[: len(start)]
    start = np.where(start - last < 1e-9, last, start)
    end[window.end_s - end < 1e-9] = window.end_s
    edges = np.concatenate([[window.start_s], np.column_stack([start, np.maximum(end, start)]).ravel(), [window.end_s]])
    labels = np.full(len(edges) - 1, -1, np.int64)
    labels[1::2] = label[order]
    intervals = np.column_stack([edges[:-1], edges[1:]])
    is_real = intervals[:, 1] > intervals[:, 0]
    return intervals[is_real], labels[is_real]


def _median_length_s(view: View, name: str) -> float:
    start, end = view.rows(WINDOW, name)
    return float(np.median(end - start)) if len(start) else 0.0


def _share_out(view: View, source: Source, names: Sequence[str], found: Findings) -> None:
    windows, counts = view.named(WINDOW), view.counts(WINDOW)
    rows = [view.rows(WINDOW, name) for name in names]
    labels_of, parts_of, joules_of, spans_of, window_of = [], [], [], [], []
    for k, window in enumerate(windows):
        inside = [(s >= window.start_s - 1e-6) & (s < window.end_s) for s, _ in rows]
        intervals, labels = partition(window, [(s[i], e[i]) for (s, e), i in zip(rows, inside, strict=True)])
        joules, parts = source.budget(intervals)
        labels_of.append(labels)
        joules_of.append(joules)
        parts_of.append(parts)
        spans_of.append(np.diff(intervals, axis=1)[:, 0])
        window_of.append(np.full(len(labels), k))
    label, joules, spans, window = map(np.concatenate, (labels_of, joules_of, spans_of, window_of))
    budget = {p: np.concatenate([parts[p] for parts in parts_of]) for p in parts_of[0]}
    # A gauge rounds a level the same way each time it comes back; a counter's two roundings differ from slice to slice.
    along = (*ALONG, "quantisation") if any(c.kind == "gauge" for c in source.channels) else ALONG
    mean_w = float(joules.sum() / spans.sum())
    short = [n for n in view.item_phases() if n not in names]
    between = "time between the slices" + (f", with {', '.join(short)} (too short for this meter)" if short else "")
    for k, name in [*enumerate(names), (-1, OTHER)]:
        mine = label == k
        if not mine.any():
            continue
        amount, seconds = float(joules[mine].sum()), float(spans[mine].sum())
        parts = {p: float(v[mine].sum() if p in along else np.sqrt((v[mine] ** 2).sum())) for p, v in budget.items()}
        # See `supported`: a step of power is smeared over an update period at both ends of every slice.
        parts["smear"] = mine.sum() * source.update.period_s / 3 * abs(amount / seconds - mean_w)
        if parts.get("clock", 0.0) > CLOCK_SHARE * abs(amount):
            detail = (
                f"{source.name}: the meter's clock is tied to the device's within {source.bound_s * 1e3:.3g} ms, which "
                f"moves {parts['clock']:.3g} J of the {amount:.4g} J of {WINDOW}/{name} (limit {CLOCK_SHARE:.0%}); "
                "no share is given for it"
            )
            found.doubt(flags.CLOCK_SKEW, detail, source.meter, ())
            continue
        what = between if k < 0 else f"{name} within the items"
        method = f"{source.name}: {what}, {mine.sum()} slices of {len(windows)} windows"
        each = np.bincount(window[mine], joules[mine], len(windows))
        each_s = np.bincount(window[mine], spans[mine], len(windows))
        for metric, per, unit in (
            ("energy_j", np.ones(0), "J"),
            ("power_w", each_s, "W"),
            ("energy_per_inference_j", counts.astype(np.float64), "J"),
        ):
            total = float(per.sum()) if len(per) else 1.0
            if total <= 0:
                continue
            scaled = {p: v / total for p, v in parts.items()}
            if len(per) > 1 and (per > 0).all():
                scaled["repeats"] = statistics.ratio_of_sums(each, per, SEED)[1]
            width = math.hypot(*scaled.values())
            found.measured(
                metric, amount / total, width, unit, f"{WINDOW}/{name}", int(mine.sum()), method, source.meter,
                source.boundary, scaled,
            )  # fmt: skip
