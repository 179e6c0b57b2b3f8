"""What `edgewatt doctor` looks at on a phone, each with what was found and the next step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgewatt.devices.android import conditions, facts, journal
from edgewatt.devices.android.look import FOLDER
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import Check, HarnessError

if TYPE_CHECKING:
    from edgewatt.devices.android.device import Android

ROOM_BYTES = 1 << 30  # less room than this for models, pictures and spools is worth a word
SLOW_S = 0.15  # a longer way there and back is a bad radio link
_TRIES = 5
_HEADROOM_K = 8.0


def of(device: Android) -> Iterator[Check]:
    """Every check, in the order in which somebody would mend them."""
    seen = device.look()
    yield _link(device)
    yield _journal(device)
    yield _agent(device)
    yield _sensor(device)
    yield _root(device, seen)
    yield from _battery(device, seen)
    yield from _heat(seen)
    yield _screen(seen)
    yield _room(seen)


def _link(device: Android) -> Check:
    took = []
    for _ in range(_TRIES):
        start = time.monotonic()
        device.shell(":")
        took.append(time.monotonic() - start)
    way = "USB" if device.is_usb else "network"
    said = f"{statistics.median(took) * 1e3:.0f} ms there and back ({way})"
    old = "" if "shell_v2" in device.transport.features else "; an old adb daemon, which tells no exit codes by itself"
    if statistics.median(took) > SLOW_S:
        step = "come closer to the access point, or use a cable where rails are measured"
        return Check("adb", False, f"{said}, slow{old}; no sample is lost by it, but runs take long: {step}")
    return Check("adb", True, said + old)


def _journal(device: Android) -> Check:
    try:
        left = journal.pending(journal.phone(device))
    except HarnessError as error:
        return Check("settings", False, str(error))
    if not left:
        return Check("settings", True, "none was left behind by a harness that was killed")
    names = ", ".join(dict.fromkeys(h.control for h in left))
    step = f"edgewatt doctor {device.name} --restore (or the next run) puts them back"
    return Check("settings", False, f"a harness that was killed left {names} set; {step}")


def _agent(device: Android) -> Check:
    if device.agent_kind != "native":
        is_chosen = device.options.get("agent") == "shell"
        said = f"the phone's own shell samples, and models cannot run: {device.why_shell}"
        return Check("agent", None if is_chosen else False, said)
    engines = device.hello.get("engines") or []
    said = f"native, for {device.abi}"
    if engines:
        return Check("agent", True, f"{said}, with {', '.join(map(str, engines))}")
    step = f"edgewatt agent build --abi {device.abi} with the NDK and ONNX Runtime's header (docs/native-agent.md)"
    return Check("agent", False, f"{said}, samples but runs no models; {step}")


def _sensor(device: Android) -> Check:
    """The way to power that a run would use; what the others lack is among the meters' problems."""
    try:
        found = {m.name: m for m in device.meters() if any(c.is_energy for c in m.channels)}
    except HarnessError as error:
        return Check("power sensor", None, str(error))
    if not found:
        step = "unplug it and use adb over the network for the battery gauge, or attach a meter"
        return Check("power sensor", False, f"none can be read: time, temperature and clocks only, no joules; {step}")
    said = []
    for m in found.values():
        whole = next(c for c in m.channels if c.is_energy)
        said.append(f"{m.name} ({whole.covers.partition(':')[0]}; boundary {whole.boundary})")
    return Check("power sensor", True, ", beside ".join(said))


def _root(device: Android, seen: Snapshot) -> Check:
    if seen.is_root:
        return Check("root", True, "adb runs as root: clocks can be pinned, rails read and their rate set")
    kind = facts.properties(seen).get("ro.build.type")
    if kind in ("userdebug", "eng"):
        return Check("root", None, f"not now, but this {kind} build allows it: root = true in the device file")
    said = "not available: clocks cannot be pinned, and rails come from services alone"
    return Check("root", None, said)


def _battery(device: Android, seen: Snapshot) -> Iterator[Check]:
    told = facts.battery(seen)
    if not told:
        yield Check("battery", None, "the phone tells nothing of its battery")
        return
    least, level = conditions.least_battery(device), told.get("level")
    status = facts.BATTERY_STATUS.get(told.get("status", 0), "unknown")
    if facts.updates_stopped(seen):
        step = f"adb -s {device.address} shell dumpsys battery reset"
        yield Check("battery", False, f"its service shows made-up values (UPDATES STOPPED); {step}")
        return
    is_low = level is not None and level < least
    said = f"{level} %, {status}" if level is not None else status
    yield Check("battery", not is_low, f"{said}; charge it to {least:g} % or more" if is_low else said)
    if facts.is_powered(seen) is None:
        return
    if not facts.is_powered(seen):
        yield Check("charging", True, "nothing feeds the phone: its gauge tells what it uses")
        return
    step = "unplug it, and use adb over the network (edgewatt devices --tcpip SERIAL)"
    yield Check("charging", False, f"the phone is fed from outside, so its gauge cannot tell what it uses; {step}")


def _heat(seen: Snapshot) -> Iterator[Check]:
    now = conditions.heat(seen)
    if now.status is None:
        yield Check("thermal status", None, "the phone has no thermal service")
    elif now.is_forced:
        yield Check("thermal status", False, "somebody forced it; on the phone: cmd thermalservice reset")
    else:
        word = conditions.STATUS[now.status] if now.status < len(conditions.STATUS) else "unknown"
        step = "; let the phone cool" if now.status else ""
        yield Check("thermal status", not now.status, f"{now.status} ({word}){step}")
    if not now.celsius:
        yield Check("thermal head-room", None, "no sensor gives a temperature")
        return
    near = [(now.limits_c[n] - c, n, c) for n, (_, c) in now.celsius.items() if n in now.limits_c]
    if not near:
        name, (_, celsius) = max(now.celsius.items(), key=lambda item: item[1][1])
        said = f"{facts.plain(name)} is hottest, at {celsius:.0f} degC; the phone does not tell at which it slows down"
        yield Check("thermal head-room", None, said)
        return
    room, name, celsius = min(near)
    said = f"{facts.plain(name)} is at {celsius:.0f} degC, {room:.0f} K below where it slows down"
    yield Check("thermal head-room", room >= _HEADROOM_K, said if room >= _HEADROOM_K else f"{said}; let it cool")


def _screen(seen: Snapshot) -> Check:
    is_on = conditions.screen_is_on(seen)
    if is_on is None:
        return Check("screen", None, "the phone does not tell whether its screen is on")
    step = "its power is in the battery's joules; --set controls.screen=off"
    return Check("screen", not is_on, f"on: {step}" if is_on else "off")


def _room(seen: Snapshot) -> Check:
    if seen.free_bytes is None:
        return Check("room", None, f"the phone does not tell how much is free in {FOLDER}")
    said = f"{seen.free_bytes / 1e9:.1f} GB free in {FOLDER}"
    enough = seen.free_bytes >= ROOM_BYTES
    return Check("room", enough, said if enough else f"{said}; models, pictures and spools need room: free some")
