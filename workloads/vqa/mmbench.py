"""MMBench (Liu et al., ECCV 2024): multiple choice, each question asked again with its options rotated.

Rules: VLMEvalKit's mcq_circular_eval, eval_vanilla, report_acc and can_infer in exact matching, that is without a
language model as judge; the published numbers of MMBench's server were judged by one.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import csv
import dataclasses
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import shown
from edgewatt.workloads.vqa import reading
from edgewatt.workloads.vqa.benchmark import Dataset, mean
from edgewatt.workloads.vqa.question import LETTER, Answer, Question
from edgewatt.workloads.vqa.scored import Scored

LETTERS = ("A", "B", "C", "D")
ROTATION = 1_000_000  # a rotated copy's index is that of its question and a multiple of this
LARGEST_PICTURE = 64 << 20  # bytes of base64

# What pandas, with which the official programs read the table, takes for an empty cell.
_EMPTY = frozenset(
    (
        "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
        "NULL", "NaN", "None", "n/a", "nan", "null",
    )
)  # fmt: skip
_SHORT_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SPACED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_SENTENCE = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_WANTED = "MMBench's table: tab-separated, with index, question, A to D, answer and image"


@dataclass(frozen=True)
class MmbenchQuestion(Question):
    """A row of the table: a question with its options in one order."""

    index: int
    question: str
    hint: str | None
    options: dict[str, str]  # letter -> text
    answer: str | None  # a letter; None: the split keeps its answers to itself
    category: str | None
    l2_category: str | None
    split: str

    @property
    def base(self) -> int:
        """The index of the question it is a rotation of, or its own."""
        return self.index % ROTATION

    @property
    def offered(self) -> dict[str, str]:
        """The options that are shown: up to the first that is empty or says none."""
        found = {}
        for letter in LETTERS:
            if _is_none(self.options.get(letter)):
                break
            found[letter] = self.options[letter]
        return found

    @property
    def logged(self) -> str:
        return self.prompt.removesuffix(f"\n{LETTER}")


@dataclass(frozen=True)
class Mmbench(Dataset[MmbenchQuestion]):
    """A table of MMBench (mmbench_dev_20230712.tsv, MMBench_DEV_EN.tsv, ...), pictures inside."""

    name: ClassVar[str] = "mmbench"
    metrics: ClassVar[tuple[str, ...]] = ("mmbench_accuracy", "mmbench_vanilla_accuracy")
    max_new_tokens: ClassVar[int] = 1024
    default_split: ClassVar[str] = ""  # the one that the table has
    image_folders: ClassVar[tuple[str, ...]] = ()
    refuses_strangers: ClassVar[bool] = False

    @classmethod
    def question_type(cls) -> type[MmbenchQuestion]:
        return MmbenchQuestion

    @classmethod
    def read(cls, path: Path, split: str) -> Mmbench:
        file = _table(path)
        questions: dict[int, MmbenchQuestion] = {}
        for place, row in _rows(file):
            q = _question(file, place, row)
            if q.index in questions:
                raise UsageError(f"{file}: {place}: index {q.index} was there before; wanted {_WANTED}")
            questions[q.index] = q
        splits = sorted({q.split for q in questions.values()})
        if split and split not in splits:
            raise UsageError(
                f"{file}: has no rows of split={split}; it has {', '.join(map(shown, splits)) or 'no rows'}"
            )
        if not split and len(splits) != 1:
            raise UsageError(f"{file}: has {', '.join(map(shown, splits)) or 'no rows'}; set split to one of them")
        chosen = tuple(q for q in questions.values() if q.split == (split or splits[0]))
        never = [q for q in chosen if q.answer is not None and q.answer not in q.options]
        said = f"{file}: the answers of {len(never)} rows, the first of index {never[0].index if never else 0}"
        warnings = (f"{said}, are options that the official programs take for empty; they count as wrong",)
        return cls(file, split or splits[0], chosen, len(chosen), warnings=warnings if never else ())

    def group(self, question: MmbenchQuestion) -> int:
        return question.base

    def with_pictures(self, images_dir: Path | None) -> Mmbench:
        if images_dir is not None:
            raise UsageError(f"images_dir={images_dir}: MMBench's pictures are inside its table; leave images_dir out")
        wanted = {q.index for q in self.questions}
        encoded = {}
        references = {}  # a row may name another one instead of repeating its picture
        for place, row in _rows(self.source):
            index, image = _index(self.source, place, row), row.get("image", "").strip()
            if image.isascii() and image.isdigit():
                references[index] = int(image)
            elif index in wanted or index < ROTATION:
                encoded[index] = image
        decoded: dict[str, bytes] = {}  # rotations share a picture
        questions = []
        for q in self.questions:
            image = encoded.get(references.get(q.index, q.index), "")
            if image not in decoded:
                decoded[image] = _picture(self.source, q.index, image)
            questions.append(dataclasses.replace(q, picture=decoded[image]))
        return dataclasses.replace(self, questions=tuple(questions))

    def more(self, question: MmbenchQuestion) -> dict[str, Any]:
        offered = question.offered
        return {"round_id": 0, "options": list(offered.values()), "option_char": list(offered)}

    def scored(self, answers: Sequence[Answer[MmbenchQuestion]], seed: int) -> Scored:
        texts = {a.question.id: a.text for a in answers}  # answered twice: the last one counts
        said = {q.id: inferred(texts[q.id], q.options) if q.id in texts else None for q in self.questions}
        unknown = [q for q in self.questions if q.answer is None]
        if unknown:
            said_so = f"{len(unknown)} of {len(self.questions)} rows of split={self.split} have no answer to score by"
            reason = f"{said_so}; use a dev split"
            return Scored((), {}, {}, said, dict.fromkeys(self.metrics, reason))
        hits = {q.id: float(said[q.id] == q.answer) for q in self.questions}
        rotations: defaultdict[int, list[float]] = defaultdict(list)
        for q in self.questions:
            rotations[q.base].append(hits[q.id])
        originals = [q for q in self.questions if q.index == q.base]
        if not originals:
            reason = "there are only rotated rows, and none of the questions they are rotations of"
            return Scored((), {}, hits, said, dict.fromkeys(self.metrics, reason))
        circular = {q.id: min(rotations[q.base]) for q in originals}
        vanilla = {q.id: hits[q.id] for q in originals}
        details = {
            "circular": _report(originals, circular),
            "vanilla": _report(originals, vanilla),
            "circular_hit": circular,
        }
        about = "VLMEvalKit exact matching, no judge model"
        metrics = tuple(
            self.share(name, mean(list(hit.values())), len(hit), f"{about}, {rule}", "questions, rotations not counted")
            for name, hit, rule in zip(
                self.metrics, (circular, vanilla), ("right in every rotation", "in the original order"), strict=True
            )
        )
        left = len(self.questions) - len(texts)
        warnings = (f"{left} of {len(self.questions)} rows have no answer and count as wrong",) if left else ()
        return Scored(metrics, details, hits, said, {}, warnings)


def inferred(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer is taken to mean; "Z": it refuses; None: none can be told (vqa-scoring.md, MMBench)."""
    return _by_letter(text, options) or _by_text(text, options)


