"""Files of pictures, looked at before a run: every one is decoded, and what is no picture is counted and named."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import shown

Bytes = npt.NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_AT_ONCE = 64  # files looked at before asking again whether there are enough
_NAMED = 10  # how many of the files left out are named in the warning


@dataclass(frozen=True)
class Picture:
    """A file that is known to hold a picture of that size (after turning it by EXIF) and with that content."""

    id: int
    path: Path
    width_px: int
    height_px: int
    sha256: str


@dataclass(frozen=True)
class Looked:
    """What looking at `count` files has found."""

    pictures: tuple[Picture, ...]
    left_out: tuple[tuple[str, str], ...]  # name, what is wrong with it
    count: int

    def __str__(self) -> str:
        """The files that are no pictures, in words."""
        named = ", ".join(f"{shown(name)} ({problem})" for name, problem in self.left_out[:_NAMED])
        more = f" and {len(self.left_out) - _NAMED} more" if len(self.left_out) > _NAMED else ""
        return f"{len(self.left_out)} of {self.count} files cannot be used: {named}{more}"

    def warnings(self, source: Path, strict: bool) -> tuple[str, ...]:
        """The warning about files left out, if there are any; UsageError instead if `strict`."""
        if not self.left_out:
            return ()
        if strict:
            raise UsageError(f"{source}: {self}; mend or remove them, or set strict=false to go without")
        return (f"{source}: {self}; left out",)


def in_folder(
    folder: Path, limit: int | None, strict: bool, wanted: str = "pictures", also: str = ""
) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """The first `limit` pictures of a folder by name, numbered from 1, and what is to be said of the rest.

    `wanted` names what may be given, and `also` is a pattern of files that may be given in the folder's place.
    UsageError if there is no picture in it, or with `strict` if there is a file that is none.
    """
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    subfolders = [p for p in inside if p.is_dir() and p.suffix.lower() not in SUFFIXES]
    files = [p for p in inside if p not in set(subfolders)]  # a folder called x.jpg is looked at, and said to be none
    meant = [*(sorted(folder.glob(also)) if also else ()), *sorted(p for p in folder.iterdir() if p.is_dir())][:3]
    hint = f"; did you mean {' or '.join(map(str, meant))}?" if meant else "; put pictures there"
    if not files:
        raise UsageError(f"{folder}: holds no files; wanted {wanted}{hint}")
    looked = looked_at({k: p.name for k, p in enumerate(files, start=1)}, lambda name: folder / name, limit)
    if not looked.pictures:
        raise UsageError(f"{folder}: {looked}{hint}")
    said = looked.warnings(folder, strict)
    if subfolders:
        named = ", ".join(shown(p.name) for p in subfolders[:_NAMED])
        said += (f"{folder}: folders in it are not looked into: {named}; set data to one of them for its pictures",)
    return looked.pictures, said


def looked_at(names: Mapping[int, str], place: Callable[[str], Path], limit: int | None) -> Looked:
    """The first `limit` of the names at whose place there is a picture, and those met on the way with none.

    Names are by number, and looked at in the order they come in.
    """
    found: list[Picture] = []
    left_out: list[tuple[str, str]] = []
    with _silent_decoders(), ThreadPoolExecutor() as pool:
        for number, seen in _looks(names, place, pool):
            if limit is not None and len(found) == limit:
                break
            if isinstance(seen, Picture):
                found.append(seen)
            else:
                left_out.append((names[number], seen))
    return Looked(tuple(found), tuple(left_out), len(names))


def _looks(
    names: Mapping[int, str], place: Callable[[str], Path], pool: ThreadPoolExecutor
) -> Iterator[tuple[int, Picture | str]]:
    """Each number with its picture, or what is wrong with it."""
    numbers = list(names)
    for start in range(0, len(numbers), _AT_ONCE):
        some = numbers[start : start + _AT_ONCE]
        yield from zip(some, pool.map(lambda n: _look(n, place(names[n])), some), strict=True)


def exists(path: Path) -> bool:
    """Whether there is something there that can be looked at."""
    try:
        path.stat()
    except (OSError, ValueError):  # missing, in a loop, too long a name, not to be entered
        return False
    return True


def decoded(data: bytes) -> Bytes | None:
    """The picture in `data` as BGR (height, width, 3), turned as its EXIF orientation asks; None if it is none."""
    if not data:
        return None
    try:
        picture: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # such as a header that claims more pixels than OpenCV allows
        return None
    return picture  # type: ignore[no-any-return]


def _look(number: int, path: Path) -> Picture | str:
    """The picture in a file, or what is wrong with it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a file"
        data = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return error.strerror or "unreadable"
    picture = decoded(data)
    if picture is None:
        return "not a picture, or damaged" if data else "empty"
    height_px, width_px = picture.shape[:2]
    return Picture(number, path.absolute(), width_px, height_px, hashlib.sha256(data).hexdigest())


@contextlib.contextmanager
def _silent_decoders() -> Iterator[None]:
    """The image libraries' own complaints go nowhere: they write to the process's standard error, past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
