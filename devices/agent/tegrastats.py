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
import statistics
import subprocess
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewatt.devices.agent.agent import now_ns

LONGEST_LINE = 16 << 10
SILENT_INTERVALS, SILENT_S = 5, 3.0  # without a line for both, it is started anew
RESTARTS = 3  # in a row; the agent waits 30 s for a first reading, and these with their pauses take less
PAUSE_S = 0.5  # before the first of them; twice as long before each further one
PROVEN_S = 60.0  # a program that ran for so long is not one that keeps failing
GRACE_S = 1.0  # to end by itself
LINES_WITHOUT = 3  # so many lines without one of the rails wanted, and none will tell them
HOTTEST_C, COLDEST_C = 130.0, -30.0  # outside of it a "temperature" is a code for none, such as -256

_WORD = r"(?<!\S)([A-Za-z][\w.+-]*)"  # a name; what stands before it ended with a blank
_MILLIWATTS = r"-?\d{1,7}(?:mW)?"
_RAIL = re.compile(rf"{_WORD} (-?\d{{1,7}})(mW)?/{_MILLIWATTS}(?:/{_MILLIWATTS})?(?!\S)", re.ASCII)
_ZONE = re.compile(rf"{_WORD}@(-?\d{{1,6}}(?:\.\d{{1,9}})?)C(?!\w)", re.ASCII)
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)\](?:@(\d{1,6})(?!\d))?", re.ASCII)
_CORE = re.compile(r"\s*(\d{1,3})%(?:@(\d{1,6}))?\s*", re.ASCII)
_GPU = re.compile(r"(?<!\S)GR3D_FREQ (\d{1,3})%(?:@\[?(\d{1,6}(?:,\d{1,6})*)(?!\d))?", re.ASCII)
_EMC = re.compile(r"(?<!\S)EMC_FREQ \d{1,3}%@(\d{1,6})(?!\d)", re.ASCII)
_RAM = re.compile(r"(?<!\S)RAM (\d{1,8})/\d{1,8}MB(?!\w)", re.ASCII)
_NOT_RAILS = ("RAM", "SWAP", "IRAM", "NC")  # memory, should it ever lose its unit; an input that is not connected


class TegrastatsError(Exception):
    """tegrastats is of no use here; the message says why in one line."""

    is_refusal = True
    is_foreseen = True  # its message speaks for itself


# ---------------------------------------------------------------------------------------------------------------------
# Its lines


@dataclass(frozen=True)
class Core:
    """A core that is on: its load as a share, its clock in Hz."""

    load: float
    clock_hz: float | None


@dataclass(frozen=True)
class Line:
    """What one line told; what it did not tell is absent or None. A core that is off is None."""

    rails_mw: Mapping[str, int]
    zones_c: Mapping[str, float] = field(default_factory=dict)
    cores: tuple[Core | None, ...] = ()
    gpu_load: float | None = None
    gpu_clocks_hz: tuple[float, ...] = ()  # one per cluster
    emc_clock_hz: float | None = None
    memory_bytes: int | None = None  # in use


def parsed(text: str) -> Line:
    """What a line tells; ValueError if it is not one of tegrastats."""
    text = text[: LONGEST_LINE + 1]
    memory, cpu = _RAM.search(text), _CPU.search(text)
    if len(text) > LONGEST_LINE or not (memory or cpu):
        raise ValueError(f"no line of tegrastats: {text[:200]!a}")
    gpu, emc = _GPU.search(text), _EMC.search(text)
    zones = {m[1]: float(m[2]) for m in _ZONE.finditer(text)}
    return Line(
        _rails_mw(text),
        {name: c for name, c in zones.items() if COLDEST_C <= c <= HOTTEST_C and c != 0},
        tuple(_core(core, cpu[2]) for core in cpu[1].split(",")) if cpu else (),
        int(gpu[1]) / 100 if gpu else None,
        tuple(int(mhz) * 1e6 for mhz in gpu[2].split(",")) if gpu and gpu[2] else (),
        int(emc[1]) * 1e6 if emc else None,
        int(memory[1]) << 20 if memory else None,
    )


def _rails_mw(text: str) -> dict[str, int]:
    """The first figure of each rail.

    Where any has a unit, those with one are the rails. Where none has (JetPack 4), they are the longest row of such
    pairs with nothing between them: a pair of bare figures elsewhere may be anything. A name that stands there twice
    (NC) says of neither what it is.
    """
    pairs = list(_RAIL.finditer(text))
    rails = [m for m in pairs if m[3]] or _longest_row(text, pairs)
    times = Counter(m[1] for m in rails)
    return {m[1]: int(m[2]) for m in rails if times[m[1]] == 1 and m[1] not in _NOT_RAILS}


