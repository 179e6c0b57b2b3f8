"""Published figures of MobileVLM, Imp, FemtoDet and what they were compared with: rows of CSV files, checked.

Each row of `published_*.csv` has the figure as it was printed (columns `system` to `source`), what it is in our words
(docs/published-figures.md) and the names of the notes in `published_notes.csv` that speak of it.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.harness.plugins import nearest

SYSTEMS = ("femtodet", "imp", "mobilevlm")
NOT_STATED = ("", "not stated")
Kind = Literal["quality", "speed", "energy", "size", "state", "fact"]


@dataclass(frozen=True)
class Quantity:
    """What a published figure is a figure of, in our words.

    `ours` are the measurements of a run that are the same thing, (metric, phases), the first that a run has; none:
    edgewatt does not measure it. `low` and `high` bound what is no slip of the pen, in `unit`.
    """

    words: str
    unit: str  # SI; "1" for shares and counts
    kind: Kind
    ours: tuple[tuple[str, tuple[str, ...]], ...] = ()
    low: float = 0.0
    high: float = 1.0
    is_textual: bool = False  # depends on how long the prompt and the answer are


_WHOLE = ("window", "run", "")


def _same(metric: str, *phases: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return ((metric, (*_WHOLE, *phases)),)


QUANTITIES: Mapping[str, Quantity] = {
    "gqa_accuracy": Quantity("GQA accuracy", "1", "quality", _same("gqa_accuracy")),
    "pope_f1": Quantity("POPE F1", "1", "quality", _same("pope_f1")),
    "textvqa_accuracy": Quantity("TextVQA accuracy", "1", "quality", _same("textvqa_accuracy")),
    "scienceqa_image_accuracy": Quantity("ScienceQA accuracy, with image", "1", "quality",
                                         _same("scienceqa_image_accuracy")),
    "mme_perception": Quantity("MME perception", "points", "quality", _same("mme_perception"), high=2000),
    "mmbench_accuracy": Quantity("MMBench accuracy", "1", "quality", _same("mmbench_accuracy")),
    "mmbench_cn_accuracy": Quantity("MMBench-CN accuracy", "1", "quality"),
    "vqav2_accuracy": Quantity("VQAv2 accuracy", "1", "quality"),
    "vizwiz_accuracy": Quantity("VizWiz accuracy", "1", "quality"),
    "mmvet_score": Quantity("MM-Vet score", "points", "quality", high=100),
    "benchmark_average": Quantity("Mean of six benchmarks", "points", "quality", high=100),
    "ap": Quantity("AP", "1", "quality", _same("ap")),
    "ap50": Quantity("AP50", "1", "quality", _same("ap50")),
    "performance_change": Quantity("Change of performance", "1", "quality", low=-1),
    "vision_s": Quantity("Vision encoding", "s", "speed", (*_same("vision_s", "vision"), ("latency_s", ("vision",))),
                         high=3600),
    "vision_s_per_patch": Quantity("Vision encoding per patch", "s", "speed"),
    "image_prefill_s": Quantity("Prefill of the image alone", "s", "speed", high=3600, is_textual=True),
    "prefill_tokens_per_s": Quantity("Prefill speed", "tokens/s", "speed", _same("prefill_tokens_per_s", "prefill"),
                                     high=1e6, is_textual=True),
    "prefill_s": Quantity("Prefill", "s", "speed", (("latency_s", ("prefill",)),), high=3600, is_textual=True),
    "decode_tokens_per_s": Quantity("Decoding speed", "tokens/s", "speed", _same("decode_tokens_per_s", "decode"),
                                    high=1e5, is_textual=True),
    "decode_s": Quantity("Decoding", "s", "speed", (("latency_s", ("decode",)),), high=3600, is_textual=True),
    "sampling_tokens_per_s": Quantity("Sampling speed", "tokens/s", "speed", high=1e6),
    "end_to_end_tokens_per_s": Quantity("Tokens over the total time", "tokens/s", "speed", high=1e5, is_textual=True),
    "total_s": Quantity("Whole answer", "s", "speed", _same("latency_s"), high=3600, is_textual=True),
    "latency_s": Quantity("Latency", "s", "speed", _same("latency_s"), high=60),
    "throughput_fps": Quantity("Throughput", "fps", "speed", _same("throughput_fps"), high=1e5),
    "load_s": Quantity("Loading the model", "s", "speed", _same("load_s", "load"), high=3600),
    "power_w": Quantity("Power", "W", "energy", _same("power_w"), high=1000),
    "power_peak_w": Quantity("Power, highest", "W", "energy", high=1000),
    "energy_change": Quantity("Change of energy", "1", "energy", low=-1),
    "current_a": Quantity("Battery current", "A", "energy", high=20),
    "peak_memory_bytes": Quantity("Peak memory", "B", "state", _same("peak_memory_bytes", "load"), high=1e12),
    "memory_share": Quantity("Share of memory", "1", "state"),
    "model_bytes": Quantity("Model size", "B", "size", _same("model_bytes", "load"), high=1e12),
    "checkpoint_bytes": Quantity("Checkpoint on disk", "B", "size", high=1e12),
    "file_bytes": Quantity("File on disk", "B", "size", high=1e12),
    "tensor_bytes": Quantity("Tensors of the checkpoint", "B", "size", high=1e12),
    "tensors": Quantity("Number of tensors", "1", "fact", high=1e5),
    "parameters": Quantity("Parameters", "1", "fact", high=1e12),
    "projector_parameters": Quantity("Parameters of the projector", "1", "fact", high=1e12),
    "flops": Quantity("FLOPs, as printed", "1", "fact", high=1e15),
    "image_tokens": Quantity("Tokens of an image", "tokens", "fact", high=1e4),
    "prompt_tokens": Quantity("Tokens of the prompt", "tokens", "fact", high=1e5),
    "output_tokens": Quantity("Tokens of the answer", "tokens", "fact", high=1e5),
    "temperature_max_c": Quantity("Temperature, highest", "degC", "state", low=-40, high=150),
    "cpu_load": Quantity("CPU load", "1", "state", high=64),
    "gpu_load": Quantity("GPU load", "1", "state"),
}  # fmt: skip

# Unit as printed, without the remark in brackets behind some -> what to multiply by, and the unit it then has.
_UNITS: Mapping[str, tuple[float, str]] = {
    "percent": (0.01, "1"),
    "percent of 800": (0.01, "1"),
    "percent of 16 GB": (0.01, "1"),
    "percent_of_one_core": (0.01, "1"),
    "points": (1.0, "points"),
    "tokens/s": (1.0, "tokens/s"),
    "fps": (1.0, "fps"),
    "tokens": (1.0, "tokens"),
    "tensors": (1.0, "1"),
    "k": (1e3, "1"),
    "M": (1e6, "1"),
    "G": (1e9, "1"),
    "s": (1.0, "s"),
    "ms": (1e-3, "s"),
    "ms/patch": (1e-3, "s"),
    "W": (1.0, "W"),
    "A": (1.0, "A"),
    "mA": (1e-3, "A"),
    "degC": (1.0, "degC"),
    "GB": (1e9, "B"),
    "MB": (1e6, "B"),
    "bytes": (1.0, "B"),
}
ENGINES = ("torch", "llamacpp", "mlc", "ncnn", "paddle-lite", "paddle-inference", "")
PARTS = ("cpu", "gpu", "")
NOTE_KINDS = ("conflict", "doubt", "definition", "context", "rounding", "duplicate")


@dataclass(frozen=True)
class Note:
    """What has to be known of some rows. `kind`: one of NOTE_KINDS."""

    name: str
    kind: str
    text: str


@dataclass(frozen=True)
class Figure:
    """One published figure: `printed` is its row as it was collected, the rest what we make of it."""

    key: str  # of the row: its file and number there
    printed: Mapping[str, str]  # system, variant, device, processor, backend, precision, metric, value, unit, source
    quantity: str  # one of QUANTITIES
    model: str  # "mobilevlm/v1-1.7b": a workload and its variant; "": none of ours
    chip: str  # "": not stated
    part: str  # cpu, gpu or "" where it is not stated
    engine: str  # as ours are named; "": not stated
    scheme: str  # of the weights: fp16, 16-bit, q4_k_s, ...; "": not stated
    size_px: int | None  # side of the pictures
    prompt_tokens: int | None  # those of pictures included
    output_tokens: int | None
    definition: str  # how the figure is defined, where that is not how we define it; "": the same
    notes: tuple[Note, ...]
    conflicts_with: tuple[str, ...]  # keys of other rows

    @property
    def of(self) -> Quantity:
        return QUANTITIES[self.quantity]

    @property
    def topic(self) -> str:
        """The system whose literature it was collected with."""
        return self.key.rpartition("-")[0]

    @property
    def printed_unit(self) -> str:
        """Without the remark in brackets that stands behind some."""
        return self.printed["unit"].partition(" (")[0]

    @property
    def factor(self) -> float:
        """From the unit as printed to the quantity's own."""
        return _UNITS[self.printed_unit][0]

    @property
    def value(self) -> float:
        """In the quantity's own unit."""
        return float(self.printed["value"]) * self.factor

    @property
    def rounding(self) -> float:
        """Half a unit of the last digit printed, in the quantity's own unit."""
        decimals = len(self.printed["value"].partition(".")[2])
        return 0.5 * 10.0**-decimals * self.factor


