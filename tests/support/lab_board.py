"""An emulated Jetson with everything a user has around it: a device file, the command, and a way over ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewatt.harness.devicefile import Entry, find
from support.command import QUICK, executable
from support.jetson_lab import Bench
from support.sshd import Sshd

SMALL = (*QUICK, "size=160", "threads=1")  # boards share two processors


class LabBoard:
    """One board called `orin`; `over_ssh` is how the command reaches it."""

    def __init__(self, folder: Path, bench: Bench, over_ssh: bool = False, **options: Any) -> None:
        self.folder, self.bench = folder, bench
        self.sshd = Sshd(folder / "sshd", wrap=bench.inside([])) if over_ssh else None
        self.devices = folder / "devices.toml"
        given: dict[str, Any] = {"kind": "jetson", **options}
        if self.sshd:
            given |= {"address": self.sshd.address, "python": sys.executable, "ssh_config": str(self.sshd.config)}
        lines = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
        self.devices.write_text("[devices.orin]\n" + "\n".join(lines) + "\n")

    def command(self, *words: str) -> list[str]:
        """`edgewatt WORDS` as it is started: here for a board over ssh, else on the board."""
        line = [executable(), *words]
        return line if self.sshd else self.bench.inside(line)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The command, begun."""
        return subprocess.Popen(
            self.command(*words), cwd=self.folder,
            env={**os.environ, "EDGEWATT_STORE": str(self.folder / "runs"), "EDGEWATT_DEVICES": str(self.devices)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ended(self, process: subprocess.Popen[str], status: int = 0, timeout_s: float = 180) -> str:
        """What a begun command printed; it ends with `status` and without a traceback."""
        out, err = process.communicate(timeout=timeout_s)
        assert "Traceback" not in out + err, out + err
        assert process.returncode == status, (
            f"status {process.returncode}, wanted {status}\n{out[-3000:]}\n{err[-3000:]}"
        )
        return out if status != 2 else err

    def json(self, *words: str, status: int = 0, timeout_s: float = 180) -> dict[str, Any]:
        """What the command printed with --json."""
        found: dict[str, Any] = json.loads(self.ended(self.start(*words, "--json"), status, timeout_s))
        return found

    def run(self, *settings: str, status: int = 0) -> dict[str, Any]:
        """A short run of FemtoDet."""
        return self.json("run", "femtodet", "--device", "orin", *SMALL, *settings, status=status)

    def start_run(self, *settings: str) -> subprocess.Popen[str]:
        """A run begun; returns when its model works."""
        process = self.start("run", "femtodet", "--device", "orin", "--json", *SMALL, *settings)
        deadline = time.monotonic() + 120
        while not self.models():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        return process

    def stored(self, status: int = 0) -> dict[str, Any]:
        """The newest run in the store."""
        found: dict[str, Any] = self.json("show", "latest", status=status)
        return found

    def agents(self, verb: str = "") -> list[int]:
        """Every agent that runs on the board now, or those that do `verb`."""
        return [pid for pid, words in self._agents() if not verb or verb in words]

    def models(self) -> list[int]:
        """Agents that run a model on the board now."""
        return self.agents("run")

    def _agents(self) -> list[tuple[int, list[str]]]:
        place = self.bench.namespace()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                is_here = str((entry / "ns" / "mnt").readlink()) == place
            except OSError:
                continue
            if is_here and any(w.endswith("agent/agent.py") for w in words) and "python" in Path(words[0]).name:
                found.append((int(entry.name), words))
        return found

    def mode(self) -> str:
        """The power mode as NVIDIA's tool has it."""
        return self.bench.exec(["nvpmodel", "-q"]).stdout.split("\n")[0].removeprefix("NV Power Mode: ")

    def entry(self) -> Entry:
        """The board as the device file has it."""
        return find("orin", self.devices)

    def close(self) -> None:
        if self.sshd:
            self.sshd.stop()

    def __enter__(self) -> LabBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def flags(run: Mapping[str, Any], meter: str | None = None) -> dict[str, str]:
    """Flag -> detail of a run, of one meter if it is named."""
    return {f["flag"]: f["detail"] for f in run["flags"] if meter in (None, f["meter"])}
