"""What is connected and what it can support: `edgewatt devices` and `edgewatt doctor`."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.harness import energy, plugins
from edgewatt.harness.api import Device, HarnessError, Meter, Trace
from edgewatt.harness.devicefile import Entry
from edgewatt.harness.measure import watched

NOTHING = "nothing found that would spoil a measurement"
FREE_BYTES = 1 << 30  # less free disk than this is worth a word


def look(entry: Entry, seconds: float) -> dict[str, Any]:
    """One device as JSON values: what it is, its meters, their measured update rate, what each supports."""
    found: dict[str, Any] = {"device": entry.name, "kind": entry.kind, "address": entry.address, "error": None}
    try:
        with entry.open() as device:
            meters = [*device.meters(), *entry.attached(device)]
            found["facts"] = dict(device.describe())
            found["meters"] = [_watched(m, seconds) for m in meters]
            found["absent"] = absent(device)
            found["has_energy"] = any(c["is_energy"] for m in found["meters"] for c in m["channels"])
    except HarnessError as error:
        found["error"] = str(error)
    return found


def absent(device: Device) -> list[str]:
    """Why meters that might have been there are not, one sentence each."""
    said: list[str] = []
    for name in plugins.available("meters"):
        with plugins.blamed("meters", name, f"looking for problems on {device.name}"):
            said += plugins.load("meters", name).problems(device)
    return said


def doctor(entry: Entry) -> dict[str, Any]:
    """What was checked on a device, and what would spoil a measurement, each with the next step, as JSON values."""
    with entry.open() as device:
        said = [f"{f.flag}: {f.detail}" for f in device.health()]
        checks = list(device.checks())
        said += [f"{c.name}: {c.detail}" for c in checks if c.is_well is False]
        said += absent(device)
        if not any(c.is_energy for m in [*device.meters(), *entry.attached(device)] for c in m.channels):
            said.append(
                f"{device.name}: no power sensor was found, so runs report time, temperature and clocks, "
                "and no joules; attach a meter in the device file to get them"
            )
    free = shutil.disk_usage(Path.cwd()).free
    if free < FREE_BYTES:
        said.append(
            f"only {free / 1e6:.0f} MB are free here; raw samples need room: free some, or use --store elsewhere"
        )
    return {"checks": [dataclasses.asdict(c) for c in checks], "complaints": said}


def doctor_in_words(name: str, found: dict[str, Any]) -> str:
    """The same as text for a terminal: what is well, then what is to be mended."""
    words = {True: "ok", None: "unknown"}
    lines = [
        f"{words[c['is_well']]:<8}{c['name']}: {c['detail']}" for c in found["checks"] if c["is_well"] is not False
    ]
    lines += [f"- {c}" for c in found["complaints"]]
    return "\n".join(lines) if found["complaints"] else "\n".join([*lines, f"{name}: {NOTHING}"])


def in_words(found: Sequence[dict[str, Any]]) -> str:
    """The survey as text for a terminal."""
    lines = []
    for device in found:
        lines.append(f"{device['device']} ({device['kind']}{' at ' + device['address'] if device['address'] else ''})")
        if device["error"]:
            lines.append(f"  not usable: {device['error']}")
            continue
        for meter in device["meters"]:
            for c in meter["channels"]:
                if c["quantity"] == "time":  # kept with the samples, of no use to a reader
                    continue
                lines.append(f"  {meter['meter']}/{c['name']}: {c['supports']}")
        lines += [f"  {reason}" for reason in device["absent"]]
        if not device["has_energy"]:
            lines.append("  no power sensor: time, temperature and clocks only, and no joules")
    return "\n".join(lines)


def _watched(meter: Meter, seconds: float) -> dict[str, Any]:
    if not meter.shares_clock:  # a recording comes with a run
        channels = [{"name": c.name, "quantity": c.quantity, "unit": c.unit, "kind": c.kind, "boundary": c.boundary,
                     "covers": c.covers, "is_energy": c.is_energy, "last": None, "update_period_s": None,
                     "minimum_window_s": None, "supports": f"{c.quantity} of {c.covers}, recorded during a run"}
                    for c in meter.channels]  # fmt: skip
        return {"meter": meter.name, "clock": meter.clock, "rate_hz": None, "gap_p99_s": None, "channels": channels}
    # How often it refreshes matters of energy alone; what is read every few seconds is not waited for.
    trace = watched(meter, seconds, 5 if any(c.is_energy for c in meter.channels) else 0)
    return {
        "meter": meter.name,
        "clock": trace.clock,
        "rate_hz": trace.facts.get("rate_hz"),
        "gap_p99_s": trace.facts.get("gap_p99_s"),
        "channels": [_channel(trace, k) for k in range(len(trace.channels))],
    }


def _channel(trace: Trace, k: int) -> dict[str, Any]:
    channel, column = trace.channels[k], trace.values[:, k]
    seen = column[~np.isnan(column)]
    found: dict[str, Any] = {
        "name": channel.name,
        "quantity": channel.quantity,
        "unit": channel.unit,
        "kind": channel.kind,
        "boundary": channel.boundary,
        "covers": channel.covers,
        "is_energy": channel.is_energy,
        "last": float(seen[-1]) if len(seen) else None,
        "update_period_s": None,
        "minimum_window_s": None,
        "supports": f"{channel.quantity.replace('_', ' ')} of {channel.covers}",
    }
    if not channel.is_energy:
        return found
    if len(seen) < 2:
        found["supports"] = f"nothing now: {len(seen)} readings of {channel.covers} came while it was watched"
        return found
    update = energy.update_period(trace, channel.name)
    if update.known:
        found["update_period_s"] = update.period_s
        found["minimum_window_s"] = energy.minimum_window_s(update.period_s)
        found["supports"] = (
            f"joules of {channel.covers} (boundary {channel.boundary}), refreshed every "
            f"{update.period_s * 1e3:.3g} ms: 2 % needs windows of {found['minimum_window_s']:.3g} s or more"
        )
    else:
        found["supports"] = (
            f"joules of {channel.covers} (boundary {channel.boundary}); it did not change while watched, "
            "so its update period is not known yet"
        )
    return found
