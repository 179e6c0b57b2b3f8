"""Milliseconds per picture around the network: preprocessing and postprocessing, ours beside the straightforward way.

`python tests/benchmarks/bench_postprocess.py`: both ways on the same data, taking turns, medians and their ratio.
The straightforward way is that of the official pipeline (float picture, then normalise, then transpose) and of a
numpy port of its head: decode every cell, then suppress box by box; `cv2` suppresses with cv2.dnn.NMSBoxesBatched.
"""

import argparse
import os
import time
from pathlib import Path

import cv2
import numpy as np

from edgewatt.workloads.femtodet.detections import detections
from edgewatt.workloads.femtodet.preprocess import MEAN_RGB, STD, fill, fitted_size

ROOT = Path(__file__).resolve().parent.parent.parent
ONE = np.ones(4, np.float32)


def plain_input(picture, size_px):
    """The picture as the network's input, step by step as mmdet does it."""
    w, h = fitted_size(picture.shape[1], picture.shape[0], size_px)
    padded = np.full((size_px, size_px, 3), 114, np.uint8)
    padded[:h, :w] = cv2.resize(picture, (w, h), interpolation=cv2.INTER_LINEAR)
    image = cv2.cvtColor(padded.astype(np.float32), cv2.COLOR_BGR2RGB)
    image = cv2.multiply(cv2.subtract(image, MEAN_RGB.astype(np.float64)), np.full(3, 1 / float(STD)))
    return np.ascontiguousarray(image.transpose(2, 0, 1))[None]


def decoded(cls, reg, obj):
    """Boxes, scores and labels of every cell above the threshold, by falling score."""
    rows, columns = cls.shape[2:]
    y, x = np.divmod(np.arange(rows * columns), columns)
    probability = 1 / (1 + np.exp(-cls[0].reshape(cls.shape[1], -1)))
    score = probability.max(axis=0) / (1 + np.exp(-obj.ravel()))
    label = probability.argmax(axis=0)
    dx, dy, dw, dh = reg[0].reshape(4, -1)
    cx, cy, w, h = (dx + x) * 16, (dy + y) * 16, np.exp(dw) * 16, np.exp(dh) * 16
    boxes = np.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), axis=1)
    order = np.argsort(-score)
    order = order[score[order] >= 0.01]
    return boxes[order], score[order], label[order]


def loop_boxes(cls, reg, obj):
    """Suppression box by box, each against all that follow: the usual numpy code."""
    boxes, score, label = decoded(cls, reg, obj)
    shifted = boxes + (label * (boxes.max() + 1))[:, None]
    area = (shifted[:, 2:] - shifted[:, :2]).prod(axis=1)
    rest, kept = np.arange(len(boxes)), []
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(best)
        low = np.maximum(shifted[best, :2], shifted[rest, :2])
        high = np.minimum(shifted[best, 2:], shifted[rest, 2:])
        common = (high - low).clip(0).prod(axis=1)
        rest = rest[common / (area[best] + area[rest] - common) <= 0.65]
    return boxes[kept], score[kept], label[kept]


def cv2_boxes(cls, reg, obj):
    boxes, score, label = decoded(cls, reg, obj)
    sized = np.hstack((boxes[:, :2], boxes[:, 2:] - boxes[:, :2])).astype(np.float64)
    kept = np.asarray(cv2.dnn.NMSBoxesBatched(sized, score, label.astype(np.int32), 0.0, 0.65), np.int64)
    return boxes[kept], score[kept], label[kept]


def medians_ms(ways, times):
    """Median time of each way in ms; they take turns."""
    taken = [[] for _ in ways]
    for _ in range(times):
        for way, each in zip(ways, taken, strict=True):
            start = time.perf_counter()
            way()
            each.append(time.perf_counter() - start)
    return [1e3 * float(np.median(t)) for t in taken]


def all_cells(classes, size_px, seed=0):
    """Raw maps in which every cell passes the threshold, boxes of 10 to 60 px, classes at random."""
    draw, cells = np.random.default_rng(seed), size_px // 16
    shape = (1, classes, cells, cells), (1, 4, cells, cells), (1, 1, cells, cells)
    cls, reg, obj = (draw.normal(0, 0.5, s).astype(np.float32) for s in shape)
    reg[:, 2:] += 0.5
    return cls * 2, reg, obj + 5


def cases(shared):
    with np.load(ROOT / "tests/data/femtodet_voc_maps.npz") as golden:
        yield "golden maps, 20 classes, 416", (golden["cls"], golden["reg"], golden["obj"])
    weights = shared / "data/golden/femtodet/coco_large/outputs_train.safetensors"
    if weights.exists():
        from safetensors.numpy import load_file

        maps = load_file(weights)
        yield "golden maps, 80 classes, 416", (maps["cls.0"], maps["reg.0"], maps["obj.0"])
    yield "every cell passes, 20 classes, 416", all_cells(20, 416)
    yield "every cell passes, 80 classes, 640", all_cells(80, 640)
    cls, reg, obj = all_cells(80, 640)
    cls[:, 1:] -= 20
    yield "every cell passes as one class, 640", (cls, reg, obj)
    reg[:, 2:] += 3
    yield "the same in heaps of large boxes", (cls, reg, obj)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=50)
    times = parser.parse_args().times
    cv2.setNumThreads(1)
    draw = np.random.default_rng(0)
    print(f"{'preprocess (decoded picture -> input)':42} {'ours ms':>8} {'plain':>8} {'ratio':>7}")
    for width_px, height_px, size_px in ((640, 480, 416), (500, 375, 320), (1280, 720, 640)):
        picture = draw.integers(0, 256, (height_px, width_px, 3), np.uint8)
        into = np.zeros((1, 3, size_px, size_px), np.float32)
        fill(into, picture)
        assert np.abs(into - plain_input(picture, size_px)).max() < 1e-5
        ours, plain = medians_ms((lambda: fill(into, picture), lambda: plain_input(picture, size_px)), times)  # noqa: B023
        print(f"{f'{width_px}x{height_px} -> {size_px}':42} {ours:8.3f} {plain:8.3f} {plain / ours:6.1f}x")

    print(
        f"\n{'postprocess (maps -> boxes)':42} {'ours ms':>8} {'loop':>8} {'ratio':>7} {'cv2':>8} {'ratio':>7}  found"
    )
    shared = Path(os.environ.get("EDGEWATT_SHARED", ROOT.parent / "shared"))
    for name, maps in cases(shared):
        found = detections(*maps, ONE)
        assert len(found) == len(loop_boxes(*maps)[0])
        ways = (lambda: detections(*maps, ONE), lambda: loop_boxes(*maps), lambda: cv2_boxes(*maps))  # noqa: B023
        ours, loop, by_cv2 = medians_ms(ways, times)
        ratios = f"{loop:8.3f} {loop / ours:6.1f}x {by_cv2:8.3f} {by_cv2 / ours:6.1f}x"
        print(f"{name:42} {ours:8.3f} {ratios}  {len(found)}")


if __name__ == "__main__":
    main()
