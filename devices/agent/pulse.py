"""The agent's `pulse`: the processor busy and idle by turns, a mark that any meter of the device's power can see."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgewatt.devices.agent.agent import Agent, RefusedError, now_ns

READY_S = 20.0  # for a worker to start; more than a second only on a machine that is overloaded
ANSWER_S = 5.0  # for a worker to say when it stopped
MOST_WORKERS = 1024
BUSY = str(Path(__file__).with_name("busy.py"))


def pulse(agent: Agent, job: dict[str, Any]) -> None:
    """The job's steps one after the other, at times fixed from the start; tells each busy one when it is over."""
    steps = _steps(job)
    most = max(workers for _, workers in steps)
    crowd: list[Worker] = []
    try:
        for _ in range(most):
            crowd.append(Worker())
        for worker in crowd:
            worker.line(agent, READY_S)
        due = now_ns()
        for seconds, workers in steps:
            end = due + int(seconds * 1e9)
            for worker in crowd[:workers]:
                worker.ask(due, end)
            agent.sleep_until(end)
            if agent.look():
                return
            stamps = [[int(t) for t in worker.line(agent, ANSWER_S).split()] for worker in crowd[:workers]]
            if agent.look():
                return
            if stamps:  # the edges of the power are where they began and stopped on average
                start_ns, end_ns = (sum(s[k] for s in stamps) // len(stamps) for k in (0, 1))
                agent.emit("phase", phase="pulse", start_ns=start_ns, end_ns=end_ns, items=workers, repeat=0)
            due = end
    finally:
        for worker in crowd:
            worker.end()


class Worker:
    """A process that is busy when it is told to; whoever makes it ends it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", BUSY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._said = b""

    def ask(self, begin_ns: int, end_ns: int) -> None:
        """It will be busy between these times."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # `line` will say that it is gone
            self._process.stdin.write(b"%d %d\n" % (begin_ns, end_ns))

    def line(self, agent: Agent, limit_s: float) -> str:
        """What it says next, "0 0" if the agent is asked to end first; RuntimeError if it says nothing."""
        assert self._process.stdout
        until = time.monotonic() + limit_s
        while b"\n" not in self._said:
            if agent.look():
                return "0 0"
            if select.select([self._process.stdout], [], [], 0.1)[0]:
                some = os.read(self._process.stdout.fileno(), 4096)
                if not some:
                    raise RuntimeError(f"a busy worker ended by itself (status {self._process.wait()})")
                self._said += some
            elif time.monotonic() > until:
                raise RuntimeError(f"a busy worker said nothing for {limit_s:g} s; the device is overloaded")
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def end(self) -> None:
        """It is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def _steps(job: dict[str, Any]) -> list[tuple[float, int]]:
    """The job's steps, in seconds and workers; RefusedError if they are none."""
    steps = job.get("steps")
    if not isinstance(steps, list) or not steps:
        raise RefusedError(f"job: steps is {steps!r}; wanted a list of [seconds, workers]")
    found = []
    for step in steps:
        is_pair = isinstance(step, list) and len(step) == 2 and not any(isinstance(v, bool) for v in step)
        if not is_pair or not isinstance(step[0], (int, float)) or not isinstance(step[1], int):
            raise RefusedError(f"job: a step is {step!r}; wanted [seconds, workers]")
        if not 0 < step[0] <= 3600 or not -1 <= step[1] <= MOST_WORKERS:
            raise RefusedError(f"job: a step is {step!r}; wanted 0 to 3600 seconds, -1 to {MOST_WORKERS} workers")
        found.append((float(step[0]), _processors() if step[1] == -1 else step[1]))
    return found


def _processors() -> int:
    """How many the agent may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
