"""Phones over adb: commands, files, and agents that outlive a lost link.

An agent on a phone writes its events into a spool and goes on when the link drops; the harness connects again and reads
what it missed. A file whose content we change every few seconds tells it that the harness lives.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import shlex
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from edgewatt.devices.agent.agent import now_ns
from edgewatt.devices.android import sync
from edgewatt.devices.android.link import AUTHORISE_S, Link, Stream, Usb, wire_to
from edgewatt.devices.files import below, content_hash, readable, sha256
from edgewatt.devices.transport import PINGS, Heard, Lines, Transport, pings
from edgewatt.harness import clocks
from edgewatt.harness.api import AgentProcess, ClockOffset, Exit, Facts, HarnessError, TransientError, UsageError

FOLDER = "/data/local/tmp/edgewatt"
HEARTBEAT_S = 60.0  # an agent whose harness has been silent for so long ends by itself
BEAT_S = 10.0  # a command on the phone each time, some milliseconds of its time
RELINK_S = 45.0  # how long a phone that was there is tried again
AGAIN_S = (0.25, 0.5, 1.0, 2.0)  # waits between tries, the last one again and again
TRIES = 3  # of what may be done twice
PATIENCE_S = (5.0, 15.0)  # with all but the last of them
FIRST_S = 5.0  # an agent greets at once: one whose stream is silent for so long is heard through its spool
QUIET_S = 10.0  # one that falls silent for so long is looked after: its stream may be dead, and its spool not
ASK_S = 1.0  # between two looks into the spool of an agent whose link was lost: each costs the phone some milliseconds
BORN_S = 3.0  # for the shell that starts an agent to say which process it is
RESTARTED_S = 5.0  # a phone whose uptime is behind by more than that (and 0.1 %) restarted meanwhile
SAY_S = 4.0  # how often one that waits for a phone says so, so that it is not taken for hung
UPTIME_STEP_S = 0.01  # what /proc/uptime counts in
WORTH_PACKING = 1 << 20  # bytes: such a file goes over the link as gzip packs it
MOST_SCRIPT = 100_000  # bytes; Linux takes 128 KiB as one argument
MOST_OUT = 64 << 20  # bytes of a command's output
_V2 = "shell_v2"
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)

T = TypeVar("T")

# An agent's own shell, which leads the session that the daemon made for it: it outlives a lost link, keeps the status,
# and ends what the agent left behind. $1: the job without its ending, then the command.
_LIFE = (
    "trap '' HUP; echo $$ >\"$1.group\"; "
    'EDGEWATT_GROUP=1 sh -c \'echo $$ >"$1.pid"; shift; exec "$@"\' - "$@" 2>"$1.err"; '
    'echo $? >"$1.status"; kill -9 -$$'
)

# Of a job $1 (without its ending): its shell's process in g, if that still is the job's; else empty.
_LEADER = (
    'read -r g <"$1.group" 2>/dev/null || g=; '
    '[ -n "$g" ] && tr "\\0" " " <"/proc/$g/cmdline" 2>/dev/null | grep -qF -- "$1" || g=; '
)


@dataclass(frozen=True)
class Done:
    """How a command on the phone ended, and what it said. `status` None: its shell was ended before it could tell."""

    status: int | None
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """What it printed, as text."""
        return self.stdout.decode(errors="replace")

    @property
    def why(self) -> str:
        """What it said on stderr, in one line."""
        return " ".join(self.stderr.split())[:300] or f"status {self.status}"


class Adb(Transport):
    """A phone at HOST:PORT, or by its serial on USB. Nothing is connected before it is needed."""

    def __init__(
        self,
        address: str,
        *,
        agent: Path | None = None,
        key: Path | None = None,
        folder: str = FOLDER,
        authorise_s: float = AUTHORISE_S,
    ) -> None:
        """`agent` is the native agent for this phone (None: nothing of ours may be executed there); `authorise_s` is
        how long somebody has to tap Allow on a phone that does not know this machine yet."""
        self.name = self.serial = address
        self.python = ""
        self.agent, self.folder = agent, folder
        self.is_usb = isinstance(wire_to(address), Usb)
        self._key, self._authorise_s = key, authorise_s
        self._link: Link | None = None
        self._connecting = threading.RLock()
        self._started: list[OnPhone] = []
        self._number = 0
        self._session = f"{folder}/jobs/{_ours()}-{secrets.token_hex(4)}"
        self._has_session = self._was_there = False
        self.boot = ("", 0.0, 0.0)
        self._keeper: threading.Thread | None = None
        self._closing = threading.Event()
        self._refusal: HarnessError | None = None

    # -- commands

    def shell(self, script: str, *words: str, stdin: bytes = b"", timeout_s: float = 30.0, tries: int = 1) -> Done:
        """A script in the phone's own shell, with `words` as $1, $2, … (this is the one place that quotes them).

        `tries` more than one: of what may be done twice, should the link be lost meanwhile, or the daemon swallow it
        (one that was just cut off may): the first try is waited for no longer than it usually takes. TransientError if
        the phone cannot be reached or does not end it in time.
        """
        text = f"set -- {shlex.join(words)}\n{script}" if words else script
        limits = iter([*PATIENCE_S[: tries - 1], timeout_s])
        return self._tried(lambda link: self._run(link, text, stdin, min(next(limits), timeout_s)), tries)

    @property
    def features(self) -> frozenset[str]:
        """What the phone's daemon says it can do."""
        return self.connected().features

    def root(self) -> None:
        """Restarts the phone's adb daemon as root (`adb root`); UsageError if it does not let us."""
        stream = self.connected().open("root:")
        said = b""
        with suppress(TransientError):  # the daemon may be gone before its word has come
            said = b"" if stream is None else _all(self.name, stream, 10.0)
        if b"cannot" in said or stream is None:
            step = "only userdebug and eng builds do; leave root out"
            raise UsageError(f"{self.name}: adb does not run as root ({said.decode(errors='replace').strip()}); {step}")
        if b"already" not in said:
            deadline = time.monotonic() + RELINK_S
            while not self._runs_as_root():
                if time.monotonic() > deadline:
                    raise UsageError(f"{self.name}: adb root was taken and had no effect; leave root out")
                time.sleep(0.5)

    def _runs_as_root(self) -> bool:
        """Asked through a new link: the old one may still lead to the daemon that is going."""
        self._drop()
        with suppress(TransientError):
            return self.shell("id -u").text.strip() == "0"
        return False

    def _run(self, link: Link, text: str, stdin: bytes, timeout_s: float) -> Done:
        if _V2 in link.features:
            stream = link.open(f"shell,v2,raw:{self._short(link, text)}")
            if stream is not None:
                return _by_v2(self.name, stream, stdin, timeout_s)
        return self._by_marks(link, text, stdin, timeout_s)

    def _by_marks(self, link: Link, text: str, stdin: bytes, timeout_s: float) -> Done:
        """On phones before Android 7: no exit codes and one output, so the script says where it ended and how."""
        mark = secrets.token_hex(8)
        errors = f"/data/local/tmp/.edgewatt-{mark}"
        feed = f"head -c {len(stdin)} | " if stdin else ""
        whole = f'{feed}( {text}\n) 2>{errors}; r=$?; echo; echo "{mark} $r"; cat {errors}; rm -f {errors}'
        stream = link.open(f"exec:{self._short(link, whole)}")
        if stream is None:
            raise UsageError(f"{self.name}: its adb daemon has neither shell v2 nor exec; Android 5 or later is needed")
        try:
            with _feeding(stream, stdin):
                said = _all(self.name, stream, timeout_s)
        finally:
            stream.close()
        out, found, rest = said.partition(f"\n{mark} ".encode())
        status, _, stderr = rest.partition(b"\n")
        return Done(int(status) if found and status.isdigit() else None, out, stderr.decode(errors="replace"))

    def _short(self, link: Link, text: str) -> str:
        """The script, or one that runs it out of a file, where it is longer than an argument or a packet may be."""
        content = text.encode("utf-8", "surrogateescape")
        if len(content) < min(MOST_SCRIPT, link.most_bytes - 64):
            return text
        path = f"/data/local/tmp/.edgewatt-{secrets.token_hex(8)}.sh"
        sync.push_bytes(link, content, path)
        return f"sh {path}; r=$?; rm -f {path}; exit $r"

    # -- what every transport does

    def start(self, verb: str, job: Facts, python: str | None = None) -> AdbAgent:
        """The native agent. UsageError if there is none for this phone."""
        if self.agent is None:
            raise UsageError(f"{self.name}: there is no native agent for it; edgewatt agent build makes one")
        agent = self.put(self.agent)
        is_ping = bool(job.get("ping"))  # it lives as long as it is asked, and reads stdin itself
        heart = {} if is_ping else {"heartbeat_file": self._beat(), "heartbeat_s": HEARTBEAT_S}
        started = AdbAgent(self, agent, verb, self._job(verb, {**job, "spool": True, **heart}))
        self._started.append(started)
        return started

    def shell_sampler(self, job: Facts) -> AgentProcess:
        """The phone's own shell samples nodes, where nothing of ours may be executed: slower, and said so."""
        from edgewatt.devices.android.shell_sampler import ShellSampler

        started = ShellSampler(self, job, self._job("sample", dict(job)), self._beat())
        self._started.append(started)
        return started

    def put(self, path: Path) -> str:
        """The file or folder on the phone, below `folder`/files, pushed if content like it is not there yet."""
        home = f"{self.folder}/files/{content_hash(path)}"
        target = f"{home}/{path.name}"
        if target not in self._known and self.shell('[ -e "$1" ]', target, tries=TRIES).status != 0:
            self._made_session()
            with readable(path):
                self._tried(lambda link: self._push(link, path, home), TRIES)
        self._known.add(target)
        return target

    def get(self, remote: str, into: Path) -> Path:
        """A copy of `remote` in the folder `into`; HarnessError if it cannot be had."""
        where = PurePosixPath(remote)
        script = 'cd "$1" && { [ -d "$2" ] || [ -f "$2" ]; } && find "$2" -type d && echo && find "$2" -type f'
        listed = self.shell(script, str(where.parent), where.name, tries=TRIES)
        if listed.status != 0:
            raise HarnessError(f"{self.name}: {remote} cannot be fetched: {listed.why}")
        folders, _, files = listed.text.partition("\n\n") if not listed.text.startswith("\n") else ("", "", listed.text)
        try:
            for name in filter(None, folders.split("\n")):
                (into / _harmless(name, where.name)).mkdir(parents=True, exist_ok=True)
            for name in filter(None, files.split("\n")):
                target = into / _harmless(name, where.name)
                source = f"{where.parent}/{name}"
                self._tried(functools.partial(sync.pull, remote=source, into=target), TRIES)
        except OSError as error:
            raise HarnessError(f"{remote}: cannot be copied into {into}: {error}") from error
        return into / where.name

    def scratch(self) -> str:
        self._number += 1
        folder = f"{self._session}/scratch-{self._number}"
        self._made_session()
        done = self.shell('mkdir -p "$1"', folder, tries=TRIES)
        if done.status != 0:
            raise UsageError(f"{self.name}: no folder for temporary files can be made: {done.why}; name another folder")
        return folder

    def clock_offset(self) -> ClockOffset:
        """The phone's clock minus ours, from the quickest of some round trips.

        Without an agent by /proc/uptime, which counts in 10 ms: that is added to the bound.
        """
        if self.agent is not None:
            return clocks.offset(pings(self.start("clock", {"ping": True}), self.name, now_ns))
        offset = clocks.offset(self._pings_by_uptime())
        half_s = UPTIME_STEP_S / 2  # it is cut, so the true time is half a step later on average
        return ClockOffset(offset.offset_s + half_s, offset.bound_s + half_s, offset.drift, offset.at_s, offset.n)

    def close(self) -> None:
        """Nothing of ours runs on the phone, and only files pushed by content are left."""
        self._closing.set()
        for agent in self._started:
            agent.stop()
        if self._has_session and self._link is not None:
            with suppress(HarnessError):  # a phone that is gone is cleaned at the next connection
                self.shell('rm -rf -- "$1"', self._session, timeout_s=10, tries=TRIES)
        self._drop()
        self._started, self._has_session, self._was_there = [], False, False
        if self._keeper is not None:
            self._keeper.join(1.0)
        self._keeper, self._closing = None, threading.Event()

    # -- the connection

    def connected(self) -> Link:
        """A link that is up. One that was up before is tried for a while; a phone that never was, once."""
        with self._connecting:
            if self._refusal is not None:
                raise type(self._refusal)(str(self._refusal))
            deadline = time.monotonic() + (RELINK_S if self._was_there else 0.0)
            waits = iter(AGAIN_S)
            while self._link is None or self._link.is_closed:
                try:
                    link = Link(self.name, wire_to(self.serial), self._key, authorise_s=self._authorise_s)
                except TransientError:
                    if time.monotonic() > deadline or self._closing.is_set():
                        self._was_there = False  # it stays away: the next who asks need not wait as long
                        raise
                    time.sleep(next(waits, AGAIN_S[-1]))
                    continue
                except UsageError as error:  # nobody tapped Allow: nobody is asked again for each of many commands
                    self._refusal = HarnessError(str(error)) if self._was_there else error
                    raise self._refusal from error
                self._link = link
                if not self._was_there:
                    self._was_there = True
                    self._end_orphans(link)
            return self._link

    def _drop(self) -> None:
        with self._connecting:
            if self._link is not None:
                self._link.close()
                self._link = None

    def _tried(self, work: Callable[[Link], T], tries: int) -> T:
        for left in reversed(range(tries)):
            try:
                return work(self.connected())
            except TransientError:
                if not left or self._closing.is_set():
                    raise
        raise AssertionError("unreachable")

    def _end_orphans(self, link: Link) -> None:
        """Ends what a harness of this machine that no longer lives left running, by pid, and removes its folders."""
        listed = self._first(link, f"ls {shlex.quote(self.folder)}/jobs 2>/dev/null")
        script = (
            'for f in "$1"/*/*.undo; do [ -r "$f" ] && sh "$f"; done; '
            'for job in "$1"/*.group; do set -- "${job%.group}" "${job%/*}"; '
            + _LEADER
            + 'if [ -n "$g" ]; then read -r p <"$1.pid" && kill -TERM "$p" 2>/dev/null; n=0; '
            'while [ -d "/proc/$g" ] && [ $n -lt 20 ]; do sleep 0.1; n=$((n+1)); done; '
            'kill -9 "-$g" 2>/dev/null; fi; set -- "$2"; done; rm -rf -- "$1"'
        )
        for name in filter(_is_dead, listed.text.split()):
            self._first(link, f"set -- {shlex.quote(f'{self.folder}/jobs/{name}')}\n{script}", (20.0, 60.0))

    def _first(self, link: Link, script: str, limits_s: Sequence[float] = PATIENCE_S) -> Done:
        """One of the first commands through a new link, which the daemon may swallow."""
        for limit_s in limits_s:
            with suppress(TransientError):
                return self._run(link, script, b"", limit_s)
        raise TransientError(f"{self.name}: its daemon starts no commands; restart adb there, or the phone")

    # -- agents

    def _made_session(self) -> None:
        with self._connecting:
            if not self._has_session:
                done = self.shell('umask 077; mkdir -p "$1"', self._session, tries=TRIES)
                if done.status != 0:
                    raise UsageError(f"{self.name}: {self._session} cannot be made: {done.why}; name another folder")
                self.boot, self._has_session = self._boot_now(), True

    def _boot_now(self) -> tuple[str, float, float]:
        """What tells this boot of the phone from another: its id, its uptime in s, and when that was asked for."""
        script = "read -r t rest </proc/uptime; echo $t; cat /proc/sys/kernel/random/boot_id 2>/dev/null"
        said = self.shell(script, tries=TRIES).text.split()
        try:
            return (said[1] if len(said) > 1 else ""), float(said[0]), now_ns() * 1e-9
        except (IndexError, ValueError) as error:
            raise HarnessError(f"{self.name}: /proc/uptime says {' '.join(said)[:40]!r}") from error

    def has_restarted(self, since: tuple[str, float, float]) -> bool:
        """Whether the phone has started anew since that `boot`; TransientError if it cannot be asked."""
        boot, uptime_s, at_s = since
        now, uptime_now_s, now_s = found = self._boot_now()
        has = now != boot or uptime_now_s < uptime_s + (now_s - at_s) * 0.999 - RESTARTED_S
        if has:
            self.boot = found  # agents that are started from here on belong to this one
        return has

    def _job(self, verb: str, job: Facts) -> str:
        self._made_session()
        with self._connecting:
            self._number += 1
            path = f"{self._session}/{self._number}-{verb}.json"
        content = json.dumps(job).encode()
        self._tried(lambda link: sync.push_bytes(link, content, path), TRIES)
        return path

    def _beat(self) -> str:
        """The file whose changing content says that we live; a thread sees to it."""
        path = f"{self._session}/beat"
        with self._connecting:
            if self._keeper is None or not self._keeper.is_alive():
                self._made_session()
                self.shell('echo "$2" >"$1"', path, secrets.token_hex(4), tries=TRIES)
                self._keeper = threading.Thread(
                    target=self._keep, args=(path, self._closing), name=f"heart of {self.name}", daemon=True
                )
                self._keeper.start()
        return path

    def _keep(self, path: str, closing: threading.Event) -> None:
        while not closing.wait(BEAT_S):
            if any(not agent.has_ended for agent in self._started):
                with suppress(HarnessError):
                    self.shell('echo "$2" >"$1"', path, secrets.token_hex(4), timeout_s=10)

    def _pings_by_uptime(self) -> list[tuple[float, float, float]]:
        told = []
        for _ in range(PINGS):
            before = now_ns()
            said = self.shell("read -r t rest </proc/uptime; echo $t", tries=TRIES).text
            try:
                told.append((before * 1e-9, float(said), now_ns() * 1e-9))
            except ValueError as error:
                raise HarnessError(f"{self.name}: /proc/uptime says {said[:40]!r}") from error
        return told

    # -- files

    @functools.cached_property
    def _known(self) -> set[str]:
        return set()

    def _push(self, link: Link, path: Path, home: str) -> None:
        """Into a new folder, compared there, and then under its name: whole or not at all."""
        new = f"{self._session}/push-{secrets.token_hex(4)}"  # what is left of a broken one goes with the session
        files = [path] if path.is_file() else [p for p in below(path) if p.is_file()]
        folders = [path.name] if path.is_dir() else []
        folders += [str(p.relative_to(path.parent)) for p in below(path) if p.is_dir()] if path.is_dir() else []
        names = [p.relative_to(path.parent).as_posix() for p in files]
        quoted = shlex.join(f"{new}/{name}" for name in ["", *folders])
        make = f"mkdir -p -- {shlex.quote(str(PurePosixPath(home).parent))} {quoted}"
        made = self._run(link, f"{make} && {{ command -v gzip || :; }}", b"", 30.0)
        if made.status != 0:
            raise HarnessError(f"{self.name}: {home} cannot be made: {made.why}; name another folder")
        for file, name in zip(files, names, strict=True):
            is_packed = bool(made.text.strip()) and file.stat().st_size >= WORTH_PACKING
            if not (is_packed and self._pushed_packed(link, file, f"{new}/{name}")):
                sync.push(link, file, f"{new}/{name}", _mode(file))
        self._compare(link, files, [f"{new}/{name}" for name in names])
        # Another one may have been as quick: its copy is as good, and ours is not to end up inside it.
        script = '[ -d "$2" ] || mv "$1" "$2"; rm -rf -- "$2/${1##*/}"; [ -d "$2" ]'
        moved = self._run(link, f"set -- {shlex.join([new, home])}\n{script}", b"", 30.0)
        if moved.status != 0:
            raise HarnessError(f"{self.name}: {home} cannot be written: {moved.why}")

    def _pushed_packed(self, link: Link, file: Path, remote: str) -> bool:
        """Whether the phone could unpack it."""
        sync.push_packed(link, file, f"{remote}.gz")
        script = 'gzip -dc <"$1.gz" >"$1" && chmod "$2" "$1"; s=$?; rm -f "$1.gz"; [ $s = 0 ]'
        words = shlex.join([remote, f"{_mode(file):o}"])
        return self._run(link, f"set -- {words}\n{script}", b"", 600.0).status == 0

    def _compare(self, link: Link, files: Sequence[Path], remotes: Sequence[str]) -> None:
        """TransientError if what lies on the phone is not what was sent: by sha256 where it has that, else by size."""
        for start in range(0, len(files), 50):
            part, there = files[start : start + 50], remotes[start : start + 50]
            told = self._run(link, f"sha256sum {shlex.join(there)}", b"", 600.0)
            if told.status == 0:
                found = [line.split(" ")[0] for line in told.text.splitlines()]
                wanted = [sha256(p).hexdigest() for p in part]
            else:
                told = self._run(link, f'for f in {shlex.join(there)}; do wc -c <"$f"; done', b"", 600.0)
                found, wanted = told.text.split(), [str(p.stat().st_size) for p in part]
            if found != wanted:
                raise TransientError(f"{self.name}: a file did not arrive as it was sent")


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
        script = _LEADER + f'[ -n "$g" ] && read -r p <"$1.pid" && kill -{number} {target}'
        with suppress(HarnessError):
            self._adb.shell(script, self._base, timeout_s=15, tries=TRIES)


