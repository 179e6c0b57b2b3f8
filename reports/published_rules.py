"""Ours beside theirs: the measurement that fits a published figure best, and why the two may not be compared.

A figure is comparable only where none of RULES speaks against it; what is not stated counts as different.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgewatt.harness.api import Run
from edgewatt.reports import conclusions
from edgewatt.reports.conclusions import Result
from edgewatt.reports.numbers import format_quantity
from edgewatt.reports.published_data import NOT_STATED, Figure
from edgewatt.reports.views import flat

# The strictest first: name -> what it holds against a comparison.
RULES: Mapping[str, str] = {
    "metric": "another metric, or one that is defined otherwise",
    "device": "another device or processor, or one that is not stated (in speed, energy, memory and temperature)",
    "engine": "another inference engine, or one that is not stated",
    "precision": "weights of another precision or quantisation, or one that is not stated",
    "weights": "synthetic weights, in scores of quality",
    "size": "pictures of another size in pixels, or of one that is not stated",
    "questions": "a part of the questions or pictures, another split, or asked in another way, in scores of quality",
    "length": "a prompt or an answer whose number of tokens differs by more than 10 %, or is not known; in times of "
    "vision, more or fewer pictures than one",
    "simulated": "a simulated device on our side",
    "void": "a flag that makes our number unusable",
}
_ORDER = {name: k for k, name in enumerate(RULES)}
_ALIKE = 0.1  # relative difference of two lengths that still are alike
# What the method of a score says (workloads/vqa): of which questions it is, and how these were asked.
_PART = re.compile(r"\((\d+ of the \d+ questions[^()]*)\)")
_WITHOUT_OCR = "asked without the text found by OCR"

# A chip or device as published -> what our devices say of themselves where they are it. Part numbers: Qualcomm's and
# NVIDIA's product pages. What is not here is never taken to be the same.
_HARDWARE: Mapping[str, str] = {
    "Snapdragon 865": r"SM8250|Snapdragon 865|kona\b",
    "Snapdragon 888": r"SM8350|Snapdragon 888|lahaina",
    "Snapdragon 778G": r"SM7325|Snapdragon 778G",
    "Snapdragon 8 Gen 1": r"SM8450|Snapdragon 8 Gen 1",
    "Snapdragon 8 Gen 3": r"SM8650|Snapdragon 8 Gen 3",
    "Kirin 980": r"Kirin ?980",
    "Core i7-10750H": r"i7-10750H",
    "Core Ultra 7 115H": r"Ultra 7 115H",
    "RTX 3090": r"RTX 3090(?! Ti)",
    "A100": r"\bA100\b",
    "Jetson AGX Orin": r"AGX Orin",
    "Jetson Orin Nano": r"Orin Nano",
    "Realme GT (8 GB)": r"realme GT|RMX2202",
    "Xiaomi 14": r"Xiaomi 14\b|23127PN0C",
    "OnePlus 13R": r"OnePlus 13R|CPH2691",
    "OnePlus 13R, Android 15, rooted": r"OnePlus 13R|CPH2691",
}
_UNNAMED = ("phone", "phone, model not named", "Android phone", "Qualcomm 8gen3 device")  # any of many
# Parameters that ask otherwise than a benchmark's official runner, once they are set.
_ASKING = ("split", "template", "image_mode", "temperature", "max_new_tokens", "ignore_eos")
# What an official runner sets of these by itself (imp.md 10: model_vqa_loader; which benchmarks it ran is not told).
_OFFICIAL: Mapping[str, Mapping[str, int]] = {"imp": {"max_new_tokens": 2000}}
# Published precision -> those of ours that are the same thing.
_SAME_PRECISION: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    "16-bit": ("fp16", "bf16"),
    "q4f16_1": ("int4",),
}
_PRECISION = {"femtodet": "fp32"}  # of workloads that have no such parameter
_SIZE_PX = {"mobilevlm": 336, "imp": 384, "imp/v1.5-3b-196": 196}  # where a run's `size` is 0: the model's own


@dataclass(frozen=True)
class Reason:
    """Why a figure of ours must not be compared with a published one: one of RULES, and the case in words."""

    rule: str
    detail: str


@dataclass(frozen=True)
class Comparison:
    """A published figure and, where there is one, the measurement of ours that fits it best.

    `why_none` says why there is none. Comparable: there is one and no reason against it.
    """

    figure: Figure
    run: Run | None = None
    result: Result | None = None
    reasons: tuple[Reason, ...] = ()
    why_none: str = ""

    @property
    def is_comparable(self) -> bool:
        return self.result is not None and not self.reasons

    @property
    def ratio(self) -> tuple[float, float | None] | None:
        """Ours over theirs, and the half-width of its interval (None: our number has no error bar).

        Both errors are in it: our 95 % interval and half a unit of the last digit they print, as independent parts.
        """
        if self.result is None or self.figure.value == 0:
            return None
        m, theirs = self.result.measurement, self.figure.value
        value = m.value / theirs
        if m.uncertainty is None or not math.isfinite(m.uncertainty):
            return value, None
        return value, math.hypot(m.uncertainty / theirs, value * self.figure.rounding / abs(theirs))


def comparisons(figures: Sequence[Figure], runs: Iterable[Run]) -> list[Comparison]:
    """Each figure with the best of these runs, in the order of the figures."""
    ours: dict[str, list[_Ours]] = {}
    for run in sorted(runs, key=lambda r: (r.created_utc, r.id), reverse=True):
        if run.error is None:
            ours.setdefault(model_of(run), []).append(_ours(run))
    return [_best(f, ours) for f in figures]


def model_of(run: Run) -> str:
    """The workload and variant of a run: "mobilevlm/v1-1.7b"; "" where the run does not tell the variant."""
    variant = run.engine.get("variant") or run.spec.get("variant") or "auto"
    if variant == "auto":  # FemtoDet's graph is named by it
        graphs = [k.removeprefix("model/").partition(".")[0] for k in run.artefacts if k.endswith(".onnx")]
        variant = graphs[0] if graphs else ""
    return f"{run.workload}/{variant}" if variant else ""


@dataclass(frozen=True)
class _Ours:
    """What figures are held against, of one run."""

    run: Run
    results: Mapping[str, Sequence[Result]]  # by metric
    hardware: str  # all that the device and the engine said
    prompt_tokens: float | None  # median of the windows' items; None: not counted
    answer_tokens: float | None


def _ours(run: Run) -> _Ours:
    results: dict[str, list[Result]] = {}
    for r in conclusions.results(run):
        results.setdefault(r.measurement.metric, []).append(r)
    hardware = " ".join(value for told in (run.device, run.engine) for _, value in flat(told))
    return _Ours(run, results, hardware, *_lengths(run))


def _best(figure: Figure, by_model: Mapping[str, Sequence[_Ours]]) -> Comparison:
    """Those of each model have the newest first, which is taken where several fit equally well."""
    if not figure.model:
        return Comparison(figure, why_none="none of our models; for context")
    if not figure.of.ours:
        return Comparison(figure, why_none="edgewatt does not measure this")
    found = [
        Comparison(figure, o.run, result, tuple(_reasons(figure, o, result)))
        for o in by_model.get(figure.model, ())
        if (result := _measured(figure, o)) is not None
    ]
    if found:
        return max(found, key=_fit)
    return Comparison(figure, why_none=_undecided(figure, by_model) or "no run of ours has it")


def _undecided(figure: Figure, by_model: Mapping[str, Sequence[_Ours]]) -> str:
    """Which run may be of the figure's model, if its checkpoint has the shape of several and none was named."""
    workload, _, variant = figure.model.partition("/")
    for model, ours in by_model.items():
        known = model.removeprefix(f"{workload}/")
        if known != model and " or " in known and variant in known.split(" or "):
            for o in ours:
                if _measured(figure, o) is not None:
                    return f"run {o.run.id} has it, of {known}, which are of one shape; set variant to say which"
    return ""


