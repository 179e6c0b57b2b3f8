"""POPE (Li et al., EMNLP 2023): is there such an object in the picture? In three categories of absent objects.

Rules: LLaVA's llava/eval/eval_pope.py. It pairs answers with labels by their position in the category, not by id. The
mean F1 of the three categories is what LLaVA's tables call POPE; it is added here, as the evaluator prints none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgewatt.harness.api import Floats, UsageError
from edgewatt.workloads.foreign import shown
from edgewatt.workloads.vqa import intervals, reading
from edgewatt.workloads.vqa.benchmark import Dataset, mean
from edgewatt.workloads.vqa.question import Answer, Question
from edgewatt.workloads.vqa.scored import Metric, Scored

CATEGORIES = ("adversarial", "popular", "random")
_CELLS = ("TP", "FP", "TN", "FN")


@dataclass(frozen=True)
class PopeQuestion(Question):
    """A question of a category; whether the object is there is the label at its place. None: there is no such label."""

    category: str
    is_there: bool | None


@dataclass(frozen=True)
class Pope(Dataset[PopeQuestion]):
    """LLaVA's llava_pope_test.jsonl, with POPE's own annotations coco/coco_pope_<category>.json."""

    name: ClassVar[str] = "pope"
    metrics: ClassVar[tuple[str, ...]] = ("pope_f1", "pope_accuracy")
    max_new_tokens: ClassVar[int] = 128
    default_split: ClassVar[str] = ""
    image_folders: ClassVar[tuple[str, ...]] = ("val2014", "images", "coco/val2014")
    refuses_strangers: ClassVar[bool] = True

    @classmethod
    def question_type(cls) -> type[PopeQuestion]:
        return PopeQuestion

    @classmethod
    def read(cls, path: Path, split: str) -> Pope:
        wanted = "llava_pope_test.jsonl, with POPE's coco/coco_pope_<category>.json beside it"
        if split:
            raise UsageError(f"split={split}: POPE has none; leave split out")
        file = reading.file_in(path, "llava_pope_test.jsonl", wanted)
        labels = {category: _labels(file.parent, category) for category in CATEGORIES}
        met = dict.fromkeys(CATEGORIES, 0)
        questions: dict[str, PopeQuestion] = {}
        for place, line in reading.json_lines(file, wanted):
            number = reading.number_or_text(line, "question_id", file, place)
            image, category = reading.text(line, "image", file, place), reading.text(line, "category", file, place)
            if category not in CATEGORIES:
                raise UsageError(
                    f"{file}: {place}: its category is {shown(category)}; wanted {' or '.join(CATEGORIES)}"
                )
            if str(number) in questions:
                raise UsageError(f"{file}: {place}: question {shown(number)} was there before; wanted {wanted}")
            is_there = None
            if met[category] < len(labels[category]):
                is_there, labelled = labels[category][met[category]]
                if labelled != image:
                    raise UsageError(
                        f"{file}: {place}: is about {shown(image)}, and label {met[category] + 1} of {category} about "
                        f"{shown(labelled)}; take questions and annotations of one release"
                    )
            met[category] += 1
            prompt = reading.text(line, "text", file, place)
            questions[str(number)] = PopeQuestion(str(number), number, prompt, image, category, is_there)
        if not questions:
            raise UsageError(f"{file}: is empty; wanted {wanted}")
        return cls(file, split, tuple(questions.values()), len(questions))

    def stratum(self, question: PopeQuestion) -> str:
        return question.category

    def scored(self, answers: Sequence[Answer[PopeQuestion]], seed: int) -> Scored:
        details: dict[str, Any] = {}
        points: dict[str, float] = {}
        reasons: dict[str, str] = {}
        judged: list[
            tuple[PopeQuestion, int, int]
        ] = []  # question answered, number of its category, number of the cell
        for number, category in enumerate(CATEGORIES):
            labels = [q.is_there for q in self.questions if q.category == category]
            given = [a for a in answers if a.question.category == category]
            pairs = [(a, p) for a, p in zip(given, labels, strict=False) if p is not None]
            for a, is_there in pairs:
                said = says_yes(a.text)
                points[a.question.id] = float(said == is_there)
                judged.append(
                    (a.question, number, _CELLS.index(f"{'T' if said == is_there else 'F'}{'P' if said else 'N'}"))
                )
            details[category], reason = _category(given, [cell for _, n, cell in judged if n == number])
            if reason:
                reasons["pope_f1"] = f"{category}: {reason}"
        metrics = []
        about = f"eval_pope.py, mean of {', '.join(CATEGORIES)}"
        if all("accuracy" in details[c] for c in CATEGORIES):
            accuracy = mean([details[c]["accuracy"] for c in CATEGORIES])
            metrics.append(self.share("pope_accuracy", accuracy, len(judged), about))
        else:
            reasons["pope_accuracy"] = reasons["pope_f1"]
        if "pope_f1" not in reasons:
            f1 = mean([details[c]["f1"] for c in CATEGORIES])
            method = f"{about}; bootstrap 95 % over pictures{self.drawn_from}"
            metrics.insert(0, Metric("pope_f1", f1, _f1_interval(judged, seed), len(judged), method))
        parsed = {a.question.id: "yes" if says_yes(a.text) else "no" for a in answers}
        return Scored(tuple(metrics), details, points, parsed, reasons, self._doubts(answers))

    def _doubts(self, answers: Sequence[Answer[PopeQuestion]]) -> tuple[str, ...]:
        """A warning if answers stand elsewhere in their category than their questions do."""
        astray = 0
        for category in CATEGORIES:
            wanted = [q.id for q in self.questions if q.category == category]
            given = [a.question.id for a in answers if a.question.category == category]
            astray += sum(g != w for g, w in zip(given, wanted, strict=False)) + abs(len(given) - len(wanted))
        if not astray:
            return ()
        return (
            f"POPE pairs answers with labels by position, and {astray} answers are missing, added or out of "
            "order: some are judged by labels that are not theirs, as by the official evaluator; answer all in order",
        )


def says_yes(text: str) -> bool:
    """Whether an answer is taken for a yes: unless its first sentence has one of the words No, not, no."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def _labels(folder: Path, category: str) -> list[tuple[bool, str]]:
    """Of every line of an annotation file: whether the object is there, and in which picture."""
    wanted = "POPE's annotations: JSON lines with image and label"
    base = folder / "coco" if (folder / "coco").is_dir() else folder
    file = reading.file_in(base, f"coco_pope_{category}.json", wanted)
    found = []
    for place, line in reading.json_lines(file, wanted):
        label = line.get("label")
        if label not in ("yes", "no"):
            raise UsageError(f"{file}: {place}: its label is {shown(label)}; wanted yes or no")
        found.append((label == "yes", reading.text(line, "image", file, place)))
    return found