class AdbAgent(OnPhone):
    """An agent on a phone: heard through a stream while there is one, through its spool where the link was lost."""

    def __init__(self, adb: Adb, agent: str, verb: str, job: str) -> None:
        super().__init__(adb, job)
        self._is_v2 = _V2 in adb.features
        self._boot = adb.boot
        self._bytes = 0
        self._lines = Lines()
        self._tail = b""
        command = f"set -- {shlex.join([self._base, agent, verb, job])}; {_LIFE}"
        service = f"shell,v2,raw:{command}" if self._is_v2 else f"exec:{command}"
        link = adb.connected()
        stream = link.open(service)
        if stream is None:
            raise HarnessError(f"{adb.name}: its adb daemon starts no commands")
        self._stream: Stream = stream
        self._reader = threading.Thread(target=self._read, name=f"agent on {adb.name}", daemon=True)
        self._reader.start()

    def write(self, data: bytes) -> None:
        """To the agent's stdin; nothing if it has ended."""
        packet = struct.pack("<BI", _STDIN, len(data)) + data if self._is_v2 else data
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
        packets = _Packets()
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
            for kind, body in packets.of(data) if self._is_v2 else ((_STDOUT, data),):
                if kind == _STDOUT:
                    self._heard(body)
                elif kind == _STDERR:
                    self._tail = (self._tail + body)[-4096:]

    def _has_more(self) -> bool:
        """Whether the spool holds more than was heard."""
        with suppress(HarnessError, ValueError):  # a link that is lost ends the stream as well
            told = self._adb.shell('wc -c <"$1.events.jsonl"', self._base, timeout_s=10, tries=TRIES)
            return int(told.text) > self._bytes
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
            + _LEADER
            + 'echo "${g:--}"; tail -c "+$2" "$1.events.jsonl" 2>/dev/null'
        )
        born_s = time.monotonic() + BORN_S
        while True:
            with self._saying_so():
                told = adb.shell(script, self._base, str(self._bytes + 1), timeout_s=60, tries=TRIES)
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
            said = self._adb.shell(script, self._base, timeout_s=10, tries=TRIES).stdout
        except HarnessError:
            return None, self._tail.decode(errors="replace") or f"the link to {self._adb.name} was lost"
        status, _, stderr = said.partition(b"\n")
        return int(status) if status.isdigit() else None, (stderr + self._tail).decode(errors="replace")


