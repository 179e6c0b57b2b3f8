"""What an agent calls, holds and listens to, and that it ends, with all put back, when its harness is gone."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewatt.devices.transport import AGENT
from support.agents import Plain, alive, old_python, samples, wait_gone

ECHO = "support.fake_functions:echo"
SETTING = "support.fake_functions:setting"
STREAM = "support.fake_functions:stream"
GONE_S = 1.5 + 2.0 + 1.5  # a heartbeat, the longest an agent then stays without a harness, and some for this machine


@pytest.fixture(params=[None, 8], ids=["this python", "python 3.8"])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Plain:
    python = old_python(request.param) if request.param else sys.executable
    return Plain("python", [str(python), str(AGENT)], tmp_path)


def said_by(process: subprocess.Popen[bytes], until: str = "") -> list[dict[str, Any]]:
    """Events up to the named one, or all."""
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(json.loads(line))
        if said[-1]["event"] == until:
            break
    return said


def spooled(agent: Plain) -> list[dict[str, Any]]:
    return [json.loads(line) for line in agent.spool.read_text().splitlines()]


def closed(process: subprocess.Popen[bytes]) -> None:
    """It is ended and its pipes are closed."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


# ---------------------------------------------------------------------------------------------------------------------
# call


def test_value_of_a_function_is_told(agent: Plain) -> None:
    said = agent.events("call", {"function": ECHO, "params": {"a": [1, "é", None]}})
    assert [e["event"] for e in said] == ["hello", "result", "end"] and agent.status == 0
    assert said[1]["value"]["params"] == {"a": [1, "é", None]} and said[2]["reason"] == "done"
    assert "what a function prints is no event" in agent.stderr


@pytest.mark.parametrize(
    ("job", "status", "kind", "told"),
    [
        ({"function": ECHO, "params": {"fault": "refuse"}}, 2, "refused", "mode 7 is not one of 0, 1, 2"),
        ({"function": ECHO, "params": {"fault": "raise"}}, 1, "failed", "Input/output error: /sys/x"),
        ({"function": ECHO, "params": {"fault": "exit"}}, 1, "failed", "SystemExit: 3"),
        ({"function": "no_such:thing"}, 2, "refused", "no_such:thing cannot be loaded here"),
        ({"function": "support.fake_functions:none"}, 2, "refused", "fake_functions:none cannot be loaded here"),
        ({"function": "echo"}, 2, "refused", "function is 'echo'; wanted module:name"),
        ({}, 2, "refused", "function is None; wanted module:name"),
        ({"function": ECHO, "heartbeat_s": "often"}, 2, "refused", "heartbeat_s is 'often'; wanted a number"),
        ({"function": ECHO, "heartbeat_s": 0}, 2, "refused", "heartbeat_s is 0; wanted a number, at least 0.1"),
    ],
)
def test_call_without_a_value_says_why(agent: Plain, job: Any, status: int, kind: str, told: str) -> None:
    *_, last = agent.events("call", job)
    assert (last["event"], last["kind"], agent.status) == ("error", kind, status) and told in last["message"]
    assert ("Traceback" in last["detail"]) == (kind == "failed")


def test_value_that_is_not_json_is_a_failure(agent: Plain) -> None:
    path = agent.folder / "infinite.py"
    path.write_text("def answer(params):\n    return {'w': float('nan')}\n")
    agent.environment["PYTHONPATH"] = str(agent.folder)
    *_, last = agent.events("call", {"function": "infinite:answer"})
    assert (last["event"], last["kind"]) == ("error", "failed")


# ---------------------------------------------------------------------------------------------------------------------
# hold


def setting(agent: Plain, **params: Any) -> tuple[Path, dict[str, Any]]:
    """A file to be changed, and the job that does it."""
    path = agent.folder / "governor"
    path.write_text("schedutil")
    return path, {"function": SETTING, "params": {"path": str(path), **params}}


