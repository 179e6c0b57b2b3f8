"""The subprocess transport, with real processes that do what models do to theirs."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgewatt.devices import transport
from edgewatt.devices.transport import LocalAgent, Subprocess
from edgewatt.harness.api import Exit, HarnessError, TransientError, UsageError
from support.agents import alive, wait_gone


@pytest.fixture
def here() -> Iterator[Subprocess]:
    with Subprocess() as t:
        yield t


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread and no descriptor survives its process."""
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def run_job(folder: Path, **params: Any) -> dict[str, Any]:
    return {
        "runner": "support.fake_runner:Sleeper",
        "params": params,
        "item_count": 3,
        "item_phases": ["first", "second"],
        "folder": str(folder / "outputs"),
        "repeats": 1,
        "idle_s": 0,
        "window_s": 0.05,
        "steady": {"max_s": 0},
    }


def program(text: str) -> LocalAgent:
    """A program in the agent's place."""
    return LocalAgent([sys.executable, "-c", textwrap.dedent(text)], dict(os.environ))


# ---------------------------------------------------------------------------------------------------------------------
# ends, good and bad


def test_good_run_ends_with_status_0_and_its_outputs(here: Subprocess, tmp_path: Path) -> None:
    agent = here.start("run", run_job(tmp_path))
    said = list(agent.events(10))
    assert said[-1]["event"] == "end" and said[-1]["reason"] == "done"
    end = agent.stop()
    assert (end.status, end.signal) == (0, None)
    assert "a library that talks on stdout" in end.stderr and "and a child of its" in end.stderr
    assert (tmp_path / "outputs" / "outputs.txt").exists()


@pytest.mark.parametrize(("fault", "signal_"), [("abort", "SIGABRT"), ("segfault", "SIGSEGV"), ("killed", "SIGKILL")])
def test_crash_is_told_by_its_signal(here: Subprocess, tmp_path: Path, fault: str, signal_: str) -> None:
    agent = here.start("run", run_job(tmp_path, fault=fault, fault_at=1))
    said = list(agent.events(10))
    assert said[-1]["event"] not in ("end", "error")
    end = agent.stop()
    assert (end.status, end.signal, end.out_of_memory) == (None, signal_, False)
    if fault != "killed":
        assert "fake_runner.py" in end.stderr  # where it crashed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "at", "kind", "told"),
    [
        ("raise", 1, "failed", "ValueError: the picture is upside down"),
        ("raise", "load", "failed", "ValueError: the picture is upside down"),
        ("raise", "save", "failed", "ValueError: the picture is upside down"),
        ("exit", 1, "failed", "SystemExit: 3"),
        ("bad_alloc", 1, "out_of_memory", "RuntimeError: ONNXRuntimeError: std::bad_alloc"),
        ("no mark", 0, "failed", "ValueError: the runner marked first; wanted first, second"),
    ],
)
def test_error_in_the_model_is_told_in_one_line(
    here: Subprocess, tmp_path: Path, fault: str, at: object, kind: str, told: str
) -> None:
    agent = here.start("run", run_job(tmp_path, fault=fault, fault_at=at))
    error = list(agent.events(10))[-1]
    assert (error["event"], error["kind"], error["message"]) == ("error", kind, told)
    assert "Traceback" in error["detail"]
    assert agent.stop().status == 1
    assert not list(tmp_path.iterdir())


def test_items_before_an_error_are_told(here: Subprocess, tmp_path: Path) -> None:
    said = list(here.start("run", run_job(tmp_path, fault="raise", fault_at=2)).events(10))
    assert [e["n"] for e in said if e["event"] == "items"] == [2]


def test_runner_that_is_not_there_is_refused(here: Subprocess, tmp_path: Path) -> None:
    agent = here.start("run", run_job(tmp_path) | {"runner": "no_such_module:Runner"})
    error = list(agent.events(10))[-1]
    assert error["kind"] == "refused" and "no_such_module" in error["message"] and agent.stop().status == 2


def test_memory_beyond_its_limit_is_out_of_memory(here: Subprocess, tmp_path: Path) -> None:
    agent = here.start("run", run_job(tmp_path, fault="eat", fault_at=1) | {"memory_limit_bytes": 1 << 30})
    error = list(agent.events(20))[-1]
    assert (error["event"], error["kind"]) == ("error", "out_of_memory")
    assert agent.stop().status == 1


