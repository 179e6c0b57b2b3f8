"""What is to be found in pictures: a COCO JSON or a VOC tree, read as untrusted input and checked whole.

Boxes are kept as they are written: one that reaches beyond its picture by up to 1 px (rounding) passes unclipped, so
that pycocotools makes the same of the file itself. Everything else that is wrong is a UsageError of one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard
from xml.etree import ElementTree

from edgewatt.harness.api import UsageError
from edgewatt.harness.plugins import nearest
from edgewatt.workloads.femtodet.variants import VARIANTS, VOC_CLASSES, Variant
from edgewatt.workloads.foreign import safe_name, shown

OUTSIDE_PX = 1.0  # how far a box may reach beyond its picture: rounding, and VOC's pixels that count from 1


@dataclass(frozen=True)
class Image:
    """One picture as the ground truth names it; a size of None is not stated."""

    id: int
    file_name: str
    width_px: int | None = None
    height_px: int | None = None


@dataclass(frozen=True)
class Box:
    """One object; `place` says where in the source it is written."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height in pixels
    area: float
    is_crowd: bool
    is_difficult: bool
    place: str


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a set of pictures; `categories` maps the source's numbers to names."""

    source: Path
    images: tuple[Image, ...]
    boxes: tuple[Box, ...]
    categories: Mapping[int, str]
    warnings: tuple[str, ...] = ()

    def of(self, images: Collection[Image]) -> GroundTruth:
        """The same for some of the pictures only, with whatever sizes they have meanwhile been found to have."""
        ids = {i.id for i in images}
        return dataclasses.replace(self, images=tuple(images), boxes=tuple(b for b in self.boxes if b.image_id in ids))

    def in_coco_form(self) -> dict[str, Any]:
        """The same as pycocotools takes it."""
        return {
            "images": [
                {"id": i.id, "file_name": i.file_name, "width": i.width_px, "height": i.height_px} for i in self.images
            ],
            "annotations": [
                {"id": b.id, "image_id": b.image_id, "category_id": b.category_id, "bbox": list(b.bbox)}
                | {"area": b.area, "iscrowd": int(b.is_crowd), "difficult": int(b.is_difficult)}
                for b in self.boxes
            ],
            "categories": [{"id": k, "name": name} for k, name in self.categories.items()],
        }

    def check_boxes(self) -> None:
        """UsageError with the place of the first box that lies outside its picture, as far as sizes are known."""
        images = {i.id: i for i in self.images}
        for box in self.boxes:
            image = images[box.image_id]
            if image.width_px is None or image.height_px is None:
                continue
            x, y, w, h = box.bbox
            beyond = max(-x, -y, x + w - image.width_px, y + h - image.height_px)
            if beyond > OUTSIDE_PX:
                raise UsageError(
                    f"{self.source}: {box.place}: the box {[x, y, w, h]} reaches {beyond:.6g} px out of "
                    f"{shown(image.file_name)} ({image.width_px}x{image.height_px}); boxes are [x, y, width, height] "
                    "in pixels of the picture: correct or remove it"
                )


def fitting_variant(asked: str, truth: GroundTruth | None) -> Variant:
    """The variant whose classes the ground truth names; `asked` is a variant's name or "auto".

    "auto" is voc where nothing says otherwise. UsageError where the categories do not fit.
    """
    if asked != "auto" and asked not in VARIANTS:
        raise UsageError(f"variant={asked!r} is unknown; {nearest(asked, ('auto', *VARIANTS))}")
    names = set(truth.categories.values()) if truth else set()
    fitting = [v for v in VARIANTS.values() if names <= set(v.classes)]
    if truth is not None and not fitting:
        _refuse_categories(truth)
    if asked == "auto":
        return fitting[0]
    if truth is not None and VARIANTS[asked] not in fitting:
        foreign = sorted(names - set(VARIANTS[asked].classes))
        raise UsageError(
            f"{truth.source}: variant={asked} does not know {_listed(foreign)}; "
            f"set variant={fitting[0].name} or variant=auto"
        )
    return VARIANTS[asked]


def _refuse_categories(truth: GroundTruth) -> None:
    """Says which categories belong to no class list."""
    known = {name for v in VARIANTS.values() for name in v.classes}
    unknown = {k: name for k, name in truth.categories.items() if name not in known}
    if unknown:
        number, name = next(iter(unknown.items()))
        raise UsageError(
            f"{truth.source}: {len(unknown)} unknown categories, the first {shown(name)} (id {number}); wanted names "
            f"of VOC's 20 or COCO's 80 classes: {nearest(name, known) if len(name) < 50 else 'rename or remove them'}"
        )
    foreign = [min(set(truth.categories.values()) - set(v.classes)) for v in VARIANTS.values()]
    raise UsageError(
        f"{truth.source}: the categories mix the names of two class lists ({_listed(foreign)}); use the names of one: "
        "VOC's 20 or COCO's 80"
    )


