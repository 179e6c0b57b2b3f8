"""Engines run the network they were given, on what they say, and refuse clearly what they cannot do."""

import gc
import sys

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.workloads.engines import onnxruntime_engine
from edgewatt.workloads.engines.engine import threads_used
from edgewatt.workloads.engines.registry import ENGINES, open_engine
from edgewatt.workloads.femtodet import graph
from edgewatt.workloads.femtodet.checkpoint import load, synthetic
from edgewatt.workloads.femtodet.fold import folded
from edgewatt.workloads.femtodet.variants import VARIANTS
from support.plain_femtodet import forward

VOC = VARIANTS["voc"]
SHAPE = (1, 3, 64, 96)
FACTS = {"engine", "version", "threads", "provider_asked", "provider_used", "nodes", "fallback_share", "model_bytes"}


@pytest.fixture(scope="module")
def state():
    return synthetic(VOC, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory, state):
    return graph.write(tmp_path_factory.mktemp("models"), folded(state, VOC), VOC)


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.needs_torch) if n == "torch" else n for n in ENGINES])
def name(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    return request.param


def picture(seed):
    return np.random.default_rng(seed).normal(0, 1, SHAPE).astype(np.float32)


def test_engine_computes_the_network_for_what_input_holds(name, model, state):
    engine = open_engine(name, model, SHAPE, threads=1)
    assert engine.input.shape == SHAPE and engine.input.dtype == np.float32
    for seed in (1, 2):
        engine.input[:] = picture(seed)
        for found, wanted in zip(engine.run(), forward(state, picture(seed)[0]), strict=True):
            np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-3)


@pytest.mark.needs_shared
@pytest.mark.parametrize("variant", VARIANTS)
def test_engine_gives_the_official_maps(shared, tmp_path, name, variant):
    folder = shared / "data/golden/femtodet" / variant
    weights = folded(load(folder / "weights_train.safetensors", VARIANTS[variant]), VARIANTS[variant])
    wanted = load_file(folder / "outputs_train.safetensors")
    engine = open_engine(name, graph.write(tmp_path, weights, VARIANTS[variant]), wanted["input"].shape, threads=1)
    engine.input[:] = wanted["input"]
    for part, found in zip(("cls", "reg", "obj"), engine.run(), strict=True):
        np.testing.assert_allclose(found, wanted[f"{part}.0"], rtol=0, atol=1e-3)


def test_facts_tell_what_it_runs_on(name, model):
    facts = open_engine(name, model, SHAPE, threads=1).facts
    assert facts.keys() >= FACTS
    assert facts["engine"] == name and facts["threads"] == 1 and facts["provider_asked"] == "cpu"
    assert facts["fallback_share"] == 0.0
    # 47 convolutions at least, each at most with an addition, a resize or a change of layout beside it
    assert 47 <= sum(facts["nodes"].values()) <= 100
    assert 4 * 64_657 < facts["model_bytes"] < 4 * 64_657 + 60_000


def test_call_outlives_the_engine_that_made_it(name, model, state):
    engine = open_engine(name, model, SHAPE, threads=1)
    engine.input[:] = picture(1)
    run = engine.run
    del engine
    gc.collect()
    rubbish = [np.full(SHAPE, np.nan, np.float32) for _ in range(50)]
    found = run()
    assert len(rubbish) == 50
    np.testing.assert_allclose(found[2][0], forward(state, picture(1)[0])[2], rtol=0, atol=1e-3)


def test_bound_outputs_are_the_same_arrays_at_every_call(model):
    engine = open_engine("onnxruntime", model, SHAPE, threads=1)
    assert all(a is b for a, b in zip(engine.run(), engine.run(), strict=True))


def test_public_binding_serves_where_the_extensions_own_is_missing(model, monkeypatch):
    engine = open_engine("onnxruntime", model, SHAPE, threads=1)
    engine.input[:] = picture(3)
    wanted = [y.copy() for y in engine.run()]

    class Public(ort.InferenceSession):
        """onnxruntime as another version might be: the same public methods, nothing known inside."""

        def __getattribute__(self, attribute):
            if attribute == "_sess" and sys._getframe(1).f_globals["__name__"].startswith("edgewatt."):
                raise AttributeError(attribute)
            return super().__getattribute__(attribute)

    monkeypatch.setattr(ort, "InferenceSession", Public)
    engine = open_engine("onnxruntime", model, SHAPE, threads=1)
    engine.input[:] = picture(3)
    for found, expected in zip(engine.run(), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("wide", "graph_file"), [(True, "voc.wide.onnx"), (False, "voc.onnx")])
def test_form_of_the_graph_is_chosen_by_the_cpu_and_recorded(model, monkeypatch, wide, graph_file):
    monkeypatch.setattr(onnxruntime_engine, "_has_avx512", lambda: wide)
    assert open_engine("onnxruntime", model, SHAPE, threads=1).facts["graph"] == graph_file


def test_nodes_on_another_provider_are_counted_as_fallback(model, monkeypatch):
    """A provider that takes part of a graph: 3 nodes of 4 on the accelerator, 1 on the CPU."""
    ran = {"CUDAExecutionProvider": 3, "CPUExecutionProvider": 1}
    monkeypatch.setattr(onnxruntime_engine, "_provider", lambda name: "CUDAExecutionProvider")
    monkeypatch.setattr(onnxruntime_engine, "_nodes_by_provider", lambda session, binding: ran)
    real = ort.InferenceSession

    class Partial(real):
        def __init__(self, path, options, providers):
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Partial)
    facts = open_engine("onnxruntime", model, SHAPE, 1, "cuda").facts
    assert facts["fallback_share"] == 0.25 and facts["nodes"] == ran
    assert facts["provider_used"] == "CUDAExecutionProvider"
    ran.clear()
    ran["CPUExecutionProvider"] = 4
    facts = open_engine("onnxruntime", model, SHAPE, 1, "cuda").facts
    assert facts["fallback_share"] == 1.0 and facts["provider_used"] == "CPUExecutionProvider"


def test_provider_that_does_not_load_is_refused(model, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(UsageError, match="cannot load it here; it has cuda, cpu"):
        open_engine("onnxruntime", model, SHAPE, 1, "cuda")


def test_absent_provider_is_refused_with_those_there_are(name, model):
    with pytest.raises(UsageError, match=r"provider warp: not in this .*; it has .*cpu"):
        open_engine(name, model, SHAPE, 1, "warp")


def test_unknown_engine_is_refused_with_the_nearest_name(model):
    with pytest.raises(UsageError, match="did you mean onnxruntime"):
        open_engine("onnxruntim", model, SHAPE)


def test_engine_without_its_extra_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "edgewatt.workloads.engines.torch_engine", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'edgewatt\[torch\]'"):
        open_engine("torch", model, SHAPE)


def test_size_the_network_cannot_take_is_one_line(model):
    with pytest.raises(HarnessError) as raised:
        open_engine("onnxruntime", model, (1, 3, 72, 72), 1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_weights_missing_beside_the_model_are_one_line(name, tmp_path, state, damage):
    model = graph.write(tmp_path, folded(state, VOC), VOC)
    weights = model.with_name(graph.WEIGHTS)
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(HarnessError) as raised:
        open_engine(name, model, SHAPE, 1)
    assert "\n" not in str(raised.value)


def test_no_threads_asked_means_every_cpu_of_the_process(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert threads_used(0) == 3
    assert threads_used(2) == 2
    with pytest.raises(ValueError, match="threads=-1"):
        threads_used(-1)
