"""A Jetson through jtop (jetson-stats): rails as a stream, facts, power mode, clocks and fan. For the agent.

The only file that imports jtop, which is AGPL-3.0-or-later and an optional extra. jtop's client may wait for ever on a
service that hangs, and ends without a word on one that is slow; so it lives in a process of its own (`client`), which
writes one JSON object a line, and which can be ended at any time. Works with jetson-stats 4.3 and 7.2.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import json
import math
import os
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgewatt.devices.agent import nvpmodel
from edgewatt.devices.agent.agent import CLOCK, now_ns
from edgewatt.devices.agent.nvpmodel import RefusedError, StaysError

SOCKET = "/run/jtop.sock"
# The first client sets the interval for all, and the service keeps it for 3 s after the last: facts read just before a
# stream ask for what a stream asks for.
INTERVAL_S = 0.4618
SHORTEST_S = 0.1  # below, jtop 7.2.2 starves on a busy board: 0.05 s ended half way, 0.02 s gave no sample at all
KEPT_S = 3.0  # the service forgets its interval when it has heard of no client for this long or three intervals
UPTIME_STEP_S = 0.01  # /proc/uptime has two decimals
OPEN_S = 8.0  # the longest a service that lives takes to answer a client, and that to load
FIRST_S = 16.0  # without a sample for so long, a stream never began
STALLED_INTERVALS, STALLED_S = 3, 3.0  # without a sample for both, a session is over
SETTLE_S, SWITCH_S = 4.0, 40.0  # how long a setting that is not under way may take, and one that is
LONGEST_LINE = 1 << 20
OFFLINE_C = -256.0  # what jtop shows for a zone that is asleep

_CLIENT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgewatt.devices.agent import jtop; jtop.client(sys.argv[2], float(sys.argv[3]))"
)


class ServiceError(RefusedError):
    """jtop cannot be used here; the message says why and what to do. `is_lasting`: trying again is no use."""

    def __init__(self, message: str, is_lasting: bool = False) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


# ---------------------------------------------------------------------------------------------------------------------
# The client's process


def client(what: str, interval_s: float) -> None:
    """A jtop session, told on stdout until stdin is closed: {"opened"}, then a sample a line, or {"failed"}.

    `what` is "power" for the rails alone, "board" for everything; then stdin takes settings, one JSON object a line.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the whole group; this ends with its agent
    with contextlib.suppress(AttributeError, OSError):  # the agent's own better place is for its clock alone
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    out, lock, is_open = os.dup(1), threading.Lock(), threading.Event()
    os.dup2(2, 1)  # what a library prints is not ours to say

    def say(**message: Any) -> None:
        line = json.dumps(message, default=str).encode() + b"\n"
        with lock:
            while line:
                line = line[os.write(out, line) :]

    def tell(jetson: Any) -> None:
        arrived_ns = now_ns()
        if is_open.is_set():  # the first sample is older than the session
            seen = {"power": jetson.power} if what == "power" else everything(jetson)
            say(t_ns=arrived_ns, uptime_s=jetson.uptime.total_seconds(), **seen)

    def listen() -> None:
        for line in sys.stdin.buffer:
            try:
                change(jetson, json.loads(line))
            except Exception as error:  # whatever jtop makes of it
                say(refused=one_line(error))
        is_open.wait(2.0)  # a session left between its question and the answer would make the service spin
        os._exit(0)

    try:
        from jtop import jtop

        jetson = jtop(interval=interval_s)
        jetson.attach(tell)
        threading.Thread(target=listen, daemon=True).start()
        jetson.start()
        is_open.set()
        say(opened={"interval_s": jetson.interval})
        jetson.join()  # never ok(): that ends by itself when a sample is late
        jetson.ok(spin=True)  # raises what ended the thread
        say(failed="jtop's client ended")
    except BaseException as error:
        with contextlib.suppress(OSError):
            say(failed=why(error), is_lasting=is_lasting(error))
    os._exit(1)


