"""Which network a run is about: a published variant with synthetic weights, or what a checkpoint's own files say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgewatt.harness.api import UsageError
from edgewatt.workloads.imp.variants import VARIANTS as IMP
from edgewatt.workloads.mobilevlm.variants import VARIANTS as MOBILEVLM
from edgewatt.workloads.vlm import extra
from edgewatt.workloads.vlm.architecture import Architecture, System, Variant

SYNTHETIC = "synthetic"
AUTO = "auto"
_VARIANTS: Mapping[str, Mapping[str, Variant]] = {"mobilevlm": MOBILEVLM, "imp": IMP}
# What `auto` stands for where no checkpoint says it: the smallest of each.
_SMALLEST = {"mobilevlm": "v1-1.7b", "imp": "v1.5-2b-qwen"}


@dataclass(frozen=True)
class Subject:
    """A network and where its weights are; `folder` None: they are synthetic."""

    variant: str
    architecture: Architecture
    dtype: str  # of the weights as they are published or stored
    folder: Path | None
    tower: Path | None = None  # the folder of the tower's own weights, where one was given

    def artefacts(self) -> dict[str, str]:
        """File of the checkpoint, and of the tower's folder -> sha256; nothing for synthetic weights."""
        if self.folder is None:
            return {}
        inside = [*self.folder.iterdir(), *self.folder.glob("*/config.json")]  # the tower's may lie in its own folder
        named = {f"weights/{p.relative_to(self.folder)}": p for p in inside}
        if self.tower is not None:
            named |= {f"vision_tower/{p.name}": p for p in self.tower.iterdir()}
        return {name: _sha256(path) for name, path in sorted(named.items()) if path.is_file()}


def variants(system: str) -> Mapping[str, Variant]:
    """The published variants of a system by name; KeyError if there is no such system."""
    return _VARIANTS[system]


def chosen(
    system: System, variant: str, weights: str, size_px: int = 0, vision_tower: Path | str | None = None
) -> Subject:
    """The network that the parameters name; UsageError where a checkpoint is none, damaged, or not that variant."""
    if weights == SYNTHETIC:
        if vision_tower is not None:
            raise UsageError(
                f"vision_tower={vision_tower}: synthetic weights are drawn for the tower too; leave it out"
            )
        name = _SMALLEST[system] if variant == AUTO else variant
        published = variants(system)[name]
        made = published.architecture
        return Subject(name, made.at(size_px) if size_px else made, published.dtype, None)
    try:
        from edgewatt.workloads.vlm import checkpoint  # torch: not wanted where no weights are read
    except ImportError as error:
        raise extra.missing(error) from error
    tower = None if vision_tower is None else Path(vision_tower)
    opened = checkpoint.open(weights, system, tower)
    made = opened.architecture()
    if size_px and size_px != made.vision.image_px:
        raise UsageError(
            f"size={size_px}: {opened.folder} was trained for pictures of {made.vision.image_px} pixels, and its "
            "position table is not stretched; leave size out, or give a checkpoint of that size"
        )
    # Imp v1 and v1.5 with Phi-2 have the same shape: only whoever has the files knows which they are.
    alike = [v.name for v in variants(system).values() if _shape(v.architecture) == _shape(made)]
    if variant != AUTO and variant not in alike:
        said = f"has the shape of {' or '.join(alike)}" if alike else "has the shape of no published one"
        raise UsageError(f"variant={variant}: the checkpoint {opened.folder} {said}; leave variant out")
    return Subject(variant if variant != AUTO else " or ".join(alike), made, opened.dtype, opened.folder, tower)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _shape(made: Architecture) -> tuple[object, ...]:
    """All but what no source told us of some published checkpoints: their own config.json is right about these."""
    return replace(made.text, eps=0.0, positions=0), made.projector, made.vision
