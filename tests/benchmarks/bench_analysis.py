"""How long the analysis of a large run takes: 100,000 items, 600,000 samples of a gauge, of a counter, of both.

    python tests/benchmarks/bench_analysis.py

Prints processor seconds, median of three, and their ratio to reading the samples once (a sum).
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgewatt.harness.analysis import analyse
from edgewatt.harness.api import Items, Phase, Run, Trace
from support import made_run as made

ITEMS, SAMPLES, ITEM_S = 100_000, 600_000, 0.006


def run(*kinds: str) -> Run:
    of = made.phases(3, window_s=ITEMS / 3 * ITEM_S, isolated_s=3.0, items=ITEMS // 3)
    rate_hz = SAMPLES / (of[-1].end_s - of[0].start_s + 10)
    traces: list[Trace] = []
    for kind in kinds:
        if kind == "gauge":
            traces.append(made.gauged(of, rate_hz=rate_hz, noise_w=0.2, channel=made.gauge(quantum=0.001)))
        else:
            traces.append(made.counted(of, rate_hz=rate_hz, channel=made.counter(quantum=6.1e-5)))
    return made.run(of, traces, _items([p for p in of if p.phase == "window"]))


def _items(windows: list[Phase]) -> Items:
    """Items of three phases in every window, made in one go."""
    cuts = np.array([0.0, 0.3, 0.9, 1.0]) * ITEM_S
    n = np.arange(windows[0].items)
    starts = [p.start_s + n[:, None] * ITEM_S + cuts for p in windows]
    start = np.concatenate([s[:, :-1].ravel() for s in starts])
    end = np.concatenate([s[:, 1:].ravel() for s in starts])
    item = np.tile(np.repeat(n, 3), len(windows))
    repeat = np.repeat([p.repeat for p in windows], 3 * len(n))
    phase = np.tile(np.arange(3), len(windows) * len(n))
    return Items(tuple(made.ITEM), item, item % 90, phase, np.zeros(len(item), np.int64), repeat, start, end)


def seconds(what: Callable[[], object]) -> float:
    took = []
    for _ in range(3):
        start = time.process_time()
        what()
        took.append(time.process_time() - start)
    return statistics.median(took)


def main() -> None:
    for kinds in (("gauge",), ("counter",), ("gauge", "counter")):
        of = run(*kinds)
        once = seconds(lambda of=of: [np.nansum(t.values) + np.nansum(t.t_s) for t in of.traces])
        took = seconds(lambda of=of: analyse(of))
        print(f"{' + '.join(kinds):18} {took:6.2f} s   {took / once:7.0f} x one sum over the samples")


if __name__ == "__main__":
    main()
