"""ONNX Runtime in this process, on the execution provider that was asked for, verified node by node."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.workloads.engines.engine import Array, Engine, threads_used

_SUFFIX = "ExecutionProvider"


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
                raise UsageError(f"provider {provider}: onnxruntime has it but cannot load it here; {_offer()}")
            (source,) = session.get_inputs()
            self.input = np.zeros(input_shape, np.float32)
            binding = session.io_binding()
            self._bound = [ort.OrtValue.ortvalue_from_numpy(self.input)]
            binding.bind_ortvalue_input(source.name, self._bound[0])
            outputs = self._bind_outputs(session, binding)
            nodes = _nodes_by_provider(session, binding)
        self._session, self._binding = session, binding
        self.run = _bound_call(session, binding, outputs, self.input)  # type: ignore[method-assign]
        elsewhere = sum(n for name, n in nodes.items() if name != asked)
        self.facts: dict[str, Any] = {
            "engine": "onnxruntime",
            "version": ort.__version__,
            "threads": threads,
            "provider_asked": provider,
            "provider_used": asked if nodes.get(asked) else max(nodes, key=lambda name: nodes[name]),
            "providers_loaded": session.get_providers(),
            "nodes": nodes,
            "fallback_share": elsewhere / sum(nodes.values()),
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
        try:
            shapes = [o.shape for o in session.run(names, {session.get_inputs()[0].name: self.input})]
        except Exception as error:  # onnxruntime's exceptions have no common base beside this
            raise HarnessError(f"the model does not run on inputs of {self.input.shape}: {_one_line(error)}") from error
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


def _provider(name: str) -> str:
    """onnxruntime's name of a provider ("cpu" -> "CPUExecutionProvider")."""
    for full in ort.get_available_providers():
        if name.lower() in (full.lower(), full.removesuffix(_SUFFIX).lower()):
            return str(full)
    raise UsageError(f"provider {name}: not in this onnxruntime ({ort.__version__}); {_offer()}")


def _offer() -> str:
    names = [p.removesuffix(_SUFFIX).lower() for p in ort.get_available_providers() if p != f"Azure{_SUFFIX}"]
    return f"it has {', '.join(names)}"


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
        session = ort.InferenceSession(str(graph), options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions have no common base beside this
        raise HarnessError(f"{graph}: onnxruntime {ort.__version__} cannot load it: {_one_line(error)}") from error
    session.disable_fallback()
    return session


def _nodes_by_provider(session: ort.InferenceSession, binding: ort.IOBinding) -> dict[str, int]:
    """How many distinct nodes ran on each provider, from a profile of one run; ends the profiling."""
    session.run_with_iobinding(binding)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {
        (e["name"], e["args"].get("provider", ""))
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    }
    return dict(Counter(provider for _, provider in sorted(ran)).most_common())


def _fitting(model: Path, provider: str) -> Path:
    """The form of the model that fits this CPU."""
    wide = model.with_name(f"{model.name.removesuffix('.onnx')}.wide.onnx")
    return wide if provider == f"CPU{_SUFFIX}" and wide.exists() and _has_avx512() else model


def _has_avx512() -> bool:
    try:
        return " avx512f " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _size_bytes(graph: Path) -> int:
    """The graph and the weights it points to."""
    weights = graph.with_name("weights.safetensors")
    return graph.stat().st_size + (weights.stat().st_size if weights.exists() else 0)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