@pytest.mark.needs_root
def test_kernels_oom_killer_is_recognised(here: Subprocess, tmp_path: Path) -> None:
    v1 = Path("/sys/fs/cgroup/memory")
    group = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / f"edgewatt-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control group can be made: {error}")
    try:
        limit = next((group / f for f in ("memory.limit_in_bytes", "memory.max") if (group / f).exists()), None)
        if limit is None:
            pytest.skip("control groups here do not limit memory")
        limit.write_text(str(200 << 20))
        job = run_job(tmp_path, fault="eat", fault_at=1, cgroup=str(group))
        agent = here.start("run", job)
        assert list(agent.events(60))[-1]["event"] != "error"
        end = agent.stop()
        assert (end.signal, end.out_of_memory) == ("SIGKILL", True)
    finally:
        group.rmdir()


def test_peak_memory_is_the_agents_own_and_not_ours(here: Subprocess, tmp_path: Path) -> None:
    ballast = bytearray(os.urandom(1 << 20) * 400)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 400 << 10
    done = list(here.start("run", run_job(tmp_path)).events(10))[-2]
    assert done["event"] == "done" and 5 << 20 < done["peak_memory_bytes"] < 150 << 20
    assert len(ballast) == 400 << 20


def test_settings_are_as_read_back(here: Subprocess, tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    said = list(here.start("run", run_job(tmp_path) | {"niceness": 5, "affinity": [cpu]}).events(10))
    loaded = next(e for e in said if e["event"] == "loaded")
    assert loaded["settings"] == {"memory_limit_bytes": None, "niceness": 5, "affinity": [cpu]}


def test_setting_that_is_impossible_fails_and_is_not_passed_over(here: Subprocess, tmp_path: Path) -> None:
    error = list(here.start("run", run_job(tmp_path) | {"affinity": [4000]}).events(10))[-1]
    assert error["event"] == "error" and "Invalid argument" in error["message"]


# ---------------------------------------------------------------------------------------------------------------------
# hanging and stopping


def test_hung_item_ends_with_an_error_that_says_where(here: Subprocess, tmp_path: Path) -> None:
    agent = here.start("run", run_job(tmp_path, fault="hang", fault_at=1) | {"item_limit_s": 0.5})
    error = list(agent.events(10))[-1]
    assert (error["event"], error["kind"]) == ("error", "hung")
    assert error["message"].startswith("window: item 1 has been at work for") and "0.5 s" in error["message"]
    assert "in fault" in error["detail"]
    assert agent.stop().status == 1


def test_load_that_hangs_is_told_too(here: Subprocess, tmp_path: Path) -> None:
    error = list(
        here.start("run", run_job(tmp_path, fault="hang", fault_at="load") | {"load_limit_s": 0.3}).events(10)
    )[-1]
    assert error["kind"] == "hung" and error["message"].startswith("load has been at work")


def test_silence_is_a_timeout_and_the_process_still_there(here: Subprocess) -> None:
    agent = program("import time; time.sleep(60)")
    with pytest.raises(TimeoutError, match=r"nothing for 0\.1 s"):
        next(agent.events(0.1))
    assert alive(agent.pid)
    assert agent.stop(0.1).signal == "SIGTERM"
    assert not alive(agent.pid)


def test_process_that_will_not_end_is_killed_after_its_grace(tmp_path: Path) -> None:
    agent = program(
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print('{"event": "hello"}', flush=True)
        time.sleep(60)
        """
    )
    assert next(agent.events(5)) == {"event": "hello"}
    start = time.monotonic()
    assert agent.stop(0.3).signal == "SIGKILL"
    assert 0.3 <= time.monotonic() - start < 2


def test_stop_twice_gives_the_same_end(here: Subprocess) -> None:
    agent = here.start("clock", {"n": 1})
    assert agent.stop() == agent.stop()


def test_stop_ends_grandchildren_too(here: Subprocess, tmp_path: Path) -> None:
    child = tmp_path / "child"
    agent = here.start("run", run_job(tmp_path, fault="hang", fault_at=1, child=str(child)))
    assert any(e["event"] == "loaded" for e in agent.events(10) if e["event"] != "hello" and child.exists())
    pid = int(child.read_text())
    assert alive(pid)
    agent.stop(0.2)
    wait_gone(pid, 1.0)


def test_grandchild_that_outlives_a_crash_does_not_hold_us_up(here: Subprocess, tmp_path: Path) -> None:
    child = tmp_path / "child"
    agent = here.start("run", run_job(tmp_path, fault="abort", fault_at=1, child=str(child)))
    start = time.monotonic()
    list(agent.events(10))
    assert agent.stop().signal == "SIGABRT"
    assert time.monotonic() - start < 5
    wait_gone(int(child.read_text()), 1.0)


def test_forked_child_that_keeps_the_pipes_open_does_not_hold_us_up() -> None:
    agent = program(
        """
        import os, time
        print('{"event": "hello"}', flush=True)
        if os.fork() == 0:
            time.sleep(60)
        os._exit(7)
        """
    )
    start = time.monotonic()
    assert [e["event"] for e in agent.events(5)] == ["hello"]
    assert agent.stop().status == 7
    assert time.monotonic() - start < 3


def test_child_that_goes_on_writing_does_not_hold_us_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "DRAIN_S", 0.2)
    agent = program(
        """
        import os
        if os.fork() == 0:
            while True:
                os.write(2, b"and another thing\\n")
        os._exit(7)
        """
    )
    start = time.monotonic()
    assert list(agent.events(5)) == []
    assert agent.stop().status == 7
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("missing", ["pidfd_open", "waitid"])
def test_ends_are_seen_on_systems_that_have_less(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delattr(os, missing)
    agent = program("""
        import os, time
        if os.fork() == 0:
            time.sleep(60)
        os._exit(7)
    """)
    assert list(agent.events(5)) == []
    assert agent.stop().status == 7


def test_close_ends_all_and_leaves_no_folder() -> None:
    with Subprocess() as here:
        folder = Path(here.scratch())
        assert not list(folder.iterdir())
        agents = [here.start("clock", {"n": 1000, "period_s": 1}) for _ in range(2)]
        for a in agents:
            next(a.events(5))
    assert not folder.exists() and not any(alive(a.pid) for a in agents)
    here.close()


def test_agent_ends_when_we_are_killed(tmp_path: Path) -> None:
    text = """
        import sys, time
        from edgewatt.devices.transport import Subprocess
        here = Subprocess()
        agent = here.start("clock", {"n": 1000, "period_s": 1})
        next(agent.events(5))
        print(agent.pid, flush=True)
        time.sleep(60)
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(text)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
    wait_gone(pid, 2.0)


def test_thread_that_started_it_may_end_before_it() -> None:
    with Subprocess() as here:
        started: list[LocalAgent] = []
        thread = threading.Thread(target=lambda: started.append(here.start("clock", {"n": 1000, "period_s": 0.1})))
        thread.start()
        thread.join()
        events = started[0].events(5)
        assert [next(events)["event"] for _ in range(8)] == ["hello"] + ["clock"] * 7


def test_killed_agent_is_told_by_its_signal(here: Subprocess) -> None:
    agent = here.start("clock", {"n": 1000, "period_s": 1})
    next(agent.events(5))
    os.kill(agent.pid, signal.SIGKILL)
    list(agent.events(5))
    assert agent.stop().signal == "SIGKILL"


# ---------------------------------------------------------------------------------------------------------------------
# what is said


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "",
        "[]",
        '{"event": 1}',
        '{"kind": "x"}',
        '{"event": "x", "value": NaN}',
        '{"event": "x"',
        "[" * 100000,
        "\\xff\\xfe",
        "\\x1b[31m{}",
    ],
)
def test_line_that_is_no_event_is_an_error_and_the_next_is_heard(line: str) -> None:
    agent = program(f"""
        import sys
        sys.stdout.buffer.write(b'{line}' + b'\\n' + b'{{"event": "end"}}\\n')
    """)
    events = agent.events(5)
    with pytest.raises(HarnessError, match="the agent wrote") as caught:
        next(events)
    assert str(caught.value).isascii() or "…" in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert list(agent.events(5)) == [{"event": "end"}]
    agent.stop()


