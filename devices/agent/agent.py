"""The agent: samples meters and runs jobs on the device, on the device's clock (docs/agent-protocol.md).

    python agent.py hello|clock|sample|call|hold|run JOB.json

This file is all a board needs for `hello`, `clock` and `sample` of files: the standard library, Python 3.8 or newer.
`run` lives in the package's `run` and is imported only when asked for, as is what a job names.
"""

from __future__ import annotations

import array
import base64
import faulthandler
import gc
import importlib
import json
import math
import os
import platform
import queue
import select
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

PROTOCOL = 1
MISSING = -(2**63)  # a reading that failed, where the values are integers
LOOK_S = 0.25  # the longest the agent goes without looking whether it should end
FIRST_OF_STREAM_S = 30.0  # a stream may have to start a program first

# Whoever started us may have made the process group for us alone without our leading it (a shell over ssh).
GROUP_IS_OURS = bool(os.environ.get("EDGEWATT_GROUP"))

if hasattr(time, "CLOCK_BOOTTIME"):
    CLOCK = "boottime"
    now_ns: Callable[[], int] = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
else:
    CLOCK = "monotonic"
    now_ns = time.monotonic_ns


class RefusedError(Exception):
    """The job cannot be understood; the message is one line for the harness to show."""


class AskedToEndError(Exception):
    """Raised where work is cut short because the agent was asked to end."""