def no_more(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    process.stdin.close()


def line(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    process.stdin.write(b"\nstop\n")
    process.stdin.flush()


WAYS: dict[str, tuple[Callable[[subprocess.Popen[bytes]], None], str, dict[str, Any]]] = {
    "SIGTERM": (lambda p: p.send_signal(signal.SIGTERM), "stopped", {}),
    "SIGINT": (lambda p: p.send_signal(signal.SIGINT), "stopped", {}),
    "SIGHUP": (lambda p: p.send_signal(signal.SIGHUP), "orphaned", {}),
    "stop on stdin": (line, "stopped", {"heartbeat_s": 60}),
    "stdin closed": (no_more, "orphaned", {"heartbeat_s": 60}),
    "silence": (lambda p: None, "orphaned", {"heartbeat_s": 0.3}),
}


@pytest.mark.parametrize("way", WAYS)
def test_setting_is_put_back_whatever_ends_the_hold(agent: Plain, way: str) -> None:
    end, reason, more = WAYS[way]
    path, job = setting(agent)
    with agent.start("hold", job | more, subprocess.PIPE) as process:
        said = said_by(process, "held")
        assert said[-1]["value"]["before"] == "schedutil" and path.read_text() == "set"
        began = time.monotonic()
        end(process)
        said += said_by(process)
        process.wait(5)
        assert time.monotonic() - began < 2
    assert [e["event"] for e in said] == ["hello", "held", "released", "end"] == [e["event"] for e in spooled(agent)]
    assert said[-2]["value"] == "schedutil" and said[-1]["reason"] == reason
    assert path.read_text() == "schedutil"


def test_setting_stays_as_long_as_the_heart_beats(agent: Plain) -> None:
    path, job = setting(agent)
    with agent.start("hold", job | {"heartbeat_s": 1.5}, subprocess.PIPE) as process:
        assert process.stdin
        said_by(process, "held")
        for _ in range(25):
            process.stdin.write(b"\n")
            process.stdin.flush()
            time.sleep(0.1)
        assert path.read_text() == "set" and process.poll() is None
        line(process)
        assert said_by(process)[-1]["reason"] == "stopped"


def test_setting_is_put_back_when_nobody_listens_any_more(agent: Plain) -> None:
    path, job = setting(agent)
    with agent.start("hold", job) as process:
        assert process.stdout
        said_by(process, "held")
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    assert path.read_text() == "schedutil" and spooled(agent)[-2]["event"] == "released"


def test_setting_is_put_back_when_the_parent_is_gone(agent: Plain) -> None:
    path, job = setting(agent)
    # Started by a process that ends with us none the wiser: the agent's parent is then another.
    starts = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    words = [sys.executable, "-c", starts, *agent.command, "hold", str(agent.job(job))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=agent.environment) as parent:
        pid = said_by(parent, "held")[0]["pid"]
        parent.kill()
        wait_gone(pid, 2)
    assert path.read_text() == "schedutil" and spooled(agent)[-1]["reason"] == "orphaned"


@pytest.mark.parametrize("when", ["entering", "leaving"])
def test_signals_cut_neither_the_making_nor_the_putting_back(agent: Plain, when: str) -> None:
    path, job = setting(agent, **{when: "wait", "seconds": 1.0})
    with agent.start("hold", job, subprocess.PIPE) as process:
        said_by(process, "hello" if when == "entering" else "held")
        time.sleep(0.3)
        for _ in range(5):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
        process.wait(5)
    assert path.read_text() == "schedutil"
    assert [e["event"] for e in spooled(agent)] == ["hello", "held", "released", "end"]


@pytest.mark.parametrize(
    ("params", "status", "kind", "told"),
    [
        ({"entering": "refuse"}, 2, "refused", "mode 7 is not one of 0, 1, 2"),
        ({"entering": "raise"}, 1, "failed", "Input/output error: /sys/x"),
        ({"leaving": "raise"}, 1, "failed", "not put back: Input/output error: /sys/x"),
        (
            {"leaving": "refuse"},
            1,
            "failed",
            "not put back: NotWantedError: mode 7 is not one of 0, 1, 2",
        ),
        ({"path": "/none/at/all"}, 1, "failed", "No such file or directory: /none/at/all"),
    ],
)
def test_hold_that_fails_says_whether_it_was_made(
    agent: Plain, params: dict[str, Any], status: int, kind: str, told: str
) -> None:
    _, job = setting(agent, **params)
    said = agent.events("hold", job, lambda e: e["event"] == "held")
    assert ("held" in [e["event"] for e in said]) == ("leaving" in params)
    assert (said[-1]["event"], said[-1]["kind"], said[-1]["message"], agent.status) == ("error", kind, told, status)


def test_refusal_of_a_manager_that_is_a_class_is_one(agent: Plain) -> None:
    (agent.folder / "managers.py").write_text(
        "class E(Exception):\n    is_refusal = True\n\ndef made(params):\n    raise E('not here')\n"
    )
    agent.environment["PYTHONPATH"] = str(agent.folder)
    *_, last = agent.events("hold", {"function": "managers:made"})
    assert (last["kind"], last["message"], agent.status) == ("refused", "not here", 2)


# ---------------------------------------------------------------------------------------------------------------------
# streams


def streaming(**params: Any) -> dict[str, Any]:
    return {"rate_hz": 200, "batch_s": 0.05, "stream": STREAM, "params": params}


def test_readings_of_a_stream_come_with_their_own_stamps_and_what_it_notes(agent: Plain) -> None:
    said = agent.events("sample", streaming() | {"duration_s": 0.5})
    got = samples(said)
    assert list(got.values[:, 0]) == list(range(len(got.values))) and len(got.values) > 20
    assert np.isnan(got.values[0::3, 1]).all() and np.isnan(got.values[2::3, 1]).all()
    assert (got.values[1::3, 1] == 0.5).all()
    assert (got.read_ns == 7).all() and (np.diff(got.t_ns) > 0).all()
    sampled = said[-2]
    assert sampled["n"] == len(got.t_ns) and sampled["notes"] == {"restarts": 2, "why": ["it ended"]}
    assert sampled["errors"]["half"]["count"] == int(np.isnan(got.values[:, 1]).sum())
    assert said[-1]["reason"] == "done" and sampled["skipped"] == 0


@pytest.mark.parametrize("way", ["raise", "short"])
def test_stream_that_breaks_in_the_middle_gives_what_it_had(agent: Plain, way: str) -> None:
    closed_at = agent.folder / "closed"
    said = agent.events("sample", streaming(fault=way, fault_at=20, closed=str(closed_at)))
    assert [e["event"] for e in said][-2:] == ["sampled", "error"] and agent.status == 1
    assert list(samples(said).values[:, 0]) == list(range(20)) and said[-2]["n"] == 20
    told = {
        "raise": "Input/output error: /sys/x",
        "short": "ValueError: 1 values for 2 columns",
    }
    assert said[-1]["message"] == told[way] and said[-1]["kind"] == "failed"
    assert closed_at.exists()


def test_stream_that_cannot_be_closed_gives_what_it_had(agent: Plain) -> None:
    said = agent.events("sample", streaming(closing="raise") | {"duration_s": 0.2})
    assert [e["event"] for e in said][-2:] == ["sampled", "error"] and said[-1][
        "message"
    ] == "Input/output error: /sys/x"
    assert list(samples(said).values[:, 0]) == list(range(said[-2]["n"]))


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"starting": "refuse"}, "mode 7 is not one of 0, 1, 2"),
        ({"fault": "raise", "fault_at": 0}, "Input/output error: /sys/x"),
    ],
)
def test_stream_that_never_gave_a_reading_is_refused(agent: Plain, params: dict[str, Any], told: str) -> None:
    said = agent.events("sample", streaming(**params))
    assert [e["event"] for e in said] == ["hello", "error"]
    assert (said[-1]["kind"], agent.status) == ("refused", 2) and told in said[-1]["message"]