def test_endless_line_is_an_error_and_takes_no_memory() -> None:
    agent = program("""
        import sys
        for _ in range(64):
            sys.stdout.write("x" * (1 << 20))
        sys.stdout.write('\\n{"event": "end"}\\n')
    """)
    with pytest.raises(HarnessError, match="longer than"):
        next(agent.events(10))
    assert list(agent.events(10)) == [{"event": "end"}]
    assert len(agent._lines._rest) <= transport.LONGEST_LINE
    agent.stop()


def test_line_cut_off_by_its_writers_death_is_no_event() -> None:
    agent = program("""
        import sys
        sys.stdout.write('{"event": "hello"}\\n{"event": "fra')
    """)
    assert list(agent.events(5)) == [{"event": "hello"}]
    agent.stop()


def test_nothing_is_lost_and_nobody_waits_when_much_is_said_on_both_pipes() -> None:
    agent = program("""
        import json, sys
        for k in range(20000):
            print(json.dumps({"event": "e", "k": k, "pad": "p" * 100}))
            print("s" * 100, file=sys.stderr)
        print("last words", file=sys.stderr)
    """)
    time.sleep(0.3)  # while nobody listens
    assert [e["k"] for e in agent.events(10)] == list(range(20000))
    end = agent.stop()
    assert len(end.stderr) <= transport.LONGEST_STDERR and end.stderr.endswith("last words\n")


