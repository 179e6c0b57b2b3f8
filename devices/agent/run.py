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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgewatt.devices.agent.agent import (
    Agent,
    AskedToEndError,
    imported,
    leave,
    now_ns,
    packed,
    refusals,
)
from edgewatt.devices.agent.plan import Plan
from edgewatt.devices.agent.steady import Steady, median

FLUSH_NS = 500_000_000  # between two `items` events; the promise is one second
MOST_ROWS = 16384  # in one event (4096 items of four phases): keeps the line short
BEAT_S = 0.5  # how often the heart is looked after; it beats every second time

Work = Callable[[int], None]  # does item `index`, leaving stamps and names of its phases
Enough = Callable[[int, int], bool]  # whether a part is over, asked after each item with (items, end_ns)


class Execution:
    """One job in progress; where it is stands in plain attributes, for the heartbeat to tell."""

    def __init__(self, agent: Agent, plan: Plan, settings: dict[str, Any]) -> None:
        self._agent, self._plan, self._settings = agent, plan, settings
        self._runner: Any = None
        self._outputs: dict[int, Any] = {}
        self._pictures = itertools.cycle(range(plan.item_count))
        self._stamps: list[int] = []  # of the item in hand: the starts of its steps
        self._marked: list[str] = []  # the phases they belong to
        self._tokens: list[int] = []  # that each works on
        self._mark = marking(now_ns, self._stamps, self._marked, self._tokens)
        self._item_ns = 0  # how long the last item took
        self._items = 0  # of the part that is going on
        self._begin("load", 0)

    def whole(self) -> None:
        """All of the job, in the protocol's order."""
        self._load()
        self._idle(0)
        for repeat in range(self._plan.repeats):
            self._warm_up(repeat)
            self._window(repeat)
            for phase in self._plan.isolate:
                self._alone(phase, repeat)
            self._idle(repeat)
        self._save()
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._agent.emit("done", peak_memory_bytes=peak_memory_bytes(), cpu_s=used.ru_utime + used.ru_stime)

    # -- the parts of a job

    def _load(self) -> None:
        start = self._begin("load", 0)
        with refusals():  # an engine or a provider that is not there
            self._runner = imported(self._plan.runner, "runner")(self._plan.params)
            engine = self._runner.load()
        end = now_ns()
        self._agent.emit("loaded", t_ns=end, engine=engine, pid=os.getpid(), settings=self._settings)
        self._end(start, end)
        gc.collect()
        gc.freeze()  # what loading left is not looked through again while items are timed

    def _idle(self, repeat: int) -> None:
        start = self._begin("idle", repeat, self._plan.idle_s)
        self._agent.sleep_until(start + int(self._plan.idle_s * 1e9))
        self._end(start, now_ns())

    def _warm_up(self, repeat: int) -> None:
        plan = self._plan.warm_up
        rule = Steady(plan.tolerance, plan.blocks, {n.name: n.tolerance for n in plan.nodes})
        block: list[int] = []
        start = block_start = self._begin("warmup", repeat, plan.max_s)

        def enough(_: int, end: int) -> bool:
            nonlocal block_start
            block.append(end - self._stamps[0])
            if end - block_start >= plan.block_s * 1e9:
                rule.add(median(block) * 1e-9, {n.name: n.read() for n in plan.nodes})
                block.clear()
                block_start = now_ns()
            elapsed_s = (end - start) * 1e-9
            return elapsed_s >= plan.max_s or (elapsed_s >= plan.min_s and rule.reached)

        items, end = 0, start
        if plan.max_s > 0:
            pictures = itertools.cycle(range(self._plan.item_count))
            items, end = self._items_of(self._plan.item_phases, pictures, self._item, enough)
        detail = rule.detail if plan.max_s > 0 else "no warm-up asked for"
        after_s = (end - start) * 1e-9
        self._agent.emit("steady", repeat=repeat, reached=rule.reached, after_s=after_s, items=items, detail=detail)
        if items:
            self._end(start, end)

    def _window(self, repeat: int) -> None:
        plan = self._plan
        least = max(plan.min_items, 1 if repeat else plan.item_count)  # the first window sees every picture
        start = self._begin("window", repeat, plan.window_s, least)

        def enough(items: int, end: int) -> bool:
            elapsed_s = (end - start) * 1e-9
            return (elapsed_s >= plan.window_s and items >= least) or elapsed_s >= plan.max_window_s

        _, end = self._items_of(plan.item_phases, self._pictures, self._kept_item, enough)
        self._end(start, end)

    def _alone(self, phase: str, repeat: int) -> None:
        run_phase, mark, isolated_s = self._runner.run_phase, self._mark, self._plan.isolated_s
        start = self._begin(phase, repeat, isolated_s)

        def work(index: int) -> None:
            mark(phase)
            tokens = run_phase(phase, index)
            if tokens is not None:
                self._tokens[-1] = tokens

        def enough(_: int, end: int) -> bool:
            return (end - start) * 1e-9 >= isolated_s

        _, end = self._items_of([phase], itertools.cycle(list(self._outputs)), work, enough)
        self._end(start, end)

    def _save(self) -> None:
        """The outputs appear in the job's folder whole or not at all."""
        self._begin("save", self._plan.repeats - 1)
        folder = self._plan.folder
        part = folder.with_name(folder.name + ".part")
        part.mkdir(parents=True)
        try:
            self._runner.save(self._outputs, part)
            part.replace(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._agent.emit("saved", folder=str(folder), items=len(self._outputs))

    # -- items

    def _item(self, index: int) -> None:
        self._runner.run(index, self._mark)

    def _kept_item(self, index: int) -> None:
        output = self._runner.run(index, self._mark)
        if index not in self._outputs:
            self._outputs[index] = output

    def _items_of(self, phases: list[str], pictures: Iterable[int], work: Work, enough: Enough) -> tuple[int, int]:
        """Items one after the other until it is enough, or until asked to end: how many, and the end of the last."""
        stamps, marked, tokens, agent = self._stamps, self._marked, self._tokens, self._agent
        batch, flushed = Batch(), now_ns()
        try:
            for index in pictures:
                stamps.clear()
                marked.clear()
                tokens.clear()
                work(index)
                end = now_ns()
                batch.add(index, steps_of(marked, phases), tokens, [*stamps, end])
                self._items += 1
                self._item_ns, self._step_ns = end - stamps[0], end
                if agent.stopping or enough(self._items, end):
                    break
                if end - flushed >= FLUSH_NS or len(batch.tokens) >= MOST_ROWS:
                    self._tell_items(phases, batch)
                    batch, flushed = Batch(), end
        finally:
            self._tell_items(phases, batch)
        return self._items, end

    def _tell_items(self, phases: list[str], batch: Batch) -> None:
        if n := len(batch.picture):
            where = {"part": self._phase, "repeat": self._repeat, "phases": phases, "first": self._items - n, "n": n}
            self._agent.emit("items", **where, **batch.told())

    # -- where it is

    def _begin(self, phase: str, repeat: int, seconds: float = math.inf, least: int = 0) -> int:
        """A part begins that lasts `seconds` and at least `least` items: its start."""
        self._stamps.clear()
        self._start_ns = self._step_ns = now_ns()  # first: a thread judges the part by it
        self._phase, self._repeat, self._items, self._least, self._seconds = phase, repeat, 0, least, seconds
        return self._start_ns

    def _end(self, start_ns: int, end_ns: int) -> None:
        """The part is told; AskedToEndError if the agent was asked to end meanwhile."""
        where = {"phase": self._phase, "repeat": self._repeat, "items": self._items}
        self._agent.emit("phase", **where, start_ns=start_ns, end_ns=end_ns)
        if self._agent.look():
            raise AskedToEndError

    def watch(self) -> None:
        """The heartbeat, from a thread of its own: says where the work is, and ends what hangs."""
        asleep = threading.Event()
        for beat in itertools.count():
            asleep.wait(BEAT_S)
            now = now_ns()
            if beat % 2:
                self._tell_alive(now)
            self._end_if_hung(now)

    def _tell_alive(self, now: int) -> None:
        tokens = sum(self._tokens[:])  # a copy: the item may be over meanwhile
        where = {"phase": self._phase, "repeat": self._repeat, "items": self._items}
        where |= {"tokens": tokens} if tokens else {}
        share, step_s = round(self._share(now), 4), round((now - self._begun_ns()) * 1e-9, 3)
        self._agent.emit("alive", t_ns=now, **where, share=share, step_s=step_s)

    def _share(self, now: int) -> float:
        """How much of the part in hand is done, 0 to 1, the item in hand by how long the one before it took."""
        if self._phase == "load":
            loaded = getattr(self._runner, "loaded", 0.0)
            return min(loaded, 1.0) if isinstance(loaded, (int, float)) else 0.0
        begun = self._stamps[:1]
        in_hand = min((now - begun[0]) / self._item_ns, 1.0) if begun and self._item_ns else 0.0
        items = (self._items + in_hand) / self._least if self._least else 1.0
        seconds = (now - self._start_ns) * 1e-9 / self._seconds if self._seconds else 1.0
        return min(items, seconds, 1.0)

    def _begun_ns(self) -> int:
        """When the step in hand began; where there is none, when the last item or the part did."""
        return max(self._step_ns, *self._stamps[-1:], 0)

    def _end_if_hung(self, now: int) -> None:
        is_item = self._phase not in ("load", "save", "idle")
        limit_s = self._plan.item_limit_s if is_item else self._plan.load_limit_s
        step_s = (now - self._begun_ns()) * 1e-9
        if self._phase == "idle" or step_s <= limit_s:
            return
        doing = f"{self._phase}: item {self._items}{self._step()}" if is_item else self._phase
        stack = traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0])
        message = f"{doing} has been at work for {step_s:.1f} s; the limit is {limit_s:g} s"
        self._agent.emit("error", t_ns=now, kind="hung", message=message, detail="".join(stack))
        leave(1)

    def _step(self) -> str:
        """Which step of its phase the item in hand is at, in words; "" in a phase that has but one."""
        marked = self._marked[:]
        steps = marked.count(marked[-1]) if marked else 0
        return f", step {steps} of {marked[-1]}," if steps > 1 else ""


