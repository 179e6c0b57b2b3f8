"""Boards in a lab over ssh: the system's own client, so that keys, agents, jump hosts, ~/.ssh/config and known_hosts
work as everywhere else.

One connection carries everything (ControlMaster). Each agent is told every half second that we live; when the link is
lost it ends by itself, and what it had written into its spool by then is fetched as soon as the board can be reached
again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from edgewatt.devices.agent.agent import now_ns
from edgewatt.devices.files import content_hash, readable
from edgewatt.devices.transport import LONGEST_STDERR, LocalAgent, Transport, pings
from edgewatt.harness import clocks
from edgewatt.harness.api import ClockOffset, Exit, Facts, HarnessError, TransientError, UsageError

HEARTBEAT_S = 3.0  # an agent that hears nothing for so long ends by itself
BEAT_S = 0.5
CONNECT_S = 10
AGAIN_S = (0.5, 1.0, 2.0)  # waits between tries to connect
FAREWELL_S = 5  # to connect, where only a folder is to be removed
FETCH_S = 10.0  # how long the board is tried after a lost link; an agent there ends within 5 s
_OPTIONS = {
    "BatchMode": "yes",  # nobody is there to type a password
    "ServerAliveInterval": "1",
    "ServerAliveCountMax": "3",
    "ControlMaster": "auto",
    "ControlPersist": "60",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "RemoteCommand": "none",  # such as the tmux that a user wants to find at every login
    "PermitLocalCommand": "no",
    "LogLevel": "ERROR",
}
_PACKAGES = ("edgewatt.harness", "edgewatt.devices", "edgewatt.workloads")
_FULL = b"edgewatt-full\n"
_BEGAN = re.compile(rb"edgewatt-began (\d+) (\d*) (\S*)\n")  # process group, OOM kills so far, boot
_ENDED = re.compile(rb"edgewatt-ended (\d+) (\d*)\n")
_OOM = "$(sed -n 's/^oom_kill //p' /proc/vmstat 2>/dev/null)"
_BOOT = "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"  # another one after every restart

# $1 folder, $2 bytes of the job, $3 job, $4 python, $5 verb, $6 our code. A shell stays above the agent: ssh itself
# tells neither which signal ended a program nor that the link was lost, so the shell says how it ended. Then it ends
# what the agent started, which would keep the link busy, and itself.
_START = f"""
mkdir -p "$1" && head -c "$2" >"$3" || {{ echo edgewatt-full >&2; exit 1; }}
export EDGEWATT_GROUP=1 PYTHONPATH="$6${{PYTHONPATH:+:$PYTHONPATH}}"
echo "edgewatt-began $(cut -d' ' -f5 /proc/$$/stat) {_OOM} {_BOOT}" >&2
"$4" "$6/edgewatt/devices/agent/agent.py" "$5" "$3"
echo "edgewatt-ended $? {_OOM}" >&2
kill -KILL 0
"""
_RUN = 'cd; "$@"; echo "edgewatt-ended $? " >&2'
# Whether the agent of group $1, whose spool is $2, still runs (3) or has ended (0). Not every shell's kill knows `--`;
# a zombie keeps its group, so the agent's last word counts as well.
_IS_RUNNING = f"""
echo "{_BOOT}"
kill -0 "-$1" 2>/dev/null || exit 0
tail -n 1 "$2" | grep -q '^{{"event":"e[nr]' && exit 0
exit 3
"""


@dataclass(frozen=True)
class Done:
    """How a command on the board ended, and what it said."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def why(self) -> str:
        """What it said on stderr, in one line."""
        return " ".join(self.stderr.split())[:300] or f"status {self.status}"


