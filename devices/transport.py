"""How an agent is started and heard: what every transport does, and the one to this machine itself."""

from __future__ import annotations

import json
import math
import os
import queue
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edgewatt.harness.api import AgentProcess, ClockOffset, Exit, Facts, HarnessError, TransientError, UsageError

AGENT = Path(__file__).parent / "agent" / "agent.py"
LONGEST_LINE = 4 << 20  # bytes; no agent of ours writes a tenth of it
LONGEST_STDERR = 64 << 10  # bytes kept of its end
PIPE_BYTES = 1 << 20  # a second of a fast sampler's frames fits, should this process be held up
LOOK_S = 0.5  # how often a silent agent is looked after, where its end does not wake us
CALL_S = 60.0  # how long a function on the device may take to answer, or a setting to be made or put back
PINGS = 30  # round trips, of which the quickest tell the offset of two clocks
DRAIN_S = 2.0  # how long a dead agent's pipes are emptied, should a child of its go on writing


T = TypeVar("T", bound="Transport")


class Transport(ABC):
    """A way to one device: agents there, files there and back. A context manager; `close` ends all it started."""

    name: str  # of the other end, as a user would write it
    python: str  # runs the agent, unless a call names another

    @abstractmethod
    def start(self, verb: str, job: Facts, python: str | None = None) -> AgentProcess:
        """The agent, started with one verb and one job."""

    @abstractmethod
    def put(self, path: Path) -> str:
        """Where the device finds that file or folder; pushed once by content hash if it has to be."""

    @abstractmethod
    def get(self, remote: str, into: Path) -> Path:
        """A file or folder of the device in the folder `into`, under its own name."""

    @abstractmethod
    def scratch(self) -> str:
        """A new empty folder on the device, removed by `close`."""

    @abstractmethod
    def close(self) -> None:
        """No process and no folder of ours is left, as far as the device can be reached."""

    def clock_offset(self) -> ClockOffset:
        """The device's clock against ours; zero where both are one."""
        return ClockOffset()

    def call(
        self, function: str, params: Facts | None = None, timeout_s: float = CALL_S, python: str | None = None
    ) -> Any:
        """What `function` ("module:name", on the device) answers to `params`.

        UsageError if it refuses, HarnessError if it fails or does not answer in time.
        """
        process = self.start("call", {"function": function, "params": dict(params or {})}, python)
        try:
            return _answer(process, "result", function, timeout_s)
        finally:
            process.stop()

    @contextmanager
    def hold(self, function: str, params: Facts, python: str | None = None) -> Iterator[Any]:
        """Inside, the device is as the context manager `function` makes it; its value is what it yields there.

        An agent on the device holds it, and puts it back also when this process dies or the link is lost. UsageError if
        it is refused; HarnessError, on leaving, if it could not be put back.
        """
        process = self.start("hold", {"function": function, "params": dict(params)}, python)
        try:
            value = _answer(process, "held", function, CALL_S)
        except BaseException:
            process.stop(CALL_S)
            raise
        is_leaving = False
        try:
            yield value
            is_leaving = True
        finally:
            try:
                process.stop(CALL_S)
            except BaseException:  # Ctrl-C while it is put back: what closes the device next is less patient
                process.stop(CALL_S)
                raise
            try:
                after = _answer(process, "released", function, CALL_S)
                if isinstance(value, dict):
                    value["after"] = after
            except HarnessError as error:
                said = f"{self.name}: what was set may not be put back: {error}"
                if is_leaving:
                    raise type(error)(said) from error
                sys.stderr.write(f"edgewatt: {said}\n")  # what broke the run is the error to be raised

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pinged(Protocol):
    """An agent that is spoken to as well: what `pings` needs."""

    def events(self, silence_s: float | None = None) -> Iterator[Mapping[str, Any]]: ...
    def write(self, data: bytes) -> None: ...
    def stop(self, grace_s: float = 5.0) -> Exit: ...


