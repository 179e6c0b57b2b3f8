"""Engines run the network they were given, on what they say, and refuse clearly what they cannot do."""

import gc
import json
import sys
from pathlib import Path

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
TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
FACTS = {"engine", "version", "threads", "provider_asked", "provider_used", "nodes", "model_bytes"}


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
    assert facts["fallback_share"] == 0.0 and facts["fallback_ops"] == []
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


# A machine with a GPU: what onnxruntime offers, loads and writes into its profile there. The network runs on the CPU.


class Gpu:
    """onnxruntime as on a board; `asked` is what the last session was given, `events` what its profile holds."""

    def __init__(self, monkeypatch, offers=(TENSORRT, CUDA, CPU), loads=None, events=None):
        self.asked, self.options, self.arguments = [], {}, {}
        real, board = ort.InferenceSession, self

        class Session(real):
            def __init__(self, path, options, providers, **others):
                board.asked, board.options, board.arguments = [p for p, _ in providers], dict(providers), others
                super().__init__(path, options, providers=[CPU], **others)

            def get_providers(self):
                return [p for p in board.asked if loads is None or p in loads]

            def end_profiling(self):
                path = super().end_profiling()
                if events is not None:
                    Path(path).write_text(json.dumps(events))
                return path

        monkeypatch.setattr(ort, "get_available_providers", lambda: list(offers))
        monkeypatch.setattr(ort, "InferenceSession", Session)


def ran(name, op, provider, index=0):
    """One line of a profile, in the form onnxruntime writes."""
    args = {"op_name": op, "provider": provider, "node_index": str(index), "thread_scheduling_stats": ""}
    return {
        "cat": "Node",
        "pid": 1,
        "tid": 1,
        "dur": 7,
        "ts": 9,
        "ph": "X",
        "name": f"{name}_kernel_time",
        "args": args,
    }


@pytest.mark.parametrize(
    ("provider", "offers", "wanted"),
    [
        ("tensorrt", [TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU]),
        ("TensorrtExecutionProvider", [TENSORRT, CPU], [TENSORRT, CPU]),
        ("cuda", [TENSORRT, CUDA, CPU], [CUDA, CPU]),
        ("cpu", [TENSORRT, CUDA, CPU], [CPU]),
    ],
)
def test_session_gets_the_provider_asked_for_first_and_then_what_takes_the_rest(
    model, monkeypatch, provider, offers, wanted
):
    gpu = Gpu(monkeypatch, offers)
    open_engine("onnxruntime", model, SHAPE, 1, provider)
    assert gpu.asked == wanted
    assert gpu.arguments == {"enable_fallback": 0}  # onnxruntime's own second try, with providers nobody asked for


def test_tensorrt_is_told_to_compute_in_full_precision_and_to_build_its_engine_anew(model, monkeypatch):
    gpu = Gpu(monkeypatch)
    open_engine("onnxruntime", model, SHAPE, 1, "tensorrt")
    off = {"trt_fp16_enable": False, "trt_int8_enable": False, "trt_engine_cache_enable": False}
    assert gpu.options == {TENSORRT: off, CUDA: {}, CPU: {}}


def test_nodes_on_another_provider_are_counted_as_fallback(model, monkeypatch):
    """Two Conv and a Mul on the GPU, a Resize on the CPU with copies to it and back; each seen in two runs."""
    nodes = [
        ran("conv_1", "Conv", CUDA, 1),
        ran("conv_2", "Conv", CUDA, 2),
        ran("mul", "Mul", CUDA, 3),
        ran("Memcpy", "MemcpyToHost", CUDA, 8),
        ran("resize", "Resize", CPU, 4),
        ran("Memcpy_token_1", "MemcpyFromHost", CUDA, 9),
    ]
    run = {"cat": "Session", "name": "model_run", "args": {}, "dur": 99, "ts": 1}
    launched = {"cat": "Kernel", "name": "conv_1_kernel_time", "args": {"stream": "0"}, "dur": 1, "ts": 1}
    Gpu(monkeypatch, events=[run, *nodes, launched, run, *nodes])
    facts = open_engine("onnxruntime", model, SHAPE, 1, "cuda").facts
    assert facts["nodes"] == {CUDA: 3, CPU: 1}
    assert facts["fallback_share"] == 0.25 and facts["fallback_ops"] == ["Resize"]
    assert facts["copies"] == 2
    assert facts["provider_used"] == CUDA and facts["providers_loaded"] == [CUDA, CPU]


def test_nodes_that_tensorrt_leaves_are_elsewhere_also_on_the_same_gpu(model, monkeypatch):
    part = "TRTKernel_graph_main_6158275317414417862_0_0"
    nodes = [
        ran(part, part, TENSORRT),
        ran("a", "Resize", CUDA, 5),
        ran("b", "Resize", CUDA, 6),
        ran("c", "NonZero", CPU),
    ]
    Gpu(monkeypatch, events=nodes)
    facts = open_engine("onnxruntime", model, SHAPE, 1, "tensorrt").facts
    assert facts["nodes"] == {TENSORRT: 1, CUDA: 2, CPU: 1}
    assert facts["fallback_share"] == 0.75 and facts["fallback_ops"] == ["Resize", "NonZero"]
    assert facts["provider_used"] == TENSORRT


