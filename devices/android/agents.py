"""Agents on a phone, which outlive a lost link.

One writes its events into a spool and goes on when the link drops; the harness connects again and reads what it missed.
A file whose content the harness changes every few seconds tells it that the harness lives.
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from edgewatt.devices.android import shell
from edgewatt.devices.android.link import RELINK_S, Stream
from edgewatt.devices.android.sessions import LEADER
from edgewatt.devices.transport import Heard, Lines
from edgewatt.harness.api import Exit, HarnessError, TransientError

if TYPE_CHECKING:
    from edgewatt.devices.android.transport import Adb

# An agent whose harness has been silent for so long ends by itself. A link that is found anew as late as may be, with a
# beat due when it was lost (BEAT_S) and a first command that the daemon swallows, makes a silence of 80 s.
HEARTBEAT_S = 90.0
FIRST_S = 5.0  # an agent greets at once: one whose stream is silent for so long is heard through its spool
QUIET_S = 10.0  # one that falls silent for so long is looked after: its stream may be dead, and its spool not
ASK_S = 1.0  # between two looks into the spool of an agent whose link was lost: each costs the phone some milliseconds
BORN_S = 3.0  # for the shell that starts an agent to say which process it is
SAY_S = 4.0  # how often one that waits for a phone says so, so that it is not taken for hung

# An agent's own shell, which leads the session that the daemon made for it: it outlives a lost link, keeps the status,
# and ends what the agent left behind. $1: the job without its ending, then the command.
_LIFE = (
    "trap '' HUP; echo $$ >\"$1.group\"; "
    'EDGEWATT_GROUP=1 sh -c \'echo $$ >"$1.pid"; shift; exec "$@"\' - "$@" 2>"$1.err"; '
    'echo $? >"$1.status"; kill -9 -$$'
)


class OnPhone(Heard):
    """What agents and the shell's sampler share: a process on the phone, known by its pid file."""

    def __init__(self, adb: Adb, job: str) -> None:
        super().__init__(f"on {adb.name}")
        self._adb, self._job = adb, job
        self._base = job.removesuffix(".json")
        self.has_ended = False

    def _signal(self, name: str, is_group: bool = False) -> None:
        """Sends a signal to the process, or to its group, if it still is what we started."""
        # By number: not every shell takes a group after `-s`.
        target = '"-$g"' if is_group else '"$p"'
        number = signal.Signals[f"SIG{name}"].value
        script = LEADER + f'[ -n "$g" ] && read -r p <"$1.pid" && kill -{number} {target}'
        with suppress(HarnessError):
            self._adb.shell(script, self._base, timeout_s=15, tries=shell.TRIES)


