"""What any agent promises, whatever it is written in (docs/agent-protocol.md). A new one is added to `agents`."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.agents import MISSING, Plain, agent_of, alive, numbers, samples, wait_gone

NATIVE = pytest.param("native", marks=pytest.mark.needs_compiler)
AARCH64 = pytest.param("aarch64", marks=pytest.mark.needs_qemu)


# The oldest Python that the agent knows, and this one, stand for those between and after them.
OTHERS = [pytest.param(name, marks=pytest.mark.soak) for name in ("python3.9", "python3.13")]


@pytest.fixture(params=["python", "python3.8", *OTHERS, NATIVE, AARCH64])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Plain:
    return agent_of(request.param, tmp_path)


@pytest.fixture(params=["python", NATIVE])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Plain:
    return agent_of(request.param, tmp_path)


def node(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


def sample_job(*paths: object, **more: object) -> dict[str, object]:
    return {"rate_hz": 200, "batch_s": 0.05, "duration_s": 0.2, "nodes": [{"path": str(p)} for p in paths], **more}


# ---------------------------------------------------------------------------------------------------------------------
# every verb


def test_hello_is_first_and_end_is_last(agent: Plain) -> None:
    said = agent.events("hello", {})
    assert [e["event"] for e in said] == ["hello", "end"]
    assert said[0]["protocol"] == 1 and said[0]["verb"] == "hello" and said[0]["facts"]["machine"]
    assert said[1]["reason"] == "done" and agent.status == 0


def test_hello_names_the_clock_its_stamps_are_on(agent: Plain) -> None:
    clock = {"boottime": time.CLOCK_BOOTTIME, "monotonic": time.CLOCK_MONOTONIC}
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    hello, end = agent.events("hello", {})
    assert hello["clock"] in clock
    assert before < hello["t_ns"] <= end["t_ns"] < time.clock_gettime_ns(clock[hello["clock"]])


def test_spool_holds_what_stdout_said(agent: Plain) -> None:
    said = agent.events("clock", {"n": 3})
    assert [json.loads(line) for line in agent.spool.read_text().splitlines()] == said


def test_no_spool_is_left_where_none_is_wanted(agent: Plain) -> None:
    agent.events("clock", {"n": 1, "spool": False})
    assert not agent.spool.exists()


def test_keys_it_does_not_know_are_passed_over(agent: Plain) -> None:
    said = agent.events("clock", {"n": 2, "colour": "red"})
    assert [e["event"] for e in said] == ["hello", "clock", "clock", "end"]


@pytest.mark.parametrize(
    ("verb", "job", "told"),
    [
        ("clock", "not json", "Expecting"),
        ("clock", "[]", "object"),
        ("clock", {"n": "many"}, "n is 'many'"),
        ("sample", {"rate_hz": 100}, "nodes or a source"),
        ("sample", {"rate_hz": 0, "nodes": [{"path": "/proc/self/stat"}]}, "rate_hz is 0"),
        ("sample", {"rate_hz": "fast", "nodes": [{"path": "/proc/self/stat"}]}, "rate_hz is 'fast'"),
        ("sample", {"nodes": [{"file": "/x"}]}, "nodes is"),
        ("sample", {"source": "no.such:thing"}, "no.such"),
        ("sample", {"nodes": [{"path": "/no/such/file"}]}, "No such file"),
    ],
)
def test_job_that_makes_no_sense_is_refused_in_one_line(agent: Plain, verb: str, job: object, told: str) -> None:
    said = agent.events(verb, job)
    assert [e["event"] for e in said] == ["hello", "error"]
    assert said[1]["kind"] == "refused" and told in said[1]["message"] and "\n" not in said[1]["message"]
    assert agent.status == 2


def test_clock_stamps_come_at_their_period(agent: Plain) -> None:
    t_ns = [e["t_ns"] for e in agent.events("clock", {"n": 11, "period_s": 0.01}) if e["event"] == "clock"]
    assert len(t_ns) == 11
    assert t_ns[-1] - t_ns[0] >= 0.099e9
    assert t_ns == sorted(set(t_ns))


@pytest.mark.parametrize("verb", ["clock", "sample"])
def test_asked_to_end_it_ends_in_order(agent: Plain, tmp_path: Path, verb: str) -> None:
    job = {"n": 10000, "period_s": 0.05} if verb == "clock" else sample_job(node(tmp_path, "a", "1"), duration_s=None)
    said = agent.events(verb, job, until=lambda e: e["event"] in ("clock", "frames"))
    assert said[-1]["event"] == "end" and said[-1]["reason"] == "stopped" and agent.status == 0


@pytest.mark.parametrize("verb", ["clock", "sample"])
def test_orphan_ends_by_itself_within_two_seconds(agent: Plain, tmp_path: Path, verb: str) -> None:
    sampling = sample_job(node(tmp_path, "a", "1"), duration_s=None, batch_s=60)
    job = {"n": 10000, "period_s": 3} if verb == "clock" else sampling
    parent = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, start_new_session=True)\n"
        "p.stdout.readline(); p.stdout.readline()\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", parent, *agent.command, verb, str(agent.job(job))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=agent.environment) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
    wait_gone(pid, 2.0)
    last = json.loads(agent.spool.read_text().splitlines()[-1])
    assert (last["event"], last["reason"]) == ("end", "orphaned")


# ---------------------------------------------------------------------------------------------------------------------
# sample


def test_frames_hold_the_integers_of_the_files(agent: Plain, tmp_path: Path) -> None:
    numbers_ = [0, 1, -1, 5120000, 2**53 + 1, -(2**63) + 1, 2**63 - 1]
    said = agent.events("sample", sample_job(*(node(tmp_path, f"n{k}", f"{v}\n") for k, v in enumerate(numbers_))))
    found = samples(said)
    assert np.array_equal(found.values, np.tile(np.array(numbers_, np.int64), (len(found.t_ns), 1)))
    assert next(e for e in said if e["event"] == "sampling")["columns"] == [str(tmp_path / f"n{k}") for k in range(7)]
    assert all(e["form"] == "int64" for e in said if e["event"] == "frames")


def test_all_samples_come_once_and_in_order(agent: Plain, tmp_path: Path) -> None:
    said = agent.events("sample", sample_job(node(tmp_path, "a", "1")))
    found, end = samples(said), said[-2]
    assert end["event"] == "sampled" and end["n"] == len(found.t_ns) == len(found.read_ns) == len(found.values)
    assert (np.diff(found.t_ns) > 0).all() and (found.read_ns > 0).all()


def test_deadlines_are_absolute_and_skipped_ones_counted(agent: Plain, tmp_path: Path) -> None:
    said = agent.events("sample", sample_job(node(tmp_path, "a", "1"), rate_hz=250, duration_s=1.0))
    t_ns, end = samples(said).t_ns, said[-2]
    # After its deadline, the own lateness of one sample apart: not the first, which an emulated processor is slow at.
    late_s = (t_ns - t_ns[20] + 2_000_000) * 1e-9 % 0.004 - 0.002
    assert abs(np.median(late_s[-60:]) - np.median(late_s[:60])) < 5e-4  # 250 delays of 0.1 ms would add up to 25 ms
    assert end["n"] + end["skipped"] == pytest.approx((t_ns[-1] - t_ns[0]) * 1e-9 * 250 + 1, abs=1)


def test_what_it_tells_of_its_timing_is_so(agent: Plain, tmp_path: Path) -> None:
    said = agent.events("sample", sample_job(node(tmp_path, "a", "1"), gap_limit_s=0.001))
    found, told = samples(said), said[-2]
    gaps_s = np.diff(found.t_ns) * 1e-9
    assert told["rate_hz"] == pytest.approx(1 / gaps_s.mean())
    assert told["gap_max_s"] == pytest.approx(gaps_s.max())
    assert told["gap_p99_s"] == pytest.approx(np.sort(gaps_s)[int(np.ceil(0.99 * len(gaps_s))) - 1], abs=2e-5)
    assert told["read_s"] == pytest.approx(np.sort(found.read_ns)[(len(gaps_s) + 2) // 2 - 1] * 1e-9, abs=5e-6)
    assert told["gap_limit_s"] == 0.001 and told["gaps_over_limit"] == (gaps_s > 0.001).sum() > 10
    assert 0 < told["cpu_s_per_s"] < 1 and told["rate_asked_hz"] == 200


def test_gap_limit_has_a_default(agent: Plain, tmp_path: Path) -> None:
    fast = agent.events("sample", sample_job(node(tmp_path, "a", "1")))[-2]
    slow = agent.events("sample", sample_job(tmp_path / "a", rate_hz=10))[-2]
    assert (fast["gap_limit_s"], slow["gap_limit_s"]) == (0.05, pytest.approx(0.3))


def test_pause_beyond_the_limit_is_counted_and_not_made_up_for(agent: Plain, tmp_path: Path) -> None:
    job = sample_job(node(tmp_path, "a", "1"), duration_s=1.0)
    with agent.start("sample", job) as process:
        assert process.stdout
        said = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
        said += [json.loads(line) for line in process.stdout]
    told = said[-2]
    assert told["gaps_over_limit"] >= 1 and told["gap_max_s"] >= 0.29 and told["skipped"] >= 55
    gaps_s = np.diff(samples(said).t_ns) * 1e-9
    after = int(np.argmax(gaps_s)) + 1
    assert np.median(gaps_s[after : after + 20]) == pytest.approx(0.005, rel=0.3)  # no burst to catch up


def test_file_that_fails_is_missing_and_counted_and_harms_no_other(agent: Plain, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    broken = {
        "/proc/self/mem": "Input/output error|I/O error",  # nothing is mapped at address 0; as glibc or musl words it
        str(tmp_path): "Is a directory",
        str(tmp_path / "fifo"): "Illegal seek|Invalid seek",
        str(tmp_path / "none"): "No such file or directory",
        str(node(tmp_path, "words", "12.5 W\n")): "no integer",
        str(node(tmp_path, "empty", "")): "empty",
        str(node(tmp_path, "huge", str(2**63))): "no integer",
    }
    said = agent.events("sample", sample_job(node(tmp_path, "good", "42"), *broken))
    found, errors = samples(said), said[-2]["errors"]
    assert (found.values[:, 0] == 42).all() and (found.values[:, 1:] == MISSING).all()
    assert set(errors) == set(broken)
    for path, text in broken.items():
        assert errors[path]["count"] == len(found.t_ns) and re.search(text, errors[path]["text"])


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_file_that_vanishes_and_returns_is_read_again(agent: Plain, tmp_path: Path, how: str) -> None:
    path, other = node(tmp_path, "a", "1"), node(tmp_path, "b", "7")

    def change_what_was_seen(event: dict[str, Any]) -> bool:
        """The next change once the last was seen; whether the agent has seen them all."""
        if event["event"] != "frames":
            return False
        last = int(numbers(event["values"]).reshape(event["n"], 2)[-1, 0])
        if last == 1 and how == "removed":
            path.unlink(missing_ok=True)
        elif last != 2:
            node(tmp_path, "new", "2").replace(path)
        return last == 2

    said = agent.events("sample", sample_job(path, other, duration_s=30), until=change_what_was_seen)
    values = samples(said).values
    seen = [int(v) for k, v in enumerate(values[:, 0]) if k == 0 or v != values[k - 1, 0]]
    assert seen == ([1, MISSING, 2] if how == "removed" else [1, 2])
    assert (values[:, 1] == 7).all()


def test_file_replaced_at_every_refresh_is_read_fresh_each_time(agent: Plain, tmp_path: Path) -> None:
    path, is_over = node(tmp_path, "a", "0"), threading.Event()
    replaced_ns = []

    def replace_again_and_again() -> None:
        while not is_over.wait(0.002):
            node(tmp_path, "new", str(len(replaced_ns) + 1)).replace(path)
            replaced_ns.append(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    writer = threading.Thread(target=replace_again_and_again)
    writer.start()
    found = samples(agent.events("sample", sample_job(path, rate_hz=20, duration_s=1.0)))
    is_over.set()
    writer.join()
    is_replaced = np.diff(np.searchsorted(replaced_ns, found.t_ns)) > 0  # since the reading before
    assert (np.diff(found.values[:, 0])[is_replaced] > 0).mean() > 0.8 and is_replaced.sum() > 5


def test_column_is_called_as_the_job_says(agent: Plain, tmp_path: Path) -> None:
    job = sample_job(node(tmp_path, "a", "1")) | {"nodes": [{"path": str(tmp_path / "a"), "name": "VDD_IN"}]}
    assert next(e for e in agent.events("sample", job) if e["event"] == "sampling")["columns"] == ["VDD_IN"]


# ---------------------------------------------------------------------------------------------------------------------
# run


def run_job(runner: Plain, **more: object) -> dict[str, object]:
    return {
        "runner": runner.runner,
        "params": {"first_s": 0.004, "second_s": 0.002},
        "item_count": 7,
        "item_phases": ["first", "second"],
        "isolate": ["second"],
        "folder": str(runner.folder / "outputs"),
        "repeats": 2,
        "idle_s": 0.1,
        "window_s": 0.1,
        "isolated_s": 0.05,
        "steady": {"min_s": 0.05, "max_s": 0.1, "block_s": 0.02},
        **more,
    }


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"item_phases": []}, "item_phases is empty"),
        ({"item_phases": "first"}, "item_phases is 'first'"),
        ({"isolate": ["third"]}, "isolate names third"),
        ({"repeats": 0}, "repeats is 0"),
        ({"item_count": None}, "item_count is None"),
        ({"folder": ""}, "folder is ''"),
        ({"runner": "no_such_module:Runner"}, "no_such_module"),
        ({"runner": "json"}, "wanted module:name"),
        ({"params": [1]}, "params is [1]"),
        ({"idle_s": -1}, "idle_s is -1"),
        ({"steady": {"nodes": [{"name": "t"}]}}, "path is None"),
    ],
)
def test_run_that_makes_no_sense_is_refused(runner: Plain, wrong: dict[str, object], told: str) -> None:
    said = runner.events("run", run_job(runner) | wrong)
    assert [e["event"] for e in said] == ["hello", "error"] and runner.status == 2
    assert said[1]["kind"] == "refused" and told in said[1]["message"]


def test_parts_of_a_run_come_in_order_and_do_not_overlap(runner: Plain) -> None:
    said = runner.events("run", run_job(runner))
    phases = [e for e in said if e["event"] == "phase"]
    once = ["warmup", "window", "second", "idle"]
    assert [(e["phase"], e["repeat"]) for e in phases] == [
        ("load", 0),
        ("idle", 0),
        *((p, r) for r in (0, 1) for p in once),
    ]
    edges = [t for e in phases for t in (e["start_ns"], e["end_ns"])]
    assert edges == sorted(edges)
    others = [e["event"] for e in said if e["event"] not in ("phase", "items", "alive")]
    assert others == ["hello", "loaded", "steady", "steady", "saved", "done", "end"]
    shortest_s = {p: min(e["end_ns"] - e["start_ns"] for e in phases if e["phase"] == p) * 1e-9 for p in once}
    assert 0.1 <= shortest_s["idle"] < 0.2 and shortest_s["window"] >= 0.1 and shortest_s["second"] >= 0.05


def test_marks_are_the_phases_of_whole_items_inside_their_part(runner: Plain) -> None:
    said = runner.events("run", run_job(runner))
    for phase in (e for e in said if e["event"] == "phase" and e["items"]):
        events = [
            e for e in said if e["event"] == "items" and (e["part"], e["repeat"]) == (phase["phase"], phase["repeat"])
        ]
        names = ["second"] if phase["phase"] == "second" else ["first", "second"]
        assert all(e["phases"] == names for e in events)
        marks = np.concatenate([numbers(e["marks_ns"]).reshape(e["n"], len(names) + 1) for e in events])
        assert len(marks) == phase["items"] == sum(e["n"] for e in events)
        assert [e["first"] for e in events] == list(np.cumsum([0, *(e["n"] for e in events)])[:-1])
        edges = [phase["start_ns"], *marks.ravel(), phase["end_ns"]]
        assert (np.diff(edges) >= 0).all()
        lasted_s = np.diff(marks, axis=1) * 1e-9
        assert (lasted_s[:, -1] >= 0.002).all() and (lasted_s[:, 0] >= (0.004 if len(names) == 2 else 0.002)).all()
        between_s = (marks[1:, 0] - marks[:-1, -1]) * 1e-9
        assert len(between_s) == 0 or np.median(between_s) < 1e-3  # less than the shortest phase


def test_first_window_sees_every_picture_however_short(runner: Plain) -> None:
    said = runner.events("run", run_job(runner, window_s=0, item_count=9))
    pictures = {
        r: np.concatenate(
            [numbers(e["picture"]) for e in said if e["event"] == "items" and (e["part"], e["repeat"]) == ("window", r)]
        )
        for r in (0, 1)
    }
    assert list(pictures[0]) == list(range(9)) and list(pictures[1]) == [0]
    saved = next(e for e in said if e["event"] == "saved")
    assert saved["items"] == 9
    assert Path(saved["folder"], "outputs.txt").read_text().split()[::2] == [str(k) for k in range(9)]


def test_window_ends_at_its_longest_and_has_its_least_items(runner: Plain) -> None:
    said = runner.events("run", run_job(runner, window_s=0, repeats=1, item_count=1000, max_window_s=0.1))
    window = next(e for e in said if e["event"] == "phase" and e["phase"] == "window")
    assert 0.1 <= (window["end_ns"] - window["start_ns"]) * 1e-9 < 0.5 and window["items"] < 100
    assert next(e for e in said if e["event"] == "saved")["items"] == window["items"]
    said = runner.events(
        "run", run_job(runner, window_s=0, repeats=1, min_items=31, folder=str(runner.folder / "more"))
    )
    assert next(e for e in said if e["event"] == "phase" and e["phase"] == "window")["items"] == 31


def test_heart_beats_while_a_single_item_runs(runner: Plain) -> None:
    job = run_job(runner, params={"first_s": 3.6, "second_s": 0}, item_count=1, repeats=1, isolate=[], window_s=0)
    said = runner.events("run", job | {"steady": {"max_s": 0}})
    beats = [e for e in said if e["event"] == "alive" and e["phase"] == "window"]
    assert len(beats) >= 2 and all(e["items"] == 0 for e in beats)
    assert beats[-1]["step_s"] > beats[0]["step_s"] > 0
    t_ns = [e["t_ns"] for e in beats]
    assert max(np.diff(t_ns)) < 2.5e9


def test_warm_up_that_does_not_settle_says_so(runner: Plain) -> None:
    steady = {"min_s": 0, "max_s": 0.1, "block_s": 0.01, "blocks": 2, "tolerance": 0}
    said = runner.events("run", run_job(runner, repeats=1, steady=steady))
    told = next(e for e in said if e["event"] == "steady")
    assert told["reached"] is False and 0.1 <= told["after_s"] < 0.5 and "%" in told["detail"]
    assert told["items"] == next(e for e in said if e["event"] == "phase" and e["phase"] == "warmup")["items"]


def test_run_that_is_stopped_saves_nothing(runner: Plain) -> None:
    job = run_job(runner, window_s=60)
    said = runner.events("run", job, until=lambda e: e["event"] == "items" and e["part"] == "window")
    assert said[-1]["event"] == "end" and said[-1]["reason"] == "stopped" and runner.status == 0
    assert not any(e["event"] in ("saved", "done", "error") for e in said)
    assert not list(runner.folder.glob("outputs*"))
    window = next(e for e in said if e["event"] == "phase" and e["phase"] == "window")
    assert window["items"] == sum(e["n"] for e in said if e["event"] == "items" and e["part"] == "window")


def test_orphaned_run_ends_with_its_children_even_in_the_middle_of_an_item(runner: Plain) -> None:
    child = runner.folder / "child"
    job = run_job(runner, params={"first_s": 600, "child": str(child)}, idle_s=0, steady={"max_s": 0})
    parent = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, start_new_session=True)\n"
        "while b'idle' not in p.stdout.readline(): pass\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", parent, *runner.command, "run", str(runner.job(job))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=runner.environment) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        process.kill()
    wait_gone(pid, 4.0)
    wait_gone(int(child.read_text()), 2.0)
