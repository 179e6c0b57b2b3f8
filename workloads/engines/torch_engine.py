"""PyTorch in this process, on the CPU or a CUDA device. Needs the extra `torch`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.workloads.engines.engine import Array, Engine, gpu_step, one_line, threads_used
from edgewatt.workloads.femtodet import graph
from edgewatt.workloads.femtodet.network import FemtoDet
from edgewatt.workloads.femtodet.variants import VARIANTS


class Torch(Engine):
    """The inference form of FemtoDet with the weights that stand beside `model`, traced, frozen and fused.

    The number of CPU threads is a setting of the process, so of every engine of this kind in it.
    """

    def __init__(self, model: Path, input_shape: tuple[int, ...], threads: int, provider: str) -> None:
        self._device = torch_device(provider)
        threads = threads_used(threads)
        torch.set_num_threads(threads)
        net = _network(model)
        self.input = np.zeros(input_shape, np.float32)
        self._shared = torch.from_numpy(self.input)
        try:
            with torch.inference_mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit is on its way out, and still the fastest at this size
                traced = torch.jit.trace(net.to(self._device), self._shared.to(self._device))  # type: ignore[no-untyped-call]
                frozen = torch.jit.freeze(traced)
                self._net = torch.jit.optimize_for_inference(frozen)
                used = self._net(self._shared.to(self._device))[0].device.type
        except RuntimeError as error:
            raise _failure(error, input_shape) from error
        self.facts: dict[str, Any] = {
            "engine": "torch",
            "version": torch.__version__,
            "threads": threads,
            "provider_asked": provider,
            "provider_used": used,
            "nodes": {used: sum(1 for _ in frozen.graph.nodes() if _.kind().startswith("aten::"))},
            "fallback_share": 0.0 if used == self._device.type else 1.0,  # torch moves all of a network or refuses
            "fallback_ops": [],
            "graph": f"{model.stem}, traced and frozen",
            "model_bytes": model.with_name(graph.WEIGHTS).stat().st_size,
            **(_gpu() if used == "cuda" else {}),
        }

    def run(self) -> tuple[Array, ...]:
        try:
            with torch.inference_mode():
                # `cpu` waits until the GPU has computed what it copies: no work is left when this returns
                return tuple(y.cpu().numpy() for y in self._net(self._shared.to(self._device)))
        except RuntimeError as error:
            raise _failure(error, self.input.shape) from error


def torch_device(provider: str) -> torch.device:
    """The device that a provider's name stands for; UsageError if this torch has none such."""
    name = provider.lower()
    if name == "cpu" or (name == "cuda" and torch.cuda.is_available()):
        return torch.device(name)
    if name == "cuda" and torch.version.cuda:
        raise UsageError(
            f"provider {provider}: this torch ({torch.__version__}) is for CUDA {torch.version.cuda}, but finds no GPU "
            "it can use; see that the driver is loaded and suits it, or use provider=cpu"
        )
    there = "cpu, cuda" if torch.cuda.is_available() else "cpu"
    step = gpu_step(provider, "torch") if name == "cuda" else ""
    raise UsageError(f"provider {provider}: not in this torch ({torch.__version__}); it has {there}{step}")


def _gpu() -> dict[str, Any]:
    """The GPU that is used, and what makes its results and speed differ from those of another."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "tf32": torch.backends.cudnn.allow_tf32,  # float32 convolutions at 10 bits: torch's default where the GPU can
    }


def _failure(error: RuntimeError, shape: tuple[int, ...]) -> HarnessError:
    """What torch says in one line, with a next step where memory did not suffice."""
    said = one_line(error)
    # A Jetson's GPU shares the processor's memory; its allocator, NvMap, tells its end in an error of another kind.
    if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in said or "NvMapMemAlloc" in said:
        return HarnessError(f"not enough memory for inputs of {shape}: {said}; use a smaller size")
    return HarnessError(f"the model does not run on inputs of {shape}: {said}")


def _network(model: Path) -> FemtoDet:
    variant = VARIANTS.get(model.name.split(".")[0])
    if variant is None:
        raise UsageError(f"{model}: the torch engine runs {', '.join(VARIANTS)} alone; use engine=onnxruntime")
    net = FemtoDet(variant, "inference")
    arrays = graph.read_weights(model)
    try:
        net.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
    except RuntimeError as error:
        raise HarnessError(f"{model.with_name(graph.WEIGHTS)}: {one_line(error)}") from error
    return net.eval()
