"""What a language model is asked for: the time to its first token, tokens a second, and how hard the device worked.

A step is one row of the items: `prefill` is one on all tokens of a prompt; `decode` has one for each token after the
first, which is out when the prefill ends. Items without such phases have none of these figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewatt.harness import statistics
from edgewatt.harness.analysis_timing import FIRST_TOKEN, PREFILL, between, few, quantiles, uneven
from edgewatt.harness.analysis_view import SEED, WHOLE_RUN, WINDOW, Findings, Steps, View, steps_of
from edgewatt.harness.api import Floats, Ints, Items

VISION, DECODE = "vision", "decode"
EACH_TOKEN = {"tpot_s": 0.5, "tpot_p90_s": 0.9, "tpot_p99_s": 0.99}
READ_BANDWIDTH, READ_BANDWIDTH_ERROR = "read_bandwidth_bytes_per_s", "read_bandwidth_error_bytes_per_s"


def token_figures(view: View, found: Findings) -> None:
    """Everything that follows from the steps of the windows' items, and from what the engine says a step costs."""
    _first_token(view, found)
    _each_token(view, found)
    for phase, which in ((PREFILL, "of the prompt"), (DECODE, "after the first, one a step")):
        _speed(view, phase, which, found)
    _work(view, found)


# ---------------------------------------------------------------------------------------------------------------------
# How long a reader waits


def _first_token(view: View, found: Findings) -> None:
    vision, prefill = view.spans(WINDOW, VISION), view.spans(WINDOW, PREFILL)
    if len(vision.item) and VISION not in uneven(view):
        quantiles({"vision_s": 0.5}, WINDOW, _by_window(vision, vision.duration_s), "vision of every item", found)
    if len(prefill.item) == 0:
        return
    waited_s = prefill.end_s - prefill.begun_s
    what = "from the start of an item to the end of its prefill, when its first token is out"
    quantiles(FIRST_TOKEN, WINDOW, _by_window(prefill, waited_s), what, found)


def _by_window(steps: Steps, values: Floats) -> list[Floats]:
    return [values[steps.interval == k] for k in np.unique(steps.interval)]


def _each_token(view: View, found: Findings) -> None:
    steps = _counted(view.steps(WINDOW, DECODE))
    if len(steps.item) == 0:
        return
    seconds = steps.duration_s / steps.tokens
    qs = tuple(EACH_TOKEN.values())
    every = statistics.quantiles_of_groups(seconds, steps.item, qs, SEED)
    windows = [steps.interval == k for k in np.unique(steps.interval)]
    each = [statistics.quantiles_of_groups(seconds[k], steps.item[k], qs, SEED) for k in windows]
    for k, (metric, q) in enumerate(EACH_TOKEN.items()):
        value, width = every[k]
        parts = {"items": width}
        method = (
            f"{100 * q:g} % quantile of {len(seconds)} steps of decode (tokens after the first); bootstrap over items"
        )
        if len(windows) > 1:
            parts["repeats"] = between([found_in[k] for found_in in each])
            method += f", and by how much more than that {len(windows)} repeats differ"
        found.measured(metric, value, math.hypot(*parts.values()), "s", WINDOW, len(seconds), method, parts=parts)
    few(EACH_TOKEN, len(seconds), "steps of decode", found)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens by seconds


@dataclass(frozen=True)
class Rate:
    """A sum of amounts by a sum of seconds, `value` within `parts` (95 % half-widths), out of n items."""

    value: float
    parts: dict[str, float]
    n: int

    @property
    def width(self) -> float:
        """The half-width of its 95 % interval; NaN where one item alone says nothing of it."""
        return math.hypot(*self.parts.values())


def decode_rate_at(items: Items, position: int, half_width: int, part: str = WINDOW) -> Rate | None:
    """Tokens a second of the steps of `decode` within `half_width` tokens of the `position`-th after the first.

    The first step of decode is at position 1. None where no item came that far.
    """
    steps = _counted(steps_of(items, part, DECODE))
    if len(steps.item) == 0:
        return None
    first = np.searchsorted(steps.item, steps.item)
    at = steps.so_far - (steps.so_far - steps.tokens)[first]
    near = np.abs(at - position) <= half_width
    return _rate(steps.where(near), steps.tokens[near]) if near.any() else None


def _counted(steps: Steps) -> Steps:
    """The steps that worked on tokens: an item that decoded none has a step all the same."""
    return steps.where(steps.tokens > 0)


def _rate(steps: Steps, amounts: Floats | Ints) -> Rate:
    """Amounts (n,) of the steps by their seconds. Items are drawn anew, not steps, which resemble each other in one."""
    named, of = np.unique(steps.item, return_inverse=True)
    amount, seconds = np.bincount(of, amounts), np.bincount(of, steps.duration_s)
    value, width = statistics.ratio_of_sums(amount, seconds, SEED)
    parts = {"items": width}
    window = np.zeros(len(named), np.int64)
    window[of] = steps.interval
    if len(windows := np.unique(window)) > 1:
        each = [window == k for k in windows]
        parts["repeats"] = between([statistics.ratio_of_sums(amount[k], seconds[k], SEED) for k in each])
    return Rate(value, parts, len(named))


def _how(rate: Rate) -> str:
    more = ", and by how much more than that repeats differ" if "repeats" in rate.parts else ""
    return f"{rate.n} items of the windows; bootstrap over items{more}"


def _speed(view: View, phase: str, which: str, found: Findings) -> None:
    steps = _counted(view.steps(WINDOW, phase))
    if len(steps.item) == 0:
        return
    rate, n = _rate(steps, steps.tokens), int(steps.tokens.sum())
    method = f"{n} tokens {which}, by the time of their steps of {phase}; {_how(rate)}"
    found.measured(f"{phase}_tokens_per_s", rate.value, rate.width, "1/s", WINDOW, n, method, parts=rate.parts)
    items = int(view.counts(WINDOW).sum())
    found.measured(f"{phase}_tokens", n / items, None, "1", WINDOW, items, f"tokens {which}, mean of all items")


