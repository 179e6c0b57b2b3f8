"""How small, fast and lean the store's traces are: 20 million instants of 5 rails, written, and a window read.

    python tests/benchmarks/bench_store.py [instants]

The samples are what a board gives at 1 kHz: stamps with 20 us of jitter, power counted by an ADC in steps of 5 mW,
a load that goes up and down several times a second, and noise of 8 to 40 steps. Each figure is from a fresh process.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edgewatt.harness.api import Channel

RATE_HZ = 1000
RAILS = 5
STEP_W = 0.005
CHUNK = 100_000  # instants handed over at once
CHANNELS = tuple(Channel(f"rail{k}", "power", "W", "gauge", f"rail {k}", quantum=STEP_W) for k in range(RAILS))


def chunk(first: int, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Instants (n,) in seconds and power (n, RAILS) in watts."""
    k = np.arange(first, first + n)
    t_ns = 10**12 + k * (1_000_000_000 // RATE_HZ) + rng.normal(0, 2e4, n).astype(np.int64)
    watts = np.empty((n, RAILS))
    for rail, noise in enumerate((8, 12, 20, 30, 40)):
        load = np.where((k // (20 + 7 * rail)) % 2, 3000, 1200) / (rail + 1)
        watts[:, rail] = np.rint(load + rng.normal(0, noise, n)) * STEP_W
    return t_ns / 1e9, watts


def write(path: Path, instants: int) -> None:
    """CPU seconds of the writer alone (the generator's are taken off), and the process's peak memory."""
    from edgewatt.results.traces import TraceWriter

    rng = np.random.default_rng(1)
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    cpu_s = wall_s = 0.0
    with TraceWriter(path, "rails", "boottime", CHANNELS) as file:
        for first in range(0, instants, CHUNK):
            t_s, watts = chunk(first, min(CHUNK, instants - first), rng)
            began = time.process_time(), time.perf_counter()
            file.append(t_s, watts)
            cpu_s, wall_s = cpu_s + time.process_time() - began[0], wall_s + time.perf_counter() - began[1]
        began = time.process_time(), time.perf_counter()
    cpu_s, wall_s = cpu_s + time.process_time() - began[0], wall_s + time.perf_counter() - began[1]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"write: {cpu_s:.2f} s CPU (bar 5), {wall_s:.2f} s wall; size {path.stat().st_size / 1e6:.0f} MB (bar 350)")
    print(f"memory: peak {peak_mb:.0f} MB (bar 500), of which {before_mb:.0f} MB before the first sample")


def read(path: Path, instants: int) -> None:
    """Wall seconds of 10 s windows anywhere in the file, from opening to arrays; then of the whole."""
    from edgewatt.results import traces

    traces.read_window(path, 0.0, 1.0)  # what the first call of a process imports is not the file's cost
    spent = []
    for share in np.linspace(0.02, 0.95, 15):
        start_s = 1000.0 + share * instants / RATE_HZ
        began = time.perf_counter()
        window = traces.read_window(path, start_s, start_s + 10)
        spent.append(time.perf_counter() - began)
        assert abs(len(window.t_s) - 10 * RATE_HZ) <= 1
    print(f"window of 10 s: median {np.median(spent):.3f} s, worst of 15 {max(spent):.3f} s (bar 0.1)")


def main() -> None:
    if len(sys.argv) > 2:
        {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
        return
    instants = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000_000
    samples = f"{instants * RAILS / 1e6:.0f} M samples: {instants / 1e6:g} M instants of {RAILS} rails"
    print(f"{samples}; {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rails.parquet"
        for what in ("write", "read"):
            subprocess.run([sys.executable, __file__, what, str(path), str(instants)], check=True)


if __name__ == "__main__":
    main()
