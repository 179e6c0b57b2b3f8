"""MME (Fu et al., 2023): fourteen tasks of yes/no questions, two about each picture.

Rules: MME's eval_tool/calculation.py after convert_answer_to_mme.py. A task gives 100 points for the share of questions
answered right and 100 for the share of pictures with both right.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import shown
from edgewatt.workloads.vqa import intervals, reading
from edgewatt.workloads.vqa.benchmark import Dataset
from edgewatt.workloads.vqa.question import SHORT, Answer, Question
from edgewatt.workloads.vqa.scored import Metric, Scored

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)
_SUMS = {"mme_perception": PERCEPTION, "mme_cognition": COGNITION}
_YES_NO = "Please answer yes or no."  # ends every question of the ground truth; LLaVA's question file leaves it out
_SUFFIXES = (".jpg", ".png", ".jpeg")
_WANTED = "MME's folder: one of each task, with a text file of two questions for each picture"


@dataclass(frozen=True)
class MmeQuestion(Question):
    """One of the two questions about a picture of a task."""

    task: str
    file: str  # of the ground truth, in the task's folder
    text: str  # as the ground truth has it
    label: str  # Yes or No, as written

    @property
    def about(self) -> tuple[str, str]:
        """What both questions about the picture share."""
        return self.task, self.file


@dataclass(frozen=True)
class Mme(Dataset[MmeQuestion]):
    """The folder of MME's release, with a folder for each task: texts beside pictures, or in folders of their own."""

    name: ClassVar[str] = "mme"
    metrics: ClassVar[tuple[str, ...]] = ("mme_perception", "mme_cognition")
    max_new_tokens: ClassVar[int] = 128
    default_split: ClassVar[str] = ""
    image_folders: ClassVar[tuple[str, ...]] = (".",)
    refuses_strangers: ClassVar[bool] = True

    @classmethod
    def question_type(cls) -> type[MmeQuestion]:
        return MmeQuestion

    @classmethod
    def read(cls, path: Path, split: str) -> Mme:
        if split:
            raise UsageError(f"split={split}: MME has none; leave split out")
        try:
            release = path / "MME_Benchmark_release_version"
            folder = release if release.is_dir() else path
            tasks = [task for task in TASKS if (folder / task).is_dir()]
            if not tasks:
                raise UsageError(f"{path}: has none of the folders {', '.join(TASKS[:4])}, ...; wanted {_WANTED}")
            questions = tuple(q for task in tasks for q in _questions(folder, task))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be looked into ({reading.why(error)}); wanted {_WANTED}") from error
        absent = [task for task in TASKS if task not in tasks]
        warnings = (f"{folder}: has no folder of {', '.join(absent)}; the sums that need them are left out",)
        return cls(folder, split, questions, len(questions), warnings=warnings if absent else ())

    def group(self, question: MmeQuestion) -> Hashable:
        return question.about

    def stratum(self, question: MmeQuestion) -> str:
        return question.task

    def with_pictures(self, images_dir: Path | None) -> Dataset[MmeQuestion]:
        if images_dir is not None:
            raise UsageError(f"images_dir={images_dir}: MME's pictures lie in its tasks' folders; leave images_dir out")
        return super().with_pictures(None)

    def key(self, official_id: str | int, prompt: str) -> Hashable:
        parts = str(official_id).split("/")
        return parts[0], f"{parts[-1].split('.')[0]}.txt", _bare(prompt)

    def scored(self, answers: Sequence[Answer[MmeQuestion]], seed: int) -> Scored:
        said = {a.question.id: parsed(a.text) for a in answers}
        points = {a.question.id: float(said[a.question.id] == a.question.label.lower()) for a in answers}
        pictures: dict[str, list[tuple[float, float]]] = {}  # task -> earned by the two questions about each picture
        why: dict[str, str] = {}
        for task in TASKS:
            given = [a for a in answers if a.question.task == task]
            reason = _obstacle(task, given)
            if reason:
                why[task] = reason
            else:
                earned = [points[a.question.id] for a in given]
                pictures[task] = list(zip(earned[::2], earned[1::2], strict=True))
        details: dict[str, Any] = {}
        metrics, reasons = [], {}
        for name, tasks in _SUMS.items():
            scores = {task: _task_score(pictures[task]) for task in tasks if task in pictures}
            about: dict[str, Any] = {"tasks": scores}
            details[name.removeprefix("mme_")] = about
            absent = [task for task in tasks if task in why]
            if absent:
                reasons[name] = "; ".join(why[task] for task in absent[:3]) + ("; ..." if len(absent) > 3 else "")
                continue
            about["total"] = sum(scores.values())
            n = 2 * sum(len(pictures[task]) for task in tasks)
            method = (
                f"MME calculation.py, sum over {len(tasks)} tasks of 100 * (accuracy + accuracy+); bootstrap 95 % over "
                f"pictures within each task{self.drawn_from}"
            )
            interval = _interval({task: pictures[task] for task in tasks}, seed)
            metrics.append(Metric(name, about["total"], interval, n, method, "points"))
        return Scored(tuple(metrics), details, points, said, reasons)


