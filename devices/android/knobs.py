"""Single settings of a phone that can be read, written, and read again; told by words, for a journal.

Sources: AOSP (what `settings`, `input`, `cmd connectivity`, `cmd deviceidle` and `cmd power` take and print), the
kernel's sysfs files.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgewatt.devices.android import facts
from edgewatt.devices.android.look import Shell, Told
from edgewatt.harness.api import HarnessError, UsageError

LONGEST_VALUE = 400  # characters
_EACH_S = 0.2


class Knob(ABC):
    """One setting. Values are texts as the phone has them; None: not set."""

    kind: ClassVar[str]
    survives: ClassVar[bool] = True  # a restart of the phone
    is_switch: ClassVar[bool] = False  # of two states: whatever it is now, "before" is what it should be
    is_told: ClassVar[bool] = True  # False: it may be on although it reads as before, so it is always written back
    settles_s: ClassVar[float] = 0.4  # how long after a write a reading may still be the old one

    @property
    @abstractmethod
    def name(self) -> str:
        """As it is shown."""

    @property
    def words(self) -> list[str]:
        """Kind and what it is made of: `of(words)` gives it again."""
        return [self.kind]

    @abstractmethod
    def read(self, shell: Shell) -> str | None:
        """Its value now. UsageError if this phone does not tell."""

    @abstractmethod
    def write(self, shell: Shell, value: str | None) -> None:
        """Sets it, without looking whether it follows. HarnessError if the phone says no."""

    def followed(self, wanted: str | None, now: str | None, before: str | None) -> bool:
        """Whether `now` is what was wanted."""
        return same(wanted, now)

    def reads(self, shell: Shell, wanted: str | None, before: str | None) -> str | None:
        """What it says once it has had the time to follow."""
        deadline = time.monotonic() + self.settles_s
        while True:
            now = self.read(shell)
            if self.followed(wanted, now, before) or time.monotonic() > deadline:
                return now
            time.sleep(_EACH_S)


@dataclass(frozen=True)
class Setting(Knob):
    """A row of Android's settings tables."""

    table: str  # system, secure, global
    key: str
    kind: ClassVar[str] = "setting"

    @property
    def name(self) -> str:
        return self.key

    @property
    def words(self) -> list[str]:
        return [self.kind, self.table, self.key]

    def read(self, shell: Shell) -> str | None:
        said = _said(shell, "settings", "get", self.table, self.key)
        return None if said == "null" else said

    def write(self, shell: Shell, value: str | None) -> None:
        if value is None:
            _said(shell, "settings", "delete", self.table, self.key)
        else:
            _said(shell, "settings", "put", self.table, self.key, value)


@dataclass(frozen=True)
class Node(Knob):
    """A file of the kernel; only root may write most of them, and all are as new after a restart."""

    path: str
    kind: ClassVar[str] = "node"
    survives: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "/".join(self.path.split("/")[-2:])

    @property
    def words(self) -> list[str]:
        return [self.kind, self.path]

    def read(self, shell: Shell) -> str | None:
        return _said(shell, "cat", self.path)

    def write(self, shell: Shell, value: str | None) -> None:
        done = shell('echo "$2" > "$1"', self.path, value or "")
        if done.status:
            raise HarnessError(f"{self.path}: {value!r} was refused ({_reason(done)})")


@dataclass(frozen=True)
class Screen(Knob):
    """Awake ("on") or asleep ("off")."""

    kind: ClassVar[str] = "screen"
    survives: ClassVar[bool] = False  # a phone that starts is awake, and goes to sleep by itself
    is_switch: ClassVar[bool] = True
    settles_s: ClassVar[float] = 5.0

    @property
    def name(self) -> str:
        return "screen"

    def read(self, shell: Shell) -> str | None:
        said = _said(shell, "sh", "-c", "dumpsys power | grep mWakefulness=")
        awake = re.search(r"mWakefulness=(\w+)", said)
        if not awake:
            raise UsageError("this phone's power service does not tell whether it is awake (dumpsys power)")
        return "on" if awake[1] == "Awake" else "off"

    def write(self, shell: Shell, value: str | None) -> None:
        _said(shell, "input", "keyevent", {"on": "224", "off": "223"}[value or "on"])  # KEYCODE_WAKEUP, KEYCODE_SLEEP


@dataclass(frozen=True)
class Airplane(Knob):
    """All radios: "enabled" is airplane mode."""

    kind: ClassVar[str] = "airplane"
    is_switch: ClassVar[bool] = True
    settles_s: ClassVar[float] = 10.0

    @property
    def name(self) -> str:
        return "airplane-mode"

    def read(self, shell: Shell) -> str | None:
        said = _said(shell, "cmd", "connectivity", "airplane-mode")
        if said not in ("enabled", "disabled"):
            raise UsageError("this phone does not tell its airplane mode (cmd connectivity airplane-mode, Android 11)")
        return said

    def write(self, shell: Shell, value: str | None) -> None:
        _said(shell, "cmd", "connectivity", "airplane-mode", "enable" if value == "enabled" else "disable")


