"""What the events of an agent's `run` verb amount to (docs/agent-protocol.md): phases, items, the engine's facts."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgewatt.harness.api import HarnessError, Ints, Items, Phase


def int64s(text: str) -> Ints:
    """Little-endian int64 array (n,) out of base64."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<i8").astype(np.int64)


@dataclass
class Record:
    """Grows event by event; says at any time how far the run has come."""

    clock: str = "boottime"
    stage: str = "start"  # the phase now running
    repeat: int = 0
    items_done: int = 0
    tokens_done: int = 0  # in the item at hand
    step_s: float = 0.0  # how long the step at hand has taken so far
    share: float = 0.0
    engine: dict[str, Any] = field(default_factory=dict)
    steady: list[Mapping[str, Any]] = field(default_factory=list)
    saved: str | None = None
    error: Mapping[str, Any] | None = None
    ended: str | None = None  # the reason of the `end` event
    is_done: bool = False
    _phases: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    _batches: list[Mapping[str, Any]] = field(default_factory=list)

    def take(self, event: Mapping[str, Any]) -> None:
        """One event more. HarnessError if it lacks what the protocol promises."""
        try:
            self._take(event)
        except (KeyError, TypeError, ValueError) as error:
            raise HarnessError(f"agent: event {event.get('event')!r} is not as the protocol says: {error!r}") from error

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "hello":
            self.clock = event["clock"]
            self.stage = "load"
        elif kind == "loaded":
            self.engine.update(event["engine"])
        elif kind == "phase":
            start_ns, end_ns = int(event["start_ns"]), int(event["end_ns"])
            self._phases.append((event["phase"], start_ns, end_ns, int(event["items"]), int(event["repeat"])))
        elif kind == "items":
            _rows(event)  # whatever is wrong with it is told now
            self._batches.append(event)
        elif kind == "steady":
            self.steady.append({k: v for k, v in event.items() if k != "event"})
        elif kind == "alive":
            self.stage, self.repeat = event["phase"], int(event["repeat"])
            self.items_done, self.share = int(event["items"]), float(event.get("share", 0.0))
            self.tokens_done, self.step_s = int(event.get("tokens", 0)), float(event.get("step_s", 0.0))
        elif kind == "saved":
            self.saved = event["folder"]
        elif kind == "done":
            self.is_done = True
            self.engine["peak_memory_bytes"] = int(event["peak_memory_bytes"])
            self.engine["cpu_s"] = float(event["cpu_s"])
        elif kind == "error":
            self.error = event
        elif kind == "end":
            self.ended = event["reason"]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that were completed, in order of time."""
        return tuple(
            Phase(name, start_ns / 1e9, end_ns / 1e9, items, repeat, self.clock)
            for name, start_ns, end_ns, items, repeat in sorted(self._phases, key=lambda p: p[1])
        )

    @property
    def items(self) -> Items:
        """Every item that was completed: one row per step of each phase of it, in order of time."""
        names: dict[str, int] = {}
        parts: dict[str, int] = {}
        columns: list[tuple[Ints, ...]] = []
        for batch in self._batches:
            rows = _rows(batch)
            place = np.array([names.setdefault(p, len(names)) for p in batch["phases"]])
            n = len(rows.item)
            part = np.full(n, parts.setdefault(batch["part"], len(parts)))
            repeat = np.full(n, int(batch["repeat"]))
            columns.append(
                (rows.item, rows.picture, place[rows.phase], part, repeat, rows.start_ns, rows.end_ns, rows.tokens)
            )
        if not columns:
            return Items.none()
        item, picture, phase, part, repeat, start, end, tokens = (np.concatenate(c) for c in zip(*columns, strict=True))
        order = np.argsort(start, kind="stable")
        return Items(
            tuple(names), item[order], picture[order], phase[order], part[order], repeat[order],
            start[order] / 1e9, end[order] / 1e9, tuple(parts), tokens[order],
        )  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """The rows (n,) of one `items` event; `phase` is the place among its phases."""

    item: Ints
    picture: Ints
    phase: Ints
    start_ns: Ints
    end_ns: Ints
    tokens: Ints


def _rows(batch: Mapping[str, Any]) -> _Rows:
    """ValueError if its arrays do not fit together."""
    picture, marks = int64s(batch["picture"]), int64s(batch["marks_ns"])
    n, width = len(picture), len(batch["phases"])
    # Without `steps` each phase of an item has one row, and no tokens were counted.
    steps = int64s(batch["steps"]) if "steps" in batch else np.ones(n * width, np.int64)
    tokens = int64s(batch["tokens"]) if "steps" in batch else np.zeros(n * width, np.int64)
    if len(steps) != n * width or (steps < 1).any() or (tokens < 0).any():
        raise ValueError(f"{len(steps)} steps for {n} items of {width} phases, each at least 1, tokens at least 0")
    of_item = steps.reshape(n, width).sum(axis=1)
    rows = int(of_item.sum())
    if len(tokens) != rows or len(marks) != rows + n:
        raise ValueError(f"{len(tokens)} tokens and {len(marks)} marks for {rows} rows of {n} items")
    is_end = np.zeros(len(marks), np.bool_)
    is_end[np.cumsum(of_item + 1) - 1] = True
    first = int(batch["first"])
    return _Rows(
        item=np.repeat(np.arange(first, first + n), of_item),
        picture=np.repeat(picture, of_item),
        phase=np.repeat(np.tile(np.arange(width), n), steps),
        start_ns=marks[~is_end],
        end_ns=marks[1:][~is_end[:-1]],
        tokens=tokens,
    )
