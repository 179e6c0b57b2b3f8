"""What a Jetson says of itself: module, release, libraries, power mode, clocks, temperatures. Serial numbers are left.

Without jtop, from /etc/nv_tegra_release, the device tree, dpkg, nvpmodel and sysfs; jtop's own words stand beside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgewatt.devices.agent import nvpmodel
from edgewatt.devices.host_facts import hashed
from edgewatt.devices.snapshot import Snapshot
from edgewatt.devices.thermometers import celsius

CPUS = "/sys/devices/system/cpu"
EMC = "/sys/kernel/debug/bpmp/debug/clk/emc/rate"
PATTERNS = (
    "/etc/nv_tegra_release",
    "/etc/os-release",
    "/proc/device-tree/model",
    "/proc/device-tree/compatible",
    "/proc/version",
    "/proc/meminfo",
    "/proc/sys/kernel/random/boot_id",
    "/usr/local/cuda/version.json",
    "/usr/local/cuda/version.txt",
    f"{CPUS}/online",
    f"{CPUS}/present",
    f"{CPUS}/cpu[0-9]*/online",
    f"{CPUS}/cpu[0-9]*/cpufreq/scaling_*",
    f"{CPUS}/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    "/sys/class/devfreq/*/*_freq",
    "/sys/class/devfreq/*/governor",
    "/sys/class/devfreq/*/device/load",
    EMC,
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/thermal/thermal_zone*/trip_point_*_t*",
    "/sys/class/thermal/cooling_device*/type",
    "/sys/class/thermal/cooling_device*/cur_state",
    "/sys/class/hwmon/hwmon*/name",
    "/sys/class/hwmon/hwmon*/pwm1",
    "/sys/class/hwmon/hwmon*/oc*_event_cnt",
)
TOOLS = {
    "nvpmodel -q": ["nvpmodel", "-q"],
    "nvpmodel -p": ["nvpmodel", "-p", "--verbose"],
    "packages": [
        "dpkg-query", "-W", "-f", "${Package} ${Version}\\n",
        "nvidia-jetpack", "nvidia-l4t-core", "libnvinfer[0-9]*", "libcudnn[0-9]*", "cuda-cudart-[0-9]*",
    ],
    "sys": ["stat", "-f", "-c", "%T", "/sys"],
    "jtop": ["sh", "-c", 'head -n 1 "$(command -v jtop)"'],
}  # fmt: skip
"""What `look` is asked for."""

# jetson_stats' table and NVIDIA's JetPack archive. A release that is not here is told by its L4T alone.
JETPACK = {
    "32.7.1": "4.6.1",
    "35.4.1": "5.1.2",
    "36.4.3": "6.2",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "39.2.0": "7.2",
}
_LIMITS = ("passive", "hot", "critical")
_GPU = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b|gb10b")


def facts(seen: Snapshot) -> dict[str, Any]:
    """All facts that the files and tools of a board told, as JSON values; None where they did not."""
    l4t = release(seen)
    packages = versions(seen.answer("packages") or "")
    return {
        "model": seen.text("/proc/device-tree/model"),
        "module": module(seen),
        "carrier": carrier(seen),
        "soc": soc(seen),
        "l4t": l4t,
        "jetpack": JETPACK.get(l4t or "") or packages.get("nvidia-jetpack", "").partition("-")[0] or None,
        "os": {"name": os_name(seen), "kernel": kernel(seen)},
        "boot": hashed(seen.text("/proc/sys/kernel/random/boot_id")),
        "memory_bytes": memory_bytes(seen),
        "libraries": libraries(seen, packages),
        "power_mode": power_mode(seen),
        "power_modes": {str(k): name for k, name in power_modes(seen).items()},
        "clocks": clocks(seen),
        "clocks_locked": clocks_locked(seen),
        "temperatures_c": temperatures(seen),
        "fan_percent": fan_percent(seen),
        "over_current_events": events(seen),
    }


def compatible(seen: Snapshot) -> list[str]:
    """The device tree's names of the board, the most special first."""
    return [name for name in (seen.text("/proc/device-tree/compatible") or "").split("\0") if name]


def is_jetson(seen: Snapshot) -> bool:
    """Whether the device tree or the release file says so."""
    return release(seen) is not None or any("tegra" in name for name in compatible(seen))


def module(seen: Snapshot) -> str | None:
    """The module's part number as the device tree has it ("p3767-0005"); None if it does not tell."""
    numbers = [n for name in compatible(seen) for n in re.findall(r"p\d{4}-\d{4}", name)]
    return numbers[-1] if len(numbers) == 1 else numbers[1] if len(numbers) > 1 else None


def carrier(seen: Snapshot) -> str | None:
    """The carrier board's part number ("p3768-0000"): the first of the two in "nvidia,p3768-0000+p3767-0005"."""
    pair = re.search(r"(p\d{4}-\d{4})\+p\d{4}-\d{4}", " ".join(compatible(seen)))
    return pair[1] if pair else None


def soc(seen: Snapshot) -> str | None:
    """The chip ("tegra234")."""
    return next((n.removeprefix("nvidia,") for n in reversed(compatible(seen)) if re.search(r"tegra\d{3}$", n)), None)


def release(seen: Snapshot) -> str | None:
    """The L4T release ("36.4.3") of a line such as "# R36 (release), REVISION: 4.3, GCID: ..."."""
    match = re.search(r"R(\d+) \(\w+\), REVISION: ([\d.]+)", seen.text("/etc/nv_tegra_release") or "")
    return f"{match[1]}.{match[2]}" if match else None


def kernel(seen: Snapshot) -> str | None:
    match = re.match(r"Linux version (\S+)", seen.text("/proc/version") or "")
    return match[1] if match else None