def submission_table(dataset: Mmbench, answers: Sequence[Answer[MmbenchQuestion]]) -> str:
    """The sheet that LLaVA's scripts/convert_mmbench_for_submission.py makes, as CSV."""
    texts = {a.question.id: a.text for a in answers}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("index", "question", *LETTERS, "prediction", "answer", "split"))
    for q in dataset.questions:
        options = (q.options.get(letter, "") for letter in LETTERS)
        writer.writerow((q.index, q.question, *options, texts.get(q.id, ""), q.answer or "", q.split))
    return out.getvalue()


def _by_letter(text: str, options: Mapping[str, str]) -> str | None:
    if "Failed to obtain answer via API" in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    words = text.translate(_SPACED).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
        return letters[0]
    if not letters and "Z" in words:
        return "Z"
    match = _SENTENCE.search(text)
    if match and match.group(1).upper() in options:
        return match.group(1).upper()
    return None


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    text = text.lower()
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, option in options.items() if option.lower() in text]
    return found[0] if len(found) == 1 else None


def _report(questions: Sequence[MmbenchQuestion], hits: Mapping[str, float]) -> dict[str, float]:
    """Mean over all questions, over each group of categories (by its short name) and over each category."""
    found = {"Overall": mean([hits[q.id] for q in questions])}
    for key in ("l2_category", "category"):
        by_name: defaultdict[str, list[float]] = defaultdict(list)
        for q in questions:
            if getattr(q, key) is not None:
                by_name[getattr(q, key)].append(hits[q.id])
        found |= {_SHORT_NAMES.get(name, name): mean(by_name[name]) for name in sorted(by_name)}
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The table


