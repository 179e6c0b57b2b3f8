"""Each question of a run beside its answer: tokens, time, energy, and the points that its benchmark gives."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.harness.analysis_items import InputEnergies, InputFigures, input_figures
from edgewatt.harness.api import Flag, HarnessError, Run, UsageError
from edgewatt.harness.flags import SIMULATED, SYNTHETIC_WEIGHTS
from edgewatt.reports import conclusions, output
from edgewatt.reports.numbers import format_quantity
from edgewatt.reports.text import clean, columns
from edgewatt.results.plain import dumped, text

FORM = 1
FILE = "questions.json"  # name of the output in which a workload leaves its questions and answers
PER_CORRECT = "energy_per_correct_answer_j"
SUFFIXES = (".jsonl", ".csv")

_SAID = ("id", "question", "answer", "prompt_tokens", "answer_tokens", "stopped_by")  # as the workload left them
_JUDGED = ("points", "parsed")
_SHOWN = {"latency_s", "ttft_s", conclusions.ENERGY}  # what the rows are made of
_MARKS = (SIMULATED, SYNTHETIC_WEIGHTS)  # what no reader must miss, though it voids none of these
_CUT = 36  # characters of a question or an answer in the terminal
# A spreadsheet takes a text that begins like this for a formula (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Answers:
    """The questions that were asked in a run's windows, in their order, and what is to be told of all of them.

    A row: `index`, `id`, `question`, `answer`, `prompt_tokens`, `answer_tokens`, `stopped_by`, `items` (how often it
    was asked), `latency_s`, `ttft_s` (medians), `energy` (a mapping for each meter: `meter`, `boundary`, `energy_j`,
    `uncertainty_j`, the mean of its items), `points`, `parsed`, `void` (which of these the run's flags make unusable),
    `flags` (those that speak of any).
    None for what is not known.
    """

    run: Run
    rows: tuple[Mapping[str, Any], ...]
    energies: tuple[InputEnergies, ...]
    per_correct: tuple[Mapping[str, Any], ...]  # `meter`, `boundary`, `value`, `uncertainty`
    notes: tuple[str, ...]

    @property
    def meters(self) -> tuple[str, ...]:
        """Those that have a number for a question at least."""
        return tuple(e.meter for e in self.energies if np.isfinite(e.energy_j).any())

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.run.id,
            "workload": self.run.workload,
            "device": self.run.device_name,
            "questions": list(self.rows),
            "meters": [
                {"meter": e.meter, "boundary": e.boundary, "method": e.method, "why_not": e.why} for e in self.energies
            ],
            PER_CORRECT: list(self.per_correct),
            "notes": list(self.notes),
        }


def answers(run: Run) -> Answers:
    """UsageError where the run's workload answers no questions, or the run ended before its answers were kept."""
    asked = _asked(run)
    found = input_figures(run)
    rows = tuple(_row(run, found, k, asked.get(int(index), {})) for k, index in enumerate(found.picture))
    notes = [f"{e.meter}: {e.why}; no energy of their own is given" for e in found.energies if e.why]
    if not any(c.is_energy for t in run.traces for c in t.channels):
        notes.append(conclusions.no_joules(run))
    if others := len(asked.keys() - set(map(int, found.picture))):
        notes.append(f"{others} of {len(asked)} questions were asked outside of the windows only; left out")
    per_correct, why = _per_correct(run, found, rows)
    notes += [f"{f.flag.replace('_', ' ')}: {f.detail}" for f in _flags(run)]
    return Answers(run, rows, found.energies, per_correct, (*notes, *([why] if why else [])))


def table(found: Answers) -> str:
    """The questions, a line each, and what is to be told of all of them, for a terminal."""
    titles = ("id", "question", "answer", "tokens", "ended by", "times", "latency", "first token")
    lines = [(*titles, *(f"energy ({m})" for m in found.meters), "points")]
    for r in found.rows:
        energy = {e["meter"]: e for e in r["energy"]}
        lines.append((
            _cut(r["id"]), _cut(r["question"]), _cut(r["answer"]),
            "" if r["prompt_tokens"] is None else f"{r['prompt_tokens']} + {r['answer_tokens']}",
            str(r["stopped_by"] or ""), str(r["items"]),
            _quantity(r["latency_s"], None, "s", "latency_s" in r["void"]),
            _quantity(r["ttft_s"], None, "s", "ttft_s" in r["void"]),
            *(_quantity(energy[m]["energy_j"], energy[m]["uncertainty_j"], "J", f"energy_j.{m}" in r["void"])
              for m in found.meters),
            "" if r["points"] is None else f"{r['points']:.3g}",
        ))  # fmt: skip
    whole = f"{len(found.rows)} questions, {sum(r['items'] for r in found.rows)} items of the windows"
    return "\n".join((
        clean(f"{found.run.workload} on {found.run.device_name}, run {found.run.id}"), columns(lines), whole,
        *(f"energy per correct answer: {format_quantity(e['value'], e['uncertainty'], 'J')} ({e['meter']}, "
          f"{e['boundary']}): that of the windows by the points of their items" for e in found.per_correct),
        *(clean(f"- {n}") for n in found.notes),
    ))  # fmt: skip


def write(found: Answers, path: Path) -> None:
    """The rows as JSON lines or CSV, by the file's suffix; UsageError for another one, or if it cannot be written.

    In CSV each meter has the columns `energy_j.METER` and `energy_uncertainty_j.METER`, and a text that a spreadsheet
    would take for a formula has an apostrophe before it: JSON lines have every text as it was.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"answers {path}: found suffix {path.suffix!r}, wanted .jsonl or .csv; rename the file")
    lines = _csv(found) if path.suffix.lower() == ".csv" else "".join(f"{dumped(r)}\n" for r in found.rows)
    output.write(path, lines.encode())


# ---------------------------------------------------------------------------------------------------------------------


def _asked(run: Run) -> dict[int, Mapping[str, Any]]:
    """Index of the input -> what it was asked and answered, as the workload left it."""
    path = run.outputs.get(FILE)
    if path is None and run.error:
        raise UsageError(f"run {run.id} ended badly ({run.error.message}), before its answers were kept; run it again")
    if path is None:
        raise UsageError(
            f"run {run.id}: {run.workload} left no questions and answers; `edgewatt show {run.id}` shows what it has"
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["form"] != FORM:
            raise HarnessError(f"{path}: questions of form {about['form']}; this edgewatt reads {FORM}: upgrade it")
        return {int(q["index"]): {k: q[k] for k in (*_SAID, *_JUDGED)} for q in about["questions"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path}: not the questions of a run ({error!r}); restore the store from a copy") from error


def _row(run: Run, found: InputFigures, k: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    times = {"latency_s": _known(found.latency_s[k]), "ttft_s": _known(found.ttft_s[k])}
    energy = [
        {
            "meter": e.meter,
            "boundary": e.boundary,
            "energy_j": _known(e.energy_j[k]),
            "uncertainty_j": _known(e.uncertainty_j[k]),
        }
        for e in found.energies
    ]
    void = [name for name, value in times.items() if value is not None and _is_void(run, name, "")]
    void += [
        f"energy_j.{e['meter']}"
        for e in energy
        if e["energy_j"] is not None and _is_void(run, conclusions.ENERGY, str(e["meter"]))
    ]
    return {
        "index": int(found.picture[k]),
        **{key: asked.get(key) for key in _SAID},
        "items": int(found.items[k]),
        **times,
        "energy": energy,
        **{key: asked.get(key) for key in _JUDGED},
        "void": void,
        "flags": list(dict.fromkeys(f.flag for f in _flags(run))),
    }


def _flags(run: Run) -> list[Flag]:
    """Those that speak of what the rows show."""
    return [f for f in run.flags if _SHOWN & set(f.voids) or f.flag in _MARKS]


def _is_void(run: Run, metric: str, meter: str) -> bool:
    return any(metric in f.voids and conclusions.speaks_of(f, meter) for f in run.flags)


def _per_correct(
    run: Run, found: InputFigures, rows: Sequence[Mapping[str, Any]]
) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """The windows' energy by the points that their items earned, for each meter; else why there is none."""
    judged = [r for r in rows if r["points"] is not None]
    if not judged:
        return (), ""  # there is no benchmark
    if any(f.flag == SYNTHETIC_WEIGHTS for f in run.flags):
        return (), "no energy per correct answer: the weights are random"
    if len(judged) < len(rows):
        return (), f"no energy per correct answer: {len(rows) - len(judged)} of {len(rows)} questions were not judged"
    points = math.fsum(r["points"] * r["items"] for r in judged)
    if points <= 0:
        return (), "no energy per correct answer: none is correct"
    whole = {m.meter: m for m in run.measurements if (m.metric, m.phase) == ("energy_j", "window")}
    each = []
    for meter in (e.meter for e in found.energies):
        m = whole.get(meter)
        if m is not None and conclusions.result(run, m).is_valid:
            width = None if m.uncertainty is None else m.uncertainty / points
            each.append({"meter": m.meter, "boundary": m.boundary, "value": m.value / points, "uncertainty": width})
    return tuple(each), ""


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _quantity(value: float | None, width: float | None, unit: str, is_void: bool) -> str:
    if value is None:
        return ""
    written = format_quantity(value, width, unit)
    return f"({written})" if is_void else written  # in brackets, so that nobody copies it by accident


def _cut(said: object) -> str:
    line = " ".join(clean("" if said is None else said).split())
    return line if len(line) <= _CUT else f"{line[: _CUT - 1]}…"


def _csv(found: Answers) -> str:
    meters = list(dict.fromkeys(e["meter"] for r in found.rows for e in r["energy"]))
    energies = [f"{name}.{m}" for m in meters for name in ("energy_j", "energy_uncertainty_j")]
    names = ["index", *_SAID, "items", "latency_s", "ttft_s", *energies, *_JUDGED, "void", "flags"]
    file = io.StringIO()
    lines = csv.DictWriter(file, names, lineterminator="\n")
    lines.writeheader()
    for r in found.rows:
        flat = {k: v for k, v in r.items() if k != "energy"} | dict(_flat(r["energy"]))
        lines.writerow({k: _cell(v) for k, v in flat.items()})
    return file.getvalue()


def _flat(energy: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    for e in energy:
        yield f"energy_j.{e['meter']}", e["energy_j"]
        yield f"energy_uncertainty_j.{e['meter']}", e["uncertainty_j"]


def _cell(value: Any) -> str:
    """As text: numbers with every digit, nothing for what is missing; no text that a spreadsheet would run."""
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return ";".join(value)
    said = text(str(value))
    return f"'{said}" if said.startswith(_FORMULA) else said