class Ssh(Transport):
    """A board at `ssh://[user@]host[:port]`, or at a name of ~/.ssh/config."""

    def __init__(self, address: str, python: str = "python3", config: Path | None = None) -> None:
        """`python` is the board's; `config` another file than ~/.ssh/config. Nothing is connected yet."""
        self.name, self.python = address.removeprefix("ssh://"), python
        self._words = _target(address)
        self._config = config
        self._started: list[SshAgent] = []
        self._folders: list[str] = []
        self._socket: str | None = None
        self._connecting = threading.RLock()
        self._home = self._jobs = ""
        self._numbers = itertools.count()

    # -- what every transport does

    def start(self, verb: str, job: Facts, python: str | None = None) -> SshAgent:
        """The agent, in one round trip: its job goes ahead of the heartbeats."""
        code = self._code()
        with self._connecting:
            if not self._jobs:
                self._jobs = self.scratch()
        path = f"{self._jobs}/{next(self._numbers)}-{verb}.json"
        has_heart = not job.get("ping")  # a ping reads stdin itself
        text = json.dumps({**job, "spool": True, **({"heartbeat_s": HEARTBEAT_S} if has_heart else {})}).encode()
        words = ["sh", "-c", _START, "sh", self._jobs, str(len(text)), path, python or self.python, verb, code]
        agent = SshAgent(self, self._command(words), text, f"{path[:-5]}.events.jsonl", has_heart)
        self._started.append(agent)
        return agent

    def put(self, path: Path) -> str:
        """The file or folder on the board, below ~/.cache/edgewatt, pushed if content like it is not there yet."""
        digest = content_hash(path)
        folder = f"{self._connected()}/.cache/edgewatt/files-{digest}"
        target = f"{folder}/{path.name}"
        if self._run(["test", "-e", target]).status != 0:
            with tempfile.TemporaryFile() as packed:
                with readable(path), tarfile.open(fileobj=packed, mode="w", dereference=True) as archive:
                    archive.add(path, path.name)
                self._unpack(packed, folder)
        return target

    def get(self, remote: str, into: Path) -> Path:
        """A copy of `remote` in the folder `into`; HarnessError if it cannot be had."""
        where = PurePosixPath(remote)
        with tempfile.TemporaryFile() as packed:
            done = self._run(
                ["tar", "-C", str(where.parent), "-cf", "-", "--", where.name], stdout=packed, timeout_s=600
            )
            if done.status != 0:
                raise HarnessError(f"{self.name}: {remote} cannot be fetched: {done.why}")
            packed.seek(0)
            try:
                with tarfile.open(fileobj=packed) as archive:
                    archive.extractall(into, members=_harmless(archive, where.name), **_filter())
            except (tarfile.TarError, OSError) as error:
                raise HarnessError(f"{remote}: cannot be copied into {into}: {error}") from error
        return into / where.name

    def scratch(self) -> str:
        self._connected()
        done = self._run(["sh", "-c", 'umask 077; mktemp -d "${TMPDIR:-/tmp}/edgewatt-XXXXXXXX"'])
        if done.status != 0:
            raise UsageError(f"{self.name}: no folder for temporary files can be made: {done.why}")
        self._folders.append(done.stdout.decode().strip())
        return self._folders[-1]

    def clock_offset(self) -> ClockOffset:
        """The board's clock minus ours, from the quickest of some round trips."""
        return clocks.offset(pings(functools.partial(self.start, "clock", {"ping": True}), self.name, now_ns))

    def close(self) -> None:
        if self._socket is None:
            return
        for agent in self._started:
            agent.stop()
        if self._folders:
            with suppress(HarnessError):  # a board that is gone keeps them until its next restart
                self._run(["rm", "-rf", "--", *self._folders], timeout_s=10, connect_s=FAREWELL_S)
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run([*self._ssh(), "-O", "exit", *self._words], capture_output=True, timeout=5, check=False)
        shutil.rmtree(Path(self._socket).parent, ignore_errors=True)
        self._started, self._folders, self._socket, self._jobs, self._home = [], [], None, "", ""

    # -- the connection

    def _connected(self) -> str:
        """The user's home on the board, once there is a connection."""
        with self._connecting:
            if not self._home:
                done = self._run(["sh", "-c", 'echo "edgewatt-home $(pwd)"'], timeout_s=60)
                said = done.stdout.decode(errors="replace")
                if not said.startswith("edgewatt-home /"):  # it would stand between events and in every file
                    raise UsageError(
                        f"{self.name}: its shell's start-up files print {said.splitlines()[:1]} where nobody reads it; "
                        "in ~/.bashrc there, print only if [ -t 1 ]"
                    )
                self._home = said.removeprefix("edgewatt-home ").removesuffix("\n")
        return self._home

    def _code(self) -> str:
        """Where our own code lies on the board: pushed once for each content of it."""
        digest, packed = _own_code()
        folder = f"{self._connected()}/.cache/edgewatt/code-{digest}"
        with self._connecting:
            if folder not in self._checked:
                if self._run(["test", "-d", folder]).status != 0:
                    self._unpack(io.BytesIO(packed), folder)
                self._checked.add(folder)
        return folder

    @functools.cached_property
    def _checked(self) -> set[str]:
        return set()

    def _unpack(self, packed: IO[bytes], folder: str) -> None:
        """An archive unpacked into a new folder, whole or not at all."""
        script = (
            'umask 077; mkdir -p "${1%/*}" && new=$(mktemp -d "$1.XXXXXX") || exit; '
            'tar -C "$new" -xf - || { rm -rf "$new"; exit 1; }; '
            'mv -T "$new" "$1" 2>/dev/null || { rm -rf "$new"; test -d "$1"; }'
        )
        done = self._run(["sh", "-c", script, "sh", folder], stdin=packed, timeout_s=3600)
        if done.status != 0:
            raise HarnessError(f"{self.name}: cannot write {folder} ({done.why}); make room there, or mend its owner")

    def _ssh(self, connect_s: int = CONNECT_S) -> list[str]:
        if self._socket is None:
            # A socket's path has room for some 100 bytes, and ssh reads blanks and % in it its own way.
            is_plain = re.fullmatch(r"[\w/.-]{1,60}", tempfile.gettempdir(), re.ASCII)
            self._socket = f"{tempfile.mkdtemp(prefix='ew-', dir=None if is_plain else '/tmp')}/s"
        options = {**_OPTIONS, "ConnectTimeout": str(connect_s), "ControlPath": self._socket}
        given = ["-F", str(self._config)] if self._config else []
        return ["ssh", "-T", *given, *(w for k, v in options.items() for w in ("-o", f"{k}={v}"))]

    def _command(self, words: Sequence[str], connect_s: int = CONNECT_S) -> list[str]:
        """ssh hands one text to the other end's shell: this is the one place that quotes it."""
        return [*self._ssh(connect_s), *self._words, shlex.join(words)]

    def _run(
        self, words: Sequence[str], *, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None,
        timeout_s: float = 30.0, connect_s: int = CONNECT_S,
    ) -> Done:  # fmt: skip
        """A command on the board. UsageError or TransientError, each with the next step, if it could not be run.

        What fails at once (a server that is just starting) is tried again; silence is not.
        """
        began = time.monotonic()
        for wait_s in (*AGAIN_S, None):
            try:
                return self._run_once(words, stdin, stdout, timeout_s, connect_s)
            except TransientError:
                if wait_s is None or time.monotonic() - began >= connect_s:
                    raise
                time.sleep(wait_s)
        raise AssertionError("unreachable")

    def _run_once(
        self, words: Sequence[str], stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None,
        timeout_s: float = 10.0, connect_s: int = CONNECT_S,
    ) -> Done:  # fmt: skip
        for file in filter(None, (stdin, stdout)):
            file.seek(0)
        if stdout is not None:
            stdout.truncate()  # of what came in a try before this one
        given: dict[str, Any] = {"input": stdin.read()} if isinstance(stdin, io.BytesIO) else {}
        if not given:
            given = {"stdin": stdin or subprocess.DEVNULL}
        # The connection, which stays behind, has kept stderr open in older clients: no pipe, or we wait for its end.
        with tempfile.TemporaryFile() as errors:
            try:
                done = subprocess.run(
                    self._command(["sh", "-c", _RUN, "sh", *words], connect_s),
                    stdout=stdout or subprocess.PIPE,
                    stderr=errors,
                    timeout=timeout_s + connect_s,
                    check=False,
                    env=_environment(),
                    start_new_session=True,  # without a terminal no jump host can ask for a password
                    **given,
                )
            except FileNotFoundError:
                raise UsageError("no ssh on this machine; install OpenSSH's client") from None
            except subprocess.TimeoutExpired:
                raise TransientError(f"{self.name}: {words[0]} did not end within {timeout_s:g} s") from None
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - LONGEST_STDERR))
            said = errors.read()
        ended = _ENDED.search(said)
        if ended is None:
            raise _failure(self.name, said.decode(errors="replace"))
        return Done(int(ended[1]), done.stdout or b"", _ENDED.sub(b"", said).decode(errors="replace"))

    # -- what an agent needs when its link is lost

    def rest_of(self, spool: str, group: int, boot: str, already: int) -> bytes | None:
        """What an agent wrote into its spool beyond the bytes we have, once it has ended; None: the board restarted.

        It ends by itself when it no longer hears us; what does not is ended. HarnessError if the board is out of reach.
        """
        deadline = time.monotonic() + FETCH_S
        while True:
            left_s = deadline - time.monotonic()
            try:
                done = self._run_once(
                    ["sh", "-c", _IS_RUNNING, "sh", str(group), spool], connect_s=max(1, min(CONNECT_S, round(left_s)))
                )
                if done.stdout.decode(errors="replace").strip() != boot:
                    return None
                if done.status == 3 and left_s < 0:
                    self.kill(group)
                if done.status != 3 or left_s < 0:
                    return self._run_once(["tail", "-c", f"+{already + 1}", spool], timeout_s=60).stdout
            except TransientError:
                if left_s < 0:
                    raise
            time.sleep(0.25)

    def kill(self, group: int) -> None:
        """Ends a process group on the board; nothing if it has gone, or the board."""
        if group > 1:
            with suppress(HarnessError):
                self._run_once(["kill", "-KILL", f"-{group}"])