def test_of_many_kinds_of_nodes_elsewhere_ten_are_named(model, monkeypatch):
    Gpu(monkeypatch, events=[ran(f"n{i}", f"Op{i}", CPU, i) for i in range(30)])
    facts = open_engine("onnxruntime", model, SHAPE, 1, "cuda").facts
    assert facts["fallback_share"] == 1.0 and facts["provider_used"] == CPU
    assert len(facts["fallback_ops"]) == 10


def test_profile_without_nodes_is_refused_rather_than_believed(model, monkeypatch):
    Gpu(monkeypatch, events=[])
    with pytest.raises(HarnessError, match="does not tell in its profile where the nodes ran"):
        open_engine("onnxruntime", model, SHAPE, 1, "cuda")


def test_network_that_runs_wholly_elsewhere_than_asked_says_so_and_computes_on(model, state):
    """Every onnxruntime for the CPU brings a second provider that takes no node of such a network."""
    engine = open_engine("onnxruntime", model, SHAPE, 1, "azure")
    assert engine.facts["providers_loaded"] == ["AzureExecutionProvider", CPU]
    assert engine.facts["provider_used"] == CPU and engine.facts["fallback_share"] == 1.0
    assert engine.facts["nodes"].keys() == {CPU}
    assert "Conv" in engine.facts["fallback_ops"] and len(engine.facts["fallback_ops"]) <= 10
    engine.input[:] = picture(1)
    np.testing.assert_allclose(engine.run()[2][0], forward(state, picture(1)[0])[2], rtol=0, atol=1e-3)


def test_input_is_copied_to_a_gpu_at_every_call(model, state, monkeypatch):
    """There, what is bound is a copy, taken when it was bound."""

    class Binding(ort.IOBinding):
        def bind_ortvalue_input(self, name, ortvalue):
            self.copy = ort.OrtValue.ortvalue_from_numpy(ortvalue.numpy().copy())
            super().bind_ortvalue_input(name, self.copy)

    Gpu(monkeypatch)
    monkeypatch.setattr(ort.InferenceSession, "io_binding", lambda self: Binding(self))
    engine = open_engine("onnxruntime", model, SHAPE, 1, "cuda")
    for seed in (1, 2):
        engine.input[:] = picture(seed)
        for found, wanted in zip(engine.run(), forward(state, picture(seed)[0]), strict=True):
            np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-3)


def test_provider_that_does_not_load_is_refused_with_what_did(model, monkeypatch):
    Gpu(monkeypatch, loads=[CUDA, CPU])
    with pytest.raises(UsageError, match=r"tensorrt: .* cannot load it here .* it loaded cuda, cpu$") as raised:
        open_engine("onnxruntime", model, SHAPE, 1, "tensorrt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize(
    ("machine", "step"), [("aarch64", "for this board's JetPack"), ("x86_64", "for this machine's CUDA")]
)
def test_gpu_asked_of_a_package_without_one_is_refused_with_what_to_install(
    model, monkeypatch, provider, machine, step
):
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(UsageError, match=f"provider {provider}: .*; it has cpu; .*{step}") as raised:
        open_engine("onnxruntime", model, SHAPE, 1, provider)
    assert "onnxruntime-gpu" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.needs_torch
class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch")

    def test_gpu_asked_of_a_torch_without_cuda_is_refused_with_what_to_install(self, model, monkeypatch, torch):
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(
            UsageError, match="it has cpu; on a Jetson, install in its place NVIDIA's torch wheel for this board's"
        ):
            open_engine("torch", model, SHAPE, 1, "cuda")

    def test_gpu_that_cuda_does_not_find_is_another_refusal(self, model, monkeypatch, torch):
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UsageError, match=r"is for CUDA 12\.6, but finds no GPU"):
            open_engine("torch", model, SHAPE, 1, "cuda")

    def test_gpu_and_cuda_version_are_facts(self, monkeypatch, torch):
        from edgewatt.workloads.engines import torch_engine

        monkeypatch.setattr(torch.version, "cuda", "12.6")
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Orin")
        assert torch_engine._gpu().items() >= {"gpu": "Orin", "cuda": "12.6"}.items()

    @pytest.mark.parametrize("kind", ["OutOfMemoryError", "NvMap"])
    def test_memory_that_does_not_suffice_is_told_at_load_and_in_a_run(self, model, monkeypatch, torch, kind):
        error = (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has 7.4 GiB.")
            if kind == "OutOfMemoryError"
            else RuntimeError(
                "NvMapMemAllocInternalTagged: 1075072515 error 12\nNVML_SUCCESS == r INTERNAL ASSERT FAILED"
            )
        )

        def full(self, *inputs):
            raise error

        engine = open_engine("torch", model, SHAPE, 1)
        monkeypatch.setattr(engine, "_net", lambda x: full(None))
        with pytest.raises(HarnessError, match="not enough memory") as raised:
            engine.run()
        assert "\n" not in str(raised.value)
        monkeypatch.setattr("edgewatt.workloads.femtodet.network.FemtoDet.forward", full)
        with pytest.raises(HarnessError, match=r"not enough memory for inputs of \(1, 3, 64, 96\)"):
            open_engine("torch", model, SHAPE, 1)


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


def test_size_the_network_cannot_take_is_one_line(name, model):
    with pytest.raises(HarnessError) as raised:
        open_engine(name, model, (1, 3, 72, 72), 1)
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
