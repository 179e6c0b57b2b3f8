"""The agent: samples meters and runs jobs on the device, on the device's clock (docs/agent-protocol.md).

    python agent.py hello|clock|sample|call|hold|run|pulse JOB.json

This file is all a board needs for `hello`, `clock` and `sample` of files: the standard library, Python 3.8 or newer.
`run` and `pulse` live in the package and are imported only when asked for, as is what a job names.
"""

from __future__ import annotations

import array
import base64
import decimal
import faulthandler
import gc
import importlib
import json
import math
import os
import platform
import queue
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

PROTOCOL = 1
MISSING = -(2**63)  # a reading that failed, where the values are integers
LOOK_S = 0.25  # the longest the agent goes without looking whether it should end
PING_SILENCE_S = 5.0  # a harness that pings does so every few milliseconds; one that does not has gone
FIRST_OF_STREAM_S = 30.0  # a stream may have to start a program first
GRACE_S = 1.0  # for the work to end by itself, once the harness has gone
HOLD_GRACE_S = 60.0  # to put back what was held takes longer, and matters more
MOST_VALUES = 32768  # in one event: keeps it far below the length a line may have
DEAF_S = 2.0  # asked to end, the agent waits so long for a reader that takes nothing
MOST_OF_FILE, MOST_OF_PROGRAM = 16 << 10, 64 << 10  # bytes that are looked at for fields

if hasattr(time, "CLOCK_BOOTTIME"):
    CLOCK = "boottime"
    now_ns: Callable[[], int] = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
else:
    CLOCK = "monotonic"
    now_ns = time.monotonic_ns


class RefusedError(Exception):
    """The job cannot be understood or begun; the message is one line for the harness to show."""

    is_refusal = True


