"""How an agent is started and heard: here, as a process of this machine."""

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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from edgewatt.harness.api import AgentProcess, Exit, Facts, HarnessError, UsageError

AGENT = Path(__file__).parent / "agent" / "agent.py"
LONGEST_LINE = 4 << 20  # bytes; no agent of ours writes a tenth of it
LONGEST_STDERR = 64 << 10  # bytes kept of its end
PIPE_BYTES = 1 << 20  # a second of a fast sampler's frames fits, should this process be held up
LOOK_S = 0.5  # how often a silent agent is looked after, where its end does not wake us
DRAIN_S = 2.0  # how long a dead agent's pipes are emptied, should a child of its go on writing


class Subprocess:
    """Agents as processes of this machine, on this machine's clock. A context manager; `close` ends all it started."""

    def __init__(self, python: str = sys.executable, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is added to this process's own."""
        self._python = python
        # A job names its runner by module: the agent finds the modules this process finds, in the same order.
        paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} if python == sys.executable else {}
        self._environment = {**os.environ, **paths, **(environment or {}), "EDGEWATT_PARENT": str(os.getpid())}
        self._started: list[LocalAgent] = []
        self._folders: list[Path] = []
        self._jobs: Path | None = None

    def start(self, verb: str, job: Facts) -> LocalAgent:
        """The agent, started with one verb and one job. Nothing is spooled: a pipe has no link to lose."""
        if self._jobs is None:
            self._jobs = Path(self.scratch())
        path = self._jobs / f"{len(self._started)}-{verb}.json"
        try:
            path.write_text(json.dumps({"spool": False, **job}), "utf-8")
        except OSError as error:
            raise HarnessError(f"{path}: the job cannot be written ({error.strerror}); make room there") from error
        agent = LocalAgent([self._python, str(AGENT), verb, str(path)], self._environment)
        self._started.append(agent)
        return agent

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

    def __enter__(self) -> Subprocess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalAgent(AgentProcess):
    """An agent that is a child of this process and leads a session of its own: ending the session ends all of it.

    One thread reads its pipes, so that it is never held up by a slow listener; the thread ends with the process.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._oom_kills = oom_kills()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise HarnessError(f"the agent cannot be started: {command[0]}: {error.strerror}") from error
        self.pid = self._process.pid
        assert self._process.stdout and self._process.stderr
        enlarge(self._process.stdout.fileno())
        self._events: queue.SimpleQueue[Mapping[str, Any] | HarnessError | None] = queue.SimpleQueue()
        self._lines = Lines()
        self._stderr = bytearray()
        self._exit: Exit | None = None
        self._stopping = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"agent {self.pid}", daemon=True)
        self._reader.start()

    def events(self, silence_s: float | None = None) -> Iterator[Mapping[str, Any]]:
        """Events as they arrive, until the process ends; HarnessError for a line that is none, and goes on after it."""
        while True:
            try:
                event = self._events.get(timeout=silence_s)
            except queue.Empty:
                raise TimeoutError(f"the agent (process {self.pid}) said nothing for {silence_s:g} s") from None
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

    def _stop(self, grace_s: float) -> Exit:
        deadline = time.monotonic() + grace_s
        if not self._has_ended():
            self._signal(os.kill, signal.SIGTERM)
            self._reader.join(grace_s)
            while not self._has_ended() and time.monotonic() < deadline:
                time.sleep(0.002)
        by_itself = self._has_ended()
        # Before its status is taken: until then the number of its process group cannot become another's.
        self._signal(os.killpg, signal.SIGKILL)
        status = self._process.wait()
        self._reader.join()
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
                        for event in self._lines.events(data):
                            self._events.put(event)
                    else:
                        self._stderr += data
                        del self._stderr[:-LONGEST_STDERR]
                # A child of its may outlive it and keep the pipes open: what is in them by now is all it said.
                if timeout_s == 0 and not ready:
                    break
                if timeout_s != 0 and self._has_ended():
                    timeout_s, deadline = 0, time.monotonic() + DRAIN_S
        self._events.put(None)


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
