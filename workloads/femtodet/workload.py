"""FemtoDet object detection (Tu et al., ICCV 2023, arXiv 2301.06719)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgewatt.harness.api import Device, Flag, HarnessError, Job, Measurement, Score, UsageError, Workload
from edgewatt.harness.flags import DRAWN_SCENES, SYNTHETIC_WEIGHTS
from edgewatt.harness.plugins import nearest
from edgewatt.workloads import cache
from edgewatt.workloads.engines.registry import ENGINES
from edgewatt.workloads.femtodet import checkpoint, graph, native, outputs, quality
from edgewatt.workloads.femtodet.fold import folded
from edgewatt.workloads.femtodet.ground_truth import GroundTruth, fitting_variant
from edgewatt.workloads.femtodet.pictures import pictures
from edgewatt.workloads.picture_files import Picture

SYNTHETIC = "synthetic"
PHASES = ("preprocess", "detect", "postprocess")


@dataclass(frozen=True)
class FemtoDet(Workload):
    """Detect objects in every picture of `data`, one at a time, at `size` x `size` pixels."""

    name: ClassVar[str] = "femtodet"

    data: Path | None = None  # a folder of pictures, a COCO JSON or a VOC tree; None: drawn scenes
    variant: str = "auto"  # voc (20 classes), coco_large (80), or auto: by the ground truth's categories, else voc
    size: int = 416  # side of the network's input in pixels, a multiple of 32
    weights: str = SYNTHETIC  # a checkpoint's path, or "synthetic": drawn from `seed`
    engine: str = "onnxruntime"
    threads: int = 0  # 0: as many as there are cores
    provider: str = "cpu"
    score_threshold: float = 0.01
    nms_iou: float = 0.65  # a box that overlaps a better one of its class by more is dropped
    images_dir: Path | None = None  # where the pictures of a COCO JSON or VOC tree lie, if not beside it
    split: str = ""  # a list in the VOC tree's ImageSets/Main, such as "test"; "": every annotation
    limit: int | None = None  # the first so many pictures only
    strict: bool = False  # refuse files that are missing or no picture, instead of leaving them out
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size % 32 or not 32 <= self.size <= 2048:
            below = min(2048, max(32, self.size // 32 * 32))
            raise UsageError(f"size={self.size}: wanted a multiple of 32 from 32 to 2048, such as {below}")
        for key in ("score_threshold", "nms_iou"):
            if not 0 <= getattr(self, key) <= 1:
                raise UsageError(f"{key}={getattr(self, key)}: wanted a number from 0 to 1")
        if self.engine not in ENGINES:
            raise UsageError(f"engine={self.engine!r} is unknown; {nearest(self.engine, ENGINES)}")
        if not 0 <= self.threads <= 1024:
            raise UsageError(f"threads={self.threads}: wanted 1 to 1024, or 0 for as many as there are cores")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit={self.limit}: wanted at least 1 picture; leave limit out to use all")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed={self.seed}: wanted a whole number from 0 to 2**63 - 1")

    def prepare(self, device: Device) -> Job:
        chosen = pictures(
            self.data,
            images_dir=self.images_dir,
            split=self.split,
            limit=self.limit,
            strict=self.strict,
            seed=self.seed,
        )
        variant = fitting_variant(self.variant, chosen.truth)
        if self.weights == SYNTHETIC:
            state = checkpoint.synthetic(variant, self.seed)
        else:
            state = checkpoint.load(Path(self.weights), variant)
        model = graph.write(cache.home(), folded(state, variant), variant)
        artefacts = {f"model/{p.name}": _sha256(p) for p in sorted(model.parent.iterdir()) if p.is_file()}
        artefacts["pictures"] = chosen.sha256
        truth = None if chosen.truth is None else _truth_file(chosen.truth)
        if truth is not None:
            artefacts["ground_truth"] = _sha256(truth)
        about = {
            "score_threshold": self.score_threshold,
            "nms_iou": self.nms_iou,
            "ids": [p.id for p in chosen.pictures],
            "names": [p.path.name for p in chosen.pictures],
            "classes": list(variant.classes),
            "warnings": list(chosen.warnings),
            "ground_truth": truth,
        }
        home = f"{device.put(model.parent)}/{model.name}"
        if device.agent_kind == "native":
            return self._on_tensors(device, home, chosen.pictures, about, artefacts)
        return Job(
            runner="edgewatt.workloads.femtodet.runner:FemtoDetRunner",
            params={
                "engine": self.engine,
                "model": home,
                "size": self.size,
                "threads": self.threads,
                "provider": self.provider,
                "pictures": [device.put(p.path) for p in chosen.pictures],
                **about,
                "ground_truth": None if truth is None else device.put(truth),
            },
            item_count=len(chosen.pictures),
            item_phases=PHASES,
            isolate=PHASES,
            artefacts=artefacts,
        )

    def _on_tensors(
        self, device: Device, model: str, found: Sequence[Picture], about: dict[str, Any], artefacts: dict[str, str]
    ) -> Job:
        """The job of an agent that knows graphs and tensors only: what comes before and after is done here."""
        if self.engine != "onnxruntime":
            raise UsageError(f"engine={self.engine!r}: {device.name} runs graphs with onnxruntime alone; leave it out")
        tensors, scales = native.inputs(found, self.size)
        about = {**about, "warnings": [*about["warnings"], native.SAID]}
        shape = [1, 3, self.size, self.size]
        return Job(
            runner="native:onnxruntime",
            params={
                "model": model,
                "threads": self.threads,
                "provider": self.provider,
                "inputs": [{"name": "input", "path": device.put(tensors), "shape": shape, "type": "float32"}],
                "dimensions": {"height": self.size, "width": self.size},
            },
            item_count=len(found),
            item_phases=native.PHASES,
            isolate=native.PHASES,
            artefacts=artefacts,
            finish=lambda folder: native.finish(folder, scales, about),
        )

    def score(self, outputs_folder: Path, into: Path) -> Score:
        """COCO's and VOC's average precision, where the ground truth is known.

        Writes detections.json (COCO results) and, with ground truth, ground_truth.json (COCO, the pictures that were
        run): pycocotools makes the same `ap` of the two.
        """
        try:
            left = outputs.read(outputs_folder)
        except HarnessError as error:
            return Score(warnings=(f"no detections and no AP: {error}",))
        warnings = list(left.warnings)
        results, homeless = left.results()
        files = {"detections.json": _write(into / "detections.json", results)}
        measurements: tuple[Measurement, ...] = ()
        if left.truth is not None:
            files["ground_truth.json"] = _write(into / "ground_truth.json", left.truth)
            measurements = quality.measurements(left.truth, results, self.seed)
            if not measurements:
                warnings.append("there is no object in the ground truth of the pictures that were run, so no AP")
            if homeless:
                warnings.append(f"{homeless} detections are of classes that the ground truth does not have; left out")
        if len(left.found) < left.listed:
            warnings.append(
                f"{len(left.found)} of {left.listed} pictures were run: detections and AP are of these; set limit to "
                "ask for no more than there is time for"
            )
        return Score(measurements, (), tuple(warnings), files)

    def flags(self) -> Sequence[Flag]:
        found = []
        if self.weights == SYNTHETIC:
            detail = f"the weights are random (seed {self.seed}): accuracy means nothing; set weights to a checkpoint"
            found.append(Flag(SYNTHETIC_WEIGHTS, quality.METRICS if self.data else (), detail))
        if self.data is None:
            detail = f"scenes drawn from seed {self.seed}, without ground truth; set data to your own pictures"
            found.append(Flag(DRAWN_SCENES, (), detail))
        return tuple(found)


def _truth_file(truth: GroundTruth) -> Path:
    """The ground truth as a file in the cache, named by content."""
    text = json.dumps(truth.in_coco_form())
    name = f"truth-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    made = cache.made(name, lambda folder: (folder / outputs.GROUND_TRUTH).write_text(text, encoding="utf-8"))
    return made / outputs.GROUND_TRUTH


def _write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