def _fit(c: Comparison) -> tuple[int, int]:
    """The later the strictest reason against it, the better; then the fewer."""
    return min((_ORDER[r.rule] for r in c.reasons), default=len(RULES)), -len(c.reasons)


def _measured(figure: Figure, ours: _Ours) -> Result | None:
    """The measurement of a run that is the same thing: a valid one before a voided one, of the whole before a phase's
    own, then of the meter that is trusted most."""

    def place(r: Result) -> tuple[bool, int, bool, int]:
        m = r.measurement
        external = conclusions.is_external(ours.run, m.meter)
        return not r.is_valid, phases.index(m.phase), not external, conclusions.breadth(m.boundary)

    for metric, phases in figure.of.ours:
        same = [r for r in ours.results.get(metric, ()) if r.measurement.phase in phases]
        if same:
            return min(same, key=place)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The rules


def _reasons(figure: Figure, ours: _Ours, result: Result) -> Iterator[Reason]:
    """Every reason against comparing, the strictest first."""
    run = ours.run
    is_quality = figure.of.kind == "quality"
    if figure.definition:
        yield Reason("metric", f"theirs: {figure.definition}")
    if figure.of.kind in ("speed", "energy", "state") and (said := _other_device(figure, ours)):
        yield Reason("device", said)
    if said := _other("engine", figure.engine, str(run.engine.get("engine") or run.spec.get("engine") or "")):
        yield Reason("engine", said)
    if said := _other_precision(figure, run):
        yield Reason("precision", said)
    if is_quality and (conclusions.has_synthetic_weights(run) or run.spec.get("weights") == "synthetic"):
        yield Reason("weights", "our weights are synthetic: quality means nothing")
    if said := _other_size(figure, run):
        yield Reason("size", said)
    if is_quality and (said := _other_questions(run, result.measurement.method)):
        yield Reason("questions", said)
    if figure.of.is_textual and (said := _other_length(figure, ours)):
        yield Reason("length", said)
    if figure.quantity.startswith("vision") and (pictures := run.spec.get("images_per_question", 1)) != 1:
        yield Reason("length", f"theirs: one picture, ours: {pictures}")
    if conclusions.is_simulated(run):
        yield Reason("simulated", "our device is simulated")
    if not result.is_valid:
        yield Reason("void", f"ours is void: {result.void_reason}")


