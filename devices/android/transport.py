"""Phones over adb: one connection for commands, files and agents, made again when it is lost."""

from __future__ import annotations

import functools
import json
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

from edgewatt.devices.agent.agent import now_ns
from edgewatt.devices.android import shell, sync
from edgewatt.devices.android.agents import HEARTBEAT_S, AdbAgent, OnPhone
from edgewatt.devices.android.link import AUTHORISE_S, RELINK_S, Link, Usb, wire_to
from edgewatt.devices.android.pushing import push
from edgewatt.devices.android.sessions import end_orphans, new_session
from edgewatt.devices.android.shell import PATIENCE_S, TRIES, Done
from edgewatt.devices.android.shell_sampler import ShellSampler
from edgewatt.devices.files import content_hash, readable
from edgewatt.devices.transport import PINGS, Transport, pings
from edgewatt.harness import clocks
from edgewatt.harness.api import AgentProcess, ClockOffset, Facts, HarnessError, TransientError, UsageError

FOLDER = "/data/local/tmp/edgewatt"
BEAT_S = 10.0  # a command on the phone each time, some milliseconds of its time
AGAIN_S = (0.25, 0.5, 1.0, 2.0)  # waits between tries, the last one again and again
RESTARTED_S = 5.0  # a phone whose uptime is behind by more than that (and 0.1 %) restarted meanwhile
UPTIME_STEP_S = 0.01  # what /proc/uptime counts in

T = TypeVar("T")


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
        self._known: set[str] = set()  # what lies there under its content
        self._number = 0
        self._session = new_session(folder)
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
        return self._tried(lambda link: shell.run(link, text, stdin, min(next(limits), timeout_s)), tries)

    @property
    def features(self) -> frozenset[str]:
        """What the phone's daemon says it can do."""
        return self.connected().features

    def root(self) -> None:
        """Restarts the phone's adb daemon as root (`adb root`); UsageError if it does not let us."""
        stream = self.connected().open("root:")
        said = b""
        with suppress(TransientError):  # the daemon may be gone before its word has come
            said = b"" if stream is None else shell.all_of(self.name, stream, 10.0)
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
        started = ShellSampler(self, job, self._job("sample", dict(job)), self._beat())
        self._started.append(started)
        return started

    def put(self, path: Path) -> str:
        """The file or folder on the phone, below `folder`/files, pushed if content like it is not there yet."""
        home = f"{self.folder}/files/{content_hash(path)}"
        target = f"{home}/{path.name}"
        if target not in self._known and self.shell('[ -e "$1" ]', target, tries=TRIES).status != 0:
            self._made_session()
            # What is left of a push that broke goes with the session.
            with readable(path):
                self._tried(lambda link: push(link, path, home, f"{self._session}/push-{secrets.token_hex(4)}"), TRIES)
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
            return clocks.offset(pings(functools.partial(self.start, "clock", {"ping": True}), self.name, now_ns))
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
                    end_orphans(link, self.folder)
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
        # An uptime that has not grown as it should decides only where there is no id: an answer that was long on its
        # way makes it look too small. One that is less than it was has begun anew, whatever the id says.
        is_behind = uptime_now_s < uptime_s + (now_s - at_s) * 0.999 - RESTARTED_S
        has = uptime_now_s < uptime_s or (now != boot if now and boot else is_behind)
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
                    self.shell('echo "$2" >"$1"', path, secrets.token_hex(4), timeout_s=10, tries=TRIES)

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
        said = "" if stream is None else shell.all_of(serial, stream, 10.0).decode(errors="replace")
        if "restarting" not in said:
            raise UsageError(f"{serial}: the phone does not switch to the network ({said.strip() or 'refused'})")
    finally:
        adb.close()
    return f"{match[1]}:{port}"


def _harmless(name: str, of: str) -> str:
    """A path inside what was asked for; HarnessError for any other: a phone is not trusted with our file system."""
    path = PurePosixPath(name)
    if path.is_absolute() or path.parts[:1] != (of,) or ".." in path.parts:
        raise HarnessError(f"the phone gave a path {name[:100]!r} outside of {of}")
    return name
