"""Boxes, scores and labels out of the network's three raw maps.

Source: the YOLOX head of yh-pengtu/FemtoDet @ 2073227 (one level, stride 16) and mmcv's `batched_nms`; float32 too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

STRIDE_PX = 16
# Pairs of boxes looked at in one go, so that memory stays small however many boxes there are.
_BLOCK = 1 << 17
_BEST = 64  # boxes taken from a heap at once


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, by falling score."""

    boxes: Float32s  # (n, 4) corners x1, y1, x2, y2 in pixels of the picture, not clipped to it
    scores: Float32s  # (n,)
    labels: Int64s  # (n,) index of the class

    def __len__(self) -> int:
        return len(self.scores)


def detections(
    cls: Float32s,
    reg: Float32s,
    obj: Float32s,
    scale_factor: Float32s,
    *,
    score_threshold: float = 0.01,
    nms_iou: float = 0.65,
) -> Detections:
    """What the raw logits `cls` (1, classes, h, w), `reg` (1, 4, h, w) and `obj` (1, 1, h, w) say is in the picture.

    `scale_factor` (4,) is that of `preprocess.fill`. Each cell gives one box at most, of its best class, kept if its
    score reaches `score_threshold`. A box that is not finite (the network overflowed) is no detection.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        is_object = _sigmoid(obj.reshape(-1))
        # A class probability is at most 1, so a cell whose objectness is below the threshold cannot pass.
        cells = np.flatnonzero(is_object >= score_threshold)
        logits = np.ascontiguousarray(cls.reshape(cls.shape[1], -1).T[cells])  # (n, classes)
        labels = logits.argmax(axis=1)
        scores = _sigmoid(logits[np.arange(len(cells)), labels]) * is_object[cells]
        passed = np.flatnonzero(scores >= score_threshold)
        passed = passed[np.argsort(-scores[passed], kind="stable")]
        cells = cells[passed]
        boxes = _boxes(reg.reshape(4, -1)[:, cells], cells, cls.shape[-1]) / scale_factor
        finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        boxes, passed = boxes[finite], passed[finite]
    scores, labels = scores[passed], labels[passed]
    kept = unsuppressed(_apart(boxes, labels), nms_iou)
    return Detections(boxes[kept], scores[kept], labels[kept].astype(np.int64))


def _sigmoid(logits: Float32s) -> Float32s:
    return np.float32(1) / (np.float32(1) + np.exp(-logits))


def _boxes(offsets: Float32s, cells: Int64s, columns: int) -> Float32s:
    """Corners (n, 4) in network pixels from the cells' offsets (4, n); a prior is a cell's upper left corner."""
    dx, dy, dw, dh = offsets
    stride = np.float32(STRIDE_PX)
    row, column = np.divmod(cells, columns)
    cx = dx * stride + (column * STRIDE_PX).astype(np.float32)
    cy = dy * stride + (row * STRIDE_PX).astype(np.float32)
    half_w = np.exp(dw) * stride / 2
    half_h = np.exp(dh) * stride / 2
    return np.stack((cx - half_w, cy - half_h, cx + half_w, cy + half_h), axis=1)


def _apart(boxes: Float32s, labels: Int64s) -> Float32s:
    """Boxes (n, 4) shifted so that those of different classes do not meet (as mmcv does it, in float32).

    Boxes that reach below zero by more than 1 px could still meet those of the class before.
    """
    if not len(boxes):
        return boxes
    shift: Float32s = labels.astype(np.float32) * (boxes.max() + np.float32(1))
    return boxes + shift[:, None]


def unsuppressed(boxes: Float32s, iou: float) -> Int64s:
    """Indices, rising, of the boxes (n, 4; by falling score) that no better kept box overlaps by more than `iou`."""
    corners = np.ascontiguousarray(boxes.T)
    with np.errstate(invalid="ignore"):  # boxes without area: 0 / 0 is no overlap
        order, ordered, count = _neighbours(corners, iou)
        # Looking a pair up costs some ten times what it costs in a full table.
        if 20 * count.sum() > len(boxes) ** 2:
            return _unsuppressed_in_heaps(corners, iou)
        better, worse = _overlaps(order, ordered, count, iou)
    alive = np.ones(len(boxes), np.bool_)
    if len(better):
        by_better = np.argsort(better, kind="stable")
        better, worse = better[by_better], worse[by_better]
        first = np.flatnonzero(np.diff(better, prepend=-1))
        ends = (*first[1:].tolist(), len(better))
        for box, start, end in zip(better[first].tolist(), first.tolist(), ends, strict=True):
            if alive[box]:
                alive[worse[start:end]] = False
    return np.flatnonzero(alive)


def _unsuppressed_in_heaps(corners: Float32s, iou: float) -> Int64s:
    """The same by full tables of the next best boxes against all that are left: for boxes that lie on one another."""
    kept, rest = [np.empty(0, np.int64)], np.arange(corners.shape[1])
    while len(rest):
        block, rest = rest[:_BEST], rest[_BEST:]
        hits = np.triu(_iou(corners[:, block, None], corners[:, None, block]) > np.float32(iou), 1)
        alive = np.ones(len(block), np.bool_)
        for k in np.flatnonzero(hits.any(axis=1)).tolist():
            if alive[k]:
                alive &= ~hits[k]
        kept.append(block[alive])
        suppressed = _iou(corners[:, kept[-1], None], corners[:, None, rest]) > np.float32(iou)
        rest = rest[~suppressed.any(axis=0)]
    return np.concatenate(kept)


def _iou(a: Float32s, b: Float32s) -> Float32s:
    """Intersection over union of boxes given as corners (4, ...), for shapes that broadcast."""
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    common: Float32s = np.maximum(width, 0) * np.maximum(height, 0)
    union: Float32s = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union


def _neighbours(corners: Float32s, iou: float) -> tuple[Int64s, Float32s, Int64s]:
    """Order by left edge, the corners in that order, and for each how many of those that follow may overlap by `iou`.

    An intersection over union > t needs an overlap wider than t times the width of either box, so the left edges are
    less than (1 - t) widths apart.
    """
    order = np.argsort(corners[0], kind="stable")
    ordered = corners[:, order]
    left = ordered[0].astype(np.float64)
    # 1e-4 of a width is far above what float32 rounding can move an intersection over union.
    reach = left + (1.0001 - iou) * (ordered[2] - ordered[0])
    count = np.searchsorted(left, reach, side="right") - np.arange(1, len(left) + 1)
    return order, ordered, np.maximum(count, 0)


def _overlaps(order: Int64s, ordered: Float32s, count: Int64s, iou: float) -> tuple[Int64s, Int64s]:
    """Every pair of neighbours with an intersection over union > `iou`, as (lower index, higher index)."""
    _, top, _, bottom = ordered
    total = np.cumsum(count)
    a, b = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    start = 0
    while start < len(count):
        done = int(total[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(total, done + _BLOCK, side="right")))
        n = count[start:end]
        one = np.repeat(np.arange(start, end), n)
        # The neighbours of box k are k + 1, k + 2, ...
        other = np.arange(len(one)) - np.repeat(np.cumsum(n) - n, n) + one + 1
        near = np.minimum(bottom[one], bottom[other]) > np.maximum(top[one], top[other])
        one, other = one[near], other[near]
        hit = _iou(ordered[:, one], ordered[:, other]) > np.float32(iou)
        a.append(order[one[hit]])
        b.append(order[other[hit]])
        start = end
    first, second = np.concatenate(a), np.concatenate(b)
    return np.minimum(first, second), np.maximum(first, second)