class NotPutBackError(Exception):
    """What was held could not be put back; the message says why."""

    is_foreseen = True


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
        # It may also have made the process group for us alone without our leading it (a shell over ssh leads it).
        self._owns_group = bool(os.environ.pop("EDGEWATT_GROUP", "")) or os.getpgrp() == os.getpid()
        # On a clock that stands while the device sleeps: a silence of 0 means that nothing is to be heard.
        self._heard_ns, self._silence_ns = time.monotonic_ns(), 0
        self._beat_file, self._beat = "", b""
        self._in, self._listens = 0, False
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
        """All of it, or OSError; given up when asked to end while nobody takes it."""
        deaf_since = 0
        while data:
            try:
                data = data[os.write(fd, data) :]
                deaf_since = 0
            except BlockingIOError:
                select.select([], [fd], [], LOOK_S)
                if self.look() or self._beat_file:  # a reader over a link that comes and goes finds the spool
                    deaf_since = deaf_since or now_ns()
                    if self.stopping == "orphaned" or now_ns() - deaf_since > DEAF_S * 1e9:
                        raise

    def stop(self, *_: object) -> None:
        """Asks the work to end soon; a signal handler."""
        self.stopping = self.stopping or "stopped"

    def abandon(self, *_: object) -> None:
        """The harness has gone: asks the work to end; a signal handler."""
        self.stopping = "orphaned"

    def pass_over(self, *_: object) -> None:
        """A signal that says nothing: the link may come and go."""

    def look(self) -> str:
        """`stopping`, after looking whether the parent still lives."""
        if self.stopping != "orphaned" and not self._beat_file and os.getppid() != self._parent:
            self.abandon()
        return self.stopping

    def _look_for_beat(self) -> None:
        """Takes a beat file that says something else than before for a beat."""
        try:
            beat = Path(self._beat_file).read_bytes()
        except OSError:
            return
        if beat and beat != self._beat:  # empty between a writer's truncating it and its writing
            self._beat, self._heard_ns = beat, time.monotonic_ns()

    def _is_overdue(self) -> bool:
        return 0 < self._silence_ns < time.monotonic_ns() - self._heard_ns

    def watch(self, silence_s: float | None, beat_file: str = "", listens: bool = True) -> None:
        """From here on a thread cuts off, with all it started, what does not end by itself when the harness has gone.

        Given `silence_s`, something must come on stdin at least so often: the harness lives. With `beat_file` too, its
        content must change so often, and nothing else says that the harness has gone. `listens`: a line `stop` on stdin
        asks for the end.
        """
        if beat_file:
            signal.signal(signal.SIGHUP, self.pass_over)
            self.stopping = "" if self.stopping == "orphaned" else self.stopping
            self._beat_file = beat_file
            self._look_for_beat()
        if silence_s is not None:
            self._heard_ns, self._silence_ns = time.monotonic_ns(), int(silence_s * 1e9)
            self._listens = listens
        if self._listens:
            self._in = os.dup(0)
            with Path(os.devnull).open("rb") as nothing:
                os.dup2(nothing.fileno(), 0)  # no program we start may take the beats for answers to its questions
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        rest = b""
        while self.look() != "orphaned":
            # A beat may be late because this process or the whole machine was held up: only who is silent at a second
            # look too, after time for what was held up, has gone.
            was_overdue = self._is_overdue()
            if self._listens:
                rest = self._listen(rest)
            else:
                time.sleep(LOOK_S)
            if self._beat_file:
                self._look_for_beat()
            if was_overdue and self._is_overdue():
                self.abandon()
        grace_s = HOLD_GRACE_S if self.verb == "hold" else GRACE_S
        time.sleep(grace_s)
        if self.verb == "hold":
            message = f"not put back: still at work {grace_s:g} s after the harness had gone"
            self.emit("error", t_ns=now_ns(), kind="hung", message=message, detail="")
        self.emit("end", t_ns=now_ns(), reason="orphaned")
        self.end_group()
        os._exit(0)  # not `leave`: the work may be stuck in a write to stderr, which flushing would wait for

    def heard(self, timeout_s: float) -> bytes | None:
        """What came on stdin; None if nothing did, b"" if its other end is closed."""
        if not select.select([self._in], [], [], timeout_s)[0]:
            return None
        try:
            return os.read(self._in, 4096)
        except BlockingIOError:  # it may be the same socket as stdout, which does not block
            return None
        except OSError:
            return b""

    def _listen(self, rest: bytes) -> bytes:
        """Takes what came on stdin after `rest`, the beginning of a line; the new such beginning comes back."""
        said = self.heard(LOOK_S)
        if said is None:
            return rest
        if not said and self._beat_file:
            self._listens = False
        elif not said:
            self.abandon()
        if not self._beat_file:
            self._heard_ns = time.monotonic_ns()
        *lines, rest = (rest + said).split(b"\n")
        if b"stop" in lines:
            self.stop()
        return rest[:5]  # enough to tell a longer line from `stop`

    def end_group(self) -> None:
        """Ends this process and what it started, if the group is its own: nobody is left who would."""
        if self._owns_group:
            os.killpg(0, signal.SIGKILL)

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


def whole(told: dict[str, Any], key: str, default: int, least: int, most: int) -> int:
    """The integer under `key`; RefusedError if it is none, or beyond."""
    value = told.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RefusedError(f"job: {key} is {value!r}; wanted an integer from {least} to {most}")
    return value


def texts(told: dict[str, Any], key: str) -> list[str]:
    """The list of texts under `key`, empty if there is none; RefusedError if it is something else."""
    value = told.get(key) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise RefusedError(f"job: {key} is {value!r}; wanted a list of names")
    return value


def imported(name: Any, key: str) -> Any:
    """What "module:attribute" names; RefusedError if it cannot be had."""
    module, colon, attribute = str(name).partition(":")
    if not (module and colon and attribute):
        raise RefusedError(f"job: {key} is {name!r}; wanted module:name")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        step = f"; install it for {sys.executable}" if isinstance(error, ModuleNotFoundError) else ""
        raise RefusedError(f"job: {key} {name} cannot be loaded here: {one_line(error)}{step}") from error


@contextmanager
def refusals() -> Iterator[None]:
    """An error that says of itself that it is a refusal becomes one: nothing was done."""
    try:
        yield
    except Exception as error:
        if getattr(error, "is_refusal", False):
            raise RefusedError(" ".join(str(error).split())) from error
        raise


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
        said: bytes | None = None
        heard_ns = now_ns()
        while not agent.look() and said != b"" and now_ns() - heard_ns < PING_SILENCE_S * 1e9:
            said = agent.heard(LOOK_S)
            heard_ns = now_ns() if said else heard_ns
            for _ in range((said or b"").count(b"\n")):
                agent.emit("clock", t_ns=now_ns())
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