@dataclass(frozen=True)
class Idle(Knob):
    """Deep idle (doze) by force, in which apps get no jobs, alarms and network: "limited", else "free"."""

    kind: ClassVar[str] = "idle"
    survives: ClassVar[bool] = False
    is_switch: ClassVar[bool] = True
    settles_s: ClassVar[float] = 3.0

    @property
    def name(self) -> str:
        return "device-idle"

    def read(self, shell: Shell) -> str | None:
        forced = _said(shell, "cmd", "deviceidle", "get", "force")
        deep = _said(shell, "cmd", "deviceidle", "get", "deep")
        if forced not in ("true", "false") or not re.fullmatch(r"[A-Z_]{3,40}", deep):
            raise UsageError("this phone does not tell whether its apps are idle (cmd deviceidle get deep, Android 7)")
        return "limited" if forced == "true" and deep.startswith("IDLE") else "free"

    def write(self, shell: Shell, value: str | None) -> None:
        _said(shell, "cmd", "deviceidle", *(("force-idle", "deep") if value == "limited" else ("unforce",)))


@dataclass(frozen=True)
class FixedPerformance(Knob):
    """Android's mode of steady clocks. No phone tells whether it is on: it shows in the clocks' limits, its value here.

    "fixed" turns it on; the limits from before turn it off.
    """

    kind: ClassVar[str] = "fixed"
    survives: ClassVar[bool] = False
    is_switch: ClassVar[bool] = True
    is_told: ClassVar[bool] = False
    settles_s: ClassVar[float] = 2.0

    @property
    def name(self) -> str:
        return "fixed-performance-mode"

    def read(self, shell: Shell) -> str | None:
        files = "policy*/scaling_min_freq policy*/scaling_max_freq"
        said = _said(shell, "sh", "-c", f"cd {facts.CPUS}/cpufreq && grep . {files}")
        limits = re.findall(r"^policy(\d+)/scaling_(min|max)_freq:(\d+)$", said, re.M)
        if not limits:
            raise UsageError("this phone's clocks cannot be read, so nobody could see whether the mode is on")
        return " ".join(f"{n}:{which}={khz}" for n, which, khz in sorted(limits))

    def write(self, shell: Shell, value: str | None) -> None:
        is_on = value == "fixed"
        said = _said(shell, "cmd", "power", "set-fixed-performance-mode-enabled", "true" if is_on else "false")
        if said:
            raise HarnessError(f"{self.name}: {said}")

    def followed(self, wanted: str | None, now: str | None, before: str | None) -> bool:
        return now != before if wanted == "fixed" else True  # limits move with heat too: off is what its command said


_KINDS: dict[str, type[Any]] = {k.kind: k for k in (Setting, Node, Screen, Airplane, Idle, FixedPerformance)}


def of(words: Sequence[str]) -> Knob:
    """The knob that those words tell. ValueError if they tell none."""
    try:
        made: Knob = _KINDS[words[0]](*words[1:])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no setting of a phone is told by {words!r}") from error
    return made


def same(a: str | None, b: str | None) -> bool:
    """Whether two values are one: "125" and "125.000000" are."""
    if a is None or b is None:
        return a is b
    try:
        return float(a) == float(b)
    except ValueError:
        return a == b


def _said(shell: Shell, *words: str) -> str:
    """What a command printed, in one line. UsageError if the phone has no such command, HarnessError if it failed.

    Phones before Android 7 tell no status; a stack trace in the answer is a failure everywhere.
    """
    done = shell('"$@"', *words)
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.status == 127:
        raise UsageError(f"this phone has no command {words[0]}")
    if done.status not in (0, None, 1) or "Exception" in said or "Exception" in done.stderr:
        raise HarnessError(f"{' '.join(words)}: {_reason(done)}")
    if done.status == 1 and (done.stderr.strip() or words[0] != "sh"):  # of `sh`: a grep that found nothing
        raise HarnessError(f"{' '.join(words)}: {_reason(done)}")
    if words[0] == "sh":
        return said
    return " ".join(said.split())[:LONGEST_VALUE]


def _reason(done: Told) -> str:
    said = done.stderr.strip() or done.stdout.decode("utf-8", "replace").strip()
    lines = said.splitlines()
    telling = next((line for line in lines if "Exception" in line or "service" in line), lines[-1] if lines else "")
    return facts.plain(telling) or f"status {done.status}"
