"""FemtoDet where the device only runs graphs on tensors: the same detections and the same AP as where it does all."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.workloads.engines import tensors
from edgewatt.workloads.femtodet import native, outputs
from edgewatt.workloads.femtodet.runner import FemtoDetRunner
from edgewatt.workloads.femtodet.workload import FemtoDet
from support.picture_sets import coco, write_coco


class Phone:
    """A device that runs graphs on tensors; what is put on it stays where it was."""

    name, agent_kind = "phone", "native"

    def put(self, path):
        return str(path)


class Here(Phone):
    agent_kind = "python"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEWATT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def workload(tmp_path):
    write_coco(tmp_path / "set", coco(count=3))
    return FemtoDet(data=tmp_path / "set" / "instances.json", size=64, score_threshold=0.0, strict=True, threads=1)


def ran(job, folder: Path, items=None) -> Path:
    """What the native agent would leave, by onnxruntime's own Python API, written by hand."""
    params = json.loads(json.dumps(job.params))  # a job travels as JSON
    (source,) = params["inputs"]
    session = ort.InferenceSession(params["model"], providers=["CPUExecutionProvider"])
    data = np.fromfile(source["path"], source["type"]).reshape(job.item_count, *source["shape"])
    items = list(range(job.item_count)) if items is None else items
    names = [o.name for o in session.get_outputs()]
    told = []
    folder.mkdir()
    results = [session.run(names, {source["name"]: data[k]}) for k in items]
    for j, name in enumerate(names):
        (folder / f"output-{j}.bin").write_bytes(b"".join(r[j].tobytes() for r in results))
        shape = list(results[0][j].shape) if results else [1]
        told.append({"name": name, "type": "float32", "shape": shape, "file": f"output-{j}.bin"})
    (folder / "outputs.json").write_text(json.dumps({"form": 1, "items": items, "outputs": told}))
    return folder


def done_here(workload, folder: Path) -> Path:
    job = workload.prepare(Here())
    runner = FemtoDetRunner(job.params)
    runner.load()
    folder.mkdir()
    runner.save({k: runner.run(k, lambda _: None) for k in range(job.item_count)}, folder)
    return folder


def test_detections_and_ap_are_those_of_the_device_that_does_all(workload, tmp_path):
    job = workload.prepare(Phone())
    assert job.runner == "native:onnxruntime" and job.item_phases == job.isolate == ("detect",)
    raw = ran(job, tmp_path / "raw")
    job.finish(raw)
    mine, other = outputs.read(raw), outputs.read(done_here(workload, tmp_path / "here"))
    assert sorted(mine.found) == sorted(other.found) and mine.truth == other.truth
    assert sum(map(len, mine.found.values())) > 0
    for picture, found in mine.found.items():
        np.testing.assert_allclose(found.scores, other.found[picture].scores, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.boxes, other.found[picture].boxes, rtol=1e-3, atol=1e-2)
        assert found.labels.tolist() == other.found[picture].labels.tolist()
    scores = []
    for folder, name in ((raw, "a"), (tmp_path / "here", "b")):
        (tmp_path / name).mkdir()
        scores.append({m.metric: m.value for m in workload.score(folder, tmp_path / name).measurements})
    assert scores[0] == pytest.approx(scores[1], abs=1e-9) and "ap" in scores[0]


def test_tensors_are_not_kept_and_the_reader_is_told_what_was_not_measured(workload, tmp_path):
    job = workload.prepare(Phone())
    raw = ran(job, tmp_path / "raw")
    job.finish(raw)
    assert sorted(p.name for p in raw.iterdir()) == ["detections.npz", "ground_truth.json", "pictures.json"]
    (tmp_path / "into").mkdir()
    assert native.SAID in workload.score(raw, tmp_path / "into").warnings


def test_pictures_that_were_not_run_have_no_detections(workload, tmp_path):
    job = workload.prepare(Phone())
    raw = ran(job, tmp_path / "raw", items=[2, 0])
    job.finish(raw)
    left = outputs.read(raw)
    assert left.listed == 3 and sorted(left.found) == sorted(i["id"] for i in left.truth["images"])
    whole = ran(job, tmp_path / "whole")
    job.finish(whole)
    for picture, found in left.found.items():
        np.testing.assert_array_equal(found.boxes, outputs.read(whole).found[picture].boxes)


def test_pictures_become_tensors_once(workload, monkeypatch):
    first = workload.prepare(Phone()).params["inputs"][0]["path"]
    monkeypatch.setattr(native, "fill", None)
    assert workload.prepare(Phone()).params["inputs"][0]["path"] == first


def test_other_engines_are_refused(workload):
    other = FemtoDet(data=workload.data, size=64, engine="torch")
    with pytest.raises(UsageError, match=r"engine='torch': phone runs graphs with onnxruntime alone"):
        other.prepare(Phone())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "outputs.json").unlink(), "outputs.json"),
        (lambda f: (f / "outputs.json").write_text("[" * 5000), "measure again"),
        (lambda f: (f / "outputs.json").write_text('{"form": 2}'), "form 2"),
        (lambda f: (f / "output-1.bin").write_bytes(b"\0" * 12), "output-1.bin has 12 bytes"),
        (lambda f: (f / "outputs.json").write_text(told_file(f, "../../etc/passwd")), "a file called"),
        (lambda f: (f / "outputs.json").write_text(told_shape(f, [1, -4, 4, 4])), "shape"),
    ],
)
def test_tensors_that_are_not_whole_are_refused_in_one_line(workload, tmp_path, spoil, told):
    job = workload.prepare(Phone())
    raw = ran(job, tmp_path / "raw")
    spoil(raw)
    with pytest.raises(HarnessError, match=told) as caught:
        job.finish(raw)
    assert "\n" not in str(caught.value)


def told_file(folder, name):
    index = json.loads((folder / "outputs.json").read_text())
    index["outputs"][0]["file"] = name
    return json.dumps(index)


def told_shape(folder, shape):
    index = json.loads((folder / "outputs.json").read_text())
    index["outputs"][0]["shape"] = shape
    return json.dumps(index)


def test_graph_of_another_kind_is_refused(workload, tmp_path):
    job = workload.prepare(Phone())
    raw = ran(job, tmp_path / "raw")
    index = json.loads((raw / "outputs.json").read_text())
    index["outputs"] = index["outputs"][::-1]
    (raw / "outputs.json").write_text(json.dumps(index))
    with pytest.raises(HarnessError, match="wanted maps of 20, 4 and 1 channels"):
        job.finish(raw)


def test_tensors_of_no_item_are_none(tmp_path):
    (tmp_path / "o.bin").write_bytes(b"")
    told = {"form": 1, "items": [], "outputs": [{"name": "o", "type": "int64", "shape": [2], "file": "o.bin"}]}
    (tmp_path / "outputs.json").write_text(json.dumps(told))
    saved = tensors.read(tmp_path)
    assert saved.items == () and saved.tensors["o"].shape == (0, 2)