class SshAgent(LocalAgent):
    """An agent on a board: a local ssh client, through which it is heard and told that we live."""

    def __init__(self, ssh: Ssh, command: list[str], job: bytes, spool: str, has_heart: bool) -> None:
        self._ssh, self._spool, self._bytes = ssh, spool, 0
        self._has_heart, self._is_killed = has_heart, False
        self._began: re.Match[bytes] | None = None
        self._speaking, self._is_over = threading.Lock(), threading.Event()
        super().__init__(command, _environment(), subprocess.PIPE)
        self.write(job)
        self._heart = threading.Thread(target=self._beat, name=f"heart of {self.pid}", daemon=True)
        if has_heart:
            self._heart.start()

    def write(self, data: bytes) -> None:
        """To the agent's stdin; nothing if it has ended."""
        assert self._process.stdin
        # Not while it is closed: the number of its descriptor may be another file's by the time of the writing.
        with self._speaking, suppress(OSError, ValueError):
            self._process.stdin.write(data)

    def _beat(self) -> None:
        while not self._has_ended():
            self.write(b"\n")
            if self._is_over.wait(BEAT_S):
                return

    def _stop(self, grace_s: float) -> Exit:
        end = super()._stop(grace_s)  # the heart goes on meanwhile: what is put back on the board takes its time
        self._is_over.set()
        if self._has_heart:
            self._heart.join()
        return end

    def _ask_to_end(self) -> None:
        if self._has_heart:
            self.write(b"stop\n")
        else:
            self._close_stdin()

    def _end_by_force(self, has_ended: bool) -> None:
        if not has_ended and self._began:
            self._is_killed = True
            self._ssh.kill(int(self._began[1]))
        self._close_stdin()

    def _close_stdin(self) -> None:
        assert self._process.stdin
        with self._speaking, suppress(OSError):
            self._process.stdin.close()

    def _heard(self, data: bytes) -> None:
        self._bytes += len(data)
        super()._heard(data)

    def _complained(self, data: bytes) -> None:
        if self._began is None:  # looked for before talk pushes it out of what is kept
            self._began = _BEGAN.search(bytes(self._stderr) + data)
        super()._complained(data)

    def _after_last(self) -> None:
        """Without the word of the shell above it, the link was lost: the rest is fetched from the agent's spool."""
        if _ENDED.search(self._stderr):
            return
        name, said = self._ssh.name, self._stderr.decode(errors="replace")
        if self._began is None:
            is_full = _FULL in self._stderr
            why = " ".join(said.replace(_FULL.decode(), "").split())[:300]
            full = HarnessError(f"{name}: the job cannot be written there ({why}); make room, or set TMPDIR there")
            self._events.put(full if is_full else _failure(name, said))
            return
        lost = f"the link to {name} was lost"
        try:
            rest = self._ssh.rest_of(self._spool, int(self._began[1]), self._began[3].decode(), self._bytes)
            if rest is None:
                lost = f"{name} restarted"
            else:
                super()._heard(rest)
                if self._is_killed:
                    return
        except HarnessError as error:
            lost += f", and it cannot be reached again ({error})"
        self._events.put(TransientError(f"{lost}; the agent there ends by itself, nothing keeps running"))

    def _exit_of(self, status: int, by_itself: bool) -> Exit:
        began, ended = self._began, _ENDED.search(self._stderr)
        stderr = _ENDED.sub(b"", _BEGAN.sub(b"", bytes(self._stderr))).decode(errors="replace")
        if ended is None:
            return Exit(None, None if by_itself else "SIGKILL", stderr or f"the link to {self._ssh.name} was lost")
        code = int(ended[1])
        name = None
        if code > 128:  # a shell's way to say that a signal ended it
            with suppress(ValueError):
                name = signal.Signals(code - 128).name
        kills = [int(m[2]) for m in (began, ended) if m and m[2]]
        is_oom = name == "SIGKILL" and len(kills) == 2 and kills[1] > kills[0]
        return Exit(None if name else code, name, stderr, is_oom)


