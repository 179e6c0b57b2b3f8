"""How a meter that somebody attached to a device is wired: what it powers, through what, and how well it is known.

These options are common to every attached meter, in the device file and after `--meter KIND:ADDRESS`:

    boundary = "dc-input"           # where its joules are counted; "supply" where nothing is said
    covers = "board and fan"        # in words
    series_resistance_ohm = 0.05    # of leads and shunt between meter and device
    efficiency = 0.92               # of a converter between them
    note = "bench supply 2"
    gain_error = 0.005              # relative, 95 %, from its data sheet or certificate
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgewatt.harness.api import Channel, UsageError
from edgewatt.harness.plugins import nearest

BOUNDARIES = ("wall", "dc-input", "usb", "battery", "board", "module", "package", "rails", "supply")
OPTIONS = ("boundary", "covers", "series_resistance_ohm", "efficiency", "note", "gain_error")


@dataclass(frozen=True)
class Wiring:
    """One meter's place in the supply line. Resistance and efficiency are told beside its joules, never applied."""

    boundary: str = "supply"
    covers: str = ""
    series_resistance_ohm: float | None = None
    efficiency: float | None = None
    note: str = ""
    gain_error: float | None = None

    @staticmethod
    def of(kind: str, options: Mapping[str, Any]) -> tuple[Wiring, dict[str, Any]]:
        """The wiring that `options` of a meter of that kind tell, and the options that are not about it."""
        told = {k: options[k] for k in OPTIONS if k in options}
        boundary = told.get("boundary", "supply")
        if not isinstance(boundary, str) or boundary not in BOUNDARIES:
            raise UsageError(f"{kind}: boundary is {boundary!r}; {nearest(str(boundary), BOUNDARIES)}")
        wiring = Wiring(
            boundary=boundary,
            covers=_text(kind, told, "covers"),
            series_resistance_ohm=_number(kind, told, "series_resistance_ohm", 0.0, 1000.0),
            efficiency=_number(kind, told, "efficiency", 0.01, 1.0),
            note=_text(kind, told, "note"),
            gain_error=_number(kind, told, "gain_error", 0.0, 1.0),
        )
        return wiring, {k: v for k, v in options.items() if k not in OPTIONS}

    def channel(self, name: str = "power", **more: Any) -> Channel:
        """The power (W) that it measures, as a channel of the trusted meter; `more` are the channel's other words."""
        covers = self.covers or f"all that it feeds ({self.boundary})"
        return Channel(name, "power", "W", "gauge", covers, self.boundary, gain_error=self.gain_error, **more)

    def facts(self) -> dict[str, Any]:
        """What goes into a trace as facts["wiring"]: a trace that has it is an external meter's."""
        return {k: v for k, v in asdict(self).items() if v not in (None, "")}


def refuse_rest(kind: str, rest: Iterable[str], known: Iterable[str]) -> None:
    """UsageError, naming the nearest one, if options are left that nobody knows."""
    for key in rest:
        raise UsageError(f"{kind}: has no option {key!r}; {nearest(key, {*known, *OPTIONS})}")


def _number(kind: str, told: Mapping[str, Any], key: str, least: float, most: float) -> float | None:
    value = told.get(key)
    if value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not least <= found <= most:
        raise UsageError(f"{kind}: {key} is {value!r}; wanted a number from {least:g} to {most:g}")
    return found


def _text(kind: str, told: Mapping[str, Any], key: str) -> str:
    value = told.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"{kind}: {key} is {value!r}; wanted a text")
    return value