class Column:
    """One number of what is read, by its name; where there is none it is missing, and counted."""

    def __init__(self, told: dict[str, Any], name: str) -> None:
        self.name = name
        self.failures, self.text = 0, ""
        self._words = [w.encode() for w in texts(told, "words")]
        self._decimals = whole(told, "decimals", 0, -18, 18)
        self._is_plain = told.get("decimals") is None
        self._number = whole(told, "number", -1, -1000, 1000)
        line = told.get("line", "")
        if not isinstance(line, str):
            raise RefusedError(f"job: line is {line!r}; wanted a text")
        self._line = line.encode()

    def of_file(self, content: bytes) -> int:
        """What a file that is all this column's says: an integer, or a word's place among the words."""
        if self._words:
            try:
                return self._words.index(content.strip())
            except ValueError:
                return self.fail(f"none of the words: {content[:60]!r}")
        try:
            value = int(content) if self._is_plain else scaled(content.strip(), self._decimals)
        except ValueError:
            value = MISSING
        if MISSING < value < -MISSING:
            return value
        return self.fail(f"no integer: {content[:60]!r}" if content else "empty")

    def of_text(self, content: bytes) -> int:
        """What it is in a text with fields."""
        for line in content.split(b"\n"):
            line = line.lstrip()
            if line.startswith(self._line):
                rest = line[len(self._line) :]
                try:
                    return scaled(NUMBER.findall(rest)[self._number], self._decimals)
                except (IndexError, ValueError):
                    return self.fail(f"no such number: {rest[:60]!r}")
        return self.fail(f"no line that begins with {self._line.decode()!r}")

    def fail(self, text: str) -> int:
        self.failures, self.text = self.failures + 1, text
        return MISSING