def os_name(seen: Snapshot) -> str | None:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', seen.text("/etc/os-release") or "", re.MULTILINE)
    return match[1] if match else None


def memory_bytes(seen: Snapshot) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", seen.text("/proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def versions(listing: str) -> dict[str, str]:
    """Package -> version, of lines "PACKAGE VERSION"; those that are not installed have none."""
    pairs = [line.split() for line in listing.splitlines()]
    return {p[0]: p[1] for p in pairs if len(p) == 2}


def libraries(seen: Snapshot, packages: Mapping[str, str]) -> dict[str, str]:
    """CUDA, TensorRT and cuDNN, as far as the board tells."""
    found = {}
    cuda = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', seen.text("/usr/local/cuda/version.json") or "")
    cuda = cuda or re.search(r"CUDA Version ([\d.]+)", seen.text("/usr/local/cuda/version.txt") or "")
    if cuda:
        found["cuda"] = cuda[1]
    for key, prefix in (("cuda", "cuda-cudart-"), ("tensorrt", "libnvinfer"), ("cudnn", "libcudnn")):
        for package, version in packages.items():
            if package.startswith(prefix):
                found.setdefault(key, version.partition("-")[0])
    return found


def power_mode(seen: Snapshot) -> dict[str, Any] | None:
    """Id and name of the power mode; the name's watts are a set of clock limits, not a measured power."""
    now = nvpmodel.current_mode(seen.answer("nvpmodel -q") or "")
    return {"id": now[0], "name": now[1]} if now else None


def power_modes(seen: Snapshot) -> dict[int, str]:
    return nvpmodel.modes(seen.answer("nvpmodel -p") or "")


def online(seen: Snapshot) -> list[str]:
    """The processors that are on line ("cpu0"), in order."""
    folders = [p.rsplit("/", 2)[0] for p in seen.paths(f"{CPUS}/cpu*/cpufreq/scaling_cur_freq")]
    found = [f for f in folders if seen.number(f"{f}/online") != 0]
    return [f.rsplit("/", 1)[1] for f in found]


def gpu_folders(seen: Snapshot) -> list[str]:
    """The GPU's devfreq folders: 17000000.gv11b, .ga10b or .gpu, by release."""
    folders = [p.rsplit("/", 1)[0] for p in seen.paths("/sys/class/devfreq/*/cur_freq")]
    return [f for f in folders if _GPU.search(f.rsplit("/", 1)[1])]


def clocks(seen: Snapshot) -> dict[str, Any]:
    """Lowest, highest and present clock of processors and GPU, and the memory's, in Hz; governors."""
    cpus = [f"{CPUS}/{c}/cpufreq" for c in online(seen)]
    cpu = {
        key: _most(seen.number(f"{c}/scaling_{name}_freq") for c in cpus)
        for key, name in (("min_hz", "min"), ("max_hz", "max"), ("now_hz", "cur"))
    }
    gpu = {
        key: _most(seen.number(f"{g}/{name}_freq") for g in gpu_folders(seen))
        for key, name in (("min_hz", "min"), ("max_hz", "max"), ("now_hz", "cur"))
    }
    return {
        "cpu": {k: None if v is None else v * 1000 for k, v in cpu.items()}
        | {"online": len(cpus), "governors": sorted({seen.text(f"{c}/scaling_governor") or "" for c in cpus} - {""})},
        "gpu": gpu,
        "emc": {"now_hz": seen.number(EMC)},
    }


def clocks_locked(seen: Snapshot) -> bool | None:
    """Whether processors and GPU are held at one clock each, as jetson_clocks does; None if nothing tells."""
    told = clocks(seen)
    pairs = [(told[part]["min_hz"], told[part]["max_hz"]) for part in ("cpu", "gpu")]
    known = [pair for pair in pairs if None not in pair]
    return all(low == high for low, high in known) if known else None


def temperatures(seen: Snapshot) -> dict[str, float]:
    """Zone -> degrees C; zones that are asleep (-256, an error) are left out."""
    return {name: celsius for name, _, celsius, _ in zones(seen) if celsius is not None}


def zones(seen: Snapshot) -> list[tuple[str, str, float | None, float | None]]:
    """Every thermal zone: name, file, degrees C now, and the lowest at which it slows down or shuts off."""
    found = []
    for path in seen.paths("/sys/class/thermal/thermal_zone*/temp"):
        folder = path.rsplit("/", 1)[0]
        kinds = {p: seen.text(p) for p in seen.paths(f"{folder}/trip_point_*_type")}
        limits = [celsius(seen.number(p.replace("_type", "_temp"))) for p, kind in kinds.items() if kind in _LIMITS]
        known = [c for c in limits if c is not None]
        name = seen.text(f"{folder}/type") or folder.rsplit("/", 1)[1]
        found.append((name, path, celsius(seen.number(path)), min(known, default=None)))
    return found


def fan_percent(seen: Snapshot) -> float | None:
    """The fan's drive in percent of full; None if the board has none that tells."""
    for path in seen.paths("/sys/class/hwmon/hwmon*/pwm1"):
        pwm = seen.number(path)
        if seen.text(path.replace("pwm1", "name")) == "pwmfan" and pwm is not None:
            return round(pwm / 2.55, 1)
    return None


def events(seen: Snapshot) -> dict[str, int]:
    """Over-current events since boot, by their counters."""
    counts = {p.rsplit("/", 1)[1]: seen.number(p) for p in seen.paths("/sys/class/hwmon/hwmon*/oc*_event_cnt")}
    return {name: n for name, n in counts.items() if n is not None}


def _most(numbers: Any) -> int | None:
    return max((n for n in numbers if n is not None), default=None)
