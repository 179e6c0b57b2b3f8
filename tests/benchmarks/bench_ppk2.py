"""A PPK2 at its full rate: what arrives, what is lost, what it costs, and whether its joules are the true ones.

    python tests/benchmarks/bench_ppk2.py [SECONDS [rate_hz]]          600 s at 1000 rows/s by default

The meter is the emulated one (a pseudo-terminal, EDGEWATT_SHARED), which sends 100 000 words a second.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgewatt.devices.host import Host
from edgewatt.devices.ppk2 import Ppk2
from edgewatt.harness.energy import energy
from support.serial_lab import Lab


def main(seconds: float = 600.0, rate_hz: float = 1000.0) -> None:
    with Host() as host, Lab("ppk2", "square", 0.2, 2.0, 0.1) as lab:
        meter = Ppk2.attached_to(host, lab.port, rate_hz=rate_hz)
        meter.start()
        used_s, began_s = time.process_time(), time.monotonic()
        time.sleep(seconds)
        asked_s = time.monotonic() - began_s
        trace = meter.stop()
        used_s = time.process_time() - used_s
        stopped_s = time.monotonic() - began_s
        sent = lab.status()
        start, end = float(trace.t_s[0]) + 0.05, float(trace.t_s[-1]) - 0.05
        found = energy(trace, "power", start, end, clock_bound_s=trace.facts["clock_bound_s"])
        true_j = lab.truth(start, end)["total_joules"]
    notes = trace.facts["notes"]
    print(f"asked for {asked_s:.1f} s (stopped after {stopped_s:.1f} s) at {rate_hz:g} rows/s")
    print(f"words received {notes['words']}, lost {notes['words_lost']}, resyncs {notes['resyncs']}")
    words_per_s = 1e5 / rate_hz * (len(trace.t_s) - 1) / (trace.t_s[-1] - trace.t_s[0])
    print(f"rate {words_per_s:.1f} words/s, rows {len(trace.t_s)}")
    print(f"bytes the meter sent {sent['bytes_sent']}, lost for want of a reader {sent['bytes_lost']}")
    print(f"longest time between two rows {trace.facts['gap_max_s'] * 1e3:.3f} ms")
    print(f"agent {trace.facts['cpu_s_per_s']:.1%} of a core, harness {used_s / stopped_s:.2%}")
    print(f"clock: drift {trace.facts['clock_drift'] * 1e6:.2f} ppm, bound {trace.facts['clock_bound_s'] * 1e3:.2f} ms")
    off_j = found.energy_j - true_j
    print(f"energy {found.energy_j:.4f} J +- {found.uncertainty_j:.4f} J, true {true_j:.4f} J: {off_j / true_j:+.4%}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