def _table(path: Path) -> Path:
    """The table: `path`, or the one .tsv file in it."""
    try:
        tables = sorted(path.glob("*.tsv")) if path.is_dir() else []
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be looked into ({reading.why(error)}); wanted {_WANTED}") from error
    if len(tables) > 1:
        raise UsageError(f"{path}: has {len(tables)} tables, {', '.join(t.name for t in tables[:3])}; name one of them")
    return tables[0] if tables else reading.file_in(path, "mmbench_dev_20230712.tsv", _WANTED)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row ends, and its cells by column; the table is never in memory as a whole."""
    reading.check_size(file, _WANTED)
    place = "line 1"
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines, _long_cells():
            reader = csv.reader(lines, delimiter="\t")
            columns = next(reader, [])
            absent = [c for c in ("index", "question", "A", "B", "image") if c not in columns]
            if absent:
                raise UsageError(f"{file}: has no column {', '.join(absent)}; wanted {_WANTED}")
            for row in reader:
                place = f"line {reader.line_num}"
                if len(row) > len(columns):
                    raise UsageError(f"{file}: {place}: has {len(row)} cells; wanted {len(columns)}, one a column")
                if row:
                    yield place, dict(zip(columns, row, strict=False))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is no text in UTF-8; wanted {_WANTED}") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({reading.why(error)}); wanted {_WANTED}") from error
    except csv.Error as error:
        raise UsageError(f"{file}: after {place}: cannot be read ({error}); wanted {_WANTED}") from error


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Cells may be as long as a picture meanwhile."""
    before = csv.field_size_limit(LARGEST_PICTURE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _index(file: Path, place: str, row: Mapping[str, str]) -> int:
    text = row.get("index", "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise UsageError(f"{file}: {place}: its index is {shown(text)}; wanted a whole number")
    return int(text)


def _question(file: Path, place: str, row: Mapping[str, str]) -> MmbenchQuestion:
    index = _index(file, place, row)

    def cell(column: str) -> str | None:
        text = reading.checked_text(row.get(column, ""), f"its {column}", file, place)
        return None if text in _EMPTY else text

    options = {letter: text for letter in LETTERS if (text := cell(letter)) is not None}
    answer = cell("answer")
    if answer is not None and answer not in LETTERS:
        raise UsageError(f"{file}: {place}: its answer is {shown(answer)}; wanted one of {', '.join(LETTERS)}")
    question, hint = cell("question") or "", cell("hint")
    q = MmbenchQuestion(
        id=str(index),
        official_id=index,
        prompt="",
        image=None,
        index=index,
        question=question,
        hint=None if _is_none(hint) else hint,
        options=options,
        answer=answer,
        category=cell("category"),
        l2_category=cell("l2-category"),
        split=cell("split") or "none",
    )
    lines = ([q.hint] if q.hint is not None else []) + [question]
    lines += [f"{letter}. {text}" for letter, text in q.offered.items()]
    return dataclasses.replace(q, prompt="\n".join((*lines, LETTER)))


def _is_none(text: str | None) -> bool:
    """What the official runner takes for no text."""
    return text is None or text.lower() in ("nan", "none")


def _picture(file: Path, index: int, image: str) -> bytes:
    try:
        content = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{file}: index {index}: its image is no base64 ({error}); wanted {_WANTED}") from error
    if not content:
        raise UsageError(f"{file}: index {index}: has no image; wanted {_WANTED}")
    return content
