"""What `edgewatt doctor` looks at on a Jetson, each with what was found and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgewatt.devices.jetson import facts
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import Check, HarnessError

if TYPE_CHECKING:
    from edgewatt.devices.jetson.device import Jetson

_ROOM_BYTES = 1 << 30  # less free disk than this is worth a word
_HEADROOM_K = 20.0  # closer to its limit than this before a run, a board slows down in it
_SAMPLER, _PACKAGE = (3, 8), (3, 10)  # the oldest Pythons for sampling and for running models
_NEEDED = ("numpy", "onnxruntime", "cv2")


def of(device: Jetson) -> Iterator[Check]:
    """Every check, in the order in which somebody would mend them."""
    seen = device.look()
    yield _python(device)
    yield from _engines(device)
    yield _sensors(device)
    yield from _jtop(device, seen)
    yield _power_mode(device, seen)
    yield _clocks(seen)
    yield _heat(seen)
    yield _disk(seen)


def _python(device: Jetson) -> Check:
    version = str(device.hello.get("python", ""))
    parts = tuple(int(p) for p in version.split(".")[:2] if p.isdigit())
    if parts >= _PACKAGE:
        return Check("python", True, f"{version} ({device.transport.python})")
    step = 'name a newer one in the device file (python = "/path/to/python3.10")'
    if parts >= _SAMPLER:
        return Check("python", False, f"{version} can sample, but models need 3.10 or newer; {step}")
    return Check("python", False, f"{version or 'none'}: the agent needs 3.8 or newer, models 3.10; {step}")


def _engines(device: Jetson) -> Iterator[Check]:
    try:
        told = device.call("edgewatt.devices.agent.look:modules", {"modules": [*_NEEDED, "torch"]})
    except HarnessError as error:
        yield Check("engines", None, str(error))
        return
    versions = told["versions"]
    missing = [name for name in _NEEDED if versions.get(name) is None]
    if missing:
        why = f" ({told['problem']})" if told.get("problem") else ""
        packages = " ".join({"cv2": "opencv-python-headless"}.get(m, m) for m in missing)
        step = f"{told['executable']} -m pip install {packages}"
        yield Check("engines", False, f"models cannot run: no {', '.join(missing)}{why}; on the board: {step}")
        return
    names = [p.removesuffix("ExecutionProvider").lower() for p in told["providers"] if not p.startswith("Azure")]
    has_gpu = {"cuda", "tensorrt"} & set(names)
    said = f"onnxruntime {versions['onnxruntime']} with {', '.join(names)}"
    if versions.get("torch") is not None:
        said += f"; torch {versions['torch']}"
    step = "" if has_gpu else "; for the GPU install NVIDIA's onnxruntime-gpu wheel of this JetPack"
    yield Check("engines", bool(has_gpu), said + step)


def _sensors(device: Jetson) -> Check:
    source = device.power_source
    if source == "ina3221":
        names = ", ".join(r.name for r in device.rails)
        return Check("power sensor", True, f"INA3221 read directly: {names}")
    if source:
        detail = f"power comes from {source}, slower than the chips' own files"
        if device.power == source:
            return Check("power sensor", True, f"{detail}, as the device file asks")
        why = device.told_by("ina3221").problem
        step = "run as root, or see that the sensor's driver is loaded"
        return Check("power sensor", False, f"{detail} ({why}); {step}")
    why = "; ".join(f"{s}: {device.told_by(s).problem}" for s in ("ina3221", "tegrastats", "jtop"))
    step = "run as root, or attach a meter in the device file"
    return Check("power sensor", False, f"none gives a value ({why}); {step}")


def _jtop(device: Jetson, seen: Snapshot) -> Iterator[Check]:
    told = device.jtop
    problem = told.get("problem")
    if problem:
        step = "facts and power modes then come from NVIDIA's own tools"
        yield Check("jtop", False, f"{problem}; {step}")
    else:
        yield Check("jtop", True, f"jetson-stats {told.get('jtop_version')}, its service answers")
    if not seen.is_root and "jtop" not in seen.groups and not problem:
        step = "on the board: sudo usermod -aG jtop $USER, then log in again"
        yield Check("jtop group", False, f"this user is not in the group jtop; {step}")


def _power_mode(device: Jetson, seen: Snapshot) -> Check:
    now = facts.power_mode(seen)
    if now is None:
        tool = seen.tools.get("nvpmodel -q", {})
        said = (str(tool.get("err") or tool.get("out") or "no answer")).strip()[:200]
        return Check("power mode", None, f"nvpmodel tells none ({said}); set one by hand: sudo nvpmodel -m ID")
    others = ", ".join(f"{name} ({k})" for k, name in facts.power_modes(seen).items())
    choice = "choose with --set controls.power_mode=NAME"
    return Check("power mode", True, f"{now['name']} ({now['id']}) of {others or 'modes it does not tell'}; {choice}")


def _clocks(seen: Snapshot) -> Check:
    locked = facts.clocks_locked(seen)
    if locked is None:
        return Check("clocks", None, "the board tells no clocks")
    if locked:
        return Check("clocks", True, "locked at their highest of this power mode (jetson_clocks)")
    step = "lock them with --set controls.jetson_clocks=true"
    return Check("clocks", False, f"not locked, so they follow the load; {step}")


def _heat(seen: Snapshot) -> Check:
    warm = [
        (limit - celsius, name, celsius, limit) for name, _, celsius, limit in facts.zones(seen) if celsius and limit
    ]
    if not warm:
        zones = facts.temperatures(seen)
        hottest = max(zones, key=lambda n: zones[n], default="")
        said = f"{hottest} is at {zones[hottest]:.0f} degC" if hottest else "no zone gives a temperature"
        return Check("thermal head-room", None, f"{said}; the board does not tell at which it slows down")
    room, name, celsius, limit = min(warm)
    said = f"{name} is at {celsius:.0f} degC, {room:.0f} K below its limit of {limit:.0f}"
    return Check("thermal head-room", room >= _HEADROOM_K, said if room >= _HEADROOM_K else f"{said}; let it cool")


def _disk(seen: Snapshot) -> Check:
    if seen.free_bytes is None:
        return Check("disk", None, "the home folder of this user is not there, so its room cannot be told")
    said = f"{seen.free_bytes / 1e9:.1f} GB free"
    enough = seen.free_bytes >= _ROOM_BYTES
    return Check("disk", enough, said if enough else f"{said}; models, pictures and spools need room: free some")