# ---------------------------------------------------------------------------------------------------------------------
# COCO


def from_coco(path: Path) -> GroundTruth:
    """The ground truth of a COCO JSON file (instances: images, annotations, categories)."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a readable COCO JSON") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: is not JSON ({str(error)[:100]}); wanted a folder of pictures, a COCO JSON or a VOC tree"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(k), list) for k in ("images", "annotations", "categories")
    ):
        has = f"an object with {_listed(list(content)) or 'nothing'}" if isinstance(content, dict) else "no object"
        raise UsageError(f"{path}: is {has}; wanted a COCO JSON: lists of images, annotations and categories")
    reader = _Coco(path)
    images = tuple(reader.images(content["images"]))
    categories = reader.categories(content["categories"])
    boxes = tuple(reader.boxes(content["annotations"], {i.id for i in images}, categories))
    return _checked(_numbered(GroundTruth(path, images, boxes, categories)))


def _checked(truth: GroundTruth) -> GroundTruth:
    truth.check_boxes()
    return truth


def _numbered(truth: GroundTruth) -> GroundTruth:
    """Annotation numbers from 1, if there is a 0: pycocotools takes a match with number 0 for no match."""
    if all(b.id != 0 for b in truth.boxes):
        return truth
    return dataclasses.replace(
        truth,
        boxes=tuple(dataclasses.replace(b, id=k) for k, b in enumerate(truth.boxes, start=1)),
        warnings=(
            f"{truth.source}: annotation id 0 is one that pycocotools never counts as found; AP was computed with "
            "annotations renumbered from 1, as in the run's ground_truth.json",
        ),
    )


@dataclass(frozen=True)
class _Coco:
    """The parts of a COCO JSON, each value checked before it is used."""

    path: Path

    def images(self, entries: Sequence[Any]) -> Iterator[Image]:
        seen: set[int] = set()
        for k, entry in enumerate(entries):
            number = self._id(entry, f"images[{k}]", seen)
            place = f"image {number}"
            yield Image(
                number,
                safe_name(self.path, place, entry.get("file_name")),
                self._size(entry, "width", place),
                self._size(entry, "height", place),
            )

    def categories(self, entries: Sequence[Any]) -> dict[int, str]:
        seen: set[int] = set()
        found: dict[int, str] = {}
        for k, entry in enumerate(entries):
            number = self._id(entry, f"categories[{k}]", seen)
            name = entry.get("name")
            if not isinstance(name, str) or name in found.values():
                problem = "has no name" if not isinstance(name, str) else f"repeats the name {shown(name)}"
                raise self._wrong(f"category {number}", f"{problem}; wanted one category for each class name")
            found[number] = name
        return found

    def boxes(self, entries: Sequence[Any], images: set[int], categories: Mapping[int, str]) -> Iterator[Box]:
        seen: set[int] = set()
        for k, entry in enumerate(entries):
            number = self._id(entry, f"annotations[{k}]", seen)
            place = f"annotation {number}"
            image, category, bbox = entry.get("image_id"), entry.get("category_id"), entry.get("bbox")
            if not _is_whole(image) or image not in images:
                raise self._wrong(place, f"its image_id {shown(image)} is no image of the file; correct or remove it")
            if not _is_whole(category) or category not in categories:
                raise self._wrong(
                    place, f"its category_id {shown(category)} is no category of the file; correct or remove it"
                )
            if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
                raise self._wrong(place, f"its bbox is {shown(bbox)}; wanted four numbers [x, y, width, height]")
            x, y, w, h = map(float, bbox)
            if w <= 0 or h <= 0:
                raise self._wrong(place, f"its box {shown(bbox)} has no area; wanted a width and height above 0")
            area = entry.get("area", w * h)
            if not _is_number(area) or area < 0:
                raise self._wrong(place, f"its area is {shown(area)}; wanted a number of square pixels, or no area")
            crowd, difficult = (self._mark(entry, key, place) for key in ("iscrowd", "difficult"))
            yield Box(number, image, category, (x, y, w, h), float(area), crowd, difficult, place)

    def _id(self, entry: Any, place: str, seen: set[int]) -> int:
        """The entry's own number, which nothing before it may have."""
        if not isinstance(entry, dict):
            raise self._wrong(place, f"is {shown(entry)}; wanted an object with an id")
        number = entry.get("id")
        if not _is_whole(number):
            raise self._wrong(place, f"its id is {shown(number)}; wanted a whole number")
        if number in seen:
            raise self._wrong(place, f"the id {number} was used before; every id must be its own: renumber one of them")
        seen.add(number)
        return number

    def _size(self, entry: Mapping[str, Any], key: str, place: str) -> int | None:
        value = entry.get(key)
        if value is None:
            return None
        if not _is_number(value) or value != int(value) or value < 1:
            raise self._wrong(place, f"its {key} is {shown(value)}; wanted a whole number of pixels, or no {key}")
        return int(value)

    def _mark(self, entry: Mapping[str, Any], key: str, place: str) -> bool:
        value = entry.get(key, 0)
        if value not in (0, 1):
            raise self._wrong(place, f"its {key} is {shown(value)}; wanted 0 or 1")
        return bool(value)

    def _wrong(self, place: str, problem: str) -> UsageError:
        return UsageError(f"{self.path}: {place}: {problem}")


