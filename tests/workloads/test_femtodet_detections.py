"""Raw maps become boxes, scores and labels exactly as in the official head."""

import math
from pathlib import Path

import numpy as np
import pytest

from edgewatt.workloads.femtodet.detections import detections, unsuppressed

ONE = np.ones(4, np.float32)
SMALL_GOLDEN = Path(__file__).parent.parent / "data" / "femtodet_voc_maps.npz"


def maps(classes=3, cells=4):
    """Raw maps in which no cell holds anything."""
    cls = np.full((1, classes, cells, cells), -10, np.float32)
    return cls, np.zeros((1, 4, cells, cells), np.float32), np.full((1, 1, cells, cells), -10, np.float32)


def logit(p):
    return math.log(p / (1 - p))


def one_by_one(boxes, iou):
    """The plain greedy suppression, box by box in Python, in float32 as the official kernel."""
    kept = []
    for i, box in enumerate(boxes):
        for k in kept:
            other = boxes[k]
            width = max(np.float32(0), min(box[2], other[2]) - max(box[0], other[0]))
            height = max(np.float32(0), min(box[3], other[3]) - max(box[1], other[1]))
            common = width * height
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (other, box)]
            union = areas[0] + areas[1] - common
            if union > 0 and common / union > np.float32(iou):
                break
        else:
            kept.append(i)
    return kept


def test_box_is_decoded_from_the_cell_s_upper_left_corner():
    cls, reg, obj = maps()
    cls[0, 2, 1, 3], obj[0, 0, 1, 3] = logit(0.8), logit(0.5)
    reg[0, :, 1, 3] = 0.5, 0.25, math.log(2), math.log(4)
    found = detections(cls, reg, obj, ONE)
    # Centre (48 + 8, 16 + 4), width 32, height 64.
    np.testing.assert_allclose(found.boxes, [[40, -12, 72, 52]], atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.4], atol=1e-6)
    assert found.labels.tolist() == [2]


def test_corners_are_in_pixels_of_the_picture():
    cls, reg, obj = maps()
    cls[0, 0, 2, 1] = obj[0, 0, 2, 1] = 5
    found = detections(cls, reg, obj, np.array((0.5, 0.25, 0.5, 0.25), np.float32))
    np.testing.assert_allclose(found.boxes, [[(16 - 8) * 2, (32 - 8) * 4, (16 + 8) * 2, (32 + 8) * 4]], atol=1e-4)


def test_only_the_best_class_of_a_cell_counts():
    cls, reg, obj = maps()
    cls[0, :, 0, 0], obj[0, 0, 0, 0] = (2.0, 3.0, 2.9), 5
    assert detections(cls, reg, obj, ONE).labels.tolist() == [1]


@pytest.mark.parametrize(("threshold", "kept"), [(0.249, 1), (0.25, 1), (0.251, 0)])
def test_score_at_the_threshold_is_kept(threshold, kept):
    cls, reg, obj = maps()
    cls[0, 0, 0, 0] = obj[0, 0, 0, 0] = 0.0  # 0.5 * 0.5
    assert len(detections(cls, reg, obj, ONE, score_threshold=threshold)) == kept


def test_nothing_found_is_empty_and_well_shaped():
    found = detections(*maps(), ONE)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.labels.dtype == np.int64


def two_boxes(overlap_width):
    """Two 100 x 100 boxes side by side that overlap by a width; IoU = w / (200 - w)."""
    return np.array([[0, 0, 100, 100], [100 - overlap_width, 0, 200 - overlap_width, 100]], np.float32)


@pytest.mark.parametrize(("overlap_width", "kept"), [(78, [0, 1]), (80, [0])])
def test_overlap_above_the_limit_is_dropped(overlap_width, kept):
    """w / (200 - w) is 0.639 at 78 px and 0.667 at 80 px."""
    assert unsuppressed(two_boxes(overlap_width), 0.65).tolist() == kept


def test_overlap_of_exactly_the_limit_stays():
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)  # IoU 1 / 2, exact in binary
    assert unsuppressed(boxes, 0.5).tolist() == [0, 1]
    assert unsuppressed(boxes, 0.4999).tolist() == [0]


def test_suppressed_box_suppresses_nothing():
    boxes = np.array([[0, 0, 100, 10], [15, 0, 115, 10], [30, 0, 130, 10]], np.float32)
    # Neighbours overlap by 85 / 115 = 0.74, the outer two by 70 / 130 = 0.54.
    assert unsuppressed(boxes, 0.65).tolist() == [0, 2]


def test_same_place_but_other_class_stays():
    cls, reg, obj = maps()
    reg[0, 2:] = 3  # boxes of 321 px, nearly the same for neighbouring cells
    cls[0, 0, 1, 1], cls[0, 1, 1, 2], cls[0, 0, 2, 1] = 5, 4, 3
    obj[0, 0, 1, 1] = obj[0, 0, 1, 2] = obj[0, 0, 2, 1] = 5
    assert detections(cls, reg, obj, ONE).labels.tolist() == [0, 1]


