"""Runners for the agent's tests: each does to its process what a model might do to it."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Sleeper:
    """Items of two phases, `first_s` and `second_s` long; `fault` names what goes wrong at item `fault_at`."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.runs = 0

    def load(self) -> dict[str, Any]:
        if "child" in self.params:  # one that ignores being asked to end
            child = subprocess.Popen(
                [sys.executable, "-c", "import signal,time;signal.signal(15,signal.SIG_IGN);time.sleep(600)"]
            )
            Path(self.params["child"]).write_text(str(child.pid))
        if self.params.get("cgroup"):
            Path(self.params["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
        if self.params.get("fault_at", 0) == "load":
            self.fault()
        print("a library that talks on stdout")
        os.system("echo and a child of its")
        return {"engine": "sleeper"}

    def run(self, index: int, mark: Any) -> tuple[int, int]:
        self.runs += 1
        mark("first")
        time.sleep(self.params.get("first_s", 0.002))
        if self.params.get("fault_at", 0) == index:
            self.fault()
        if self.params.get("fault") != "no mark":
            mark("second")
        time.sleep(self.params.get("second_s", 0.001))
        return index, self.runs

    def run_phase(self, phase: str, index: int) -> None:
        time.sleep(self.params[f"{phase}_s"])

    def save(self, outputs: dict[int, Any], folder: Path) -> None:
        (folder / "outputs.txt").write_text("".join(f"{k} {outputs[k][0]}\n" for k in sorted(outputs)))
        if self.params.get("fault_at", 0) == "save":
            self.fault()

    def fault(self) -> None:
        match self.params.get("fault"):
            case "abort":
                os.abort()
            case "segfault":
                ctypes.string_at(0)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise ValueError("the picture\nis upside down")
            case "bad_alloc":
                raise RuntimeError("ONNXRuntimeError: std::bad_alloc")
            case "hang":
                while True:
                    time.sleep(0.01)
            case "long":
                time.sleep(self.params["long_s"])
            case "eat":
                eaten = []
                while True:
                    eaten.append(b"x" * (16 << 20))
            case "exit":
                sys.exit(3)


class Talker:
    """A language model's items: `vision`, a `prefill` of 10 + index tokens, and index steps of `decode`, `s` each.

    `steps` is the number of steps of every item, where it is told; at step `hang_at` of item 3 it hangs.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params

    def load(self) -> dict[str, Any]:
        return {"engine": "talker", **self.params.get("engine", {})}

    def run(self, index: int, mark: Any) -> int:
        s = self.params["s"]
        mark("vision")
        time.sleep(s)
        mark("prefill", 10 + index)
        time.sleep(s)
        steps = self.params.get("steps", index)
        for step in range(steps):
            mark("decode", 1)
            time.sleep(600 if index == 3 and step + 1 == self.params.get("hang_at") else s)
        if steps == 0:
            mark("decode")
        return index

    def run_phase(self, phase: str, index: int) -> int:
        time.sleep(self.params["s"])
        return 10 + index if phase == "prefill" else index

    def save(self, outputs: dict[int, Any], folder: Path) -> None:
        (folder / "outputs.txt").write_text("".join(f"{k}\n" for k in sorted(outputs)))
