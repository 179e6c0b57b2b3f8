"""Sources for the agent's sampling: functions of (params) that give column names and a function that reads them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any


def counting(params: dict[str, Any]) -> tuple[list[str], Callable[[], list[float | None]]]:
    """Two columns: how often it was read, and a half; every third reading of the second is missing."""
    times = itertools.count(params.get("first", 0))

    def read() -> list[float | None]:
        k = next(times)
        if k == params.get("raise_at"):
            raise OSError(5, "the bus is stuck")
        return [float(k), None if k % 3 == 2 else 0.5]

    return ["count", "half"], read
