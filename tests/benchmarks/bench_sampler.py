"""How steadily the agent samples beside busy processes, and how much it slows down what it measures.

    python tests/benchmarks/bench_sampler.py [seconds]

Asked for: at 1000 Hz x 8 channels at least 99 % of the rate and a p99 gap of at most 2 ms beside a busy Python process;
at 100 Hz a loop slowed by at most 0.5 %. On a machine with other work the ratio of wall times drowns in noise: that of
CPU times (what sampling does to caches) plus the agent's own CPU time (what it takes away) then bounds the slowdown.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.transport import Subprocess
from edgewatt.harness.api import Channel, Trace

CHANNELS = 8
BLOCK_S = 0.25  # sampling is on and off in turns this long
SPAWN = multiprocessing.get_context("spawn")


def meter(here: Subprocess, folder: Path, rate_hz: float) -> AgentMeter:
    paths = [folder / f"power{k}_input" for k in range(CHANNELS)]
    for k, path in enumerate(paths):
        path.write_text(f"{5_120_000 + k}\n")
    channels = [Channel(p.name, "power", "W", "gauge", covers="nothing") for p in paths]
    job = {"rate_hz": rate_hz, "nodes": [{"path": str(p)} for p in paths]}
    return AgentMeter(here, "bench", channels, job, [1e-6] * CHANNELS)  # type: ignore[arg-type]


def python_item() -> Callable[[], None]:
    """A few milliseconds of Python."""

    def item() -> None:
        total = 0
        for k in range(60_000):
            total += k * k

    return item


def femtodet_item(threads: int = 0) -> Callable[[], None]:
    """One FemtoDet inference at 416 x 416 by ONNX Runtime; 0 threads: all cores."""
    import onnxruntime

    from edgewatt.workloads.femtodet import fold, graph, synthetic
    from edgewatt.workloads.femtodet.variants import VARIANTS

    folder = Path(tempfile.mkdtemp(prefix="edgewatt-bench-"))
    voc = VARIANTS["voc"]
    model = graph.write(folder, fold.folded(synthetic.synthetic(voc, 0), voc), voc)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(0).normal(size=(1, 3, 416, 416)).astype(np.float32)
    return lambda: session.run(None, {"input": picture})  # type: ignore[no-any-return]


def busy(make: Callable[[], Callable[[], None]], pipe: Connection) -> None:
    """Items one after the other until something comes through the pipe; their ends in wall and CPU time go back."""
    item = make()
    for _ in range(20):
        item()
    pipe.send("warm")
    ends = [(time.monotonic(), time.process_time())]
    while not pipe.poll():
        item()
        ends.append((time.monotonic(), time.process_time()))
    pipe.send(ends)


class Load:
    """A process busy inside the `with`; afterwards `ends` (n, 2) are the ends of its items in wall and CPU time."""

    def __init__(self, make: Callable[[], Callable[[], None]]) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=busy, args=(make, theirs))
        self._process.start()
        theirs.close()
        self._pipe.recv()
        self.ends = np.empty((0, 2))

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send("stop")
        self.ends = np.array(self._pipe.recv())
        self._process.join()


def steadiness(here: Subprocess, folder: Path, seconds: float, neighbours: int) -> Trace:
    """A trace at 1000 Hz beside so many busy Python processes."""
    with contextlib.ExitStack() as stack:
        for _ in range(neighbours):
            stack.enter_context(Load(python_item))
        m = meter(here, folder, 1000)
        m.start()
        time.sleep(seconds)
        return m.stop()


def slowdown(
    here: Subprocess, folder: Path, seconds: float, make: Callable[[], Callable[[], None]]
) -> list[np.ndarray]:
    """Item times (wall, CPU) with sampling at 100 Hz over those without, for each on-off-off-on of blocks."""
    edges = []
    with Load(make) as load:
        m = meter(here, folder, 100)
        m.start()
        pid = m._process.pid  # type: ignore[union-attr]
        for k in range(int(seconds / BLOCK_S) // 4 * 4):
            os.kill(pid, signal.SIGCONT if k % 4 in (0, 3) else signal.SIGSTOP)
            edges.append(time.monotonic())
            time.sleep(BLOCK_S)
        edges.append(time.monotonic())
        os.kill(pid, signal.SIGCONT)
        m.stop()
    item_s = []
    for start, end in itertools.pairwise(edges):
        inside = load.ends[(load.ends[:, 0] >= start + 0.01) & (load.ends[:, 0] <= end)]
        item_s.append((inside[-1] - inside[0]) / (len(inside) - 1) if len(inside) > 2 else np.full(2, np.nan))
    fours = [item_s[k : k + 4] for k in range(0, len(item_s), 4)]
    ratios = [(on + again) / (off + still) for on, off, still, again in fours]
    return [r for r in ratios if np.isfinite(r).all()]


def cost(here: Subprocess, folder: Path, seconds: float) -> float:
    """The agent's CPU time at 100 Hz, per second."""
    m = meter(here, folder, 100)
    m.start()
    time.sleep(seconds)
    return float(m.stop().facts["cpu_s_per_s"])


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    shm = Path("/dev/shm")
    with Subprocess() as here, tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as name:
        folder = Path(name)
        traces: dict[int, list[Trace]] = {0: [], 1: [], 2: []}
        for _ in range(5):
            for neighbours, found in traces.items():
                found.append(steadiness(here, folder, seconds / 2, neighbours))
        print(f"1000 Hz x {CHANNELS} channels on tmpfs, {os.cpu_count()} cores, medians of 5 (worst in brackets)")
        for neighbours, found in traces.items():
            share = [float(t.facts["rate_hz"]) / 1000 for t in found]
            p99, longest = ([float(t.facts[f"gap_{g}_s"]) * 1e3 for t in found] for g in ("p99", "max"))
            taken = statistics.median(float(t.facts["cpu_s_per_s"]) for t in found)
            print(
                f"  beside {neighbours} busy: rate {statistics.median(share):.2%} ({min(share):.2%}), "
                f"p99 gap {statistics.median(p99):.2f} ms ({max(p99):.2f}), "
                f"largest {statistics.median(longest):.1f} ms ({max(longest):.1f}), "
                f"{taken:.1%} of a core, {found[0].facts['scheduling']}"
            )
        print(f"100 Hz x {CHANNELS} channels: the agent takes {cost(here, folder, seconds):.2%} of a core")
        loads: tuple[tuple[str, Callable[[], Callable[[], None]]], ...] = (
            ("a busy Python loop", python_item),
            ("a FemtoDet loop on one core", functools.partial(femtodet_item, 1)),
            ("a FemtoDet loop on all cores", femtodet_item),
        )
        for what, make in loads:
            ratios = np.array(slowdown(here, folder, 10 * seconds, make))
            wall, cpu = np.median(ratios, axis=0) - 1
            error, cpu_error = 1.2533 * ratios.std(axis=0) / len(ratios) ** 0.5  # standard error of a median
            print(
                f"  {what}: {wall:+.2%} wall time (standard error {error:.2%}), {cpu:+.2%} CPU time ({cpu_error:.2%}), "
                f"{len(ratios)} times on-off-off-on"
            )


if __name__ == "__main__":
    main()