class AdbAgent(OnPhone):
    """An agent on a phone: heard through a stream while there is one, through its spool where the link was lost."""

    def __init__(self, adb: Adb, agent: str, verb: str, job: str) -> None:
        super().__init__(adb, job)
        self._is_v2 = shell.V2 in adb.features
        self._boot = adb.boot
        self._bytes = 0
        self._lines = Lines()
        self._tail = b""
        command = f"set -- {shlex.join([self._base, agent, verb, job])}; {_LIFE}"
        service = f"shell,v2,raw:{command}" if self._is_v2 else f"exec:{command}"
        self._link = adb.connected()
        stream = self._link.open(service)
        if stream is None:
            raise HarnessError(f"{adb.name}: its adb daemon starts no commands")
        self._stream: Stream = stream
        self._reader = threading.Thread(target=self._read, name=f"agent on {adb.name}", daemon=True)
        self._reader.start()

    def write(self, data: bytes) -> None:
        """To the agent's stdin; nothing if it has ended."""
        packet = shell.packet(shell.STDIN, data) if self._is_v2 else data
        with suppress(HarnessError):
            self._stream.write(packet, 10.0)

    def _read(self) -> None:
        try:
            is_silent = self._follow()
            if is_silent or self._stream.is_lost:
                self._catch_up()
        except HarnessError as error:
            self._events.put(error)
        except Exception as error:  # a thread that dies silently would leave everybody waiting
            self._events.put(HarnessError(f"{self._adb.name}: {type(error).__name__}: {error}"))
        finally:
            self.has_ended = True
            self._events.put(None)

    def _follow(self) -> bool:
        """Hears the stream to its end; whether it was given up, because nothing came although there is more to hear."""
        packets = shell.Packets()
        limit_s = FIRST_S
        while True:
            try:
                data = self._stream.read(limit_s)
            except TimeoutError:
                if not self._bytes or self._has_more():
                    return True
                continue
            if data is None:
                return False
            limit_s = QUIET_S
            for kind, body in packets.of(data) if self._is_v2 else ((shell.STDOUT, data),):
                if kind == shell.STDOUT:
                    self._heard(body)
                elif kind == shell.STDERR:
                    self._tail = (self._tail + body)[-4096:]

    def _has_more(self) -> bool:
        """Whether the spool holds more than was heard, or the agent is gone though its stream did not end; a daemon
        that does not even tell that is reached anew."""
        script = LEADER + 'echo "${g:--}"; wc -c <"$1.events.jsonl"'
        try:
            with self._saying_so():
                leader, *size = self._adb.shell(script, self._base, timeout_s=10, tries=shell.TRIES).text.split()
            return leader == "-" or (bool(size) and int(size[0]) > self._bytes)
        except TransientError:
            self._link.close()
            return True
        except (HarnessError, ValueError):
            return False

    def _heard(self, data: bytes) -> None:
        self._bytes += len(data)
        for event in self._lines.events(data):
            self._events.put(event)

    def _catch_up(self) -> None:
        """The rest of the spool, until the agent has ended; TransientError if the phone stays away or restarted."""
        adb, lost_s = self._adb, time.monotonic()
        try:
            with self._saying_so():
                has_restarted = adb.has_restarted(self._boot)
        except HarnessError as error:
            raise TransientError(
                f"the link to {adb.name} was lost, and it cannot be reached again ({error}); the agent there ends by "
                f"itself within {HEARTBEAT_S:g} s"
            ) from error
        if has_restarted:
            raise TransientError(f"{adb.name} restarted; what ran there is gone")
        self._events.put({"event": "relinked", "after_s": round(time.monotonic() - lost_s, 3)})
        script = (
            '[ -r "$1.group" ] && { [ -r "$1.events.jsonl" ] || [ ! -e "$1.events.jsonl" ]; } || { echo !; exit; }; '
            + LEADER
            + 'echo "${g:--}"; tail -c "+$2" "$1.events.jsonl" 2>/dev/null'
        )
        born_s = time.monotonic() + BORN_S
        while True:
            with self._saying_so():
                told = adb.shell(script, self._base, str(self._bytes + 1), timeout_s=60, tries=shell.TRIES)
            leader, _, new = told.stdout.partition(b"\n")
            if leader == b"!" and self._bytes:
                raise TransientError(
                    f"{adb.name}: what the agent there writes cannot be read any more: its folder is gone, or adb runs "
                    f"as another user since the link was lost; the agent ends by itself within {HEARTBEAT_S:g} s"
                )
            self._heard(new)
            is_gone = leader in (b"-", b"!")
            if is_gone and not new and (self._bytes or time.monotonic() > born_s):
                return
            if not is_gone or not new:
                time.sleep(ASK_S)

    @contextmanager
    def _saying_so(self) -> Iterator[None]:
        """Whoever listens is told every now and then that the phone is waited for."""
        over = threading.Event()

        def say() -> None:
            while not over.wait(SAY_S):
                self._events.put({"event": "waiting"})

        threading.Thread(target=say, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _stop(self, grace_s: float) -> Exit:
        if not self.has_ended:
            self._signal("TERM")
            self._reader.join(grace_s)
        is_killed = not self.has_ended
        if is_killed:
            self._signal("KILL", is_group=True)
            self._reader.join(grace_s + 10)
        self._stream.close()
        self._reader.join(RELINK_S)
        status, stderr = self._last_words()
        name = "SIGKILL" if is_killed else None
        if not is_killed and status is not None and status > 128:
            with suppress(ValueError):
                name = signal.Signals(status - 128).name
        return Exit(None if name else status, name, stderr, False)

    def _last_words(self) -> tuple[int | None, str]:
        """The status and the end of what it said on stderr; after that nothing of the job is left on the phone."""
        try:
            script = (
                'echo $(cat "$1.status" 2>/dev/null); tail -c 65536 "$1.err" 2>/dev/null; '
                'rm -f -- "$1.json" "$1.err" "$1.pid" "$1.group" "$1.status" "$1.events.jsonl"'
            )
            said = self._adb.shell(script, self._base, timeout_s=10, tries=shell.TRIES).stdout
        except HarnessError:
            return None, self._tail.decode(errors="replace") or f"the link to {self._adb.name} was lost"
        status, _, stderr = said.partition(b"\n")
        return int(status) if status.isdigit() else None, (stderr + self._tail).decode(errors="replace")
