"""The pictures a run works on: a folder of them, a COCO JSON, a VOC tree, or scenes drawn for want of any.

All of it is untrusted: a file that is no picture is counted and named, and left out or refused; a picture whose size
is not what the ground truth says is refused, since its boxes would lie elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2

from edgewatt.harness.api import UsageError
from edgewatt.workloads.femtodet import cache, ground_truth, scenes
from edgewatt.workloads.femtodet.ground_truth import GroundTruth, Image, shown
from edgewatt.workloads.femtodet.preprocess import decoded

_AT_ONCE = 64  # files looked at before asking again whether there are enough
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
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
class Pictures:
    """The pictures of a run in a fixed order, what is to be found in them (None: not known), and what was left out."""

    pictures: tuple[Picture, ...]
    truth: GroundTruth | None = None
    warnings: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """A digest of all contents, in order."""
        return hashlib.sha256("".join(f"{p.id} {p.sha256}\n" for p in self.pictures).encode()).hexdigest()


def pictures(
    data: Path | None,
    *,
    images_dir: Path | None = None,
    split: str = "",
    limit: int | None = None,
    strict: bool = False,
    seed: int = 0,
) -> Pictures:
    """The first `limit` pictures of `data`, drawn scenes if it is None.

    A folder and a VOC tree are taken by name, a COCO JSON by id, a `split` in the order of its list.

    `images_dir` is where the pictures of a COCO JSON or a VOC tree lie, if not beside it; `split` is a list of the VOC
    tree's ImageSets/Main. With `strict` a file that is missing or no picture is refused instead of left out.
    """
    if data is None:
        _refuse_unused("drawn scenes", images_dir=images_dir, split=split)
        return _drawn(limit, seed)
    if _exists(data) and data.is_file():
        _refuse_unused("a COCO JSON", split=split)
        truth = ground_truth.from_coco(data)
        beside = (data.parent / "images", data.parent, data.parent / "JPEGImages", _coco_sibling(data))
        return _of_truth(truth, beside, images_dir, limit, strict)
    if not _exists(data) or not data.is_dir():
        raise UsageError(f"data={data}: no such file or folder; wanted a folder of pictures, a COCO JSON or a VOC tree")
    tree = data.parent if data.name == "Annotations" and any(data.glob("*.xml")) else data
    if (tree / "Annotations").is_dir():
        truth = ground_truth.from_voc(tree, split)
        return _of_truth(truth, (tree / "JPEGImages", tree / "images", tree), images_dir, limit, strict)
    _refuse_unused("a folder of pictures without Annotations", images_dir=images_dir, split=split)
    return _of_folder(data, limit, strict)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):  # missing, in a loop, too long a name, not to be entered
        return False
    return True


def _refuse_unused(what: str, **given: object) -> None:
    """UsageError for a parameter that would change nothing, though somebody has set it."""
    for key, value in given.items():
        if value:
            raise UsageError(
                f"{key}={value}: has no meaning for {what}; set data to what it belongs to, or leave it out"
            )


def _coco_sibling(path: Path) -> Path:
    """Where COCO itself puts the pictures of annotations/instances_val2017.json: val2017 beside annotations."""
    return path.parent.parent / path.stem.rpartition("_")[2]


def _of_folder(folder: Path, limit: int | None, strict: bool) -> Pictures:
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    subfolders = [p for p in inside if p.is_dir() and p.suffix.lower() not in _SUFFIXES]
    files = [p for p in inside if p not in set(subfolders)]  # a folder called x.jpg is looked at, and said to be none
    if not files:
        raise UsageError(f"{folder}: holds no files; wanted pictures, a COCO JSON or a VOC tree{_hint(folder)}")
    images = [Image(k, p.name) for k, p in enumerate(files, start=1)]
    found, left_out = _looked_at(images, lambda image: folder / image.file_name, limit)
    if not found:
        raise UsageError(f"{folder}: {_in_words(left_out, len(images))}{_hint(folder)}")
    said = _said(folder, left_out, len(images), strict)
    if subfolders:
        named = ", ".join(shown(p.name) for p in subfolders[:_NAMED])
        said += (f"{folder}: folders in it are not looked into: {named}; set data to one of them for its pictures",)
    return Pictures(tuple(found), None, said)


def _hint(folder: Path) -> str:
    """The JSON files or folders in it that were perhaps meant."""
    inside = [*sorted(folder.glob("*.json")), *sorted(p for p in folder.iterdir() if p.is_dir())][:3]
    return f"; did you mean {' or '.join(map(str, inside))}?" if inside else "; put pictures there"


def _of_truth(
    truth: GroundTruth, beside: Sequence[Path], images_dir: Path | None, limit: int | None, strict: bool
) -> Pictures:
    if images_dir is not None and not images_dir.is_dir():
        raise UsageError(f"images_dir={images_dir}: no such folder; give the folder of the pictures of {truth.source}")
    folders = [images_dir] if images_dir is not None else [f for f in beside if f.is_dir()]

    def place(image: Image) -> Path:
        places = [f / image.file_name for f in folders]
        return next((p for p in places if os.path.lexists(p)), places[0])

    images = sorted(truth.images, key=lambda image: image.id)
    if not images:
        raise UsageError(f"{truth.source}: lists no images; wanted at least one")
    found, left_out = _looked_at(images, place, limit)
    if not found:
        looked_in = " or ".join(map(str, folders))
        raise UsageError(
            f"{truth.source}: {_in_words(left_out, len(images))}; looked in {looked_in}: set images_dir to their folder"
        )
    by_id = {image.id: image for image in images}
    sized = []
    for picture in found:
        image = by_id[picture.id]
        _check_size(truth, image, picture)
        sized.append(dataclasses.replace(image, width_px=picture.width_px, height_px=picture.height_px))
    truth = truth.of(sized)
    truth.check_boxes()  # again, for the pictures whose size was not stated
    return Pictures(tuple(found), truth, (*truth.warnings, *_said(truth.source, left_out, len(images), strict)))


def _check_size(truth: GroundTruth, image: Image, picture: Picture) -> None:
    stated, real = (image.width_px, image.height_px), (picture.width_px, picture.height_px)
    if any(s is not None and s != r for s, r in zip(stated, real, strict=True)):
        turned = " (after the turn its EXIF orientation asks for)" if stated == real[::-1] else ""
        raise UsageError(
            f"{picture.path}: is {real[0]}x{real[1]} px{turned}, but {truth.source} says {stated[0]}x{stated[1]} for "
            f"image {image.id}; its boxes would lie elsewhere: use the pictures the boxes were drawn on"
        )


def _drawn(limit: int | None, seed: int) -> Pictures:
    def draw(folder: Path) -> None:
        for k, scene in enumerate(scenes.scenes(seed)):
            # JPEG as from a camera, so that reading it costs what reading a photograph does.
            jpeg = cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            (folder / f"scene_{k:02d}.jpg").write_bytes(jpeg.tobytes())

    folder = cache.made(f"scenes-{scenes.FORM}-{seed}", draw)
    found = _of_folder(folder, limit, strict=True)
    said = (
        f"no pictures were given: {len(found.pictures)} drawn scenes (seed {seed}) stand in for them; nothing is known "
        "to be in them, so there is no AP. Set data to a folder of pictures, a COCO JSON or a VOC tree"
    )
    return dataclasses.replace(found, warnings=(said,))


# ---------------------------------------------------------------------------------------------------------------------
# Looking at files

LeftOut = list[tuple[str, str]]  # name, what is wrong with it


def _looked_at(
    images: Sequence[Image], place: Callable[[Image], Path], limit: int | None
) -> tuple[list[Picture], LeftOut]:
    """The first `limit` images that are pictures, every one of them decoded, and those met on the way that are not."""
    found: list[Picture] = []
    left_out: LeftOut = []
    with _silent_decoders(), ThreadPoolExecutor() as pool:
        for start in range(0, len(images), _AT_ONCE):
            some = images[start : start + _AT_ONCE]
            for image, seen in zip(some, pool.map(lambda i: _look(i.id, place(i)), some), strict=True):
                if limit is not None and len(found) == limit:
                    return found, left_out
                if isinstance(seen, Picture):
                    found.append(seen)
                else:
                    left_out.append((image.file_name, seen))
    return found, left_out


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


def _said(source: Path, left_out: LeftOut, count: int, strict: bool) -> tuple[str, ...]:
    """The warning about files left out, if there are any; UsageError instead if `strict`."""
    if not left_out:
        return ()
    if strict:
        raise UsageError(
            f"{source}: {_in_words(left_out, count)}; mend or remove them, or set strict=false to go without"
        )
    return (f"{source}: {_in_words(left_out, count)}; left out",)


def _in_words(left_out: LeftOut, count: int) -> str:
    named = ", ".join(f"{shown(name)} ({problem})" for name, problem in left_out[:_NAMED])
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    return f"{len(left_out)} of {count} files cannot be used: {named}{more}"
