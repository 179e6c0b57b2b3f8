"""A look at the device in one round trip: what its files hold and what its tools answer.

For the agent's `call`. Standard library only; nothing is judged here, that is for the harness.
"""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LONGEST_TEXT = 4096  # bytes of a file; sysfs attributes are one page at most
LONGEST_ANSWER = 64 << 10  # bytes of a tool's answer
OTHER_NAMES = {"cv2": ("opencv-python-headless", "opencv-python"), "onnxruntime": ("onnxruntime-gpu",)}
TOOL_S = 10.0  # how long a tool may take


def look(params: Mapping[str, Any]) -> dict[str, Any]:
    """Files and tools as they are now.

    `params["files"]` are glob patterns, `params["tools"]` name -> words of a command, `params["disk"]` a folder.
    The answer has `files` (path -> {"text", "error"}, one of them null), `real` (path -> where it really is, for
    folders), `tools` (name -> {"status", "out", "err"}; status null: it is not there or did not end), `free_bytes` of
    the disk that holds the folder, whether this is root (`is_root`), and the user's `groups`.
    """
    paths = sorted({p for pattern in params.get("files", ()) for p in glob.glob(pattern)})  # noqa: PTH207  patterns are absolute
    folders = {p for p in paths if Path(p).is_dir()}
    return {
        "files": {p: read(p) for p in paths if p not in folders},
        "real": {p: os.path.realpath(p) for p in sorted(folders)},
        "tools": {name: answer(words) for name, words in dict(params.get("tools", {})).items()},
        "free_bytes": free_bytes(params.get("disk", "~")),
        "is_root": os.geteuid() == 0,
        "groups": groups(),
    }


def read(path: str) -> dict[str, str | None]:
    """The text of a file, blanks and NUL bytes at its end removed, or why it cannot be had."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return {"text": None, "error": error.strerror}
    try:
        return {"text": os.read(fd, LONGEST_TEXT).decode("utf-8", "replace").strip("\0 \n\t"), "error": None}
    except OSError as error:
        return {"text": None, "error": error.strerror}
    finally:
        os.close(fd)


def answer(words: Sequence[str]) -> dict[str, Any]:
    """What a command says, its input empty and its words in English."""
    try:
        done = subprocess.run(
            list(words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TOOL_S,
            env={**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
            check=False,
        )
    except FileNotFoundError:
        return {"status": None, "out": "", "err": "not found"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"status": None, "out": "", "err": str(error)}
    out, err = (text[:LONGEST_ANSWER].decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    return {"status": done.returncode, "out": out, "err": err}


def free_bytes(folder: str) -> int | None:
    """Room on the disk that holds `folder`; None if it is not there."""
    try:
        held = os.statvfs(Path(folder).expanduser())
    except OSError:
        return None
    return held.f_bavail * held.f_frsize


def groups() -> list[str]:
    """Names of the groups this process belongs to."""
    import grp

    found = []
    for number in {os.getegid(), *os.getgroups()}:
        try:
            found.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return sorted(found)


def modules(params: Mapping[str, Any]) -> dict[str, Any]:
    """Which of `params["modules"]` this Python can import, with their versions, and what onnxruntime can run on.

    The answer has `versions` (module -> text; "" where it has none; null: not there), `providers` and `executable`.
    """
    found = {name: version(name) for name in params["modules"]}
    providers: list[str] = []
    if found.get("onnxruntime") is not None:
        try:
            import onnxruntime

            providers = list(onnxruntime.get_available_providers())
        except Exception as error:  # a wheel of another release breaks in many ways
            found["onnxruntime"] = None
            return {"versions": found, "providers": [], "executable": sys.executable, "problem": str(error)[:300]}
    return {"versions": found, "providers": providers, "executable": sys.executable, "problem": None}


def version(name: str) -> str | None:
    """A module's version without importing it; None if it is not there."""
    if importlib.util.find_spec(name) is None:
        return None
    for distribution in (name, *OTHER_NAMES.get(name, ())):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