class Batch:
    """Items that were not told yet: a row for each step of each phase, its stamp, and the end of each item."""

    def __init__(self) -> None:
        self.picture, self.steps, self.tokens, self.marks = (array("q") for _ in range(4))

    def add(self, picture: int, steps: list[int], tokens: list[int], marks: list[int]) -> None:
        """An item more; ValueError, and nothing added, where its tokens are no counts."""
        try:
            counted = array("q", tokens)
        except (TypeError, OverflowError):
            counted = array("q", [-1])
        if min(counted) < 0:
            raise ValueError(f"the runner marked {tokens} tokens; wanted whole numbers from 0 on")
        self.picture.append(picture)
        self.steps.extend(steps)
        self.tokens.extend(counted)
        self.marks.extend(marks)

    def told(self) -> dict[str, str]:
        """As the event `items` has it; rows are told of where they are not simply one for each phase."""
        told = {"picture": packed(self.picture), "marks_ns": packed(self.marks)}
        if len(self.tokens) > len(self.steps) or any(self.tokens):
            told |= {"steps": packed(self.steps), "tokens": packed(self.tokens)}
        return told


def steps_of(marked: list[str], phases: list[str]) -> list[int]:
    """How many steps each phase of an item was marked with; ValueError where these are not its phases, in order."""
    if marked == phases:
        return [1] * len(phases)
    runs = [(phase, len(list(each))) for phase, each in itertools.groupby(marked)]
    if [phase for phase, _ in runs] != phases:
        said = ", ".join(phase for phase, _ in runs) or "no phase"
        raise ValueError(f"the runner marked {said}; wanted {', '.join(phases)}")
    return [steps for _, steps in runs]