def parsed(text: str) -> str | None:
    """Whether an answer is taken for yes or no, by its first four characters; None: neither, which is always wrong."""
    start = text.lower()[:4]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else None


def converted(answers: Sequence[Answer[MmeQuestion]]) -> dict[str, str]:
    """What MME's evaluator reads: for each task the text of its file, one line for each answer in their order."""
    found: dict[str, str] = {}
    for a in answers:
        q = a.question
        found[q.task] = found.get(q.task, "") + "\t".join((q.file, q.text, q.label, a.text)) + "\n"
    return found


def _bare(text: str) -> str:
    """A question without the requests that LLaVA's and MME's files end it with."""
    return text.replace(SHORT, "").strip().removesuffix(_YES_NO).strip()


def _questions(folder: Path, task: str) -> list[MmeQuestion]:
    apart = (folder / task / "images").is_dir()
    texts = folder / task / "questions_answers_YN" if apart else folder / task
    files = sorted(p for p in texts.glob("*.txt") if p.is_file())
    if not files:
        raise UsageError(f"{texts}: has no text files; wanted {_WANTED}")
    below = f"{task}/images" if apart else task
    found = []
    for file in files:
        lines = _lines(file)
        if len(lines) != 2:
            raise UsageError(f"{file}: has {len(lines)} lines; wanted 2 questions with Yes or No after a tab")
        present = (f"{below}/{file.stem}{s}" for s in _SUFFIXES if (folder / below / f"{file.stem}{s}").is_file())
        image = next(present, f"{below}/{file.stem}.jpg")
        for k, line in enumerate(lines, start=1):
            text, tab, label = line.partition("\t")
            if not tab or label.lower() not in ("yes", "no"):
                raise UsageError(f"{file}: line {k} is {shown(line)}; wanted a question, a tab, and Yes or No")
            number = f"{task}/{file.stem}#{k}"
            found.append(MmeQuestion(number, image, f"{_bare(text)}\n{SHORT}", image, task, file.name, text, label))
    return found


def _lines(file: Path) -> list[str]:
    try:
        text = reading.content(file, _WANTED).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is no text in UTF-8; wanted {_WANTED}") from error
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    return [reading.checked_text(line.strip(), "it", file, f"line {k}") for k, line in enumerate(lines, start=1)]


def _obstacle(task: str, given: Sequence[Answer[MmeQuestion]]) -> str:
    """Why the official evaluator cannot score the answers of a task; "": it can."""
    if not given:
        return f"{task} has no answers"
    for a in given:
        if any(c in a.text for c in "\t\n\r"):
            return f"the answer to {a.question.id} has a line break or a tab, at which the official evaluator stops"
    for first, second in zip(given[::2], given[1::2], strict=False):
        if first.question.about != second.question.about:
            lone = first.question.id
            return f"the answer to {lone} is not followed by that to the other question about its picture"
    if len(given) % 2:
        return f"{given[-1].question.id} is answered, and the other question about its picture is not"
    return ""


def _task_score(pictures: Sequence[tuple[float, float]]) -> float:
    accuracy = sum(map(sum, pictures)) / (2 * len(pictures))
    return accuracy * 100 + sum(min(pair) for pair in pictures) / len(pictures) * 100


def _interval(pictures: Mapping[str, Sequence[tuple[float, float]]], seed: int) -> intervals.Interval | None:
    """Bootstrap of a sum over tasks: in each the mean over its pictures of what they earn."""
    strata = [task for task, pairs in pictures.items() for _ in pairs]
    # Sorted: the order of the answers is no part of the interval.
    earned = [e for pairs in pictures.values() for e in sorted((sum(p) / 2 + min(p)) * 100 / len(pairs) for p in pairs)]
    each = np.array(earned)
    return intervals.bootstrap(lambda weights: weights @ each, strata, seed)