# ---------------------------------------------------------------------------------------------------------------------
# Work by seconds


@dataclass(frozen=True)
class Cost:
    """What a step on t tokens costs, after which its item has k tokens: `macs` [c0, c1, c2] for c0 + c1 t + c2 t k
    multiply-accumulate operations, `moved` [b0, b1, b2] for b0 + b1 t + b2 k bytes that have to come from memory."""

    macs: tuple[float, float, float]
    moved: tuple[float, float, float] | None

    def of(self, steps: Steps) -> tuple[Floats, Floats]:
        """Operations and bytes (n,) of each step."""
        t = steps.tokens.astype(np.float64)
        k = np.where(t > 0, steps.so_far, 0).astype(np.float64)
        (c0, c1, c2), (b0, b1, b2) = self.macs, self.moved or (0.0, 0.0, 0.0)
        return c0 + c1 * t + c2 * t * k, b0 + b1 * t + b2 * k

    @property
    def is_by_token(self) -> bool:
        """Whether it grows with the tokens, so that a step on none has done nothing."""
        return any(self.macs[1:])


def costs(engine: Mapping[str, Any]) -> dict[str, Cost]:
    """The costs of each phase that an engine's facts tell (`Runner`); those that make no sense are left out."""
    told = engine.get("costs")
    found = {}
    for phase, cost in told.items() if isinstance(told, Mapping) else ():
        macs, moved = (_three(cost.get(k)) if isinstance(cost, Mapping) else None for k in ("macs", "bytes"))
        if macs:
            found[str(phase)] = Cost(macs, moved)
    return found


def _three(told: Any) -> tuple[float, float, float] | None:
    if not isinstance(told, Sequence) or isinstance(told, str) or len(told) != 3:
        return None
    numbers = [_number(x) for x in told]
    if any(x is None or x < 0 for x in numbers):
        return None
    a, b, c = (float(x or 0) for x in numbers)
    return a, b, c


def _number(told: Any) -> float | None:
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not math.isfinite(told):
        return None
    return float(told)


def _work(view: View, found: Findings) -> None:
    engine = view.run.engine
    known = costs(engine)
    if engine.get("costs") and not known:
        found.warnings.append(f"the engine tells costs that make no sense ({engine['costs']!r}); left out")
    items = int(view.counts(WINDOW).sum())
    done: dict[str, float] = {}
    for phase, cost in known.items():
        steps = view.steps(WINDOW, phase)
        if steps.tokens.any() or cost.is_by_token:
            steps = _counted(steps)
        if len(steps.item) == 0:
            continue
        macs, moved = cost.of(steps)
        done[phase] = float(macs.sum())
        if done[phase] > 0:
            rate = _rate(steps, 2 * macs)
            method = f"two operations for each of the {macs.sum():.4g} multiply-accumulates that its cost model counts"
            method += f" in {phase}, by the time it took; {_how(rate)}"
            found.measured("flops_per_s", rate.value, rate.width, "FLOP/s", phase, rate.n, method, parts=rate.parts)
            method = f"multiply-accumulates of {phase} by its cost model, mean of all items"
            found.measured("macs_per_inference", done[phase] / items, None, "MAC", phase, items, method)
        if phase == DECODE and cost.moved and moved.sum() > 0:
            _bandwidth(engine, steps, moved, found)
    if sum(done.values()) > 0:
        method = f"multiply-accumulates of {' + '.join(done)} by their cost models, mean of all items"
        found.measured("macs_per_inference", sum(done.values()) / items, None, "MAC", WINDOW, items, method)
    _read_bandwidth(engine, found)


def _bandwidth(engine: Mapping[str, Any], steps: Steps, moved: Floats, found: Findings) -> None:
    """What decode fetched from memory by the cost model, against what memory was measured to give."""
    n = int(steps.tokens.sum())
    method = "bytes that its cost model counts in decode, mean of its tokens"
    found.measured("bytes_per_token", float(moved.sum()) / n, None, "B", DECODE, n, method)
    rate = _rate(steps, moved)
    method = f"bytes that its cost model counts in decode, by the time it took; {_how(rate)}"
    found.measured("bandwidth_bytes_per_s", rate.value, rate.width, "B/s", DECODE, rate.n, method, parts=rate.parts)
    most, error = _number(engine.get(READ_BANDWIDTH)), _number(engine.get(READ_BANDWIDTH_ERROR))
    if not most or most <= 0:
        return
    share = rate.value / most
    parts = {name: width / most for name, width in rate.parts.items()} | {"read bandwidth": share * (error or 0) / most}
    width = math.hypot(*parts.values())
    method = f"bandwidth of decode by the {most:.4g} B/s that the device's memory was measured to give when read"
    found.measured("bandwidth_utilisation", share, width, "1", DECODE, rate.n, method, parts=parts)
    if share - (width if math.isfinite(width) else 0) > 1:
        found.warnings.append(
            f"decode fetched {rate.value:.3g} B/s by its cost model, more than the {most:.3g} B/s that memory was "
            "measured to give: caches hold a part of the weights, or the measurement was disturbed"
        )


def _read_bandwidth(engine: Mapping[str, Any], found: Findings) -> None:
    most = _number(engine.get(READ_BANDWIDTH))
    if most and most > 0:
        method = "sustained reading of main memory by the process that runs the model"
        error = _number(engine.get(READ_BANDWIDTH_ERROR))
        found.measured(READ_BANDWIDTH, most, error, "B/s", WHOLE_RUN, 1, method)
