"""A phone that answers what Android's own commands would, out of a few values; for settings and conditions.

The lab's phones know no screen, radios, idle mode or performance mode: these answer in AOSP's words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import TransientError
from support.recorded_phone import Done

CPUFREQ = "/sys/devices/system/cpu/cpufreq"
SERIAL = "39281FDJH0012"


def properties(**more: str) -> str:
    """What `getprop` prints."""
    told = {"ro.serialno": SERIAL, **{k.replace("__", "."): v for k, v in more.items()}}
    return "".join(f"[{k}]: [{v}]\n" for k, v in told.items())


def tool(out: str, status: int | None = 0) -> dict[str, Any]:
    return {"status": status, "out": out, "err": ""}


@dataclass
class FakePhone:
    """`settings` by (table, key); `files` of the kernel, all writable by root; what Android's services hold."""

    settings: dict[tuple[str, str], str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    tools: dict[str, dict[str, Any]] = field(default_factory=lambda: {"getprop": tool(properties())})
    is_awake: bool | None = True  # None: the power service does not tell
    is_flying: bool = False
    is_idle: bool = False
    has_fixed_mode: bool = True
    is_deaf: bool = False  # says yes to everything and does nothing
    is_root: bool = False
    is_usb: bool = False
    uptime_s: float = 1000.0
    boot_id: str = "0f0e1d0c-0000-4000-8000-000000000001"
    is_away: bool = False
    name: str = "phone"
    kind: str = "android"
    address: str = "192.0.2.7:5555"
    options: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    before_call: Callable[[tuple[str, ...]], None] = lambda _: None

    @property
    def seen(self) -> Snapshot:
        return Snapshot({p: {"text": t} for p, t in self.files.items()}, {}, self.tools, is_root=self.is_root)

    def look(self) -> Snapshot:
        return self.seen

    def shell(self, script: str, *words: str, timeout_s: float = 30.0) -> Done:
        self.before_call(words)
        if self.is_away:
            raise TransientError("phone: is away")
        self.calls.append(words)
        if script == '"$@"':
            return self._command(*words)
        if script == 'echo "$2" > "$1"':
            return self._written(*words)
        if script.startswith('[ -f "$1" ]'):
            return Done(0, (self.files.get(words[0], "")).encode())
        if "/proc/uptime" in script:
            return Done(0, f"{self.boot_id} {self.uptime_s}\n".encode())
        if "/proc/stat" in script:
            return Done(0, self.files.get("stat", "").encode())
        raise AssertionError(f"no such question was foreseen: {script}")

    def restart(self) -> None:
        """As a restart does: the kernel's files are as they were made, the settings stay."""
        self.uptime_s, self.boot_id = 12.0, "0f0e1d0c-0000-4000-8000-000000000002"
        self.is_awake, self.is_idle = True, False

    def _written(self, path: str, value: str) -> Done:
        if not self.is_root:
            return Done(1, b"", f"sh: can't create {path}: Permission denied\n")
        if not self.is_deaf:
            self.files[path] = value
        return Done()

    def _command(self, *words: str) -> Done:
        says = self._says(*words)
        return says if isinstance(says, Done) else Done(0, f"{says}\n".encode() if says else b"")

    def _says(self, *words: str) -> str | Done:
        match words:
            case ("settings", "get", table, key):
                return self.settings.get((table, key), "null")
            case ("settings", "delete", table, key):
                return f"Deleted {1 if self.settings.pop((table, key), None) else 0} rows"
            case ("cat", path):
                return self.files.get(path) or Done(1, b"", f"cat: {path}: No such file or directory\n")
            case ("sh", "-c", script) if "dumpsys power" in script:
                if self.is_awake is None:
                    return Done(1)
                return f"  mWakefulness={'Awake' if self.is_awake else 'Dozing'}"
            case ("sh", "-c", script) if "scaling_min_freq" in script:
                ends = [p for p in self.files if p.endswith(("scaling_min_freq", "scaling_max_freq"))]
                return "\n".join(f"{p.removeprefix(CPUFREQ + '/')}:{self.files[p]}" for p in ends)
            case ("cmd", "connectivity", "airplane-mode"):
                return "enabled" if self.is_flying else "disabled"
            case ("cmd", "deviceidle", "get", "force"):
                return "true" if self.is_idle else "false"
            case ("cmd", "deviceidle", "get", "deep"):
                return "IDLE" if self.is_idle else "ACTIVE"
        return "" if self.is_deaf else self._does(*words)

    def _does(self, *words: str) -> str | Done:
        match words:
            case ("settings", "put", table, key, value):
                self.settings[table, key] = value
            case ("input", "keyevent", code):
                self.is_awake = {"224": True, "223": False}[code]
            case ("cmd", "connectivity", "airplane-mode", what):
                self.is_flying = {"enable": True, "disable": False}[what]
            case ("cmd", "deviceidle", "force-idle", "deep"):
                self.is_idle = True
                return "Now forced in to deep idle mode"
            case ("cmd", "deviceidle", "unforce"):
                self.is_idle = False
                return "Light state: ACTIVE, deep state: ACTIVE"
            case ("cmd", "power", "set-fixed-performance-mode-enabled", state):
                if not self.has_fixed_mode:
                    said = b"Failed to set FIXED_PERFORMANCE mode\n"
                    return Done(255, said)
                self.files[f"{CPUFREQ}/policy0/scaling_max_freq"] = "1197000" if state == "true" else "1803000"
            case _:
                raise AssertionError(f"no such command was foreseen: {words}")
        return ""


def clocks() -> dict[str, str]:
    """The files of two clusters (frequencies of a Pixel 6's little and big cores, some of them)."""
    steps = {"policy0": ("0 1 2 3", "300000 1197000 1803000"), "policy6": ("6 7", "500000 1106000 2802000")}
    files = {}
    for name, (cores, khz) in steps.items():
        least, *_, most = khz.split()
        folder = f"{CPUFREQ}/{name}"
        files |= {
            f"{folder}/related_cpus": cores,
            f"{folder}/scaling_available_frequencies": khz,
            f"{folder}/scaling_available_governors": "sched_pixel performance powersave",
            f"{folder}/scaling_governor": "sched_pixel",
            f"{folder}/scaling_min_freq": least,
            f"{folder}/scaling_max_freq": most,
            f"{folder}/cpuinfo_min_freq": least,
            f"{folder}/cpuinfo_max_freq": most,
        }
    return files
