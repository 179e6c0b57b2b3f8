"""Runs of vision-language models whose numbers and facts are written by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgewatt.harness.api import Flag, Items, Measurement, Run

CHECKPOINT = "/models/MobileVLM-1.7B"
SPEC = {"variant": "v1-1.7b", "precision": "fp16", "weights": CHECKPOINT, "engine": "torch", "size": 0, "limit": None}


def vlm_run(
    *measured: Measurement,
    workload: str = "mobilevlm",
    spec: Mapping[str, Any] | None = None,
    flags: Sequence[Flag] = (),
    tokens: tuple[int, int] | None = None,
    **changes: Any,
) -> Run:
    """A run on "board"; `tokens` are those of the prompt and of the answer of each of its two items."""
    run = Run(
        "20260101T000000-00000000", "2026-01-01T00:00:00Z", "board", workload, {**SPEC, **(spec or {})}, {},
        measurements=measured, flags=tuple(flags), items=Items.none() if tokens is None else vlm_items(*tokens),
    )  # fmt: skip
    return dataclasses.replace(run, **changes)


def vlm_items(prompt: int, answer: int) -> Items:
    """Two items of a window: prefill of the whole prompt, then a decoding step for each token but the first."""
    phases = [0, *[1] * (answer - 1)]
    n = 2 * len(phases)
    item = np.repeat([0, 1], len(phases))
    zero = np.zeros(n, np.int64)
    t_s = np.arange(n, dtype=float)
    tokens = np.tile([prompt, *[1] * (answer - 1)], 2)
    return Items(("prefill", "decode"), item, item, np.tile(phases, 2), zero, zero, t_s, t_s + 1, ("window",), tokens)


def measured(metric: str, value: float, error: float | None = None, unit: str = "1", phase: str = "run") -> Measurement:
    return Measurement(metric, value, error, unit, phase, 10, "by hand")
