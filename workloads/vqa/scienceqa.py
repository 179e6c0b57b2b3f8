"""ScienceQA (Lu et al., NeurIPS 2022): school questions with up to five choices, some of them about a picture.

Rules: LLaVA's llava/eval/eval_science_qa.py. Published tables of MobileVLM and Imp show the accuracy over questions
with a picture (SQA-I).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import shown
from edgewatt.workloads.vqa import reading
from edgewatt.workloads.vqa.benchmark import Dataset, mean, unanswered
from edgewatt.workloads.vqa.question import LETTER, Answer, Question
from edgewatt.workloads.vqa.scored import Scored

LETTERS = ("A", "B", "C", "D", "E")
_MARK = "<image>"
_SENTENCE = re.compile("The answer is ([A-Z]).")


@dataclass(frozen=True)
class ScienceQaQuestion(Question):
    """A problem with the number of its choices and the index of the right one."""

    choices: int
    answer: int

    @property
    def logged(self) -> str:
        return self.prompt if self.image is None else f"{_MARK}\n{self.prompt}"


@dataclass(frozen=True)
class ScienceQa(Dataset[ScienceQaQuestion]):
    """The problems that pid_splits.json lists for a split, with and without a picture.

    Asked as LLaVA's llava_<split>_CQM-A.json beside them has it, or, without that file, by the rule it was made with
    (LLaVA's scripts/convert_sqa_to_llava.py, format CQM-A).
    """

    name: ClassVar[str] = "scienceqa"
    metrics: ClassVar[tuple[str, ...]] = ("scienceqa_image_accuracy", "scienceqa_accuracy")
    max_new_tokens: ClassVar[int] = 1024
    default_split: ClassVar[str] = "test"
    image_folders: ClassVar[tuple[str, ...]] = ("images/test", "test", "images")
    refuses_strangers: ClassVar[bool] = False

    @classmethod
    def question_type(cls) -> type[ScienceQaQuestion]:
        return ScienceQaQuestion

    @classmethod
    def read(cls, path: Path, split: str) -> ScienceQa:
        wanted = "ScienceQA's problems.json, with pid_splits.json beside it"
        file = reading.file_in(path, "problems.json", wanted)
        splits_file = reading.file_in(file.parent, "pid_splits.json", wanted)
        splits = reading.entry(reading.json_in(splits_file, wanted), splits_file, "the file")
        numbers = splits.get(split)
        if not isinstance(numbers, list) or not numbers:
            raise UsageError(
                f"{splits_file}: lists no problems for split={split}; it has {', '.join(map(shown, splits))}"
            )
        problems = reading.entry(reading.json_in(file, wanted), file, "the file")
        chat = file.parent / f"llava_{split}_CQM-A.json"
        asked = _asked(chat) if chat.is_file() else {}
        questions = []
        for number in dict.fromkeys(reading.checked_text(n, "a problem", splits_file, split) for n in numbers):
            problem = reading.entry(problems.get(number), file, f"problem {shown(number)}")
            if asked and number not in asked:
                raise UsageError(f"{chat}: does not ask problem {shown(number)}; take the file of this split, or none")
            questions.append(_question(file, number, problem, asked.get(number)))
        return cls(file, split, tuple(questions), len(questions))

    def _image_folders(self, images_dir: Path | None) -> list[Path]:
        if images_dir is None:
            folders = [self.source.parent / "images" / self.split, self.source.parent / self.split]
            return [f for f in folders if f.is_dir()] or super()._image_folders(None)
        return super()._image_folders(images_dir)

    def scored(self, answers: Sequence[Answer[ScienceQaQuestion]], seed: int) -> Scored:
        given = {a.question.id: a for a in answers}  # answered twice: the last one counts
        letters = {key: letter(a.text) for key, a in given.items()}
        right = {q.id: float(_index(letters.get(q.id), q.choices) == q.answer) for q in self.questions}
        with_picture = [q.id for q in self.questions if q.id in given and _MARK in given[q.id].prompt]
        correct = int(sum(right.values()))
        metrics = [self.share("scienceqa_accuracy", mean(list(right.values())), len(right), "eval_science_qa.py")]
        details: dict[str, Any] = {"total": len(right), "correct": correct, "accuracy": metrics[0].value}
        reasons = {}
        if with_picture:
            share = mean([right[i] for i in with_picture])
            method, over = "eval_science_qa.py, questions with a picture", "questions with a picture"
            metrics.insert(0, self.share("scienceqa_image_accuracy", share, len(with_picture), method, over))
            details["image_accuracy"] = share
        else:
            reasons["scienceqa_image_accuracy"] = (
                "no question with a picture was answered; the official evaluator divides by zero"
            )
        left = unanswered(self, answers)
        warnings = (f"{len(left)} of {len(right)} questions have no answer and count as wrong",) if left else ()
        return Scored(tuple(metrics), details, right, letters, reasons, warnings)


def letter(text: str) -> str | None:
    """The letter that an answer is taken to say; the first rule that fits counts (vqa-scoring.md, ScienceQA)."""
    if text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    said = _SENTENCE.findall(text)
    return said[0] if len(said) == 1 else None


def _index(said: str | None, choices: int) -> int:
    """The choice that a letter stands for; -1: none of the problem's."""
    return LETTERS.index(said) if said in LETTERS[:choices] else -1


def _question(file: Path, number: str, problem: Mapping[str, Any], asked: str | None) -> ScienceQaQuestion:
    place = f"problem {shown(number)}"
    choices = problem.get("choices")
    if not isinstance(choices, list) or not 1 <= len(choices) <= len(LETTERS):
        raise UsageError(f"{file}: {place}: its choices are {shown(choices)}; wanted 1 to {len(LETTERS)} texts")
    texts = [reading.checked_text(c, "a choice", file, place) for c in choices]
    answer = reading.whole(problem, "answer", file, place)
    if answer >= len(choices):
        raise UsageError(f"{file}: {place}: its answer is choice {answer} of {len(choices)}; they count from 0")
    image = None if problem.get("image") is None else f"{number}/{reading.text(problem, 'image', file, place)}"
    if asked is None:
        question = reading.text(problem, "question", file, place)
        hint = reading.text(problem, "hint", file, place).strip() if problem.get("hint") else ""
        listed = " ".join(f"({a}) {c}" for a, c in zip(LETTERS, texts, strict=False))
        asked = f"Context: {hint or 'N/A'}\nQuestion: {question}\nOptions: {listed}".replace("  ", " ").strip()
    return ScienceQaQuestion(number, number, f"{asked}\n{LETTER}", image, len(choices), answer)


def _asked(file: Path) -> dict[str, str]:
    """What LLaVA's question file asks, by problem."""
    wanted = "LLaVA's questions: a list of objects with id and conversations"
    entries = reading.json_in(file, wanted)
    if not isinstance(entries, list):
        raise UsageError(f"{file}: is {shown(entries)}; wanted {wanted}")
    found = {}
    for k, value in enumerate(entries):
        line = reading.entry(value, file, place := f"[{k}]")
        turns = line.get("conversations")
        if not isinstance(turns, list) or not turns:
            raise UsageError(f"{file}: {place}: its conversations are {shown(turns)}; wanted {wanted}")
        said = reading.text(reading.entry(turns[0], file, place), "value", file, place)
        found[reading.text(line, "id", file, place)] = said.replace(_MARK, "").strip()
    return found