# A number begins after anything but a letter, a digit, `_` or `.`: 5 in "T=5 W", none in "S4M".
NUMBER = re.compile(rb"(?<![\w.])[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
EXACT = decimal.Context(prec=120)


def scaled(text: bytes, decimals: int) -> int:
    """The number that is all of `text`, times 10**decimals, rounded (half to even); ValueError if it does not fit."""
    if not NUMBER.fullmatch(text):
        raise ValueError(text)
    value = decimal.Decimal(text.decode("ascii"))
    magnitude = value.adjusted() + decimals
    if not value or magnitude < -1:
        return 0
    if magnitude > 19:
        raise ValueError(text)
    found = int(EXACT.scaleb(value, decimals).to_integral_value(decimal.ROUND_HALF_EVEN))
    if not MISSING < found < -MISSING:
        raise ValueError(text)
    return found


class File:
    """A file, kept open, that holds one column, or several fields. A reading that fails is missing, and counted."""

    def __init__(self, path: str, columns: list[Column], has_fields: bool) -> None:
        self.columns = columns
        self._path, self._has_fields = path, has_fields
        self._size = MOST_OF_FILE if has_fields else 64
        self._fd, self._last = -1, b""
        # The kernel's own files stay. Any other may be replaced at every refresh, which shows as a reading that stays.
        self._is_kernels = os.path.realpath(path).startswith(("/sys/", "/proc/"))

    def read(self) -> list[int]:
        """A number for each column, or MISSING."""
        try:
            content = self._content()
            if content == self._last and not self._is_kernels and os.fstat(self._fd).st_nlink == 0:
                self._close()
                content = self._content()
            self._last = content
        except OSError as error:
            self._close()  # gone, or another device behind the same name: opened again at the next sample
            return [c.fail(os.strerror(error.errno) if error.errno else str(error)) for c in self.columns]
        if self._has_fields:
            return [c.of_text(content) for c in self.columns]
        return [self.columns[0].of_file(content)]

    def _content(self) -> bytes:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        content = os.pread(self._fd, self._size, 0)
        while self._has_fields and len(content) < self._size:
            more = os.pread(self._fd, self._size - len(content), len(content))
            if not more:
                break
            content += more
        return content

    def reopen_if_removed(self) -> None:
        """A file that was deleted or replaced still answers through its old descriptor, for ever the same."""
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Node:
    """A file that holds one integer, for functions that read a few of their own."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        self._file = File(path, [Column({}, name)], False)

    def read(self) -> int:
        """The integer in the file, or MISSING."""
        return self._file.read()[0]

    @property
    def failures(self) -> int:
        """How often there was none."""
        return self._file.columns[0].failures

    @property
    def text(self) -> str:
        """Why there was none the last time."""
        return self._file.columns[0].text

    def reopen_if_removed(self) -> None:
        self._file.reopen_if_removed()


class Program:
    """A program with fields in what it prints, started anew at each sample; one that takes too long is ended."""

    def __init__(self, command: list[str], columns: list[Column], limit_s: float) -> None:
        self.columns = columns
        self._command, self._limit_s = command, limit_s

    def read(self) -> list[int]:
        """A number for each column, or MISSING."""
        try:
            content = self._content()
        except OSError as error:
            return [c.fail(os.strerror(error.errno) if error.errno else str(error)) for c in self.columns]
        if content is None:
            return [c.fail(f"took longer than {self._limit_s:g} s") for c in self.columns]
        return [c.of_text(content) for c in self.columns]

    def _content(self) -> bytes | None:
        """The beginning of what it prints; None if that takes too long. It has ended then."""
        nothing, content, deadline = subprocess.DEVNULL, b"", now_ns() + int(self._limit_s * 1e9)
        with subprocess.Popen(
            self._command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, bufsize=0
        ) as process:
            out = process.stdout.fileno() if process.stdout else -1
            try:
                while len(content) < MOST_OF_PROGRAM:
                    left_s = (deadline - now_ns()) * 1e-9
                    if left_s <= 0 or not select.select([out], [], [], left_s)[0]:
                        return None
                    more = os.read(out, MOST_OF_PROGRAM - len(content))
                    if not more:
                        break
                    content += more
                return content
            finally:
                process.kill()  # also one that has closed its stdout and stays

    def reopen_if_removed(self) -> None:
        """Nothing stays open."""


def node_of(told: dict[str, Any]) -> File | Program:
    """What the job says of one node; RefusedError if it makes no sense."""
    fields = told.get("fields")
    if fields is None:
        columns = [Column(told, str(told.get("name", told.get("path"))))]
    elif not isinstance(fields, list) or not fields or not all(isinstance(f, dict) for f in fields):
        raise RefusedError(f"job: fields is {fields!r}; wanted a list of objects with a name and a line")
    else:
        for field in fields:
            for key in ("name", "line"):
                if not isinstance(field.get(key), str):
                    raise RefusedError(f"job: {key} is {field.get(key)!r}; wanted a text")
        columns = [Column(f, f["name"]) for f in fields]
    if "path" in told:
        return File(told["path"], columns, fields is not None)
    if fields is None:
        raise RefusedError("job: a command gives its columns by fields, and this one has none")
    return Program(texts(told, "command"), columns, number(told, "limit_s", 5, 1e-3))


class Nodes:
    """Files and programs read one after the other, a column or more each."""

    form = "int64"

    def __init__(self, nodes: Any) -> None:
        if not isinstance(nodes, list) or not all(
            isinstance(n, dict) and (isinstance(n.get("path"), str) != bool(n.get("command"))) for n in nodes
        ):
            raise RefusedError(f"job: nodes is {nodes!r}; wanted a list of objects with a path or a command")
        self._nodes = [node_of(n) for n in nodes]
        self._columns = [c for n in self._nodes for c in n.columns]
        self.columns = [c.name for c in self._columns]
        self._reads = [n.read for n in self._nodes]
        self.batch = partial(array.array, "q")

    def row(self) -> list[int]:
        return [value for read in self._reads for value in read()]

    def errors(self) -> dict[str, dict[str, Any]]:
        return {c.name: {"count": c.failures, "text": c.text} for c in self._columns if c.failures}

    def refresh(self) -> None:
        for n in self._nodes:
            n.reopen_if_removed()


class Source:
    """A function that gives a row of numbers, for what is not a file; a column it cannot read is None."""

    form = "float64"

    def __init__(self, name: Any, params: Any) -> None:
        with refusals():
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
        make = imported(name, "stream")
        try:
            with refusals():
                self._stream = make(params)
        except RefusedError:
            raise
        except Exception as error:  # a program that is not there, a service that does not answer
            raise RefusedError(one_line(error)) from error
        self.columns = [str(c) for c in self._stream.columns]
        self.batch: Callable[[], array.array[Any]] = partial(array.array, "d")
        self.failure: BaseException | None = None  # what ended it
        self._failures = [0] * len(self.columns)

    def read(self) -> tuple[int, int, list[float]] | None:
        """The next reading; None if none came within a quarter of a second, or it has failed."""
        try:
            got = self._stream.read(LOOK_S)
            if got is None:
                return None
            t_ns, read_ns, values = got
            row = [math.nan if v is None or not math.isfinite(v) else float(v) for v in values]
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} values for {len(self.columns)} columns")
        except (Exception, SystemExit) as error:  # whatever its end looks like, what it said before counts
            self.failure = error
            return None
        for k, v in enumerate(row):
            self._failures[k] += v != v
        return int(t_ns), int(read_ns), row

    def errors(self) -> dict[str, dict[str, Any]]:
        failing = [k for k, n in enumerate(self._failures) if n]
        return {self.columns[k]: {"count": self._failures[k], "text": "not told"} for k in failing}

    def close(self) -> None:
        """Ends it; one that cannot be ended has failed."""
        try:
            self._stream.close()
        except (Exception, SystemExit) as error:
            self.failure = self.failure or error

    @property
    def notes(self) -> dict[str, Any]:
        """What it has to say about itself."""
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
    start, cpu_s, skipped = now_ns(), cpu_used_s(), 0
    more: dict[str, Any] = {}
    if isinstance(reading, Stream):
        try:
            _stream_until_end(agent, reading, frames, batch_s, duration_s, scheduling)
        finally:
            frames.close()  # before the stream, which may take its time
            reading.close()
        more = {"notes": reading.notes}
    else:
        skipped = _sample_until_end(agent, reading, frames, rate_hz, batch_s, duration_s, scheduling)
        frames.close()
    elapsed_s = (frames.last_ns - frames.first_ns) * 1e-9
    agent.emit(
        "sampled",
        n=frames.n,
        rate_asked_hz=rate_hz,
        rate_hz=(frames.n - 1) / elapsed_s if elapsed_s > 0 else None,
        gap_p99_s=frames.gaps.quantile_s(0.99),
        gap_max_s=frames.gaps.longest_ns * 1e-9 if frames.gaps.n else None,
        gap_limit_s=gap_limit_s,
        gaps_over_limit=frames.gaps_over_limit,
        skipped=skipped,
        read_s=frames.reads.quantile_s(0.5),
        cpu_s_per_s=(cpu_used_s() - cpu_s) / ((now_ns() - start) * 1e-9),
        errors=reading.errors(),
        **more,
    )
    if isinstance(reading, Stream) and reading.failure:
        raise reading.failure


def cpu_used_s() -> float:
    """Processor time of this process and of the programs it has started and waited for."""
    used = os.times()
    return time.process_time() + used.children_user + used.children_system


def _stream_until_end(
    agent: Agent, reading: Stream, frames: Frames, batch_s: float, duration_s: float, scheduling: str
) -> None:
    """Takes what comes until asked to end, and what is on its way then, or until the stream fails.

    RefusedError if nothing ever came.
    """
    start = batch_start = now = now_ns()
    end = start + duration_s * 1e9
    t_ns, read_ns, values = array.array("q"), array.array("q"), reading.batch()
    has_begun = False
    while not reading.failure and now < end:
        if agent.look():
            if agent.stopping == "orphaned" or not has_begun:
                break
            end = min(end, now + LOOK_S * 1e9)
        got = reading.read()
        now = now_ns()
        if got is not None and not has_begun and any(v == v for v in got[2]):
            has_begun = True
            agent.emit("sampling", t_ns=got[0], columns=reading.columns, scheduling=scheduling)
        if got is not None and has_begun:
            t_ns.append(got[0])
            read_ns.append(got[1])
            values.extend(got[2])
        if not has_begun and (reading.failure or now - start > FIRST_OF_STREAM_S * 1e9):
            silence = f"nothing came within {FIRST_OF_STREAM_S:g} s"
            raise RefusedError(one_line(reading.failure) if reading.failure else "; ".join([silence, *told(reading)]))
        if now - batch_start >= batch_s * 1e9 or len(values) >= MOST_VALUES:
            frames.add(t_ns, read_ns, values)
            t_ns, read_ns, values = array.array("q"), array.array("q"), reading.batch()
            batch_start = now
    frames.add(t_ns, read_ns, values)


def _sample_until_end(
    agent: Agent, reading: Any, frames: Frames, rate_hz: float, batch_s: float, duration_s: float, scheduling: str
) -> int:
    """The loop itself; how many deadlines passed unused comes back."""
    period_ns, batch_ns = 1e9 / rate_hz, int(batch_s * 1e9)
    skipped, k, row = 0, 0, reading.row
    start = batch_start = looked = now_ns()
    end = start + duration_s * 1e9
    t_ns, read_ns, values = array.array("q"), array.array("q"), reading.batch()
    while True:
        agent.sleep_until(start + math.ceil(k * period_ns))
        # Asked to end, it reads once more: held up until now, it may not have read since what is measured was over.
        is_last = bool(agent.stopping)
        if is_last and (k == 0 or agent.stopping == "orphaned"):
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
        if after - batch_start >= batch_ns or len(values) >= MOST_VALUES:
            frames.add(t_ns, read_ns, values)
            t_ns, read_ns, values = array.array("q"), array.array("q"), reading.batch()
            batch_start = after
        if after - looked >= LOOK_S * 1e9:
            reading.refresh()
            agent.look()
            looked = after
        due = max(k + 1, int((before - start) / period_ns) + 1)
        skipped += due - k - 1
        k = due
        if is_last or after >= end:
            break
    frames.add(t_ns, read_ns, values)
    return skipped


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def run(agent: Agent, job: dict[str, Any]) -> None:
    """Runs a job; needs the edgewatt package on this device."""
    imported("edgewatt.devices.agent.run:run", "run")(agent, job)


def pulse(agent: Agent, job: dict[str, Any]) -> None:
    """Keeps the processor busy and idle by turns; needs the edgewatt package on this device."""
    imported("edgewatt.devices.agent.pulse:pulse", "pulse")(agent, job)


def call(agent: Agent, job: dict[str, Any]) -> None:
    """Tells what the job's function answers to its params."""
    function = imported(job.get("function"), "function")
    with refusals():
        value = function(job.get("params") or {})
    agent.emit("result", value=value)


def hold(agent: Agent, job: dict[str, Any]) -> None:
    """Keeps the job's context manager entered until it is asked to end or left alone, and always leaves it.

    Signals only ask, so neither entering nor leaving is ever cut short by one.
    """
    is_leaving = False
    function = imported(job.get("function"), "function")
    try:
        with ExitStack() as stack:
            with refusals():
                value = stack.enter_context(function(job.get("params") or {}))
            agent.emit("held", value=value)
            while not agent.look():
                time.sleep(LOOK_S)
            is_leaving = True
    except Exception as error:
        if is_leaving:
            raise NotPutBackError(f"not put back: {one_line(error)}") from error
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
    "pulse": pulse,
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
        silence_s = None if job.get("heartbeat_s") is None else number(job, "heartbeat_s", None, 0.1)
        beat_file = job.get("heartbeat_file") or ""
        if not isinstance(beat_file, str) or (beat_file and silence_s is None):
            raise RefusedError(f"job: heartbeat_file is {beat_file!r}; wanted a path, and heartbeat_s with it")
        agent.watch(silence_s, beat_file, listens=not (verb == "clock" and job.get("ping")))
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
        if not agent.look():  # telling of itself may have taken until then
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
        agent.end_group()
    return status


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
    if sys.argv[1:2] in (["run"], ["pulse"]):  # what they import must meet one copy of this module
        with suppress(ImportError):
            program = importlib.import_module("edgewatt.devices.agent.agent").main
    leave(program(sys.argv[1:]))
