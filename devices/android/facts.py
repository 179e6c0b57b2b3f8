"""What a phone says of itself. Every key may be missing: old phones lack some, and a plain adb daemon lacks most.

Sources: Android's system properties as `getprop` prints them, BatteryManager's codes, the kernel's cpufreq files.
Serial numbers are never kept, only a hash that tells two phones apart.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from edgewatt.devices.host_facts import hashed
from edgewatt.devices.snapshot import Snapshot

CPUS = "/sys/devices/system/cpu"
PROPERTIES, BATTERY, KERNEL = "getprop", "dumpsys battery", "uname"
BOOT = "/proc/sys/kernel/random/boot_id"
PATTERNS = (
    "/etc/os-release",
    "/proc/version",
    "/proc/meminfo",
    BOOT,
    f"{CPUS}/present",
    f"{CPUS}/online",
    f"{CPUS}/cpu[0-9]*/cpu_capacity",
    f"{CPUS}/cpufreq/policy*/related_cpus",
    f"{CPUS}/cpufreq/policy*/cpuinfo_*_freq",
    f"{CPUS}/cpufreq/policy*/scaling_m*_freq",
    f"{CPUS}/cpufreq/policy*/scaling_governor",
    f"{CPUS}/cpufreq/policy*/scaling_available_*",
    "/sys/class/kgsl/kgsl-3d0/gpu_model",
)
TOOLS: dict[str, list[str]] = {
    # All properties may be longer than what is read of a tool; so is the log that some makers print behind the battery.
    PROPERTIES: ["sh", "-c", r"getprop | grep -E '^\[ro\.(product|soc|board|hardware|build|serialno|boot\.serialno)'"],
    BATTERY: ["sh", "-c", "dumpsys battery | head -n 40"],
    KERNEL: ["uname", "-r", "-m"],
}

BATTERY_STATUS = {1: "unknown", 2: "charging", 3: "discharging", 4: "not charging", 5: "full"}
"""BatteryManager.BATTERY_STATUS_*."""

LONGEST = 200  # characters of anything a phone says of itself
_ABIS = {"aarch64": "arm64-v8a", "armv8l": "armeabi-v7a", "armv7l": "armeabi-v7a", "x86_64": "x86_64", "i686": "x86"}
_PROPERTY = re.compile(r"^\[([\w.@:-]{1,128})\]: \[(.*)\]$")


@dataclass(frozen=True)
class Policy:
    """Processors that share one clock: their numbers, and what the kernel allows and holds, in Hz."""

    name: str  # "policy4"
    cores: tuple[int, ...]
    least_hz: float | None
    most_hz: float | None
    held_least_hz: float | None
    held_most_hz: float | None
    governor: str | None
    governors: tuple[str, ...]
    steps_hz: tuple[float, ...]
    capacity: int | None

    @property
    def folder(self) -> str:
        return f"{CPUS}/cpufreq/{self.name}"


def facts(seen: Snapshot) -> dict[str, Any]:
    """All that the phone told, as JSON values; None (or nothing in it) where it did not."""
    told = properties(seen)
    clusters = policies(seen)
    battery_now = battery(seen)
    level = battery_now.get("level")
    governors = sorted({c.governor for c in clusters if c.governor})
    return {
        "model": told.get("ro.product.model"),
        "maker": told.get("ro.product.manufacturer"),
        "device": told.get("ro.product.device"),
        "soc": soc(seen),
        "os": {
            "name": os_name(seen),
            "android": told.get("ro.build.version.release"),
            "sdk": _integer(told.get("ro.build.version.sdk")),
            "security_patch": told.get("ro.build.version.security_patch"),
            "build": told.get("ro.build.fingerprint"),
            "build_type": told.get("ro.build.type"),
            "kernel": kernel(seen),
        },
        "abi": abi(seen),
        "abis": [a for a in told.get("ro.product.cpu.abilist", "").split(",") if a],
        "serial": serial(seen),
        "boot": hashed(seen.text(BOOT)),
        "memory_bytes": memory_bytes(seen),
        "cpus": cpu_count(seen),
        "clusters": [
            {
                "policy": c.name,
                "cpus": list(c.cores),
                "least_hz": c.least_hz,
                "most_hz": c.most_hz,
                "held_least_hz": c.held_least_hz,
                "held_most_hz": c.held_most_hz,
                "governor": c.governor,
                "capacity": c.capacity,
            }
            for c in clusters
        ],
        "governor": governors[0] if len(governors) == 1 else governors or None,
        "gpu": plain(seen.text("/sys/class/kgsl/kgsl-3d0/gpu_model")) or told.get("ro.hardware.egl"),
        "battery": {
            "level": level,
            "status": BATTERY_STATUS.get(battery_now.get("status", 0)),
            "is_powered": is_powered(seen),
            "temperature_c": battery_now["temperature"] / 10 if "temperature" in battery_now else None,
            "updates_stopped": updates_stopped(seen),
        }
        if battery_now
        else None,
        "is_root": seen.is_root,
    }


def plain(text: str | None) -> str | None:
    """A text from the phone in one line without control characters, and not long; None if nothing is left."""
    spaced = "".join(" " if c.isspace() else c for c in (text or "")[:4096])
    kept = "".join(c for c in spaced if unicodedata.category(c)[0] != "C")
    return kept.strip()[:LONGEST] or None


def properties(seen: Snapshot) -> dict[str, str]:
    """The system's properties, of lines `[name]: [value]` alone: a value that goes over lines is left out."""
    found: dict[str, str] = {}
    for line in (seen.answer(PROPERTIES) or "").splitlines():
        match = _PROPERTY.match(line.rstrip("\r"))
        value = plain(match[2]) if match else None
        if match and value:
            found.setdefault(match[1], value)
    return found