def everything(jetson: Any) -> dict[str, Any]:
    """What jtop tells of a board, in its own shapes and units; None for what it fails to tell."""

    def told(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception:  # each of them fails in its own way where the board lacks something
            return None

    modes, clocks, fan = jetson.nvpmodel, jetson.jetson_clocks, jetson.fan
    return {
        "power": told(lambda: jetson.power),
        "temperature": told(lambda: jetson.temperature),
        "cpu": told(lambda: jetson.cpu["cpu"]),
        "gpu": told(lambda: {name: dict(gpu) for name, gpu in jetson.gpu.items()}),
        "emc": told(lambda: jetson.memory["EMC"]),
        "hardware": told(lambda: jetson.board["hardware"]),
        "libraries": told(lambda: jetson.board["libraries"]),
        "mode": told(lambda: {"id": modes.id, "name": modes.name}),
        "modes": told(lambda: list(modes.models)),
        "default_mode": told(lambda: modes.get_default()),
        "can_switch": told(lambda: list(modes.status)),
        "is_switching": bool(told(lambda: modes.is_running())),
        "clocks": told(
            lambda: {"is_on": bool(clocks.get_enable()), "status": clocks.status, "can_restore": clocks.is_config()}
        ),
        "fans": told(lambda: {name: {**fan[name], "profiles": fan.all_profiles(name)} for name in fan}),
    }


def change(jetson: Any, wanted: Mapping[str, Any]) -> None:
    """Asks the service for a setting; it is done later, or not, without a word."""
    if "mode" in wanted:
        jetson.nvpmodel.set_nvpmodel_id(wanted["mode"])  # never forced: that restarts the board at once
    elif "clocks" in wanted:
        jetson.jetson_clocks.set_enable(wanted["clocks"])
    elif "profile" in wanted:
        jetson.fan.set_profile(wanted["fan"], wanted["profile"])
    else:
        for k in range(len(jetson.fan[wanted["fan"]]["speed"])):
            jetson.fan.set_speed(wanted["fan"], wanted["speed"], k)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def is_lasting(error: BaseException) -> bool:
    """Whether trying again cannot help: client and service do not match."""
    return isinstance(error, ImportError) or any(w in str(error) for w in ("Mismatch", "Authentication", "jtop group"))


def why(error: BaseException) -> str:
    """What went wrong in jtop's client, with the next step."""
    text = one_line(error)
    if isinstance(error, ImportError):
        return f"jetson-stats cannot be imported by {sys.executable}: {text}; {_install()}"
    if "Mismatch" in text or "Authentication" in text:
        return (
            f"client (jetson-stats {version()}, Python {sys.version.split()[0]}) and service do not match: {text}; "
            "use the Python that jtop was installed with (jtop_python), or install it anew and restart jtop.service"
        )
    if type(error).__name__ in ("Empty", "EOFError", "ConnectionResetError", "BrokenPipeError"):
        return f"the jtop service went away ({type(error).__name__}: {text})"
    return f"jtop: {text}"


class Client:
    """A client's process. Closed by `close`, which also ends one that hangs."""

    def __init__(self, what: str, interval_s: float) -> None:
        words = [sys.executable, "-c", _CLIENT, json.dumps(sys.path), what, repr(interval_s)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        self._fd, self._rest, self.pid = self._process.stdout.fileno(), b"", self._process.pid
        os.set_blocking(self._fd, False)

    def messages(self, timeout_s: float) -> list[dict[str, Any]]:
        """What it says within that time, at most until something came; the last thing it says is "failed"."""
        if not select.select([self._fd], [], [], max(timeout_s, 0.0))[0]:
            return []
        data = os.read(self._fd, LONGEST_LINE)
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            said = [json.loads(line) for line in lines]
        except ValueError:
            return [{"failed": "jtop's client writes what is no JSON"}]
        if not data:
            said.append({"failed": f"jtop's client was ended (status {self._process.wait()})"})
        elif len(self._rest) > LONGEST_LINE:
            said.append({"failed": "jtop's client writes lines without end"})
        return said

    def send(self, wanted: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone, which `messages` will say
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """Ends the process; twice is harmless."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(2.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# ---------------------------------------------------------------------------------------------------------------------
# The service's processes


def version() -> str | None:
    """The version of jetson-stats that this Python has; None without it."""
    try:
        return importlib.metadata.version("jetson-stats")
    except importlib.metadata.PackageNotFoundError:
        return None


def reach_service() -> int | None:
    """The service's process (None if it is hidden from us); ServiceError if it cannot be reached."""
    if importlib.util.find_spec("jtop") is None:
        raise ServiceError(f"{sys.executable} has no jetson-stats; {_install()}", is_lasting=True)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(SOCKET)
            pid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        except FileNotFoundError:
            raise ServiceError(
                f"the jtop service is not running (no {SOCKET}); start it: sudo systemctl restart jtop"
            ) from None
        except PermissionError:
            raise ServiceError(
                f"{SOCKET} may not be opened: this user is not in the jtop group; "
                "sudo usermod -aG jtop $USER, then log in again",
                is_lasting=True,
            ) from None
        except OSError as error:
            raise ServiceError(
                f"the jtop service is dead, its socket {SOCKET} is left over ({one_line(error)}); "
                "start it: sudo systemctl restart jtop"
            ) from None
    # The socket is listened to by the keeper of jtop's shared values, a child of the service.
    parent = _stat(pid)
    found = int(parent[1]) if parent and "jtop" in _command(int(parent[1])) else pid
    if any((_stat(p) or "?")[0] in ("T", "t") for p in family(found)):
        raise ServiceError(f"the jtop service (process {found}) is stopped; start it: sudo systemctl restart jtop")
    return found or None


def family(pid: int | None) -> list[int]:
    """A process and its children."""
    if not pid:
        return []
    entries = (int(p.name) for p in Path("/proc").glob("[0-9]*"))
    return [pid, *(p for p in entries if (_stat(p) or (0, 0))[1] == str(pid))]


class Cost:
    """Processor time of processes and of those they waited for, while it is looked at."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self._pids: list[int] = []
        self._last: dict[int, float] = {}

    def follow(self, pids: list[int]) -> None:
        """From here on these processes are looked at, too."""
        self.look()
        self._pids = pids
        self._last = {p: s for p, s in ((p, _cpu_s(p)) for p in pids) if s is not None}

    def look(self) -> None:
        for pid in self._pids:
            now_s = _cpu_s(pid)
            if now_s is not None and pid in self._last:
                self.cpu_s += now_s - self._last[pid]
                self._last[pid] = now_s


def _cpu_s(pid: int) -> float | None:
    fields = _stat(pid)
    # utime, stime, cutime, cstime: fields 14 to 17 of proc(5), counted from the third here
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else None


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from its third field on (state, parent, ...); None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split() or None
    except OSError:
        return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def _install() -> str:
    return "install it on the board (sudo pip3 install -U jetson-stats) and restart the board, or set jtop_python"


# ---------------------------------------------------------------------------------------------------------------------
# The stream


def rails(power: Any) -> dict[str, Mapping[str, Any]]:
    """Rail -> what jtop says of it (mW, mV, mA). The total is among them if it is a rail; a sum of rails is none."""
    told = power if isinstance(power, Mapping) else {}
    found = {str(name): rail for name, rail in (told.get("rail") or {}).items() if isinstance(rail, Mapping)}
    total = told.get("tot")
    if isinstance(total, Mapping) and total.get("name"):
        found[str(total["name"])] = total
    return found


def watts(rail: Mapping[str, Any] | None) -> float | None:
    """Power of a rail now, never jtop's filtered average; None if it is off line or tells none."""
    if not rail or rail.get("online") is False:
        return None
    milliwatts = number(rail.get("power"))
    if milliwatts is None:
        volt, ampere = number(rail.get("volt")), number(rail.get("curr"))
        return volt * ampere * 1e-6 if volt is not None and ampere is not None else None
    return milliwatts * 1e-3


def number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


class Stamps:
    """When a session's samples were taken, on the agent's clock.

    jtop has no time of a sample. The service reads /proc/uptime (boot time, in steps of 10 ms) at its start, and the
    client knows when it arrived: the rails were read in between. Where the uptime is not this clock (a container may
    show its own), a sample is as old as an interval at most.
    """

    def __init__(self, opened_ns: int) -> None:
        self._opened_ns = opened_ns
        self._last_uptime: float | None = None
        self._seen = 0

    def of(self, uptime_s: float | None, arrived_ns: int, interval_s: float) -> tuple[int, int] | None:
        """Middle and length, in ns, of the time in which it was taken; None if it is no new sample."""
        if uptime_s is None or uptime_s == self._last_uptime:
            return None
        self._last_uptime = uptime_s
        self._seen += 1
        begun_ns, step_ns = int(uptime_s * 1e9), int(UPTIME_STEP_S * 1e9)
        if CLOCK == "boottime" and self._opened_ns - step_ns <= begun_ns <= arrived_ns:
            return (begun_ns + arrived_ns) // 2, arrived_ns - begun_ns
        if self._seen == 1:  # left over from an earlier session
            return None
        length_ns = int(interval_s * 1e9)
        return arrived_ns - length_ns // 2, length_ns


class Stream:
    """Power of rails in W, one reading a sample of the service's; opened again whenever the service fails."""

    def __init__(self, wanted: list[str], interval_s: float) -> None:
        self.columns = wanted
        self._asked_s, self._interval_s = interval_s, max(interval_s, SHORTEST_S)
        self._service_s: float | None = None
        self._pid: int | None = None
        self._client: Client | None = None
        self._stamps = Stamps(0)
        self._ready: deque[tuple[int, int, list[float | None]]] = deque()
        self._opened = self._restarts = self._last_t_ns = 0
        self._why: list[str] = []
        self._gaps_s: deque[float] = deque(maxlen=10_000)
        self._last_arrival_ns: int | None = None
        self._has_sampled = self._has_waited = self._is_closed = False
        self._begun_s = self._heard_s = time.monotonic()
        self._next_open_s, self._pause_s = 0.0, 0.25
        self._service_cost, self._client_cost, self._looked_s, self._life_s = Cost(), Cost(), 0.0, 0.0
        self._pid = reach_service()

    def read(self, timeout_s: float) -> tuple[int, int, list[float | None]] | None:
        """(time, length of the time it may have been taken in, W per rail), ns on the agent's clock; None: none came.

        ServiceError if none has ever come and none will.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._ready:
            now_s = time.monotonic()
            if self._is_closed:
                return None
            if self._client is None and now_s >= self._next_open_s:
                self._open()
            elif now_s >= deadline_s:
                return None
            elif self._client is None:
                time.sleep(min(self._next_open_s, deadline_s) - now_s)
            else:
                for message in self._client.messages(min(deadline_s - now_s, self._late_s())):
                    if self._client is not None:
                        self._take(message)
                if self._client is not None and self._late_s() <= 0:
                    self._lose(f"no sample for {time.monotonic() - self._heard_s:.1f} s")
        return self._ready.popleft()

    def close(self) -> None:
        """Ends the session and its process; twice is harmless."""
        self._is_closed = True
        self._end_session()

    @property
    def notes(self) -> dict[str, Any]:
        """How it went: restarts and why, true interval, and what service and client cost in CPU seconds a second."""
        is_other = self._service_s is not None and not _same(self._service_s, self._interval_s)
        notes = {
            "restarts": self._restarts,
            "why": list(self._why),
            "interval_s": statistics.median(self._gaps_s) if self._gaps_s else None,
            "interval_asked_s": self._asked_s,
            "interval_service_s": self._service_s,
            "other_client": is_other,
            "service_pid": self._pid,
            "service_cpu_s_per_s": self._share(self._service_cost) if self._pid else None,
            "client_cpu_s_per_s": self._share(self._client_cost),
            "jtop_version": version(),
        }
        if self._interval_s != self._asked_s:
            notes["clamped"] = f"{self._asked_s:g} s asked; {SHORTEST_S:g} s is the shortest that jtop keeps up"
        return notes

    # -- a session's life

    def _open(self) -> None:
        self._heard_s = time.monotonic()
        self._service_s = None
        try:
            self._pid = reach_service()
        except ServiceError as error:
            self._lose(str(error), error.is_lasting)
            return
        self._stamps = Stamps(now_ns())
        self._client = Client("power", self._interval_s)
        self._service_cost.follow(family(self._pid))
        self._client_cost.follow([self._client.pid])

    def _take(self, message: Mapping[str, Any]) -> None:
        if "failed" in message:
            self._lose(str(message["failed"]), bool(message.get("is_lasting")))
        elif "opened" in message:
            self._is_opened(number(message["opened"].get("interval_s")))
        elif "t_ns" in message:
            self._sample(message)

    def _is_opened(self, service_s: float | None) -> None:
        self._heard_s = time.monotonic()
        self._service_s = service_s if service_s and service_s > 0 else None
        if self._service_s and not _same(self._service_s, self._interval_s) and not self._has_waited:
            # A session that ended just now leaves its interval behind for a while; another client's stays.
            self._has_waited = True
            self._end_session()
            wait_s = self._interval_s * 3 if self._interval_s > KEPT_S else KEPT_S
            self._next_open_s = time.monotonic() + wait_s + min(self._service_s, 2.0) + 0.3
            return
        self._opened += 1
        self._restarts = self._opened - 1

    def _sample(self, message: Mapping[str, Any]) -> None:
        arrived_ns = int(message["t_ns"])
        stamp = self._stamps.of(number(message.get("uptime_s")), arrived_ns, self._service_s or self._interval_s)
        if stamp is None or stamp[0] <= self._last_t_ns:
            return
        self._heard_s, self._pause_s, self._has_sampled = time.monotonic(), 0.25, True
        if self._last_arrival_ns is not None:
            self._gaps_s.append((arrived_ns - self._last_arrival_ns) * 1e-9)
        self._last_arrival_ns, self._last_t_ns = arrived_ns, stamp[0]
        found = rails(message.get("power"))
        self._ready.append((*stamp, [watts(found.get(name)) for name in self.columns]))
        if self._heard_s - self._looked_s > 1.0:
            self._look()

    def _late_s(self) -> float:
        """How long the session may still be silent."""
        interval_s = max(self._service_s or 0.0, self._interval_s)
        limit_s = max(STALLED_INTERVALS * interval_s, STALLED_S)
        limit_s = limit_s if self._service_s else OPEN_S
        return self._heard_s + limit_s - time.monotonic()

    def _lose(self, reason: str, is_final: bool = False) -> None:
        """The session is over; the next begins after a pause, each longer than the last."""
        self._end_session()
        if reason not in self._why and len(self._why) < 20:
            self._why.append(reason)
        now_s = time.monotonic()
        if not self._has_sampled and (is_final or now_s - self._begun_s > FIRST_S):
            raise ServiceError(f"jtop gives no sample: {reason}", is_final)
        self._next_open_s = now_s + self._pause_s
        self._pause_s = min(self._pause_s * 2, 4.0)

    def _end_session(self) -> None:
        self._last_arrival_ns = None
        if self._client is not None:
            self._look()
            self._client.close()
            self._client = None

    def _look(self) -> None:
        self._service_cost.look()
        self._client_cost.look()
        self._looked_s = time.monotonic()
        self._life_s = self._looked_s - self._begun_s

    def _share(self, cost: Cost) -> float | None:
        return cost.cpu_s / self._life_s if self._life_s > 0 else None


def _same(a_s: float, b_s: float) -> bool:
    return abs(a_s - b_s) <= 0.005 * max(a_s, b_s)


def stream(params: Mapping[str, Any]) -> Stream:
    """Power of `params["rails"]` in W every `params["interval_s"]`; ServiceError if jtop cannot be used here."""
    wanted, interval_s = params.get("rails"), number(params.get("interval_s", INTERVAL_S))
    if not isinstance(wanted, list) or not wanted or not all(isinstance(r, str) for r in wanted):
        raise RefusedError(f"rails is {wanted!r}; wanted a list of names")
    if interval_s is None or not 0 < interval_s <= 3600:
        raise RefusedError(f"interval_s is {params.get('interval_s')!r}; wanted seconds, at most 3600")
    return Stream(wanted, float(interval_s))


# ---------------------------------------------------------------------------------------------------------------------
# Facts


class Board:
    """A session in which everything is told and settings can be made. Closed by its `with`."""

    def __init__(self) -> None:
        self.pid = reach_service()
        opened_ns = now_ns()
        self._client = Client("board", INTERVAL_S)
        self._stamps = Stamps(opened_ns)
        self.interval_s: float | None = None
        self.refused = ""
        self.state: dict[str, Any] = {}

    def __enter__(self) -> Board:
        try:
            self.next()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def next(self) -> dict[str, Any]:
        """The board's state in the service's next sample, into `state` too; ServiceError if none comes."""
        deadline_s = time.monotonic() + max(OPEN_S, 3 * (self.interval_s or 0.0))
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise ServiceError(
                    "the jtop service takes clients but gives no sample; restart it: sudo systemctl restart jtop"
                )
            for message in self._client.messages(left_s):
                if "failed" in message:
                    raise ServiceError(str(message["failed"]), bool(message.get("is_lasting")))
                if "opened" in message:
                    self.interval_s = number(message["opened"].get("interval_s"))
                self.refused = str(message.get("refused", self.refused))
                uptime_s = number(message.get("uptime_s"))
                if "t_ns" in message and self._stamps.of(uptime_s, int(message["t_ns"]), self.interval_s or INTERVAL_S):
                    self.state = message
                    return message

    def ask(self, **wanted: Any) -> None:
        """Asks for a setting, which shows later in `next`."""
        self.refused = ""
        self._client.send(wanted)

    def settle(self, is_done: Callable[[dict[str, Any]], bool], again: Mapping[str, Any] | None = None) -> bool:
        """Waits until `is_done(state)`; False if it is not, long after nothing is under way any more.

        `again` is asked anew every second: the service passes over a wish while it is busy with another.
        """
        begun_s = quiet_s = asked_s = time.monotonic()
        patience_s = max(SETTLE_S, 4 * (self.interval_s or 0.0))
        while True:
            state, now_s = self.next(), time.monotonic()
            if is_done(state):
                return True
            is_busy = state.get("is_switching") or (state.get("clocks") or {}).get("status") in BUSY
            quiet_s = now_s if is_busy else quiet_s
            if now_s - quiet_s > patience_s or now_s - begun_s > SWITCH_S or self.refused:
                return False
            if again and now_s - asked_s > 1.0:
                asked_s = now_s
                self.ask(**again)


BUSY = ("booting", "activating", "deactivating")


def facts(params: Mapping[str, Any]) -> dict[str, Any]:
    """What jtop tells of the board in SI units; None for what it does not. With `problem` alone if it cannot be asked.

    `power_modes`: id -> name; `power_modes_now`: ids that can be set without a restart. Serial numbers are left out.
    """
    try:
        with Board() as board:
            state = board.state
            deadline_s = time.monotonic() + OPEN_S
            while state.get("libraries") is None and time.monotonic() < deadline_s:  # it looks for them meanwhile
                state = board.next()
            return {
                **told(state),
                "jtop_version": version(),
                "interval_s": board.interval_s,
                "service_pid": board.pid,
            }
    except ServiceError as error:
        return {"problem": str(error), "jtop_version": version()}


def told(state: Mapping[str, Any]) -> dict[str, Any]:
    """The facts in a board's state."""
    hardware, libraries = state.get("hardware") or {}, state.get("libraries") or {}
    power = state.get("power") or {}
    modes, can_switch = state.get("modes") or [], state.get("can_switch") or []
    clocks = state.get("clocks")
    return {
        "model": hardware.get("Model") or None,
        "module": hardware.get("Module") or None,
        "p_number": hardware.get("P-Number") or None,
        "soc": hardware.get("SoC") or None,
        "cuda_arch": hardware.get("CUDA Arch BIN") or None,
        "l4t": hardware.get("L4T") or None,
        "jetpack": hardware.get("Jetpack") or None,
        "libraries": {str(k).lower(): str(v) for k, v in libraries.items() if v and not isinstance(v, bool)},
        "power_mode": state.get("mode"),
        "power_modes": {str(k): name for k, name in enumerate(modes)},
        "power_modes_now": [k for k, can in enumerate(can_switch) if can],
        "power_mode_default": state.get("default_mode") or None,
        "jetson_clocks": clocks and {"is_on": clocks["is_on"], "status": clocks["status"]},
        "fan": {
            name: {
                "percent": [number(v) for v in fan.get("speed") or []],
                "rpm": [number(v) for v in fan.get("rpm") or []],
                "profile": fan.get("profile"),
                "profiles": fan.get("profiles"),
            }
            for name, fan in (state.get("fans") or {}).items()
        },
        "clocks": {"cpu": _cpu_clocks(state.get("cpu")), "gpu": _gpu_clocks(state.get("gpu")), "emc": _emc(state)},
        "temperatures_c": {name: celsius(t) for name, t in (state.get("temperature") or {}).items()},
        "rails": {
            name: {
                "power_w": watts(rail),
                "voltage_v": _thousandth(rail.get("volt")),
                "current_a": _thousandth(rail.get("curr")),
                "warn_a": _thousandth(rail.get("warn")),
                "crit_a": _thousandth(rail.get("crit")),
                "is_online": rail.get("online") is not False,
            }
            for name, rail in rails(power).items()
        },
        "total": (power.get("tot") or {}).get("name"),
    }


def celsius(zone: Any) -> float | None:
    """A zone's temperature; None if it is asleep."""
    value = number(zone.get("temp")) if isinstance(zone, Mapping) and zone.get("online") is not False else None
    return value if value is not None and value > OFFLINE_C else None


def _thousandth(value: Any) -> float | None:
    plain = number(value)
    return None if plain is None else plain * 1e-3


def _cpu_clocks(cores: Any) -> dict[str, Any]:
    online = [c for c in cores or [] if isinstance(c, Mapping) and c.get("online")]
    return {
        **{f"{ours}_hz": _most_hz(online, theirs) for ours, theirs in (("min", "min"), ("max", "max"), ("now", "cur"))},
        "online": len(online),
        "governors": sorted({str(c["governor"]) for c in online if c.get("governor")}),
    }


def _gpu_clocks(gpus: Any) -> dict[str, Any]:
    held_gpus = list((gpus or {}).values())
    return {
        f"{ours}_hz": _most_hz(held_gpus, theirs) for ours, theirs in (("min", "min"), ("max", "max"), ("now", "cur"))
    }


def _emc(state: Mapping[str, Any]) -> dict[str, Any]:
    khz = number((state.get("emc") or {}).get("cur"))
    return {"now_hz": None if khz is None else khz * 1000}


def _most_hz(parts: list[Any], which: str) -> float | None:
    khz = [number((p.get("freq") or {}).get(which)) for p in parts]
    return max((k * 1000 for k in khz if k is not None), default=None)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@contextlib.contextmanager
def held(params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The board set as `params` say inside: "power_mode" (name or id), "jetson_clocks" (bool), "fan_speed" (percent),
    "fan_profile" (name).

    Gives what was read back, {"power_mode": {"id", "name", "before"}, "jetson_clocks": bool, "fan_speed": percent,
    "fan_profile": name}; "after", what each of them is then, is added when all is put back. RefusedError if a value is
    refused, and what was set before is put back; StaysError if something could not be put back. No session is kept open
    meanwhile: it would set the interval of a stream.
    """
    percent = number(params.get("fan_speed"))
    if params.get("fan_speed") is not None and (percent is None or not 0 <= percent <= 100):
        raise RefusedError(f"fan_speed={params['fan_speed']!r}: wanted 0 to 100 percent")
    before: dict[str, Any] = {}
    read_back: dict[str, Any] = {"set_with": f"jtop {version()}"}
    try:
        with Board() as board:
            if params.get("power_mode") is not None:
                read_back["power_mode"] = _hold_mode(board, params["power_mode"], before)
            if params.get("jetson_clocks") is not None:
                read_back["jetson_clocks"] = _hold_clocks(board, bool(params["jetson_clocks"]), before)
            if percent is not None or params.get("fan_profile") is not None:
                read_back.update(_hold_fans(board, percent, params.get("fan_profile"), before))
        yield read_back
    finally:
        after = _put_back(before)
    read_back["after"] = after


def _hold_mode(board: Board, wanted: Any, before: dict[str, Any]) -> dict[str, Any]:
    now = board.state.get("mode")
    if not now:
        raise RefusedError(
            f"power_mode={wanted}: jtop tells no present mode, so it could not be put back; "
            "set one by hand first (sudo nvpmodel -m ID)"
        )
    known = dict(enumerate(board.state.get("modes") or []))
    number_ = nvpmodel.chosen(wanted, known, (now["id"], now["name"]))
    before["power_mode"] = now
    followed = number_ == now["id"] or (
        _switch_mode(board, number_) and board.state["mode"]["name"] == known.get(number_)
    )
    if not followed:
        raise _refused_mode(board, known.get(number_), number_)
    return {**board.state["mode"], "before": now}


def _switch_mode(board: Board, number_: int) -> bool:
    board.ask(mode=number_)
    return board.settle(lambda s: (s.get("mode") or {}).get("id") == number_ and not s.get("is_switching"))


def _refused_mode(board: Board, name: str | None, number_: int) -> StaysError:
    now, can_switch = board.state.get("mode") or {}, board.state.get("can_switch") or []
    needs_restart = number_ < len(can_switch) and not can_switch[number_]
    step = (
        f"it needs a restart of the board: sudo nvpmodel -m {number_}, reboot, and run again without power_mode"
        if needs_restart
        else f"try it by hand: sudo nvpmodel -m {number_}"
    )
    said = f" ({board.refused})" if board.refused else ""
    return StaysError(
        f"power_mode={name or number_}: refused by the jtop service{said}, "
        f"the board stays in mode {now.get('name')} ({now.get('id')}); {step}"
    )


def _hold_clocks(board: Board, is_wanted: bool, before: dict[str, Any]) -> bool:
    clocks = board.state.get("clocks")
    if not clocks:
        raise RefusedError("jetson_clocks: the board has no jetson_clocks that jtop knows; leave it out")
    if clocks["is_on"] and not is_wanted and not clocks["can_restore"]:
        raise RefusedError(
            "jetson_clocks=false: the clocks were locked before the jtop service began and what they were before "
            "is not known; unlock them by hand (sudo jetson_clocks --restore) or restart the board"
        )
    before["jetson_clocks"] = clocks["is_on"]
    if clocks["is_on"] != is_wanted and not _switch_clocks(board, is_wanted):
        status = (board.state.get("clocks") or {}).get("status")
        raise StaysError(
            f"jetson_clocks={str(is_wanted).lower()}: the clocks did not follow (jtop says {status}"
            f"{': ' + board.refused if board.refused else ''}); try it by hand: sudo jetson_clocks"
        )
    return bool(board.state["clocks"]["is_on"])


def _switch_clocks(board: Board, is_wanted: bool) -> bool:
    wish = {"clocks": is_wanted}
    board.ask(**wish)
    return board.settle(lambda s: (s.get("clocks") or {}).get("is_on") is is_wanted, again=wish)


def _hold_fans(board: Board, percent: Any, profile: Any, before: dict[str, Any]) -> dict[str, Any]:
    fans = board.state.get("fans")
    if not fans:
        raise RefusedError("fan: the board has no fan that jtop knows; leave fan_speed and fan_profile out")
    wanted = {name: _profile(name, fan.get("profiles") or [], profile) for name, fan in fans.items()}
    before["fan"] = fans
    for name, chosen in wanted.items():
        if not _set_fan(board, name, chosen, percent):
            now = (board.state.get("fans") or {}).get(name) or {}
            said = f": {board.refused}" if board.refused else ""
            raise RefusedError(
                f"fan: {name} did not follow ({now.get('profile')}, {now.get('speed')} percent{said}); "
                "something else controls it, leave it out"
            )
    return _fan_told(board.state["fans"])


def _fan_told(fans: Mapping[str, Any]) -> dict[str, Any]:
    """Speed in percent and profile of the first fan: boards have one."""
    first = next(iter(fans.values()))
    return {"fan_speed": round(first["speed"][0], 1), "fan_profile": first.get("profile")}


def _profile(fan: str, profiles: list[str], wanted: Any) -> str | None:
    """The profile to be set: the one wanted, else the one under which a speed stays; None: leave it."""
    if wanted is None:
        return "manual" if "manual" in profiles else None
    if wanted not in profiles:
        near = difflib.get_close_matches(str(wanted), profiles, n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of them"
        raise RefusedError(f"fan_profile={wanted}: {fan} has {', '.join(profiles) or 'none'}; {hint}")
    return str(wanted)


def _set_fan(board: Board, name: str, profile: str | None, percent: float | None) -> bool:
    """Profile first: a speed set under any but the manual one is overruled at once."""

    def now(state: Mapping[str, Any]) -> Mapping[str, Any]:
        return (state.get("fans") or {}).get(name) or {}

    if profile is not None and now(board.state).get("profile") != profile:
        board.ask(fan=name, profile=profile)
        if not board.settle(lambda s: now(s).get("profile") == profile):
            return False
    if percent is None or _is_at(now(board.state), percent):
        return True
    board.ask(fan=name, speed=percent)
    return board.settle(lambda s: _is_at(now(s), percent))


def _is_at(fan: Mapping[str, Any], percent: float) -> bool:
    return all(abs(v - percent) <= 1.0 for v in fan.get("speed") or [math.inf])  # a step of the drive is 0.4 percent


def _put_back(before: Mapping[str, Any]) -> dict[str, Any]:
    """Sets what was changed as it was, the last change first, and gives what is then read. What jtop no longer does,
    NVIDIA's tools do; StaysError with what to do by hand if they do not either."""
    after: dict[str, Any] = {}
    problems: list[str] = []
    try:
        if before:
            with Board() as board:
                for key, is_back in (
                    ("fan", _is_fan_back),
                    ("jetson_clocks", _are_clocks_back),
                    ("power_mode", _is_mode_back),
                ):
                    if key in before and is_back(board, before[key]):
                        after[key] = before[key]
    except ServiceError as error:
        problems.append(str(error))
    for key, put_back in (("jetson_clocks", _clocks_by_tool), ("power_mode", _mode_by_tool)):
        if key in before and key not in after:
            try:
                put_back(before[key])
                after[key] = before[key]
            except RefusedError as error:
                problems.append(str(error))
    stays = [key for key in before if key not in after]
    if stays:
        raise StaysError(
            f"not put back: {', '.join(f'{key} (by hand: {_by_hand(key, before[key])})' for key in stays)}: "
            + ("; ".join(problems) or "jtop did not do it")
        )
    return {**_fan_told(after.pop("fan")), **after} if "fan" in after else after


def _by_hand(key: str, was: Any) -> str:
    if key == "power_mode":
        return f"sudo nvpmodel -m {was['id']}"
    return "jtop, or restart the board" if key == "fan" else "sudo jetson_clocks" + ("" if was else " --restore")


def _is_mode_back(board: Board, was: Mapping[str, Any]) -> bool:
    return board.state.get("mode") == was or (_switch_mode(board, was["id"]) and board.state["mode"] == was)


def _are_clocks_back(board: Board, was: bool) -> bool:
    return (board.state.get("clocks") or {}).get("is_on") is was or _switch_clocks(board, was)


def _is_fan_back(board: Board, was: Mapping[str, Any]) -> bool:
    # A profile other than the manual one finds the speed by itself.
    return all(
        _set_fan(board, name, fan.get("profile"), fan["speed"][0] if fan.get("profile") == "manual" else None)
        for name, fan in was.items()
    )


def _mode_by_tool(was: Mapping[str, Any]) -> None:
    if nvpmodel.query() != (was["id"], was["name"]):
        nvpmodel.set_mode(was["id"], was["name"])


def _clocks_by_tool(was: bool) -> None:
    kept = Path(sys.base_prefix, "local", "jtop", "l4t_dfs.conf")  # where jtop's service keeps what they were
    if nvpmodel.are_locked() is not was:
        nvpmodel.tool(
            ["jetson_clocks", *([] if was else ["--restore", *([str(kept)] if kept.exists() else [])])], as_root=True
        )
    if nvpmodel.are_locked() is not was:
        raise RefusedError(f"jetson_clocks: the clocks stay {'unlocked' if was else 'locked'}")
