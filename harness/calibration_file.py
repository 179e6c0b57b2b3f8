"""Calibrations kept with a device: calibrations/<device>.json beside the device file in use.

Version 1: {"version": 1, "device", "address", "board" (what tells one board from another), "kernel", "calibrations":
{"METER/CHANNEL": {"fit", "reference" (meter, channel, boundary, covers, gain_error, wiring), "date", "seconds",
"levels", "run" (whose raw samples it was fitted to), "store"}}}. A newer calibration of a sensor takes the place of
the older one, whose run stays in the store.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewatt.harness.api import Facts, Run, UsageError
from edgewatt.harness.devicefile import Entry

VERSION = 1
BOARD = ("model", "serial", "serial_hash", "machine", "profile", "model_number", "part", "module")


def place(entry: Entry, device_file: Path | None) -> Path:
    """Where the calibrations of a device are: beside the device file in use, else in ./calibrations."""
    named = device_file or (Path(os.environ["EDGEWATT_DEVICES"]) if os.environ.get("EDGEWATT_DEVICES") else None)
    folder = (named or Path("devices.toml")).resolve().parent / "calibrations"
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in entry.name).lstrip(".") or "device"
    return folder / f"{safe}.json"


def board(facts: Facts) -> dict[str, Any]:
    """What tells one board from another, out of what a device says of itself."""
    flat: dict[str, Any] = {}
    for source in (facts, *(v for v in facts.values() if isinstance(v, Mapping))):
        for key in BOARD:
            value = source.get(key)
            if key not in flat and isinstance(value, (str, int)) and value != "":
                flat[key] = value
    return flat


def keep(path: Path, entry: Entry, run: Run, store: str) -> None:
    """Writes the calibration of a finished run, whole or not at all; UsageError if it cannot be written."""
    told = run.engine["calibration"]
    content = _read(path) if path.exists() else {}
    if content.get("board") != board(run.device):
        content = {}  # another board's
    every = dict(content.get("calibrations") or {})
    every[f"{told['meter']}/{told['channel']}"] = {**told, "run": run.id, "store": store, "date": run.created_utc}
    whole = {
        "version": VERSION, "device": entry.name, "address": entry.address, "board": board(run.device),
        "kernel": run.device.get("kernel"), "calibrations": every,
    }  # fmt: skip
    text = json.dumps(whole, indent=1, sort_keys=True, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"calibration {path}: cannot be written ({error.strerror}); name another --devices") from error


def check(path: Path) -> None:
    """UsageError, before anything is measured, if what is stored there cannot be added to."""
    if path.exists():
        _read(path)


def wanted(path: Path, entry: Entry, facts: Facts) -> dict[str, dict[str, Any]]:
    """Meter -> facts["calibration"] for each sensor of this device that was calibrated.

    UsageError if none was, or if they are another board's.
    """
    step = f"calibrate it first: edgewatt calibrate {entry.name}"
    if not path.is_file():
        raise UsageError(f"{entry.name}: no calibration is stored at {path}; {step}")
    content = _read(path)
    if content.get("board") != board(facts):
        raise UsageError(
            f"{entry.name}: the calibration at {path} is of another board ({_said(content.get('board'))}; this one is "
            f"{_said(board(facts))}); {step}"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found: dict[str, dict[str, Any]] = {}
    for told in content["calibrations"].values():
        if told["meter"] in found:
            raise UsageError(
                f"{entry.name}: two channels of {told['meter']} are calibrated at {path}, and one can be applied; "
                f"remove {told['channel']} or {found[told['meter']]['channel']} from it"
            )
        found[told["meter"]] = _applied(told, digest)
    return found


def _applied(told: Mapping[str, Any], digest: str) -> dict[str, Any]:
    fit, reference = told["fit"], told["reference"]
    own = reference["gain_error"]
    return {
        "channel": told["channel"],
        "gain": fit["gain"],
        "gain_interval": fit["gain_error"],
        "offset_w": fit["offset_w"],
        "offset_error_w": fit["offset_error_w"],
        "gain_error": math.hypot(fit["relative_error"], own or 0.0),
        "reference_gain_error": own,
        "delay_s": fit["delay_s"],
        "delay_error_s": fit["delay_error_s"],
        "averaging_s": fit["averaging_s"],
        "averaging_error_s": fit["averaging_error_s"],
        "boundary": reference["boundary"],
        "covers": reference["covers"],
        "reference": reference["meter"],
        "date": told["date"],
        "run": told["run"],
        "sha256": digest,
    }


def _said(told: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in told.items()) if isinstance(told, Mapping) and told else "unknown"


def _read(path: Path) -> dict[str, Any]:
    step = "remove it and calibrate again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise UsageError(f"calibration {path}: version {content['version']!r}, wanted {VERSION}; {step}")
        for told in content["calibrations"].values():
            _applied(told, "")
    except OSError as error:
        raise UsageError(f"calibration {path}: cannot be read ({error.strerror}); {step}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"calibration {path}: not as edgewatt writes it ({error!r}); {step}") from error
    return dict(content)