def load(system: str = "", folder: Path | None = None) -> tuple[Figure, ...]:
    """The figures collected with one system, and those of its models collected with another; "": all of them.

    UsageError for a system that there is none of; HarnessError that names the row if a file is damaged.
    """
    if system and system not in SYSTEMS:
        raise UsageError(f"published figures: no system {system!r}; {nearest(system, SYSTEMS)}")
    every = _every(folder or Path(__file__).parent)
    return tuple(f for f in every if not system or f.topic == system or f.model.startswith(f"{system}/"))


def notes_of(figures: Iterable[Figure]) -> tuple[Note, ...]:
    """The notes that speak of any of these, each once."""
    return tuple(dict.fromkeys(n for f in figures for n in f.notes))


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@cache
def _every(folder: Path) -> tuple[Figure, ...]:
    notes = _notes(folder / "published_notes.csv")
    found: list[Figure] = []
    for system in SYSTEMS:
        path = folder / f"published_{system}.csv"
        for number, row in enumerate(_rows(path, (*_PRINTED, *_ADDED)), 2):
            try:
                found.append(_figure(row, notes))
            except (ValueError, KeyError) as error:
                raise HarnessError(f"{path.name}, line {number}: {error}; install edgewatt anew") from error
    _check_whole(found)
    return tuple(found)


