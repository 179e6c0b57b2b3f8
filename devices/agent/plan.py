"""A job for the agent's `run`, checked whole before anything is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewatt.devices.agent.agent import RefusedError, number


@dataclass(frozen=True)
class Node:
    """A file that tells a temperature or a power: times `scale` it is in the unit of `tolerance`."""

    name: str
    path: Path
    scale: float
    tolerance: float

    def read(self) -> float | None:
        """What it holds, in its unit; None where it cannot be read."""
        try:
            return float(self.path.read_text()) * self.scale
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class WarmUp:
    """When a warm-up is over (`steady.Steady`), and when it is given up."""

    min_s: float
    max_s: float
    block_s: float
    tolerance: float
    blocks: int
    nodes: tuple[Node, ...]

    @staticmethod
    def of(job: dict[str, Any]) -> WarmUp:
        nodes = job.get("nodes") or []
        if not isinstance(nodes, list) or not all(isinstance(n, dict) for n in nodes):
            raise RefusedError(f"job: steady nodes is {nodes!r}; wanted a list of objects")
        return WarmUp(
            min_s=number(job, "min_s", 1),
            max_s=number(job, "max_s", 60),
            block_s=number(job, "block_s", 0.5),
            tolerance=number(job, "tolerance", 0.02),
            blocks=int(number(job, "blocks", 5, 2)),
            nodes=tuple(
                Node(
                    text(n, "name"), Path(text(n, "path")), number(n, "scale", 1, -math.inf), number(n, "tolerance", 1)
                )
                for n in nodes
            ),
        )


@dataclass(frozen=True)
class Plan:
    """The job's words (docs/agent-protocol.md, `run`); a limit that is not set is infinite."""

    runner: str
    params: dict[str, Any]
    item_count: int
    item_phases: list[str]
    isolate: list[str]
    folder: Path
    repeats: int
    idle_s: float
    window_s: float
    isolated_s: float
    max_window_s: float
    min_items: int
    load_limit_s: float
    item_limit_s: float
    warm_up: WarmUp

    @staticmethod
    def of(job: dict[str, Any]) -> Plan:
        """RefusedError, naming the word, if something is missing or makes no sense."""
        phases, isolate = names(job, "item_phases"), names(job, "isolate")
        if not phases:
            raise RefusedError("job: item_phases is empty; an item has at least one phase")
        for phase in isolate:
            if phase not in phases:
                raise RefusedError(f"job: isolate names {phase}; the phases of an item are {', '.join(phases)}")
        return Plan(
            runner=text(job, "runner"),
            params=mapping(job, "params"),
            item_count=int(number(job, "item_count", None, 1)),
            item_phases=phases,
            isolate=isolate,
            folder=Path(text(job, "folder")),
            repeats=int(number(job, "repeats", 1, 1)),
            idle_s=number(job, "idle_s", 5),
            window_s=number(job, "window_s", 10),
            isolated_s=number(job, "isolated_s", 2),
            max_window_s=number(job, "max_window_s", 600),
            min_items=int(number(job, "min_items", 1)),
            load_limit_s=math.inf if job.get("load_limit_s") is None else number(job, "load_limit_s", None),
            item_limit_s=math.inf if job.get("item_limit_s") is None else number(job, "item_limit_s", None),
            warm_up=WarmUp.of(mapping(job, "steady")),
        )


def text(job: dict[str, Any], key: str) -> str:
    value = job.get(key)
    if not isinstance(value, str) or not value:
        raise RefusedError(f"job: {key} is {value!r}; wanted a text")
    return value


def names(job: dict[str, Any], key: str) -> list[str]:
    value = job.get(key) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise RefusedError(f"job: {key} is {value!r}; wanted a list of names")
    return value


def mapping(job: dict[str, Any], key: str) -> dict[str, Any]:
    value = job.get(key) or {}
    if not isinstance(value, dict):
        raise RefusedError(f"job: {key} is {value!r}; wanted an object")
    return value