# ---------------------------------------------------------------------------------------------------------------------
# VOC


def from_voc(folder: Path, split: str = "") -> GroundTruth:
    """The ground truth of a VOC tree: Annotations/*.xml, or those that ImageSets/Main/<split>.txt lists.

    Pictures, boxes and categories are numbered from 1: by name, in that order, and in the order of VOC's class list.
    """
    annotations = folder / "Annotations"
    files = _listed_files(folder, split) if split else sorted(annotations.glob("*.xml"))
    if not files:
        raise UsageError(f"{annotations}: holds no .xml file; wanted one for each picture")
    numbers = {name: k for k, name in enumerate(VOC_CLASSES, start=1)}
    images: list[Image] = []
    boxes: list[Box] = []
    for path in files:
        root = _parsed(path)
        number = len(images) + 1
        name = root.findtext("filename") or f"{path.stem}.jpg"
        width, height = (_text_number(path, "size", root.find("size"), key, None) for key in ("width", "height"))
        # 0x0 stands in files whose writer did not know the size.
        images.append(
            Image(number, safe_name(path, "filename", name), int(width or 0) or None, int(height or 0) or None)
        )
        for k, thing in enumerate(root.findall("object"), start=1):
            boxes.append(_voc_box(path, f"{path.name}, object {k}", thing, len(boxes) + 1, number, numbers))
    return _checked(GroundTruth(folder, tuple(images), tuple(boxes), {k: name for name, k in numbers.items()}))


def _voc_box(
    path: Path, place: str, thing: ElementTree.Element, number: int, image: int, known: Mapping[str, int]
) -> Box:
    name = (thing.findtext("name") or "").strip()
    if name not in known:
        raise UsageError(
            f"{path}: {place}: unknown category {shown(name)}; wanted one of the 20 VOC classes: "
            f"{nearest(name, known) if len(name) < 50 else 'rename or remove it'}"
        )
    corners = (_text_number(path, place, thing.find("bndbox"), key) for key in ("xmin", "ymin", "xmax", "ymax"))
    x1, y1, x2, y2 = (float(c or 0) for c in corners)
    if x2 <= x1 or y2 <= y1:
        raise UsageError(
            f"{path}: {place} ({name}): the box {[x1, y1, x2, y2]} has no area; wanted xmin < xmax and ymin < ymax"
        )
    difficult = _text_number(path, place, thing, "difficult", 0.0)
    # VOC's pixels count from 1, ours from 0.
    bbox = (x1 - 1, y1 - 1, x2 - x1, y2 - y1)
    return Box(number, image, known[name], bbox, bbox[2] * bbox[3], False, difficult == 1, place)


def _listed_files(folder: Path, split: str) -> list[Path]:
    names = folder / "ImageSets" / "Main" / f"{safe_name(folder, 'split', split)}.txt"
    try:
        stems = [line.split()[0] for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        lists = sorted(p.stem for p in names.parent.glob("*.txt"))
        raise UsageError(
            f"{names}: no such list of pictures; set split to one of: {_listed(lists) or 'none there, leave it out'}"
        ) from error
    files = [folder / "Annotations" / f"{safe_name(names, 'line', stem)}.xml" for stem in stems]
    for path in files:
        if not path.is_file():
            raise UsageError(f"{names}: lists {path.stem}, which has no {path}; add it, or set another split")
    return files


def _parsed(path: Path) -> ElementTree.Element:
    try:
        data = path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities can blow a small file up to fill the memory
            raise UsageError(f"{path}: declares a document type, which VOC files do not; remove the declaration")
        root = ElementTree.fromstring(data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); make it readable or remove it") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise UsageError(f"{path}: is not XML ({str(error)[:100]}); wanted a VOC annotation") from error
    if root.tag != "annotation":
        raise UsageError(f"{path}: its root is {shown(root.tag)}; wanted a VOC annotation, whose root is <annotation>")
    return root


_NEEDED = object()


def _text_number(
    path: Path, place: str, parent: ElementTree.Element | None, key: str, default: Any = _NEEDED
) -> float | None:
    text = parent.findtext(key) if parent is not None else None
    if text is None:
        if default is _NEEDED:
            raise UsageError(f"{path}: {place}: has no {key}; wanted a bndbox with xmin, ymin, xmax and ymax")
        return default  # type: ignore[no-any-return]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{path}: {place}: its {key} is {shown(text)}; wanted a number")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Both


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(shown, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
