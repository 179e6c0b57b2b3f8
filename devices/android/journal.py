"""What is set on a phone, kept on this machine from before it is set until it is put back.

A harness that is killed cannot put anything back; the next one reads here what was changed and what it was before. One
file for each phone (by a hash of its serial number) in ~/.local/state/edgewatt/journal, or below XDG_STATE_HOME. Who
holds a phone's settings holds the lock beside the file, which the kernel opens when that process ends, however it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgewatt.devices.android import facts, knobs
from edgewatt.devices.android.knobs import Knob
from edgewatt.devices.host_facts import hashed
from edgewatt.harness.api import HarnessError, TransientError, UsageError

if TYPE_CHECKING:
    from edgewatt.devices.android.device import Android

T = TypeVar("T")

FORM = 1
PATIENCE_S = 30.0
"""How long a phone that is away (its link, a restart) is waited for before its settings are left to the journal."""

_EACH_S = 1.0


@dataclass(frozen=True)
class Held:
    """One setting that was changed: what it was, and what it was set to."""

    control: str
    knob: Knob
    before: str | None
    wanted: str | None


@dataclass(frozen=True)
class Boot:
    """One start of a phone: its random name, and how long it was up when this was written."""

    id: str
    uptime_s: float

    def is_over(self, now: Boot) -> bool:
        """Whether the phone was started anew since."""
        return bool(self.id and now.id and self.id != now.id) or now.uptime_s < self.uptime_s


class Journal:
    """The journal of one phone, in the hands of this process."""

    def __init__(self, path: Path, device_name: str) -> None:
        self._path, self._name = path, device_name

    def write(self, held: Sequence[Held], boot: Boot) -> None:
        """Written whole and safely on the disk, before anything of it is set."""
        text = json.dumps(
            {
                "form": FORM,
                "device": self._name,
                "pid": os.getpid(),
                "written_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "boot": {"id": boot.id, "uptime_s": boot.uptime_s},
                "held": [
                    {"control": h.control, "knob": h.knob.words, "before": h.before, "wanted": h.wanted} for h in held
                ],
            },
            indent=1,
        )
        new = self._path.with_suffix(".new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise HarnessError(f"{self._path}: cannot be written ({error.strerror}), so nothing was set") from error

    def read(self) -> tuple[list[Held], Boot]:
        """What stands in it; nothing if there is none. HarnessError if it is damaged."""
        return _read(self._path)

    def clear(self) -> None:
        """All is put back."""
        self._path.unlink(missing_ok=True)


def phone(device: Android) -> str:
    """By what a phone is known here, whichever way it is reached: its hashed serial number, or else its address."""
    return facts.serial(device.seen) or hashed(device.address) or "phone"


def folder() -> Path:
    """Where journals lie."""
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "state") / "edgewatt" / "journal"


@contextlib.contextmanager
def taken(device: Android) -> Iterator[Journal]:
    """The phone's journal, for this process alone. UsageError if another one that lives has it."""
    path = folder() / f"{phone(device)}.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(path) as is_ours:
        if not is_ours:
            raise UsageError(
                f"{device.name}: another edgewatt{_writer(path)} holds this phone's settings; wait for its end"
            )
        yield Journal(path, device.name)


def pending(serial: str) -> list[Held]:
    """What a harness that lives no more left set on the phone of that name (`phone`)."""
    path = folder() / f"{serial}.json"
    if not path.exists():
        return []
    with _locked(path) as is_ours:
        return _read(path)[0] if is_ours else []


def restore(device: Android) -> dict[str, Any]:
    """Puts back what a killed harness had set: setting -> its value now.

    What somebody has changed by hand since is left, and what a restart has undone needs nothing; both are told.

    Raises:
        UsageError: another process holds the phone's settings now.
        HarnessError: something could not be put back; it stays in the journal.
    """
    if not (folder() / f"{phone(device)}.json").exists():
        return {}
    with taken(device) as book:
        held, then = book.read()
        now = boot(device)
        told: dict[str, Any] = {}
        failed: list[str] = []
        for h in reversed(held):
            try:
                told[h.knob.name] = put_back(device, h, is_restarted=then.is_over(now), is_ours=False)
            except HarnessError as error:
                failed.append(f"{h.knob.name} ({error})")
        if failed:
            raise HarnessError(f"{device.name}: could not be put back: {'; '.join(failed)}; try again")
        book.clear()
        return told


def put_back(device: Android, held: Held, *, is_restarted: bool = False, is_ours: bool = True) -> str:
    """Sets one knob to what it was and reads it back; in words, what it is now. HarnessError if it did not follow.

    Where another process had set it (`is_ours` is false), a value of neither kind is somebody's own, and is left.
    """
    knob, before = held.knob, held.before
    if is_restarted and not knob.survives:
        return "undone by the phone's restart"
    now = knob.read(device.shell)
    if knob.is_told and knobs.same(now, before):
        return _shown(now)
    if not (is_ours or knob.is_switch or knob.followed(held.wanted, now, before)):
        return f"{_shown(now)}, set by somebody else since; left so"
    knob.write(device.shell, before)
    now = knob.reads(device.shell, before, held.wanted)
    if not knob.followed(before, now, held.wanted):
        raise HarnessError(f"{knob.name} says {_shown(now)}, wanted {_shown(before)} as before")
    return _shown(now)


def patiently(call: Callable[[], T]) -> T:
    """What `call` gives, tried again for a while where the phone is away or is starting."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except HarnessError as error:
            if time.monotonic() > deadline or not (isinstance(error, TransientError) or _is_starting(error)):
                raise
        time.sleep(_EACH_S)


def boot(device: Android) -> Boot:
    """The phone's present start."""
    done = device.shell(f"read -r i < {facts.BOOT}; read -r u x < /proc/uptime; echo $i $u")
    match = re.match(r"([0-9a-f-]{1,64} )?(\d{1,12}(?:\.\d+)?)$", done.stdout.decode("ascii", "replace").strip())
    if not match:
        raise TransientError(f"{device.name}: does not tell since when it is up; try again")
    return Boot((match[1] or "").strip(), float(match[2]))


def _is_starting(error: HarnessError) -> bool:
    """Whether Android itself is not up yet: its shell answers before its services do."""
    return "find service" in str(error) or "DeadObject" in str(error)


def _shown(value: str | None) -> str:
    return "unset" if value is None else (facts.plain(value) or "empty")


def _read(path: Path) -> tuple[list[Held], Boot]:
    try:
        told = json.loads(path.read_text("utf-8"))
        if told["form"] != FORM:
            raise ValueError(f"form {told['form']}, wanted {FORM}")
        held = [Held(str(h["control"]), knobs.of(h["knob"]), h["before"], h["wanted"]) for h in told["held"]]
        return held, Boot(str(told["boot"]["id"]), float(told["boot"]["uptime_s"]))
    except FileNotFoundError:
        return [], Boot("", 0.0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path}: cannot be read ({error}); look at the phone's settings, then delete it") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the lock beside a journal is this process's now."""
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def _writer(path: Path) -> str:
    try:
        return f" (pid {int(json.loads(path.read_text('utf-8'))['pid'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
