"""A Jetson's power mode, clocks and fan through NVIDIA's own tools, set, read back and put back. For the agent.

Formats of `nvpmodel -q` and `nvpmodel -p --verbose`: as the tools of L4T 32 to 36 print them; a board may have no
default mode and no known present one. Standard library only.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

TOOL_S = 60.0  # a switch of the mode takes seconds on a real board
SETTLE_S = 5.0  # how long a value may take to be read back
if TYPE_CHECKING:
    Mode = tuple[int, str]  # id and name


class RefusedError(Exception):
    """The board cannot be asked for that: no such mode, no such fan, no right to. Nothing was set."""

    is_refusal = True
    is_foreseen = True  # its message speaks for itself


class StaysError(RefusedError):
    """The board was asked and did not follow; what was set before is put back, and the run fails."""

    is_refusal = False


def current_mode(answer: str) -> Mode | None:
    """Id and name in what `nvpmodel -q` says; None where the board has no known mode."""
    named = re.search(r"^NV Power Mode:\s*(\S+)\s*$", answer, re.MULTILINE)
    number = re.search(r"^\s*(\d+)\s*$", answer, re.MULTILINE)
    return (int(number[1]), named[1]) if named and number else None


def modes(listing: str) -> dict[int, str]:
    """Id -> name of every mode in what `nvpmodel -p --verbose` says."""
    found = re.findall(r"POWER_MODEL: ID=(\d+) NAME=(\S+)", listing)
    return {int(number): name for number, name in found}


def chosen(wanted: Any, known: Mapping[int, str], now: Mode | None) -> int:
    """The id of the mode called `wanted` (a name in any case, or an id); RefusedError with the nearest name."""
    text = str(wanted).strip()
    if text.isdigit() and int(text) in known:
        return int(text)
    for number, name in known.items():
        if text.lower() == name.lower():
            return number
    if now and text.lower() == now[1].lower():
        return now[0]
    names = ", ".join(f"{name} ({number})" for number, name in sorted(known.items()))
    near = difflib.get_close_matches(text.upper(), [n.upper() for n in known.values()], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "choose one of them"
    raise RefusedError(f"power_mode={text}: this board has {names or 'no modes that nvpmodel tells'}; {hint}")


@contextlib.contextmanager
def held(params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The board set as `params` say inside: "power_mode" (name or id), "jetson_clocks" (bool), "fan_speed" (percent).

    Gives what was read back, {"power_mode": {"id", "name"}, "jetson_clocks": bool, "fan_speed": percent}; "after" is
    added when all is put back. RefusedError for what cannot be asked, StaysError if the board does not follow.
    """
    read_back: dict[str, Any] = {"set_with": "nvpmodel, jetson_clocks"}
    with contextlib.ExitStack() as stack:
        if params.get("power_mode") is not None:
            read_back["power_mode"] = stack.enter_context(_mode(params["power_mode"]))
        if params.get("jetson_clocks") is not None:
            read_back["jetson_clocks"] = stack.enter_context(_clocks(bool(params["jetson_clocks"])))
        if params.get("fan_speed") is not None:
            read_back["fan_speed"] = stack.enter_context(_fan(float(params["fan_speed"])))
        if params.get("fan_profile") is not None:
            raise RefusedError("fan_profile: is set through jtop, which does not answer here; install or start it")
        yield read_back
    after: dict[str, Any] = {}
    if "power_mode" in read_back:
        now = query()
        after["power_mode"] = now and {"id": now[0], "name": now[1]}
    if "jetson_clocks" in read_back:
        after["jetson_clocks"] = are_locked()
    read_back["after"] = after


def query() -> Mode | None:
    """The mode the board is in now."""
    return current_mode(tool(["nvpmodel", "-q"]))


@contextlib.contextmanager
def _mode(wanted: Any) -> Iterator[dict[str, Any]]:
    before, known = query(), modes(tool(["nvpmodel", "-p", "--verbose"]))
    number = chosen(wanted, known, before)
    if before is None:
        raise RefusedError(
            f"power_mode={wanted}: nvpmodel does not tell the present mode, so it could not be put back; "
            "set one by hand first (sudo nvpmodel -m ID)"
        )
    try:
        if before[0] != number:
            set_mode(number, known.get(number, ""))
        now = query() or before
        yield {"id": now[0], "name": now[1], "before": {"id": before[0], "name": before[1]}}
    finally:
        if query() != before:
            set_mode(before[0], before[1])


