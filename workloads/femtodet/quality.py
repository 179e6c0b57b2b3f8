"""Average precision of detections against ground truth: COCO's by pycocotools, PASCAL VOC's by an evaluator of our own.

Ground truth and results are in COCO's form; every annotation has `area` and `iscrowd`, and may have `difficult`.
Sources: pycocotools' COCOeval; the VOC development kit's VOCevaldet.m (11-point rule until 2009, area rule from 2010).
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import Facts, Floats, Ints, Measurement

Rule = Literal["101-point", "11-point", "area"]
Bools = npt.NDArray[np.bool_]
Reals = npt.NDArray[np.floating[Any]]

METRICS = ("ap", "ap50", "voc_ap50_11point", "voc_ap50_area")
LIMITS = (100, 300, 1000)  # detections of one class in one picture, the official repository's `maxDets`
REPLICATES = 500  # of the bootstrap


@dataclass(frozen=True)
class Matches:
    """How the detections of one class fared over all pictures, at `t` overlap thresholds."""

    picture: Ints  # (n,) index of each detection's picture, by falling score
    is_true: Bools  # (t, n) it found an object that no better detection had found
    is_void: Bools  # (t, n) it found a crowd or a difficult object, which is neither right nor wrong
    objects: Ints  # (pictures,) how many objects there were to be found


@dataclass(frozen=True)
class Coco:
    """What pycocotools makes of the results, and the matches it made, per class."""

    ap: float  # mean over IoU 0.50, 0.55, ... 0.95, at most 100 detections of a class in a picture
    ap50: float  # IoU 0.50, at most 1000
    ap_by_class: dict[int, tuple[float, float]]  # category id -> (ap, ap50); NaN where there is no object
    ap_matches: tuple[Matches, ...]
    ap50_matches: tuple[Matches, ...]


def measurements(truth: Facts, results: Sequence[Facts], seed: int = 0) -> tuple[Measurement, ...]:
    """`ap`, `ap50`, `voc_ap50_11point` and `voc_ap50_area`, each 0..1; none if there is no object to be found.

    Their uncertainty is that of the choice of pictures: half of the 95 % interval of a bootstrap over pictures.
    """
    if not any(not a["iscrowd"] for a in truth["annotations"]):
        return ()
    by_coco, by_voc = coco(truth, results), voc_matches(truth, results)
    precision = "pycocotools, mean over classes, IoU {}, at most {} detections of a class in a picture"
    voc = "PASCAL VOC, IoU 0.50, {}; difficult objects and crowds not judged; boxes in whole pixels (x2 - x1 + 1)"
    found: tuple[tuple[str, float, tuple[Matches, ...], Rule, str], ...] = (
        ("ap", by_coco.ap, by_coco.ap_matches, "101-point", precision.format("0.50:0.95", LIMITS[0])),
        ("ap50", by_coco.ap50, by_coco.ap50_matches, "101-point", precision.format("0.50", LIMITS[-1])),
        ("voc_ap50_11point", mean_ap(by_voc, "11-point"), by_voc, "11-point", voc.format("11-point rule (until 2009)")),
        ("voc_ap50_area", mean_ap(by_voc, "area"), by_voc, "area", voc.format("area rule (from 2010)")),
    )
    pictures = len(truth["images"])
    return tuple(
        Measurement(
            name, value, _half_width(matches, rule, seed), "1", "", pictures, f"{method}; bootstrap over pictures"
        )
        for name, value, matches, rule, method in found
        if not np.isnan(value)  # every object is difficult: VOC has nothing to judge
    )


def coco(truth: Facts, results: Sequence[Facts]) -> Coco:
    """COCO's average precisions, as pycocotools computes them. ValueError if there is no object to be found."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        wanted, got = COCO(), COCO()
        # pycocotools writes into what it is given.
        wanted.dataset = {**truth, "annotations": [dict(a) for a in truth["annotations"]]}
        wanted.createIndex()
        if results:
            got = wanted.loadRes([dict(r) for r in results])
        else:
            got.dataset = {**wanted.dataset, "annotations": []}
            got.createIndex()
        judge: Any = COCOeval(wanted, got, "bbox")
        judge.params.maxDets = list(LIMITS)
        # Objects of every size only: small, medium and large would cost as much again, each.
        judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], judge.params.areaRngLbl[:1]
        judge.evaluate()
        judge.accumulate()
    # (thresholds, recalls, classes, 1 size range, limits); -1 where a class has no object
    precision = judge.eval["precision"][:, :, :, 0, :]
    strict, loose = precision[:, :, :, 0], precision[0, :, :, -1]
    if not (strict > -1).any():
        raise ValueError("there is no object in the ground truth, so no average precision")
    by_class = {
        category: (_present_mean(strict[:, :, k]), _present_mean(loose[:, k]))
        for k, category in enumerate(judge.params.catIds)
    }
    ap_matches, ap50_matches = _coco_matches(judge, LIMITS[0], 10), _coco_matches(judge, LIMITS[-1], 1)
    return Coco(_present_mean(strict), _present_mean(loose), by_class, ap_matches, ap50_matches)


