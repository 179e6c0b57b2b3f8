"""What a vision-language model is asked in a run: a benchmark's questions, or one question about pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgewatt.harness.api import UsageError
from edgewatt.workloads import cache, picture_files, scenes
from edgewatt.workloads.picture_files import Picture
from edgewatt.workloads.vlm import pictures
from edgewatt.workloads.vqa.question import Question


@dataclass(frozen=True)
class Asked:
    """One item of a run: a question about some pictures (none: about nothing but itself)."""

    id: str
    question: str
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Questions:
    """All items of a run in their order, what was left out, the sizes of all pictures, a digest of their content."""

    items: tuple[Asked, ...]
    warnings: tuple[str, ...] = ()
    sizes_px: Mapping[Path, tuple[int, int]] = field(default_factory=dict)  # width and height

    def check_sizes(self, size_px: int, mode: str) -> None:
        """UsageError if a picture cannot be made a square of `size_px`: better now than at that question's turn."""
        for path, (width_px, height_px) in self.sizes_px.items():
            try:
                pictures.check_size(width_px, height_px, size_px, mode)
            except UsageError as error:
                raise UsageError(f"{path}: {error}") from error

    @property
    def sha256(self) -> str:
        """A digest of all questions and pictures, in order."""
        digest = hashlib.sha256()
        seen: dict[Path, str] = {}
        for item in self.items:
            for path in item.pictures:
                if path not in seen:
                    seen[path] = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{item.id}\0{item.question}\0{' '.join(seen[p] for p in item.pictures)}\n".encode())
        return digest.hexdigest()


def of_pictures(
    data: Path | None, question: str, images_per_question: int, limit: int | None, strict: bool, seed: int
) -> Questions:
    """One question, asked about `images_per_question` pictures at a time; 0: once, about none.

    `data` is a picture or a folder of pictures; None: drawn scenes. Pictures that do not fill a last group are left
    out with a warning.
    """
    if images_per_question == 0:
        if data is not None:
            raise UsageError(f"data={data}: images_per_question=0 asks about no picture; leave one of the two out")
        return Questions((Asked("0", question, ()),))
    most = None if limit is None else limit * images_per_question
    found, warnings = _pictures(data, most, strict, seed)
    paths = [p.path for p in found]
    groups = [tuple(paths[k : k + images_per_question]) for k in range(0, len(paths), images_per_question)]
    if len(groups[-1]) < images_per_question:
        if len(groups) == 1:
            raise UsageError(
                f"images_per_question={images_per_question}: there are {len(found)} pictures; give more of them"
            )
        warnings = (*warnings, f"the last {len(groups[-1])} pictures do not fill a question; left out")
        groups.pop()
    ids = [" ".join(p.name for p in group) for group in groups]
    return Questions(tuple(Asked(i, question, g) for i, g in zip(ids, groups, strict=True)), warnings, _sizes_px(found))


def _pictures(
    data: Path | None, limit: int | None, strict: bool, seed: int
) -> tuple[Sequence[Picture], tuple[str, ...]]:
    """The pictures of a run, and what is to be said of them."""
    if data is None:
        drawn, _ = picture_files.in_folder(scenes.folder(seed), limit, strict=True)
        said = (
            f"no pictures were given: {len(drawn)} drawn scenes (seed {seed}) stand in for them; set data to your own"
        )
        return drawn, (said,)
    if not picture_files.exists(data):
        raise UsageError(f"data={data}: no such file or folder; wanted a picture or a folder of them")
    if data.is_dir():
        return picture_files.in_folder(data, limit, strict)
    if data.suffix.lower() not in picture_files.SUFFIXES:
        raise UsageError(
            f"data={data}: not called as a picture is; wanted {', '.join(picture_files.SUFFIXES)} or a folder of "
            "pictures; for a benchmark set dataset too"
        )
    return _checked({data: data.name}, f"data={data}"), ()


def of_benchmark(questions: Sequence[Question]) -> Questions:
    """The questions of a benchmark; pictures that come inside its file are laid into the cache.

    UsageError if one is no picture: nobody waits for a network to be loaded and then for that question's turn.
    """
    items = tuple(Asked(q.id, q.prompt, _picture(q)) for q in questions)
    names: dict[Path, str] = {}
    for q, item in zip(questions, items, strict=True):
        for path in item.pictures:
            names.setdefault(path, q.image or f"that of question {q.id}")
    return Questions(items, sizes_px=_sizes_px(_checked(names, "the benchmark's pictures")))


def _checked(names: Mapping[Path, str], source: str) -> tuple[Picture, ...]:
    """The pictures in those files; UsageError that names the files that are none."""
    places = dict(zip(names.values(), names, strict=True))
    looked = picture_files.looked_at(dict(enumerate(places)), lambda name: places[name], None)
    if looked.left_out:
        raise UsageError(f"{source}: {looked}; wanted pictures: copy them anew, or ask about others")
    return looked.pictures


def _sizes_px(found: Sequence[Picture]) -> dict[Path, tuple[int, int]]:
    return {p.path: (p.width_px, p.height_px) for p in found}


def _picture(question: Question) -> tuple[Path, ...]:
    if question.picture is None:
        return ()
    if isinstance(question.picture, Path):
        return (question.picture,)
    content = question.picture
    name = hashlib.sha256(content).hexdigest()[:32]
    folder = cache.made(f"picture-{name}", lambda made: (made / "picture").write_bytes(content))
    return (folder / "picture",)
