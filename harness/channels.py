"""Which channels of a meter may be added, and what their sum is called.

A total and its parts are never added: only roots are, channels that no other energy channel of the meter contains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgewatt.harness.api import Channel

WIDEST_FIRST = ("wall", "dc-input", "usb", "supply", "battery", "board", "module", "package", "rails")

NAMED = 4  # parts of a sum that are named one by one


@dataclass(frozen=True)
class Group:
    """The root channels of a meter that share a boundary: what its energy figures are the sum of."""

    boundary: str
    roots: tuple[Channel, ...]

    @property
    def label(self) -> str:
        """The channel's name, or "sum of X + Y": a sum of rails is never passed off as the device's energy."""
        each = [c.name for c in self.roots]
        if len(each) == 1:
            return each[0]
        names = " + ".join(each) if len(each) <= NAMED else f"{each[0]} + ... + {each[-1]} ({len(each)} channels)"
        return f"sum of module rails {names}" if self.boundary == "module" else f"sum of {names}"


def roots(channels: Sequence[Channel]) -> tuple[Channel, ...]:
    """The energy channels that no other energy channel contains, in the meter's order.

    Of two that cover the same hardware within the same boundary (a power and an energy reading of one sensor), the
    counter is kept: it misses nothing between two reads.
    """
    energy = {c.name: c for c in channels if c.is_energy}
    top = [c for c in energy.values() if not _is_contained(c, energy, channels)]
    counted = {(c.covers, c.boundary) for c in top if c.kind == "counter"}
    return tuple(c for c in top if c.kind == "counter" or (c.covers, c.boundary) not in counted)


def groups(channels: Sequence[Channel]) -> tuple[Group, ...]:
    """The roots by boundary, the widest boundary first; those the harness has no word for last."""
    top = roots(channels)
    order = {b: k for k, b in enumerate(WIDEST_FIRST)}
    found = sorted(dict.fromkeys(c.boundary for c in top), key=lambda b: order.get(b, len(order)))
    return tuple(Group(b, tuple(c for c in top if c.boundary == b)) for b in found)


def parts(channels: Sequence[Channel]) -> tuple[Channel, ...]:
    """The energy channels that are not, alone, a group: shown as a split, never added to one."""
    alone = {g.roots[0].name for g in groups(channels) if len(g.roots) == 1}
    return tuple(c for c in channels if c.is_energy and c.name not in alone)


def _is_contained(channel: Channel, energy: dict[str, Channel], channels: Sequence[Channel]) -> bool:
    """Whether an energy channel lies above it, however many channels of other quantities lie between."""
    above = {c.name: c.parent for c in channels}
    seen = {channel.name}
    name = channel.parent
    while name is not None and name not in seen:  # a ring of parents is a plugin's slip, not a reason to hang
        if name in energy:
            return True
        seen.add(name)
        name = above.get(name)
    return False