def _longest_row(text: str, pairs: list[re.Match[str]]) -> list[re.Match[str]]:
    rows: list[list[re.Match[str]]] = [[]]
    for pair in pairs:
        if rows[-1] and text[rows[-1][-1].end() : pair.start()].strip():
            rows.append([])
        rows[-1].append(pair)
    return max(reversed(rows), key=len)  # of equals the last: rails come at the end


def _core(told: str, common_mhz: str | None) -> Core | None:
    core = _CORE.fullmatch(told)
    if not core:  # "off"
        return None
    mhz = core[2] or common_mhz
    return Core(int(core[1]) / 100, int(mhz) * 1e6 if mhz else None)


# ---------------------------------------------------------------------------------------------------------------------
# The program


class Program:
    """tegrastats itself, started now and read line by line; whoever starts it closes it. OSError if it cannot be."""

    def __init__(self, command: str, interval_ms: int) -> None:
        self._process = subprocess.Popen(
            [command, "--interval", str(interval_ms)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath) + ":/usr/bin:/usr/sbin:/sbin"},
        )
        with suppress(AttributeError, OSError):  # the agent's own better place is for its clock alone
            os.sched_setscheduler(self._process.pid, os.SCHED_OTHER, os.sched_param(0))
        assert self._process.stdout
        self._fd = self._process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._rest = b""
        self.has_ended = False  # it will say no more
        self.last_words = ""
        self.cpu_s = 0.0  # processor time it used, known when it is closed

    def lines(self, timeout_s: float) -> list[str]:
        """The lines that became whole when it next wrote; none if it did not in time. A line may come in pieces."""
        if self.has_ended:
            return []
        if not self._poll.poll(max(0.0, timeout_s) * 1e3):
            return []
        data = os.read(self._fd, 1 << 16)
        self.has_ended = not data
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: LONGEST_LINE + 1]  # too long is no line, and stays so
        lines = [text.decode("utf-8", "replace") for text in whole]
        said = [*lines, self._rest.decode("utf-8", "replace") if self.has_ended else ""]
        self.last_words = next((" ".join(s.split())[:200] for s in reversed(said) if s.strip()), self.last_words)
        return lines

    def close(self) -> str:
        """How it ended, in words. It is waited for, so that its processor time counts as this process's, too."""
        self.cpu_s = _cpu_s(self._process.pid) if self._process.returncode is None else self.cpu_s
        for number in (0, signal.SIGTERM, signal.SIGKILL) if self.has_ended else (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):  # one that the kernel does not let go ends when it does
                self._process.wait(GRACE_S)
                break
        self.has_ended = True
        assert self._process.stdout
        self._process.stdout.close()
        status = self._process.returncode
        if status is None:
            return "it cannot be ended"
        return f"signal {-status} ended it" if status < 0 else f"it ended with status {status}"


def _cpu_s(pid: int) -> float:
    """Processor time of a process and those it waited for: fields 14 to 17 of proc(5); the third comes first here."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _cannot_start(command: str, error: OSError) -> str:
    return f"{command} cannot be started: {error.strerror or error}; it is a part of NVIDIA's L4T (/usr/bin/tegrastats)"


def _no_rail() -> str:
    why = "prints none without root on some releases: run as root"
    return (
        f"no rail in its lines; tegrastats {why if os.geteuid() else 'prints none on this release, not even for root'}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# For the agent


def probe(params: Mapping[str, Any]) -> dict[str, Any]:
    """Whether it tells of rails: `rails` (watts by name, of the last line read), the first `line`, any `problem`.

    `params`: `lines` to read (2), `interval_ms` (100), `seconds` to wait for them at most (5), `command`.
    """
    command, wanted = str(params.get("command", "tegrastats")), int(params.get("lines", 2))
    told: list[Line] = []
    first = ""
    try:
        program = Program(command, int(params.get("interval_ms", 100)))
    except OSError as error:
        return {"rails": {}, "line": "", "problem": _cannot_start(command, error)}
    deadline_s = time.monotonic() + float(params.get("seconds", 5.0))
    try:
        while len(told) < wanted and not program.has_ended and time.monotonic() < deadline_s:
            for text in program.lines(deadline_s - time.monotonic()):
                with suppress(ValueError):
                    told.append(parsed(text))
                    first = first or text
    finally:
        end = program.close()
    rails = {name: mw * 1e-3 for name, mw in told[-1].rails_mw.items()} if told else {}
    words = f" ({end})" if program.last_words == "" else f": {program.last_words}"
    problem = None if rails else _no_rail() if told else f"{command} printed no line of its kind{words}"
    return {"rails": rails, "line": first[:2000], "problem": problem}


def stream(params: Mapping[str, Any]) -> Tegrastats:
    """For the agent's `sample`: `params["rails"]` in watts, a reading every `params["interval_ms"]`."""
    rails = [str(r) for r in params["rails"]]
    return Tegrastats(rails, int(params["interval_ms"]), str(params.get("command", "tegrastats")))


