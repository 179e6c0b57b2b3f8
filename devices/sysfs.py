"""Reading Linux's sysfs under any root, so that a made tree is as good as /sys.

Everything here may be absent, unreadable or nonsense on some machine: readers answer None, and say why when asked.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewatt.harness.api import Device

MOST_W = 2000.0  # no part of a host draws more; a reading above is a wrong unit or a broken sensor
_LONGEST = 4096  # bytes; sysfs attributes are one page at most


def is_here(device: Device) -> bool:
    """Whether the device is this machine, so that its sensors can be read directly: it names its `sysfs` then."""
    return bool(getattr(device, "sysfs", None))


def root(device: Device) -> Path | None:
    """The device's sysfs as a folder on this machine; None for a device that is elsewhere or has none."""
    folder = getattr(device, "sysfs", None)
    return Path(folder) if folder and Path(folder).is_dir() else None


def is_real(folder: Path, mounts: str | None = None) -> bool:
    """Whether a folder lies in a sysfs that a kernel fills (a container may see it anywhere), not in a made tree.

    `mounts` is /proc/self/mounts, unless given.
    """
    held = _read(Path("/proc/self/mounts"), 1 << 20) if mounts is None else mounts
    kinds = {Path(words[1]): words[2] for words in map(str.split, (held or "").splitlines()) if len(words) > 2}
    inside = folder.resolve()
    return next((kinds[p] == "sysfs" for p in (inside, *inside.parents) if p in kinds), False)


def text(path: Path) -> str | None:
    """A file's first page without surrounding blanks; None if it is absent, unreadable or empty."""
    return _read(path, _LONGEST)


def _read(path: Path, most: int) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(most).decode("utf-8", "replace").strip() or None
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The one integer a file holds; None for anything else."""
    held = text(path)
    return int(held) if held is not None and re.fullmatch(r"[+-]?\d{1,20}", held) else None


def folders(parent: Path, pattern: str) -> list[Path]:
    """The folders (or links to folders) of `parent` that match, in natural order: hwmon2 before hwmon10."""
    found = [p for p in parent.glob(pattern) if p.is_dir()]
    return sorted(found, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p.name)])


def why_unreadable(path: Path) -> str | None:
    """What stands in the way of reading a file, in words; None if nothing does."""
    try:
        with path.open("rb") as file:
            file.read(_LONGEST)
    except PermissionError:
        return f"{path} is readable by root only; run as root, or once after each boot: sudo chmod a+r {path}"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    return None


@dataclass(frozen=True)
class Advance:
    """How far a counter went while it was watched: joules within `over_s` seconds; 0 J: it stood still."""

    joules: float
    over_s: float

    @property
    def watts(self) -> float:
        return self.joules / self.over_s

    @property
    def is_sane(self) -> bool:
        return 0 < self.watts <= MOST_W


def advances(
    counters: Mapping[str, Path],
    wraps_at: Mapping[str, int | None],
    *,
    at_least_s: float = 0.02,
    patience_s: float = 1.5,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Advance | None]:
    """How each microjoule counter moves, watched until all move sanely, or for `patience_s` where one does not.

    Patience is longer than the slowest refresh we know of such a counter (1 s), so one that still stands is dead.
    A step looks like too much power when a slow counter refreshes just then; it is given the time to average out.
    None: it could not be read as a number throughout.
    """
    if not counters:
        return {}
    total_uj = dict.fromkeys(counters, 0)
    begin_s = time.monotonic()
    last = {name: number(path) for name, path in counters.items()}
    found: dict[str, Advance | None] = dict.fromkeys(counters)
    pause_s = at_least_s
    while True:
        sleep(pause_s)
        over_s = time.monotonic() - begin_s
        for name, path in counters.items():
            before, now = last[name], number(path)
            if before is None or now is None:
                last[name], found[name] = None, None
                continue
            step, wrap = now - before, wraps_at.get(name)
            if step < 0 and wrap is not None:
                step += wrap
            total_uj[name] += max(step, 0)  # going back without a wrap is a restart: that step tells nothing
            last[name], found[name] = now, Advance(total_uj[name] * 1e-6, over_s)
        waiting = [f for f in found.values() if f is not None and not f.is_sane]
        if not waiting or over_s >= patience_s:
            return found
        pause_s = min(2 * pause_s, max(patience_s - over_s, 1e-3))
