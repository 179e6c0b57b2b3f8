"""What every engine offers: a model loaded once, run many times on one input of fixed shape."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class Engine(ABC):
    """A loaded model. The caller writes into `input` and calls `run`; nothing is allocated in between.

    `facts` tells what it really runs on: `engine`, `version`, `threads`, `provider_asked`, `provider_used`, `nodes`
    (provider -> number of nodes that ran there), `fallback_share` (of the nodes, those elsewhere than asked),
    `graph` (the file), `model_bytes`, and the engine's own settings.
    """

    input: Array
    facts: dict[str, Any]

    @abstractmethod
    def run(self) -> tuple[Array, ...]:
        """The model's outputs for what `input` holds now, valid until the next call."""


def threads_used(asked: int) -> int:
    """The number of threads for `asked`, where 0 means one for each CPU this process may use."""
    if asked < 0:
        raise ValueError(f"threads={asked}; wanted 0 (all) or more")
    if asked:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
