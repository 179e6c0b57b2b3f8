"""What lies between an external meter and the device, in words: told beside its joules, never taken off them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgewatt.harness.analysis_view import WINDOW, Findings, View
from edgewatt.harness.api import Trace
from edgewatt.harness.channels import roots


def wiring(view: View, trace: Trace, found: Findings) -> None:
    """A warning for leads (series resistance) and one for a converter (efficiency) that the wiring tells of."""
    told = trace.facts.get("wiring")
    if not isinstance(told, Mapping):
        return
    ohm, efficiency = _number(told, "series_resistance_ohm"), _number(told, "efficiency")
    if ohm:
        found.warnings.append(
            f"{trace.meter}: {ohm:g} ohm of leads and shunt lie between it and the device; {_lost(view, trace, ohm)}"
        )
    if efficiency is not None and efficiency < 1:
        found.warnings.append(
            f"{trace.meter}: behind it is a converter of efficiency {efficiency:g}, by its wiring: what it loses is in "
            "this meter's joules"
        )


def _lost(view: View, trace: Trace, ohm: float) -> str:
    """The mean of I^2 R in the windows, as a share of what was measured there."""
    current = next((c.name for c in trace.channels if c.quantity == "current"), None)
    power = next((c.name for c in roots(trace.channels) if c.quantity == "power"), None)
    if current is None or power is None:
        return "it tells no current, so what is lost in them is not known, and is in its joules"
    inside = np.zeros(len(trace.t_s), bool)
    for start_s, end_s in view.intervals(WINDOW):
        inside |= (trace.t_s >= start_s) & (trace.t_s <= end_s)
    amperes, watts = trace.column(current)[inside], trace.column(power)[inside]
    if not np.isfinite(amperes).any() or not np.nansum(watts) > 0:
        return "what is lost in them is in its joules"
    lost_w = float(np.nanmean(amperes**2) * ohm)
    return (
        f"they took about {lost_w:.2g} W ({lost_w / float(np.nanmean(watts)):.1%}) of what it measured in the windows; "
        "that is in its joules"
    )


def _number(told: Mapping[str, Any], key: str) -> float | None:
    value = told.get(key)
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None