_PRINTED = ("system", "variant", "device", "processor", "backend", "precision", "metric", "value", "unit", "source")
_ADDED = ("key", "quantity", "model", "chip", "part", "engine", "scheme", "size_px", "prompt_tokens", "output_tokens",
          "definition", "note", "conflicts_with")  # fmt: skip


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, strict=True, restkey="too many")
            rows = list(table)
    except (OSError, ValueError, csv.Error) as error:
        raise HarnessError(f"{path.name}: cannot be read ({error}); install edgewatt anew") from error
    found = set(table.fieldnames or ())
    if found != set(columns):
        raise HarnessError(f"{path.name}: has columns {sorted(found)}, not {sorted(columns)}; install edgewatt anew")
    for number, row in enumerate(rows, 2):
        if "too many" in row or None in row.values():
            raise HarnessError(f"{path.name}, line {number}: not {len(columns)} fields; install edgewatt anew")
    return rows


def _notes(path: Path) -> dict[str, Note]:
    found = [Note(**row) for row in _rows(path, ("name", "kind", "text"))]
    for n in found:
        if n.kind not in NOTE_KINDS or not n.text:
            raise HarnessError(f"{path.name}: note {n.name} is of kind {n.kind!r}; install edgewatt anew")
    if len({n.name for n in found}) < len(found):
        raise HarnessError(f"{path.name}: has two notes of one name; install edgewatt anew")
    return {n.name: n for n in found}


def _figure(row: Mapping[str, str], notes: Mapping[str, Note]) -> Figure:
    """ValueError or KeyError that says what is wrong with the row."""
    quantity = QUANTITIES[row["quantity"]]
    for column in ("key", "system", "variant", "metric", "value", "unit", "source"):
        if not row[column].strip():
            raise ValueError(f"{column} is empty")
    made = Figure(
        key=row["key"],
        printed={k: row[k] for k in _PRINTED},
        quantity=row["quantity"],
        model=row["model"],
        chip=row["chip"],
        part=_one_of(row, "part", PARTS),
        engine=_one_of(row, "engine", ENGINES),
        scheme=row["scheme"],
        size_px=_count(row, "size_px"),
        prompt_tokens=_count(row, "prompt_tokens"),
        output_tokens=_count(row, "output_tokens"),
        definition=row["definition"],
        notes=tuple(notes[name] for name in row["note"].split()),
        conflicts_with=tuple(row["conflicts_with"].split()),
    )
    if _UNITS[made.printed_unit][1] != quantity.unit:
        raise ValueError(f"{row['unit']} is no unit of {row['quantity']}")
    if made.model and not re.fullmatch(r"(femtodet|imp|mobilevlm)/[a-z0-9._-]+", made.model):
        raise ValueError(f"model {made.model!r} is no workload and variant")
    if not (math.isfinite(made.value) and quantity.low <= made.value <= quantity.high):
        raise ValueError(f"{row['value']} {row['unit']} is no {row['quantity']}")
    return made


def _one_of(row: Mapping[str, str], column: str, known: Sequence[str]) -> str:
    if row[column] not in known:
        raise ValueError(f"{column} {row[column]!r} is none of {', '.join(k for k in known if k)}")
    return row[column]


def _count(row: Mapping[str, str], column: str) -> int | None:
    if not row[column]:
        return None
    count = int(row[column])
    if not 0 < count < 1_000_000:
        raise ValueError(f"{column} is {count}")
    return count


def _check_whole(figures: Sequence[Figure]) -> None:
    """What holds between rows: keys are unique, no row is there twice, a conflict is told on both sides."""
    by_key = {f.key: f for f in figures}
    what = {tuple(v for k, v in f.printed.items() if k != "value") for f in figures}
    if len(by_key) < len(figures) or len(what) < len(figures):
        raise HarnessError("published figures: a row is there twice; install edgewatt anew")
    for f in figures:
        for other in f.conflicts_with:
            if other == f.key or other not in by_key or f.key not in by_key[other].conflicts_with:
                raise HarnessError(f"published figures: {f.key} contradicts {other}, not the other way round")
        if f.conflicts_with and all(n.kind != "conflict" for n in f.notes):
            raise HarnessError(f"published figures: {f.key} contradicts another without a note that says how")