def marking(now: Callable[[], int], stamps: list[int], marked: list[str], counted: list[int]) -> Callable[..., None]:
    """The function a runner calls at the start of each step of a phase: a stamp, whose it is, and how many tokens it
    works on, in less than 0.3 us."""
    add_stamp, add_name, add_tokens = stamps.append, marked.append, counted.append

    def mark(phase: str, tokens: int = 0) -> None:
        add_stamp(now())
        add_name(phase)
        add_tokens(tokens)

    return mark


def configured(job: dict[str, Any]) -> dict[str, Any]:
    """Memory limit, niceness and affinity as they are after setting them; OSError where one is not allowed."""
    limit, niceness, affinity = (job.get(k) for k in ("memory_limit_bytes", "niceness", "affinity"))
    if affinity:
        os.sched_setaffinity(0, affinity)
    if niceness:
        os.nice(niceness - os.nice(0))
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "memory_limit_bytes": limit,
        "niceness": os.nice(0),
        "affinity": sorted(os.sched_getaffinity(0)) if has_affinity else None,
    }


def peak_memory_bytes() -> int:
    """The most physical memory this program has held at once.

    Not `ru_maxrss` where it can be helped: across fork and exec it keeps the size of the process that started us.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(agent: Agent, job: dict[str, Any]) -> None:
    """Does the job."""
    execution = Execution(agent, Plan.of(job), configured(job))
    threading.Thread(target=execution.watch, daemon=True).start()
    execution.whole()
