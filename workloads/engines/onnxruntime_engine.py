"""ONNX Runtime in this process, on the execution provider that was asked for, verified node by node."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.workloads.engines.engine import Array, Engine, gpu_step, one_line, threads_used

_SUFFIX = "ExecutionProvider"
_CPU, _CUDA, _TENSORRT = (f"{name}{_SUFFIX}" for name in ("CPU", "CUDA", "Tensorrt"))

# Where nodes go that the provider asked for cannot run: the next in line is asked, the CPU at the end takes anything.
_NEXT = {_TENSORRT: (_CUDA, _CPU), _CUDA: (_CPU,), _CPU: ()}

# Said although all are the defaults, since otherwise variables of the environment may say something else.
# The cache of built engines stays off: it is found by the graph's structure alone, so that other weights or another
# picture size would be given an engine that is not theirs. Each load builds anew, which may take minutes.
_OPTIONS = {_TENSORRT: {"trt_fp16_enable": False, "trt_int8_enable": False, "trt_engine_cache_enable": False}}

_MOST_OPS = 10  # more kinds of nodes that ran elsewhere tell a reader nothing


class OnnxRuntime(Engine):
    """A session whose input and outputs are bound once, to arrays of ours.

    Where the CPU has AVX-512 and a `.wide.onnx` stands beside the model, that is loaded instead: the same function,
    laid out for the blocks of 16 channels that onnxruntime then uses (femtodet/graph.py).
    """

    def __init__(self, model: Path, input_shape: tuple[int, ...], threads: int, provider: str) -> None:
        asked = _provider(provider)
        threads = threads_used(threads)
        graph = _fitting(model, asked)
        with tempfile.TemporaryDirectory(prefix="edgewatt-") as scratch:
            session = _session(graph, input_shape, threads, asked, Path(scratch))
            if asked not in session.get_providers():
                raise UsageError(
                    f"provider {provider}: onnxruntime {ort.__version__} has it but cannot load it here (a library it "
                    "needs is not there, or of another version than it was built for); it loaded "
                    f"{_short(session.get_providers())}"
                )
            (source,) = session.get_inputs()
            self.input = np.zeros(input_shape, np.float32)
            value = ort.OrtValue.ortvalue_from_numpy(self.input)
            binding = session.io_binding()
            self._bound = [value]
            binding.bind_ortvalue_input(source.name, value)
            outputs = self._bind_outputs(session, binding)
            placement = _placement(session, binding, asked)
        self._session, self._binding = session, binding
        self.run = (  # type: ignore[method-assign]
            _bound_call(session, binding, outputs, self.input)
            if asked == _CPU
            else _copying_call(session, binding, outputs, source.name, value)
        )
        self.facts: dict[str, Any] = {
            "engine": "onnxruntime",
            "version": ort.__version__,
            "threads": threads,
            "provider_asked": provider,
            "providers_loaded": session.get_providers(),
            "provider_options": session.get_provider_options().get(asked, {}),
            **placement,
            "graph": graph.name,
            "model_bytes": _size_bytes(graph),
            "execution": "sequential",
            "spinning": True,  # idle threads wait for work in a loop for a while: onnxruntime's default, and faster
            "optimisation": "all",
        }

    def run(self) -> tuple[Array, ...]:
        raise NotImplementedError("replaced by the bound call when the engine is made")

    def _bind_outputs(self, session: ort.InferenceSession, binding: ort.IOBinding) -> tuple[Array, ...]:
        """Arrays for the outputs, bound; their shapes are those of a first run."""
        names = [o.name for o in session.get_outputs()]
        try:  # on a GPU, memory that does not suffice shows here at the latest
            shapes = [o.shape for o in session.run(names, {session.get_inputs()[0].name: self.input})]
        except Exception as error:  # onnxruntime's exceptions have no common base beside this
            raise HarnessError(f"the model does not run on inputs of {self.input.shape}: {one_line(error)}") from error
        outputs = tuple(np.zeros(shape, np.float32) for shape in shapes)
        for name, array in zip(names, outputs, strict=True):
            self._bound.append(ort.OrtValue.ortvalue_from_numpy(array))
            binding.bind_ortvalue_output(name, self._bound[-1])
        return outputs


def _bound_call(
    session: ort.InferenceSession, binding: ort.IOBinding, outputs: tuple[Array, ...], source: Array
) -> Callable[[], tuple[Array, ...]]:
    """A call without arguments.

    The extension's own function with kept run options costs 1 us less a call than the public method, most of it for
    the options; with other versions of onnxruntime, where it may be missing, the public one serves.
    The binding holds addresses alone: the call keeps the arrays behind them alive, also when the engine is gone.
    """
    options = ort.RunOptions()
    extension = getattr(session, "_sess", None)
    call = getattr(getattr(extension, "run_with_iobinding", None), "__func__", None)
    bound = getattr(binding, "_iobinding", None)
    if call is None or bound is None:

        def run(_alive: Array = source) -> tuple[Array, ...]:
            session.run_with_iobinding(binding, options)
            return outputs
    else:

        def run(_alive: Array = source) -> tuple[Array, ...]:
            call(extension, bound, options)
            return outputs

    return run


def _copying_call(
    session: ort.InferenceSession, binding: ort.IOBinding, outputs: tuple[Array, ...], name: str, value: ort.OrtValue
) -> Callable[[], tuple[Array, ...]]:
    """A call without arguments, for a provider that may compute in memory of its own.

    The input is copied there when it is bound and not again, so it is bound at every call. Outputs come back into
    `outputs`; nothing of the call is still at work when it returns.
    """
    options = ort.RunOptions()

    def run() -> tuple[Array, ...]:
        binding.bind_ortvalue_input(name, value)
        binding.synchronize_inputs()
        session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()
        return outputs

    return run


def _provider(name: str) -> str:
    """onnxruntime's name of a provider ("cpu" -> "CPUExecutionProvider")."""
    for full in ort.get_available_providers():
        if name.lower() in (full.lower(), full.removesuffix(_SUFFIX).lower()):
            return str(full)
    there, step = _short(ort.get_available_providers()), gpu_step(name, "onnxruntime-gpu")
    raise UsageError(f"provider {name}: not in this onnxruntime ({ort.__version__}); it has {there}{step}")


