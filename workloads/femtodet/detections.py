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
# More pairs than this are a heap, from which the best few boxes are taken one by one first.
_HEAP = 1 << 16
_PEEL = 64


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
    columns = cls.shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        is_object = _sigmoid(obj.reshape(-1))
        # A class probability is at most 1, so a cell whose objectness is below the threshold cannot pass.
        cells = np.flatnonzero(is_object >= score_threshold)
        logits = np.ascontiguousarray(cls.reshape(cls.shape[1], -1).T[cells])  # (n, classes)
        labels = logits.argmax(axis=1)
        scores = _sigmoid(logits[np.arange(len(cells)), labels]) * is_object[cells]
        boxes = _boxes(reg.reshape(4, -1)[:, cells], cells, columns) / scale_factor
    keep = np.flatnonzero((scores >= score_threshold) & np.isfinite(boxes).all(axis=1))
    keep = keep[np.argsort(-scores[keep], kind="stable")]
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
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
        best, rest = _peeled(corners, iou)
        better, worse = _overlaps(corners[:, rest], iou)
    alive = np.ones(len(rest), np.bool_)
    if len(better):
        order = np.argsort(better, kind="stable")
        better, worse = better[order], worse[order]
        first = np.flatnonzero(np.diff(better, prepend=-1))
        ends = (*first[1:].tolist(), len(better))
        for box, start, end in zip(better[first].tolist(), first.tolist(), ends, strict=True):
            if alive[box]:
                alive[worse[start:end]] = False
    return np.concatenate((best, rest[alive]))


def _iou(a: Float32s, b: Float32s) -> Float32s:
    """Intersection over union of boxes given as corners (4, n) or (4, 1)."""
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    common: Float32s = np.maximum(width, 0) * np.maximum(height, 0)
    union: Float32s = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union


def _peeled(corners: Float32s, iou: float) -> tuple[Int64s, Int64s]:
    """The best boxes kept, and what they leave over: only where boxes lie in heaps, which `_overlaps` is slow at."""
    best: list[int] = []
    rest = np.arange(corners.shape[1])
    if _neighbours(corners, iou)[2].sum() > _HEAP:
        while len(best) < _PEEL and len(rest):
            best.append(int(rest[0]))
            others = corners[:, rest[1:]]
            rest = rest[1:][~(_iou(corners[:, rest[:1]], others) > np.float32(iou))]
    return np.array(best, np.int64), rest


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


def _overlaps(corners: Float32s, iou: float) -> tuple[Int64s, Int64s]:
    """Every pair of boxes with an intersection over union > `iou`, as (lower index, higher index)."""
    order, ordered, count = _neighbours(corners, iou)
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
