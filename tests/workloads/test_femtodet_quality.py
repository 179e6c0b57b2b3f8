"""Average precision against hand counts, pycocotools and golden values."""

import json

import numpy as np
import pytest

from edgewatt.workloads.femtodet import quality


def truth(*objects, pictures=2, classes=2):
    """COCO ground truth out of (picture, class, [x, y, w, h], extra fields)."""
    return {
        "images": [{"id": k, "file_name": f"{k}.jpg"} for k in range(1, pictures + 1)],
        "annotations": [
            {"id": k, "image_id": p, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, **extra}
            for k, (p, c, box, extra) in enumerate(objects, start=1)
        ],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)],
    }


def result(picture, category, box, score):
    return {"image_id": picture, "category_id": category, "bbox": box, "score": score}


A, B, C = [0, 0, 100, 100], [200, 0, 100, 100], [0, 200, 100, 100]
FAR = [400, 400, 50, 50]


def by_name(measurements):
    return {m.metric: m for m in measurements}


def values(ground_truth, results):
    return {m.metric: m.value for m in quality.measurements(ground_truth, results)}


def voc(ground_truth, results, rule="area", **options):
    return quality.mean_ap(quality.voc_matches(ground_truth, results, **options), rule)


def test_perfect_detections_have_an_ap_of_one():
    t = truth((1, 1, A, {}), (1, 2, B, {}), (2, 1, C, {}))
    r = [result(1, 1, A, 0.9), result(1, 2, B, 0.3), result(2, 1, C, 0.5)]
    assert values(t, r) == pytest.approx(dict.fromkeys(quality.METRICS, 1.0))


def test_no_detections_have_an_ap_of_zero():
    assert values(truth((1, 1, A, {})), []) == dict.fromkeys(quality.METRICS, 0.0)


def test_without_objects_there_is_no_ap():
    assert quality.measurements(truth(), [result(1, 1, A, 0.9)]) == ()
    assert quality.measurements(truth((1, 1, A, {"iscrowd": 1})), []) == ()


def test_difficult_objects_alone_leave_only_coco_s_ap():
    assert set(values(truth((1, 1, A, {"difficult": 1})), [])) == {"ap", "ap50"}


def test_wrong_detection_above_a_right_one_by_hand():
    """Wrong, right, right, of 2 objects: precision 1/2 at recall 1/2 and 2/3 at recall 1, the best at any recall."""
    t = truth((1, 1, A, {}), (1, 1, B, {}))
    r = [result(1, 1, FAR, 0.9), result(1, 1, A, 0.8), result(1, 1, B, 0.7)]
    assert values(t, r) == pytest.approx(dict.fromkeys(quality.METRICS, 2 / 3))


def test_right_then_wrong_by_hand():
    """One of 2 objects is found, first: precision 1 up to recall 1/2, 0 beyond."""
    t = truth((1, 1, A, {}), (1, 1, B, {}))
    r = [result(1, 1, A, 0.9), result(1, 1, FAR, 0.8)]
    assert values(t, r) == pytest.approx(
        {"ap": 51 / 101, "ap50": 51 / 101, "voc_ap50_11point": 6 / 11, "voc_ap50_area": 1 / 2}
    )


