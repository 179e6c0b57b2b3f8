"""The native agent for a phone's kind of processor: compiled here, and kept in the cache by its source's hash."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from edgewatt.devices import agent
from edgewatt.harness.api import HarnessError, UsageError

SOURCE = Path(agent.__file__).parent / "native"
ABIS = ("arm64-v8a", "armeabi-v7a", "x86_64")
HEADER = "onnxruntime_c_api.h"
LONGEST_S = 900.0  # a first build by zig compiles a C++ library as well
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-pthread")


def agent_for(abi: str) -> Path | None:
    """The agent that was built of these sources for that kind of processor; None if there is none."""
    path = _kept(abi)
    return path if path.exists() else None


def build(abi: str, *, ndk: Path | None = None, include: Path | None = None) -> Path:
    """Compiles the agent for `abi` and keeps it; where it is.

    With Android's `ndk` for any phone; without it the host's compiler makes the one for x86_64 (for this machine and
    emulated phones on it), and zig makes a sampler without `run` for arm64-v8a. `include` is the folder of the
    runtime's C API (unset: EDGEWATT_ORT_INCLUDE); without it the agent has no `run`.

    Raises:
        UsageError: a tool or a file is missing; it names the step.
        HarnessError: the compiler failed.
    """
    if abi not in ABIS:
        raise UsageError(f"abi {abi}: wanted one of {', '.join(ABIS)} (adb shell getprop ro.product.cpu.abi)")
    include = _include(include)
    kept = _kept(abi)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".build-") as folder:
        made = Path(folder) / "edgewatt-agent"
        if ndk is not None:
            _by_ndk(abi, ndk, include, made)
        elif abi == "x86_64":
            compile_with([_host_compiler()], made, include)
        elif abi == "arm64-v8a":
            compile_with([*_zig(), "-target", "aarch64-linux-musl", "-static", "-s"], made, None)
        else:
            raise UsageError(f"abi {abi}: needs Android's NDK; unpack it and name its folder (--ndk)")
        made.chmod(0o755)
        made.replace(kept)
    return kept


def compile_with(compiler: Sequence[str], to: Path, include: Path | None, *more: str) -> None:
    """Compiles all sources, and those among the words in `more` (the others are passed on); links them to `to`.

    HarnessError with what the compiler said if it fails.
    """
    engine = [] if include is None else ["-DEDGEWATT_ORT", "-isystem", str(include)]
    flags = [*FLAGS, f"-I{SOURCE}", *engine, *(word for word in more if not word.endswith(".cpp"))]
    sources = [*sorted(SOURCE.glob("*.cpp")), *(Path(word) for word in more if word.endswith(".cpp"))]
    with tempfile.TemporaryDirectory(prefix="edgewatt-") as folder, ThreadPoolExecutor(os.cpu_count()) as several:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        commands = [[*compiler, *flags, "-c", str(s), "-o", o] for s, o in zip(sources, objects, strict=True)]
        list(several.map(_done, commands))
        _done([*compiler, *flags, *objects, "-o", str(to), "-ldl"])


def _kept(abi: str) -> Path:
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        if path.is_file():
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    cache = os.environ.get("EDGEWATT_CACHE") or platformdirs.user_cache_dir("edgewatt", appauthor=False)
    return Path(cache).absolute() / "agents" / f"{abi}-{digest.hexdigest()[:16]}"


def _include(given: Path | None) -> Path | None:
    """The folder that holds the header itself; None if there is nothing to look in."""
    told = given or (Path(os.environ["EDGEWATT_ORT_INCLUDE"]) if os.environ.get("EDGEWATT_ORT_INCLUDE") else None)
    if told is None:
        return None
    for folder in (told, told / "onnxruntime", told / "headers"):
        if (folder / HEADER).exists():
            return folder
    raise UsageError(f"{told}: holds no {HEADER}; it is in the folder headers of the package onnxruntime-android")


def _by_ndk(abi: str, ndk: Path, include: Path | None, to: Path) -> None:
    if not (ndk / "build/cmake/android.toolchain.cmake").exists():
        raise UsageError(f"{ndk}: not Android's NDK (no build/cmake/android.toolchain.cmake in it)")
    cmake = shutil.which("cmake")
    if cmake is None:
        raise UsageError("building with the NDK needs cmake; install it")
    folder = to.with_name("cmake")
    _done(
        [cmake, "-S", str(SOURCE), "-B", str(folder), "--preset", abi, f"-DEDGEWATT_ORT_INCLUDE={include or ''}"],
        {"ANDROID_NDK": str(ndk.resolve())},
    )
    _done([cmake, "--build", str(folder), "--parallel"])
    (folder / to.name).replace(to)


def _host_compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise UsageError("abi x86_64: no C++ compiler here; install g++, or name the NDK (--ndk)")


def _zig() -> list[str]:
    if importlib.util.find_spec("ziglang") is None:
        raise UsageError(
            "abi arm64-v8a: needs Android's NDK (--ndk), or, for the sampler alone, pip install 'edgewatt[android]'"
        )
    return [sys.executable, "-m", "ziglang", "c++"]


def _done(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    try:
        end = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST_S,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HarnessError(f"building the agent: {error}") from error
    if end.returncode:
        said = end.stderr + end.stdout
        first = next((line for line in said.splitlines() if "error" in line.lower()), said.strip()[-500:])
        raise HarnessError(f"building the agent: {Path(command[0]).name} ended with {end.returncode}: {first}")
