"""What the columns of a meter's lines are: a quantity and a unit each, in words that read aloud. For the agent.

    columns = ["time ms", "voltage mV", "current uA", "power uW"]       lines of numbers; "-" passes a column over
    columns = {t = "time ms", bus = "voltage mV", i = "current mA"}     lines of JSON, by key; others do not count

After `--meter KIND:ADDRESS` the same is written `columns=time ms,voltage mV,-,power uW`, or for JSON
`columns=t:time ms,bus:voltage mV`. A unit alone says what it is of (`ms`), and so do the names that boards give
their columns (`bus_mV`, `Current [uA]`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

UNITS = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0},
    "voltage": {"V": 1.0, "mV": 1e-3, "uV": 1e-6},
    "current": {"A": 1.0, "mA": 1e-3, "uA": 1e-6, "nA": 1e-9},
    "power": {"W": 1.0, "mW": 1e-3, "uW": 1e-6, "nW": 1e-9},
}
OF_UNIT = {unit: quantity for quantity, units in UNITS.items() for unit in units}
WORDS = {"time": "time", "timestamp": "time", "t": "time", "voltage": "voltage", "current": "current", "power": "power"}
WORDS.update(v="voltage", u="voltage", i="current", p="power", volts="voltage", amps="current", watts="power")
BESIDE = ("bus", "load", "supply")  # which voltage, or of what; that of the shunt is another
SKIP = "-"


class LayoutError(ValueError):
    """The columns make no sense; the message is one line with the next step."""


@dataclass(frozen=True)
class Column:
    """One column: its quantity ("" if it is passed over), and what its numbers are multiplied by to be SI."""

    quantity: str
    factor: float = 1.0
    key: str = ""  # of JSON


@dataclass(frozen=True)
class Layout:
    """The columns of a line, in order."""

    columns: tuple[Column, ...]
    is_json: bool = False

    def __contains__(self, quantity: object) -> bool:
        return any(c.quantity == quantity for c in self.columns)

    def words(self) -> list[str]:
        """The layout in the words it could have been given in."""
        return [_word(c) for c in self.columns]


def layout(told: Any, has_volts: bool = False) -> Layout:
    """The layout that the option `columns` tells; LayoutError. `has_volts`: the voltage is known without a column."""
    if isinstance(told, str):
        parts = [p.strip() for p in told.split(",")]
        told = dict(p.split(":", 1) for p in parts) if all(":" in p for p in parts) else parts
    if isinstance(told, dict) and told and all(isinstance(v, str) for v in told.values()):
        found = Layout(tuple(column(v, str(k).strip()) for k, v in told.items()), True)
    elif isinstance(told, (list, tuple)) and told and all(isinstance(v, str) for v in told):
        found = Layout(tuple(column(v) for v in told))
    else:
        raise LayoutError(f'columns is {told!r}; wanted such as ["time ms", "voltage mV", "current uA", "power uW"]')
    return checked(found, has_volts)


def checked(found: Layout, has_volts: bool = False) -> Layout:
    """The same, if power can be had from it and no quantity comes twice; LayoutError."""
    for quantity in UNITS:
        if sum(c.quantity == quantity for c in found.columns) > 1:
            raise LayoutError(f'columns has {quantity} twice; write "-" for the one that is not wanted')
    if "power" not in found and not ("current" in found and ("voltage" in found or has_volts)):
        raise LayoutError(
            f"columns ({', '.join(found.words())}) give no power; wanted power, voltage and current, or current and "
            "the option volts"
        )
    return found


def announced(text: str) -> Layout | None:
    """The layout that a line of a board tells of itself: what follows `columns:`, or a heading; None if it is none."""
    _, is_told, rest = text.partition("columns:")
    names = fields(rest.strip() if is_told else text.lstrip("#").strip())
    found = []
    for name in names:
        try:
            found.append(column(name))
        except LayoutError:
            if not is_told:
                return None
            found.append(Column(""))
    return Layout(tuple(found)) if len(found) > 1 and any(c.quantity for c in found) else None


def of_keys(keys: Iterable[str]) -> Layout | None:
    """The layout that JSON keys tell, as far as they tell a quantity; None if none does."""
    found = []
    for key in keys:
        with suppress(LayoutError):
            found.append(column(key, key))
    return Layout(tuple(found), True) if found else None


def column(told: str, key: str = "") -> Column:
    """One column from its words: "voltage mV", "bus_mV", "Current [uA]", "ms"; LayoutError naming the nearest word."""
    if told.strip() == SKIP:
        return Column("", key=key)
    words = [w for w in re.split(r"[^A-Za-z0-9]+", told.replace("µ", "u").replace("μ", "u")) if w]
    unit = words[-1] if words else ""
    if unit not in OF_UNIT:
        near = difflib.get_close_matches(unit, OF_UNIT, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(OF_UNIT)}"
        raise LayoutError(f"column {told!r} has no unit that is known; {hint}")
    quantity = OF_UNIT[unit]
    for word in words[:-1]:
        name = word.lower()
        if name in BESIDE:
            continue
        if name not in WORDS:
            near = difflib.get_close_matches(name, WORDS, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(UNITS)}, and - for one passed over"
            raise LayoutError(f"column {told!r}: {word!r} is no quantity; {hint}")
        if WORDS[name] != quantity:
            raise LayoutError(
                f"column {told!r}: {unit} is no unit of {WORDS[name]}; {', '.join(UNITS[WORDS[name]])} are"
            )
    return Column(quantity, UNITS[quantity][unit], key)


def fields(text: str) -> list[str]:
    """The fields of a line; its delimiter is the first of ; tab , that it has, or else blanks."""
    for delimiter in (";", "\t", ","):
        if delimiter in text:
            return [f.strip() for f in text.split(delimiter)]
    return text.split()


def _word(c: Column) -> str:
    if not c.quantity:
        return SKIP
    unit = next(u for u, factor in UNITS[c.quantity].items() if factor == c.factor)
    return f"{c.key}: {c.quantity} {unit}" if c.key else f"{c.quantity} {unit}"