def set_mode(number: int, name: str) -> None:
    """Switches and reads back; StaysError if the board stays as it was. It is never restarted for it."""
    said = tool(["nvpmodel", "-m", str(number)], as_root=True, check=False)
    deadline = time.monotonic() + SETTLE_S
    while True:
        now = query()
        if now and now[0] == number:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    is_reboot = "reboot" in said.lower() or "status 16" in said
    step = (
        f"this mode needs a restart: sudo nvpmodel -m {number}, reboot, and run again without power_mode"
        if is_reboot
        else f"try it by hand: sudo nvpmodel -m {number}"
    )
    held_mode = f"{now[1]} ({now[0]})" if now else "unknown"
    raise StaysError(f"power_mode={name or number}: the board stays in mode {held_mode}: {said or 'no word'}; {step}")


def are_locked() -> bool | None:
    """Whether every processor that is on line is held at one clock, as jetson_clocks does; None if none tells."""
    pairs = []
    for cpu in Path("/sys/devices/system/cpu").glob("cpu[0-9]*"):
        if _number(cpu / "online") != 0:
            pairs.append(tuple(_number(cpu / "cpufreq" / f"scaling_{end}_freq") for end in ("min", "max")))
    told = [pair for pair in pairs if None not in pair]
    return all(low == high for low, high in told) if told else None


@contextlib.contextmanager
def _clocks(is_wanted: bool) -> Iterator[bool]:
    before = are_locked()
    if before == is_wanted:
        yield before
        return
    if not is_wanted:
        raise RefusedError(
            "jetson_clocks=false: the clocks are locked already and what they were before is not known; "
            "unlock them by hand (sudo jetson_clocks --restore) or restart the board"
        )
    with tempfile.TemporaryDirectory(prefix="edgewatt-clocks-") as folder:
        kept = f"{folder}/before"
        tool(["jetson_clocks", "--store", kept], as_root=True)
        try:
            tool(["jetson_clocks"], as_root=True)
            _wait_for(True, "jetson_clocks")
            yield True
        finally:
            tool(["jetson_clocks", "--restore", kept], as_root=True)
            if are_locked():
                raise StaysError("the clocks stay locked; unlock them by hand (sudo jetson_clocks --restore)")


def _wait_for(wanted: bool, what: str) -> None:
    deadline = time.monotonic() + SETTLE_S
    while are_locked() != wanted:
        if time.monotonic() > deadline:
            raise StaysError(f"{what}: the clocks did not follow within {SETTLE_S:g} s; try it by hand: sudo {what}")
        time.sleep(0.1)


@contextlib.contextmanager
def _fan(percent: float) -> Iterator[float]:
    if not 0 <= percent <= 100:
        raise RefusedError(f"fan_speed={percent:g}: wanted 0 to 100 percent")
    files = [p for p in Path("/sys/class/hwmon").glob("hwmon*/pwm1") if _text(p.parent / "name") == "pwmfan"]
    if len(files) != 1:
        raise RefusedError(f"fan_speed={percent:g}: {len(files)} fans are told by the board, wanted one; leave it out")
    before = _number(files[0])
    if before is None:
        raise RefusedError(f"fan_speed={percent:g}: {files[0]} cannot be read, so not be put back; leave it out")
    try:
        _write(files[0], round(percent * 2.55))  # 255 is full speed (Documentation/hwmon/sysfs-interface.rst)
        yield round((_number(files[0]) or 0) / 2.55, 1)
    finally:
        _write(files[0], before)


def _write(path: Path, value: int) -> None:
    try:
        path.write_text(str(value))
    except OSError as error:
        raise RefusedError(f"{path}: {value} was refused ({error.strerror}); run as root") from error
    if _number(path) != value:
        raise RefusedError(f"{path}: wrote {value}, it says {_number(path)}; something else controls it")


def tool(words: Sequence[str], as_root: bool = False, check: bool = True) -> str:
    """What a tool says; RefusedError if it is not there or fails. `as_root` goes through sudo where that needs no
    password."""
    command = [*(["sudo", "-n"] if as_root and os.geteuid() != 0 else []), *words]
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,  # a question ("reboot now?") is answered by nobody, so with no
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TOOL_S,
            env={**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
            check=False,
        )
    except FileNotFoundError:
        raise RefusedError(f"{words[0]}: not found on this board; is it a Jetson with NVIDIA's tools?") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefusedError(f"{shown}: {error}; try it by hand") from error
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode == 0:
        return said
    brief = " ".join(said.split())[:200] or "no word"
    if check:
        raise RefusedError(f"{shown}: status {done.returncode}: {brief}; root is needed: run as root or allow sudo -n")
    return f"{brief} (status {done.returncode})"


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("utf-8", "replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    held_text = _text(path)
    return int(held_text) if held_text and re.fullmatch(r"-?\d{1,18}", held_text) else None
