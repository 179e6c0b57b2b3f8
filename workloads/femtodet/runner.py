"""FemtoDet on the device: reads a picture, runs the network, finds the boxes; all in the agent's process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgewatt.harness.api import Facts, Runner
from edgewatt.workloads.engines.registry import open_engine
from edgewatt.workloads.femtodet import outputs
from edgewatt.workloads.femtodet.detections import Detections, Float32s, detections
from edgewatt.workloads.femtodet.preprocess import fill, read

# What the network gave is kept for `postprocess` alone, for as many pictures as fit; the others take turns with these.
_KEPT_BYTES = 64 << 20


class FemtoDetRunner(Runner):
    """One model and the pictures it is run on, one at a time.

    Params: `engine`, `model` (path of the .onnx file), `size`, `threads`, `provider`, `score_threshold`, `nms_iou`,
    `pictures` (their paths), `ids`, `names`, `classes`, `ground_truth` (path of a file, or None) and `warnings`.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params
        self._paths = [Path(p) for p in params["pictures"]]
        self._raw: dict[int, tuple[tuple[Float32s, ...], Float32s]] = {}
        self._raw_bytes = 0

    def load(self) -> Facts:
        p = self._params
        if p["threads"]:
            cv2.setNumThreads(p["threads"])
        shape = (1, 3, p["size"], p["size"])
        self._engine = open_engine(p["engine"], Path(p["model"]), shape, p["threads"], p["provider"])
        return {**self._engine.facts, "opencv": cv2.__version__, "opencv_threads": cv2.getNumThreads()}

    def run(self, index: int, mark: Any) -> Detections:
        mark("preprocess")
        scale = fill(self._engine.input, read(self._paths[index]))
        mark("detect")
        raw = self._engine.run()
        mark("postprocess")
        found = self._detections(raw, scale)
        self._keep(index, raw, scale)
        return found

    def run_phase(self, phase: str, index: int) -> None:
        if phase == "preprocess":
            fill(self._engine.input, read(self._paths[index]))
        elif phase == "detect":
            self._engine.run()
        elif phase == "postprocess":
            kept = index if index in self._raw else list(self._raw)[index % len(self._raw)]
            self._detections(*self._raw[kept])
        else:
            super().run_phase(phase, index)

    def save(self, found: Mapping[int, Detections], folder: Path) -> None:
        p = self._params
        outputs.write(folder, found)
        about = {k: p[k] for k in ("ids", "names", "classes", "warnings")}
        (folder / outputs.PICTURES).write_text(json.dumps(about), encoding="utf-8")
        if p["ground_truth"] is not None:
            shutil.copyfile(p["ground_truth"], folder / outputs.GROUND_TRUTH)

    def _detections(self, raw: tuple[Float32s, ...], scale: Float32s) -> Detections:
        cls, reg, obj = raw
        p = self._params
        return detections(cls, reg, obj, scale, score_threshold=p["score_threshold"], nms_iou=p["nms_iou"])

    def _keep(self, index: int, raw: tuple[Float32s, ...], scale: Float32s) -> None:
        """A copy of the first raw maps of each picture (the engine writes over its own): some 10 microseconds, once."""
        size = sum(m.nbytes for m in raw)
        if index not in self._raw and (not self._raw or self._raw_bytes + size <= _KEPT_BYTES):
            self._raw[index] = tuple(np.array(m) for m in raw), scale
            self._raw_bytes += size
