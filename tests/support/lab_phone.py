"""An emulated phone with everything a user has around it: a device file and the command."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewatt.harness.devicefile import Entry, find
from support.command import QUICK, executable

SMALL = (*QUICK, "size=160", "threads=1")  # phones share two processors


class LabPhone:
    """One phone called `phone`, reached at `address`; its files of ours lie in a folder of this test's own."""

    def __init__(self, folder: Path, address: str, agent: Path | str, name: str = "phone", **options: Any) -> None:
        self.folder, self.name = folder, name
        self.devices = folder / f"{name}.toml"
        given: dict[str, Any] = {"kind": "android", "address": address, "agent": str(agent)}
        given |= {"key": str(folder / "keys" / "adbkey"), **options}
        lines = [f"{key} = {json.dumps(value)}" for key, value in given.items() if value is not None]
        self.devices.write_text(f"[devices.{name}]\n" + "\n".join(lines) + "\n")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The command, begun."""
        return subprocess.Popen(
            [executable(), *words], cwd=self.folder,
            env={
                **os.environ,
                "EDGEWATT_STORE": str(self.folder / f"runs-{self.name}"),
                "EDGEWATT_DEVICES": str(self.devices),
                "EDGEWATT_CACHE": os.environ.get("EDGEWATT_CACHE", str(self.folder / "cache")),
                "XDG_STATE_HOME": str(self.folder / "state"),
            },
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ended(self, process: subprocess.Popen[str], status: int = 0, timeout_s: float = 240) -> str:
        """What a begun command printed; it ends with `status` and without a traceback."""
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{process.args} did not end in {timeout_s} s\n{out[-3000:]}\n{err[-3000:]}") from None
        assert "Traceback" not in out + err, out + err
        assert process.returncode == status, (
            f"status {process.returncode}, wanted {status}\n{out[-3000:]}\n{err[-3000:]}"
        )
        return out if status != 2 else err

    def json(self, *words: str, status: int = 0, timeout_s: float = 240) -> dict[str, Any]:
        """What the command printed with --json."""
        found: dict[str, Any] = json.loads(self.ended(self.start(*words, "--json"), status, timeout_s))
        return found

    def run(self, *settings: str, status: int = 0) -> dict[str, Any]:
        """A short run of FemtoDet."""
        return self.json("run", "femtodet", "--device", self.name, *SMALL, *settings, status=status)

    def start_run(self, *settings: str, on: str) -> subprocess.Popen[str]:
        """A run begun; returns when its model works on the emulated phone called `on`."""
        process = self.start("run", "femtodet", "--device", self.name, "--json", *SMALL, *settings)
        deadline = time.monotonic() + 120
        while not models_on(on):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise AssertionError(f"its model never worked: {process.communicate()}")
            time.sleep(0.05)
        return process

    def stored(self, status: int = 0) -> dict[str, Any]:
        """The newest run in the store."""
        return self.json("show", "latest", status=status)

    def entry(self) -> Entry:
        """The phone as the device file has it."""
        return find(self.name, self.devices)


def models_on(phone: str) -> list[int]:
    """Agents that run a model on an emulated phone now, by this machine's pids."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            is_there = f"androidlab-{phone}-" in (entry / "cgroup").read_text()
        except OSError:
            continue
        if is_there and state != "Z" and words[1:2] == ["run"]:
            found.append(int(entry.name))
    return found


def flags(run: Mapping[str, Any], meter: str | None = None) -> dict[str, str]:
    """Flag -> detail of a run, of one meter if it is named."""
    return {f["flag"]: f["detail"] for f in run["flags"] if meter in (None, f["meter"])}


def voided(run: Mapping[str, Any], meter: str, metric: str = "energy_j") -> set[str]:
    """The flags that void a metric of a meter."""
    return {f["flag"] for f in run["flags"] if f["meter"] == meter and metric in f["voids"]}
