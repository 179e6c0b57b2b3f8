"""An agent at the end of a link: beats and words on its stdin, a stdout that takes nothing more, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.agents import Plain, agent_of, alive, samples, wait_gone

FAKES = "support.fake_functions"
SILENCE_S = 0.8  # of the harness, after which an agent of these tests ends
CUT_S = 3.0  # from then until it has ended, even where its work does not end by itself: 2 s, and one for this machine
SIGNALS = {"term": signal.SIGTERM, "hangup": signal.SIGHUP}


NATIVE = pytest.param("native", marks=pytest.mark.needs_compiler)


@pytest.fixture(params=["python", "python3.8", NATIVE])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Plain:
    return agent_of(request.param, tmp_path)


@pytest.fixture(params=["python", NATIVE])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Plain:
    return agent_of(request.param, tmp_path)


@pytest.fixture(params=["python", "python3.8"])
def python(request: pytest.FixtureRequest, tmp_path: Path) -> Plain:
    """An agent that also calls, holds and listens to streams."""
    return agent_of(request.param, tmp_path)


def doing(*verbs: str, native: tuple[str, ...], soak: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Each verb by the Python agent, and what the native one does of them; some wait for the soak run."""
    cases = [("python", verb) for verb in verbs] + [("native", verb) for verb in native]

    def marks(kind: str, verb: str) -> list[pytest.MarkDecorator]:
        return [pytest.mark.needs_compiler] * (kind == "native") + [pytest.mark.soak] * (verb in soak)

    return pytest.mark.parametrize(
        ("runner", "verb"), [pytest.param(*c, marks=marks(*c)) for c in cases], indirect=["runner"]
    )


