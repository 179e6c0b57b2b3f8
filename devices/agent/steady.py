"""When a warm-up is over: latency has stopped changing, and so have the temperature or power that can be read."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence


def trend(values: Sequence[float]) -> float:
    """How much the least-squares line through equally spaced `values` changes from the first to the last of them."""
    n = len(values)
    middle = (n - 1) / 2
    slope = sum((k - middle) * v for k, v in enumerate(values)) / sum((k - middle) ** 2 for k in range(n))
    return slope * (n - 1)


def trend_noise(values: Sequence[float]) -> float:
    """The standard error of `trend`, from how the values lie about that line (ordinary least squares)."""
    n = len(values)
    middle, mean, rise = (n - 1) / 2, sum(values) / n, trend(values) / (n - 1)
    squares = sum((v - mean - rise * (k - middle)) ** 2 for k, v in enumerate(values))
    return (n - 1) * math.sqrt(squares / (n - 2) / sum((k - middle) ** 2 for k in range(n)))


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


class Steady:
    """The rule: each of the last `blocks` block medians of latency lies within `tolerance` (relative) of their median,
    the line through them changes by no more than that, and no node moved by more than its own tolerance (absolute, in
    its unit) meanwhile. A node that gives no reading says nothing for or against.

    A machine with other work to do never gets so quiet. There twice as many blocks are enough if what trend they have
    is no larger than their own noise (two standard errors): latency that scatters, but goes nowhere.
    """

    def __init__(self, tolerance: float, blocks: int = 5, nodes: Mapping[str, float] | None = None) -> None:
        self._tolerance, self._blocks = tolerance, max(blocks, 2)
        self._all_s: deque[float] = deque(maxlen=2 * self._blocks)
        self._nodes = dict(nodes or {})
        self._readings: dict[str, deque[float]] = {name: deque(maxlen=self._blocks) for name in self._nodes}

    def add(self, latency_s: float, readings: Mapping[str, float | None] | None = None) -> None:
        """One block's median latency, and what the nodes read at its end."""
        self._all_s.append(latency_s)
        for name, value in (readings or {}).items():
            if value is not None:
                self._readings[name].append(value)

    @property
    def _latency_s(self) -> Sequence[float]:
        return list(self._all_s)[-self._blocks :]

    @property
    def spread(self) -> float:
        """The farthest block from the median of the blocks, relative to it."""
        middle = median(self._latency_s)
        return max(abs(v - middle) for v in self._latency_s) / middle

    @property
    def drift(self) -> float:
        """The change of latency over the blocks, relative to their median."""
        return trend(self._latency_s) / median(self._latency_s)

    @property
    def moving(self) -> list[str]:
        """The nodes that have not settled, each with its movement."""
        moved = {name: max(seen) - min(seen) for name, seen in self._readings.items() if seen}
        return [
            f"{name} moved {by:.3g} (limit {self._nodes[name]:g})"
            for name, by in moved.items()
            if by > self._nodes[name]
        ]

    @property
    def reached(self) -> bool:
        if len(self._latency_s) < self._blocks:
            return False
        is_quiet = self.spread <= self._tolerance and abs(self.drift) <= self._tolerance
        return (is_quiet or self.is_noise) and not self.moving

    @property
    def is_noise(self) -> bool:
        """Whether twice the blocks show no trend beyond their own noise."""
        enough = len(self._all_s) == 2 * self._blocks >= 6
        return enough and 0 < abs(trend(self._all_s)) <= 2 * trend_noise(self._all_s)

    @property
    def detail(self) -> str:
        """The evidence, in words and numbers."""
        if len(self._latency_s) < self._blocks:
            return f"{len(self._latency_s)} of the {self._blocks} blocks needed"
        latency = (
            f"latency of the last {self._blocks} blocks within {self.spread:.2%} of {median(self._latency_s):.4g} s"
        )
        parts = [f"{latency}, changing by {self.drift:+.2%} (limit {self._tolerance:.2%})", *self.moving]
        if self.is_noise:
            parts.append(f"{len(self._all_s)} blocks without a trend beyond their noise")
        parts += [f"{name} gave no reading" for name, seen in self._readings.items() if not seen]
        return "; ".join(parts)
