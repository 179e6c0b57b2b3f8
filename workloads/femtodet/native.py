"""FemtoDet where the device only runs graphs on tensors: pictures become tensors here, and its raw maps boxes here."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.harness.api import HarnessError
from edgewatt.workloads import cache
from edgewatt.workloads.engines import tensors
from edgewatt.workloads.femtodet import outputs
from edgewatt.workloads.femtodet.detections import Float32s, detections
from edgewatt.workloads.femtodet.preprocess import fill, read
from edgewatt.workloads.picture_files import Picture

PHASES = ("detect",)
SAID = (
    "pictures were fitted and boxes found on the host, not on the device: latency, throughput and energy are the "
    "network's alone"
)
_INPUTS, _SCALES = "input.bin", "scales.npy"
_FORM = 1  # to be raised when `preprocess.fill` gives other numbers for the same picture


def inputs(pictures: Sequence[Picture], size_px: int) -> tuple[Path, Path]:
    """Files with what the network takes: float32 (n, 3, size, size), and the scale factors (n, 4); made once."""
    contents = "".join(f"{p.sha256}\n" for p in pictures)
    digest = hashlib.sha256(f"{_FORM} {size_px}\n{contents}".encode()).hexdigest()[:16]

    def make(folder: Path) -> None:
        one = np.empty((1, 3, size_px, size_px), np.float32)
        scales = np.empty((len(pictures), 4), np.float32)
        with (folder / _INPUTS).open("wb") as file:
            for k, picture in enumerate(pictures):
                scales[k] = fill(one, read(picture.path))
                file.write(one.tobytes())
        np.save(folder / _SCALES, scales)

    made = cache.made(f"tensors-{digest}", make)
    return made / _INPUTS, made / _SCALES


def finish(folder: Path, scales: Path, params: Mapping[str, Any]) -> None:
    """The raw maps in `folder` become detections and what else `outputs.read` wants; the maps are removed.

    `params` has `score_threshold`, `nms_iou`, `ids`, `names`, `classes`, `warnings`, and `ground_truth` (path or None).
    """
    saved = tensors.read(folder)
    cls, reg, obj = _maps(saved.tensors, len(params["classes"]), folder)
    scale_of: Float32s = np.load(scales)
    thresholds = {k: params[k] for k in ("score_threshold", "nms_iou")}
    found = {
        item: detections(cls[k][None], reg[k][None], obj[k][None], scale_of[item], **thresholds)
        for k, item in enumerate(saved.items)
    }
    saved.remove()
    outputs.write(folder, found)
    about = {k: params[k] for k in ("ids", "names", "classes", "warnings")}
    (folder / outputs.PICTURES).write_text(json.dumps(about), encoding="utf-8")
    if params["ground_truth"] is not None:
        shutil.copyfile(params["ground_truth"], folder / outputs.GROUND_TRUTH)


def _maps(found: Mapping[str, Any], classes: int, folder: Path) -> tuple[Float32s, Float32s, Float32s]:
    """The class, box and object maps, (n, channels, h, w) each, in the order the graph gives them."""
    maps = [m for m in found.values() if m.ndim == 5 and m.shape[1] == 1]
    if [m.shape[2] for m in maps] != [classes, 4, 1]:
        shapes = ", ".join(f"{name} {m.shape[1:]}" for name, m in found.items())
        raise HarnessError(f"{folder}: the graph gave {shapes}; wanted maps of {classes}, 4 and 1 channels")
    cls, reg, obj = (np.asarray(m[:, 0], np.float32) for m in maps)
    return cls, reg, obj
