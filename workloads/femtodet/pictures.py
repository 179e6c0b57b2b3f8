"""The pictures a run works on: a folder of them, a COCO JSON, a VOC tree, or scenes drawn for want of any.

All of it is untrusted: a file that is no picture is counted and named, and left out or refused; a picture whose size
is not what the ground truth says is refused, since its boxes would lie elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewatt.harness.api import UsageError
from edgewatt.workloads import picture_files, scenes
from edgewatt.workloads.femtodet import ground_truth
from edgewatt.workloads.femtodet.ground_truth import GroundTruth, Image
from edgewatt.workloads.picture_files import Picture, exists, looked_at

_WANTED = "pictures, a COCO JSON or a VOC tree"


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
    if exists(data) and data.is_file():
        _refuse_unused("a COCO JSON", split=split)
        truth = ground_truth.from_coco(data)
        beside = (data.parent / "images", data.parent, data.parent / "JPEGImages", _coco_sibling(data))
        return _of_truth(truth, beside, images_dir, limit, strict)
    if not exists(data) or not data.is_dir():
        raise UsageError(f"data={data}: no such file or folder; wanted a folder of {_WANTED}")
    tree = data.parent if data.name == "Annotations" and any(data.glob("*.xml")) else data
    if (tree / "Annotations").is_dir():
        truth = ground_truth.from_voc(tree, split)
        return _of_truth(truth, (tree / "JPEGImages", tree / "images", tree), images_dir, limit, strict)
    _refuse_unused("a folder of pictures without Annotations", images_dir=images_dir, split=split)
    found, said = picture_files.in_folder(data, limit, strict, _WANTED, also="*.json")
    return Pictures(found, None, said)


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


def _of_truth(
    truth: GroundTruth, beside: Sequence[Path], images_dir: Path | None, limit: int | None, strict: bool
) -> Pictures:
    if images_dir is not None and not images_dir.is_dir():
        raise UsageError(f"images_dir={images_dir}: no such folder; give the folder of the pictures of {truth.source}")
    folders = [images_dir] if images_dir is not None else [f for f in beside if f.is_dir()]

    def place(name: str) -> Path:
        places = [f / name for f in folders]
        return next((p for p in places if os.path.lexists(p)), places[0])

    images = sorted(truth.images, key=lambda image: image.id)
    if not images:
        raise UsageError(f"{truth.source}: lists no images; wanted at least one")
    looked = looked_at({image.id: image.file_name for image in images}, place, limit)
    if not looked.pictures:
        looked_in = " or ".join(map(str, folders))
        raise UsageError(f"{truth.source}: {looked}; looked in {looked_in}: set images_dir to their folder")
    by_id = {image.id: image for image in images}
    sized = []
    for picture in looked.pictures:
        image = by_id[picture.id]
        _check_size(truth, image, picture)
        sized.append(dataclasses.replace(image, width_px=picture.width_px, height_px=picture.height_px))
    truth = truth.of(sized)
    truth.check_boxes()  # again, for the pictures whose size was not stated
    return Pictures(looked.pictures, truth, (*truth.warnings, *looked.warnings(truth.source, strict)))


def _check_size(truth: GroundTruth, image: Image, picture: Picture) -> None:
    stated, real = (image.width_px, image.height_px), (picture.width_px, picture.height_px)
    if any(s is not None and s != r for s, r in zip(stated, real, strict=True)):
        turned = " (after the turn its EXIF orientation asks for)" if stated == real[::-1] else ""
        raise UsageError(
            f"{picture.path}: is {real[0]}x{real[1]} px{turned}, but {truth.source} says {stated[0]}x{stated[1]} for "
            f"image {image.id}; its boxes would lie elsewhere: use the pictures the boxes were drawn on"
        )


def _drawn(limit: int | None, seed: int) -> Pictures:
    found, _ = picture_files.in_folder(scenes.folder(seed), limit, strict=True)
    said = (
        f"no pictures were given: {len(found)} drawn scenes (seed {seed}) stand in for them; nothing is known to be in "
        f"them, so there is no AP. Set data to a folder of {_WANTED}"
    )
    return Pictures(found, None, (said,))