def is_android(seen: Snapshot) -> bool:
    """Whether there is Android, and not just an adb daemon."""
    return bool(properties(seen))


def soc(seen: Snapshot) -> str | None:
    """The chip as its maker names it ("Google Tensor"); its platform's code name on phones before Android 12."""
    told = properties(seen)
    named = [told[k] for k in ("ro.soc.manufacturer", "ro.soc.model") if k in told]
    return " ".join(named) if "ro.soc.model" in told else told.get("ro.board.platform") or told.get("ro.hardware")


def os_name(seen: Snapshot) -> str | None:
    """ "Android 13", or what /etc/os-release says where there is no Android."""
    told = properties(seen)
    if release := told.get("ro.build.version.release"):
        return f"Android {release}"
    if told:
        return "Android"
    line = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', seen.text("/etc/os-release") or "", re.M)
    return plain(line[1]) if line else None


def kernel(seen: Snapshot) -> str | None:
    """Its release, as `uname -r` has it."""
    told = re.match(r"Linux version (\S+)", seen.text("/proc/version") or "")
    return plain(told[1]) if told else plain((seen.answer(KERNEL) or "").partition(" ")[0])


def abi(seen: Snapshot) -> str | None:
    """The kind of programs it runs best: "arm64-v8a"; of a system that is no Android by its machine."""
    told = properties(seen)
    named = told.get("ro.product.cpu.abi") or told.get("ro.product.cpu.abilist", "").partition(",")[0]
    return named or _ABIS.get((seen.answer(KERNEL) or "").strip().rpartition(" ")[2])


def serial(seen: Snapshot) -> str | None:
    """A hash of the serial number."""
    told = properties(seen)
    return hashed(told.get("ro.serialno") or told.get("ro.boot.serialno"))


def memory_bytes(seen: Snapshot) -> int | None:
    """Main memory as the kernel counts it."""
    told = re.search(r"^MemTotal:\s+(\d{1,15}) kB$", seen.text("/proc/meminfo") or "", re.M)
    return int(told[1]) * 1024 if told else None


def cpu_count(seen: Snapshot) -> int | None:
    """How many processors there are, asleep or not."""
    return len(cpu_list(seen.text(f"{CPUS}/present"))) or None


def cpu_list(text: str | None) -> list[int]:
    """Numbers in the kernel's list form, "0-3,7", or apart by blanks; empty for anything else."""
    found: list[int] = []
    for part in re.split(r"[,\s]+", (text or "").strip()):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if not match:
            return []
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return sorted(set(found))


def policies(seen: Snapshot) -> list[Policy]:
    """The clusters of processors, the slowest first as phones number them."""
    found = []
    for path in seen.paths(f"{CPUS}/cpufreq/policy*/related_cpus"):
        folder = path.rpartition("/")[0]
        cores = cpu_list(seen.text(path))
        steps = re.findall(r"\b\d{1,12}\b", seen.text(f"{folder}/scaling_available_frequencies") or "")
        found.append(
            Policy(
                folder.rpartition("/")[2],
                tuple(cores),
                _hz(seen, f"{folder}/cpuinfo_min_freq"),
                _hz(seen, f"{folder}/cpuinfo_max_freq"),
                _hz(seen, f"{folder}/scaling_min_freq"),
                _hz(seen, f"{folder}/scaling_max_freq"),
                plain(seen.text(f"{folder}/scaling_governor")),
                tuple((seen.text(f"{folder}/scaling_available_governors") or "").split()),
                tuple(sorted(int(s) * 1e3 for s in steps)),
                seen.number(f"{CPUS}/cpu{cores[0]}/cpu_capacity") if cores else None,
            )
        )
    return found


def battery(seen: Snapshot) -> dict[str, int]:
    """Whole numbers of the battery service's state by key; true and false as 1 and 0.

    Only the block that begins with its head line: some makers print a log of old values behind it.
    """
    found: dict[str, int] = {}
    for line in _battery_lines(seen):
        match = re.fullmatch(r"\s+([A-Za-z][\w ]{0,40}): (-?\d{1,15}|true|false)", line)
        if match:
            value = match[2]
            found.setdefault(match[1], int(value == "true") if value in ("true", "false") else int(value))
    return found


def updates_stopped(seen: Snapshot) -> bool:
    """Whether somebody told the battery service to show made-up values (`dumpsys battery unplug`, `set`)."""
    return any("UPDATES STOPPED" in line.upper() for line in _battery_lines(seen))


def is_powered(seen: Snapshot) -> bool | None:
    """Whether something feeds the phone, by the battery service; None if it does not tell."""
    told = battery(seen)
    sources = [v for k, v in told.items() if k.endswith(" powered")]
    return any(sources) if sources else None


def _battery_lines(seen: Snapshot) -> list[str]:
    lines = (seen.answer(BATTERY) or "").replace("\r", "").split("\n")
    if not lines or not lines[0].startswith("Current Battery Service state"):
        return []
    block = []
    for line in lines[1:]:
        if not line.startswith((" ", "\t")):
            break
        block.append(line)
    return block


def _hz(seen: Snapshot, path: str) -> float | None:
    khz = seen.number(path)
    return khz * 1e3 if khz and khz > 0 else None


def _integer(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,9}", text) else None
