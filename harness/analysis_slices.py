"""A window's energy shared out over the phases of its items and the time between them; the shares sum to the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewatt.harness import flags, statistics
from edgewatt.harness.analysis_meter import CLOCK_SHARE, SLICE_PERIODS, Source, supported
from edgewatt.harness.analysis_view import SEED, WINDOW, Findings, View
from edgewatt.harness.api import Floats, Ints, Phase
from edgewatt.harness.energy import minimum_window_s

PER_TOKEN = "energy_per_token_j"
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
    seconds = view.spans(WINDOW, name).duration_s
    return float(np.median(seconds)) if len(seconds) else 0.0


@dataclass(frozen=True)
class _Shares:
    """The slices (k,) of all windows, adjacent ones in each: joules and their budget, seconds, which window, whose."""

    joules: Floats
    budget: dict[str, Floats]
    seconds: Floats
    window: Ints
    label: Ints  # index of the phase; -1: the time between


def _shares(view: View, source: Source, names: Sequence[str]) -> _Shares:
    spans = [view.spans(WINDOW, name) for name in names]
    each = []
    for k, window in enumerate(view.named(WINDOW)):
        inside = [s.where((s.start_s >= window.start_s - 1e-6) & (s.start_s < window.end_s)) for s in spans]
        intervals, label = partition(window, [(s.start_s, s.end_s) for s in inside])
        joules, budget = source.budget(intervals)
        each.append(_Shares(joules, budget, np.diff(intervals, axis=1)[:, 0], np.full(len(label), k), label))
    parts = dict.fromkeys(p for s in each for p in s.budget)
    return _Shares(
        np.concatenate([s.joules for s in each]),
        # A part that only some windows have (a gap) is nothing in the others.
        {p: np.concatenate([s.budget.get(p, 0 * s.joules) for s in each]) for p in parts},
        np.concatenate([s.seconds for s in each]),
        np.concatenate([s.window for s in each]),
        np.concatenate([s.label for s in each]),
    )


def _share_out(view: View, source: Source, names: Sequence[str], found: Findings) -> None:
    shares, counts = _shares(view, source, names), view.counts(WINDOW).astype(np.float64)
    tokens = {name: view.tokens(WINDOW, name).astype(np.float64) for name in names}
    mean_w = float(shares.joules.sum() / shares.seconds.sum())
    short = [n for n in view.item_phases() if n not in names]
    between = "time between the slices" + (f", with {', '.join(short)} (too short for this meter)" if short else "")
    for k, name in [*enumerate(names), (-1, OTHER)]:
        mine = shares.label == k
        if not mine.any():
            continue
        amount = float(shares.joules[mine].sum())
        budget = _budget(source, shares, mine, mean_w)
        if budget["clock"] > CLOCK_SHARE * abs(amount):
            detail = (
                f"{source.name}: the meter's clock is tied to the device's within {source.bound_s * 1e3:.3g} ms, which "
                f"moves {budget['clock']:.3g} J of the {amount:.4g} J of {WINDOW}/{name} (limit {CLOCK_SHARE:.0%}); "
                "no share is given for it"
            )
            found.doubt(flags.CLOCK_SKEW, detail, source.meter, ())
            continue
        joules = np.bincount(shares.window[mine], shares.joules[mine], len(counts))
        seconds = np.bincount(shares.window[mine], shares.seconds[mine], len(counts))
        what = between if k < 0 else f"{name} within the items"
        method = f"{source.name}: {what}, {mine.sum()} slices of {len(counts)} windows"
        for metric, per, unit in (
            ("energy_j", None, "J"), ("power_w", seconds, "W"), ("energy_per_inference_j", counts, "J"),
            (PER_TOKEN, tokens.get(name, np.zeros(1)), "J"),
        ):  # fmt: skip
            total = 1.0 if per is None else float(per.sum())
            if total <= 0:
                continue
            by = f", by {total:.0f} tokens" if metric == PER_TOKEN else ""
            parts = {p: v / total for p, v in budget.items()}
            if per is not None and len(per) > 1 and (per > 0).all():
                parts["repeats"] = statistics.ratio_of_sums(joules, per, SEED)[1]
            found.measured(
                metric, amount / total, math.hypot(*parts.values()), unit, f"{WINDOW}/{name}",
                int(total) if by else int(mine.sum()), method + by, source.meter, source.boundary, parts,
            )  # fmt: skip


def _budget(source: Source, shares: _Shares, mine: npt.NDArray[np.bool_], mean_w: float) -> dict[str, float]:
    """The parts of the error bar of some slices' sum, J."""
    # A gauge rounds a level the same way each time it comes back; a counter's two roundings differ from slice to slice.
    along = (*ALONG, "quantisation") if any(c.kind == "gauge" for c in source.channels) else ALONG
    budget = {
        p: float(v[mine].sum() if p in along else np.sqrt((v[mine] ** 2).sum())) for p, v in shares.budget.items()
    }
    # See `supported`: a step of power is smeared over an update period at both ends of every slice.
    step_w = abs(float(shares.joules[mine].sum() / shares.seconds[mine].sum()) - mean_w)
    return {"clock": 0.0} | budget | {"smear": float(mine.sum()) * source.update.period_s / 3 * step_w}
