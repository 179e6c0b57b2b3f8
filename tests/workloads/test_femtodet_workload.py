"""FemtoDet from its parameters to its score, the runner in this process, and what it refuses."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgewatt.harness.api import UsageError
from edgewatt.harness.plugins import load
from edgewatt.harness.settings import resolved
from edgewatt.workloads.femtodet import outputs, quality
from edgewatt.workloads.femtodet.detections import Detections
from edgewatt.workloads.femtodet.runner import FemtoDetRunner
from edgewatt.workloads.femtodet.variants import COCO_CLASSES, VOC_CLASSES
from edgewatt.workloads.femtodet.workload import PHASES, FemtoDet
from support.here import Here
from support.picture_sets import coco, voc_object, write_coco, write_voc


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cached(cache, monkeypatch):
    monkeypatch.setenv("EDGEWATT_CACHE", str(cache))


def executed(workload, folder, skip=()):
    """The job of a workload run here, every picture once; the folder of its outputs and the runner."""
    job = workload.prepare(Here())
    params = json.loads(json.dumps(job.params))  # a job travels as JSON
    assert job.runner == f"{FemtoDetRunner.__module__}:{FemtoDetRunner.__name__}"
    runner = FemtoDetRunner(params)
    runner.facts = runner.load()
    marks, found = [], {}
    for index in range(job.item_count):
        if index not in skip:
            found[index] = runner.run(index, marks.append)
    assert marks == list(PHASES) * len(found)
    raw = folder / "raw"
    raw.mkdir()
    runner.save(found, raw)
    return raw, runner, job


def scored(workload, folder, **options):
    raw, _, _ = executed(workload, folder, **options)
    into = folder / "into"
    into.mkdir()
    return workload.score(raw, into)


def by_pycocotools(ground_truth, results):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(ground_truth))
        judge = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        judge.params.maxDets = [100, 300, 1000]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"ap": float(judge.stats[0]), "ap50": float(judge.stats[1])}


# ---------------------------------------------------------------------------------------------------------------------
# From end to end


def test_drawn_scenes_give_detections_but_no_ap(tmp_path):
    workload = FemtoDet(limit=3, size=96)
    score = scored(workload, tmp_path)
    assert score.measurements == ()
    assert "3 drawn scenes (seed 0)" in score.warnings[0]
    results = json.loads(score.outputs["detections.json"].read_text())
    assert {r["image_id"] for r in results} == {1, 2, 3}
    assert {r["category_id"] for r in results} <= set(range(1, 21))
    assert set(score.outputs) == {"detections.json"}
    weights, scenes = workload.flags()
    assert weights.flag == "synthetic_weights"
    assert weights.voids == ()  # there is no AP to void
    assert "accuracy means nothing" in weights.detail
    assert set(FemtoDet(data=Path("pictures")).flags()[0].voids) == set(quality.METRICS)
    assert scenes.flag == "drawn_scenes"


def test_same_parameters_give_the_same_detections(tmp_path):
    texts = []
    for name in "ab":
        (tmp_path / name).mkdir()
        score = scored(FemtoDet(limit=2, size=96, threads=1), tmp_path / name)
        texts.append(score.outputs["detections.json"].read_text())
    assert texts[0] == texts[1]


def test_ap_is_pycocotools_of_the_exported_files(tmp_path):
    """Sparse category numbers of our own, a subset of the classes."""
    path = write_coco(tmp_path, coco(names=("person", "car", "dog")))
    score = scored(FemtoDet(data=path, size=64, score_threshold=0.0, variant="coco_large"), tmp_path)
    got = {m.metric: m.value for m in score.measurements}
    assert set(got) == set(quality.METRICS)
    assert {m.n for m in score.measurements} == {3}
    wanted = by_pycocotools(path, score.outputs["detections.json"])
    assert wanted == pytest.approx({k: got[k] for k in wanted}, abs=1e-9)
    assert wanted == pytest.approx(
        by_pycocotools(score.outputs["ground_truth.json"], score.outputs["detections.json"]), abs=1e-12
    )
    assert any("of classes that the ground truth does not have" in w for w in score.warnings)
    results = json.loads(score.outputs["detections.json"].read_text())
    assert {r["category_id"] for r in results} <= {7, 14, 21}


def test_voc_tree_is_scored_and_exported_as_coco(tmp_path):
    tree = write_voc(tmp_path / "voc", {"a": voc_object("cat"), "b": voc_object("dog", difficult=1)})
    score = scored(FemtoDet(data=tree, size=64), tmp_path)
    truth = json.loads(score.outputs["ground_truth.json"].read_text())
    assert [c["name"] for c in truth["categories"]] == list(VOC_CLASSES)
    assert [a["difficult"] for a in truth["annotations"]] == [0, 1]
    assert {m.metric for m in score.measurements} == set(quality.METRICS)


def test_pictures_that_were_not_run_do_not_count(tmp_path):
    path = write_coco(tmp_path, coco())
    score = scored(FemtoDet(data=path, size=64), tmp_path, skip=(1,))
    assert {m.n for m in score.measurements} == {2}
    assert any("2 of 3 pictures were run" in w for w in score.warnings)
    truth = json.loads(score.outputs["ground_truth.json"].read_text())
    assert [i["id"] for i in truth["images"]] == [10, 30]
    assert {a["image_id"] for a in truth["annotations"]} == {10, 30}


def test_score_needs_nothing_but_the_outputs(tmp_path):
    """So that it can be had again when the data has moved."""
    path = write_coco(tmp_path / "data", coco())
    workload = FemtoDet(data=path, size=64)
    raw, _, _ = executed(workload, tmp_path)
    shutil.rmtree(tmp_path / "data")
    assert len(workload.score(raw, tmp_path).measurements) == 4


@pytest.mark.parametrize("broken", ["detections.npz", "pictures.json", "ground_truth.json"])
def test_outputs_that_were_damaged_are_a_warning(tmp_path, broken):
    workload = FemtoDet(data=write_coco(tmp_path, coco()), size=64)
    raw, _, _ = executed(workload, tmp_path)
    (raw / broken).write_bytes((raw / broken).read_bytes()[:40])
    score = workload.score(raw, tmp_path)
    assert score.measurements == ()
    assert "measure again" in score.warnings[0]


def test_every_phase_runs_alone(tmp_path):
    workload = FemtoDet(limit=2, size=64)
    _, runner, job = executed(workload, tmp_path)
    assert job.isolate == PHASES
    first = np.array(runner._engine.input)
    runner.run_phase("preprocess", 0)
    assert not np.array_equal(runner._engine.input, first)
    runner.run_phase("preprocess", 1)
    assert np.array_equal(runner._engine.input, first)
    for phase in ("detect", "postprocess"):
        runner.run_phase(phase, 0)
    with pytest.raises(NotImplementedError, match="vision"):
        runner.run_phase("vision", 0)


def test_postprocess_alone_works_on_the_picture_s_own_maps(tmp_path, monkeypatch):
    _, runner, job = executed(FemtoDet(limit=3, size=64), tmp_path)
    seen = []
    monkeypatch.setattr(runner, "_detections", lambda raw, scale: seen.append(raw))
    for index in (2, 0, 2):
        runner.run_phase("postprocess", index)
    assert seen[0] is seen[2]
    assert not np.array_equal(seen[0][0], seen[1][0])
    assert job.item_count == 3


def test_kept_maps_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("edgewatt.workloads.femtodet.runner._KEPT_BYTES", 3000)
    # 25 maps of 4 x 4 cells, float32: 1600 bytes a picture.
    _, runner, _ = executed(FemtoDet(limit=4, size=64), tmp_path)
    assert len(runner._raw) == 1
    runner.run_phase("postprocess", 3)


def test_facts_say_what_it_ran_on(tmp_path):
    _, runner, job = executed(FemtoDet(limit=1, size=64, threads=1), tmp_path)
    assert runner.facts["engine"] == "onnxruntime"
    assert runner.facts["threads"] == 1
    assert runner.facts["opencv_threads"] == 1
    assert runner.facts["model_bytes"] > 64657 * 4
    assert {"pictures", "model/weights.safetensors", "model/voc.onnx"} <= set(job.artefacts)
    assert all(len(digest) == 64 for digest in job.artefacts.values())


def test_variant_follows_the_categories(tmp_path):
    def classes(**options):
        return tuple(FemtoDet(size=64, **options).prepare(Here()).params["classes"])

    assert classes(limit=1) == VOC_CLASSES
    assert classes(limit=1, variant="coco_large") == COCO_CLASSES
    assert classes(data=write_coco(tmp_path / "a", coco(names=("person", "dog")))) == VOC_CLASSES
    assert classes(data=write_coco(tmp_path / "b", coco(names=("person", "truck")))) == COCO_CLASSES


@pytest.mark.needs_shared
@pytest.mark.parametrize("variant", ["voc", "coco_large"])
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_golden_checkpoint_gives_the_golden_detections(shared, tmp_path, variant, form):
    """Checkpoint, folding, graph, preprocessing, engine, decoding and suppression, all in one."""
    from safetensors.numpy import load_file

    golden = shared / "data/golden/femtodet" / variant
    (tmp_path / "one").mkdir()
    shutil.copy(golden / "input.png", tmp_path / "one")
    weights = golden / f"weights_{form}.safetensors"
    workload = FemtoDet(data=tmp_path / "one", variant=variant, weights=str(weights))
    assert workload.flags() == ()
    results = json.loads(scored(workload, tmp_path).outputs["detections.json"].read_text())
    wanted = load_file(golden / f"outputs_{form}.safetensors")
    boxes, labels = wanted["dets_orig"], wanted["labels_orig"]
    assert len(results) == len(labels)
    left = list(range(len(labels)))
    for r in results:
        x, y, w, h = r["bbox"]
        near = [
            k
            for k in left
            if labels[k] + 1 == r["category_id"]
            and abs(boxes[k, :4] - (x, y, x + w, y + h)).max() < 0.02
            and abs(boxes[k, 4] - r["score"]) < 1e-4
        ]
        assert near, r
        left.remove(near[0])


@pytest.mark.needs_torch
def test_torch_finds_what_onnxruntime_finds(tmp_path):
    pytest.importorskip("torch")
    found = []
    for engine in ("onnxruntime", "torch"):
        (tmp_path / engine).mkdir()
        score = scored(FemtoDet(limit=2, size=96, engine=engine), tmp_path / engine)
        found.append(json.loads(score.outputs["detections.json"].read_text()))
    assert len(found[0]) == len(found[1]) > 0
    for a, b in zip(*found, strict=True):
        assert a["category_id"] == b["category_id"]
        np.testing.assert_allclose([*a["bbox"], a["score"]], [*b["bbox"], b["score"]], atol=1e-2)


# ---------------------------------------------------------------------------------------------------------------------
# Results


def test_results_are_corner_and_size_with_the_ground_truth_s_numbers(tmp_path):
    found = Detections(
        np.array([[10, 20, 30.5, 60]], np.float32), np.array([0.25], np.float32), np.array([1], np.int64)
    )
    truth = {"images": [], "annotations": [], "categories": [{"id": 33, "name": "bus"}, {"id": 44, "name": "car"}]}
    wanted = {"image_id": 5, "bbox": [10.0, 20.0, 20.5, 40.0], "score": 0.25}
    for ground_truth, number in ((truth, 44), (None, 2)):
        left = outputs.Outputs({5: found}, 1, ("bus", "car"), (), ground_truth)
        assert left.results() == ([wanted | {"category_id": number}], 0)


def test_scores_that_differ_stay_different(tmp_path):
    scores = np.nextafter(np.float32(0.01), np.float32(1)), np.float32(0.01)
    found = Detections(np.zeros((2, 4), np.float32), np.array(scores), np.zeros(2, np.int64))
    (a, b), _ = outputs.Outputs({1: found}, 1, ("bus",), (), None).results()
    assert a["score"] > b["score"]


# ---------------------------------------------------------------------------------------------------------------------
# Parameters


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 400}, "size=400: wanted a multiple of 32 from 32 to 2048, such as 384"),
        ({"size": 0}, "such as 32"),
        ({"size": 4096}, "such as 2048"),
        ({"score_threshold": 1.5}, "score_threshold=1.5: wanted a number from 0 to 1"),
        ({"nms_iou": float("nan")}, "nms_iou=nan"),
        ({"engine": "onxruntime"}, "did you mean onnxruntime?"),
        ({"threads": -1}, "threads=-1: wanted 1 to 1024, or 0"),
        ({"limit": 0}, "limit=0: wanted at least 1 picture"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_parameter_is_refused_in_one_line(options, said):
    with pytest.raises(UsageError) as refused:
        FemtoDet(**options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unknown_variant_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean coco_large"):
        FemtoDet(variant="coco-large", limit=1).prepare(Here())


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none\.pth"):
        FemtoDet(weights=str(tmp_path / "none.pth"), limit=1).prepare(Here())


def test_command_line_texts_become_parameters(tmp_path):
    """As `--set` gives them."""
    texts = {"data": str(tmp_path), "size": "320", "threads": "2", "strict": "true", "limit": "7", "nms_iou": "0.5"}
    workload, _, _ = resolved("femtodet", texts)
    assert workload == FemtoDet(data=Path(tmp_path), size=320, threads=2, strict=True, limit=7, nms_iou=0.5)
    assert resolved("femtodet", {"limit": "none"})[0] == FemtoDet()
    with pytest.raises(UsageError, match="size"):
        resolved("femtodet", {"size": "big"})
    assert load("workloads", "femtodet") is FemtoDet
