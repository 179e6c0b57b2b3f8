"""The agent's pulses are where it says they are, and its busy workers end with it."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.agents import Plain, agent_of, alive, python_agents, wait_gone

KINDS = ["python", pytest.param("native", marks=pytest.mark.needs_compiler)]
STEPS = [[0.1, 0], [0.3, 1], [0.2, 0], [0.2, 2], [0.1, 0]]


@pytest.fixture(params=KINDS)
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Plain:
    """Before other tests on the same processors, where that is allowed: what it does is what is looked at."""
    found = agent_of(request.param, tmp_path)
    found.command = ["nice", "-n", "-15", *found.command]
    return found


def phases(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e for e in said if e["event"] == "phase"]


def family(pid: int) -> dict[int, float]:
    """Processes of a tree, with the processor time (s) each has used."""
    found, parents = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(words[1])
        found[int(entry.parent.name)] = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    tree = {pid}
    while more := {p for p, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return {p: found[p] for p in tree if p in found}


def played(agent: Plain) -> list[float]:
    """How long the two busy steps of STEPS were, and from the end of the first to that of the second, s."""
    said = agent.events("pulse", {"steps": STEPS})
    assert (
        agent.status == 0 and said[0]["event"] == "hello" and said[-1] == said[-1] | {"event": "end", "reason": "done"}
    )
    told = phases(said)
    assert [(p["phase"], p["items"], p["repeat"]) for p in told] == [("pulse", 1, 0), ("pulse", 2, 0)]
    lengths = [(p["end_ns"] - p["start_ns"]) * 1e-9 for p in told]
    return [*lengths, (told[1]["end_ns"] - told[0]["end_ns"]) * 1e-9]


def test_busy_steps_are_told_where_they_were(agent: Plain) -> None:
    wanted = pytest.approx([0.3, 0.2, 0.4], abs=0.05)  # deadlines are absolute
    tries: list[list[float]] = []
    while len(tries) < 3 and wanted not in tries:  # two processors are shared with other tests
        tries.append(played(agent))
    assert wanted in tries


def test_workers_are_busy_in_busy_steps_and_idle_in_others(agent: Plain) -> None:
    process = agent.start("pulse", {"steps": [[1.0, 1], [5.0, 0]]})
    try:
        assert process.stdout
        process.stdout.readline()
        used = []
        for line in process.stdout:  # the phase comes at the end of the first step
            if b'"phase"' in line:
                used.append(sum(family(process.pid).values()))
                time.sleep(0.7)
                used.append(sum(family(process.pid).values()))
                break
    finally:
        process.kill()
        process.communicate()
    assert used[0] > 0.6 and used[1] - used[0] < 0.15


def test_minus_one_is_as_many_as_there_are_processors(agent: Plain) -> None:
    one = {min(os.sched_getaffinity(0))}
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, one)  # what is started inherits it
        said = agent.events("pulse", {"steps": [[0.1, -1]]})
    finally:
        os.sched_setaffinity(0, before)
    assert phases(said)[0]["items"] == 1


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ({}, "steps is None; wanted a list of [seconds, workers]"),
        ({"steps": []}, "wanted a list of [seconds, workers]"),
        ({"steps": [[1]]}, "a step is [1]; wanted [seconds, workers]"),
        ({"steps": [[1, 0.5]]}, "a step is [1, 0.5]; wanted [seconds, workers]"),
        ({"steps": [[0, 1]]}, "a step is [0, 1]; wanted 0 to 3600 seconds, -1 to 1024 workers"),
        ({"steps": [[1, -2]]}, "a step is [1, -2]; wanted 0 to 3600 seconds, -1 to 1024 workers"),
    ],
)
def test_job_that_cannot_be_understood_is_refused(agent: Plain, job: dict[str, Any], told: str) -> None:
    said = agent.events("pulse", job)
    assert agent.status == 2 and said[-1]["kind"] == "refused" and told in said[-1]["message"]


def started(agent: Plain) -> tuple[subprocess.Popen[bytes], list[int]]:
    """An agent in a long busy step, and every process of it."""
    process = agent.start("pulse", {"steps": [[60, 2]]})
    until = time.monotonic() + 10
    while sum((tree := family(process.pid)).values()) < 0.4:
        assert time.monotonic() < until
        time.sleep(0.05)
    return process, list(tree)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_workers_end_with_the_agent(agent: Plain, how: signal.Signals) -> None:
    process, tree = started(agent)
    process.send_signal(how)
    process.wait(10)
    for pid in tree:
        wait_gone(pid, 10)
    out, _ = process.communicate()
    if how == signal.SIGTERM:
        assert process.returncode == 0 and b'"reason":"stopped"' in out and b'"phase"' not in out


def test_workers_end_when_the_harness_is_gone(agent: Plain) -> None:
    agent.environment = {**agent.environment, "EDGEWATT_PARENT": "1"}  # not whoever started it: it has gone already
    process = agent.start("pulse", {"steps": [[60, 2]]})
    assert process.wait(10) in (0, -signal.SIGKILL)  # its group is ended with it
    process.communicate()
    assert not alive(process.pid)


def test_old_python_pulses_as_well(tmp_path: Path) -> None:
    old = python_agents(tmp_path).get("python3.8")
    if old is None:
        pytest.skip("no Python 3.8 here")
    said = old.events("pulse", {"steps": STEPS})
    assert old.status == 0 and len(phases(said)) == 2, (said, old.stderr)
