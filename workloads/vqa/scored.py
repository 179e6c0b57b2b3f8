"""What a benchmark makes of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgewatt.harness.api import Facts, Measurement
from edgewatt.workloads.vqa.intervals import Interval


@dataclass(frozen=True)
class Metric:
    """One headline number. A share is 0..1 (unit "1"; published tables print percent); MME's are points."""

    name: str
    value: float
    interval: Interval | None  # 95 %, for the choice of questions; None: too few of them to tell
    n: int  # questions it rests on
    method: str
    unit: str = "1"

    @property
    def half_width(self) -> float | None:
        """Half the interval, which need not lie evenly about the value."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2


@dataclass(frozen=True)
class Scored:
    """The headline numbers of a benchmark, what they break down into, and how each question fared.

    A number that the official evaluator cannot give (it stops with an error) is not among `metrics`; `reasons` says
    why, under the name of the metric.
    """

    metrics: tuple[Metric, ...]
    details: Facts  # breakdowns as JSON values; shares are 0..1
    points: Mapping[str, float]  # question id -> 0..1 earned by its answer; questions that were not judged are absent
    parsed: Mapping[str, str | None]  # question id -> what its answer was taken to say; None: nothing it asks for
    reasons: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the numbers must be told: doubts, and which numbers are not there."""
        return (*self.doubts, *(f"no {name}: {reason}" for name, reason in self.reasons.items()))

    def metric(self, name: str) -> Metric:
        """The metric of that name; KeyError with the reason if there is none."""
        for m in self.metrics:
            if m.name == name:
                return m
        raise KeyError(self.reasons.get(name, f"no {name} here; there is {', '.join(m.name for m in self.metrics)}"))


def measurements(scored: Scored) -> tuple[Measurement, ...]:
    """The metrics as they are stored with a run."""
    return tuple(Measurement(m.name, m.value, m.half_width, m.unit, "run", m.n, m.method) for m in scored.metrics)
