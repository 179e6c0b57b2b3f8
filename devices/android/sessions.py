"""Whose what lies on a phone is: each process of each machine has a session there, a folder for its jobs.

What a process that was killed left running is ended by the next one of its machine, and its session removed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import shlex
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edgewatt.devices.android import shell
from edgewatt.devices.android.link import Link
from edgewatt.harness.api import TransientError

# Of a job $1 (without its ending): its shell's process in g, if that still is the job's; else empty.
LEADER = (
    'read -r g <"$1.group" 2>/dev/null || g=; '
    '[ -n "$g" ] && tr "\\0" " " <"/proc/$g/cmdline" 2>/dev/null | grep -qF -- "$1" || g=; '
)


def new_session(folder: str) -> str:
    """A folder on the phone, below `folder`, whose name tells this machine and process; it is not made yet."""
    return f"{folder}/jobs/{_ours()}-{secrets.token_hex(4)}"


def end_orphans(link: Link, folder: str) -> None:
    """Ends what a harness of this machine that no longer lives left running, by pid, and removes its folders."""
    listed = _first(link, f"ls {shlex.quote(folder)}/jobs 2>/dev/null")
    script = (
        'for f in "$1"/*/*.undo; do [ -r "$f" ] && sh "$f"; done; '
        'for job in "$1"/*.group; do set -- "${job%.group}" "${job%/*}"; '
        + LEADER
        + 'if [ -n "$g" ]; then read -r p <"$1.pid" && kill -TERM "$p" 2>/dev/null; n=0; '
        'while [ -d "/proc/$g" ] && [ $n -lt 20 ]; do sleep 0.1; n=$((n+1)); done; '
        'kill -9 "-$g" 2>/dev/null; fi; set -- "$2"; done; rm -rf -- "$1"'
    )
    for name in filter(_is_dead, listed.text.split()):
        _first(link, f"set -- {shlex.quote(f'{folder}/jobs/{name}')}\n{script}", (20.0, 60.0))


def _first(link: Link, script: str, limits_s: Sequence[float] = shell.PATIENCE_S) -> shell.Done:
    """One of the first commands through a new link, which the daemon may swallow."""
    for limit_s in limits_s:
        with suppress(TransientError):
            return shell.run(link, script, b"", limit_s)
    raise TransientError(f"{link.name}: its daemon starts no commands; restart adb there, or the phone")


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
