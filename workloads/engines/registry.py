"""Engines by name, each imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from edgewatt.harness.api import UsageError
from edgewatt.harness.plugins import nearest
from edgewatt.workloads.engines.engine import Engine

# name -> module, class, and the extra that brings what it needs ("" for the base install)
ENGINES = {
    "onnxruntime": ("edgewatt.workloads.engines.onnxruntime_engine", "OnnxRuntime", ""),
    "torch": ("edgewatt.workloads.engines.torch_engine", "Torch", "torch"),
}


def open_engine(name: str, model: Path, input_shape: Sequence[int], threads: int = 0, provider: str = "cpu") -> Engine:
    """The engine called `name` with `model` loaded for inputs of `input_shape`.

    Args:
        name: one of ENGINES.
        model: an .onnx file; the engine `torch` reads the weights beside it (femtodet/graph.py).
        input_shape: (1, 3, height, width) for pictures.
        threads: CPU threads; 0: one for each CPU this process may use.
        provider: what to run on: "cpu", or an accelerator the engine has ("cuda", "tensorrt", ...).

    Raises:
        UsageError: no such engine or provider (those there are, are named), or its extra is not installed.
        HarnessError: the engine cannot load the model.
    """
    if name not in ENGINES:
        raise UsageError(f"no engine is called {name!r}; {nearest(name, ENGINES)}")
    module, kind, extra = ENGINES[name]
    try:
        engine = getattr(import_module(module), kind)
    except ImportError as error:
        missing = error.name or str(error)
        package = f"edgewatt[{extra}]" if extra else "edgewatt"
        raise UsageError(f"engine {name} needs {missing}; pip install '{package}'") from error
    opened = engine(model, tuple(input_shape), threads, provider)
    assert isinstance(opened, Engine)
    return opened
