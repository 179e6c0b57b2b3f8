"""PyTorch in this process, on the CPU or a CUDA device. Needs the extra `torch`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.workloads.engines.engine import Array, Engine, threads_used
from edgewatt.workloads.femtodet import graph
from edgewatt.workloads.femtodet.network import FemtoDet
from edgewatt.workloads.femtodet.variants import VARIANTS


class Torch(Engine):
    """The inference form of FemtoDet with the weights that stand beside `model`, traced, frozen and fused.

    The number of CPU threads is a setting of the process, so of every engine of this kind in it.
    """

    def __init__(self, model: Path, input_shape: tuple[int, ...], threads: int, provider: str) -> None:
        devices = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
        if provider.lower() not in devices:
            raise UsageError(
                f"provider {provider}: not in this torch ({torch.__version__}); it has {', '.join(devices)}"
            )
        threads = threads_used(threads)
        torch.set_num_threads(threads)
        self._device = torch.device(provider.lower())
        net = _network(model).to(self._device)
        self.input = np.zeros(input_shape, np.float32)
        self._shared = torch.from_numpy(self.input)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out, and still the fastest at this size
            traced = torch.jit.trace(net, self._shared.to(self._device))  # type: ignore[no-untyped-call]
            frozen = torch.jit.freeze(traced)
            self._net = torch.jit.optimize_for_inference(frozen)
        self.facts: dict[str, Any] = {
            "engine": "torch",
            "version": torch.__version__,
            "threads": threads,
            "provider_asked": provider,
            "provider_used": self._device.type,
            "nodes": {self._device.type: sum(1 for _ in frozen.graph.nodes() if _.kind().startswith("aten::"))},
            "fallback_share": 0.0,
            "graph": f"{model.stem}, traced and frozen",
            "model_bytes": model.with_name(graph.WEIGHTS).stat().st_size,
        }

    def run(self) -> tuple[Array, ...]:
        with torch.inference_mode():
            return tuple(y.cpu().numpy() for y in self._net(self._shared.to(self._device)))


def _network(model: Path) -> FemtoDet:
    variant = VARIANTS.get(model.name.split(".")[0])
    if variant is None:
        raise UsageError(f"{model}: the torch engine runs {', '.join(VARIANTS)} alone; use engine=onnxruntime")
    net = FemtoDet(variant, "inference")
    arrays = graph.read_weights(model)
    try:
        net.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
    except RuntimeError as error:
        raise HarnessError(f"{model.with_name(graph.WEIGHTS)}: {' '.join(str(error).split())[:300]}") from error
    return net.eval()