class Tegrastats:
    """Readings of rails. A program that ends or falls silent is started anew, and the hole stays in the stamps."""

    def __init__(self, rails: list[str], interval_ms: int, command: str) -> None:
        """TegrastatsError if it cannot be started."""
        self.columns = rails
        self._command, self._interval_s = command, interval_ms * 1e-3
        self._silence_s = max(SILENT_S, SILENT_INTERVALS * self._interval_s)
        self._why: list[str] = []
        self._in_a_row = 0
        self._has_told = False
        self._lines_without = self._merged = 0
        self._cpu_s = self._life_s = 0.0
        self._gaps_s: deque[float] = deque(maxlen=10_000)
        self._last_ns: int | None = None
        self._program: Program | None = None
        self._start()

    def read(self, timeout_s: float) -> tuple[int, int, list[float | None]] | None:
        """The next line's rails in watts, stamped on arrival (the line's own time has steps of a second, if any).

        TegrastatsError if it tells none of the rails, or does not go on however often it is started.
        """
        if self._program is None:
            wait_s = self._again_s - time.monotonic()
            time.sleep(max(0.0, min(timeout_s, wait_s)))
            if wait_s <= timeout_s:
                self._start()
            return None
        lines = self._program.lines(timeout_s)
        arrived_ns, now_s = now_ns(), time.monotonic()
        told = [line for line in map(_line, lines) if line]
        if told:
            self._heard_s = now_s
            return self._reading(told, arrived_ns)
        if self._program.has_ended:
            self._restart("")
        elif now_s - self._heard_s > self._silence_s:
            self._restart(f"no line for {now_s - self._heard_s:.1f} s")
        return None

    def close(self) -> None:
        """It is ended; twice is harmless."""
        self._end()
        self._again_s = float("inf")

    @property
    def notes(self) -> dict[str, Any]:
        """How it went: restarts and why, the true interval, and what the program itself cost in CPU seconds a second
        (which is in the agent's own figure as well: it waited for it)."""
        return {
            "restarts": len(self._why),
            "why": self._why[:10],
            "interval_s": statistics.median(self._gaps_s) if self._gaps_s else None,
            "interval_asked_s": self._interval_s,
            "merged_lines": self._merged,
            "cost_cpu_s_per_s": self._cpu_s / self._life_s if self._life_s > 0 else None,
        }

    def _reading(self, told: list[Line], arrived_ns: int) -> tuple[int, int, list[float | None]]:
        """The newest line's: when those that came with it were printed, nobody knows."""
        self._merged += len(told) - 1
        if self._last_ns is not None:
            self._gaps_s.append((arrived_ns - self._last_ns) * 1e-9)
        self._last_ns = arrived_ns
        rails = told[-1].rails_mw
        row = [rails[name] * 1e-3 if name in rails else None for name in self.columns]
        self._has_told = self._has_told or any(w is not None for w in row)
        self._lines_without += not self._has_told
        if self._lines_without >= LINES_WITHOUT:
            names = ", ".join(rails)
            raise TegrastatsError(
                f"tegrastats tells of {names}, not of {', '.join(self.columns)}" if names else _no_rail()
            )
        return arrived_ns, 0, row

    def _start(self) -> None:
        try:
            self._program = Program(self._command, round(self._interval_s * 1e3))
        except OSError as error:
            raise TegrastatsError(_cannot_start(self._command, error)) from error
        self._begun_s = self._heard_s = time.monotonic()

    def _restart(self, silence: str) -> None:
        """Ends the program, to be started again after a pause; TegrastatsError if that was done often enough."""
        assert self._program
        self._in_a_row = 0 if self._heard_s - self._begun_s > PROVEN_S else self._in_a_row
        last_words, end = self._program.last_words, self._end()
        why = silence or (end if _line(last_words) or not last_words else f"{end}: {last_words}")
        if self._in_a_row >= RESTARTS:
            raise TegrastatsError(f"{self._command} was started {RESTARTS + 1} times and does not go on: {why}")
        self._why.append(why)
        self._again_s = time.monotonic() + PAUSE_S * 2**self._in_a_row
        self._in_a_row += 1

    def _end(self) -> str:
        if self._program is None:
            return ""
        how = self._program.close()
        self._cpu_s += self._program.cpu_s
        self._life_s += time.monotonic() - self._begun_s
        self._program = None
        return how


def _line(text: str) -> Line | None:
    try:
        return parsed(text)
    except ValueError:
        return None
