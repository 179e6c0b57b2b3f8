"""A run as a page shows it: everything in words and text, nothing left to compute in a template."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from edgewatt.harness.analysis_health import sampling_cost
from edgewatt.harness.analysis_meter import restarted
from edgewatt.harness.api import Run, RunError, Trace
from edgewatt.reports import breakdown, conclusions, latency, metrics
from edgewatt.reports.breakdown import Bar
from edgewatt.reports.conclusions import Doubt, Result, Tile
from edgewatt.reports.numbers import format_quantity

_LONGEST = 600  # characters of one fact; a device may say more than a page can hold


@dataclass(frozen=True)
class MeterRow:
    """How one meter was sampled, in words."""

    meter: str
    channels: str
    samples: int
    asked: str
    achieved: str
    gap_p99: str
    gap_max: str
    gap_limit: str
    cost: tuple[str, ...]  # in all, and what of it a service had
    clock: str
    wiring: str  # where an external meter sits
    troubles: str


@dataclass(frozen=True)
class RunView:
    """One run, ready for a template."""

    id: str
    label: str
    anchor: str
    subtitle: tuple[str, ...]
    error: RunError | None
    is_simulated: bool
    simulated: tuple[str, ...]
    has_synthetic_weights: bool
    tiles: tuple[Tile, ...]
    doubts: tuple[Doubt, ...]
    warnings: tuple[str, ...]
    phases: tuple[Bar, ...]
    budgets: tuple[Bar, ...]
    groups: tuple[tuple[str, tuple[Result, ...]], ...]
    shown: tuple[str, ...]
    provenance: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    meters: tuple[MeterRow, ...]


def run_view(run: Run, label: str = "", place: int = 0) -> RunView:
    """Everything a page shows of one run; `place` is its number among the runs shown."""
    found = conclusions.results(run)
    doubts = tuple(conclusions.doubts(run))
    return RunView(
        id=run.id,
        label=label or title(run),
        anchor=f"run-{place}",
        subtitle=subtitle(run),
        error=run.error,
        is_simulated=conclusions.is_simulated(run),
        simulated=tuple(f"{d.meaning} ({d.detail})" for d in doubts if d.flag == "simulated"),
        has_synthetic_weights=conclusions.has_synthetic_weights(run),
        tiles=tuple(conclusions.headline(run)),
        doubts=doubts,
        warnings=run.warnings,
        phases=tuple(breakdown.by_phase(run)),
        budgets=tuple(breakdown.budgets(run)),
        groups=tuple((name, tuple(rows)) for name, rows in groupby(found, key=_group)),
        shown=tuple(_shown(run)),
        provenance=tuple(_provenance(run)),
        meters=tuple(_meter(t) for t in run.traces),
    )


def _group(r: Result) -> str:
    return metrics.group(r.measurement.metric, r.measurement.unit)


def title(run: Run) -> str:
    """What ran where."""
    return f"{run.workload} on {run.device_name}"


def subtitle(run: Run) -> tuple[str, ...]:
    """The model and how it ran; the run's id and date."""
    keys = ("variant", "precision", "dataset", "size", "weights")
    model = [f"{k} {run.spec[k]}" for k in keys if run.spec.get(k) not in (None, "", 0, "auto")]  # those are defaults
    engine = [run.engine[k] for k in ("engine", "version", "provider_used") if run.engine.get(k)]
    model += [" ".join(str(e) for e in engine)] if engine else []
    model += [f"{run.engine['threads']} threads"] if run.engine.get("threads") else []
    n = conclusions.repeats(run)
    repeats = f"{n} repeat" if n == 1 else f"{n} repeats"
    return tuple(line for line in (" · ".join(model), f"{repeats} · run {run.id} · {run.created_utc}") if line)