def _present_mean(precision: Floats) -> float:
    present = precision[precision > -1]
    return float(present.mean()) if present.size else float("nan")


def _coco_matches(judge: Any, limit: int, thresholds: int) -> tuple[Matches, ...]:
    """The matches of an evaluated COCOeval, at its first `thresholds` overlaps."""
    pictures = len(judge.params.imgIds)
    matches = []
    for k in range(len(judge.params.catIds)):
        one_class = enumerate(judge.evalImgs[k * pictures : (k + 1) * pictures])
        seen = [(p, e) for p, e in one_class if e is not None]
        objects = np.zeros(pictures, np.int64)
        for p, e in seen:
            objects[p] = np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
        if not objects.any():
            continue
        scores = np.concatenate([np.asarray(e["dtScores"][:limit], np.float64) for _, e in seen])
        order = np.argsort(-scores, kind="stable")
        picture = np.concatenate([np.full(len(e["dtScores"][:limit]), p) for p, e in seen])
        matched = np.concatenate([e["dtMatches"][:thresholds, :limit] for _, e in seen], axis=1) > 0
        void = np.concatenate([e["dtIgnore"][:thresholds, :limit] for _, e in seen], axis=1).astype(np.bool_)
        matches.append(Matches(picture[order], (matched & ~void)[:, order], void[:, order], objects))
    return tuple(matches)


def voc_matches(
    truth: Facts, results: Sequence[Facts], *, iou: float = 0.5, inclusive: bool = True, judge_difficult: bool = False
) -> tuple[Matches, ...]:
    """PASCAL's matches at one overlap threshold, of every class that has an object.

    A detection is compared with the object of its class that it overlaps most, whether that was found before or not:
    found before, it is wrong. With `inclusive` a box from x1 to x2 is x2 - x1 + 1 pixels wide, as in the development
    kit; `judge_difficult` counts difficult objects as ordinary ones, which the development kit does not.
    """
    images = [image["id"] for image in truth["images"]]
    objects: dict[tuple[int, int], list[Facts]] = defaultdict(list)
    for a in truth["annotations"]:
        objects[a["category_id"], a["image_id"]].append(a)
    found: dict[tuple[int, int], list[Facts]] = defaultdict(list)
    for r in results:
        found[r["category_id"], r["image_id"]].append(r)
    matches = []
    for category in sorted({category for category, _ in objects}):
        count = np.zeros(len(images), np.int64)
        scores, picture, true, void = [], [], [], []
        for p, image in enumerate(images):
            there = objects.get((category, image), [])
            skip = np.array(
                [bool(a["iscrowd"]) or (bool(a.get("difficult")) and not judge_difficult) for a in there], np.bool_
            )
            count[p] = len(there) - skip.sum()
            here = sorted(found.get((category, image), []), key=lambda r: -r["score"])
            scores += [r["score"] for r in here]
            picture += [p] * len(here)
            is_true, is_void = _voc_picture(_corners(here), _corners(there), skip, iou, float(inclusive))
            true.append(is_true)
            void.append(is_void)
        if count.any():
            order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
            matches.append(
                Matches(
                    np.asarray(picture, np.int64)[order],
                    np.concatenate(true)[None, order],
                    np.concatenate(void)[None, order],
                    count,
                )
            )
    return tuple(matches)


