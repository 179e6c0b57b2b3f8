"""A stored run with recordings added to it: a run of its own, since runs never change."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from edgewatt.harness import pulses
from edgewatt.harness.api import HarnessError, Meter, Run, Trace, UsageError, Workload
from edgewatt.harness.measure import recompute

ATTACHED_TO = "attached_to"  # in the spec: the run that this one was made of


def attached(run: Run, meters: Sequence[Meter], workload: Workload, into: Path) -> Run:
    """The run with what these recordings hold, every number derived again. UsageError where one cannot be attached."""
    traces = run.traces
    for meter in meters:
        read = getattr(meter, "read", None)
        if meter.shares_clock or read is None:
            raise UsageError(
                f"{meter.name}: only a recording that is aligned by its pulses can be attached to a stored run, as "
                "file:PATH; attach others with `edgewatt run --meter`"
            )
        if not pulses.ends(run.phases):
            raise UsageError(
                f"run {run.id} has no pulses, so nothing ties a recording to it; measure again with --set pattern=true"
            )
        if meter.name in (t.meter for t in traces):
            raise UsageError(f"run {run.id} has a meter {meter.name!r} already; give this one a name: ...,name=NAME")
        try:
            trace: Trace = read()
        except HarnessError as error:
            raise UsageError(str(error)) from error
        traces = (*traces, dataclasses.replace(trace, meter=meter.name))
    now = datetime.now(timezone.utc)
    whole = dataclasses.replace(
        run,
        id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        created_utc=now.isoformat(timespec="seconds"),
        spec={**run.spec, ATTACHED_TO: run.id},
        traces=traces,
        cell="",  # the sweep's cell is filled by the run itself
        attempt=0,
    )
    return recompute(whole, workload, into)
