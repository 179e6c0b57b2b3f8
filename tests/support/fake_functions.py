"""What agents call, hold and sample in tests. Standard library and Python 3.8, as on an old board."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
    if kind == "ask":  # a program that wants an answer; none is an answer too
        subprocess.run([sys.executable, "-c", "import sys; sys.exit(len(sys.stdin.read()))"], check=True)
    if kind == "chatter":  # more than any pipe holds
        sys.stderr.write("what went wrong " * 1000000)


def echo(params: dict[str, Any]) -> Any:
    """The params, and where it ran; or what goes wrong."""
    if "pid" in params:
        Path(params["pid"]).write_text(str(os.getpid()))
    start_child(params)
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


class Burning:
    """A stream of one reading, told by a program that uses half a second of processor time."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.columns, self._told = ["one"], False
        self.notes: dict[str, Any] = {}
        work = "import time\nwhile time.process_time() < 0.5: pass"
        self._program = subprocess.Popen([sys.executable, "-c", work])

    def read(self, timeout_s: float) -> tuple[int, int, list[float | None]] | None:
        if self._told:
            time.sleep(timeout_s)
            return None
        self._told = True
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME), 0, [1.0]

    def close(self) -> None:
        self._program.wait()


def burning(params: dict[str, Any]) -> Burning:
    return Burning(params)


def stuck(params: dict[str, Any]) -> tuple[list[str], Callable[[], list[float]]]:
    """A source whose reading takes a minute."""
    start_child(params)

    def read() -> list[float]:
        time.sleep(60)
        return [1.0]

    return ["one"], read


def start_child(params: dict[str, Any]) -> None:
    """A program that ignores being asked to end; its number is in the file `child`."""
    if "child" in params:
        work = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
        Path(params["child"]).write_text(str(subprocess.Popen([sys.executable, "-c", work]).pid))


class Late(Readings):
    """A stream whose first three readings tell nothing."""

    def read(self, timeout_s: float) -> tuple[int, int, list[float | None]] | None:
        reading = super().read(timeout_s)
        if reading is not None and self._n <= 3:
            return reading[0], reading[1], [None, None]
        return reading


def late(params: dict[str, Any]) -> Late:
    return Late(params)


class Chatterer:
    """A runner that never gets beyond what it has to say."""

    def __init__(self, params: dict[str, Any]) -> None:
        fault(params["fault"])
