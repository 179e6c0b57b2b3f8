"""A workload whose model goes wrong on demand, found by its entry point as anybody's plugin would be."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgewatt.harness.api import Device, Facts, Job, Runner, Score, Workload


@dataclass(frozen=True)
class Misbehaving(Workload):
    """Sleeps `item_s` an item; at item `at`, does what `how` says (segfault, hang, memory, ...)."""

    name = "misbehaving"
    how: str = "nothing"
    at: int = 20
    item_s: float = 0.005

    def prepare(self, device: Device) -> Job:
        return Job("misbehaving:MisbehavingRunner", asdict(self), 4, ("detect",), isolate=("detect",))

    def score(self, outputs: Path, into: Path) -> Score:
        return Score()


class MisbehavingRunner(Runner):
    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params, self.done = params, 0

    def load(self) -> Facts:
        if self.params["how"] == "load":
            raise RuntimeError("the model file is broken")
        if self.params["how"] == "child":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        return {"engine": "none"}

    def run(self, index: int, mark: Any) -> int:
        mark("detect")
        time.sleep(self.params["item_s"])
        self.done += 1
        if self.done == self.params["at"]:
            self.misbehave()
        return index

    def run_phase(self, phase: str, index: int) -> None:
        time.sleep(self.params["item_s"])

    def misbehave(self) -> None:
        how = self.params["how"]
        if how == "segfault":
            ctypes.string_at(0)
        elif how == "abort":
            os.abort()
        elif how == "hang":
            time.sleep(10_000)
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "raise":
            raise ValueError("no such operator: Frobnicate")
        elif how == "memory":
            self.hoard = [bytearray(1 << 26) for _ in range(10_000)]

    def save(self, outputs: Mapping[int, Any], folder: Path) -> None:
        (folder / "outputs.txt").write_text(str(len(outputs)))
