"""A file or folder onto a phone: packed where that is worth it, compared there, whole or not at all."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from edgewatt.devices.android import shell, sync
from edgewatt.devices.android.link import Link
from edgewatt.devices.files import below, sha256
from edgewatt.harness.api import HarnessError, TransientError

WORTH_PACKING = 1 << 20  # bytes: such a file goes over the link as gzip packs it


def push(link: Link, path: Path, home: str, new: str) -> None:
    """A file or folder into the folder `home`, by way of `new`, where it is compared."""
    files = [path] if path.is_file() else [p for p in below(path) if p.is_file()]
    folders = [path.name] if path.is_dir() else []
    folders += [str(p.relative_to(path.parent)) for p in below(path) if p.is_dir()] if path.is_dir() else []
    names = [p.relative_to(path.parent).as_posix() for p in files]
    quoted = shlex.join(f"{new}/{name}" for name in ["", *folders])
    make = f"mkdir -p -- {shlex.quote(str(PurePosixPath(home).parent))} {quoted}"
    made = shell.run(link, f"{make} && {{ command -v gzip || :; }}", b"", 30.0)
    if made.status != 0:
        raise HarnessError(f"{link.name}: {home} cannot be made: {made.why}; name another folder")
    for file, name in zip(files, names, strict=True):
        is_packed = bool(made.text.strip()) and file.stat().st_size >= WORTH_PACKING
        if not (is_packed and _pushed_packed(link, file, f"{new}/{name}")):
            sync.push(link, file, f"{new}/{name}", _mode(file))
    _compare(link, files, [f"{new}/{name}" for name in names])
    # Another one may have been as quick: its copy is as good, and ours is not to end up inside it.
    script = '[ -d "$2" ] || mv "$1" "$2"; rm -rf -- "$2/${1##*/}"; [ -d "$2" ]'
    moved = shell.run(link, f"set -- {shlex.join([new, home])}\n{script}", b"", 30.0)
    if moved.status != 0:
        raise HarnessError(f"{link.name}: {home} cannot be written: {moved.why}")


def _pushed_packed(link: Link, file: Path, remote: str) -> bool:
    """Whether the phone could unpack it."""
    sync.push_packed(link, file, f"{remote}.gz")
    script = 'gzip -dc <"$1.gz" >"$1" && chmod "$2" "$1"; s=$?; rm -f "$1.gz"; [ $s = 0 ]'
    words = shlex.join([remote, f"{_mode(file):o}"])
    return shell.run(link, f"set -- {words}\n{script}", b"", 600.0).status == 0


def _compare(link: Link, files: Sequence[Path], remotes: Sequence[str]) -> None:
    """TransientError if what lies on the phone is not what was sent: by sha256 where it has that, else by size."""
    for start in range(0, len(files), 50):
        part, there = files[start : start + 50], remotes[start : start + 50]
        told = shell.run(link, f"sha256sum {shlex.join(there)}", b"", 600.0)
        if told.status == 0:
            found = [line.split(" ")[0] for line in told.text.splitlines()]
            wanted = [sha256(p).hexdigest() for p in part]
        else:
            told = shell.run(link, f'for f in {shlex.join(there)}; do wc -c <"$f"; done', b"", 600.0)
            found, wanted = told.text.split(), [str(p.stat().st_size) for p in part]
        if found != wanted:
            raise TransientError(f"{link.name}: a file did not arrive as it was sent")


def _mode(file: Path) -> int:
    return 0o755 if os.access(file, os.X_OK) else 0o644
