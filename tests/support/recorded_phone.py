"""A phone out of recorded texts, for meters that only look: what its files and tools said, and agents that replay."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import AgentProcess, Exit

DATA = Path(__file__).parents[1] / "data" / "android"
NAMES = ("pixel6", "pixel7", "pixel8", "sm8650", "sm8250-ma", "sm8350-inv")
MISSING = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Done:
    status: int | None = 0
    stdout: bytes = b""
    stderr: str = ""


@dataclass
class RecordedPhone:
    """What a meter asks of a phone. `rows` are what its agent samples: (t_ns, read_ns, columns)."""

    seen: Snapshot
    options: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[tuple[int, int, Sequence[int]]] = ()
    shell: Callable[..., Done] = lambda *_, **__: Done()
    name: str = "phone"
    kind: str = "android"
    address: str = "192.0.2.7:5555"
    clock: str = "boottime"
    is_root: bool = False
    is_usb: bool = False
    jobs: list[Mapping[str, Any]] = field(default_factory=list)

    def start(self, verb: str, job: Mapping[str, Any]) -> AgentProcess:
        assert verb == "sample"
        self.jobs.append(job)
        return Replay(self.rows)


class Replay(AgentProcess):
    """An agent that has sampled already."""

    def __init__(self, rows: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        self._rows = rows

    def events(self, silence_s: float | None = None) -> Iterator[Mapping[str, Any]]:
        yield {"event": "hello", "protocol": 1, "clock": "boottime"}
        yield {"event": "sampling", "scheduling": "other"}
        t, read, values = zip(*self._rows, strict=True)
        yield {
            "event": "frames", "n": len(t), "form": "int64",
            "t_ns": packed(t), "read_ns": packed(read), "values": packed(np.array(values).ravel()),
        }  # fmt: skip
        yield {"event": "sampled", "n": len(t), "cpu_s_per_s": 0.001}
        yield {"event": "end", "reason": "asked"}

    def stop(self, grace_s: float = 5.0) -> Exit:
        return Exit(0, None, "")


def packed(numbers: Any) -> str:
    return base64.b64encode(np.asarray(numbers, "<i8").tobytes()).decode()


def snapshot(name: str, **changed: str | None) -> Snapshot:
    """What a phone of the lab said; `changed` gives files (by the end of their path) other texts; None: no file."""
    told = json.loads((DATA / f"{name}.json").read_text("utf-8"))
    files = told["files"]
    for path in list(files):
        for end, text in changed.items():
            if path.endswith(f"/{end}"):
                files.pop(path)
                if text is not None:
                    files[path] = {"text": text}
    return Snapshot(files=files, tools=told["tools"])


def phone(name: str, **more: Any) -> RecordedPhone:
    """A phone of the lab as it was recorded."""
    return RecordedPhone(snapshot(name), **more)
