"""The memory a network takes while it is loaded and run, and what there is: told before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm import cost, layouts
from edgewatt.workloads.vlm.architecture import Architecture
from edgewatt.workloads.vlm.cost import Precision

# Python with torch, transformers and onnxruntime loaded takes 420 MiB (torch 2.13 on Linux, 2026-11), the rest is for
# blocks being converted and freed memory that the C library keeps.
PROCESS_BYTES = 600 << 20
_ROOM = 256  # tokens the cache holds beyond the prompt from the start (network.ROOM)
_GROUP_BYTES = 18  # of 32 weights in q4f16_1
_GROUP_BYTES_FAST = 28  # the same in onnxruntime's hands (quantised.ORT_GROUP_BYTES)
_SMALLER: Mapping[Precision, tuple[Precision, ...]] = {
    "fp32": ("bf16", "int8", "int4"), "bf16": ("int8", "int4"), "fp16": ("int8", "int4"), "int8": ("int4",), "int4": ()
}  # fmt: skip


@dataclass(frozen=True)
class Needed:
    """Bytes, by what they are for."""

    weights: int  # of what is run, as it is kept
    loading: int  # beside them, while the largest tensor is being converted
    cache: int  # keys and values of all tokens
    activations: int  # of the largest layer, on all tokens of the prompt or all patches of the pictures
    process: int = PROCESS_BYTES

    @property
    def peak(self) -> int:
        return self.process + self.weights + max(self.loading, self.cache + self.activations)


@dataclass(frozen=True)
class Asked:
    """What is to be run."""

    architecture: Architecture
    precision: Precision
    tokens: int  # the longest prompt, pictures' places included, and what may be said after it
    pictures: int = 1  # of one prompt; they go through the tower together
    stored_bytes: int = 2  # of a number in the checkpoint
    fast: bool = True  # int4 on a CPU by its fast kernel, which keeps more than the 4 bits and their scale

    def needed(self) -> Needed:
        """What it takes, from above."""
        architecture, precision = self.architecture, self.precision
        shapes = {k: s for k, s in layouts.official_keys(architecture).items() if layouts.is_run(architecture, k)}
        largest = max(math.prod(s) for s in shapes.values())
        number = 4 if precision == "fp32" else 2
        text, vision = architecture.text, architecture.vision
        # Per token: the layer's inputs and outputs and those of its wider half, some of them in float32.
        wide = max(
            self.tokens * (8 * text.hidden + 4 * text.mlp),
            self.pictures * vision.positions * (8 * vision.hidden + 4 * vision.mlp),
        )
        return Needed(
            weights=sum(_held(k, s, precision, self.fast) for k, s in shapes.items()),
            loading=largest * (self.stored_bytes + (1 if precision in ("int4", "int8") else 0)),
            cache=(self.tokens + _ROOM) * cost.kv_bytes_per_token(architecture, number),
            activations=4 * (wide + 2 * text.vocab),
        )


def available(root: Path = Path("/")) -> int:
    """Bytes this process can still take: of the machine, and of the control groups it is in (Linux, v1 and v2)."""
    return min([psutil.virtual_memory().available, *_left_in_groups(root)])


def check(asked: Asked, left: int | None = None) -> Needed:
    """What it takes, if that much is left; `left`: bytes, None: `available`.

    Raises:
        UsageError: less is left; both figures and the next step.
    """
    wanted, left = asked.needed(), available() if left is None else left
    if wanted.peak <= left:
        return wanted
    fitting = [p for p in _SMALLER[asked.precision] if replace(asked, precision=p).needed().peak <= left]
    raise UsageError(
        f"precision={asked.precision} takes {_gb(wanted.peak)} of memory (weights {_gb(wanted.weights)}, cache of "
        f"{asked.tokens} tokens {_gb(wanted.cache)}, activations {_gb(wanted.activations)}), and {_gb(left)} are left; "
        + (f"set precision to {fitting[0]}, or free some" if fitting else "free some, or choose a smaller variant")
    )


def _held(key: str, shape: tuple[int, ...], precision: Precision, fast: bool) -> int:
    """Bytes one tensor takes in the network."""
    if len(shape) != 2 or precision not in ("int8", "int4"):
        return math.prod(shape) * (4 if precision == "fp32" else 2)
    rows, columns = shape
    if precision == "int8":
        return rows * (columns + 2)
    is_table = key.endswith(("embed_tokens.weight", "position_embedding.weight"))
    return rows * math.ceil(columns / 32) * (_GROUP_BYTES_FAST if fast and not is_table else _GROUP_BYTES)


def _left_in_groups(root: Path) -> list[int]:
    """What is left below the limit of each memory control group of this process, its parents' included."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mount = root / "sys/fs/cgroup/memory"
        else:
            continue
        inner = Path(path.lstrip("/"))
        for group in (mount / inner, *(mount / parent for parent in inner.parents)):  # in a container `path` is outside
            left = _left_in(group, *names)
            found += [] if left is None else [left]
    return found


def _left_in(group: Path, limit_name: str, used_name: str, cached_name: str) -> int | None:
    limit, used = _text(group / limit_name).strip(), _text(group / used_name).strip()
    if not (limit.isdecimal() and used.isdecimal()):  # no such file, or no limit ("max")
        return None
    stat = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    cached = stat.get(cached_name, "0").strip()  # files read before: given up as soon as memory is wanted
    return max(0, int(limit) - int(used) + (int(cached) if cached.isdecimal() else 0))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