def test_second_detection_of_an_object_is_wrong():
    """Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    t = truth((1, 1, A, {}), (1, 1, B, {}))
    r = [result(1, 1, A, 0.9), result(1, 1, A, 0.8), result(1, 1, B, 0.7)]
    assert voc(t, r) == pytest.approx((1 + 2 / 3) / 2)


def test_difficult_object_is_neither_rewarded_nor_punished():
    t = truth((1, 1, A, {"difficult": 1}), (1, 1, B, {}))
    found, missed = result(1, 1, A, 0.9), result(1, 1, B, 0.5)
    assert voc(t, [found, found, missed]) == 1.0
    assert voc(t, [missed]) == 1.0
    # Counted as an ordinary object: found, found again (wrong), found: (1 + 2/3) / 2.
    assert voc(t, [found, found, missed], judge_difficult=True) == pytest.approx((1 + 2 / 3) / 2)


def test_crowd_is_neither_rewarded_nor_punished_by_either_rule():
    t = truth((1, 1, A, {"iscrowd": 1}), (1, 1, B, {}))
    r = [result(1, 1, A, 0.9), result(1, 1, B, 0.5)]
    assert values(t, r) == pytest.approx(dict.fromkeys(quality.METRICS, 1.0))


def test_overlap_of_a_half_counts_and_whole_pixels_are_counted_inclusively():
    """[0, 9] and [0, 19] share 10 of 20 pixels inclusively: exactly a half. As lengths, 9 of 19 is less."""
    t = truth((1, 1, [0, 0, 19, 0.5], {}))
    r = [result(1, 1, [0, 0, 9, 0.5], 0.9)]
    assert voc(t, r) == 1.0
    assert voc(t, r, inclusive=False) == 0.0


def test_detection_is_compared_with_the_object_it_overlaps_most():
    """Though a second object that it overlaps enough is still free: PASCAL's rule, unlike COCO's."""
    near = [10, 0, 100, 100]
    t = truth((1, 1, A, {}), (1, 1, near, {}))
    r = [result(1, 1, A, 0.9), result(1, 1, [1, 0, 100, 100], 0.8)]
    assert voc(t, r) == pytest.approx(1 / 2)
    assert quality.coco(t, r).ap50 == 1.0


def test_class_without_objects_does_not_count():
    t = truth((1, 1, A, {}), classes=3)
    r = [result(1, 1, A, 0.9), result(1, 3, B, 0.99)]
    assert values(t, r) == pytest.approx(dict.fromkeys(quality.METRICS, 1.0))


def test_ap_takes_100_and_ap50_takes_1000_detections_of_a_class_in_a_picture():
    """The only right detection is the 101st; then 1/101 of precision at every recall."""
    t = truth((1, 1, A, {}))
    r = [result(1, 1, FAR, 0.9 - k / 1000) for k in range(100)] + [result(1, 1, A, 0.1)]
    got = values(t, r)
    assert got["ap"] == 0.0
    assert got["ap50"] == pytest.approx(1 / 101)


def test_equal_scores_are_ranked_in_order_of_the_pictures():
    t = truth((2, 1, A, {}))
    r = [result(2, 1, A, 0.5), result(1, 1, A, 0.5)]
    assert voc(t, r) == pytest.approx(1 / 2)
    assert quality.coco(t, r).ap50 == pytest.approx(1 / 2)


def random_case(seed, pictures=30, classes=3):
    """Ground truth with crowds and difficult objects, and detections near and far from it."""
    draw = np.random.default_rng(seed)
    objects, results = [], []
    for p in range(1, pictures + 1):
        for _ in range(draw.integers(0, 6)):
            box = [*draw.integers(0, 400, 2).tolist(), *draw.integers(20, 200, 2).tolist()]
            c = int(draw.integers(1, classes + 1))
            objects.append((p, c, box, {"iscrowd": int(draw.random() < 0.1), "difficult": int(draw.random() < 0.2)}))
            for _ in range(draw.integers(0, 4)):
                moved = (np.array(box) + draw.normal(0, 8, 4)).clip(1).tolist()
                results.append(result(p, c, moved, round(float(draw.random()), 2)))
        results.append(result(p, int(draw.integers(1, classes + 1)), [5, 5, 60, 60], float(draw.random())))
    return truth(*objects, pictures=pictures, classes=classes), results


@pytest.mark.parametrize("seed", range(5))
def test_matches_give_back_pycocotools_own_ap(seed):
    """So that the bootstrap resamples the very thing that was measured."""
    got = quality.coco(*random_case(seed))
    assert quality.mean_ap(got.ap_matches, "101-point") == pytest.approx(got.ap, abs=1e-12)
    assert quality.mean_ap(got.ap50_matches, "101-point") == pytest.approx(got.ap50, abs=1e-12)


@pytest.mark.parametrize("rule", ["101-point", "11-point", "area"])
def test_picture_counted_twice_is_a_picture_given_twice(rule):
    """Weights of the bootstrap against a data set in which the pictures really occur that often."""
    t, r = random_case(7, pictures=6)
    counts = [2, 0, 1, 3, 1, 1]
    double = {"images": [], "annotations": [], "categories": t["categories"]}
    results = []
    for picture, count in enumerate(counts, start=1):
        for _ in range(count):
            new = len(double["images"]) + 1
            double["images"].append({"id": new, "file_name": ""})
            for a in t["annotations"]:
                if a["image_id"] == picture:
                    double["annotations"].append({**a, "id": len(double["annotations"]) + 1, "image_id": new})
            results += [{**x, "image_id": new} for x in r if x["image_id"] == picture]
    weights = np.array([counts], np.float32)
    weighted = [quality.average_precision(m, rule, weights)[0] for m in quality.voc_matches(t, r)]
    assert np.nanmean(weighted) == pytest.approx(voc(double, results, rule), abs=1e-6)


def test_uncertainty_covers_the_spread_over_sets_of_pictures():
    """Many sets of 30 pictures from one source: their AP spreads about as much as each set's own half-width says."""
    found = [by_name(quality.measurements(*random_case(seed))) for seed in range(40)]
    for metric in quality.METRICS:
        spread = 1.96 * np.std([f[metric].value for f in found], ddof=1)
        said = np.median([f[metric].uncertainty for f in found])
        assert 0.5 * spread < said < 2 * spread


