"""What each input of a run took: time and energy of its items in the windows, by the index of the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewatt.harness import statistics
from edgewatt.harness.analysis_energy import GAIN_UNTOLD
from edgewatt.harness.analysis_meter import CLOCK_SHARE, COVERED, SLICE_PERIODS, Source, is_complete, sources, supported
from edgewatt.harness.analysis_slices import ALONG
from edgewatt.harness.analysis_timing import PREFILL
from edgewatt.harness.analysis_view import WINDOW, Findings, View, WholeItems, on_device_clock, view
from edgewatt.harness.api import Floats, Ints, Items, Run
from edgewatt.harness.energy import GapError, energies

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class InputEnergies:
    """Energy of an item of each input on one meter, mean of the input's items, J; arrays (k,) as in `InputFigures`.

    NaN where the sensor does not support a number: `why` says for what reasons, "" if there is one for every input.
    A half-width is NaN where it is unknown.
    """

    meter: str
    boundary: str
    energy_j: Floats
    uncertainty_j: Floats
    parts: Mapping[str, Floats]
    method: str
    why: str = ""


@dataclass(frozen=True)
class InputFigures:
    """Every input (k,) that had whole items in the windows, by its index: how many, their median times, their energy.

    `ttft_s` is NaN where items have no prefill.
    """

    picture: Ints
    items: Ints
    latency_s: Floats
    ttft_s: Floats
    energies: tuple[InputEnergies, ...]


def input_figures(run: Run) -> InputFigures:
    """The figures of every input, from the raw part of a run. What is wrong with the samples, the run's flags say."""
    found = Findings()
    seen = view(run, found)
    whole = seen.whole_items(WINDOW)
    named, of = np.unique(_picture_of(seen.items, whole.start_s), return_inverse=True)
    first = seen.spans(WINDOW, PREFILL)
    picture = _picture_of(seen.items, first.begun_s)
    is_whole = np.isin(picture, named)
    waited_s, whose = (first.end_s - first.begun_s)[is_whole], np.searchsorted(named, picture[is_whole])
    latency_s = _medians(whole.duration_s, of, len(named))
    each = tuple(_energies(s, whole, of, latency_s) for s in _sources(seen, found)) if len(named) else ()
    items = np.bincount(of, minlength=len(named)).astype(np.int64)
    return InputFigures(named, items, latency_s, _medians(waited_s, whose, len(named)), each)


def _picture_of(items: Items, begun_s: Floats) -> Ints:
    """The input (n,) of the items of the windows that began at these times."""
    mask = items.part == (items.parts.index(WINDOW) if WINDOW in items.parts else -1)
    if not mask.any():
        return np.empty(0, np.int64)
    # Of rows that begin at one time, the last one is the item's that goes on.
    return np.asarray(items.picture[mask][np.searchsorted(items.start_s[mask], begun_s, side="right") - 1])


def _medians(values: Floats, of: Ints, k: int) -> Floats:
    """Median of the values (n,) of each of k groups; NaN for one without any."""
    order = np.argsort(of, kind="stable")
    groups = np.split(values[order], np.searchsorted(of[order], np.arange(1, k)))[:k]
    return np.array([np.median(g) if len(g) else np.nan for g in groups], np.float64)


def _sources(seen: View, found: Findings) -> Iterator[Source]:
    """What the run's joules were measured by, but for parts of a total."""
    clock = seen.phases[0].clock if seen.phases else ""
    for raw in seen.run.traces:
        if any(c.is_energy for c in raw.channels):
            trace, bound_s = on_device_clock(raw, seen.run, found)
            if trace.clock == clock or trace.facts.get("clock_of") == "harness":  # else nothing ties it to the phases
                yield from (s for s in sources(trace, bound_s) if not s.is_part and is_complete(s, found))