class Agent:
    """One verb at work: where its events go, and whether it was asked to end.

    `stopping` is "" until then, and afterwards the reason: "stopped" or "orphaned".
    """

    def __init__(self, verb: str, spool: str) -> None:
        self.verb = verb
        self.stopping = ""
        # The harness may have died before we could ask who our parent is; so it may tell us.
        self._parent = int(os.environ.pop("EDGEWATT_PARENT", "0")) or os.getppid()
        self._heard_ns, self._silence_ns = now_ns(), 0
        self._lock = threading.Lock()
        self._spool: int | None = None
        self._spool_path = spool
        # What a model's library prints must not end up between events: descriptor 1 becomes another name of stderr.
        self._out: int | None = os.dup(1)
        os.dup2(2, 1)
        if stat.S_ISFIFO(os.fstat(self._out).st_mode) or stat.S_ISSOCK(os.fstat(self._out).st_mode):
            os.set_blocking(self._out, False)  # a link that takes nothing more must not keep the agent from ending
        self._last_said = False

    def open_spool(self) -> None:
        """Events also go to the spool file from here on."""
        self._spool = os.open(self._spool_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def emit(self, event: str, **fields: Any) -> None:
        """One event written to stdout and the spool, at once. After `end` or `error` nothing more is written."""
        text = json.dumps({"event": event, **fields}, separators=(",", ":"), default=str, allow_nan=False)
        line = text.encode() + b"\n"
        with self._lock:
            if self._last_said:
                return
            self._last_said = event in ("end", "error")
            if self._spool is not None:
                try:
                    write_whole(self._spool, line)
                except OSError as error:
                    print("spool given up:", error, file=sys.stderr)
                    self._spool = None
            if self._out is not None:
                try:
                    self._write_out(self._out, line)
                except OSError:  # nobody listens any more; the spool goes on until the parent is seen to be gone
                    self._out = None

    def _write_out(self, fd: int, data: bytes) -> None:
        """All of it, or OSError; given up when the harness has gone while the link took nothing."""
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                select.select([], [fd], [], LOOK_S)
                if self.look() == "orphaned":
                    raise

    def stop(self, *_: object) -> None:
        """Asks the work to end soon; a signal handler."""
        self.stopping = self.stopping or "stopped"

    def abandon(self, *_: object) -> None:
        """The harness has gone: asks the work to end; a signal handler."""
        self.stopping = self.stopping or "orphaned"

    def look(self) -> str:
        """`stopping`, after looking whether the parent still lives and the heart still beats."""
        is_silent = self._silence_ns and now_ns() - self._heard_ns > self._silence_ns
        if not self.stopping and (is_silent or os.getppid() != self._parent):
            self.stopping = "orphaned"
        return self.stopping

    def listen(self, silence_s: float) -> None:
        """From here on something must come on stdin at least every `silence_s`: the harness lives. `stop`: it asks."""
        self._heard_ns, self._silence_ns = now_ns(), int(silence_s * 1e9)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            select.select([0], [], [])  # it may be the same socket as stdout, which does not block
            try:
                said = os.read(0, 4096)
            except BlockingIOError:
                continue
            except OSError:
                said = b""
            if not said:  # the other end is closed
                self.abandon()
                return
            self._heard_ns = now_ns()
            if b"stop" in said:
                self.stop()

    def sleep_until(self, deadline_ns: int) -> None:
        """Returns at `deadline_ns`, or soon after the agent was asked to end."""
        while not self.stopping:
            left_s = (deadline_ns - now_ns()) * 1e-9
            if left_s <= 0:
                return
            if left_s > LOOK_S:
                self.look()
                left_s = LOOK_S
            time.sleep(left_s)


def write_whole(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def packed(values: array.array[Any]) -> str:
    """The values as little-endian bytes in base64."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return base64.b64encode(values).decode("ascii")


def one_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    # Its message speaks for itself.
    is_foreseen = getattr(error, "is_foreseen", any(c.__name__ == "HarnessError" for c in type(error).__mro__))
    return text if is_foreseen else f"{type(error).__name__}: {text}"


def number(job: dict[str, Any], key: str, default: Any, least: float = 0.0) -> float:
    """The job's number under `key`; RefusedError if it is none or not above `least`."""
    value = job.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise RefusedError(f"job: {key} is {value!r}; wanted a number, at least {least:g}")
    return float(value)


def imported(name: Any, key: str) -> Any:
    """What "module:attribute" names; RefusedError if it cannot be had."""
    module, colon, attribute = str(name).partition(":")
    if not (module and colon and attribute):
        raise RefusedError(f"job: {key} is {name!r}; wanted module:name")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RefusedError(f"job: {key} {name} cannot be loaded here: {one_line(error)}") from error


# ---------------------------------------------------------------------------------------------------------------------
# hello, clock


def facts() -> dict[str, Any]:
    """What this machine says of itself."""
    try:
        boot_id: str | None = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        boot_id = None
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "processors": os.cpu_count(),
        "boot_id": boot_id,
    }


def clock(agent: Agent, job: dict[str, Any]) -> None:
    """Time stamps: `n` of them `period_s` apart, or one for each line read from stdin."""
    if job.get("ping"):
        for _ in sys.stdin:
            agent.emit("clock", t_ns=now_ns())
            if agent.look():
                return
        return
    n, period_ns = int(number(job, "n", 20, 1)), number(job, "period_s", 0.01) * 1e9
    start = now_ns()
    for k in range(n):
        agent.sleep_until(start + int(k * period_ns))
        if agent.look():
            return
        agent.emit("clock", t_ns=now_ns())


# ---------------------------------------------------------------------------------------------------------------------
# sample


class Node:
    """A file that holds one integer, kept open. A reading that fails is missing, and counted."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        self.failures, self.text = 0, ""
        self._fd, self._last = -1, b""
        # The kernel's own files stay. Any other may be replaced at every refresh, which shows as a reading that stays.
        self._is_kernels = os.path.realpath(path).startswith(("/sys/", "/proc/"))

    def read(self) -> int:
        """The integer in the file, or MISSING."""
        try:
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            content = os.pread(self._fd, 64, 0)
            if content == self._last and not self._is_kernels and os.fstat(self._fd).st_nlink == 0:
                self._close()
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                content = os.pread(self._fd, 64, 0)
            self._last = content
            value = int(content)
            if not MISSING < value < -MISSING:
                raise ValueError
            return value
        except OSError as error:
            self._fail(os.strerror(error.errno) if error.errno else str(error))
            self._close()  # gone, or another device behind the same name: opened again at the next sample
        except ValueError:
            self._fail(f"no integer: {content!r}" if content else "empty")
        return MISSING

    def reopen_if_removed(self) -> None:
        """A file that was deleted or replaced still answers through its old descriptor, for ever the same."""
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            self._close()

    def _fail(self, text: str) -> None:
        self.failures, self.text = self.failures + 1, text

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Nodes:
    """Files read one after the other, a column each."""

    form = "int64"

    def __init__(self, nodes: Any) -> None:
        if not isinstance(nodes, list) or not all(
            isinstance(n, dict) and isinstance(n.get("path"), str) for n in nodes
        ):
            raise RefusedError(f"job: nodes is {nodes!r}; wanted a list of objects with a path")
        self._nodes = [Node(n["path"], str(n.get("name", n["path"]))) for n in nodes]
        self.columns = [n.name for n in self._nodes]
        self._reads = [n.read for n in self._nodes]
        self.batch = partial(array.array, "q")

    def row(self) -> list[int]:
        return [read() for read in self._reads]

    def errors(self) -> dict[str, dict[str, Any]]:
        return {n.name: {"count": n.failures, "text": n.text} for n in self._nodes if n.failures}

    def refresh(self) -> None:
        for n in self._nodes:
            n.reopen_if_removed()


class Source:
    """A function that gives a row of numbers, for what is not a file; a column it cannot read is None."""

    form = "float64"

    def __init__(self, name: Any, params: Any) -> None:
        columns, self._read = imported(name, "source")(params)
        self.columns = [str(c) for c in columns]
        self.batch = partial(array.array, "d")
        self._failures = [0] * len(self.columns)
        self._text = [""] * len(self.columns)

    def row(self) -> list[float]:
        try:
            values: Sequence[Any] = self._read()
            if len(values) != len(self.columns):
                raise ValueError(f"{len(values)} values for {len(self.columns)} columns")
            row = [math.nan if v is None else float(v) for v in values]
            text = "no reading"
        except Exception as error:  # whatever a driver throws, the other samples count
            row, text = [math.nan] * len(self.columns), one_line(error)
        for k, v in enumerate(row):
            if not math.isfinite(v):
                row[k] = math.nan
                self._failures[k], self._text[k] = self._failures[k] + 1, text
        return row

    def errors(self) -> dict[str, dict[str, Any]]:
        failing = [k for k, n in enumerate(self._failures) if n]
        return {self.columns[k]: {"count": self._failures[k], "text": self._text[k]} for k in failing}

    def refresh(self) -> None:
        """Nothing to look after: the source keeps its own handles."""


class Stream:
    """A program or service that tells readings in its own rhythm; a column it does not tell is None.

    What the job names is called with its params and gives an object with `columns`, `read(timeout_s)` (stamp in ns, how
    long it took in ns, and a row; None if nothing came), `close()` and `notes` (JSON, told at the end).
    """

    form = "float64"

    def __init__(self, name: Any, params: Any) -> None:
        self._stream = imported(name, "stream")(params)
        self.columns = [str(c) for c in self._stream.columns]
        self.batch = partial(array.array, "d")
        self._failures = [0] * len(self.columns)

    def read(self) -> tuple[int, int, list[float]] | None:
        """The next reading, or None if none came within a quarter of a second."""
        got = self._stream.read(LOOK_S)
        if got is None:
            return None
        t_ns, read_ns, values = got
        row = [math.nan if v is None or not math.isfinite(v) else float(v) for v in values]
        if len(row) != len(self.columns):
            raise ValueError(f"{len(row)} values for {len(self.columns)} columns")
        for k, v in enumerate(row):
            self._failures[k] += v != v
        return int(t_ns), int(read_ns), row

    def errors(self) -> dict[str, dict[str, Any]]:
        return {c: {"count": n, "text": "not told"} for c, n in zip(self.columns, self._failures) if n}  # noqa: B905

    def close(self) -> dict[str, Any]:
        """Ends it; what it has to say about itself."""
        self._stream.close()
        return dict(self._stream.notes)


class Durations:
    """How long things took, counted in bins of `step_ns`, so that a day of samples needs no more room than a minute."""

    def __init__(self, step_ns: int) -> None:
        self._step_ns = step_ns
        self._bins: dict[int, int] = {}
        self.n = 0
        self.longest_ns = 0

    def add(self, durations_ns: Iterable[int]) -> None:
        for d in durations_ns:
            bin_ = d // self._step_ns
            self._bins[bin_] = self._bins.get(bin_, 0) + 1
            self.n += 1
            if d > self.longest_ns:
                self.longest_ns = d

    def quantile_s(self, q: float) -> float | None:
        """The duration that a share `q` does not exceed, within half a step; None without any."""
        rank = math.ceil(q * self.n)
        for bin_ in sorted(self._bins):
            rank -= self._bins[bin_]
            if rank <= 0:
                return min((bin_ + 0.5) * self._step_ns, self.longest_ns) * 1e-9
        return None


class Frames:
    """Batches of samples made into events by a thread of their own, so that a slow disk or a full pipe stays beside the
    sampling and does not open a gap in it."""

    def __init__(self, agent: Agent, form: str, gap_limit_s: float) -> None:
        self.gaps, self.reads = Durations(10_000), Durations(1_000)
        self.n = self.gaps_over_limit = self.first_ns = self.last_ns = 0
        self._agent, self._form, self._gap_limit_ns = agent, form, int(gap_limit_s * 1e9)
        self._batches: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def add(self, t_ns: array.array[int], read_ns: array.array[int], values: array.array[Any]) -> None:
        if t_ns:
            self._batches.put((t_ns, read_ns, values))

    def close(self) -> None:
        """Returns when all is written."""
        self._batches.put(None)
        self._thread.join()

    def _write(self) -> None:
        for t_ns, read_ns, values in iter(self._batches.get, None):
            times = t_ns.tolist()
            if self.n:
                times.insert(0, self.last_ns)
            gaps = [times[k + 1] - times[k] for k in range(len(times) - 1)]
            self.gaps.add(gaps)
            self.gaps_over_limit += sum(g > self._gap_limit_ns for g in gaps)
            self.reads.add(read_ns)
            self.first_ns, self.last_ns = self.first_ns or times[0], times[-1]
            self.n += len(t_ns)
            self._agent.emit(
                "frames",
                n=len(t_ns),
                t_ns=packed(t_ns),
                read_ns=packed(read_ns),
                values=packed(values),
                form=self._form,
            )


def told(reading: Any) -> list[str]:
    """What each failing column says."""
    return [f"{column}: {e['text']}" for column, e in reading.errors().items()]


def scheduled_better(nice: int) -> str:
    """The best scheduling this process may have, in words; it goes on without. Threads started later share it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        return "fifo 1"
    except (AttributeError, OSError):
        pass
    try:
        return f"nice {os.nice(nice - os.nice(0))}"
    except OSError as error:
        return f"nice {os.nice(0)} ({nice} refused: {error.strerror})"


def sample(agent: Agent, job: dict[str, Any]) -> None:
    """Reads the job's nodes or source at a steady rate until asked to end."""
    rate_hz = number(job, "rate_hz", 100, 1e-3)
    batch_s = number(job, "batch_s", 1.0)
    gap_limit_s = number(job, "gap_limit_s", max(3 / rate_hz, 0.05))
    duration_s = number(job, "duration_s", None) if job.get("duration_s") is not None else math.inf
    kinds: dict[str, Any] = {"nodes": Nodes, "source": Source, "stream": Stream}
    given = [kind for kind in kinds if job.get(kind)]
    if len(given) != 1:
        raise RefusedError("job: wanted either nodes or a source or a stream to sample")
    if given[0] == "nodes":
        reading: Any = Nodes(job["nodes"])
    else:
        reading = kinds[given[0]](job[given[0]], job.get("params") or {})

    scheduling = "untouched" if job.get("nice", -10) is None else scheduled_better(int(number(job, "nice", -10, -20)))
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection is a gap in the samples
    sys.setswitchinterval(2e-4)  # the thread that writes frames yields to the one that samples

    frames = Frames(agent, reading.form, gap_limit_s)
    cpu_s, skipped = cpu_used_s(), 0
    failure: Exception | None = None
    notes: dict[str, Any] = {}
    if given[0] == "stream":
        failure = _stream_until_end(agent, reading, frames, batch_s, duration_s, scheduling)
        notes = {"notes": reading.close()}
    else:
        skipped = _sample_until_end(agent, reading, frames, rate_hz, batch_s, duration_s, scheduling)
    frames.close()
    elapsed_s = (frames.last_ns - frames.first_ns) * 1e-9
    agent.emit(
        "sampled",
        n=frames.n,
        rate_asked_hz=rate_hz,
        rate_hz=(frames.n - 1) / elapsed_s if frames.n > 1 else None,
        gap_p99_s=frames.gaps.quantile_s(0.99),
        gap_max_s=frames.gaps.longest_ns * 1e-9 if frames.gaps.n else None,
        gap_limit_s=gap_limit_s,
        gaps_over_limit=frames.gaps_over_limit,
        skipped=skipped,
        read_s=frames.reads.quantile_s(0.5),
        cpu_s_per_s=(cpu_used_s() - cpu_s) / elapsed_s if elapsed_s > 0 else None,
        errors=reading.errors(),
        **notes,
    )
    if failure is not None:
        raise failure


def cpu_used_s() -> float:
    """Processor time of this process and of the programs it has started and waited for."""
    used = os.times()
    return time.process_time() + used.children_user + used.children_system


def _stream_until_end(
    agent: Agent, reading: Stream, frames: Frames, batch_s: float, duration_s: float, scheduling: str
) -> Exception | None:
    """Takes what comes; what ended the stream comes back. RefusedError if nothing ever came."""
    start = batch_start = now_ns()
    t_ns, read_ns, values = array.array("q"), array.array("q"), reading.batch()
    failure: Exception | None = None
    has_begun = False
    while failure is None and not agent.look():
        try:
            got = reading.read()
        except Exception as error:  # whatever a program's end looks like, what it said before counts
            got, failure = None, error
        now = now_ns()
        if got is not None:
            t_ns.append(got[0])
            read_ns.append(got[1])
            values.extend(got[2])
            if not has_begun:
                has_begun = True
                agent.emit("sampling", t_ns=t_ns[0], columns=reading.columns, scheduling=scheduling)
        elif not has_begun and (failure or now - start > FIRST_OF_STREAM_S * 1e9):
            reading.close()
            raise RefusedError(one_line(failure) if failure else f"nothing came within {FIRST_OF_STREAM_S:g} s")
        if now - batch_start >= batch_s * 1e9 or len(values) >= 32768:
            frames.add(t_ns, read_ns, values)
            t_ns, read_ns, values = array.array("q"), array.array("q"), reading.batch()
            batch_start = now
        if now - start >= duration_s * 1e9:
            break
    frames.add(t_ns, read_ns, values)
    return failure


def _sample_until_end(
    agent: Agent, reading: Any, frames: Frames, rate_hz: float, batch_s: float, duration_s: float, scheduling: str
) -> int:
    """The loop itself; how many deadlines passed unused comes back."""
    period_ns, batch_ns = 1e9 / rate_hz, int(batch_s * 1e9)
    most_values = 32768  # keeps an event far below the length a line may have
    skipped, k, row = 0, 0, reading.row
    start = batch_start = looked = now_ns()
    end = start + duration_s * 1e9
    t_ns, read_ns, values = array.array("q"), array.array("q"), reading.batch()
    while True:
        agent.sleep_until(start + math.ceil(k * period_ns))
        if agent.stopping:
            break
        before = now_ns()
        values.extend(row())
        after = now_ns()
        t_ns.append((before + after) // 2)
        read_ns.append(after - before)
        if k == 0:
            if all(v == MISSING or v != v for v in values):
                raise RefusedError("nothing can be read: " + "; ".join(told(reading)))
            agent.emit("sampling", t_ns=t_ns[0], columns=reading.columns, scheduling=scheduling)
        if after - batch_start >= batch_ns or len(values) >= most_values:
            frames.add(t_ns, read_ns, values)
            t_ns, read_ns, values = array.array("q"), array.array("q"), reading.batch()
            batch_start = after
        if after - looked >= LOOK_S * 1e9:
            reading.refresh()
            agent.look()
            looked = after
        if after >= end:
            break
        due = max(k + 1, int((before - start) / period_ns) + 1)
        skipped += due - k - 1
        k = due
    frames.add(t_ns, read_ns, values)
    return skipped


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def run(agent: Agent, job: dict[str, Any]) -> None:
    """Runs a job; needs the edgewatt package on this device."""
    imported("edgewatt.devices.agent.run:run", "run")(agent, job)


def call(agent: Agent, job: dict[str, Any]) -> None:
    """Tells what the job's function answers to its params."""
    threading.Thread(target=_leave_if_orphaned, args=(agent,), daemon=True).start()
    function = imported(job.get("function"), "function")
    try:
        value = function(job.get("params") or {})
    except Exception as error:
        if getattr(error, "is_refusal", False):
            raise RefusedError(str(error)) from error
        raise
    agent.emit("result", value=value)


def _leave_if_orphaned(agent: Agent) -> None:
    while agent.look() != "orphaned":
        time.sleep(LOOK_S)
    end_group()
    leave(0)


def hold(agent: Agent, job: dict[str, Any]) -> None:
    """Keeps the job's context manager entered until it is asked to end or left alone, and always leaves it.

    Signals only ask, so entering and leaving are never cut short by one.
    """
    manager = imported(job.get("function"), "function")(job.get("params") or {})
    is_held = False
    try:
        with manager as value:
            is_held = True
            agent.emit("held", value=value)
            while not agent.look():
                time.sleep(LOOK_S)
    except Exception as error:
        if is_held:
            raise RuntimeError(f"not put back: {one_line(error)}") from error
        if getattr(error, "is_refusal", False):
            raise RefusedError(str(error)) from error
        raise
    agent.emit("released", value=value.get("after") if isinstance(value, dict) else None)


def hello(agent: Agent, job: dict[str, Any]) -> None:
    """Nothing but the greeting, which `main` has said already."""


VERBS: dict[str, Callable[[Agent, dict[str, Any]], None]] = {
    "hello": hello,
    "clock": clock,
    "sample": sample,
    "call": call,
    "hold": hold,
    "run": run,
}

OUT_OF_MEMORY = ("bad_alloc", "out of memory", "cannot allocate memory", "failed to allocate", "can't allocate memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that memory ran out: runtimes have their own words for it."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def job_of(path: str) -> dict[str, Any]:
    """The job in a file; RefusedError if it holds none."""
    try:
        job = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"job {path}: {one_line(error)}") from error
    if not isinstance(job, dict):
        raise RefusedError(f"job {path}: wanted a JSON object, found {type(job).__name__}")
    return job


def main(arguments: Sequence[str]) -> int:
    """Does one verb; its exit status."""
    if len(arguments) != 2 or arguments[0] not in VERBS:
        print("usage: agent.py " + "|".join(VERBS) + " JOB.json", file=sys.stderr)
        return 2
    verb, path = arguments
    agent = Agent(verb, (path[:-5] if path.endswith(".json") else path) + ".events.jsonl")
    signal.signal(signal.SIGTERM, agent.stop)
    signal.signal(signal.SIGINT, agent.stop)
    signal.signal(signal.SIGHUP, agent.abandon)
    faulthandler.enable()  # a crash in a model's library leaves its trace on stderr
    refusal: RefusedError | None = None
    job: dict[str, Any] = {}
    try:
        job = job_of(path)
        if job.get("spool", True):
            agent.open_spool()
    except RefusedError as error:
        refusal = error
    more = {"facts": facts()} if verb == "hello" else {}
    agent.emit(
        "hello",
        protocol=PROTOCOL,
        agent="python 1",
        verb=verb,
        clock=CLOCK,
        t_ns=now_ns(),
        pid=os.getpid(),
        python=platform.python_version(),
        **more,
    )
    status, kind = 0, ""
    failure: BaseException | None = None
    try:
        if refusal:
            raise refusal
        if job.get("heartbeat_s") is not None:
            agent.listen(number(job, "heartbeat_s", None, 0.1))
        VERBS[verb](agent, job)
    except AskedToEndError:
        pass
    except RefusedError as error:
        status, kind, failure = 2, "refused", error
    except (Exception, SystemExit) as error:
        status, kind, failure = 1, "out_of_memory" if is_out_of_memory(error) else "failed", error
    if failure is None:
        agent.emit("end", t_ns=now_ns(), reason=agent.stopping or "done")
    else:
        message = str(failure) if kind == "refused" else one_line(failure)
        detail = "" if kind == "refused" else "".join(traceback.format_exception(None, failure, failure.__traceback__))
        agent.emit("error", t_ns=now_ns(), kind=kind, message=message[:2000], detail=detail[-20000:])
    if agent.stopping == "orphaned":
        end_group()
    return status


def end_group() -> None:
    """Ends this process and what it started: nobody is left who would."""
    if os.getpgrp() == os.getpid() or GROUP_IS_OURS:
        os.killpg(0, signal.SIGKILL)


def leave(status: int) -> NoReturn:
    """Ends at once: everything is written, and a library's teardown must not turn a good run into a crash."""
    with suppress(OSError):  # nobody may be listening any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]  # a runner's `import run` is not ours
    program = main
    if sys.argv[1:2] == ["run"]:  # what `run` imports must meet one copy of this module, not a script and a module
        with suppress(ImportError):
            program = importlib.import_module("edgewatt.devices.agent.agent").main
    leave(program(sys.argv[1:]))
