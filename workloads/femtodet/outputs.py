"""What a run leaves behind: every picture's detections, which pictures they were, and what was to be found in them.

Form 1: detections.npz (`item` (n,), `box` (n, 4), `score` (n,), `label` (n,), and `seen`, the items that were run),
pictures.json (`ids`, `names`, `classes`, `warnings`) and, where it is known, ground_truth.json (COCO).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.harness.api import HarnessError
from edgewatt.workloads.femtodet.detections import Detections

DETECTIONS = "detections.npz"
PICTURES = "pictures.json"
GROUND_TRUTH = "ground_truth.json"


@dataclass(frozen=True)
class Outputs:
    """One run's outputs, read back. `truth` is in COCO's form and holds the pictures that were run, no others."""

    found: Mapping[int, Detections]  # by the picture's id
    listed: int  # how many pictures the run was given
    classes: tuple[str, ...]
    warnings: tuple[str, ...]
    truth: dict[str, Any] | None

    def results(self) -> tuple[list[dict[str, Any]], int]:
        """Every detection in COCO's results form, and how many there are of classes the ground truth does not have.

        Category numbers are those of the ground truth, without one the class's index + 1. The latter detections are
        left out of the results: no category number stands for them.
        """
        numbers = {name: k for k, name in enumerate(self.classes, start=1)}
        if self.truth is not None:
            numbers = {c["name"]: c["id"] for c in self.truth["categories"]}
        category = [numbers.get(name) for name in self.classes]
        results, homeless = [], 0
        for image, found in self.found.items():
            corners = found.boxes.astype(np.float64)
            # 1e-4 px, and the 10 digits that tell any two scores above 0.01 apart.
            boxes = np.hstack((corners[:, :2], corners[:, 2:] - corners[:, :2])).round(4).tolist()
            scores = found.scores.astype(np.float64).round(10).tolist()
            for label, box, score in zip(found.labels.tolist(), boxes, scores, strict=True):
                if category[label] is None:
                    homeless += 1
                else:
                    results.append({"image_id": image, "category_id": category[label], "bbox": box, "score": score})
        return results, homeless


def write(folder: Path, found: Mapping[int, Detections]) -> None:
    """Detections by item, into `folder`."""
    items = sorted(found)
    counts = [len(found[i]) for i in items]
    np.savez(
        folder / DETECTIONS,
        seen=np.array(items, np.int64),
        item=np.repeat(np.array(items, np.int64), counts),
        box=np.concatenate([np.empty((0, 4), np.float32), *(found[i].boxes for i in items)]),
        score=np.concatenate([np.empty(0, np.float32), *(found[i].scores for i in items)]),
        label=np.concatenate([np.empty(0, np.int64), *(found[i].labels for i in items)]),
    )


def read(folder: Path) -> Outputs:
    """What the runner saved in `folder`; HarnessError if something is missing or makes no sense."""
    try:
        about = json.loads((folder / PICTURES).read_bytes())
        ids, classes = [int(i) for i in about["ids"]], tuple(map(str, about["classes"]))
        with (folder / DETECTIONS).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            seen, item, box, score, label = (file[k] for k in ("seen", "item", "box", "score", "label"))
        if not (len(item) == len(box) == len(score) == len(label)) or box.shape[1:] != (4,):
            raise ValueError("its arrays do not belong together")
        if len(label) and not 0 <= label.min() <= label.max() < len(classes):
            raise ValueError("a label is no class")
        found = {}
        for i in seen.tolist():
            mine = item == i
            found[ids[i]] = Detections(box[mine], score[mine], label[mine])
        truth = _truth(folder / GROUND_TRUTH, set(found))
    except (OSError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise HarnessError(
            f"{folder}: what the run left cannot be read ({type(error).__name__}: {str(error)[:100]}); "
            "it was changed or cut short: measure again"
        ) from error
    return Outputs(found, len(ids), classes, tuple(map(str, about["warnings"])), truth)


def _truth(path: Path, ids: set[int]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    truth = json.loads(path.read_bytes())
    return {
        "images": [i for i in truth["images"] if i["id"] in ids],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
        "categories": truth["categories"],
    }
