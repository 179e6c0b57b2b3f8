"""Emulated Jetson boards: the real jtop, board files whose rails follow a wave of known energy, NVIDIA's tools.

with Bench("mine", "orin-nano-8gb-jp6", waves={"VDD_IN": {"kind": "constant", "w": 7.0}}) as bench:
    done = bench.exec([sys.executable, "-c", "..."])
    joules = bench.truth(t0_s, t1_s)["rails"]["VDD_IN"]["joules"]
"""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent
LAB = Path(os.environ.get("EDGEWATT_SHARED", TESTS.parent.parent / "shared")).resolve() / "lab" / "jetson"
PROFILES = ("agx-orin-64gb-jp5", "orin-nano-8gb-jp6", "xavier-nx-jp4")
UP_S, DOWN_S = 60.0, 30.0
_NUMBERS = itertools.count()


def why_not(jtop: bool = True) -> str | None:
    """Why no board can be emulated here, in one line; None if it can."""
    if not (LAB / "jetbench").is_file():
        return f"no emulated boards at {LAB}; set EDGEWATT_SHARED"
    if os.geteuid() != 0:
        return "emulated boards need root (mount namespaces, FUSE)"
    if not Path("/dev/fuse").exists():
        return "emulated boards need /dev/fuse"
    if jtop and importlib.util.find_spec("jtop") is None:
        return "the jtop service needs jetson-stats; install the extra `jetson`"
    return None


def profile(name: str) -> dict[str, Any]:
    """A board's description, to be changed at will and given to a Bench."""
    held: dict[str, Any] = json.loads((LAB / "profiles" / f"{name}.json").read_text())
    return held


class Bench:
    """One emulated board, up while its `with` lasts; the test is skipped where there can be none.

    Its processes see the board's files; what they write below /etc, /usr and /run is gone afterwards, other files are
    the host's own. PYTHONPATH of the caller is kept (the bench puts one folder in front of it).
    """

    def __init__(
        self,
        name: str,
        profile: str | Mapping[str, Any],
        *,
        waves: Mapping[str, Any] | None = None,
        python: str | None = None,
        jtop: bool = True,
        ideal: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        """`profile` is one of PROFILES or a whole description; `python` has jetson-stats and runs the jtop service.

        `ideal`: the sensor has 1 mA steps; `extra`: more words for `jetbench up`.
        """
        self.name = f"{name}-{os.getpid()}-{next(_NUMBERS)}"
        self.python = python or sys.executable
        self.profile = dict(profile) if not isinstance(profile, str) else {"id": profile}
        self._is_named = isinstance(profile, str)
        self._waves, self._jtop = waves, jtop
        self._extra = [*(["--ideal-sensor"] if ideal else []), *([] if jtop else ["--no-jtop"]), *extra]
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Bench:
        reason = why_not(self._jtop and self.python == sys.executable)
        if reason:
            pytest.skip(reason)
        if self._is_named:
            self.profile = profile(self.profile["id"])
        atexit.register(self.down)
        try:
            self._up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def exec(self, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Runs a command on the board and returns when it ended; text is captured unless told otherwise."""
        return subprocess.run(
            self.inside(argv), **{"capture_output": True, "text": True, "timeout": 120, "check": False, **options}
        )

    def start(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """A command begun on the board; it is ended, at the latest, with the bench."""
        process = subprocess.Popen(self.inside(argv), **options)
        self._started.append(process)
        return process

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """The words that run a command on the board (it replaces itself: the process is the command's)."""
        return [*_jetbench(), "exec", "--name", self.name, "--", *map(str, argv)]

    def truth(self, t0: float, t1: float, clock: str = "boottime") -> dict[str, Any]:
        """True energy between two times in seconds on `clock`: {"rails": {rail: {"joules", "mean_w", ...}}, "total"}.

        `sensor_joules` is what a perfect reader of the quantised sensor gets.
        """
        held: dict[str, Any] = json.loads(
            self._tool("truth", "--name", self.name, "--clock", clock, repr(float(t0)), repr(float(t1)))
        )
        return held

    def epoch_s(self) -> float:
        """When the waves began (their t = 0), in seconds since boot."""
        began: float = json.loads(self._tool("truth-file", "--name", self.name))["epoch_monotonic"]
        return began + time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()

    def namespace(self) -> str:
        """The mount namespace that all processes on the board share, as /proc/PID/ns/mnt tells it."""
        return str(json.loads((_state(self.name) / "state.json").read_text())["ns"])

    def service_pids(self) -> list[int]:
        """Processes of the jtop service (three: it, its keeper of shared values, its sampler), the oldest first."""
        place = self.namespace()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"jtop" in words and b"--force" in words and str((entry / "ns/mnt").readlink()) == place:
                    found.append(int(entry.name))
        return sorted(found)

    def kill_service(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to every process of the jtop service; returns when they are gone, if it kills."""
        pids = self.service_pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 10
        while number in (signal.SIGKILL, signal.SIGTERM) and self.service_pids():
            assert time.monotonic() < deadline, f"the jtop service {self.service_pids()} does not end"
            time.sleep(0.02)

    def start_service(self) -> None:
        """Starts the jtop service as its systemd unit does; returns when it is ready."""
        state = json.loads((_state(self.name) / "state.json").read_text())
        log = _state(self.name) / "jtop-again.log"
        path = os.pathsep.join(filter(None, [str(LAB / "pyshim_service"), os.environ.get("PYTHONPATH")]))
        env = {
            **os.environ,
            "PYTHONPATH": path,
            "JTOP_SERVICE": "True",
            "JETBENCH_PART_NUMBER": state["part_number"],
            "JETBENCH_EEPROM_BUS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("wb") as out:
            self.start(
                [self.python, "-m", "jtop", "--force"],
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while "service ready" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def service_log(self) -> str:
        """What the jtop service has written so far, over all its starts."""
        return "".join(p.read_text() for p in sorted(_state(self.name).glob("jtop*.log")))

    def down(self) -> None:
        """Ends everything on the board, and the board; twice is harmless."""
        atexit.unregister(self.down)
        with suppress(subprocess.CalledProcessError):
            self._tool("down", "--name", self.name, timeout=DOWN_S)
        while self._started:
            process = self._started.pop()
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    with suppress(OSError):
                        pipe.close()

    def _up(self) -> None:
        with tempfile.TemporaryDirectory(prefix="edgewatt-bench-") as folder:
            board, waves = Path(folder, "profile.json"), Path(folder, "waves.json")
            board.write_text(json.dumps(self.profile))
            words = ["up", "--name", self.name, "--profile", str(board), "--python", self.python, *self._extra]
            if self._waves:
                waves.write_text(json.dumps(self._waves))
                words += ["--waves", str(waves)]
            try:
                self._tool(*words, timeout=UP_S)
            except subprocess.CalledProcessError as error:
                raise RuntimeError(f"no board {self.name}: {error.stdout}{error.stderr}") from error

    @staticmethod
    def _tool(*words: str, timeout: float = 30.0) -> str:
        done = subprocess.run([*_jetbench(), *words], capture_output=True, text=True, timeout=timeout, check=True)
        return done.stdout


def _jetbench() -> list[str]:
    return [sys.executable, str(LAB / "jetbench")]


def _state(name: str) -> Path:
    return Path(os.environ.get("JETBENCH_STATE", "/run/jetbench")) / name
