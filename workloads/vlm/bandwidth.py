"""How fast this process can read main memory: the roof over a decoder, which fetches every weight for each token.

Each thread goes through a part of its own of a buffer far larger than the last cache, from end to end, again and again.
What reads is numpy's largest-of-many-integers, which lets go of the interpreter's lock and does next to no arithmetic:
of the reductions of numpy it came closest to what a core can load. Like STREAM (J. D. McCalpin, IEEE TCCA Newsletter,
December 1995) the best round is told, since other programs only ever take from it; how far the median round stays
below says how well it is known.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.workloads.vlm import memory

LEAST_BYTES = 256 << 20
CACHES = 4  # the buffer is so many times as large as the last cache: none of it is left there from the round before
FREE_SHARE = 0.25  # the most of the memory that is free which it takes
LEAST_ROUNDS = 5


class NoRoomError(HarnessError):
    """Memory holds no buffer that is large enough."""


def read_bandwidth(threads: int, size_bytes: int | None = None, seconds: float = 1.0) -> tuple[float, float]:
    """Bytes a second that `threads` threads read from main memory together, and the half-width of that.

    It takes about `seconds`, at least five rounds; `size_bytes` is chosen by the caches and by the memory that is free
    where it is not told. NoRoomError if there is not even twice the last cache of that.
    """
    if threads < 1:
        raise UsageError(f"read bandwidth: {threads} threads; wanted 1 or more")
    size = size_bytes or _size_bytes(memory.available())
    buffer = np.ones(max(size // 8, threads), np.int64)  # written once: pages that nobody wrote to are all one page
    parts = np.array_split(buffer, threads)
    _round_s(parts)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while len(rates) < LEAST_ROUNDS or time.perf_counter() < end:
        rates.append(buffer.nbytes / _round_s(parts))
    best = max(rates)
    return best, best - float(np.median(rates))


def _round_s(parts: list[npt.NDArray[np.int64]]) -> float:
    """From when the first thread begins to read its part to when the last one has; all wait for each other before."""
    ready = threading.Barrier(len(parts))
    begun, done = [0.0] * len(parts), [0.0] * len(parts)

    def read(k: int) -> None:
        ready.wait()
        begun[k] = time.perf_counter()
        np.maximum.reduce(parts[k])
        done[k] = time.perf_counter()

    readers = [threading.Thread(target=read, args=(k,)) for k in range(len(parts))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return max(done) - min(begun)


def _size_bytes(free: int, system: Path = Path("/sys/devices/system/cpu")) -> int:
    """How large the buffer should be, where `free` bytes are left. Caches that a machine does not tell are none."""
    cache = last_cache_bytes(system)
    size = min(max(LEAST_BYTES, CACHES * cache), int(FREE_SHARE * free))
    if size < 2 * cache:
        raise NoRoomError(
            f"{free} bytes of memory are free, and reading may take {FREE_SHARE:.0%} of them; wanted twice the last "
            f"caches, {2 * cache} bytes: end other programs"
        )
    return size


def last_cache_bytes(system: Path = Path("/sys/devices/system/cpu")) -> int:
    """The last-level caches of this machine, all of those of one level together; 0 where it does not tell.

    Source: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu (level, size and shared_cpu_list of each).
    """
    found: dict[int, dict[str, int]] = {}
    for index in system.glob("cpu[0-9]*/cache/index*"):
        try:
            level, size, of = ((index / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
            found.setdefault(int(level), {})[of] = _bytes(size)
        except (OSError, ValueError):
            continue
    return sum(found[max(found)].values()) if found else 0


def _bytes(text: str) -> int:
    """ "32768K" in bytes."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * unit