def pings(start: Callable[[], Pinged], name: str, now_ns: Callable[[], int]) -> list[tuple[float, float, float]]:
    """Round trips to a `clock` agent: before, its clock, after, each in s. TransientError if it does not answer twice.

    `now_ns` is our own clock; the agent that `start` starts is stopped.
    """
    try:
        return _pinged(start(), name, now_ns)
    except TransientError:  # one answer that is late must not cost a run that is over
        return _pinged(start(), name, now_ns)


def _pinged(process: Pinged, name: str, now_ns: Callable[[], int]) -> list[tuple[float, float, float]]:
    told = []
    try:
        events = process.events(30.0)
        for event in events:
            if event["event"] == "hello":
                break
        for _ in range(PINGS):
            before = now_ns()
            process.write(b"\n")
            said = next(event for event in events if event["event"] == "clock")
            told.append((before * 1e-9, int(said["t_ns"]) * 1e-9, now_ns() * 1e-9))
    except (TimeoutError, StopIteration, KeyError) as error:
        raise TransientError(f"{name}: its clock does not answer ({error})") from error
    finally:
        process.stop()
    return told


def _answer(process: AgentProcess, event: str, function: str, timeout_s: float) -> Any:
    """The value of the event waited for; HarnessError with the agent's reason if it does not come."""
    try:
        for said in process.events(timeout_s):
            if said["event"] == event:
                return said.get("value")
            if said["event"] == "error":
                kind = UsageError if said.get("kind") == "refused" else HarnessError
                raise kind(str(said.get("message")))
    except TimeoutError as error:
        raise HarnessError(f"{function}: no answer within {timeout_s:g} s") from error
    ended = process.stop()
    why = (ended.stderr.strip().splitlines()[-1:] or [ended.signal or f"status {ended.status}"])[0]
    if why.startswith("SyntaxError"):
        why += '; the agent needs Python 3.8 or newer: name one in the device file (python = "/path/to/python3")'
    raise HarnessError(f"{function}: the agent ended without an answer: {why}")


