"""Emulated serial meters: pseudo-terminals that talk like a PPK2, an INA board, a USB tester, with known energy.

with Lab("ppk2", "square", 0.2, 2.0, 0.1, volts=3.9) as lab:
    meter = Ppk2.attached_to(device, lab.port)
    ...
    joules = lab.truth(t0_s, t1_s)["total_joules"]      # seconds since boot
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgewatt.harness.api import Meter, Trace
from edgewatt.harness.energy import Energy, energy

TESTS = Path(__file__).resolve().parent.parent
LAB = Path(os.environ.get("EDGEWATT_SHARED", TESTS.parent.parent / "shared")).resolve() / "lab" / "serial"
_number = itertools.count()


class Lab:
    """One emulated meter, up while its `with` lasts; the test is skipped where there is no lab."""

    def __init__(self, kind: str, *wave: Any, **options: Any) -> None:
        """`wave` as the lab wants it ("square", 0.2, 2.0, 0.1); `options`: volts, clip_a, follow, seed, rate."""
        self.kind, self.name = kind, f"{kind}-{os.getpid()}-{next(_number)}"
        self._words = ["--kind", kind, "--wave", *map(str, wave)]
        for key, value in options.items():
            self._words += [f"--{key.replace('_', '-')}", str(value)]
        self.port = ""

    def __enter__(self) -> Lab:
        if not (LAB / "seriallab.py").is_file():
            pytest.skip(f"no emulated serial meters at {LAB}; set EDGEWATT_SHARED")
        self._folder = tempfile.mkdtemp(prefix="edgewatt-serial-")
        try:
            self.port = str(json.loads(self._run("up", self.name, *self._words))["port"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, ValueError):
            self._ask("down")
        shutil.rmtree(self._folder, ignore_errors=True)

    def truth(self, t0_s: float, t1_s: float) -> dict[str, Any]:
        """True joules, coulombs and mean watts between two times, in seconds since boot."""
        return self._ask("truth", t0=float(t0_s), t1=float(t1_s), clock="boot")

    def fault(self, kind: str, *words: Any) -> None:
        """One of the lab's faults ("unplug", 1); "off" as second word ends a lasting one."""
        self._ask("fault", kind=kind, args=list(map(str, words)))

    def status(self) -> dict[str, Any]:
        """What the lab says of the meter: bytes sent and lost, faults, whether it is running."""
        return self._ask("status")

    def wave(self, *wave: Any) -> float:
        """Another waveform, from now on; since when, in seconds since boot."""
        return float(self._ask("wave", spec=list(map(str, wave)))["since_boot"])

    def _ask(self, op: str, **more: Any) -> dict[str, Any]:
        """What the meter answers, asked without the lab's program, which takes a tenth of a second to start."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            link.connect(f"{self._folder}/{self.name}/ctl")
            link.sendall(json.dumps({"op": op, **more}).encode() + b"\n")
            told: dict[str, Any] = json.loads(link.makefile().readline())
        if "error" in told:
            raise ValueError(f"the meter's lab: {told['error']}")
        return told

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(LAB / "seriallab.py"), *words],
            env={**os.environ, "SERIALLAB_STATE": self._folder},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout


def boot_s() -> float:
    """Now, in seconds since boot: the clock of `truth` and of traces."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def against(
    lab: Lab, meter: Meter, seconds: float, fault: tuple[Any, ...] = (), margin_s: float = 0.3
) -> tuple[float, Energy, Trace]:
    """True joules of a window, those measured, and the trace; the fault comes after a third of the window."""
    meter.start()
    time.sleep(margin_s)
    t0 = boot_s()
    time.sleep(seconds / 3)
    if fault:
        lab.fault(*fault)
    time.sleep(seconds * 2 / 3)
    t1 = boot_s()
    time.sleep(margin_s)
    trace = meter.stop()
    found = energy(trace, "power", t0, t1, clock_bound_s=trace.facts["clock_bound_s"])
    return lab.truth(t0, t1)["total_joules"], found, trace