class _Packets:
    """Packets of shell v2 out of pieces of any size."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        self._rest += data
        while len(self._rest) >= 5:
            kind, length = struct.unpack_from("<BI", self._rest)
            if length > MOST_OUT:
                raise HarnessError("the phone does not speak shell v2 as it says")
            if len(self._rest) < 5 + length:
                return
            body, self._rest = self._rest[5 : 5 + length], self._rest[5 + length :]
            yield kind, body


def _by_v2(name: str, stream: Stream, stdin: bytes, timeout_s: float) -> Done:
    out: dict[int, bytearray] = {_STDOUT: bytearray(), _STDERR: bytearray(), _EXIT: bytearray()}
    packets = _Packets()
    deadline = time.monotonic() + timeout_s
    given = struct.pack("<BI", _STDIN, len(stdin)) + stdin if stdin else b""
    try:
        with _feeding(stream, given + struct.pack("<BI", _CLOSE_STDIN, 0)):
            while (data := stream.read(max(0.001, deadline - time.monotonic()))) is not None:
                for kind, body in packets.of(data):
                    if kind in out:
                        out[kind] += body
                if sum(map(len, out.values())) > MOST_OUT:
                    raise HarnessError(f"{name}: a command printed more than {MOST_OUT} bytes")
    except TimeoutError as error:
        raise TransientError(f"{name}: a command did not end within {timeout_s:g} s") from error
    finally:
        stream.close()
    if stream.is_lost and not out[_EXIT]:
        raise TransientError(f"{name}: the link was lost")
    status = out[_EXIT][0] if out[_EXIT] else None
    return Done(status, bytes(out[_STDOUT]), out[_STDERR].decode(errors="replace"))


def _all(name: str, stream: Stream, timeout_s: float) -> bytes:
    """What comes until the stream's end; TransientError if that is not within `timeout_s`, or the link ended first."""
    said = bytearray()
    deadline = time.monotonic() + timeout_s
    try:
        while (data := stream.read(max(0.001, deadline - time.monotonic()))) is not None:
            said += data
            if len(said) > MOST_OUT:
                raise HarnessError(f"{name}: a command printed more than {MOST_OUT} bytes")
    except TimeoutError as error:
        raise TransientError(f"{name}: a command did not end within {timeout_s:g} s") from error
    if stream.is_lost:
        raise TransientError(f"{name}: the link was lost")
    return bytes(said)