def test_one_picture_has_no_uncertainty():
    (ap, *_) = quality.measurements(truth((1, 1, A, {}), pictures=1), [result(1, 1, A, 0.9)])
    assert ap.uncertainty is None
    assert ap.n == 1


def test_same_seed_gives_the_same_uncertainty():
    t, r = random_case(0)
    assert quality.measurements(t, r, seed=3) == quality.measurements(t, r, seed=3)


def test_method_names_the_rules():
    methods = {m.metric: m.method for m in quality.measurements(*random_case(0))}
    assert "0.50:0.95, at most 100" in methods["ap"]
    assert "at most 1000" in methods["ap50"]
    assert "11-point" in methods["voc_ap50_11point"]
    assert "difficult objects and crowds not judged" in methods["voc_ap50_area"]
    assert "x2 - x1 + 1" in methods["voc_ap50_area"]


def test_nothing_is_printed_and_nothing_given_is_changed(capfd):
    t, r = random_case(1)
    before = json.dumps([t, r])
    quality.measurements(t, r)
    assert json.dumps([t, r]) == before
    assert capfd.readouterr() == ("", "")


def golden(shared, truth_path, folder):
    ground_truth = json.loads((shared / "data" / truth_path).read_text())
    results = json.loads((shared / "data" / folder / "detections.json").read_text())
    expected = json.loads((shared / "data" / folder / "expected_metrics.json").read_text())
    return ground_truth, results, expected


GOLDEN = [
    ("golden/detection_eval/ground_truth.json", "golden/detection_eval"),
    ("images/voc_mini/instances.json", "images/voc_mini/detections"),
]


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_coco_values(shared, case):
    t, r, expected = golden(shared, *case)
    got = quality.coco(t, r)
    assert got.ap == pytest.approx(expected["coco"]["AP"], abs=1e-6)
    assert got.ap50 == pytest.approx(expected["coco"]["AP50"], abs=1e-6)
    for category in t["categories"]:
        wanted = expected["coco_per_class"][category["name"]]
        ap, ap50 = got.ap_by_class[category["id"]]
        if wanted["AP"] is None:
            assert np.isnan(ap)
            assert np.isnan(ap50)
        else:
            assert (ap, ap50) == pytest.approx((wanted["AP"], wanted["AP50"]), abs=1e-6)


@pytest.mark.needs_shared
@pytest.mark.parametrize(("rule", "name"), [("area", "every"), ("11-point", "eleven")])
def test_golden_voc_values(shared, rule, name):
    """The source's evaluator counts pixels inclusively and difficult objects as ordinary ones."""
    t, r, expected = golden(shared, *GOLDEN[1])
    wanted = expected[f"voc_all_ground_truth_iou50_{name}_point"]
    matches = quality.voc_matches(t, r, judge_difficult=True)
    assert quality.mean_ap(matches, rule) == pytest.approx(wanted["mAP"], abs=1e-6)
    each = [quality.average_precision(m, rule, np.ones((1, 75)))[0] for m in matches]
    names = [c["name"] for c in t["categories"]]
    assert dict(zip(names, each, strict=True)) == pytest.approx(wanted["per_class"], abs=1e-6)


@pytest.mark.needs_shared
def test_every_figure_has_an_error_bar(shared):
    t, r, _ = golden(shared, *GOLDEN[0])
    assert all(m.uncertainty > 0 for m in quality.measurements(t, r))