def _shown(run: Run) -> Iterator[str]:
    """Which run, how many repeats, and what no figure holds."""
    windows = [p for p in run.phases if p.phase == "window"]
    n = len(latency.latencies(run))
    seconds = sum(p.duration_s for p in windows)
    asked = run.spec.get("repeats")
    of = f" of {asked} asked" if asked is not None and asked != len(windows) else ""
    kept = f" with {n} whole items, every one of them kept" if n else ", without a whole item"
    yield (
        f"Shown: run {run.id} of {run.created_utc}, attempt {run.attempt + 1}; "
        f"{len(windows)} steady window{'s' * (len(windows) != 1)}{of} "
        f"({format_quantity(seconds, None, 's')} in all){kept}."
    )
    warm = latency.warmup_items(run)
    if warm:
        yield f"Left out of all figures: {warm} items of the warm-up."
    void: dict[str, list[str]] = {}
    for r in conclusions.results(run):
        if not r.is_valid:
            void.setdefault(r.void_reason, []).append(r.label)
    for reason, names in void.items():
        yield f"Void, and shown struck out: {'; '.join(dict.fromkeys(names))} ({reason})."
    for t in run.traces:
        missing = np.isnan(t.values).sum(axis=0)
        said = [f"{int(m)} of {c.name}" for c, m in zip(t.channels, missing, strict=True) if m]
        if said:
            yield f"Missing readings of {t.meter}, of {len(t.t_s)} each: {', '.join(said)}."


def _provenance(run: Run) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    yield "Engine really used", tuple(flat(run.engine))
    yield "Device", tuple(flat(run.device))
    yield "Parameters", tuple(flat(run.spec))
    yield "Software", tuple(flat(run.software))
    yield "Artefacts (sha256)", tuple(flat(run.artefacts))
    c = run.clock_offset
    rows = [("id", run.id), ("date", run.created_utc), ("cell", run.cell), ("attempt", str(run.attempt + 1))]
    if c.n:
        bound = format_quantity(c.bound_s, None, "s")
        rows.append(("clock offset", f"{format_quantity(c.offset_s, None, 's')} within {bound}, {c.n} exchanges"))
    rows += [(f"output {name}", path.name) for name, path in run.outputs.items()]
    yield "Run", tuple((k, v) for k, v in rows if v)


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as rows: "caches.L2" and its value in words."""
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        else:
            text = _in_words(value)
            yield name, text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _in_words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, (list, tuple)):
        if any(isinstance(v, (Mapping, list, tuple)) for v in value):
            return json.dumps(value, default=str, ensure_ascii=False)
        return ", ".join(_in_words(v) for v in value) or "none"
    return str(value)


def _meter(t: Trace) -> MeterRow:
    def written(key: str, unit: str) -> str:
        value = t.facts.get(key)
        return format_quantity(float(value), None, unit) if isinstance(value, (int, float)) else "unknown"

    return MeterRow(
        meter=t.meter,
        channels=", ".join(f"{c.name} ({c.covers})" if c.covers else c.name for c in t.channels),
        samples=len(t.t_s),
        asked=written("rate_asked_hz", "Hz"),
        achieved=written("rate_hz", "Hz"),
        gap_p99=written("gap_p99_s", "s"),
        gap_max=written("gap_max_s", "s"),
        gap_limit=written("gap_limit_s", "s"),
        cost=_cost(t),
        clock=t.clock,
        wiring=_wiring(t),
        troubles="; ".join(_troubles(t)),
    )


def _wiring(t: Trace) -> str:
    """Where a meter in the supply line sits, in words; "" for a device's own."""
    told = t.facts.get("wiring")
    if not isinstance(told, Mapping):
        return ""
    words = {"series_resistance_ohm": "{} ohm in series", "efficiency": "converter of efficiency {}"}
    return "; ".join(words.get(k, "{}").format(v) for k, v in told.items() if k not in ("covers", "gain_error"))


def _cost(t: Trace) -> tuple[str, ...]:
    cost = sampling_cost(t)
    if cost is None:
        return ("unknown",)
    every, service = cost
    of_it = "" if service is None else f"service: {service:.2g}" if math.isfinite(service) else "service: unknown"
    return tuple(filter(None, (f"{every:.2g} CPU s/s", of_it)))


def _troubles(t: Trace) -> Iterator[str]:
    errors = t.facts.get("errors")
    for name, e in errors.items() if isinstance(errors, Mapping) else ():
        count, text = (e.get("count"), e.get("text")) if isinstance(e, Mapping) else ("", e)
        yield f"{name}: {count} errors, the last: {text}"
    if t.facts.get("ended"):
        yield f"sampling ended early: {t.facts['ended']}"
    if again := restarted(t):
        yield again
    worst, limit = t.facts.get("gap_max_s"), t.facts.get("gap_limit_s")
    if isinstance(worst, (int, float)) and isinstance(limit, (int, float)) and worst > limit:
        yield "its largest gap is over the limit"