@contextmanager
def _feeding(stream: Stream, data: bytes) -> Iterator[None]:
    """Inside, `data` goes to the stream as it is taken, while what comes back can be read."""

    def feed() -> None:
        with suppress(HarnessError):  # one that ends without reading it all is no error
            stream.write(data)

    if data:
        threading.Thread(target=feed, name="stdin of a command", daemon=True).start()
    yield


def phones() -> list[str]:
    """Serials of the phones on this machine's USB; none where the library for that is missing."""
    try:
        from adb_shell.transport.usb_transport import UsbTransport
    except (ImportError, OSError):
        return []
    try:
        return sorted(str(d.serial_number) for d in UsbTransport.find_all_adb_devices())
    except Exception:  # no USB at all, or no right to look: the library's own kinds of error
        return []


def tcpip(serial: str, port: int = 5555) -> str:
    """Switches a phone on USB to adb over the network; HOST:PORT by which it is then reached."""
    adb = Adb(serial)
    try:
        told = adb.shell("ip -4 -o addr show scope global; ip -4 -o route get 1.1.1.1", tries=TRIES)
        match = re.search(r"\bwlan\d*\s+inet (\d+\.\d+\.\d+\.\d+)", told.text) or re.search(
            r"\binet (\d+\.\d+\.\d+\.\d+)", told.text
        )
        if match is None:
            raise UsageError(f"{serial}: the phone has no address in a network; switch its Wi-Fi on")
        stream = adb.connected().open(f"tcpip:{port}")
        said = "" if stream is None else _all(serial, stream, 10.0).decode(errors="replace")
        if "restarting" not in said:
            raise UsageError(f"{serial}: the phone does not switch to the network ({said.strip() or 'refused'})")
    finally:
        adb.close()
    return f"{match[1]}:{port}"


