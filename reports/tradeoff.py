"""The trade-off report: what one or many runs cost in time and energy and what they gave in quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from edgewatt.harness.api import Run, UsageError
from edgewatt.reports import conclusions, latency, meters, metrics, output, scatter, views
from edgewatt.reports.conclusions import Result
from edgewatt.reports.numbers import format_quantity
from edgewatt.reports.scatter import Plane

_COLUMNS = (*conclusions.LATENCY[:1], "latency_p99_s", "throughput_fps", "ttft_s", "prefill_tokens_per_s",
            "decode_tokens_per_s", "bandwidth_utilisation", conclusions.ENERGY, conclusions.ENERGY_NET,
            conclusions.ENERGY_TOKEN, "power_w", "ap", "ap50", *conclusions.QUALITY[1:])  # fmt: skip
_NOT_OF_TOKENS = ("latency_p99_s", "throughput_fps")  # where all runs have figures that say more of a language model


def write(runs: Sequence[Run], path: Path, *, title: str | None = None) -> None:
    """The report of one run or of several, in the form the suffix of `path` names: .html, .pdf or .svg.

    UsageError for another suffix, no runs, or a place that cannot be written to.
    """
    form = output.form(path)
    if not runs:
        raise UsageError("trade-off report: found no runs, wanted at least one; name the runs to show")
    if form == ".html":
        content = page(runs, title)
    else:
        from edgewatt.reports import tradeoff_paper

        content = tradeoff_paper.drawn(runs, form, title or heading(runs))
    output.write(path, content)


def heading(runs: Sequence[Run]) -> str:
    """What the runs are of."""
    if len(runs) == 1:
        return views.title(runs[0])
    workloads, devices = ({r.workload for r in runs}, {r.device_name for r in runs})
    where = f"on {next(iter(devices))}" if len(devices) == 1 else f"on {len(devices)} devices"
    what = next(iter(workloads)) if len(workloads) == 1 else f"{len(workloads)} workloads"
    return f"{what} {where}, {len(runs)} runs"


def version() -> str:
    """Of this package."""
    try:
        return installed("edgewatt")
    except PackageNotFoundError:
        return "(not installed)"


# ---------------------------------------------------------------------------------------------------------------------
# The page


@dataclass(frozen=True)
class Cell:
    """One entry of the table of runs: a result, or words where there is none."""

    result: Result | None
    note: str


def page(runs: Sequence[Run], title: str | None = None) -> bytes:
    """The HTML page."""
    from edgewatt.reports import page as pages

    figures: dict[str, Any] = {}
    values: dict[str, Any] = {
        "kind": "trade-off report",
        "title": title or heading(runs),
        "version": version(),
        "latency": _latency(runs, figures),
        "one": None,
        "comparisons": [],
    }
    if len(runs) == 1:
        values["comparisons"] = found = meters.comparisons(runs[0])
        for k, c in enumerate(found):
            if c.agreement is not None:
                figures[f"agreement{k}"] = meters.agreement_chart(c, c.agreement)
        one = views.run_view(runs[0])
        values |= {"one": one, "subtitle": one.subtitle}
    else:
        values |= _many(runs, figures)
    return pages.render("tradeoff.html", figures, **values)


def _latency(runs: Sequence[Run], figures: dict[str, Any]) -> Mapping[str, Any] | None:
    """The distribution of latencies; None where no run has whole items."""
    named = enumerate(zip(scatter.labels(runs), runs, strict=True), 1)
    found = [(f"{k}: {n}", r, f) for k, (n, r) in named if len(f := latency.latencies(r))]
    if not found:
        return None
    figures["ecdf"] = latency.ecdf_chart([f for _, _, f in found], [n for n, _, _ in found])
    total = sum(len(f) for _, _, f in found)
    values = {"n": total, "histogram": False, "drift_caption": "", "void": _latency_void([r for _, r, _ in found])}
    of = f"{len(found)} runs" if len(found) > 1 else "the steady windows"
    values["ecdf_caption"] = f"Every whole item of {of}, n = {total}; the slowest 0.5 % may lie beyond the right edge."
    if len(runs) == 1:
        _, run, items = found[0]
        values["histogram"] = True
        figures["histogram"] = latency.histogram_chart(items)
        values["histogram_caption"] = f"n = {total}. {latency.histogram(items).words}"
        figures["drift"], drawn = latency.drift_chart(items, run.phases[0].start_s)
        thinned = (
            "every item is drawn" if drawn.shown == drawn.total else f"{drawn.shown} of {drawn.total} items are drawn, "
            "the extremes among them; thinned for drawing only"
        )  # fmt: skip
        values["drift_caption"] = f"A slope would be drift: {thinned}."
    return values


def _latency_void(runs: Sequence[Run]) -> str:
    """Why the latencies of a run may not be used; "" when they may."""
    reasons = [r.void_reason for run in runs for k in conclusions.LATENCY if (r := conclusions.best(run, k))]
    return ", ".join(dict.fromkeys(r for r in reasons if r))


def _many(runs: Sequence[Run], figures: dict[str, Any]) -> Mapping[str, Any]:
    names = scatter.labels(runs)
    hidden = _NOT_OF_TOKENS if all(_cell(r, "ttft_s").result for r in runs) else ()
    columns = [k for k in _COLUMNS if any(_cell(r, k).result for r in runs) or k == conclusions.ENERGY]
    columns = [k for k in columns if k not in hidden]
    planes = []
    for k, p in enumerate(scatter.planes(runs)):
        figures[f"plane{k}"] = scatter.plane_chart(p)
        caption = (
            f"Error bars are 95 %. On the Pareto front: {p.front_words}; it is drawn by the values, so points whose "
            "bars overlap it may belong to it too."
        )
        planes.append({"name": f"plane{k}", "title": p.title, "caption": caption, "left_out": p.left_out,
                       "description": _described(p)})  # fmt: skip
    rows = [
        {
            "anchor": f"run-{k}",
            "label": name,
            "cells": [_cell(run, c) for c in columns],
            "repeats": conclusions.repeats(run),
            "flags": _tags(run),
        }
        for k, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    dates = sorted(r.created_utc for r in runs)
    counts = sorted({conclusions.repeats(r) for r in runs})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    repeats = f"{number} repeat{'s' * (counts[-1] != 1)}"
    return {
        "subtitle": (f"{len(runs)} runs, {repeats} each, from {dates[0]} to {dates[-1]}",),
        "columns": [metrics.label(c) for c in columns],
        "rows": rows,
        "planes": planes,
        "nothing_drawn": [f"{k}: {n}: {why}" for k, (n, r) in enumerate(zip(names, runs, strict=True), 1)
                          if (why := conclusions.no_joules(r))],
        "any_simulated": any(conclusions.is_simulated(r) for r in runs),
        "any_synthetic": any(conclusions.has_synthetic_weights(r) for r in runs),
        "many": [views.run_view(r, n, k) for k, (n, r) in enumerate(zip(names, runs, strict=True))],
    }  # fmt: skip


def _tags(run: Run) -> list[tuple[str, bool]]:
    """Each flag once, whatever number of meters it speaks of, and whether it voids anything."""
    found: dict[str, bool] = {}
    for f in run.flags:
        name = f.flag.replace("_", " ")
        found[name] = found.get(name, False) or bool(f.voids)
    return list(found.items())


def _cell(run: Run, metric: str) -> Cell:
    names = conclusions.LATENCY if metric in conclusions.LATENCY else (metric,)
    energy = conclusions.best(run, conclusions.ENERGY)
    # Power stands beside the energy of the same meter.
    meter = energy.measurement.meter if energy and metrics.group(metric) == "Energy" else None
    found = next((r for k in names if (r := conclusions.best(run, k, meter))), None)
    if found is None:
        reason = conclusions.no_joules(run) if metric == conclusions.ENERGY else ""
        return Cell(None, reason or ("ended badly" if run.error else "—"))
    m = found.measurement
    return Cell(found, ", ".join(p for p in (m.meter, m.boundary) if p) if m.unit in ("J", "W") else "")


def _described(p: Plane) -> str:
    """The figure in words, for who cannot see it."""
    points = [
        f"{k.label}: {p.x_label} {format_quantity(k.x, k.x_error or None, p.x_unit)}, "
        f"{p.y_label} {format_quantity(k.y, k.y_error or None, p.y_unit)}{', on the Pareto front' * k.is_best}"
        for k in p.points
    ]
    return f"{p.title}. {'; '.join(points)}"
