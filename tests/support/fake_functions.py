"""What agents call, hold and sample in tests. Standard library and Python 3.8, as on an old board."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class NotWantedError(Exception):
    """A refusal, as the agent knows one."""

    is_refusal = True


def fault(kind: str | None, seconds: float = 0.0) -> None:
    """What goes wrong, by name; nothing for None."""
    if kind == "refuse":
        raise NotWantedError("mode 7 is not one of 0, 1, 2")
    if kind == "raise":
        raise OSError(5, "Input/output error", "/sys/x")
    if kind == "exit":
        sys.exit(3)
    if kind == "child":  # one that would outlive its parent
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if kind == "wait":
        time.sleep(seconds)
    if kind == "kill":
        os.kill(os.getpid(), 9)


def echo(params: dict[str, Any]) -> Any:
    """The params, and where it ran; or what goes wrong."""
    if "pid" in params:
        Path(params["pid"]).write_text(str(os.getpid()))
    print("what a function prints is no event")
    fault(params.get("fault"), params.get("seconds", 0.0))
    return params.get("answer", {"params": params, "pid": os.getpid()})


@contextmanager
def setting(params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The file `path` holds `value` inside and what it held before outside."""
    path = Path(params["path"])
    fault(params.get("entering"), params.get("seconds", 0.0))
    before = path.read_text()
    value: dict[str, Any] = {"before": before, "pid": os.getpid()}
    path.write_text(params.get("value", "set"))
    try:
        yield value
    finally:
        fault(params.get("leaving"), params.get("seconds", 0.0))
        path.write_text(before)
        value["after"] = path.read_text()


class Readings:
    """A stream that counts: a reading every `period_s`, the second column missing in every third.

    From reading `fault_at` on it does what `fault` says; before the first it waits `first_s`.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        fault(params.get("starting"))
        self.columns = ["count", "half"]
        self.notes = {"restarts": 2, "why": ["it ended"]}
        self._params, self._n = params, 0
        self._due = time.monotonic() + params.get("first_s", 0.0)
        self._closed = params.get("closed")

    def read(self, timeout_s: float) -> tuple[int, int, list[float | None]] | None:
        wait_s = self._due - time.monotonic()
        time.sleep(max(0.0, min(wait_s, timeout_s)))
        if wait_s > timeout_s:
            return None
        if self._n >= self._params.get("fault_at", 1 << 60):
            if self._params["fault"] == "short":
                return 1, 0, [1.0]
            fault(self._params["fault"], 0.0)
        self._due += self._params.get("period_s", 0.005)
        self._n += 1
        half = None if self._n % 3 == 0 else float("nan") if self._n % 3 == 1 else 0.5
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME), 7, [float(self._n - 1), half]

    def close(self) -> None:
        if self._closed:
            Path(self._closed).write_text("closed")
        fault(self._params.get("closing"))


def stream(params: dict[str, Any]) -> Readings:
    return Readings(params)