def _ours() -> str:
    """This machine and process, in a name on the phone: who may end what runs there."""
    return f"{_machine()}-{os.getpid()}-{_started(os.getpid()) or 0}"


@functools.cache
def _machine() -> str:
    return hashlib.sha256(
        f"{socket.gethostname()} {os.getuid() if hasattr(os, 'getuid') else ''}".encode()
    ).hexdigest()[:8]


def _is_dead(session: str) -> bool:
    """Whether a session on the phone is of a process of this machine that no longer lives."""
    match = re.fullmatch(r"([0-9a-f]{8})-(\d{1,10})-(\d{1,20})-[0-9a-f]{8}", session)
    return match is not None and match[1] == _machine() and _started(int(match[2])) != int(match[3])


def _started(pid: int) -> int | None:
    """When a process began, in ticks since boot, which tells it from a later one of its number; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        pass
    try:
        import psutil

        return int(psutil.Process(pid).create_time())
    except Exception:  # psutil's own kinds; on Linux the line above has answered
        return None


def _harmless(name: str, of: str) -> str:
    """A path inside what was asked for; HarnessError for any other: a phone is not trusted with our file system."""
    path = PurePosixPath(name)
    if path.is_absolute() or path.parts[:1] != (of,) or ".." in path.parts:
        raise HarnessError(f"the phone gave a path {name[:100]!r} outside of {of}")
    return name


def _mode(file: Path) -> int:
    return 0o755 if os.access(file, os.X_OK) else 0o644
