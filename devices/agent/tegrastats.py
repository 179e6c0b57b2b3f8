"""NVIDIA's tegrastats: the rails in its lines, as a stream for the agent. Standard library only.

A line is made of words and fields that differ from release to release, so nothing is taken by its place. A rail is a
NAME followed by MILLIWATTS/AVERAGE, with or without "mW" behind each: the first figure is the reading, the second a
running average since the program started, which lags both ways and is never used; a third is of unknown meaning.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from edgewatt.devices.agent.agent import now_ns

LONGEST_LINE = 16 << 10
LONGEST_SILENCE = 5  # intervals without a line (and at least 3 s) after which it is started anew
RESTARTS = 5
HOTTEST_C, COLDEST_C = 130.0, -30.0  # outside of it a "temperature" is a code for none, such as -256

# A name, a blank, one to three figures with a slash between. Sizes (MB, kB, B) have units other than mW behind them;
# GPU and CPU are rails on AGX Xavier and other things elsewhere, which these figures tell apart.
_RAIL = re.compile(r"(?<![^\s])([A-Z][A-Z0-9_]*) (\d{1,7})(mW)?/(\d{1,7})(?:mW)?(?:/(\d{1,7})(?:mW)?)?(?![^\s])")
_ZONE = re.compile(r"(?<![^\s])([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)?(?![^\s])")
_CPUS = re.compile(r"(?<![^\s])CPU \[([^\]]*)\]")
_GPU = re.compile(r"(?<![^\s])GR3D_FREQ (\d+)%(?:@\[?(\d+))?")
_EMC = re.compile(r"(?<![^\s])EMC_FREQ \d+%@(\d+)")
_RAM = re.compile(r"(?<![^\s])RAM (\d+)/(\d+)MB")
_NOT_RAILS = ("RAM", "SWAP", "IRAM", "NC")


@dataclass(frozen=True)
class Line:
    """What one line told: watts by rail, degrees C by zone, each core's load (None: off), the GPU's load, clocks in Hz,
    bytes of memory in use."""

    rails_w: Mapping[str, float]
    zones_c: Mapping[str, float] = field(default_factory=dict)
    cores: tuple[float | None, ...] = ()
    gpu_load: float | None = None
    gpu_hz: float | None = None
    emc_hz: float | None = None
    memory_bytes: float | None = None


def parsed(text: str) -> Line:
    """One line; ValueError if it is not one of tegrastats."""
    memory, cores = _RAM.search(text), _CPUS.search(text)
    if len(text) > LONGEST_LINE or not (memory or cores):
        raise ValueError(f"no line of tegrastats: {text[:200]!a}")
    gpu, emc = _GPU.search(text), _EMC.search(text)
    zones = {name: float(c) for name, c in _ZONE.findall(text)}
    return Line(
        {m[1]: int(m[2]) * 1e-3 for m in _RAIL.finditer(text) if m[1] not in _NOT_RAILS},
        {name: c for name, c in zones.items() if COLDEST_C <= c <= HOTTEST_C and c != 0},
        tuple(_load(core) for core in cores[1].split(",")) if cores else (),
        int(gpu[1]) / 100 if gpu else None,
        int(gpu[2]) * 1e6 if gpu and gpu[2] else None,
        int(emc[1]) * 1e6 if emc else None,
        int(memory[1]) * 2.0**20 if memory else None,
    )


def _load(core: str) -> float | None:
    match = re.match(r"(\d+)%", core)
    return int(match[1]) / 100 if match else None


def probe(params: Mapping[str, Any]) -> dict[str, Any]:
    """Whether it tells of rails: `rails` (watts by name) of the last of a few lines, that `line`, and any `problem`."""
    seen, last = 0, ""
    rails: Mapping[str, float] = {}
    try:
        program = Program(str(params.get("command", "tegrastats")), int(params.get("interval_ms", 100)))
    except OSError as error:
        return {"rails": {}, "line": "", "problem": f"tegrastats: {error.strerror or error}"}
    try:
        deadline = time.monotonic() + float(params.get("seconds", 5.0))
        while seen < int(params.get("lines", 2)) and time.monotonic() < deadline:
            text = program.line(0.5)
            with suppress(ValueError):
                rails, last, seen = parsed(text or "").rails_w, text or "", seen + 1
            if program.has_ended:
                break
    finally:
        program.close()
    problem = None
    if not seen:
        problem = f"tegrastats printed no line: {program.last_words or 'no word'}"
    elif not rails:
        problem = NO_RAIL
    return {"rails": dict(rails), "line": last[:2000], "problem": problem}


NO_RAIL = "tegrastats printed no rail; on some releases it prints none without root: run as root"


def stream(params: Mapping[str, Any]) -> Tegrastats:
    """For the agent's `sample`: the rails `params["rails"]`, a line every `params["interval_ms"]`."""
    return Tegrastats(
        [str(r) for r in params["rails"]], int(params["interval_ms"]), str(params.get("command", "tegrastats"))
    )


