"""Facts as JSON values: whatever a device, an engine or a library said, made safe to store and to print."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import date
from enum import Enum
from typing import Any

import numpy as np

LONGEST_TEXT = 64 * 1024  # characters; a traceback is shorter, a runaway log is not
LONGEST_LIST = 100_000  # entries; samples belong in a trace
DEEPEST = 32  # levels; what is nested deeper refers to itself


def text(value: str) -> str:
    """The same without what some database or JSON reader refuses (NUL, half surrogates), cut where it is too long."""
    whole = value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if len(whole) <= LONGEST_TEXT:
        return whole
    return f"{whole[: LONGEST_TEXT - 50]}... (cut from {len(whole)} characters)"


def plain(value: Any, depth: int = 0) -> Any:
    """The same in JSON's own types: no NaN or infinity (null), no numpy, no paths, of bounded size. Twice is once."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Enum):
        return plain(value.value, depth)
    if depth < DEEPEST:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            pairs = list(value.items())
            if len(pairs) > LONGEST_LIST:
                pairs = [*pairs[: LONGEST_LIST - 1], ("...", f"cut from {len(pairs)} entries")]
            return {text(str(k)): plain(v, depth + 1) for k, v in pairs}
        if isinstance(value, (set, frozenset)):
            value = sorted(value, key=str)
        if isinstance(value, (list, tuple)):
            if len(value) > LONGEST_LIST:
                value = [*value[: LONGEST_LIST - 1], f"... cut from {len(value)} entries"]
            return [plain(v, depth + 1) for v in value]
    return text(value.isoformat() if isinstance(value, date) else str(value))


def dumped(value: Any, indent: int | None = None) -> str:
    """The JSON text of `value`, made safe; names and texts in their own letters."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False, indent=indent)
