"""What all benchmarks share: questions, the form of answer files, and how answers are handed to the scoring rule."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import safe_name, shown
from edgewatt.workloads.vqa import intervals, reading, sampling
from edgewatt.workloads.vqa.question import Answer, Q
from edgewatt.workloads.vqa.scored import Metric, Scored

_WANTED_ANSWERS = "answers as the official runners write them: JSON lines with question_id, prompt and text"


@dataclass(frozen=True)
class Dataset(ABC, Generic[Q]):
    """The questions of a benchmark that are asked, in order, and the rule that scores their answers."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]  # names of the headline numbers
    max_new_tokens: ClassVar[int]  # MobileVLM's official runner's
    default_split: ClassVar[str]  # the one that published scores are of
    image_folders: ClassVar[tuple[str, ...]]  # where pictures may lie, below the data set's folder
    refuses_strangers: ClassVar[bool]  # the official evaluator stops at an answer to a question it does not know

    source: Path
    split: str
    questions: tuple[Q, ...]
    whole: int  # how many questions the data set has
    seed: int | None = None  # with which they were drawn; None: none was left out by a draw
    is_cut: bool = False  # some were not asked in the end
    warnings: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def read(cls, path: Path, split: str) -> Dataset[Q]:
        """The whole data set from its official files, pictures not yet looked for."""

    @abstractmethod
    def scored(self, answers: Sequence[Answer[Q]], seed: int) -> Scored:
        """What the official evaluator makes of answers in that order; `seed` is the bootstrap's."""

    @classmethod
    @abstractmethod
    def question_type(cls) -> type[Q]:
        """The class of its questions."""

    # -----------------------------------------------------------------------------------------------------------------
    # Which questions, with which pictures

    def group(self, question: Q) -> Hashable:
        """What is drawn together."""
        return question.id

    def stratum(self, question: Q) -> Hashable:
        """What is drawn from in turn."""
        return None

    def drawn(self, limit: int | None, seed: int) -> Dataset[Q]:
        """At most `limit` of the questions, drawn as `sampling.drawn` says; all of them if that many are wanted."""
        if limit is None or limit >= len(self.questions):
            return self
        if limit < 1:
            raise UsageError(f"limit={limit}: wanted at least 1 question; leave limit out to ask all")
        groups, strata = [self.group(q) for q in self.questions], [self.stratum(q) for q in self.questions]
        kept = sampling.drawn(groups, strata, limit, seed)
        return dataclasses.replace(self, questions=tuple(self.questions[k] for k in kept), seed=seed)

    def only(self, ids: Collection[str]) -> Dataset[Q]:
        """The same with the questions that were asked: those in `ids`, as far as their whole group is there.

        For a run that ended before all were asked: evaluators take a question without an answer for one that was
        answered wrong, or stop at it. What was asked is then the first part, and no random one.
        """
        left = {self.group(q) for q in self.questions if q.id not in ids}
        kept = tuple(q for q in self.questions if self.group(q) not in left)
        return dataclasses.replace(self, questions=kept, is_cut=self.is_cut or len(kept) < len(self.questions))

    def with_pictures(self, images_dir: Path | None) -> Dataset[Q]:
        """The same with a file for every question that has a picture; UsageError naming those that are missing."""
        folders = self._image_folders(images_dir)
        found: dict[str, Path] = {}
        missing = []
        for image in dict.fromkeys(q.image for q in self.questions if q.image is not None):
            safe_name(self.source, "picture", image)
            places = [folder / image for folder in folders]
            path = next((p for p in places if _is_file(p)), None)
            if path is None:
                missing.append(image)
            else:
                found[image] = path
        if missing:
            looked_in = " or ".join(map(str, folders)) or "no folder: none of the usual ones is there"
            raise UsageError(
                f"{self.source}: {len(missing)} of {len(missing) + len(found)} pictures are missing, the first "
                f"{shown(missing[0])}; looked in {looked_in}: set images_dir to their folder"
            )
        return dataclasses.replace(
            self,
            questions=tuple(
                q if q.image is None else dataclasses.replace(q, picture=found[q.image]) for q in self.questions
            ),
        )

    def _image_folders(self, images_dir: Path | None) -> list[Path]:
        if images_dir is not None:
            if not images_dir.is_dir():
                raise UsageError(f"images_dir={images_dir}: no such folder; give the folder of the pictures")
            return [images_dir]
        base = self.source if self.source.is_dir() else self.source.parent
        return [base / name for name in self.image_folders if (base / name).is_dir()]

    # -----------------------------------------------------------------------------------------------------------------
    # Scores

    def score(self, answers: Mapping[str, str], seed: int = 0) -> Scored:
        """The official score of the answers by question id; the order in which they come does not matter."""
        known = {q.id for q in self.questions}
        for key, text in answers.items():
            if key not in known:
                raise UsageError(f"{self.name}: there is an answer to {shown(key)}, which is none of its questions")
            if not isinstance(text, str):
                raise UsageError(f"{self.name}: the answer to {shown(key)} is {shown(text)}; wanted a text")
        return self._scored([Answer(q, answers[q.id], q.logged) for q in self.questions if q.id in answers], seed)

    def score_file(self, path: Path, seed: int = 0) -> Scored:
        """The official score of an answer file (JSON lines), in its own order."""
        return self._scored(self.answers_in(path), seed)

    def _scored(self, answers: Sequence[Answer[Q]], seed: int) -> Scored:
        if not self.questions:
            return Scored((), {}, {}, {}, dict.fromkeys(self.metrics, "no question was asked"))
        return self.scored(answers, seed)

    def answers_in(self, path: Path) -> list[Answer[Q]]:
        """The answers in a file as the official runners write it.

        Answers to other questions are passed over where the official evaluator does so, and where these are not all
        questions of the data set.
        """
        by_key: dict[Hashable, list[Q]] = {}
        for q in self.questions:
            by_key.setdefault(self.key(q.official_id, q.logged), []).append(q)
        met: Counter[Hashable] = Counter()
        answers = []
        for place, line in reading.json_lines(path, _WANTED_ANSWERS):
            text = reading.text(line, "text", path, place)
            prompt = reading.text(line, "prompt", path, place) if "prompt" in line else ""
            key = self.key(reading.number_or_text(line, "question_id", path, place), prompt)
            asked = by_key.get(key)
            if asked is None:
                if self.refuses_strangers and len(self.questions) == self.whole:
                    raise UsageError(
                        f"{path}: {place}: answers {shown(line['question_id'])}, {shown(prompt)}, which is no question "
                        f"of {self.source}; give the answers to that data set"
                    )
                continue
            # The same question may stand in the data set twice.
            answers.append(Answer(asked[min(met[key], len(asked) - 1)], text, prompt))
            met[key] += 1
        return answers

    def key(self, official_id: str | int, prompt: str) -> Hashable:
        """By what an answer finds its question."""
        return str(official_id)

    def lines(self, answers: Mapping[str, str], model_id: str) -> Iterator[dict[str, Any]]:
        """The answers by question id, as lines of an answer file that the official evaluators take."""
        for q in self.questions:
            if q.id in answers:
                yield {
                    "question_id": q.official_id,
                    "prompt": q.logged,
                    "text": answers[q.id],
                    "answer_id": q.id,
                    "model_id": model_id,
                    "metadata": {},
                    **self.more(q),
                }

    def more(self, question: Q) -> dict[str, Any]:
        """What this benchmark's runner adds to a line."""
        return {}

    def share(self, name: str, share: float, n: int, method: str, over: str = "questions") -> Metric:
        """A metric that is a share of `n`, with Wilson's interval."""
        return Metric(
            name, share, intervals.wilson(share, n), n, f"{method}; Wilson 95 % over {n} {over}{self.drawn_from}"
        )

    @property
    def drawn_from(self) -> str:
        """In words: which of the data set's questions these are."""
        if len(self.questions) == self.whole:
            return f" ({self.split}, whole)" if self.split else " (whole)"
        how = [] if self.seed is None else [f"drawn with seed {self.seed}"]
        how += ["those that were asked"] if self.is_cut else []
        return f" ({len(self.questions)} of the {self.whole} questions of {self.split or 'the file'}, {', '.join(how)})"

    # -----------------------------------------------------------------------------------------------------------------
    # Stored beside a run

    def as_json(self) -> dict[str, Any]:
        """All that scoring needs, as JSON values: everything but the pictures."""
        return {
            "name": self.name,
            "source": str(self.source),
            "split": self.split,
            "whole": self.whole,
            "seed": self.seed,
            "is_cut": self.is_cut,
            "warnings": list(self.warnings),
            "questions": [q.as_json() for q in self.questions],
        }

    @classmethod
    def of_json(cls, facts: Mapping[str, Any]) -> Dataset[Q]:
        """The same again; KeyError or TypeError where something is missing."""
        kind = cls.question_type()
        return cls(
            source=Path(facts["source"]),
            split=facts["split"],
            questions=tuple(kind.of_json(q) for q in facts["questions"]),
            whole=facts["whole"],
            seed=facts["seed"],
            is_cut=facts["is_cut"],
            warnings=tuple(facts["warnings"]),
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, not to be entered
        return False


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, the same in any order to the last digit."""
    return math.fsum(values) / len(values)


def unanswered(dataset: Dataset[Q], answers: Sequence[Answer[Q]]) -> list[Q]:
    """The questions without an answer."""
    answered = {a.question.id for a in answers}
    return [q for q in dataset.questions if q.id not in answered]
