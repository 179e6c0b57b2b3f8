"""The agent's `run`: a model loaded, warmed up, timed item by item, left idle, and its outputs saved.

The agent marks times and nothing else: what the marks mean in joules is for the harness to say.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import resource
import shutil
import sys
import threading
import traceback
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewatt.devices.agent.steady import Steady, median

if TYPE_CHECKING:
    from edgewatt.devices.agent.agent import Agent

FLUSH_NS = 500_000_000  # between two `items` events; the promise is one second
MOST_ITEMS = 4096  # in one event: keeps the line short
BEAT_S = 0.5  # how often the heart is looked after; it beats every second time
ORPHAN_GRACE_NS = 1_000_000_000  # for the item in hand to end, once the parent is gone


class Work:
    """One job in progress. The clock is the agent's; `_at` says where it is, for the heartbeat to tell."""

    def __init__(self, agent: Agent, tools: Any, job: dict[str, Any]) -> None:
        """`tools` is the module the agent runs from: as a script it is not the one an import would give."""
        self._agent, self._tools, self._job = agent, tools, job
        self._now: Callable[[], int] = tools.now_ns
        number: Callable[..., float] = tools.number
        self._count = int(number(job, "item_count", None, 1))
        self._phases = self._names("item_phases", None)
        if not self._phases:
            raise tools.RefusedError("job: item_phases is empty; an item has at least one phase")
        self._isolate = self._names("isolate", [])
        for phase in self._isolate:
            if phase not in self._phases:
                raise tools.RefusedError(
                    f"job: isolate names {phase}; the phases of an item are {', '.join(self._phases)}"
                )
        self._folder = Path(self._text("folder"))
        self._repeats = int(number(job, "repeats", 1, 1))
        self._idle_s, self._window_s = number(job, "idle_s", 5), number(job, "window_s", 10)
        self._isolated_s, self._max_window_s = number(job, "isolated_s", 2), number(job, "max_window_s", 600)
        self._min_items = int(number(job, "min_items", 1))
        self._load_limit_s, self._item_limit_s = (
            math.inf if job.get(key) is None else number(job, key, None) for key in ("load_limit_s", "item_limit_s")
        )
        self._steady = job.get("steady") or {}
        if not isinstance(self._steady, dict):
            raise tools.RefusedError(f"job: steady is {self._steady!r}; wanted an object")
        self._settings = self._configured()
        self._runner: Any = None
        self._outputs: dict[int, Any] = {}
        self._pictures = itertools.cycle(range(self._count))
        self._stamps: list[int] = []
        self._marked: list[str] = []
        self._mark = marking(self._now, self._stamps, self._marked)
        self._phase, self._repeat, self._items, self._share = "load", 0, 0, 0.0
        self._phase_ns = self._step_ns = self._now()

    def whole(self) -> None:
        """All of the job, in the protocol's order."""
        self._at("load", 0)
        start = self._now()
        self._runner = self._tools.imported(self._text("runner"), "runner")(self._job.get("params") or {})
        engine = self._runner.load()
        end = self._now()
        self._agent.emit("loaded", t_ns=end, engine=engine, pid=os.getpid(), settings=self._settings)
        self._tell("load", 0, start, end, 0)
        gc.collect()
        gc.freeze()  # what loading left is not looked through again while items are timed
        self._idle(0)
        for repeat in range(self._repeats):
            self._warm_up(repeat)
            self._window(repeat)
            for phase in self._isolate:
                self._alone(phase, repeat)
            self._idle(repeat)
        self._save()
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._agent.emit("done", peak_memory_bytes=peak_memory_bytes(), cpu_s=used.ru_utime + used.ru_stime)

    # -- the parts of a job

    def _idle(self, repeat: int) -> None:
        self._at("idle", repeat)
        start = self._now()
        self._agent.sleep_until(start + int(self._idle_s * 1e9))
        self._tell("idle", repeat, start, self._now(), 0)
        self._go_on()

    def _warm_up(self, repeat: int) -> None:
        number: Callable[..., float] = self._tools.number
        wanted = self._steady
        min_s, max_s = number(wanted, "min_s", 1), number(wanted, "max_s", 60)
        block_ns = number(wanted, "block_s", 0.5) * 1e9
        nodes = {str(n["name"]): n for n in wanted.get("nodes", ())}
        rule = Steady(
            number(wanted, "tolerance", 0.02),
            int(number(wanted, "blocks", 5, 2)),
            {name: float(n.get("tolerance", 1.0)) for name, n in nodes.items()},
        )
        if max_s == 0:
            self._agent.emit(
                "steady", repeat=repeat, reached=False, after_s=0.0, items=0, detail="no warm-up asked for"
            )
            return
        block: list[int] = []
        start = block_start = self._now()

        def enough(_: int, end: int) -> bool:
            nonlocal block_start
            block.append(end - self._stamps[0])
            elapsed_s = (end - start) * 1e-9
            self._share = min(1.0, elapsed_s / max_s)
            if end - block_start >= block_ns:
                rule.add(median(block) * 1e-9, {name: reading(n) for name, n in nodes.items()})
                block.clear()
                block_start = self._now()
            return elapsed_s >= max_s or (elapsed_s >= min_s and rule.reached)

        items, start_ns, end_ns = self._loop("warmup", repeat, self._phases, self._pictures_anew(), self._item, enough)
        after_s = (end_ns - start_ns) * 1e-9
        self._agent.emit(
            "steady", repeat=repeat, reached=rule.reached, after_s=after_s, items=items, detail=rule.detail
        )
        self._go_on()

    def _window(self, repeat: int) -> None:
        least = max(self._min_items, 1 if repeat else self._count)  # the first window sees every picture
        start = self._now()

        def enough(count: int, end: int) -> bool:
            elapsed_s = (end - start) * 1e-9
            self._share = min(1.0, count / least, elapsed_s / (self._window_s or 1e-9))
            return (elapsed_s >= self._window_s and count >= least) or elapsed_s >= self._max_window_s

        self._loop("window", repeat, self._phases, self._pictures, self._item, enough)
        self._go_on()

    def _alone(self, phase: str, repeat: int) -> None:
        run_phase, now = self._runner.run_phase, self._now

        def work(index: int) -> None:
            self._marked.append(phase)
            self._stamps.append(now())
            run_phase(phase, index)

        start = now()

        def enough(_: int, end: int) -> bool:
            elapsed_s = (end - start) * 1e-9
            self._share = min(1.0, elapsed_s / (self._isolated_s or 1e-9))
            return elapsed_s >= self._isolated_s

        self._loop(phase, repeat, [phase], itertools.cycle(list(self._outputs)), work, enough)
        self._go_on()

    def _save(self) -> None:
        """The outputs appear in the job's folder whole or not at all."""
        self._at("save", self._repeats - 1)
        part = self._folder.with_name(self._folder.name + ".part")
        part.mkdir(parents=True)
        try:
            self._runner.save(self._outputs, part)
            part.replace(self._folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._agent.emit("saved", folder=str(self._folder), items=len(self._outputs))

    # -- items

    def _item(self, index: int) -> None:
        output = self._runner.run(index, self._mark)
        if self._phase == "window" and index not in self._outputs:
            self._outputs[index] = output

    def _loop(
        self,
        part: str,
        repeat: int,
        phases: list[str],
        pictures: Iterator[int],
        work: Callable[[int], None],
        enough: Callable[[int, int], bool],
    ) -> tuple[int, int, int]:
        """Items one after the other until `enough(count, end_ns)`, or until asked to end: (items, start_ns, end_ns)."""
        now, stamps, marked, agent = self._now, self._stamps, self._marked, self._agent
        self._at(part, repeat)
        seen, marks = array("q"), array("q")
        count = 0
        start = end = flushed = now()
        try:
            while True:
                stamps.clear()
                marked.clear()
                index = next(pictures)
                work(index)
                end = now()
                if marked != phases:
                    raise ValueError(f"the runner marked {', '.join(marked) or 'no phase'}; wanted {', '.join(phases)}")
                stamps.append(end)
                marks.extend(stamps)
                seen.append(index)
                count += 1
                self._items, self._step_ns = count, end
                if agent.stopping or enough(count, end):
                    break
                if end - flushed >= FLUSH_NS or len(seen) >= MOST_ITEMS:
                    self._flush(part, repeat, phases, count, seen, marks)
                    seen, marks, flushed = array("q"), array("q"), end
        finally:
            self._flush(part, repeat, phases, count, seen, marks)
        self._tell(part, repeat, start, end, count)
        return count, start, end

    def _flush(
        self, part: str, repeat: int, phases: list[str], count: int, seen: array[int], marks: array[int]
    ) -> None:
        if seen:
            packed, n = self._tools.packed, len(seen)
            self._agent.emit(
                "items",
                part=part,
                repeat=repeat,
                phases=phases,
                first=count - n,
                n=n,
                picture=packed(seen),
                marks_ns=packed(marks),
            )

    # -- what is told meanwhile

    def _at(self, phase: str, repeat: int) -> None:
        self._phase, self._repeat, self._items, self._share = phase, repeat, 0, 0.0
        self._phase_ns = self._step_ns = self._now()

    def _tell(self, phase: str, repeat: int, start_ns: int, end_ns: int, items: int) -> None:
        self._agent.emit("phase", phase=phase, start_ns=start_ns, end_ns=end_ns, items=items, repeat=repeat)

    def _go_on(self) -> None:
        if self._agent.look():
            raise self._tools.AskedToEndError

    def watch(self) -> None:
        """The heartbeat, from a thread of its own: says where the work is, and ends it where it cannot end itself."""
        agent, asleep = self._agent, threading.Event()
        orphaned_ns = 0
        for beat in itertools.count():
            asleep.wait(BEAT_S)
            now = self._now()
            step_s = (now - self._step_ns) * 1e-9
            where = {"phase": self._phase, "repeat": self._repeat, "items": self._items}
            if beat % 2:
                share = (
                    min(1.0, (now - self._phase_ns) * 1e-9 / (self._idle_s or 1))
                    if self._phase == "idle"
                    else self._share
                )
                agent.emit("alive", t_ns=now, **where, share=round(share, 4), step_s=round(step_s, 3))
            if agent.look() == "orphaned":
                orphaned_ns = orphaned_ns or now
                if now - orphaned_ns >= ORPHAN_GRACE_NS:
                    agent.emit("end", t_ns=now, reason="orphaned")
                    self._tools.end_group()
                    self._tools.leave(0)
            limit_s = self._load_limit_s if self._phase in ("load", "save") else self._item_limit_s
            if step_s > limit_s and self._phase != "idle":
                doing = self._phase if self._phase in ("load", "save") else f"{self._phase}: item {self._items}"
                agent.emit(
                    "error",
                    t_ns=now,
                    kind="hung",
                    message=f"{doing} has been at work for {step_s:.1f} s; the limit is {limit_s:g} s",
                    detail="".join(traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0])),
                )
                self._tools.leave(1)

    # -- the job's words

    def _pictures_anew(self) -> Iterator[int]:
        return itertools.cycle(range(self._count))

    def _text(self, key: str) -> str:
        value = self._job.get(key)
        if not isinstance(value, str) or not value:
            raise self._tools.RefusedError(f"job: {key} is {value!r}; wanted a text")
        return value

    def _names(self, key: str, default: Any) -> list[str]:
        value = self._job.get(key, default)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self._tools.RefusedError(f"job: {key} is {value!r}; wanted a list of names")
        return value

    def _configured(self) -> dict[str, Any]:
        """Memory limit, niceness and affinity as they are after setting them; OSError where one is not allowed."""
        limit, niceness, affinity = (self._job.get(k) for k in ("memory_limit_bytes", "niceness", "affinity"))
        if affinity:
            os.sched_setaffinity(0, affinity)
        if niceness:
            os.nice(niceness - os.nice(0))
        if limit:
            resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
        return {
            "memory_limit_bytes": limit,
            "niceness": os.nice(0),
            "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        }


def marking(now: Callable[[], int], stamps: list[int], marked: list[str]) -> Callable[[str], None]:
    """The function a runner calls at the start of each phase: a stamp, and whose it is, in less than 0.3 us."""
    add_stamp, add_name = stamps.append, marked.append

    def mark(phase: str) -> None:
        add_stamp(now())
        add_name(phase)

    return mark


def reading(node: dict[str, Any]) -> float | None:
    """What a node of the steady rule holds, in its unit; None where it cannot be read."""
    try:
        return float(Path(node["path"]).read_text()) * float(node.get("scale", 1.0))
    except (OSError, ValueError):
        return None


def peak_memory_bytes() -> int | None:
    """The most physical memory this program has held at once.

    Not `ru_maxrss` where it can be helped: across fork and exec it keeps the size of the process that started us.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(agent: Agent, tools: Any, job: dict[str, Any]) -> None:
    """Does the job; `tools` is the agent's own module."""
    work = Work(agent, tools, job)
    threading.Thread(target=work.watch, daemon=True).start()
    work.whole()
