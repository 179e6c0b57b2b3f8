"""A run's files, written whole or not at all, whoever is killed and whenever.

    .writing/ID.lock    held (flock) by the process that writes run ID; the kernel lets go of it when that process ends
    .writing/ID/        what it has written so far; renamed into place when complete
    traces/ID/, outputs/ID/    in place; the run exists once the database says so

A lock file that nobody holds was left behind by a writer that died. What it left is removed, unless the database has
the run. Where locks do not work (Windows, some network file systems), nothing is ever taken for left behind.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgewatt.harness.api import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WRITING = ".writing"
UNSETTLED = "unsettled"
PLACES = ("traces", "outputs")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a run: it names folders
PATIENCE_S = 5.0  # how long somebody who tidies up may hold a lock


@contextmanager
def claimed(folder: Path, run_id: str) -> Iterator[Path]:
    """An empty folder to write a run's files into, gone when the block ends, with the claim on that id.

    With a file UNSETTLED in it, folder and claim stay as if we had died here: whoever opens the store next decides.
    UsageError if another process is writing that very run.
    """
    if not NAME.fullmatch(run_id):
        raise UsageError(f"run {run_id!r}: not a name for a run; wanted letters, digits, dots and dashes, at most 100")
    writing = folder / WRITING
    writing.mkdir(exist_ok=True)
    lock = writing / f"{run_id}.lock"
    deadline = time.monotonic() + PATIENCE_S
    while (held := _held(lock)) is None:
        if time.monotonic() > deadline:
            raise UsageError(f"run {run_id}: another process is writing it into {folder}; wait for it")
        time.sleep(0.02)
    try:
        temporary = writing / run_id
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
    finally:
        if (writing / run_id / UNSETTLED).exists():
            os.close(held)
        else:
            _let_go(writing, run_id, held)


@contextmanager
def abandoned(folder: Path, run_id: str) -> Iterator[bool]:
    """Whether the writer of `run_id` is surely dead; if so, its claim is held meanwhile and removed afterwards."""
    held = _held(folder / WRITING / f"{run_id}.lock") if fcntl else None
    if held is None or not _is_locked(held):
        if held is not None:
            os.close(held)
        yield False
        return
    is_settled = False
    try:
        yield True
        is_settled = True
    finally:
        if is_settled:
            _let_go(folder / WRITING, run_id, held)
        else:
            os.close(held)


def claims(folder: Path) -> list[str]:
    """The runs being written, or left half-written, in no order."""
    try:
        return [p.name[: -len(".lock")] for p in (folder / WRITING).iterdir() if p.name.endswith(".lock")]
    except FileNotFoundError:
        return []


def put_in_place(temporary: Path, folder: Path, run_id: str) -> None:
    """What was written into `temporary` becomes `traces/ID` and `outputs/ID`, on disk before this returns."""
    for place in PLACES:
        if (temporary / place).is_dir():
            _sync_tree(temporary / place)
            (folder / place).mkdir(exist_ok=True)
            # Somebody died here before, and his lock is gone: ours holds now, and the database does not know the run.
            shutil.rmtree(folder / place / run_id, ignore_errors=True)
            (temporary / place).rename(folder / place / run_id)
            _sync(folder / place)
    _sync(folder)


def remove(folder: Path, run_id: str) -> None:
    """The files of a run that the database does not have."""
    for place in PLACES:
        shutil.rmtree(folder / place / run_id, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _held(lock: Path) -> int | None:
    """The lock file, open and locked; None while somebody else has it."""
    while True:
        held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if fcntl is None:
            return held
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            return None
        except OSError:
            return held  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), lock.stat()):
                return held
        os.close(held)  # its owner removed it just before we had it: a lock on nothing


def _is_locked(held: int) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _let_go(writing: Path, run_id: str, held: int) -> None:
    shutil.rmtree(writing / run_id, ignore_errors=True)
    with suppress(OSError):
        (writing / f"{run_id}.lock").unlink()  # before the lock is let go of, so that nobody locks a file that goes
    os.close(held)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """On disk, not only in the kernel's memory."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
