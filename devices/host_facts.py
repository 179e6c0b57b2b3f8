"""What this machine is and how it is set up, as JSON values: the facts a figure may depend on.

Nothing that names a machine or a person is kept in clear: the boot id only as a hash, no serials, no host name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from edgewatt.devices import sysfs

_GIT_TIMEOUT_S = 3.0
_LIBRARIES = ("numpy", "onnxruntime", "torch", "ncnn", "psutil", "nvidia-ml-py")
_CPUINFO_KEYS = {  # x86 and ARM spell them differently
    "model": ("model name", "Model", "Hardware"),
    "vendor": ("vendor_id", "CPU implementer"),
    "family": ("cpu family", "CPU architecture"),
    "model_number": ("model", "CPU part"),
    "stepping": ("stepping", "CPU revision"),
    "microcode": ("microcode",),
}
# Instruction sets that decide how fast a network runs.
_ISA = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ISA_ARM = ("neon", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "fphp", "asimdhp")


def facts(root: Path = Path("/sys"), proc: Path = Path("/proc"), folder: Path | None = None) -> dict[str, Any]:
    """All facts of this machine; `folder` (the current one by default) is where the job's git tree is looked for."""
    return {
        "cpu": cpu(root, proc),
        "caches": caches(root),
        "frequency": frequency(root),
        "memory": memory(root, proc),
        "os": operating_system(),
        "boot": hashed(sysfs.text(proc / "sys" / "kernel" / "random" / "boot_id")),
        "virtual": virtual(root, proc),
        "container": container(proc),
        "limits": limits(root, proc),
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "libraries": libraries(),
        "git": git(folder or Path.cwd()),
        "load_average": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def hashed(secret: str | None) -> str | None:
    """Twelve digits that are equal for equal secrets and do not tell them."""
    return hashlib.sha256(f"edgewatt {secret}".encode()).hexdigest()[:12] if secret else None


def cpu(root: Path, proc: Path) -> dict[str, Any]:
    """Model, vendor, cores, threads, sockets and the instruction sets that matter here."""
    info = _first_processor(proc)
    found: dict[str, Any] = {key: _first(info, names) for key, names in _CPUINFO_KEYS.items()}
    if found["model"] is None:
        found["model"] = sysfs.text(Path("/proc/device-tree/model")) or platform.processor() or None
    flags = set((info.get("flags") or info.get("Features") or "").split())
    cpus = sysfs.folders(root / "devices" / "system" / "cpu", "cpu[0-9]*")
    places = [
        (sysfs.number(c / "topology" / "physical_package_id"), sysfs.number(c / "topology" / "core_id")) for c in cpus
    ]
    known = [p for p in places if None not in p]
    return found | {
        "machine": platform.machine(),
        "threads": os.cpu_count(),
        "usable_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cores": len(set(known)) or None,
        "sockets": len({package for package, _ in known}) or None,
        "smt": sysfs.text(root / "devices" / "system" / "cpu" / "smt" / "control"),
        "isa": [f for f in (*_ISA, *_ISA_ARM) if f in flags],
    }


def caches(root: Path) -> list[dict[str, Any]]:
    """The caches of the first processor: level, type, bytes, and how many threads share one."""
    found = []
    for cache in sysfs.folders(root / "devices" / "system" / "cpu" / "cpu0" / "cache", "index[0-9]*"):
        found.append(
            {
                "level": sysfs.number(cache / "level"),
                "type": sysfs.text(cache / "type"),
                "bytes": size_bytes(sysfs.text(cache / "size")),
                "threads": count(sysfs.text(cache / "shared_cpu_list")),
            }
        )
    return found


def frequency(root: Path) -> dict[str, Any]:
    """Governor(s), driver, lowest, highest and base clock in Hz, and whether boost is on; None where not told."""
    policies = sysfs.folders(root / "devices" / "system" / "cpu" / "cpufreq", "policy*")
    kept: dict[str, set[Any]] = {k: set() for k in ("governor", "driver", "preference", "min", "max", "base", "limit")}
    for p in policies:
        kept["governor"].add(sysfs.text(p / "scaling_governor"))
        kept["driver"].add(sysfs.text(p / "scaling_driver"))
        kept["preference"].add(sysfs.text(p / "energy_performance_preference"))
        kept["min"].add(sysfs.number(p / "cpuinfo_min_freq"))
        kept["max"].add(sysfs.number(p / "cpuinfo_max_freq"))
        kept["base"].add(sysfs.number(p / "base_frequency"))
        kept["limit"].add(sysfs.number(p / "scaling_max_freq"))
    for values in kept.values():
        values.discard(None)
    return {
        "governors": sorted(kept["governor"]),
        "drivers": sorted(kept["driver"]),
        "preferences": sorted(kept["preference"]),
        "min_hz": min(kept["min"]) * 1000 if kept["min"] else None,
        "max_hz": max(kept["max"]) * 1000 if kept["max"] else None,
        "base_hz": max(kept["base"]) * 1000 if kept["base"] else None,
        "limit_hz": max(kept["limit"]) * 1000 if kept["limit"] else None,
        "boost": boost(root),
    }


def boost(root: Path) -> bool | None:
    """Whether the processor may go above its base clock; None if the kernel does not tell."""
    cpus = root / "devices" / "system" / "cpu"
    without = sysfs.number(cpus / "intel_pstate" / "no_turbo")
    if without is not None:
        return without == 0
    allowed = sysfs.number(cpus / "cpufreq" / "boost")
    return None if allowed is None else allowed == 1


def memory(root: Path, proc: Path) -> dict[str, Any]:
    """Bytes in all and available, swap, and the number of NUMA nodes."""
    info = {}
    for line in (sysfs.text(proc / "meminfo") or "").splitlines():
        key, _, rest = line.partition(":")
        value = size_bytes(rest.strip().replace(" kB", "K"))
        if value is not None:
            info[key] = value
    return {
        "bytes": info.get("MemTotal"),
        "available_bytes": info.get("MemAvailable"),
        "swap_bytes": info.get("SwapTotal"),
        "numa_nodes": len(sysfs.folders(root / "devices" / "system" / "node", "node[0-9]*")) or None,
    }


def operating_system() -> dict[str, Any]:
    """Name and version of the system, and its kernel."""
    release: Mapping[str, str] = {}
    with contextlib.suppress(OSError, AttributeError):
        release = platform.freedesktop_os_release()
    return {
        "system": platform.system(),
        "name": release.get("PRETTY_NAME") or platform.platform(terse=True),
        "kernel": platform.release(),
    }


def virtual(root: Path, proc: Path) -> bool | None:
    """Whether this is a virtual machine, by the processor's hypervisor flag or the kernel's word; None: not known."""
    flags = (_first_processor(proc).get("flags") or "").split()
    if flags:
        return "hypervisor" in flags
    if (root / "hypervisor" / "type").exists():
        return True
    return None


def container(proc: Path) -> str | None:
    """The kind of container this process runs in ("docker", ...); None if it seems to run in none."""
    named = os.environ.get("container")  # noqa: SIM112  systemd's container interface spells it so
    if named:
        return named[:40]
    for path, kind in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if Path(path).exists():
            return kind
    groups = sysfs.text(proc / "1" / "cgroup") or ""
    match = re.search(r"docker|kubepods|containerd|lxc|libpod", groups)
    return match[0] if match else None


def limits(root: Path, proc: Path) -> dict[str, Any]:
    """What the control group allows: processors' worth of time and bytes of memory; None: no limit.

    Both forms of control groups; the strictest of the groups this process lies in, since each of them binds.
    """
    cpus: list[float] = []
    memories: list[int] = []
    for folder in _groups(root / "fs" / "cgroup", proc):
        quota, _, period = (sysfs.text(folder / "cpu.max") or "").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            cpus.append(int(quota) / int(period))
        old_quota, old_period = sysfs.number(folder / "cpu.cfs_quota_us"), sysfs.number(folder / "cpu.cfs_period_us")
        if old_quota and old_quota > 0 and old_period:
            cpus.append(old_quota / old_period)
        for name in ("memory.max", "memory.limit_in_bytes"):
            allowed = sysfs.number(folder / name)
            if allowed is not None and allowed < 1 << 60:  # the old form writes "no limit" as a huge number
                memories.append(allowed)
    return {"cpus": min(cpus, default=None), "memory_bytes": min(memories, default=None)}


def libraries() -> dict[str, str]:
    """Versions of what computes and measures here, without importing any of it."""
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git(folder: Path) -> dict[str, Any] | None:
    """Commit of the tree that `folder` is in, and whether anything in it was changed; None if it is in none."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *words: str) -> str | None:
    """What git says, None if it is absent, refuses, or takes too long on a huge tree."""
    # Locks are not taken, so a job measured beside somebody's work never gets in its way.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words],
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def size_bytes(written: str | None) -> int | None:
    """Bytes of "32K", "1024K", "16M" or a plain number."""
    match = re.fullmatch(r"(\d+)([KMG]?)", written or "")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else None


def count(cpus: str | None) -> int | None:
    """How many processors a list such as "0-3,8-11" names."""
    if not cpus or not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", cpus):
        return None
    ranges = [part.partition("-") for part in cpus.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def _first_processor(proc: Path) -> dict[str, str]:
    """Key -> value of the first block of cpuinfo, with what other blocks have beyond it (ARM ends with a "Model")."""
    found: dict[str, str] = {}
    try:
        lines = (proc / "cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return found
    for line in lines:
        key, colon, value = line.partition(":")
        if colon and value.strip():
            found.setdefault(key.strip(), value.strip())
    return found


def _first(info: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((info[n] for n in names if n in info), None)


def _groups(top: Path, proc: Path) -> list[Path]:
    """The control groups this process lies in, from the innermost out, in either form."""
    found = [top, top / "cpu", top / "memory"]
    for line in (sysfs.text(proc / "self" / "cgroup") or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        inner = Path(path.lstrip("/"))
        if ".." in inner.parts:
            continue
        for controller in controllers.split(",") if controllers else [""]:
            base = top / controller
            found += [base / inner, *(base / p for p in inner.parents)]
    return list(dict.fromkeys(found))