def _short(names: Sequence[str]) -> str:
    """Providers as one asks for them; without the one that only talks to a service elsewhere."""
    return ", ".join(p.removesuffix(_SUFFIX).lower() for p in names if p != f"Azure{_SUFFIX}")


def _in_order(asked: str) -> list[tuple[str, dict[str, Any]]]:
    """The providers a session gets, with their options: the one asked for, then those that take what it leaves."""
    available = ort.get_available_providers()
    names = [asked, *(p for p in _NEXT.get(asked, (_CPU,)) if p in available)]
    return [(name, _OPTIONS.get(name, {})) for name in names]


def _session(
    graph: Path, input_shape: tuple[int, ...], threads: int, provider: str, scratch: Path
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors alone: what a warning would say is checked below
    options.enable_profiling = True  # of one run, to see where each node runs; ended before anything is measured
    options.profile_file_prefix = str(scratch / "nodes")
    if len(input_shape) == 4:
        # A known size lets residuals be fused and memory be planned: 5 % faster than with free dimensions.
        options.add_free_dimension_override_by_name("height", input_shape[2])
        options.add_free_dimension_override_by_name("width", input_shape[3])
    try:
        # `enable_fallback`: on a failure, onnxruntime would begin again with other providers of its own choice
        session = ort.InferenceSession(str(graph), options, providers=_in_order(provider), enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common base beside this
        raise HarnessError(f"{graph}: onnxruntime {ort.__version__} cannot load it: {one_line(error)}") from error
    session.disable_fallback()
    return session


def _placement(session: ort.InferenceSession, binding: ort.IOBinding, asked: str) -> dict[str, Any]:
    """Where the nodes ran in a run that is profiled, as facts; ends the profiling.

    TensorRT runs a whole part of the graph as one node, and is counted so. `copies` between the memories of two
    providers are nodes too, put there by onnxruntime; they are not counted among the model's.
    """
    session.run_with_iobinding(binding)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {
        (e["name"], e["args"].get("node_index"), e["args"].get("op_name", ""), e["args"].get("provider", ""))
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    }
    placed = [(op, provider) for _, _, op, provider in sorted(ran, key=str) if not op.startswith("Memcpy")]
    if not placed:
        raise HarnessError(f"onnxruntime {ort.__version__} does not tell in its profile where the nodes ran")
    nodes = Counter(provider for _, provider in placed)
    elsewhere = Counter(op for op, provider in placed if provider != asked)
    return {
        "provider_used": asked if nodes[asked] else nodes.most_common(1)[0][0],
        "nodes": dict(nodes.most_common()),
        "fallback_share": elsewhere.total() / len(placed),
        "fallback_ops": [op for op, _ in elsewhere.most_common(_MOST_OPS)],
        "copies": len(ran) - len(placed),
    }


def _fitting(model: Path, provider: str) -> Path:
    """The form of the model that fits this CPU."""
    wide = model.with_name(f"{model.name.removesuffix('.onnx')}.wide.onnx")
    return wide if provider == _CPU and wide.exists() and _has_avx512() else model


def _has_avx512() -> bool:
    try:
        return " avx512f " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _size_bytes(graph: Path) -> int:
    """The graph and the weights it points to."""
    weights = graph.with_name("weights.safetensors")
    return graph.stat().st_size + (weights.stat().st_size if weights.exists() else 0)
