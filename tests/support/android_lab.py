"""Emulated Android phones with a real shell and known true energy, a real adb daemon, and Debian's adb client.

with Phone("pixel8", wave=("sine", 3, 1, 2)) as phone:
    device = Adb(phone.address, agent=...)
    joules = phone.truth(t0_s, t1_s)["joules"]
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent
LAB = Path(os.environ.get("EDGEWATT_SHARED", TESTS.parent.parent / "shared")).resolve() / "lab" / "android"
PROFILES = ("pixel6", "pixel7", "pixel8", "sm8250-ma", "sm8350-inv", "sm8650")
PROTOS = ("modern", "shell_v2", "legacy")
_NUMBERS = itertools.count()


def why_not() -> str | None:
    """Why no phone can be emulated here, in one line; None if it can."""
    if not (LAB / "androidlab.py").is_file():
        return f"no emulated phones at {LAB}; set EDGEWATT_SHARED"
    if os.geteuid() != 0:
        return "emulated phones need root (mount namespaces, FUSE)"
    if not Path("/dev/fuse").exists():
        return "emulated phones need /dev/fuse"
    missing = [tool for tool in ("mksh", "toybox", "busybox") if shutil.which(tool) is None]
    return f"emulated phones need {', '.join(missing)}" if missing else None


class Phone:
    """One emulated phone, up while its `with` lasts; the test is skipped where there can be none."""

    def __init__(
        self,
        profile: str,
        *,
        wave: Sequence[object] = (),
        proto: str = "modern",
        auth: str = "open",
        prompt_s: float | None = None,
        abi: str = "x86_64",
        root: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        self.profile = profile
        self.name = f"t{os.getpid()}-{next(_NUMBERS)}"
        self._words = ["--profile", profile, "--proto", proto, "--auth", auth, "--abi", abi, *extra]
        self._words += ["--wave", *map(str, wave)] if wave else []
        self._words += ["--prompt-s", str(prompt_s)] if prompt_s is not None else []
        self._words += ["--start-root"] if root else []
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def serial(self) -> str:
        return self.address

    def up(self) -> Phone:
        """Started; skips the test if there can be no phone."""
        reason = why_not()
        if reason:
            pytest.skip(reason)
        atexit.register(self.down)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        _lab("up", self.name, "--port", str(self.port), *self._words)
        return self

    def down(self) -> None:
        """Ended, with everything it ran."""
        atexit.unregister(self.down)
        if self.port:
            with suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
                _lab("down", self.name)
            self.port = 0

    def truth(self, t0_s: float, t1_s: float, clock: str = "device") -> dict[str, Any]:
        """True energy between two times: {"joules", …} of the whole phone and per rail (lab/android/README.md)."""
        found: dict[str, Any] = json.loads(_lab("truth", self.name, repr(t0_s), repr(t1_s), "--clock", clock))
        return found

    def fault(self, kind: str, *words: object) -> None:
        """Something goes wrong from now on."""
        _lab("fault", self.name, kind, *map(str, words))

    def wave(self, *words: object) -> None:
        """Another course of its power, from now on."""
        _lab("wave", self.name, *map(str, words))

    def status(self) -> dict[str, Any]:
        """What the lab says of it."""
        found: dict[str, Any] = json.loads(_lab("status", self.name))
        return found

    def __enter__(self) -> Phone:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()


def _lab(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(LAB / "androidlab.py"), *words], capture_output=True, text=True, timeout=90, check=False
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stdout + done.stderr)
    return done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# A real adb daemon, and the client everybody has


def why_no_daemon() -> str | None:
    """Why no real adb daemon can be had here, in one line; None if it can."""
    if not (LAB / "realadbd").is_file():
        return f"no realadbd at {LAB}; set EDGEWATT_SHARED"
    if os.geteuid() != 0:
        return "a real adb daemon needs root (a root of its own, namespaces)"
    return None if shutil.which("debootstrap") else "a real adb daemon needs debootstrap"


@contextmanager
def real_adbd() -> Iterator[str]:
    """The address of a real daemon on loopback; its root is made once and stays for the next test."""
    reason = why_no_daemon()
    if reason:
        pytest.skip(reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def call(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, str(LAB / "realadbd"), *words], capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0 or words[0] == "down", f"realadbd {words}: {done.stdout}{done.stderr}"

    call("down")
    atexit.register(call, "down")
    try:
        call("up", "--port", port)
        yield f"127.0.0.1:{port}"
    finally:
        call("down")
        atexit.unregister(call)


@contextmanager
def adb_client(address: str) -> Iterator[Any]:
    """A function that runs Debian's `adb -s ADDRESS WORDS`, through a server of its own that ends with the `with`."""
    if shutil.which("adb") is None:
        pytest.skip("no adb client; install the package adb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "ANDROID_ADB_SERVER_PORT": port}

        def adb(*words: object, timeout_s: float = 60) -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                ["adb", *map(str, words)], capture_output=True, timeout=timeout_s, check=False, env=environment
            )

        try:
            adb("connect", address)
            yield lambda *words, **more: adb("-s", address, *words, **more)
        finally:
            adb("kill-server")
