"""Files and folders that go to a device: what is in them, and one name for the same content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from edgewatt.harness.api import UsageError


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """UsageError for what cannot be read inside."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def content_hash(path: Path) -> str:
    """A hash over names and contents of a file, or of all that a folder holds. UsageError if it cannot be read."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    total = hashlib.sha256()
    with readable(path):
        for file in [path] if path.is_file() else [path, *below(path)]:
            name = file.relative_to(path.parent).as_posix().encode("utf-8", "surrogateescape")
            total.update(len(name).to_bytes(8, "big") + name)
            if file.is_file() or not file.exists():  # a pipe would wait for its writer
                total.update(sha256(file).digest())
    return total.hexdigest()[:32]


def sha256(file: Path) -> Any:
    """The hash object of a file's content; OSError if it cannot be read."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256") if hasattr(hashlib, "file_digest") else _hashed(content)


def below(folder: Path) -> Iterator[Path]:
    """All below a folder, always in the same order; links are followed."""
    for where, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (Path(where, name) for name in sorted([*folders, *files]))


def _hashed(content: IO[bytes]) -> Any:
    total = hashlib.sha256()
    for block in iter(lambda: content.read(1 << 20), b""):
        total.update(block)
    return total