def _energies(source: Source, whole: WholeItems, of: Ints, latency_s: Floats) -> InputEnergies:
    """`of` (n,): which of k inputs each of the whole items is of; `latency_s` (k,): their median lengths."""
    k = len(latency_s)
    update, nothing = source.update, np.full(k, np.nan)
    gain = "" if source.is_gain_told else f"; {GAIN_UNTOLD}"
    method = f"{source.name}: sum of the energies of an input's items by their number{gain}"

    def none(why: str) -> InputEnergies:
        return InputEnergies(source.meter, source.boundary, nothing, nothing, {}, method, why)

    if not update.known:
        return none(f"how often the sensor of {source.name} renews a reading cannot be told")
    is_real = whole.end_s > whole.start_s
    intervals = np.column_stack([whole.start_s, whole.end_s])[is_real]
    of, window = of[is_real], whole.interval[is_real]
    try:
        joules, parts = source.budget(intervals)
        coverage = np.min([energies(source.trace, c.name, intervals).coverage for c in source.channels], axis=0)
    except GapError as error:
        return none(str(error))
    seconds = intervals[:, 1] - intervals[:, 0]
    parts = {"clock": 0 * joules, **parts, "smear": _smear(joules / seconds, seconds, window, update.period_s)}
    n, total_s = np.bincount(of, minlength=k), np.bincount(of, seconds, k)
    value = np.bincount(of, joules, k) / np.maximum(n, 1)
    budget = {name: _added(source, name, v, of, k) / np.maximum(n, 1) for name, v in parts.items()}
    budget["items"] = _spread(joules, of, k)
    if source.is_still:
        budget["quantisation"] = nothing  # see `Source.is_still`
    width = np.sqrt(np.sum([p**2 for p in budget.values()], axis=0))
    covered = np.bincount(of, coverage * seconds, k) / np.where(total_s > 0, total_s, 1)
    refused, why = _refused(source, latency_s, n, covered, budget["clock"] > CLOCK_SHARE * np.abs(value))
    value, width = np.where(refused, np.nan, value), np.where(refused, np.nan, width)
    return InputEnergies(source.meter, source.boundary, value, width, budget, method, why)


def _refused(source: Source, latency_s: Floats, n: Ints, covered: Floats, is_loose: Bools) -> tuple[Bools, str]:
    """Which inputs (k,) get no number, and for what reasons, each told once."""
    is_short = ~np.array([supported(source.update.period_s, s) for s in latency_s]) | (n == 0)
    needed = f"{source.name} {source.renewal}: it takes {SLICE_PERIODS * source.update.period_s:.3g} s"
    ties = f"the clocks are tied within {source.bound_s * 1e3:.3g} ms"
    refused = np.zeros(len(n), np.bool_)
    told = []
    for are, words in (
        (is_short, f"last {_range(latency_s[is_short])} s, and {needed}"),
        (covered < COVERED, f"have a fresh reading of {source.name} near less than {COVERED:.0%} of their time"),
        (is_loose, f"hang on which clock is right by more than {CLOCK_SHARE:.0%}: {ties}"),
    ):
        if (are & ~refused).any():
            told.append(f"the items of {(are & ~refused).sum()} of {len(n)} inputs {words}")
        refused |= are
    return refused, "; ".join(told)


def _added(source: Source, part: str, widths: Floats, of: Ints, k: int) -> Floats:
    """One part of the budget of the sum of each input's items: in line or in quadrature, as for slices."""
    along = {*ALONG, "smear"}
    if any(c.kind == "gauge" for c in source.channels):
        along.add("quantisation")
    if part in along:
        return np.bincount(of, widths, k).astype(np.float64)
    return np.asarray(np.sqrt(np.bincount(of, widths**2, k)))


def _smear(power_w: Floats, seconds: Floats, window: Ints, period_s: float) -> Floats:
    """What items (n,) may have lost to their neighbours or got from them, J: see `analysis_meter.supported`.

    A sixth of the step of power at either end, times the update period. Beside the first and last of a window lies what
    is like the window's mean.
    """
    if not len(power_w):
        return power_w
    mean_w = np.bincount(window, power_w * seconds) / np.maximum(np.bincount(window, seconds), 1e-12)
    same = window[1:] == window[:-1]
    before, after = mean_w[window], mean_w[window]
    before[1:][same], after[:-1][same] = power_w[:-1][same], power_w[1:][same]
    return np.asarray((np.abs(power_w - before) + np.abs(power_w - after)) * period_s / 6)


def _spread(joules: Floats, of: Ints, k: int) -> Floats:
    """By how much the mean of each input's items may be off because they differ: 0 where there is one alone."""
    order = np.argsort(of, kind="stable")
    groups = np.split(joules[order], np.searchsorted(of[order], np.arange(1, k)))
    return np.array([statistics.mean_t(g)[1] if len(g) > 1 else 0.0 for g in groups], np.float64)


def _range(values: Floats) -> str:
    """The least and the greatest of these in words; "" of none."""
    each = dict.fromkeys(f"{f(values):.3g}" for f in (np.min, np.max)) if len(values) else {}
    return " to ".join(each)