def test_stream_whose_first_reading_does_not_come_is_refused(agent: Plain) -> None:
    """The limit is that of the agent, made short."""
    short = "import sys, edgewatt.devices.agent.agent as a; a.FIRST_OF_STREAM_S = 0.5; sys.exit(a.main(sys.argv[1:]))"
    agent.command = [agent.command[0], "-c", short]
    parts = [str(AGENT.parents[3]), agent.environment["PYTHONPATH"]]
    agent.environment["PYTHONPATH"] = os.pathsep.join(parts)
    said = agent.events("sample", streaming(first_s=60))
    assert said[-1]["kind"] == "refused" and said[-1]["message"] == "nothing came within 0.5 s"


@pytest.mark.parametrize("first_s", [0.0, 60.0], ids=["at work", "before its first reading"])
def test_stream_ends_soon_when_asked_to(agent: Plain, first_s: float) -> None:
    closed_at = agent.folder / "closed"
    job = streaming(period_s=30.0, first_s=first_s, closed=str(closed_at))
    with agent.start("sample", job) as process:
        said = said_by(process, "hello" if first_s else "sampling")
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said += said_by(process)
        assert time.monotonic() - began < 5
    assert said[-1]["reason"] == "stopped" and closed_at.exists() and said[-2]["n"] == (0 if first_s else 1)


@pytest.mark.parametrize("more", [{"nodes": [{"path": "/x"}]}, {"source": "a:b"}, {"stream": None}])
def test_sampling_has_one_origin(agent: Plain, more: dict[str, Any]) -> None:
    *_, last = agent.events("sample", streaming() | more)
    assert last["kind"] == "refused" and "wanted either nodes or a source or a stream" in last["message"]


# ---------------------------------------------------------------------------------------------------------------------
# a harness that is gone


def running(agent: Plain) -> dict[str, Any]:
    return {
        "runner": "support.fake_runner:Sleeper",
        "params": {},
        "item_count": 3,
        "item_phases": ["first", "second"],
        "folder": str(agent.folder / "outputs"),
        "repeats": 1,
        "idle_s": 0,
        "window_s": 300,
        "max_window_s": 300,
        "steady": {"max_s": 0},
    }