def test_events_said_after_stop_was_asked_are_heard(here: Subprocess, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    agent = here.start("sample", {"rate_hz": 100, "batch_s": 60, "nodes": [{"path": str(tmp_path / "a")}]})
    events = agent.events(5)
    while next(events)["event"] != "sampling":
        pass
    assert agent.stop().status == 0
    assert [e["event"] for e in events] == ["frames", "sampled", "end"]


def test_python_that_is_not_there_is_said_in_one_line() -> None:
    with (
        Subprocess(python="/no/such/python") as here,
        pytest.raises(HarnessError, match="/no/such/python: No such file"),
    ):
        here.start("hello", {})


# ---------------------------------------------------------------------------------------------------------------------
# files


def test_put_is_the_path_itself(here: Subprocess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_text("m")
    monkeypatch.chdir(tmp_path)
    assert here.put(Path("model.onnx")) == str((tmp_path / "model.onnx").resolve())
    with pytest.raises(UsageError, match="no such file"):
        here.put(Path("nothing.onnx"))


def test_get_copies_files_and_folders(here: Subprocess, tmp_path: Path) -> None:
    remote = Path(here.scratch())
    (remote / "deep").mkdir()
    (remote / "deep" / "x.json").write_text(json.dumps([1]))
    assert json.loads(here.get(str(remote / "deep" / "x.json"), tmp_path).read_text()) == [1]
    assert json.loads((here.get(str(remote / "deep"), tmp_path) / "x.json").read_text()) == [1]
    with pytest.raises(HarnessError, match="cannot be copied"):
        here.get(str(remote / "none"), tmp_path)


def test_without_room_for_temporary_files_it_says_so_in_one_line(
    here: Subprocess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"No such file or directory: .*gone.*; make room there, or set TMPDIR"):
        here.start("hello", {})


def test_whoever_listens_hears_of_the_end_whatever_befalls_the_reader() -> None:
    class Full(LocalAgent):
        def _after_last(self) -> None:
            raise OSError(28, "No space left on device")

    kept: list[object] = []
    before, threading.excepthook = threading.excepthook, lambda arguments: kept.append(arguments.exc_value)
    try:
        agent = Full([sys.executable, "-c", 'print(\'{"event": "hello"}\')'], dict(os.environ))
        assert [said["event"] for said in agent.events(10)] == ["hello"]
        agent.stop()
    finally:
        threading.excepthook = before
    assert [str(error) for error in kept] == ["[Errno 28] No space left on device"]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where these tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_interrupted_while_a_setting_is_put_back_it_is_put_back_all_the_same(here: Subprocess, tmp_path: Path) -> None:
    path = tmp_path / "mode"
    path.write_text("as found")
    params = {"path": str(path), "leaving": "wait", "seconds": 4}
    with pytest.raises(KeyboardInterrupt), here.hold("support.fake_functions:setting", params):
        assert path.read_text() == "set"
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert path.read_text() == "as found"


class Clocks:
    """`clock` agents, one after the other: each says this."""

    def __init__(self, *said: list[str]) -> None:
        self.said, self.stopped = list(said), 0

    def start(self) -> "Clocks":
        self.events_ = [
            {"event": e, "t_ns": k} if e == "clock" else {"event": e} for k, e in enumerate(self.said.pop(0))
        ]
        return self

    def events(self, silence_s: float | None = None) -> Iterator[dict[str, Any]]:
        yield from self.events_

    def write(self, data: bytes) -> None:
        pass

    def stop(self, grace_s: float = 5.0) -> Exit:
        self.stopped += 1
        return Exit(0, None, "")


ANSWERS = ["hello", *["clock"] * transport.PINGS]


@pytest.mark.parametrize(
    "said", [[ANSWERS], [["hello", "waiting", *ANSWERS[1:]]], [["hello", "clock"], ANSWERS], [[], ANSWERS]]
)
def test_one_clock_that_does_not_answer_is_asked_once_more(said: list[list[str]]) -> None:
    clocks = Clocks(*said)
    assert len(transport.pings(clocks.start, "board", time.monotonic_ns)) == transport.PINGS
    assert clocks.stopped == len(said)


def test_clock_that_answers_neither_time_is_told() -> None:
    clocks = Clocks(["hello"], ["hello", "clock"])
    with pytest.raises(TransientError, match="board: its clock does not answer"):
        transport.pings(clocks.start, "board", time.monotonic_ns)
    assert clocks.stopped == 2
