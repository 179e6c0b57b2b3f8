"""TextVQA (Singh et al., CVPR 2019): questions about text in pictures, ten reference answers each.

Rules: LLaVA's llava/eval/eval_textvqa.py with the m4c evaluator, which MobileVLM's repository has, too. A table of
contractions (contractions.json) is that evaluator's data.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import shown
from edgewatt.workloads.vqa import intervals, reading
from edgewatt.workloads.vqa.benchmark import Dataset, mean, unanswered
from edgewatt.workloads.vqa.question import SHORT, Answer, Question
from edgewatt.workloads.vqa.scored import Metric, Scored

REFERENCES = 10
# Score of an answer that equals k references: each in turn is left out, and min(1, equal ones among the rest / 3) is
# averaged over the ten.
_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = ("a", "an", "the")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the evaluator hands the value of re.UNICODE over as the count


@dataclass(frozen=True)
class TextVqaQuestion(Question):
    """A question with its ten reference answers."""

    references: tuple[str, ...]


@dataclass(frozen=True)
class TextVqa(Dataset[TextVqaQuestion]):
    """TextVQA_0.5.1_<split>.json, asked as LLaVA's llava_textvqa_<split>_v051_ocr.jsonl beside it does, if it is there.

    That file adds text which an OCR system found in the picture; published scores are with it.
    """

    name: ClassVar[str] = "textvqa"
    metrics: ClassVar[tuple[str, ...]] = ("textvqa_accuracy",)
    max_new_tokens: ClassVar[int] = 128
    default_split: ClassVar[str] = "val"
    image_folders: ClassVar[tuple[str, ...]] = ("train_images", "images", "train_val_images")
    refuses_strangers: ClassVar[bool] = True

    @classmethod
    def question_type(cls) -> type[TextVqaQuestion]:
        return TextVqaQuestion

    @classmethod
    def read(cls, path: Path, split: str) -> TextVqa:
        name = f"TextVQA_0.5.1_{split}.json"
        wanted = f"{name} or the folder it is in"
        file = reading.file_in(path, name, wanted)
        data = reading.entry(reading.json_in(file, wanted), file, "the file").get("data")
        if not isinstance(data, list) or not data:
            raise UsageError(f"{file}: its data is {shown(data)}; wanted a list of questions")
        references: dict[Hashable, tuple[str, ...]] = {}
        asked = []
        for k, value in enumerate(data):
            record = reading.entry(value, file, place := f"data[{k}]")
            image, question = (
                reading.text(record, "image_id", file, place),
                reading.text(record, "question", file, place),
            )
            prompt = f"{question}\n{SHORT}"
            if question_in(prompt) is None:
                raise UsageError(f"{file}: {place}: its question {shown(question)} has a line break; mend the file")
            references[image, question.lower()] = _references(file, place, record)  # the last one counts
            asked.append((image, f"{image}.jpg", prompt))
        with_ocr = file.parent / f"llava_textvqa_{split}_v051_ocr.jsonl"
        warnings: tuple[str, ...] = ()
        if with_ocr.is_file():
            asked = _asked(with_ocr, references)
        else:
            warnings = (
                f"{with_ocr}: is not there, so questions are asked without the text found by OCR, with which "
                "scores were published; put LLaVA's file there to compare",
            )
        met: Counter[str] = Counter()
        questions = []
        for number, image, prompt in asked:
            met[number] += 1
            found = references[number, question_in(prompt)]
            questions.append(TextVqaQuestion(f"{number}#{met[number]}", number, prompt, image, found))
        return cls(file, split, tuple(questions), len(questions), warnings=warnings)

    @property
    def has_ocr(self) -> bool:
        """Whether questions are asked with the text found in their pictures."""
        return any("OCR token" in q.prompt for q in self.questions)

    def key(self, official_id: str | int, prompt: str) -> Hashable:
        return str(official_id), question_in(prompt)

    def scored(self, answers: Sequence[Answer[TextVqaQuestion]], seed: int) -> Scored:
        if not answers:
            return Scored(
                (), {}, {}, {}, {"textvqa_accuracy": "there are no answers; the official evaluator divides by zero"}
            )
        scores = [score(a.text, a.question.references) for a in answers]
        each = np.sort(scores)  # their order is no part of the interval
        interval = intervals.bootstrap(lambda w: w @ each / w.sum(axis=1), [None] * len(scores), seed)
        how = "" if self.has_ocr else ", asked without the text found by OCR"  # as edgewatt.reports reads it
        method = f"m4c evaluator, answers against ten references{how}; bootstrap 95 % over questions{self.drawn_from}"
        metric = Metric("textvqa_accuracy", mean(scores), interval, len(scores), method)
        left = unanswered(self, answers)
        share = f"{len(left)} of {len(self.questions)} questions"
        said = f"{share} have no answer and are left out, as by the official evaluator"
        warnings = (said,) if left else ()
        points = {a.question.id: s for a, s in zip(answers, scores, strict=True)}
        parsed = {a.question.id: normalised(a.text) for a in answers}
        return Scored((metric,), {"samples": len(scores), "accuracy": metric.value}, points, parsed, {}, warnings)


def score(text: str, references: Sequence[str]) -> float:
    """What an answer earns, 0..1."""
    said = normalised(text)
    equal = sum(normalised(r) == said for r in references)
    return _SCORES[min(equal, len(_SCORES) - 1)]


@lru_cache(maxsize=1 << 17)
def normalised(text: str) -> str:
    """An answer as it is compared (vqa-scoring.md, TextVQA)."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in before or f" {mark}" in before
        text = text.replace(mark, "" if beside_space else " ")
    text = _PERIOD.sub("", text, count=_MOST_PERIODS)
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(contractions().get(word, word) for word in words if word not in _ARTICLES)


@cache
def contractions() -> Mapping[str, str]:
    """Words without their apostrophe, and with it."""
    text = (resources.files("edgewatt.workloads.vqa") / "contractions.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found


def question_in(prompt: str) -> str | None:
    """The question in lower case that a prompt was made from; None where the official evaluator stops with an error."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        match = re.search("Question: (.*?) Short answer:", prompt, re.DOTALL)
        return match.group(1).lower() if match else None
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    return lines[0].lower() if len(lines) == 2 else None


def _references(file: Path, place: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    answers = record.get("answers")
    if not isinstance(answers, list) or len(answers) != REFERENCES:
        has = f"{len(answers)} answers" if isinstance(answers, list) else "no answers, as in a test split"
        raise UsageError(f"{file}: {place}: has {has}; wanted {REFERENCES} to score by, as in the split val")
    return tuple(reading.checked_text(a, "an answer", file, place) for a in answers)


def _asked(file: Path, references: Mapping[Hashable, Any]) -> list[tuple[str, str, str]]:
    """Picture's id, its file and the prompt of every line of LLaVA's question file."""
    wanted = "LLaVA's questions: JSON lines with question_id, image and text"
    found = []
    for place, line in reading.json_lines(file, wanted):
        number, image, prompt = (reading.text(line, key, file, place) for key in ("question_id", "image", "text"))
        if (number, question_in(prompt)) not in references:
            raise UsageError(
                f"{file}: {place}: asks {shown(prompt)} about {shown(number)}, which the annotations do not; take both "
                "of one release"
            )
        found.append((number, image, prompt))
    if not found:
        raise UsageError(f"{file}: is empty; wanted {wanted}, or no such file")
    return found
