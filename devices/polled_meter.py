"""A meter of which one only has to write how a reading is taken: it is asked from a thread of this process.

Good for a few readings a second from something that is not a file of the device. A device's own files are sampled by
its agent (`agent_meter`), in a process of its own, which neither this process's work nor its memory can hold up.
"""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgewatt.devices.agent.agent import CLOCK, now_ns
from edgewatt.harness.api import HarnessError, Meter, Trace, TransientError


class PolledMeter(Meter):
    """A meter read every `period_s`. A subclass sets `name`, `channels` and `period_s`, and defines `read`."""

    period_s = 0.1
    clock = CLOCK
    first_sample_s = 10.0  # how long `start` waits

    _thread: threading.Thread | None = None
    _left: threading.Thread | None = None  # one whose reading did not return
    _trace: Trace | None = None

    @abstractmethod
    def read(self) -> Sequence[float]:
        """One reading of each channel in its unit, NaN where one is missing.

        TransientError or OSError makes all of them missing this once; any other error ends the sampling.
        """

    def open(self) -> None:
        """Called before the first reading, in the thread that reads."""

    def close(self) -> None:
        """Called after the last reading, in the thread that reads, if `open` returned."""

    def start(self) -> None:
        """Sampling begins; returns once a first sample is in. HarnessError if none comes."""
        if self._thread is not None:
            raise RuntimeError(f"{self.name}: started already")
        if self._left is not None and self._left.is_alive():
            raise HarnessError(f"{self.name}: a reading that was begun before has not returned; is the meter there?")
        self._trace = None
        self._samples: list[tuple[int, int, Sequence[float]]] = []
        self._failures, self._text, self._ended = 0, "", ""
        self._first, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name=f"meter {self.name}", daemon=True)
        self._thread.start()
        came = self._first.wait(self.first_sample_s)
        if not self._samples:
            self.stop()
            why = self._ended or self._text or "no answer"
            raise HarnessError(f"{self.name}: no sample{'' if came else f' within {self.first_sample_s:g} s'}: {why}")

    def stop(self) -> Trace:
        """Sampling ends; everything sampled since `start`."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join(self.first_sample_s)
            if self._thread.is_alive():
                self._ended = self._ended or f"a reading did not return within {self.first_sample_s:g} s"
            self._left, self._thread = self._thread, None
            self._trace = self._traced()
        if self._trace is None:
            raise RuntimeError(f"{self.name}: never started")
        return self._trace

    def _poll(self) -> None:
        try:
            self.open()
            try:
                self._poll_until_end()
            finally:
                self.close()
        except Exception as error:  # kept for the trace: a thread has nobody to raise to
            self._ended = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
        finally:
            self._first.set()

    def _poll_until_end(self) -> None:
        period_ns = int(self.period_s * 1e9)
        start, k = now_ns(), 0
        while not self._stopping.wait(max(0, start + k * period_ns - now_ns()) * 1e-9):
            before = now_ns()
            try:
                values = tuple(self.read())
                if len(values) != len(self.channels):
                    raise HarnessError(f"{self.name}: read {len(values)} values for {len(self.channels)} channels")
                after = now_ns()
            except (TransientError, OSError) as error:
                self._failures, self._text = self._failures + 1, str(error)
                after, values = now_ns(), (math.nan,) * len(self.channels)
                self._samples_or_nothing(before, after, values)
            else:
                self._samples.append((before, after, values))
                self._first.set()
            k = max(k + 1, (before - start) // period_ns + 1)

    def _samples_or_nothing(self, before: int, after: int, values: Sequence[float]) -> None:
        """A missing reading is kept once there is a sample: until then the meter has not begun."""
        if self._samples:
            self._samples.append((before, after, values))

    def _traced(self) -> Trace:
        samples = list(self._samples)
        before = np.array([s[0] for s in samples], np.int64)
        after = np.array([s[1] for s in samples], np.int64)
        values = np.array([s[2] for s in samples], np.float64).reshape(len(samples), len(self.channels))
        t_ns = (before + after) // 2
        facts: dict[str, Any] = {"rate_asked_hz": 1 / self.period_s, "missing": int(np.isnan(values).sum())}
        if len(t_ns) > 1:
            gaps_s = np.diff(t_ns) * 1e-9
            facts |= {
                "rate_hz": float(1 / gaps_s.mean()),
                "gap_p99_s": float(np.quantile(gaps_s, 0.99)),
                "gap_max_s": float(gaps_s.max()),
                "read_s": float(np.median(after - before) * 1e-9),
            }
        if self._failures:
            facts["errors"] = {c.name: {"count": self._failures, "text": self._text} for c in self.channels}
        if self._ended:
            facts["ended"] = self._ended
        return Trace(self.name, self.clock, self.channels, t_ns / 1e9, values, facts)