class Program:
    """tegrastats itself, started now and read line by line; whoever starts it closes it."""

    def __init__(self, command: str, interval_ms: int) -> None:
        self._process = subprocess.Popen(
            [command, "--interval", str(interval_ms)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
        )
        assert self._process.stdout
        self._fd = self._process.stdout.fileno()
        os.set_blocking(self._fd, False)
        self._rest = b""
        self._lines: list[str] = []
        self.has_ended = False
        self.last_words = ""

    def line(self, timeout_s: float) -> str | None:
        """The next whole line; None if none came in time. A line may come in pieces."""
        if not self._lines and not self.has_ended and select.select([self._fd], [], [], timeout_s)[0]:
            data = os.read(self._fd, 1 << 16)
            self.has_ended = not data
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._rest = self._rest[-LONGEST_LINE:]
            self._lines += [text.decode("utf-8", "replace") for text in whole]
        if not self._lines:
            return None
        self.last_words = self._lines[0].strip()[:200] or self.last_words
        return self._lines.pop(0)

    def close(self) -> None:
        """It has ended, and is waited for, so that its processor time counts as ours."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


class Tegrastats:
    """A stream of readings; a program that ends or falls silent is started anew, and the hole stays in the stamps."""

    def __init__(self, rails: list[str], interval_ms: int, command: str) -> None:
        self.columns = rails
        self._command, self._interval_ms = command, interval_ms
        self._silence_ns = int(max(3.0, LONGEST_SILENCE * interval_ms * 1e-3) * 1e9)
        self._why: list[str] = []
        self._program: Program | None = None
        self._again_ns = 0  # when it may be started the next time
        self._heard_ns = now_ns()
        self._without_rails = 0
        self._start()

    def read(self, timeout_s: float) -> tuple[int, int, list[float | None]] | None:
        """The next line's rails in watts, stamped on arrival: it tells no finer time of its own."""
        if self._program is None:
            time.sleep(min(timeout_s, max(0, self._again_ns - now_ns()) * 1e-9))
            if now_ns() >= self._again_ns:
                self._start()
            return None
        text = self._program.line(timeout_s)
        now = now_ns()
        if text is not None:
            self._heard_ns = now
            return self._reading(text, now)
        if self._program.has_ended:
            self._restart(f"it ended: {self._program.last_words or 'no word'}")
        elif now - self._heard_ns > self._silence_ns:
            self._restart(f"it was silent for {(now - self._heard_ns) * 1e-9:.1f} s")
        return None

    def _reading(self, text: str, now: int) -> tuple[int, int, list[float | None]] | None:
        try:
            told = parsed(text).rails_w
        except ValueError:
            return None
        row = [told.get(rail) for rail in self.columns]
        if any(w is not None for w in row):
            self._without_rails = 0
            return now, 0, row
        self._without_rails += 1
        if self._without_rails > RESTARTS:
            raise RuntimeError(NO_RAIL)
        return None

    def _start(self) -> None:
        try:
            self._program = Program(self._command, self._interval_ms)
        except OSError as error:
            raise RuntimeError(f"{self._command} cannot be started: {error.strerror or error}") from error
        self._heard_ns = now_ns()

    def _restart(self, why: str) -> None:
        assert self._program
        self._program.close()
        self._program = None
        self._why.append(why)
        if len(self._why) > RESTARTS:
            raise RuntimeError(f"{self._command} was started {RESTARTS} times and does not go on: {why}")
        self._again_ns = now_ns() + int(0.2e9 * len(self._why))

    def close(self) -> None:
        """It is ended."""
        if self._program is not None:
            self._program.close()
            self._program = None

    @property
    def notes(self) -> dict[str, Any]:
        """What is to be told beside the readings. Its processor time is in the agent's own: it was waited for."""
        return {"restarts": len(self._why), "why": self._why[:RESTARTS], "interval_asked_s": self._interval_ms * 1e-3}
