"""What every engine offers: a model loaded once, run many times on one input of fixed shape."""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class Engine(ABC):
    """A loaded model. The caller writes into `input` and calls `run`; nothing is allocated in between.

    `facts` tells what it really runs on: `engine`, `version`, `threads`, `provider_asked`, `provider_used`, `nodes`
    (provider -> number of nodes that ran there), `fallback_share` (of the nodes, those elsewhere than asked),
    `fallback_ops` (what these compute, the most frequent first, at most 10), `graph` (the file), `model_bytes`, and
    the engine's own settings.
    """

    input: Array
    facts: dict[str, Any]

    @abstractmethod
    def run(self) -> tuple[Array, ...]:
        """The model's outputs for what `input` holds now, valid until the next call.

        They lie in this process's memory, computed: a stamp taken afterwards has all of a GPU's work behind it.
        """


def threads_used(asked: int) -> int:
    """The number of threads for `asked`, where 0 means one for each CPU this process may use."""
    if asked < 0:
        raise ValueError(f"threads={asked}; wanted 0 (all) or more")
    if asked:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_step(provider: str, package: str) -> str:
    """What to install where `package` lacks a provider of NVIDIA's, as the end of a message; "" for other providers."""
    if provider.lower().removesuffix("executionprovider") not in ("cuda", "tensorrt"):
        return ""
    if platform.machine() == "aarch64":
        return f"; on a Jetson, install in its place NVIDIA's {package} wheel for this board's JetPack"
    return f"; install in its place {package} for this machine's CUDA"


def one_line(error: BaseException) -> str:
    """What an error of a library says, without its line breaks and the end of long ones."""
    return " ".join(str(error).split())[:300]