def _corners(annotations: Sequence[Facts]) -> Floats:
    """Boxes [x, y, width, height] as corners (n, 4)."""
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _voc_picture(found: Floats, there: Floats, skip: Bools, iou: float, extra: float) -> tuple[Bools, Bools]:
    """Which detections (n, 4; by falling score) of one class in one picture are true, and which are void."""
    is_true, is_void = np.zeros(len(found), np.bool_), np.zeros(len(found), np.bool_)
    if len(found) and len(there):
        low = np.maximum(found[:, None, :2], there[None, :, :2])
        high = np.minimum(found[:, None, 2:], there[None, :, 2:])
        common = np.maximum(high - low + extra, 0).prod(axis=2)
        area = [(boxes[:, 2:] - boxes[:, :2] + extra).prod(axis=1) for boxes in (found, there)]
        overlap = common / (area[0][:, None] + area[1] - common)
        best = overlap.argmax(axis=1)
        taken = np.zeros(len(there), np.bool_)
        for d in np.flatnonzero(overlap[np.arange(len(found)), best] >= iou):
            if skip[best[d]]:
                is_void[d] = True
            elif not taken[best[d]]:
                is_true[d] = taken[best[d]] = True
    return is_true, is_void


def mean_ap(matches: Sequence[Matches], rule: Rule) -> float:
    """Mean over classes and thresholds of the average precision (0..1); NaN if there is no class."""
    if not matches:
        return float("nan")
    pictures = np.ones((1, len(matches[0].objects)))
    return float(np.mean([average_precision(m, rule, pictures)[0] for m in matches]))


def average_precision(matches: Matches, rule: Rule, weights: Reals) -> Floats:
    """Average precision (b,) of one class, mean over its thresholds.

    Picture p is counted `weights[:, p]` (b, pictures) times. NaN where no object is left.
    Precision at a recall is the best precision at that recall or any higher.
    """
    wanted = (weights @ matches.objects.astype(weights.dtype))[:, None]
    hits = matches.is_true.any(axis=0)
    last = int(np.flatnonzero(hits)[-1]) + 1 if hits.any() else 0  # nothing after the last hit changes anything
    each = weights[:, matches.picture[:last]]
    seen = each.cumsum(axis=1)
    values = np.zeros(len(weights))
    with np.errstate(divide="ignore", invalid="ignore"):
        for is_true, is_void in zip(matches.is_true[:, :last], matches.is_void[:, :last], strict=True):
            hit, void = np.flatnonzero(is_true), np.flatnonzero(is_void)
            if not len(hit):
                continue
            true, judged = each[:, hit].cumsum(axis=1), seen[:, hit]
            if len(void):
                passed = np.pad(each[:, void].cumsum(axis=1), ((0, 0), (1, 0)))
                judged = judged - passed[:, np.searchsorted(void, hit)]
            precision = np.where(judged > 0, true / judged, 0)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            values += (precision * _shares(true / wanted.astype(np.float64), rule)).sum(axis=1)
    values /= len(matches.is_true)
    return np.where(wanted[:, 0] > 0, values, np.nan)


def _shares(recall: Reals, rule: Rule) -> Floats:
    """How much each step of a rising recall (b, n) weighs in the average precision."""
    if rule == "area":
        return np.diff(recall, axis=1, prepend=0)
    # The usual evaluators compare with these very floats: a recall of 3/10 does not reach 0.30000000000000004.
    points = np.linspace(0, 1, {"11-point": 11, "101-point": 101}[rule])
    reached = np.searchsorted(points, recall, side="right")
    return np.diff(reached, axis=1, prepend=0) / len(points)


def _half_width(matches: Sequence[Matches], rule: Rule, seed: int) -> float | None:
    """Half the 95 % interval of the mean over bootstrap samples of the pictures; None where there is one picture."""
    pictures = len(matches[0].objects)
    if pictures < 2:
        return None
    draws = np.random.default_rng(seed).integers(0, pictures, (REPLICATES, pictures))
    weights = np.zeros((REPLICATES, pictures), np.float32)
    np.add.at(weights, (np.arange(REPLICATES)[:, None], draws), 1)
    values = np.stack([average_precision(m, rule, weights) for m in matches])
    present = ~np.isnan(values)
    means = np.where(present, values, 0).sum(axis=0)[present.any(axis=0)] / present.sum(axis=0)[present.any(axis=0)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(high - low) / 2