class Subprocess(Transport):
    """Agents as processes of this machine, on this machine's clock."""

    name = "this machine"

    def __init__(self, python: str = sys.executable, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is added to this process's own."""
        self.python = python
        self._environment = {**(environment or {}), "EDGEWATT_PARENT": str(os.getpid())}
        self._started: list[LocalAgent] = []
        self._folders: list[Path] = []
        self._jobs: Path | None = None

    def start(self, verb: str, job: Facts, python: str | None = None) -> LocalAgent:
        """The agent, started with one verb and one job. Nothing is spooled: a pipe has no link to lose."""
        if self._jobs is None:
            self._jobs = Path(self.scratch())
        path = self._jobs / f"{len(self._started)}-{verb}.json"
        try:
            path.write_text(json.dumps({"spool": False, **job}), "utf-8")
        except OSError as error:
            raise HarnessError(f"{path}: the job cannot be written ({error.strerror}); make room there") from error
        interpreter = python or self.python
        agent = LocalAgent([interpreter, str(AGENT), verb, str(path)], self._environment_of(interpreter))
        self._started.append(agent)
        return agent

    def _environment_of(self, python: str) -> dict[str, str]:
        """A job names modules: the agent finds those this process finds, in the same order.

        Another Python has packages of its own, and gets none of ours but the agent's.
        """
        if python == sys.executable:
            path = os.pathsep.join(p for p in sys.path if p)
        else:
            assert self._jobs is not None
            ours = self._jobs / "code" / "edgewatt"
            if not ours.exists():
                ours.mkdir(parents=True)
                (ours / "devices").symlink_to(AGENT.parents[1], target_is_directory=True)
            path = str(ours.parent)
        return {**os.environ, "PYTHONPATH": path, **self._environment}

    def put(self, path: Path) -> str:
        """The path itself, absolute: the device is this machine. UsageError if nothing is there."""
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        return str(path.resolve())

    def get(self, remote: str, into: Path) -> Path:
        """A copy of the file or folder `remote` in the folder `into`; HarnessError if it cannot be had."""
        source, copy = Path(remote), into / Path(remote).name
        try:
            if source.is_dir():
                shutil.copytree(source, copy, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, copy)
        except (OSError, shutil.Error) as error:
            raise HarnessError(f"{remote}: cannot be copied into {into}: {error}") from error
        return copy

    def scratch(self) -> str:
        """A new empty folder, removed by `close`. UsageError if none can be made."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="edgewatt-"))
        except OSError as error:
            raise UsageError(
                f"no folder for temporary files can be made ({error.strerror}: {error.filename}); make room there, or "
                "set TMPDIR to another folder"
            ) from error
        self._folders.append(folder)
        return str(folder)

    def close(self) -> None:
        """No process and no folder of ours is left."""
        for agent in self._started:
            agent.stop()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._started, self._folders, self._jobs = [], [], None


class Heard(AgentProcess):
    """An agent whose events come through a queue that a thread fills: an error in it is raised, None ends them."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._events: queue.SimpleQueue[Mapping[str, Any] | HarnessError | None] = queue.SimpleQueue()
        self._exit: Exit | None = None
        self._stopping = threading.Lock()

    def events(self, silence_s: float | None = None) -> Iterator[Mapping[str, Any]]:
        """Events as they arrive, until the process ends; HarnessError for a line that is none, and goes on after it."""
        while True:
            try:
                event = self._events.get(timeout=silence_s)
            except queue.Empty:
                raise TimeoutError(f"the agent ({self._who}) said nothing for {silence_s:g} s") from None
            if event is None:
                self._events.put(None)  # whoever listens again hears the end again
                return
            if isinstance(event, HarnessError):
                raise event
            yield event

    def stop(self, grace_s: float = 5.0) -> Exit:
        """Ask it to end, make it end after `grace_s`, and everything it started with it. Twice is harmless."""
        with self._stopping:
            if self._exit is None:
                self._exit = self._stop(grace_s)
            return self._exit

    @abstractmethod
    def _stop(self, grace_s: float) -> Exit: ...


class LocalAgent(Heard):
    """An agent that is a child of this process and leads a session of its own: ending the session ends all of it.

    One thread reads its pipes, so that it is never held up by a slow listener; the thread ends with the process.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], stdin: int = subprocess.DEVNULL) -> None:
        self._oom_kills = oom_kills()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise HarnessError(f"the agent cannot be started: {command[0]}: {error.strerror}") from error
        self.pid = self._process.pid
        super().__init__(f"process {self.pid}")
        assert self._process.stdout and self._process.stderr
        enlarge(self._process.stdout.fileno())
        self._lines = Lines()
        self._stderr = bytearray()
        self._reader = threading.Thread(target=self._read, name=f"agent {self.pid}", daemon=True)
        self._reader.start()

    def _stop(self, grace_s: float) -> Exit:
        deadline = time.monotonic() + grace_s
        if not self._has_ended():
            self._ask_to_end()
            self._reader.join(grace_s)
            while not self._has_ended() and time.monotonic() < deadline:
                time.sleep(0.002)
        by_itself = self._has_ended()
        self._end_by_force(by_itself)
        # Before its status is taken: until then the number of its process group cannot become another's.
        self._signal(os.killpg, signal.SIGKILL)
        status = self._process.wait()
        self._reader.join()
        return self._exit_of(status, by_itself)

    def _ask_to_end(self) -> None:
        self._signal(os.kill, signal.SIGTERM)

    def _end_by_force(self, has_ended: bool) -> None:
        """What has to be ended beside the process group."""

    def _exit_of(self, status: int, by_itself: bool) -> Exit:
        name = signal.Signals(-status).name if status < 0 else None
        return Exit(
            status if status >= 0 else None,
            name,
            self._stderr.decode(errors="replace"),
            by_itself and name == "SIGKILL" and oom_kills() > self._oom_kills,
        )

    def _signal(self, send: Any, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            send(self.pid, number)

    def _has_ended(self) -> bool:
        if self._process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _read(self) -> None:
        try:
            self._read_pipes()
            self._after_last()
        finally:
            self._events.put(None)  # whatever befell this thread: nobody may wait for it for ever

    def _read_pipes(self) -> None:
        out, err = self._process.stdout, self._process.stderr
        assert out and err
        with selectors.DefaultSelector() as selector, out, err, ExitStack() as stack:
            pipes = {out.fileno(), err.fileno()}
            for fd in pipes:
                os.set_blocking(fd, False)
                selector.register(fd, selectors.EVENT_READ)
            timeout_s: float | None = LOOK_S
            with suppress(AttributeError, OSError):  # Linux 5.3: its end wakes us, and nothing else has to
                pidfd = os.pidfd_open(self.pid)
                stack.callback(os.close, pidfd)
                selector.register(pidfd, selectors.EVENT_READ)
                timeout_s = None
            deadline = math.inf
            while pipes and time.monotonic() < deadline:
                ready = pipes.intersection(key.fd for key, _ in selector.select(timeout_s))
                for fd in ready:
                    data = os.read(fd, 1 << 18)
                    if not data:
                        selector.unregister(fd)
                        pipes.remove(fd)
                    elif fd == out.fileno():
                        self._heard(data)
                    else:
                        self._complained(data)
                # A child of its may outlive it and keep the pipes open: what is in them by now is all it said.
                if timeout_s == 0 and not ready:
                    break
                if timeout_s != 0 and self._has_ended():
                    timeout_s, deadline = 0, time.monotonic() + DRAIN_S

    def _heard(self, data: bytes) -> None:
        """Events whose lines `data` completes are handed on."""
        for event in self._lines.events(data):
            self._events.put(event)

    def _complained(self, data: bytes) -> None:
        """The end of what is said on stderr is kept."""
        self._stderr += data
        del self._stderr[:-LONGEST_STDERR]

    def _after_last(self) -> None:
        """Called, in the reading thread, when the pipes are empty and before listeners hear of the end."""


class Lines:
    """Cuts a stream of bytes into events. What is no event becomes a HarnessError that shows it, escaped."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._too_long = False

    def events(self, data: bytes) -> Iterator[Mapping[str, Any] | HarnessError]:
        """The events whose lines `data` completes."""
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._rest += line
            line, self._rest = bytes(self._rest), bytearray()
            if self._too_long:
                self._too_long = False
            elif len(line) > LONGEST_LINE:
                yield too_long(line)
            else:
                yield event_in(line)
        self._rest += rest
        if len(self._rest) > LONGEST_LINE:
            if not self._too_long:
                yield too_long(bytes(self._rest))
            self._too_long, self._rest = True, bytearray()


def shown(line: bytes) -> str:
    """The start of a line, escaped: an agent's output is not trusted on a terminal."""
    return ascii(line[:200].decode(errors="replace")) + ("…" if len(line) > 200 else "")


def too_long(line: bytes) -> HarnessError:
    return HarnessError(f"the agent wrote a line longer than {LONGEST_LINE} bytes: {shown(line)}")


def event_in(line: bytes) -> Mapping[str, Any] | HarnessError:
    """The JSON object in a line that has an `event`; anything else is a HarnessError, given back and not raised."""
    try:
        event = json.loads(line, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    return HarnessError(f"the agent wrote {shown(line)}; wanted a JSON object with an event")


def refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def enlarge(fd: int) -> None:
    """More room in a pipe, where the system lets us."""
    try:
        import fcntl

        fcntl.fcntl(fd, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_BYTES)  # 1031: Linux, before Python 3.10 named it
    except (ImportError, OSError):
        pass


def oom_kills() -> int:
    """How many processes the kernel's OOM killer has ended since boot (Linux 4.13 or later; else always 0)."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