def work(agent: Plain, verb: str) -> dict[str, Any]:
    """A job that would go on for minutes."""
    if verb == "run" and "3.8" in agent.command[0]:
        pytest.skip("`run` needs Python 3.10")
    if verb == "hold":
        return setting(agent)[1]
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "sample": lambda: {"rate_hz": 500, "batch_s": 0.02, "source": "support.fake_source:counting"},
        "stream": lambda: streaming(period_s=0.001) | {"batch_s": 0.01},
        "call": lambda: {"function": ECHO, "params": {"fault": "wait", "seconds": 300}},
        "run": lambda: running(agent),
    }
    return jobs[verb]()


VERBS = {"sample": "sample", "stream": "sample", "hold": "hold", "call": "call", "run": "run"}


@pytest.mark.parametrize("way", ["stdin closed", "silence"])
@pytest.mark.parametrize("verb", VERBS)
def test_agent_ends_by_itself_when_its_harness_is_gone(agent: Plain, verb: str, way: str) -> None:
    job = work(agent, verb) | {"heartbeat_s": 1.0}
    process = agent.start(VERBS[verb], job, subprocess.PIPE)
    try:
        said_by(process, "hello")
        time.sleep(0.3)
        if way == "stdin closed":
            no_more(process)
        wait_gone(process.pid, 1.0 + 2.0 + 1.0)  # the last is for this machine
    finally:
        closed(process)
    last = spooled(agent)[-1]
    if verb == "call":  # cut short: there is nothing to finish
        assert last["event"] in ("hello", "end")
    else:
        assert (last["event"], last["reason"]) == ("end", "orphaned")


@pytest.mark.parametrize("verb", VERBS)
def test_blocked_link_keeps_no_agent_and_its_spool_is_whole(agent: Plain, verb: str) -> None:
    """Nobody reads, the pipe is full, the heart has stopped: as behind a link that carries nothing any more."""
    job = work(agent, verb) | {"heartbeat_s": 1.5}
    process = agent.start(VERBS[verb], job, subprocess.PIPE)
    try:
        assert process.stdout and process.stdin
        fcntl.fcntl(process.stdout.fileno(), 1031, 4096)  # F_SETPIPE_SZ
        process.stdin.write(b"\n")
        process.stdin.flush()
        wait_gone(process.pid, GONE_S)
    finally:
        closed(process)
    said = spooled(agent)
    if verb != "call":
        assert (said[-1]["event"], said[-1]["reason"]) == ("end", "orphaned")
    if VERBS[verb] == "sample":
        values = samples(said).values[:, 0]
        assert list(values) == list(range(len(values))) and said[-2]["n"] == len(values) > 500
    if verb == "run":
        items = [e for e in said if e["event"] == "items"]
        assert [e["first"] for e in items[1:]] == list(np.cumsum([e["n"] for e in items])[:-1])
    if verb == "hold":
        assert (agent.folder / "governor").read_text() == "schedutil"


def test_what_a_function_started_ends_with_an_orphaned_agent(agent: Plain) -> None:
    child = agent.folder / "child"
    (agent.folder / "parents.py").write_text(
        "import subprocess, sys, time\n\ndef start(params):\n"
        "    p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"    open({str(child)!r}, 'w').write(str(p.pid))\n    time.sleep(600)\n"
    )
    agent.environment["PYTHONPATH"] = str(agent.folder)
    process = agent.start("call", {"function": "parents:start", "heartbeat_s": 60}, subprocess.PIPE)
    try:
        while not child.exists() or not child.read_text():
            time.sleep(0.02)
        pid = int(child.read_text())
        assert alive(pid)
        no_more(process)
        wait_gone(process.pid, 2)
        wait_gone(pid, 1)
    finally:
        closed(process)


@pytest.mark.parametrize("group", ["", "1"])
def test_group_is_ended_only_where_it_is_the_agents_own(agent: Plain, group: str) -> None:
    """A shell that started the agent leads the group: `EDGEWATT_GROUP` says that it may be ended all the same."""
    path, job = setting(agent)
    agent.environment["EDGEWATT_GROUP"] = group
    # A shell gives nothing of its stdin to what it starts with &, unless told to.
    words = ["sh", "-c", 'exec 3<&0; "$@" <&3 3<&- & exec sleep 600', "sh"]
    process = subprocess.Popen(
        [*words, *agent.command, "hold", str(agent.job(job | {"heartbeat_s": 60}))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=agent.environment,
        start_new_session=True,
    )
    try:
        pid = said_by(process, "held")[0]["pid"]
        no_more(process)
        wait_gone(pid, 2)
        time.sleep(0.2)
        assert alive(process.pid) == (not group)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        closed(process)
    assert path.read_text() == "schedutil"
