"""`edgewatt --help` against a bare interpreter: medians of interleaved runs. Bar: under 200 ms."""

import shutil
import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    command = shutil.which("edgewatt")
    if command is None:
        raise SystemExit("edgewatt is not installed on this PATH")
    bare, ours = [], []
    for _ in range(15):
        bare.append(seconds([sys.executable, "-c", "pass"]))
        ours.append(seconds([command, "--help"]))
    b, o = statistics.median(bare), statistics.median(ours)
    print(f"edgewatt --help: {o * 1e3:.0f} ms, bare interpreter {b * 1e3:.0f} ms, ratio {o / b:.1f} (bar: 200 ms)")


if __name__ == "__main__":
    main()
