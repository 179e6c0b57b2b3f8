"""Serial ports: opened for us alone, with one clear line where that cannot be. For the agent."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import select
import stat
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

QUIET_S, DRAIN_S = 0.03, 0.5  # a port that said nothing for so long is drained; one that never stops, after that
WRITE_S = 2.0  # the longest a meter may take to accept a few bytes
CHUNK = 1 << 16
PSEUDO_TERMINALS = range(136, 144)  # major numbers of pseudo-terminals (Documentation/admin-guide/devices.txt)


class MeterError(Exception):
    """The meter or its port is not what was wanted; the message is one line with the next step.

    `is_transient`: the same call may work a moment later (another program has the port).
    """

    is_refusal = is_foreseen = True

    def __init__(self, message: str, is_transient: bool = False) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class GoneError(OSError):
    """The port was there and is not any more (unplugged, switched off)."""


class Port:
    """A port that is open, for us alone. `close` it."""

    def __init__(self, path: str, baud: int) -> None:
        """MeterError, in one line, if it cannot be opened."""
        check(path)
        serial = pyserial()
        try:
            self._serial = serial.Serial(path, baud, timeout=0, write_timeout=WRITE_S, exclusive=True)
        except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError
            raise _not_opened(path, baud, error) from error
        self.path = path
        self._fd = int(self._serial.fileno())
        self._is_pseudo = os.major(os.fstat(self._fd).st_rdev) in PSEUDO_TERMINALS
        self._locked(True)

    def read(self, timeout_s: float) -> bytes:
        """Everything that is there, as soon as something is; b"" if nothing came in that time. GoneError."""
        try:
            if not select.select([self._fd], [], [], max(0.0, timeout_s))[0]:
                return b""
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:  # another program was quicker
            return b""
        except (OSError, ValueError) as error:
            raise GoneError(getattr(error, "errno", None), "the port went away") from error
        if not data:
            raise GoneError(errno.EIO, "the port went away")
        return data

    def write(self, data: bytes) -> None:
        """All of it; GoneError."""
        try:
            self._serial.write(data)
        except (OSError, ValueError, TypeError) as error:  # pyserial's timeout is an OSError too
            raise GoneError(getattr(error, "errno", None), "the port takes nothing") from error

    def drain(self, quiet_s: float = QUIET_S, most_s: float = DRAIN_S) -> None:
        """What had come before is thrown away: until nothing came for `quiet_s`, or `most_s` are over. GoneError."""
        until = time.monotonic() + most_s
        while time.monotonic() < until and self.read(quiet_s):
            pass

    def close(self) -> None:
        """Others may open it; twice is harmless."""
        self._locked(False)
        with suppress(Exception):  # whatever pyserial makes of a port that has gone
            self._serial.close()

    def _locked(self, wanted: bool) -> None:
        """Whoever opens it next is told that it is busy, unless root. A pseudo-terminal would stay so for ever."""
        import fcntl

        if not self._is_pseudo:
            with suppress(OSError):
                fcntl.ioctl(self._fd, termios.TIOCEXCL if wanted else termios.TIOCNXCL)


def check(path: str) -> None:
    """MeterError if the port cannot be opened for us alone: no pyserial, no port, no permission, in another's hands."""
    pyserial()
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        there = ports()
        raise MeterError(
            f"{path}: no such serial port; plug the meter in"
            + (f", or name one of {', '.join(there)}" if there else " (there is no serial port on this machine now)")
        ) from error
    if not stat.S_ISCHR(mode):
        raise MeterError(f"{path}: is no serial port; wanted a device such as /dev/ttyACM0")
    others = holders(path)
    if others:
        pid, program = others[0]
        raise MeterError(
            f"{path}: process {pid} ({program}) has the port open; two programs would take each other's bytes: end it "
            "first",
            is_transient=True,
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise _no_permission(path)


def pyserial() -> Any:
    """The package; MeterError if it is not installed."""
    try:
        import serial
    except ImportError as error:
        raise MeterError("serial meters need pyserial: pip install 'edgewatt[serial]'") from error
    return serial


def ports() -> list[str]:
    """Serial ports of this machine, by the names that stay when they are plugged in again, where there are such."""
    dev = Path("/dev")
    found = sorted(dev.glob("serial/by-id/*")) or sorted([*dev.glob("ttyACM*"), *dev.glob("ttyUSB*")])
    return [str(p) for p in found]


def holders(path: str) -> list[tuple[int, str]]:
    """Other processes that have the port open, and their programs; as far as we may look (root: all).

    Locked or not: few programs lock, and those that do not take bytes as well.
    """
    try:
        wanted = _identity(Path(path).stat())
    except OSError:
        return []
    found, own = [], str(os.getpid())
    for pid in os.listdir("/proc") if Path("/proc/self/fd").is_dir() else ():  # noqa: PTH208 - often
        if pid.isdigit() and pid != own and _has_open(pid, wanted):
            found.append((int(pid), _program(pid)))
    return found


def _has_open(pid: str, wanted: tuple[int, ...]) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return False
    for name in names:
        with suppress(OSError):
            if _identity(os.stat(f"{folder}/{name}")) == wanted:  # noqa: PTH116
                return True
    return False


def _identity(found: os.stat_result) -> tuple[int, ...]:
    """The device behind a name: its number; of pseudo-terminals, of which each container has its own, the node too."""
    if not stat.S_ISCHR(found.st_mode):
        return ()
    if os.major(found.st_rdev) in PSEUDO_TERMINALS:
        return (found.st_rdev, found.st_dev, found.st_ino)
    return (found.st_rdev,)


def _program(pid: str) -> str:
    """What it was started as, in one short line."""
    with suppress(OSError):
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            words = file.read(300).replace(b"\0", b" ").decode("utf-8", "replace").split()
        if words:
            return " ".join([os.path.basename(words[0]), *words[1:]])[:100]  # noqa: PTH119
    return "a program"


def _not_opened(path: str, baud: int, error: Exception) -> MeterError:
    number = getattr(error, "errno", None) or next(iter(error.args), None)  # those of termios have no errno
    if number in (errno.EACCES, errno.EPERM):
        return _no_permission(path)
    if number in (errno.EBUSY, errno.EAGAIN):
        others = holders(path)
        who = f"process {others[0][0]} ({others[0][1]})" if others else "another user's program"
        return MeterError(f"{path}: {who} has the port open; end it first", is_transient=True)
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO):
        return MeterError(f"{path}: the port went away; plug the meter in again", is_transient=True)
    return MeterError(f"{path}: cannot be opened at {baud} baud: {' '.join(str(error).split())}; is it a serial port?")


def _no_permission(path: str) -> MeterError:
    try:
        found = Path(path).stat()
        group = grp.getgrgid(found.st_gid).gr_name
        owner = pwd.getpwuid(found.st_uid).pw_name
    except (OSError, KeyError):
        return MeterError(f"{path}: no permission to open it")
    return MeterError(
        f"{path}: no permission to open it (it is {owner}:{group}'s); sudo usermod -aG {group} $USER, and log in again"
        if sys.platform == "linux" and group != "root"
        else f"{path}: no permission to open it (it is {owner}:{group}'s)"
    )