class Link:
    """The harness's end of a link: it beats on the agent's stdin until it is lost, in one of several ways."""

    def __init__(self, agent: Plain, process: "subprocess.Popen[bytes]", read: int, write: int) -> None:
        self.process = process
        self._agent, self._write, self._out = agent, write, os.fdopen(read, "rb")
        self._is_beating = threading.Event()
        self.beat()

    def beat(self) -> None:
        self._is_beating.set()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def _beat(self) -> None:
        with suppress(OSError):
            while self._is_beating.is_set():
                self.say(b"\n")
                time.sleep(0.1)

    def say(self, words: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(words)

    def stop_beating(self) -> None:
        self._is_beating.clear()
        self._heart.join()

    def next(self, event: str) -> dict[str, Any]:
        """The next event of that kind."""
        while True:
            said: dict[str, Any] = json.loads(self._out.readline())
            if said["event"] == event:
                return said
            assert said["event"] not in ("end", "error"), said

    def end(self, way: str) -> float:
        """Asks the agent to end, or is lost; when that was."""
        assert self.process.stdin
        if way == "stop":
            self.say(b"stop\n")
        elif way in SIGNALS:
            self.process.send_signal(SIGNALS[way])
        else:
            self.stop_beating()
            if way == "eof":
                self.process.stdin.close()
        return time.monotonic()

    def block(self) -> None:
        fill(self._write)

    def wait(self, within_s: float) -> list[dict[str, Any]]:
        """What the agent has spooled, once it has ended."""
        self.process.wait(within_s)
        return [json.loads(line) for line in self._agent.spool.read_text().splitlines()]

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stop_beating()
        os.close(self._write)
        for pipe in (self._out, self.process.stdin, self.process.stderr):
            with suppress(OSError):
                assert pipe
                pipe.close()


def fill(write: int) -> None:
    """Nothing more fits into a pipe, and nobody reads it."""
    os.set_blocking(write, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(write, b"x" * size)


@contextmanager
def linked(
    agent: Plain, verb: str, job: dict[str, Any], wrap: tuple[str, ...] = (), is_full: bool = False
) -> Iterator[Link]:
    """An agent and the link to it; `is_full`: one that takes nothing from the start."""
    read, write = os.pipe()
    if is_full:
        fill(write)
    process = subprocess.Popen(
        [*wrap, *agent.command, verb, str(agent.job({"heartbeat_s": SILENCE_S, **job}))],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=subprocess.PIPE,
        env=agent.environment,
        start_new_session=True,
    )
    link = Link(agent, process, read, write)
    try:
        yield link
    finally:
        link.close()


def calling(**params: Any) -> dict[str, Any]:
    return {"function": f"{FAKES}:echo", "params": params}


def streaming(**params: Any) -> dict[str, Any]:
    return {"rate_hz": 200, "batch_s": 0.05, "stream": f"{FAKES}:stream", "params": params}


def nodes(folder: Path, **more: Any) -> dict[str, Any]:
    (folder / "a").write_text("1")
    return {"rate_hz": 200, "batch_s": 0.05, "nodes": [{"path": str(folder / "a")}], **more}


def long_work(agent: Plain, verb: str, **params: Any) -> dict[str, Any]:
    """A job that takes a minute and does not look whether it should end."""
    if verb == "call":
        return calling(fault="wait", seconds=60, **params)
    if verb == "sample":
        return {"source": f"{FAKES}:stuck", "params": params}
    return {
        "runner": agent.runner,
        "params": {"first_s": 60, **params},
        "item_count": 1,
        "item_phases": ["first", "second"],
        "folder": str(agent.folder / "outputs"),
        "repeats": 1,
        "idle_s": 0,
        "window_s": 60,
        "steady": {"max_s": 0},
    }


def wait_spooled(agent: Plain, event: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Until the agent has written that event into its spool."""
    deadline = time.monotonic() + 10
    while not (agent.spool.exists() and f'"event":"{event}"'.encode() in agent.spool.read_bytes()):
        assert time.monotonic() < deadline, f"no {event}"
        meanwhile()
        time.sleep(0.02)


def child_of(folder: Path) -> int:
    """The process that the work has started, once it has."""
    path, deadline = folder / "child", time.monotonic() + 5
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, "no child was started"
        time.sleep(0.02)
    return int(path.read_text())


# ---------------------------------------------------------------------------------------------------------------------
# beats and words


def test_it_lives_as_long_as_the_harness_is_heard(agent: Plain, tmp_path: Path) -> None:
    with linked(agent, "sample", nodes(tmp_path)) as link:
        link.next("sampling")
        time.sleep(SILENCE_S * 3)
        link.end("stop")
        said = link.wait(3)
    assert said[-1]["reason"] == "stopped" and link.process.returncode == 0
    assert np.ptp(samples(said).t_ns) > SILENCE_S * 2.5e9


def test_beats_that_came_while_it_was_held_up_count(agent: Plain, tmp_path: Path) -> None:
    with linked(agent, "sample", nodes(tmp_path)) as link:
        link.next("sampling")
        link.process.send_signal(signal.SIGSTOP)
        time.sleep(SILENCE_S * 2)
        link.process.send_signal(signal.SIGCONT)
        time.sleep(SILENCE_S)
        assert link.process.poll() is None
        link.end("stop")
        assert link.wait(3)[-1]["reason"] == "stopped"


def test_it_and_the_harness_may_be_held_up_at_once(agent: Plain, tmp_path: Path) -> None:
    with linked(agent, "sample", nodes(tmp_path)) as link:
        link.next("sampling")
        link.stop_beating()
        link.process.send_signal(signal.SIGSTOP)
        time.sleep(SILENCE_S * 2)
        link.process.send_signal(signal.SIGCONT)
        time.sleep(0.05)  # which of the two goes on first is chance
        link.beat()
        time.sleep(SILENCE_S)
        assert link.process.poll() is None
        link.end("stop")
        assert link.wait(3)[-1]["reason"] == "stopped"


def test_asked_to_end_it_reads_once_more(agent: Plain, tmp_path: Path) -> None:
    """Held up until it is asked, it may not have read since what is measured was over."""
    with linked(agent, "sample", nodes(tmp_path, rate_hz=0.5)) as link:
        link.next("sampling")
        asked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        link.end("stop")
        said = samples(link.wait(3))
    assert len(said.t_ns) == 2 and said.t_ns[1] > asked_ns


def test_stream_goes_on_until_what_was_on_its_way_is_there(python: Plain) -> None:
    with linked(python, "sample", streaming(period_s=0.1)) as link:
        link.next("sampling")
        asked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        link.end("stop")
        said = samples(link.wait(3))
    assert said.t_ns[-1] > asked_ns


def test_line_of_stop_may_come_in_pieces_and_other_words_are_beats(agent: Plain, tmp_path: Path) -> None:
    with linked(agent, "sample", nodes(tmp_path)) as link:
        link.next("sampling")
        link.stop_beating()
        for words in (b"unstoppable\n", b"stop it\n", b"stopstop\n", b"don't stop\n", b"x" * 9000 + b"stop\n"):
            link.say(words)
            time.sleep(0.2)
        assert link.process.poll() is None
        for words in (b"st", b"op", b"\n"):
            link.say(words)
            time.sleep(0.1)
        assert link.wait(2)[-1]["reason"] == "stopped"


def test_program_that_asks_is_not_answered_by_the_heart(python: Plain) -> None:
    with linked(python, "call", calling(fault="ask", answer="asked")) as link:
        assert link.next("result")["value"] == "asked"


@doing("hello", "clock", "call", native=("hello", "clock"))
def test_short_verbs_end_at_once_though_stdin_stays_open(runner: Plain, verb: str) -> None:
    with linked(runner, verb, {"n": 2, **calling()}) as link:
        said = link.wait(3)
    assert said[-1]["reason"] == "done" and link.process.returncode == 0


@pytest.mark.parametrize("way", ["stop", "term"])
def test_call_that_is_asked_to_end_answers_first(python: Plain, way: str) -> None:
    with linked(python, "call", calling(fault="wait", seconds=1.0)) as link:
        link.next("hello")
        time.sleep(0.3)
        link.end(way)
        said = link.wait(3)
    assert [e["event"] for e in said] == ["hello", "result", "end"] and said[-1]["reason"] == "stopped"


# ---------------------------------------------------------------------------------------------------------------------
# a harness that is lost


@pytest.mark.parametrize("way", ["eof", "silence", "hangup"])
@doing("call", "run", "sample", native=("run",))
def test_long_work_is_cut_off_with_all_it_started(runner: Plain, tmp_path: Path, verb: str, way: str) -> None:
    with linked(runner, verb, long_work(runner, verb, child=str(tmp_path / "child"))) as link:
        link.next("hello")
        child = child_of(tmp_path)
        lost = link.end(way)
        said = link.wait(6)
        took_s = time.monotonic() - lost
        wait_gone(child, 0.5)
    assert took_s < (SILENCE_S if way == "silence" else 0) + CUT_S
    assert (said[-1]["event"], said[-1]["reason"]) == ("end", "orphaned")


@doing("call", "run", native=("run",))
def test_harness_may_be_lost_after_it_asked_for_the_end(runner: Plain, tmp_path: Path, verb: str) -> None:
    with linked(runner, verb, long_work(runner, verb, child=str(tmp_path / "child"))) as link:
        link.next("steady" if verb == "run" else "hello")  # the next it does is the long item
        child = child_of(tmp_path)
        link.end("stop")
        time.sleep(0.5)
        assert link.process.poll() is None
        link.end("eof")
        assert link.wait(CUT_S)[-1]["reason"] == "orphaned"
        wait_gone(child, 0.5)


@doing("call", "run", native=("run",))
@pytest.mark.parametrize("is_ours", [True, False])
def test_group_of_a_shell_is_ended_with_long_work_only_if_we_may(
    runner: Plain, tmp_path: Path, is_ours: bool, verb: str
) -> None:
    runner.environment["EDGEWATT_GROUP"] = "1" if is_ours else ""
    job = long_work(runner, verb, child=str(tmp_path / "child"))
    with linked(runner, verb, job, wrap=("sh", "-c", '"$@"; exit 7', "sh")) as link:
        child = child_of(tmp_path)
        link.end("eof")
        link.process.wait(CUT_S)
        assert link.process.returncode == (-signal.SIGKILL if is_ours else 7)
        if is_ours:
            wait_gone(child, 0.5)
        else:
            assert alive(child)


# ---------------------------------------------------------------------------------------------------------------------
# a link that takes nothing more


@pytest.mark.parametrize("way", ["term", "silence"])
def test_sampling_goes_on_and_ends_though_nothing_is_taken(agent: Plain, tmp_path: Path, way: str) -> None:
    goes_on_and_ends(agent, nodes(tmp_path), way)


@pytest.mark.parametrize("way", ["term", "silence"])
def test_listening_to_a_stream_goes_on_and_ends_though_nothing_is_taken(python: Plain, way: str) -> None:
    goes_on_and_ends(python, streaming(), way)


def goes_on_and_ends(agent: Plain, job: dict[str, Any], way: str) -> None:
    with linked(agent, "sample", job) as link:
        link.next("sampling")
        link.block()
        time.sleep(1.0)
        asked = link.end(way)
        said = link.wait(5)
        took_s = time.monotonic() - asked
    assert took_s < (3.0 if way == "term" else SILENCE_S + CUT_S)
    assert [e["event"] for e in said[-2:]] == ["sampled", "end"]
    found = samples(said)
    assert said[-2]["n"] == len(found.t_ns) and np.ptp(found.t_ns) > 0.95e9
    assert np.median(np.diff(found.t_ns)) < 0.01e9  # nobody waited for the link


@pytest.mark.parametrize("way", ["stop", "eof"])
def test_held_setting_is_put_back_though_nothing_is_taken(python: Plain, tmp_path: Path, way: str) -> None:
    setting = tmp_path / "setting"
    setting.write_text("mine")
    job = {"function": f"{FAKES}:setting", "params": {"path": str(setting), "entering": "wait", "seconds": 0.5}}
    with linked(python, "hold", job) as link:
        link.next("hello")
        link.block()
        while setting.read_text() != "set":
            time.sleep(0.05)
        time.sleep(0.3)  # it is stuck now in saying so
        link.end(way)
        said = link.wait(4)
        assert setting.read_text() == "mine"
    assert [e["event"] for e in said] == ["hello", "held", "released", "end"]


GREETED = ("hello", "clock", "sample", "call", "hold", "run")


@doing(*GREETED, native=GREETED, soak=("clock", "call", "hold"))
@pytest.mark.parametrize("way", ["term", "silence"])
def test_what_could_not_even_be_greeted_is_not_begun(runner: Plain, tmp_path: Path, verb: str, way: str) -> None:
    setting = tmp_path / "setting"
    setting.write_text("mine")
    jobs = {
        "sample": nodes(tmp_path),
        "call": calling(pid=str(setting)),
        "hold": {"function": f"{FAKES}:setting", "params": {"path": str(setting)}},
        "run": long_work(runner, "run"),
    }
    with linked(runner, verb, jobs.get(verb, {}), is_full=True) as link:
        wait_spooled(runner, "hello")
        time.sleep(0.3)
        assert link.process.poll() is None
        link.end(way)
        said = link.wait(5)
    assert [e["event"] for e in said] == ["hello", "end"]
    assert setting.read_text() == "mine"


@doing("call", "run", native=("run",))
def test_work_that_is_stuck_in_a_full_stderr_is_cut_off(runner: Plain, tmp_path: Path, verb: str) -> None:
    runner.environment["EDGEWATT_GROUP"] = ""
    runner.environment.pop("PYTHONUNBUFFERED", None)  # what is stuck then keeps others from flushing
    job = long_work(runner, verb) | {"params": {"fault": "chatter"}}
    if verb == "run" and runner.name == "python":
        job["runner"] = f"{FAKES}:Chatterer"
    with linked(runner, verb, job, wrap=("sh", "-c", '"$@"; exit 7', "sh")) as link:  # which it may not end
        link.next("hello")
        time.sleep(0.5)
        link.end("silence")
        said = link.wait(SILENCE_S + CUT_S)
    assert said[-1]["reason"] == "orphaned" and link.process.returncode == 7


# ---------------------------------------------------------------------------------------------------------------------
# streams


def test_frames_do_not_wait_for_the_next_reading(python: Plain) -> None:
    with linked(python, "sample", streaming(period_s=30) | {"batch_s": 0.2}) as link:
        link.next("sampling")
        began = time.monotonic()
        assert link.next("frames")["n"] == 1
        assert time.monotonic() - began < 5


def test_stream_begins_with_its_first_number(python: Plain) -> None:
    said = python.events("sample", {"stream": f"{FAKES}:late", "duration_s": 0.3})
    assert samples(said).values[0, 0] == 3.0
    assert next(e for e in said if e["event"] == "sampling")["t_ns"] == samples(said).t_ns[0]


def test_cost_of_a_stream_includes_the_program_behind_it(python: Plain) -> None:
    began = time.monotonic()
    told = python.events("sample", {"stream": f"{FAKES}:burning", "duration_s": 0.5})[-2]
    assert 0.45 / (time.monotonic() - began) < told["cpu_s_per_s"] < 1.5


# ---------------------------------------------------------------------------------------------------------------------
# the clock, by pings


def test_each_ping_is_answered_where_stdin_and_stdout_are_one_socket(agent: Plain) -> None:
    ours, theirs = socket.socketpair()  # as a server of ssh may give them
    job = str(agent.job({"ping": True}))
    process = subprocess.Popen([*agent.command, "clock", job], stdin=theirs, stdout=theirs, env=agent.environment)
    theirs.close()
    with ours, ours.makefile("rb") as out:
        assert json.loads(out.readline())["event"] == "hello"
        for _ in range(3):
            before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            ours.sendall(b"\n")
            t_ns = json.loads(out.readline())["t_ns"]
            assert before < t_ns < time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ours.shutdown(socket.SHUT_WR)
        assert json.loads(out.readline())["event"] == "end"
    assert process.wait(2) == 0


def test_clock_that_nobody_pings_any_more_ends(agent: Plain) -> None:
    job = str(agent.job({"ping": True}))
    command = [*agent.command, "clock", job]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=agent.environment) as process:
        assert process.stdin is not None  # it stays open, as on a link that carries nothing any more
        assert process.wait(8) == 0


# ---------------------------------------------------------------------------------------------------------------------
# a link that comes and goes: only the beat file counts


class Keeper:
    """The harness's other way to say that it lives: a file whose content changes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "beat"
        self._beats = 0
        self.beat()

    def beat(self) -> None:
        self._beats += 1
        self.path.write_text(f"{self._beats}\n")

    def keep(self, for_s: float) -> None:
        end = time.monotonic() + for_s
        while time.monotonic() < end:
            self.beat()
            time.sleep(0.1)


def kept(keeper: Keeper, job: dict[str, Any], silence_s: float = SILENCE_S) -> dict[str, Any]:
    return {**job, "heartbeat_s": silence_s, "heartbeat_file": str(keeper.path)}


def test_only_the_beat_file_says_that_the_harness_lives(agent: Plain, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    with linked(agent, "sample", kept(keeper, nodes(tmp_path))) as link:
        link.next("sampling")
        link.stop_beating()
        assert link.process.stdin
        link.process.stdin.close()
        link.process.send_signal(signal.SIGHUP)
        keeper.keep(SILENCE_S * 2)
        assert link.process.poll() is None
        said = link.wait(SILENCE_S + CUT_S)
    assert (said[-1]["event"], said[-1]["reason"]) == ("end", "orphaned")
    assert np.ptp(samples(said).t_ns) > SILENCE_S * 1.8e9


def test_file_that_is_written_and_says_the_same_is_no_beat(agent: Plain, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    with linked(agent, "sample", kept(keeper, nodes(tmp_path))) as link:
        link.next("sampling")
        while link.process.poll() is None:
            keeper.path.write_text("1\n")
            time.sleep(0.1)
        assert link.wait(1)[-1]["reason"] == "orphaned"


def test_parent_may_end_where_the_beat_file_counts(agent: Plain, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    path = agent.job(kept(keeper, nodes(tmp_path)))
    command = ["sh", "-c", '"$@" >/dev/null 2>&1 </dev/null & echo $!', "sh", *agent.command, "sample", str(path)]
    end = subprocess.run(command, capture_output=True, text=True, env=agent.environment, check=True)
    wait_spooled(agent, "sampling", keeper.beat)
    keeper.keep(1.0)
    os.kill(int(end.stdout), signal.SIGTERM)
    wait_spooled(agent, "end")
    assert json.loads(agent.spool.read_text().splitlines()[-1])["reason"] == "stopped"


def test_full_link_holds_up_nothing_where_the_beat_file_counts(runner: Plain, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    job = {
        "runner": runner.runner,
        "params": {"first_s": 0.001, "second_s": 0.001},
        "item_count": 3,
        "item_phases": ["first", "second"],
        "folder": str(tmp_path / "outputs"),
        "idle_s": 1.5,
        "window_s": 2.0,
        "steady": {"max_s": 0},
    }
    with linked(runner, "run", kept(keeper, job, 60)) as link:
        link.next("loaded")
        link.block()
        deadline = time.monotonic() + 12
        while b'"event":"done"' not in runner.spool.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        said = [json.loads(line) for line in runner.spool.read_text().splitlines()]
    window = next(e for e in said if e["event"] == "phase" and e["phase"] == "window")
    assert (window["end_ns"] - window["start_ns"]) * 1e-9 < 3.5


def test_line_of_stop_is_heard_beside_the_beat_file(agent: Plain, tmp_path: Path) -> None:
    with linked(agent, "sample", kept(Keeper(tmp_path), nodes(tmp_path), 60)) as link:
        link.next("sampling")
        link.end("stop")
        assert link.wait(2)[-1]["reason"] == "stopped"


def test_pings_are_answered_beside_the_beat_file(agent: Plain, tmp_path: Path) -> None:
    with linked(agent, "clock", kept(Keeper(tmp_path), {"ping": True}, 60)) as link:
        link.next("hello")
        for _ in range(20):
            link.next("clock")  # each of the link's beats is a line


@pytest.mark.parametrize("file", ["", 3, {"heartbeat_s": None}])
def test_beat_file_that_makes_no_sense_is_refused(agent: Plain, tmp_path: Path, file: Any) -> None:
    if file == "":  # none
        assert agent.events("hello", {"heartbeat_file": ""})[-1]["reason"] == "done"
        return
    more = {"heartbeat_file": "/beat", **file} if isinstance(file, dict) else {"heartbeat_file": file, "heartbeat_s": 1}
    last = agent.events("hello", more)[-1]
    assert last["kind"] == "refused" and "heartbeat_file" in last["message"]
