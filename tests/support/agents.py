"""Agents started plainly, without the transport, to see what they write."""

import atexit
import base64
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewatt.devices.android import build
from edgewatt.devices.transport import AGENT
from support.command import executable

TESTS = Path(__file__).resolve().parent.parent
SLEEPER = TESTS / "support/native_sleeper.cpp"
MISSING = -(2**63)


def environment() -> dict[str, str]:
    """Where an agent finds the runners of these tests, and the edgewatt that is tested."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(AGENT.parents[3])])}


@dataclass
class Plain:
    """An agent of one implementation (`command`), and what its last process left."""

    name: str
    command: list[str]
    folder: Path
    verbs: tuple[str, ...] = ("hello", "clock", "sample", "run")
    environment: dict[str, str] = field(default_factory=environment)
    runner: str = "support.fake_runner:Sleeper"  # sleeps `first_s`, then `second_s`
    status: int | None = None
    stderr: str = ""

    def job(self, job: Any) -> Path:
        path = self.folder / f"job-{time.monotonic_ns()}.json"
        path.write_text(job if isinstance(job, str) else json.dumps(job))
        self.spool = path.with_suffix(".events.jsonl")
        return path

    def start(self, verb: str, job: Any, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.command, verb, str(self.job(job))],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            start_new_session=True,
        )

    def events(
        self, verb: str, job: Any, until: Callable[[dict[str, Any]], bool] | None = None
    ) -> list[dict[str, Any]]:
        """All it says; asked to end (SIGTERM) at the first event for which `until` holds."""
        with self.start(verb, job) as process:
            assert process.stdout and process.stderr
            said = []
            for line in process.stdout:
                said.append(json.loads(line))
                if until and until(said[-1]):
                    process.send_signal(signal.SIGTERM)
                    until = None
            self.stderr = process.stderr.read().decode()
            self.status = process.wait(10)
        return said


def python_agents(folder: Path) -> dict[str, Plain]:
    """The Python agent on this Python and on every older one found here, for what it promises to do there."""
    found = {"python": Plain("python", [sys.executable, str(AGENT)], folder)}
    for minor in (8, 9, 10, 12, 13, 14):
        for python in sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))[-1:]:
            found[f"python3.{minor}"] = Plain(
                f"python3.{minor}", [str(python), str(AGENT)], folder, ("hello", "clock", "sample")
            )
    return found


def agent_of(kind: str, folder: Path) -> Plain:
    """The agent of that kind ("python", "python3.8", "native", "aarch64"); the test is skipped where it cannot run."""
    if kind == "native":
        return Plain(kind, [str(native())], folder, runner="native:sleep")
    if kind == "aarch64":
        return Plain(kind, ["qemu-aarch64", str(native_aarch64())], folder, ("hello", "clock", "sample"))
    found = python_agents(folder)
    if kind not in found:
        pytest.skip(f"no {kind} here")
    return found[kind]


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="edgewatt-agents-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _native(include: str) -> Path:
    path = _folder() / "edgewatt-agent"
    more = os.environ.get("EDGEWATT_TEST_CXXFLAGS", "-O1").split()  # such as -fsanitize=address,undefined
    build.compile_with(["c++"], path, Path(include) if include else None, "-Werror", *more, str(SLEEPER))
    return path


def native() -> Path:
    """The native agent with the tests' runner in it, compiled once; with onnxruntime if its header is here."""
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler (c++) here")
    return _native(ort_include())


def ort_include() -> str:
    """The folder of onnxruntime's C header, "" where nobody told of one."""
    return os.environ.get("EDGEWATT_ORT_INCLUDE", "")


def why_no_aarch64() -> str | None:
    """Why there can be no agent for phones here, in one line; None if there can."""
    if not shutil.which("qemu-aarch64"):
        return "no qemu-aarch64 here"
    return None if importlib.util.find_spec("ziglang") else "no ziglang here"


@functools.cache
def begun_aarch64() -> "subprocess.Popen[str]":
    """`edgewatt agent build`, begun: zig compiles a C++ library first, minutes of work, here behind all other work."""
    process = subprocess.Popen(
        ["nice", "-n", "19", executable(), "agent", "build", "--abi", "arm64-v8a"],
        env={**os.environ, "EDGEWATT_CACHE": str(_folder())},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip

    def end() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    atexit.register(end)
    return process


@functools.cache
def _native_aarch64() -> Path:
    out, err = begun_aarch64().communicate()
    made = Path(out.strip())
    assert made.is_file(), f"edgewatt agent build made nothing: {err}"
    return made


def native_aarch64() -> Path:
    """The sampler for phones as zig makes it, compiled once; it runs by qemu-aarch64."""
    reason = why_no_aarch64()
    if reason:
        pytest.skip(reason)
    return _native_aarch64()


def old_python(minor: int) -> Path:
    """A Python 3.`minor` found here; the test is skipped where there is none."""
    found = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
    if not found:
        pytest.skip(f"no Python 3.{minor} below ~/.pyenv/versions")
    return found[-1]


def numbers(text: str, form: str = "<i8") -> Any:
    return np.frombuffer(base64.b64decode(text), form)


@dataclass
class Samples:
    t_ns: Any
    read_ns: Any
    values: Any


def samples(said: list[dict[str, Any]]) -> Samples:
    """The samples in the frames of a `sample`."""
    frames = [e for e in said if e["event"] == "frames"]
    columns = len(next(e["columns"] for e in said if e["event"] == "sampling"))
    form = {"int64": "<i8", "float64": "<f8"}[frames[0]["form"]]
    return Samples(
        np.concatenate([numbers(f["t_ns"]) for f in frames]),
        np.concatenate([numbers(f["read_ns"]) for f in frames]),
        np.concatenate([numbers(f["values"], form).reshape(f["n"], columns) for f in frames]),
    )


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pid: int, within_s: float) -> float:
    """How long it took for a process to be gone; AssertionError if it stays."""
    start = time.monotonic()
    while alive(pid):
        assert time.monotonic() - start < within_s, f"process {pid} still there after {within_s} s"
        time.sleep(0.01)
    return time.monotonic() - start
