"""A run as rows of the store's tables, and back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgewatt.harness.api import (
    Channel,
    ClockOffset,
    Flag,
    HarnessError,
    Items,
    Measurement,
    Phase,
    Run,
    RunError,
    Trace,
)
from edgewatt.results.models import FlagRecord, MeasurementRecord, PhaseRecord, RunRecord, TraceRecord
from edgewatt.results.plain import plain, text


def record(run: Run, traces: Sequence[TraceRecord], outputs: Mapping[str, str], items: Mapping[str, Any]) -> RunRecord:
    """The rows of a run whose files are written: its traces, outputs (name -> path) and items (file, n, sha256)."""
    offset, error = run.clock_offset, run.error
    try:
        created_s = seconds(run.created_utc)
    except ValueError:  # a label in another form still has to be stored, and its place among others is now
        created_s = time.time()
    return RunRecord(
        id=run.id,
        created_utc=text(run.created_utc),
        created_s=created_s,
        device_name=text(run.device_name),
        workload=text(run.workload),
        cell=text(run.cell),
        attempt=run.attempt,
        error_kind=text(error.kind) if error else None,
        error_message=text(error.message) if error else None,
        error_detail=text(error.detail) if error else None,
        spec=plain(run.spec),
        device=plain(run.device),
        engine=plain(run.engine),
        software=plain(run.software),
        artefacts=plain(run.artefacts),
        outputs=dict(outputs),
        warnings=plain(run.warnings),
        offset_s=offset.offset_s,
        offset_bound_s=offset.bound_s,
        offset_drift=offset.drift,
        offset_at_s=offset.at_s,
        offset_n=offset.n,
        items_file=items.get("file"),
        items_n=items.get("n", 0),
        items_sha256=items.get("sha256"),
        phases=[
            PhaseRecord(
                position=k,
                phase=text(p.phase),
                start_s=float(p.start_s),
                end_s=float(p.end_s),
                items=int(p.items),
                repeat=int(p.repeat),
                clock=text(p.clock),
            )
            for k, p in enumerate(run.phases)
        ],
        traces=list(traces),
        measurements=[
            MeasurementRecord(
                position=k,
                metric=text(m.metric),
                value=number(m.value),
                uncertainty=number(m.uncertainty),
                unit=text(m.unit),
                phase=text(m.phase),
                n=int(m.n),
                method=text(m.method),
                meter=text(m.meter),
                boundary=text(m.boundary),
                parts=plain(m.parts),
            )
            for k, m in enumerate(run.measurements)
        ],
        flags=[
            FlagRecord(
                position=k,
                flag=text(f.flag),
                voids=plain(f.voids),
                is_voiding=bool(f.voids),
                detail=text(f.detail),
                meter=text(f.meter),
            )
            for k, f in enumerate(run.flags)
        ],
    )


def run(stored: RunRecord, folder: Path, traces: Sequence[Trace], items: Items) -> Run:
    """The run again, its outputs where the store keeps them (below `folder`)."""
    r = stored
    offset_s, bound_s, drift, at_s = (
        math.nan if v is None else v for v in (r.offset_s, r.offset_bound_s, r.offset_drift, r.offset_at_s)
    )
    error = None
    if r.error_kind is not None:
        error = RunError(r.error_kind, r.error_message or "", r.error_detail or "")
    return Run(
        id=r.id,
        created_utc=r.created_utc,
        device_name=r.device_name,
        workload=r.workload,
        spec=r.spec,
        device=r.device,
        engine=r.engine,
        software=r.software,
        artefacts=r.artefacts,
        outputs={name: below(folder, path) for name, path in r.outputs.items()},
        clock_offset=ClockOffset(offset_s, bound_s, drift, at_s, r.offset_n),
        phases=tuple(Phase(p.phase, p.start_s, p.end_s, p.items, p.repeat, p.clock) for p in r.phases),
        items=items,
        traces=tuple(traces),
        measurements=tuple(
            Measurement(
                m.metric,
                math.nan if m.value is None else m.value,
                m.uncertainty,
                m.unit,
                m.phase,
                m.n,
                m.method,
                m.meter,
                m.boundary,
                m.parts,
            )
            for m in r.measurements
        ),
        flags=tuple(Flag(f.flag, tuple(f.voids), f.detail, f.meter) for f in r.flags),
        warnings=tuple(r.warnings),
        error=error,
        cell=r.cell,
        attempt=r.attempt,
    )


def trace_record(position: int, trace: Trace, file: str, sha256: str) -> TraceRecord:
    """The row of a trace that is written to `file` (below the store's folder)."""
    return TraceRecord(
        position=position,
        meter=text(trace.meter),
        clock=text(trace.clock),
        channels=[plain(asdict(c)) for c in trace.channels],
        facts=plain(trace.facts),
        file=file,
        n=len(trace.t_s),
        sha256=sha256,
    )


def channels(stored: TraceRecord) -> tuple[Channel, ...]:
    """The channels of a stored trace."""
    return tuple(Channel(**c) for c in stored.channels)


def below(folder: Path, path: str) -> Path:
    """A stored path, below the store's folder and nowhere else: the database may be somebody else's."""
    found = folder.joinpath(*path.split("/"))
    if ".." in found.parts or not found.is_relative_to(folder):
        raise HarnessError(f"the store names a file outside its folder: {path!r}; do not trust this store")
    return found


def number(value: float | None) -> float | None:
    """What a database keeps of a number: not every one has a NaN, so it is None in all of them."""
    return None if value is None or math.isnan(value) else float(value)


def seconds(utc: str) -> float:
    """Seconds since 1970 of an ISO 8601 label (without a zone: UTC); ValueError if it is none."""
    moment = datetime.fromisoformat(utc.strip().replace("Z", "+00:00"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