def _category(given: Sequence[Answer[PopeQuestion]], cells: Sequence[int]) -> tuple[dict[str, Any], str]:
    """The numbers of a category, and why some of them are not there ("": all are)."""
    tp, fp, tn, fn = (cells.count(k) for k in range(4))
    found: dict[str, Any] = {"samples": len(given), "TP": tp, "FP": fp, "TN": tn, "FN": fn}
    if not cells:
        return found, "has no answers to be judged; the official evaluator divides by zero"
    found["accuracy"] = (tp + tn) / len(cells)
    found["yes_ratio"] = sum(says_yes(a.text) for a in given) / len(given)
    if not tp + fp:
        return found, "no answer says yes, so there is no precision; the official evaluator divides by zero"
    if not tp + fn:
        return found, "yes is never right, so there is no recall; the official evaluator divides by zero"
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    found |= {"precision": precision, "recall": recall}
    if not tp:
        return found, "every yes is wrong, so there is no F1; the official evaluator divides by zero"
    return found | {"f1": 2 * precision * recall / (precision + recall)}, ""


def _f1_interval(judged: Sequence[tuple[PopeQuestion, int, int]], seed: int) -> intervals.Interval | None:
    """Bootstrap over pictures: the answers about one picture are not independent of each other."""
    pictures = {image: k for k, image in enumerate(sorted({str(q.image) for q, _, _ in judged}))}
    counts = np.zeros((len(pictures), len(CATEGORIES), len(_CELLS)))
    for q, category, cell in judged:
        counts[pictures[str(q.image)], category, cell] += 1

    def f1(weights: Floats) -> Floats:
        tp, fp, _, fn = np.moveaxis(np.tensordot(weights, counts, 1), 2, 0)
        with np.errstate(invalid="ignore"):
            return np.asarray((2 * tp / (2 * tp + fp + fn)).mean(axis=1))

    return intervals.bootstrap(f1, [None] * len(pictures), seed)
