"""What both vision-language workloads share: their parameters, the job for a device, what is made of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgewatt.harness.api import Device, Flag, HarnessError, Job, Score, UsageError, Workload
from edgewatt.harness.flags import DRAWN_SCENES, SYNTHETIC_WEIGHTS
from edgewatt.harness.plugins import nearest
from edgewatt.workloads.vlm import answers, prompts, questions, subject
from edgewatt.workloads.vlm.architecture import System
from edgewatt.workloads.vqa import dataset

SYNTHETIC = "synthetic"
PHASES = ("preprocess", "vision", "prefill", "decode")
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4")
ENGINES = ("torch",)
FEW = 2  # drawn scenes, where nobody said how many: one answer of a full-size model takes seconds to minutes


@dataclass(frozen=True)
class VisionLanguage(Workload):
    """Answer questions about pictures, one at a time."""

    system: ClassVar[System]
    # Benchmarks whose official runner makes pictures square in another way than the checkpoint says.
    _IMAGE_MODES: ClassVar[Mapping[str, str]] = {}

    variant: str = "auto"  # by the checkpoint; with synthetic weights the system's smallest
    weights: str = SYNTHETIC  # a checkpoint's folder, its id on the hub, or "synthetic": drawn from `seed`
    precision: str = "bf16"  # fp32, bf16, fp16, or weights alone in int8 or int4 (groups of 32, as q4f16_1)
    exact: bool = False  # multiply by the quantised weights' exact values, even where that is slow
    data: Path | None = None  # a picture, a folder of pictures, or what `dataset` needs; None: drawn scenes
    dataset: str = ""  # a benchmark whose questions lie in `data`: gqa, pope, textvqa, scienceqa, mme, mmbench
    images_dir: Path | None = None  # where the benchmark's pictures lie, if not beside its questions
    split: str = ""  # of the benchmark; "": the one its scores are published for
    limit: int | None = None  # so many questions, a benchmark's drawn at random from `seed`
    strict: bool = False  # refuse files that are missing or no picture, instead of leaving them out
    question: str = "Describe the image concisely."  # asked about each picture, where there is no benchmark
    images_per_question: int = 1  # 0: no picture at all
    template: str = ""  # of the conversation; "": the checkpoint's own
    image_mode: str = ""  # pad, crop or square; "": the checkpoint's own
    size: int = 0  # side of the tower's input in pixels; 0: the checkpoint's own
    max_new_tokens: int = 0  # 0: what MobileVLM's official runner of the benchmark allows, for Imp too; else 64
    ignore_eos: bool = False  # go on to max_new_tokens whatever is said: every item is of one length
    temperature: float = 0.0  # 0: the likeliest token each time
    top_p: float = 1.0
    top_k: int = 50  # 0: no limit; 50 is what the official code draws from, where it draws at all
    engine: str = "torch"
    provider: str = "cpu"
    threads: int = 0  # 0: as many as there are cores
    vision_tower: Path | None = None  # a folder with the tower's own weights, that take the place of the checkpoint's
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("engine", self.engine, ENGINES),
            ("image_mode", self.image_mode, ("", "pad", "crop", "square")),
            ("dataset", self.dataset, ("", *dataset.NAMES)),
            ("variant", self.variant, ("auto", *subject.variants(self.system))),
        ):
            if value not in known:
                raise UsageError(f"{key}={value!r} is unknown; {nearest(value, [k for k in known if k])}")
        if self.template:
            prompts.template_name(self.template)
        for key, least, most in (
            ("images_per_question", 0, 16), ("size", 0, 1024), ("max_new_tokens", 0, 1 << 20), ("threads", 0, 1024),
            ("top_k", 0, 1 << 20),
        ):  # fmt: skip
            if not least <= getattr(self, key) <= most:
                raise UsageError(f"{key}={getattr(self, key)}: wanted {least} to {most}")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature={self.temperature:g}: wanted 0 (the likeliest token) to 100")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p:g}: wanted more than 0 and at most 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit={self.limit}: wanted at least 1 question; leave limit out to ask all")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed={self.seed}: wanted a whole number from 0 to 2**63 - 1")
        if self.dataset and self.data is None:
            raise UsageError(f"dataset={self.dataset}: set data to where its questions lie")

    def prepare(self, device: Device) -> Job:
        if device.agent_kind != "python":
            raise UsageError(
                f"{device.name}: runs graphs on tensors alone, and {self.name} needs Python and torch; "
                "run it on the host or a board"
            )
        asked, about = self._asked()
        chosen = subject.chosen(self.system, self.variant, self.weights, self.size, self.vision_tower)
        what = chosen.architecture
        image_mode = self.image_mode or self._IMAGE_MODES.get(self.dataset, "")
        asked.check_sizes(what.vision.image_px, image_mode or what.image_mode)
        weights = SYNTHETIC if chosen.folder is None else device.put(chosen.folder)
        have_pictures = [bool(i.pictures) for i in asked.items]
        pushed = {p: device.put(p) for item in asked.items for p in item.pictures}
        return Job(
            runner="edgewatt.workloads.vlm.runner:VisionLanguageRunner",
            params={
                "system": self.system,
                "variant": self.variant,
                "weights": weights,
                "vision_tower": None if self.vision_tower is None else device.put(self.vision_tower),
                "items": [
                    {"id": i.id, "question": i.question, "pictures": [pushed[p] for p in i.pictures]}
                    for i in asked.items
                ],
                "max_new_tokens": self.max_new_tokens or dataset.MAX_NEW_TOKENS.get(self.dataset, 64),
                **{key: getattr(self, key) for key in _PASSED},
                "image_mode": image_mode,
                **about,
            },
            item_count=len(asked.items),
            item_phases=PHASES if any(have_pictures) else tuple(p for p in PHASES if p != "vision"),
            # A phase with nothing to do for some questions would be looped over those too.
            isolate=PHASES if all(have_pictures) else ("prefill", "decode"),
            artefacts={"questions": asked.sha256, **chosen.artefacts()},
        )

    def _asked(self) -> tuple[questions.Questions, dict[str, Any]]:
        """The items of the run, and what their answers are scored by."""
        if not self.dataset:
            limit = self.limit if self.limit or self.data else FEW
            args = (self.data, self.question, self.images_per_question, limit, self.strict, self.seed)
            found = questions.of_pictures(*args)
            return found, {"warnings": list(found.warnings), "benchmark": None}
        assert self.data is not None
        opened = dataset.open(
            self.dataset, self.data, split=self.split, limit=self.limit, seed=self.seed, images_dir=self.images_dir
        )
        found = questions.of_benchmark(opened.questions)
        return found, {"warnings": list(opened.warnings), "benchmark": opened.as_json()}

    def score(self, outputs: Path, into: Path) -> Score:
        """The benchmark's own score, where there is one; answers.jsonl, in the form of the official runners."""
        try:
            left = answers.read(outputs)
        except HarnessError as error:
            return Score(warnings=(f"no answers and no score: {error}",))
        return answers.score(left, into, self.system, self.seed)

    def flags(self) -> Sequence[Flag]:
        found = []
        if self.weights == SYNTHETIC:
            detail = (
                f"the weights are random (seed {self.seed}) and so are the answers; speed and energy are those of a "
                "network of this size; set weights to a checkpoint"
            )
            found.append(Flag(SYNTHETIC_WEIGHTS, dataset.METRICS if self.dataset else (), detail))
        if self.data is None and self.images_per_question:
            detail = f"scenes drawn from seed {self.seed}; set data to your own pictures"
            found.append(Flag(DRAWN_SCENES, (), detail))
        return tuple(found)


# Parameters that the runner needs as they are.
_PASSED = (
    "precision", "exact", "template", "image_mode", "size", "ignore_eos", "temperature", "top_p", "top_k", "provider",
    "threads", "seed",
)  # fmt: skip