def _target(address: str) -> list[str]:
    """The words that name the other end for ssh; UsageError for what is no address."""
    wanted = "wanted ssh://[user@]host[:port], a host or a name of ~/.ssh/config"
    if not address.isprintable():
        raise UsageError(f"address {address!r}: {wanted}")
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"address {address!r}: {error}; {wanted}") from error
    host, user = parts.hostname, parts.username
    if parts.scheme != "ssh" or not host or parts.path not in ("", "/") or parts.query or parts.password is not None:
        said = "a password has no place in an address; use a key" if parts.password is not None else wanted
        raise UsageError(f"address {address.replace(f':{parts.password}@', ':...@')!r}: {said}")
    # urlsplit lowers the case of a host; a name of ~/.ssh/config has a case of its own.
    host = next((w for w in re.split(r"[/@:\[\]]", address) if w.lower() == host), host)
    if host.startswith("-") or (user or "").startswith("-") or re.search(r"[\s;|&$`'\"<>()\\]", f"{user or ''}{host}"):
        raise UsageError(f"address {address!r}: {wanted}")
    return [*(["-p", str(port)] if port else []), *(["-l", user] if user else []), "--", host]


def _failure(name: str, stderr: str) -> HarnessError:
    """Why ssh could not run something, and the next step."""
    said = " ".join(stderr.split())[-400:] or "no word"
    steps: tuple[tuple[str, type[HarnessError], str], ...] = (
        ("IDENTIFICATION HAS CHANGED", UsageError, "its host key has changed; if that is right: ssh-keygen -R HOST"),
        ("Host key verification failed", UsageError, "its host key is not known; look at it once by hand: ssh HOST"),
        ("Permission denied", UsageError, "it does not let this user in; give it your key: ssh-copy-id HOST"),
        ("Could not resolve", UsageError, "no such host; see the address, or ~/.ssh/config"),
        ("Bad configuration option", UsageError, "mend the ssh configuration"),
        ("Can't open user config file", UsageError, "name another ssh_config"),
        ("Connection refused", TransientError, "no ssh server answers there; see that the board is up"),
        ("timed out", TransientError, "it does not answer; see that the board is up and the cable is in"),
        ("No route", TransientError, "it cannot be reached; see the network"),
    )
    for words, kind, step in steps:
        if words.lower() in stderr.lower():
            return kind(f"{name}: {step} (ssh says: {said[-160:]})")
    return TransientError(f"{name}: the link was lost (ssh says: {said[-160:]})")


def _environment() -> dict[str, str]:
    """Ours, without a window that asks for a password."""
    return {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}


@functools.cache
def _own_code() -> tuple[str, bytes]:
    """A hash and an archive of this edgewatt, as far as a board needs it."""
    packed, total = io.BytesIO(), hashlib.sha256()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for package in _PACKAGES:
            folder = Path(str(importlib.import_module(package).__file__)).parent
            for file in sorted(folder.rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    content = file.read_bytes()
                    info = tarfile.TarInfo(f"{package.replace('.', '/')}/{file.relative_to(folder).as_posix()}")
                    info.size, info.mode = len(content), 0o644
                    total.update(f"{info.name} {len(content)} ".encode() + content)
                    archive.addfile(info, io.BytesIO(content))
    return total.hexdigest()[:16], packed.getvalue()


def _harmless(archive: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    """Plain files and folders inside the one that was asked for; a board is not trusted with our file system."""
    for member in archive:
        path = PurePosixPath(member.name)
        if (member.isfile() or member.isdir()) and path.parts[:1] == (name,) and ".." not in path.parts:
            yield member


def _filter() -> Mapping[str, Any]:
    return {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