def _other(what: str, theirs: str, ours: str) -> str:
    """In words how two names differ; "" where they do not."""
    if not theirs:
        return f"their {what} is not stated"
    return "" if theirs == ours else f"theirs: {theirs}, ours: {ours or 'unknown'}"


def _other_device(figure: Figure, ours: _Ours) -> str:
    run, facts = ours.run, ours.hardware
    if not figure.chip:
        return "their processor is not stated"
    if not _is_named(figure.chip, facts):
        return f"theirs: {figure.chip}, ours: {run.device_name}"
    provider = str(run.engine.get("provider_used") or run.spec.get("provider") or "cpu").lower()
    part = "cpu" if provider.startswith("cpu") else "gpu" if provider.startswith(("cuda", "tensorrt", "gpu")) else ""
    if not figure.part:
        return "whether theirs ran on CPU or GPU is not stated"
    if figure.part != part:
        return f"theirs: {figure.part.upper()} of that chip, ours: {part.upper() or provider}"
    device = figure.printed["device"]
    if device in _UNNAMED:
        return f"the same chip, but their device is not named ({device})"
    if device in _HARDWARE and not _is_named(device, facts):
        return f"the same chip in another device, theirs: {device}"
    return ""


def _is_named(hardware: str, facts: str) -> bool:
    pattern = _HARDWARE.get(hardware)
    return pattern is not None and re.search(pattern, facts, re.IGNORECASE) is not None


def _other_precision(figure: Figure, run: Run) -> str:
    ours = str(run.engine.get("precision") or run.spec.get("precision") or _PRECISION.get(run.workload, ""))
    if not figure.scheme:
        return "their precision is not stated"
    if ours in _SAME_PRECISION.get(figure.scheme, ()):
        return ""
    printed = figure.printed["precision"]
    return f"theirs: {printed}, ours: {ours or 'unknown'}"


