"""GQA (Hudson and Manning, CVPR 2019): short answers to questions about scenes, right if equal to the reference.

Rules: GQA's own eval.py after LLaVA's scripts/convert_gqa_for_eval.py. Validity and plausibility, which need a file
that the test-dev split has not, are left out where the official evaluator prints 0; so is consistency.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import shown
from edgewatt.workloads.vqa import reading
from edgewatt.workloads.vqa.benchmark import Dataset, mean, unanswered
from edgewatt.workloads.vqa.question import SHORT, Answer, Question
from edgewatt.workloads.vqa.scored import Scored

# Operations that only ask for the result do not count as a step of reasoning.
_NO_STEP = ("exist", "query: name", "choose name")


@dataclass(frozen=True)
class GqaQuestion(Question):
    """A balanced question with its reference answer and what breakdowns sort it by."""

    answer: str
    structural: str  # query (open), verify, logical, compare, choose (binary)
    semantic: str  # attr, cat, global, obj, rel
    words: int
    steps: int
    global_group: str | None  # of questions whose answers are compared as a distribution


@dataclass(frozen=True)
class Gqa(Dataset[GqaQuestion]):
    """The balanced questions of a split; the others have no part in the score and are not asked."""

    name: ClassVar[str] = "gqa"
    metrics: ClassVar[tuple[str, ...]] = ("gqa_accuracy",)
    max_new_tokens: ClassVar[int] = 128
    default_split: ClassVar[str] = "testdev_balanced"
    image_folders: ClassVar[tuple[str, ...]] = ("images", "data/images", "../images")
    refuses_strangers: ClassVar[bool] = False

    @classmethod
    def question_type(cls) -> type[GqaQuestion]:
        return GqaQuestion

    @classmethod
    def read(cls, path: Path, split: str) -> Gqa:
        wanted = f"GQA's {split}_questions.json or the folder it is in"
        file = reading.file_in(path, f"{split}_questions.json", wanted)
        records = reading.entry(reading.json_in(file, wanted), file, "the file")
        questions = []
        for number, value in records.items():
            record = reading.entry(value, file, place := f"question {shown(number)}")
            balanced = record.get("isBalanced")
            if not isinstance(balanced, bool):
                raise UsageError(f"{file}: {place}: its isBalanced is {shown(balanced)}; wanted true or false")
            if balanced:
                questions.append(_question(file, place, number, record))
        if not questions:
            raise UsageError(f"{file}: has no balanced question; wanted {wanted}")
        return cls(file, split, tuple(questions), len(questions))

    def scored(self, answers: Sequence[Answer[GqaQuestion]], seed: int) -> Scored:
        said = {a.question.id: prediction(a.text) for a in answers}  # answered twice: the last one counts
        right = {q.id: float(said[q.id] == q.answer) for q in self.questions if q.id in said}
        missing = unanswered(self, answers)
        if missing:
            reason = (
                f"{len(missing)} of {len(self.questions)} questions have no answer, the first {shown(missing[0].id)}; "
                "GQA's evaluator wants them all"
            )
            return Scored((), {}, right, said, {"gqa_accuracy": reason})
        accuracy = mean(list(right.values()))
        metric = self.share("gqa_accuracy", accuracy, len(right), "GQA eval.py, equal to the reference answer")
        details: dict[str, Any] = {"accuracy": accuracy}
        for kind, questions in (
            ("binary", [q for q in self.questions if q.structural != "query"]),
            ("open", [q for q in self.questions if q.structural == "query"]),
        ):
            if questions:
                details[kind] = mean([right[q.id] for q in questions])
        for title, key in (
            ("structural type", "structural"),
            ("semantic type", "semantic"),
            ("steps number", "steps"),
            ("words number", "words"),
        ):
            sorted_by: defaultdict[Any, list[float]] = defaultdict(list)
            for q in self.questions:
                sorted_by[getattr(q, key)].append(right[q.id])
            details[title] = {
                str(k): {"accuracy": mean(sorted_by[k]), "questions": len(sorted_by[k])} for k in sorted(sorted_by)
            }
        reasons = {}
        if any(q.global_group is not None for q in self.questions):
            details["distribution"] = _distribution(self.questions, said)
        else:
            reasons["distribution"] = "no question belongs to a global group, whose answers could be compared"
        return Scored((metric,), details, right, said, reasons)


def prediction(text: str) -> str:
    """The answer that is compared: without full stops at its end, in lower case, spaces as they are."""
    return text.rstrip(".").lower()


def converted(answers: Sequence[Answer[GqaQuestion]]) -> list[dict[str, Any]]:
    """The predictions as GQA's evaluator reads them (a JSON list)."""
    return [{"questionId": a.question.official_id, "prediction": prediction(a.text)} for a in answers]


def _question(file: Path, place: str, number: str, record: Mapping[str, Any]) -> GqaQuestion:
    asked = reading.text(record, "question", file, place)
    types = reading.entry(record.get("types"), file, f"{place}, types")
    groups = reading.entry(record.get("groups"), file, f"{place}, groups")
    group = None if groups.get("global") is None else reading.text(groups, "global", file, place)
    operations = record.get("semantic")
    if not isinstance(operations, list):
        raise UsageError(f"{file}: {place}: its semantic is {shown(operations)}; wanted a list of operations")
    return GqaQuestion(
        id=reading.checked_text(number, "its name", file, place),
        official_id=number,
        prompt=f"{asked}\n{SHORT}",
        image=f"{reading.text(record, 'imageId', file, place)}.jpg",
        answer=reading.text(record, "answer", file, place),
        structural=reading.text(types, "structural", file, place),
        semantic=reading.text(types, "semantic", file, place),
        words=len(asked.split()),
        steps=sum(_is_step(reading.entry(o, file, f"{place}, semantic")) for o in operations),
        global_group=group,
    )


def _is_step(operation: Mapping[str, Any]) -> bool:
    said = f"{operation.get('operation')}: {operation.get('argument')}"
    return not any(word in said for word in _NO_STEP)


def _distribution(questions: Sequence[GqaQuestion], said: Mapping[str, str]) -> float:
    """How far given answers stray from how often each is right, by chi-square over global groups, divided by 100."""
    wanted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    given: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for q in questions:
        if q.global_group is not None:
            wanted[q.global_group][q.answer] += 1
            given[q.global_group][said[q.id]] += 1
    total = overall = 0.0
    for group, counts in wanted.items():
        score = sum((given[group][answer] - count) ** 2 / count for answer, count in counts.items())
        total += score * counts.total()
        overall += counts.total()
    return total / overall / 100
