"""Long series made short enough to draw. For drawing only: no number is ever taken from a thinned series."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgewatt.harness.api import Floats, Ints

POINTS = 4000  # about two for each pixel of a wide screen


@dataclass(frozen=True)
class Drawn:
    """What is drawn of a series: `x`, `y` (k,), NaN in `y` where the line breaks; `shown` of `total` points."""

    x: Floats
    y: Floats
    shown: int
    total: int


def drawn(x: Floats, y: Floats, breaks: Floats | None = None, points: int = POINTS) -> Drawn:
    """The points of a series that its picture needs: the extremes of each stretch, and all edges of its gaps.

    Args:
        x: (n,), rising.
        y: (n,); NaN is a missing value: the line breaks there.
        breaks: (g, 2), intervals of x in which the line must break although no value is missing.
        points: how many values to keep, about.
    """
    there = np.isfinite(y)
    split = np.diff(np.cumsum(~there)[there]) > 0  # a value is missing between two that are there
    x, y = x[there], y[there]
    if breaks is not None and len(breaks) and len(x):
        after = np.searchsorted(x, breaks[:, 1] - 1e-12)
        split[np.clip(after[(after > 0) & (after < len(x))] - 1, 0, len(split) - 1)] = True
    keep = _kept(x, y, points)
    edges = np.flatnonzero(split)
    if len(edges) > points // 4:  # as many gaps as points: the widest are shown
        widest = np.argsort(x[edges + 1] - x[edges])[-(points // 4) :]
        edges = np.sort(edges[widest])
    keep = np.unique(np.concatenate([keep, edges, edges + 1]))
    places = np.searchsorted(keep, edges) + 1
    middles = (x[edges] + x[edges + 1]) / 2 if len(edges) else np.empty(0)
    return Drawn(np.insert(x[keep], places, middles), np.insert(y[keep], places, np.nan), len(keep), len(x))


def _kept(x: Floats, y: Floats, points: int) -> Ints:
    """Indices of the points that are drawn, rising."""
    if len(x) <= points:
        return np.arange(len(x))
    from tsdownsample import MinMaxLTTBDownsampler

    chooser = MinMaxLTTBDownsampler()  # type: ignore[no-untyped-call]
    kept = chooser.downsample(np.ascontiguousarray(x), np.ascontiguousarray(y), n_out=points)
    return np.asarray(kept, np.int64)
