"""A board's files as a look at it would tell them, written down by hand from public dumps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from edgewatt.devices.snapshot import Snapshot

CHIP = "/sys/bus/i2c/devices/{chip}/hwmon/hwmon{n}"


def seen(files: Mapping[str, str | OSError | int], tools: Mapping[str, str] | None = None) -> Snapshot:
    """A snapshot of `files` (an OSError is one that cannot be read) and of what tools answered."""
    told = {
        path: {"text": None, "error": held.strerror}
        if isinstance(held, OSError)
        else {"text": str(held), "error": None}
        for path, held in files.items()
    }
    folders = {str(PurePosixPath(path).parent) for path in files}
    real = {f: f.replace("/drivers/ina3221/", "/devices/").replace("/drivers/ina3221x/", "/devices/") for f in folders}
    answers = {name: {"status": 0, "out": text, "err": ""} for name, text in (tools or {}).items()}
    return Snapshot(told, real, answers, 10**10, True, ("root",))


def chip(
    address: str, n: int, rails: Mapping[int, tuple[str, int, int, int]], name: str = "ina3221"
) -> dict[str, str | int]:
    """An INA3221 as JetPack 5 and later show it: channel -> (label, mV, mA, shunt in micro-ohm)."""
    base = CHIP.format(chip=address, n=n)
    found: dict[str, str | int] = {f"{base}/name": "ina3221", f"{base}/samples": 1, f"{base}/update_interval": 6}
    found[f"{base}/in7_label"], found[f"{base}/in7_input"] = "sum of shunt voltages", 0
    for k, (label, mv, ma, uohm) in rails.items():
        found |= {f"{base}/in{k}_label": label, f"{base}/in{k}_enable": 1, f"{base}/shunt{k}_resistor": uohm}
        found |= {f"{base}/in{k}_input": mv, f"{base}/curr{k}_input": ma}
    return found


def iio(address: str, rails: Mapping[int, tuple[str, int, int]]) -> dict[str, str | int]:
    """An INA3221 as JetPack 4 shows it: channel -> (name, mV, mA)."""
    base = f"/sys/bus/i2c/devices/{address}/iio:device0"
    found: dict[str, str | int] = {f"{base}/name": "ina3221x"}
    for k, (label, mv, ma) in rails.items():
        found |= {f"{base}/rail_name_{k}": label, f"{base}/in_voltage{k}_input": mv, f"{base}/in_current{k}_input": ma}
    return found
