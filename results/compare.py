"""What changed between two sets of measurements of the same run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgewatt.harness.api import Measurement

TOLERANCE = 1e-9  # relative; what another order of summation does is far below it

Key = tuple[str, str, str, str, int]  # metric, phase, meter, boundary, and which of several alike


@dataclass(frozen=True)
class Change:
    """One measurement, before and after."""

    old: Measurement
    new: Measurement

    @property
    def relative(self) -> float:
        """How far the value moved, in shares of the old one; infinity from 0."""
        return _distance(self.old.value, self.new.value)

    def in_words(self) -> str:
        """`energy_j window rapl/package-0: 12.5 -> 12.6 J (+0.8 %)`"""
        old, new = self.old, self.new
        label = " ".join(w for w in (new.metric, new.phase, new.meter) if w)
        if not _moved(old.value, new.value) and old.unit == new.unit:
            return f"{label}: uncertainty {_number(old.uncertainty)} -> {_number(new.uncertainty)} {new.unit}".rstrip()
        moved = (
            f" ({(new.value - old.value) / abs(old.value):+.3g} of it)"
            if old.value and math.isfinite(new.value)
            else ""
        )
        unit = old.unit if old.unit == new.unit else f"{old.unit} -> {new.unit}"
        return f"{label}: {_number(old.value)} -> {_number(new.value)} {unit}".rstrip() + moved


@dataclass(frozen=True)
class Difference:
    """Measurements whose value, uncertainty or unit changed, that are new, that are gone."""

    changed: tuple[Change, ...] = ()
    added: tuple[Measurement, ...] = ()
    gone: tuple[Measurement, ...] = ()
    same: int = 0

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.gone)

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "same": self.same,
            "changed": [_named(c.new) | {"old": _numbers(c.old), "new": _numbers(c.new)} for c in self.changed],
            "added": [_named(m) | {"new": _numbers(m)} for m in self.added],
            "gone": [_named(m) | {"old": _numbers(m)} for m in self.gone],
        }

    def in_words(self) -> str:
        """One line if nothing changed, else one more for each change."""
        if not self:
            return f"all {self.same} measurements come out the same"
        counts = (
            (self.same, "the same"),
            (len(self.changed), "changed"),
            (len(self.added), "new"),
            (len(self.gone), "gone"),
        )
        head = "measurements: " + ", ".join(f"{n} {word}" for n, word in counts)
        lines = [c.in_words() for c in self.changed]
        for sign, group in (("new", self.added), ("gone", self.gone)):
            lines += [
                f"{sign}: {m.metric} {m.phase} {m.meter}".rstrip() + f" {_number(m.value)} {m.unit}" for m in group
            ]
        return "\n".join([head, *(f"  {line}" for line in lines)])


def difference(old: Sequence[Measurement], new: Sequence[Measurement], tolerance: float = TOLERANCE) -> Difference:
    """What changed by more than `tolerance` (relative), is new, or is gone; order does not matter."""
    before, after = _keyed(old), _keyed(new)
    both = [Change(before[k], after[k]) for k in before if k in after]
    changed = tuple(c for c in both if _differs(c, tolerance))
    return Difference(
        changed=changed,
        added=tuple(m for k, m in after.items() if k not in before),
        gone=tuple(m for k, m in before.items() if k not in after),
        same=len(both) - len(changed),
    )


def _keyed(measurements: Sequence[Measurement]) -> dict[Key, Measurement]:
    seen: Counter[tuple[str, str, str, str]] = Counter()
    keyed = {}
    for m in measurements:
        name = (m.metric, m.phase, m.meter, m.boundary)
        keyed[(*name, seen[name])] = m
        seen[name] += 1
    return keyed


def _differs(change: Change, tolerance: float) -> bool:
    old, new = change.old, change.new
    if old.unit != new.unit or (old.uncertainty is None) != (new.uncertainty is None):
        return True
    is_wider = (
        old.uncertainty is not None
        and new.uncertainty is not None
        and _moved(old.uncertainty, new.uncertainty, tolerance)
    )
    return is_wider or _moved(old.value, new.value, tolerance)


def _moved(old: float, new: float, tolerance: float = TOLERANCE) -> bool:
    return _distance(old, new) > tolerance


def _distance(old: float, new: float) -> float:
    if old == new or (math.isnan(old) and math.isnan(new)):
        return 0.0
    if not (math.isfinite(old) and math.isfinite(new)) or old == 0:
        return math.inf
    return abs(new - old) / abs(old)


def _named(m: Measurement) -> dict[str, str]:
    return {"metric": m.metric, "phase": m.phase, "meter": m.meter, "boundary": m.boundary}


def _numbers(m: Measurement) -> dict[str, Any]:
    return {"value": m.value, "uncertainty": m.uncertainty, "unit": m.unit}


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