def test_equal_scores_keep_the_order_of_the_cells():
    cls, reg, obj = maps(cells=6)
    cls[0, 0], obj[0, 0], reg[0, 2:] = 1, 1, -1
    found = detections(cls, reg, obj, ONE)
    assert len(found) == 36
    x, y = (found.boxes[:, :2] + found.boxes[:, 2:]).T / 2
    assert np.array_equal(np.lexsort((x.round(), y.round())), np.arange(36))


def test_overflow_and_nan_are_no_detections():
    cls, reg, obj = maps()
    cls[0, 0, 0], obj[0, 0, 0] = 9, 9
    reg[0, 2, 0, 0], reg[0, 0, 0, 1], cls[0, 0, 0, 2] = 1000, np.nan, np.nan
    found = detections(cls, reg, obj, ONE)
    np.testing.assert_allclose(found.boxes, [[40, -8, 56, 8]], atol=1e-4)


@pytest.mark.parametrize("spread", [5, 40, 400])
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.65, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_that_of_the_plain_loop(spread, iou, seed):
    """From heaps (a spread of 5 px) to boxes that hardly touch, whole numbers included, so that ties occur."""
    draw = np.random.default_rng(seed)
    corner = draw.uniform(-spread, spread, (120, 2)).round(1 - seed)
    boxes = np.hstack((corner, corner + draw.uniform(0, 60, (120, 2)).round(1 - seed))).astype(np.float32)
    assert unsuppressed(boxes, iou).tolist() == one_by_one(boxes, iou)


def test_heap_larger_than_a_block_is_suppressed_like_a_small_one():
    """700 boxes at one place make a quarter of a million pairs."""
    draw = np.random.default_rng(0)
    boxes = (np.array([0, 0, 300, 300]) + draw.normal(0, 12, (700, 4))).astype(np.float32)
    assert unsuppressed(boxes, 0.65).tolist() == one_by_one(boxes, 0.65)
    flat = np.hstack((boxes[:, :2], boxes[:, :2] + (600, 2))).astype(np.float32)
    flat[:, 3] += draw.uniform(0, 5, 700).astype(np.float32)
    assert unsuppressed(flat, 0.65).tolist() == one_by_one(flat, 0.65)


def assert_same(found, boxes_scores, labels):
    """The golden data's tolerances: 0.02 px, 1e-4 of a score, labels exactly; compared as sets."""
    assert len(found) == len(labels)
    left = list(range(len(labels)))
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        near = [
            k
            for k in left
            if labels[k] == label
            and abs(boxes_scores[k, :4] - box).max() < 0.02
            and abs(boxes_scores[k, 4] - score) < 1e-4
        ]
        assert near, (box, score, label)
        left.remove(near[0])


def test_small_golden_maps_give_the_official_detections():
    """Raw maps of the official model (random weights, 20 classes, 26 x 26 cells) and what its head made of them."""
    with np.load(SMALL_GOLDEN) as golden:
        raw = golden["cls"], golden["reg"], golden["obj"]
        assert_same(detections(*raw, ONE), golden["dets_net"], golden["labels_net"])
        assert_same(detections(*raw, golden["scale"]), golden["dets_orig"], golden["labels_orig"])


@pytest.mark.needs_shared
@pytest.mark.parametrize("variant", ["voc", "coco_large"])
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_golden_maps_give_the_official_detections(shared, variant, form):
    from safetensors.numpy import load_file

    golden = load_file(shared / "data/golden/femtodet" / variant / f"outputs_{form}.safetensors")
    raw = golden["cls.0"], golden["reg.0"], golden["obj.0"]
    scale = np.full(4, 416 / 500, np.float32)
    assert_same(detections(*raw, ONE), golden["dets_net"], golden["labels_net"])
    assert_same(detections(*raw, scale), golden["dets_orig"], golden["labels_orig"])


@pytest.mark.needs_shared
@pytest.mark.parametrize("variant", ["voc", "coco_large"])
def test_every_cell_is_decoded_as_officially(shared, variant):
    """Without a threshold and without suppression, every one of the 676 cells comes out."""
    from safetensors.numpy import load_file

    golden = load_file(shared / "data/golden/femtodet" / variant / "outputs_train.safetensors")
    raw = golden["cls.0"], golden["reg.0"], golden["obj.0"]
    found = detections(*raw, ONE, score_threshold=0.0, nms_iou=1.0)
    score = golden["cls_prob"][0].max(axis=1) * golden["obj_prob"][0]
    order = np.argsort(-score, kind="stable")
    np.testing.assert_allclose(found.scores, score[order], atol=1e-4)
    by_place = np.lexsort(found.boxes.round(1).T), np.lexsort(golden["decoded_boxes"][0].round(1).T)
    np.testing.assert_allclose(found.boxes[by_place[0]], golden["decoded_boxes"][0][by_place[1]], atol=0.02)
