"""A recording's times on the clock of the run's phases, by the pulses that the device played and it shows."""

from __future__ import annotations

import dataclasses

import numpy as np

from edgewatt.harness import pulses
from edgewatt.harness.alignment import Alignment, AlignmentError, align
from edgewatt.harness.api import Floats, Run, Trace

LOAD = ("power", "current", "energy")  # what shows the pulses, the best first


def aligned(trace: Trace, run: Run) -> tuple[Trace, Alignment]:
    """The trace on the phases' clock, and how it was tied to it. AlignmentError, saying why, if it cannot be."""
    if not len(trace.t_s):
        raise AlignmentError(str(trace.facts.get("ended") or "the recording is empty"))
    played = pulses.ends(run.phases)
    if not played:
        raise AlignmentError(
            "nothing ties the recording's clock to the device's: no pulses were played; run with --set pattern=true"
        )
    found = align(trace.t_s, _load(trace), played)
    t_s = found.on_device(trace.t_s)
    first_s, last_s = (f(t for p in run.phases for t in (p.start_s, p.end_s)) for f in (min, max))
    missing = [f"begins {t_s[0] - first_s:.3g} s after the run does"] * bool(t_s[0] > first_s)
    missing += [f"ends {last_s - t_s[-1]:.3g} s before the run does"] * bool(t_s[-1] < last_s)
    note = "; ".join(n for n in ("it " + " and ".join(missing) if missing else "", found.note) if n)
    found = dataclasses.replace(found, note=note)
    told = {k: v for k, v in dataclasses.asdict(found).items() if v != ""}
    clock = run.phases[0].clock
    return dataclasses.replace(trace, clock=clock, t_s=t_s, facts={**trace.facts, "alignment": told}), found


def _load(trace: Trace) -> Floats:
    """What of it (n,) grows with the device's load."""
    ranked = sorted((LOAD.index(c.quantity), k) for k, c in enumerate(trace.channels) if c.quantity in LOAD)
    if not ranked:
        raise AlignmentError("it has neither power nor current nor energy, so that no pulses can show in it")
    column = trace.values[:, ranked[0][1]]
    if trace.channels[ranked[0][1]].kind == "gauge":
        return column
    return np.gradient(column, trace.t_s) if len(column) > 1 else column
