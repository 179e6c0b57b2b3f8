"""The answers of a run, as the runner leaves them and the host scores them: one JSON file.

Form 1: {"form": 1, "model": whose answers they are (not in older files), "benchmark": what `vqa.dataset.of_json` reads,
or null, "listed": how many questions the job had, "warnings": [...], "answers": [{"index", "id", "question", "text",
"ids", "prompt_tokens", "stopped_by"}, ...]}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewatt.harness.api import HarnessError, Score
from edgewatt.workloads.vqa import dataset
from edgewatt.workloads.vqa.scored import Scored

FORM = 1
FILE = "answers.json"
QUESTIONS = "questions.json"


@dataclass(frozen=True)
class Answers:
    """The answers to some of a job's questions (the window may have been too short for all of them)."""

    answers: tuple[Mapping[str, Any], ...]
    model: str  # system and variant; "": not told
    benchmark: Mapping[str, Any] | None
    listed: int
    warnings: tuple[str, ...]


def write(
    folder: Path, found: Mapping[int, Mapping[str, Any]], model: str, listed: int, benchmark: Any, warnings: list[str]
) -> None:
    """What came of the job's items, index -> answer, in the order of the questions."""
    about = {"form": FORM, "model": model, "benchmark": benchmark, "listed": listed, "warnings": warnings}
    rows = [{"index": k, **found[k]} for k in sorted(found)]
    (folder / FILE).write_text(json.dumps({**about, "answers": rows}), encoding="utf-8")


def read(folder: Path) -> Answers:
    """HarnessError if there are none, or in a form of a later edgewatt."""
    path = folder / FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["form"] != FORM:
            raise HarnessError(f"{path}: answers of form {about['form']}; this edgewatt reads {FORM}: upgrade it")
        return Answers(
            tuple(about["answers"]),
            str(about.get("model") or ""),
            about["benchmark"],
            int(about["listed"]),
            tuple(about["warnings"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path}: not the answers of a run ({error!r})") from error


def score(left: Answers, into: Path, system: str, seed: int) -> Score:
    """The benchmark's score of the answers; answers.jsonl as the official runners write it, for their evaluators;
    questions.json, each question beside its answer and its points.

    `system` stands for the model where the answers do not tell it.
    """
    warnings = list(left.warnings)
    if len(left.answers) < left.listed:
        warnings.append(
            f"{len(left.answers)} of {left.listed} questions were asked; set limit to ask for no more than there is "
            "time for, or take a faster device"
        )
    path, questions = into / "answers.jsonl", into / QUESTIONS
    model, scored = left.model or system, None
    if left.benchmark is None:
        rows = [
            {"question_id": a["id"], "prompt": a["question"], "text": a["text"]}
            | {"answer_id": a["id"], "model_id": model, "metadata": {}}
            for a in left.answers
        ]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    else:
        asked = dataset.of_json(left.benchmark)
        texts = {a["id"]: a["text"] for a in left.answers}
        dataset.write_answers(asked, texts, path, model)
        try:
            # A run that ended early is scored over what was asked, as far as it belongs together.
            part = asked.only(texts)
            scored = part.score({q.id: texts[q.id] for q in part.questions}, seed)
            warnings += scored.warnings
        except HarnessError as error:
            warnings.append(f"no score: {error}")
    _write_questions(questions, left, scored)
    found = () if scored is None else dataset.measurements(scored)
    return Score(found, (), tuple(warnings), {f.name: f for f in (path, questions)})


def _write_questions(path: Path, left: Answers, scored: Scored | None) -> None:
    """What each input of the run was asked and what came of it, as `edgewatt.reports.answers` reads it.

    Form 1: {"form": 1, "benchmark": name or null, "questions": [{"index": of the input, "id", "question", "answer",
    "prompt_tokens", "answer_tokens", "stopped_by", "points": 0..1, null where it was not judged, "parsed": what the
    answer was taken to say, or null}, ...]}.
    """
    points, parsed = (scored.points, scored.parsed) if scored else ({}, {})
    rows = [
        {key: a[key] for key in ("index", "id", "question", "prompt_tokens", "stopped_by")}
        | {"answer": a["text"], "answer_tokens": len(a["ids"])}
        | {"points": points.get(a["id"]), "parsed": parsed.get(a["id"])}
        for a in left.answers
    ]
    name = None if left.benchmark is None else left.benchmark["name"]
    path.write_text(json.dumps({"form": 1, "benchmark": name, "questions": rows}), encoding="utf-8")
