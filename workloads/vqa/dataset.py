"""The benchmarks by name: opened from their official files, and taken up again from what a run has stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewatt.harness.api import UsageError
from edgewatt.harness.plugins import nearest
from edgewatt.workloads.foreign import shown
from edgewatt.workloads.vqa.benchmark import Dataset
from edgewatt.workloads.vqa.gqa import Gqa
from edgewatt.workloads.vqa.mmbench import Mmbench
from edgewatt.workloads.vqa.mme import Mme
from edgewatt.workloads.vqa.pope import Pope
from edgewatt.workloads.vqa.scienceqa import ScienceQa
from edgewatt.workloads.vqa.scored import measurements
from edgewatt.workloads.vqa.textvqa import TextVqa

_KINDS: dict[str, type[Dataset[Any]]] = {kind.name: kind for kind in (Gqa, Pope, TextVqa, ScienceQa, Mme, Mmbench)}

NAMES = tuple(_KINDS)
METRICS = tuple(metric for kind in _KINDS.values() for metric in kind.metrics)
MAX_NEW_TOKENS: Mapping[str, int] = {name: kind.max_new_tokens for name, kind in _KINDS.items()}  # mobilevlm.md, 7


def open(
    name: str,
    path: Path,
    *,
    split: str = "",
    limit: int | None = None,
    seed: int = 0,
    images_dir: Path | None = None,
    with_pictures: bool = True,
) -> Dataset[Any]:
    """The benchmark `name` from its official files at `path`, a folder or the main file in it.

    Args:
        split: "" is the one that scores are published for.
        limit: ask at most so many questions, drawn without replacement and kept in order (`sampling.drawn`).
        seed: of the draw.
        images_dir: where the pictures lie, if not in the usual folders beside the questions.
        with_pictures: False: only to score answers; pictures are not looked for.

    Raises:
        UsageError: a file or a picture is missing or not as it should be.
    """
    if name not in _KINDS:
        raise UsageError(f"dataset={name!r} is unknown; {nearest(name, NAMES)}")
    kind = _KINDS[name]
    found = kind.read(path, split or kind.default_split).drawn(limit, seed)
    return found.with_pictures(images_dir) if with_pictures else found


def of_json(facts: Mapping[str, Any]) -> Dataset[Any]:
    """The benchmark that `Dataset.as_json` gave, without its pictures; UsageError if it is none."""
    try:
        return _KINDS[facts["name"]].of_json(facts)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"the stored questions are not those of a benchmark ({shown(str(error))}); run it again"
        ) from error


def write_answers(dataset: Dataset[Any], answers: Mapping[str, str], path: Path, model_id: str) -> None:
    """The answers by question id as an answer file (JSON lines) that the official evaluators take."""
    lines = (json.dumps(line) + "\n" for line in dataset.lines(answers, model_id))
    path.write_text("".join(lines), encoding="utf-8")


__all__ = ["MAX_NEW_TOKENS", "METRICS", "NAMES", "Dataset", "measurements", "of_json", "open", "write_answers"]
