"""One question of a benchmark, and one answer to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

# What LLaVA's question files, with which MobileVLM and Imp are scored, put after a question (mobilevlm.md, section 7).
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

Q = TypeVar("Q", bound="Question")


@dataclass(frozen=True)
class Question:
    """One question, with what its benchmark needs to score an answer in the fields of the classes made from this.

    `picture` is a file, or the content of one where the benchmark keeps pictures inside its own file; None: there is
    no picture, or the question was only read to score answers.
    """

    id: str  # its own within the data set
    official_id: str | int  # `question_id` in answer files; questions about one picture may share it
    prompt: str  # what is asked after the picture, without the conversation template
    image: str | None  # the picture's name below the folder of pictures; None: no picture, or one inside the file
    picture: Path | bytes | None = dataclasses.field(default=None, repr=False, kw_only=True)

    @property
    def logged(self) -> str:
        """`prompt` in answer files, as the official runner writes it."""
        return self.prompt

    def as_json(self) -> dict[str, Any]:
        """All of it but the picture, as JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "picture"}

    @classmethod
    def of_json(cls: type[Q], facts: Mapping[str, Any]) -> Q:
        """The same without its picture; TypeError if a field is missing or unknown."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Answer(Generic[Q]):
    """What was answered to a question; `prompt` is what the answer file says was asked."""

    question: Q
    text: str
    prompt: str
