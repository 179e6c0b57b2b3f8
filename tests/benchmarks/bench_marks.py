"""What it costs an item to have its phases marked, against reading the clock alone. Asked for: at most 0.3 us a mark.

python tests/benchmarks/bench_marks.py
"""

import statistics
import timeit

from edgewatt.devices.agent.agent import now_ns
from edgewatt.devices.agent.run import marking

N = 100_000


def main() -> None:
    stamps: list[int] = []
    marked: list[str] = []
    tokens: list[int] = []
    mark = marking(now_ns, stamps, marked, tokens)
    clock_s, mark_s = [], []

    def item() -> None:
        mark("preprocess")
        mark("detect")
        mark("postprocess")
        stamps.clear()
        marked.clear()
        tokens.clear()

    for _ in range(15):
        clock_s.append(timeit.timeit("now_ns()", globals={"now_ns": now_ns}, number=N) / N)
        mark_s.append(timeit.timeit(item, number=N // 3) / (N // 3 * 3))
    ratio = statistics.median(m / c for m, c in zip(mark_s, clock_s, strict=True))
    print(f"a mark takes {statistics.median(mark_s) * 1e6:.3f} us, {ratio:.2f} times reading the clock")


if __name__ == "__main__":
    main()
