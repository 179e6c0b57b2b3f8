"""The shipped ONNX graphs, with weights beside them, compute the network; torch makes the same graphs again."""

import os
import threading

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file

from edgewatt.harness.api import UsageError
from edgewatt.workloads.femtodet import graph
from edgewatt.workloads.femtodet.checkpoint import load, synthetic
from edgewatt.workloads.femtodet.fold import folded
from edgewatt.workloads.femtodet.variants import VARIANTS
from support.plain_femtodet import forward

SHIPPED = [(v, name) for v in VARIANTS.values() for name in graph.structures(v)]
SHIPPED_IDS = [name for _, name in SHIPPED]


def outputs(model, pictures):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["cls", "reg", "obj"]
    return session.run(None, {"input": pictures})


@pytest.mark.needs_shared
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(("variant", "name"), SHIPPED, ids=SHIPPED_IDS)
def test_shipped_graph_gives_the_official_maps(shared, tmp_path, variant, name, form):
    folder = shared / "data/golden/femtodet" / variant.name
    state = load(folder / f"weights_{form}.safetensors", variant)
    model = graph.write(tmp_path, folded(state, variant), variant).with_name(name)
    picture = load_file(folder / "outputs_train.safetensors")["input"]
    wanted = load_file(folder / f"outputs_{form}.safetensors")
    for part, found in zip(("cls", "reg", "obj"), outputs(model, picture), strict=True):
        np.testing.assert_allclose(found, wanted[f"{part}.0"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("variant", "name"), SHIPPED, ids=SHIPPED_IDS)
@pytest.mark.parametrize("shape", [(64, 96), (32, 32)])
def test_shipped_graph_equals_the_description_written_out(tmp_path, variant, name, shape):
    state = synthetic(variant, 5)
    model = graph.write(tmp_path, folded(state, variant), variant).with_name(name)
    picture = np.random.default_rng(0).normal(0, 1, (1, 3, *shape)).astype(np.float32)
    for found, wanted in zip(outputs(model, picture), forward(state, picture[0]), strict=True):
        np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_weights_file_is_safetensors_with_the_folded_arrays(tmp_path, variant):
    arrays = folded(synthetic(variant, 1), variant)
    model = graph.write(tmp_path, arrays, variant)
    found = graph.read_weights(model)
    assert set(found) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_shipped_structures_hold_no_weights_and_point_where_they_lie(tmp_path, variant):
    onnx = pytest.importorskip("onnx")
    arrays = folded(synthetic(variant, 1), variant)
    home = graph.write(tmp_path, arrays, variant).parent
    for name in graph.structures(variant):
        assert (home / name).stat().st_size < 40_000
        model = onnx.load(home / name, load_external_data=True)
        found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in arrays}
        assert set(found) == set(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)


def test_folder_is_named_by_content_and_written_once(tmp_path):
    variant = VARIANTS["voc"]
    a, b = (folded(synthetic(variant, s), variant) for s in (1, 2))
    first = graph.write(tmp_path, a, variant)
    before = {p: p.stat().st_mtime_ns for p in first.parent.iterdir()}
    assert graph.write(tmp_path, a, variant) == first
    assert {p: p.stat().st_mtime_ns for p in first.parent.iterdir()} == before
    assert graph.write(tmp_path, b, variant).parent != first.parent
    assert sorted(p.name for p in before) == ["voc.onnx", "voc.wide.onnx", "weights.safetensors"]


def test_damaged_weights_are_written_again(tmp_path):
    variant = VARIANTS["voc"]
    arrays = folded(synthetic(variant, 1), variant)
    model = graph.write(tmp_path, arrays, variant)
    weights = model.with_name(graph.WEIGHTS)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    graph.write(tmp_path, arrays, variant)
    assert weights.read_bytes() == whole


def test_two_writers_at_once_leave_whole_files(tmp_path):
    variant = VARIANTS["voc"]
    arrays = folded(synthetic(variant, 1), variant)
    writers = [threading.Thread(target=graph.write, args=(tmp_path, arrays, variant)) for _ in range(8)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    (home,) = tmp_path.iterdir()
    assert {p.name for p in home.iterdir()} == {"voc.onnx", "voc.wide.onnx", graph.WEIGHTS}
    assert home.joinpath(graph.WEIGHTS).read_bytes() == graph.weights_file(arrays, variant)


def test_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    variant = VARIANTS["voc"]
    with pytest.raises(UsageError, match="cannot be written there") as raised:
        graph.write(tmp_path / "file", folded(synthetic(variant, 1), variant), variant)
    assert "\n" not in str(raised.value)


def test_arrays_of_another_variant_are_refused(tmp_path):
    arrays = folded(synthetic(VARIANTS["voc"], 1), VARIANTS["voc"])
    with pytest.raises(ValueError, match="coco_large"):
        graph.write(tmp_path, arrays, VARIANTS["coco_large"])
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.needs_torch
@pytest.mark.slow
def test_torch_makes_the_shipped_graphs_again(tmp_path):
    pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from edgewatt.workloads.femtodet import export

    made = export.write_structures(tmp_path)
    assert sorted(p.name for p in made) == sorted(SHIPPED_IDS)
    home = graph.write(tmp_path / "w", folded(synthetic(VARIANTS["voc"], 1), VARIANTS["voc"]), VARIANTS["voc"]).parent
    coco = VARIANTS["coco_large"]
    homes = {"voc": home, "coco_large": graph.write(tmp_path / "w", folded(synthetic(coco, 1), coco), coco).parent}
    for path in made:
        again, shipped = (
            onnx.load(p, load_external_data=False) for p in (path, homes[path.name.split(".")[0]] / path.name)
        )
        assert [n.SerializeToString() for n in again.graph.node] == [n.SerializeToString() for n in shipped.graph.node]
        assert again.graph.initializer == shipped.graph.initializer
        assert again.opset_import == shipped.opset_import