def _other_size(figure: Figure, run: Run) -> str:
    own = _SIZE_PX.get(model_of(run), _SIZE_PX.get(run.workload))
    ours = run.engine.get("image_px") or run.spec.get("size") or own
    if figure.size_px is None:
        return "the size of their pictures is not stated"
    return "" if figure.size_px == ours else f"theirs: {figure.size_px} px, ours: {ours or 'unknown'} px"


def _other_questions(run: Run, method: str) -> str:
    """Published scores are of all questions of the default split, asked the checkpoint's own way, greedily.

    A run that ended before all questions were asked has no `limit`: the method of its score tells.
    """
    part = _PART.search(method)
    if part:
        asked = [part[1]]
    elif run.spec.get("limit") is not None and "whole)" not in method:
        asked = [f"{run.spec['limit']} questions or pictures alone"]
    else:
        asked = []
    asked += [_WITHOUT_OCR] if _WITHOUT_OCR in method else []
    official = _OFFICIAL.get(run.workload, {})
    asked += [f"{k} {run.spec[k]}" for k in _ASKING if run.spec.get(k) and run.spec[k] != official.get(k)]
    return f"ours: {', '.join(asked)}" if asked else ""


def _other_length(figure: Figure, ours: _Ours) -> str:
    """Of the prompt, pictures' tokens included, and of the answer where it matters."""
    said = [_other_count("prompt", figure.prompt_tokens, ours.prompt_tokens)]
    if not figure.quantity.startswith("prefill"):
        said.append(_other_count("answer", figure.output_tokens, ours.answer_tokens))
    return "; ".join(s for s in said if s)


def _other_count(what: str, theirs: int | None, ours: float | None) -> str:
    if theirs is None:
        return f"the length of their {what} is not stated"
    if ours is None:
        return f"the length of our {what} is not known"
    return "" if abs(ours - theirs) <= _ALIKE * theirs else f"{what} of {theirs} tokens, ours: {ours:.4g}"


def _lengths(run: Run) -> tuple[float | None, float | None]:
    """Median tokens of the prompt and of the answer, by the items of the windows; None: they were not counted."""
    items = run.items
    if "window" not in items.parts:
        return None, None
    is_window = items.part == items.parts.index("window")

    def counted(phase: str) -> float | None:
        if phase not in items.names:
            return None
        rows = is_window & (items.phase == items.names.index(phase))
        if not items.tokens[rows].any():
            return None
        each = np.stack([items.repeat[rows], items.item[rows]])
        _, place = np.unique(each, axis=1, return_inverse=True)
        return float(np.median(np.bincount(place.ravel(), weights=items.tokens[rows])))

    prompt, decoded = counted("prefill"), counted("decode")
    # The first token of an answer comes of the prefill.
    return prompt, None if decoded is None else decoded + 1


# ---------------------------------------------------------------------------------------------------------------------
# In words


def theirs_in_words(figure: Figure) -> str:
    """The published value as it was printed (digits that a table's arithmetic left apart)."""
    printed = figure.printed["value"]
    number = f"{float(printed):.7g}" if len(printed) > 10 and "." in printed else printed
    return f"{number} {_unit(figure)}".rstrip()


def ours_in_words(c: Comparison) -> str:
    """Our value, in the unit that they printed; "" where there is none."""
    if c.result is None:
        return ""
    m, factor = c.result.measurement, c.figure.factor
    error = None if m.uncertainty is None else m.uncertainty / factor
    return f"{format_quantity(m.value / factor, error, '')} {_unit(c.figure)}".rstrip()


def ratio_in_words(c: Comparison) -> str:
    """The ratio with its interval, "0.953 ± 0.021"; "" where there is none."""
    return "" if c.ratio is None else format_quantity(c.ratio[0], c.ratio[1], "1")


def setup(figure: Figure) -> str:
    """How it was obtained, as printed: device, processor, engine, precision."""
    told = (figure.printed[k] for k in ("device", "processor", "backend", "precision"))
    return ", ".join(t for t in told if t not in NOT_STATED) or "how it was obtained is not stated"


def _unit(figure: Figure) -> str:
    return {"percent": "%", "fps": "FPS", "degC": "°C"}.get(figure.printed_unit, figure.printed_unit)
