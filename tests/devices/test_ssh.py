"""Boards over ssh, with a real server on the loopback: what is asked arrives, and what breaks is told and put back."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.ssh import Ssh
from edgewatt.harness.api import Channel, HarnessError, TransientError, UsageError
from support.agents import TESTS, alive, old_python, samples, wait_gone
from support.sshd import BOARD, Sshd

pytestmark = pytest.mark.needs_sshd

ECHO = "support.fake_functions:echo"
SETTING = "support.fake_functions:setting"
GONE_S = 5.0  # the longest an agent may stay on a board that no harness speaks to


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "home").mkdir()
    # The sessions have a home of their own, and find the runners of these tests.
    with Sshd(folder, environment={"PYTHONPATH": str(TESTS), "HOME": str(folder / "home")}) as running:
        yield running


@pytest.fixture
def board(server: Sshd) -> Iterator[Ssh]:
    with Ssh(server.address, sys.executable, server.config) as held:
        yield held


def counting(**more: Any) -> dict[str, Any]:
    """A sampling whose first column counts its readings: none can be lost or come twice unseen."""
    return {"rate_hz": 100, "batch_s": 0.1, "source": "support.fake_source:counting", "params": {}, **more}


def run_job(folder: str, **params: Any) -> dict[str, Any]:
    return {
        "runner": "support.fake_runner:Sleeper",
        "params": params,
        "item_count": 3,
        "item_phases": ["first", "second"],
        "folder": f"{folder}/outputs",
        "repeats": 1,
        "idle_s": 0,
        "window_s": 0.1,
        "steady": {"max_s": 0},
    }


def heard(process: Any, until: Callable[[dict[str, Any]], bool], silence_s: float = 20.0) -> list[dict[str, Any]]:
    """Its events up to the first for which `until` holds."""
    said = []
    for event in process.events(silence_s):
        said.append(event)
        if until(event):
            return said
    raise AssertionError(f"not said: {said}")


def frames(n: int) -> Callable[[dict[str, Any]], bool]:
    """Whether that was the n-th event of frames."""
    left = iter(range(n - 1, -1, -1))
    return lambda event: event["event"] == "frames" and next(left) == 0


def rest(process: Any, silence_s: float = 30.0) -> tuple[list[dict[str, Any]], HarnessError | None]:
    """All it says until its end, and the error that came with it."""
    said: list[dict[str, Any]] = []
    failure = None
    events = process.events(silence_s)
    while True:
        try:
            said.append(next(events))
        except StopIteration:
            return said, failure
        except HarnessError as error:
            failure, events = error, process.events(silence_s)


@contextmanager
def cutting(server: Sshd, begun: Path) -> Iterator[None]:
    """Inside, every connection is cut as soon as the file `begun` is there."""
    is_over = threading.Event()

    def cut() -> None:
        while not begun.exists():
            if is_over.wait(0.02):
                return
        server.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        yield
    finally:
        is_over.set()
        cutter.join()


def open_files() -> set[tuple[str, str]]:
    """What this process has open: each descriptor's number, and what it leads to."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor that lists them
            found.add((entry.name, str(entry.readlink())))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# what every transport does


def test_agents_greeting_is_the_boards(board: Ssh) -> None:
    process = board.start("hello", {})
    said, failure = rest(process)
    assert [e["event"] for e in said] == ["hello", "end"] and failure is None
    assert said[0]["facts"]["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    end = process.stop()
    assert (end.status, end.signal, end.stderr) == (0, None, "")


def test_every_sample_comes_once_and_in_order(board: Ssh) -> None:
    process = board.start("sample", counting())
    said = heard(process, frames(3))
    end = process.stop()
    said += rest(process)[0]
    assert said[-1]["reason"] == "stopped" and (end.status, end.signal) == (0, None)
    values = samples(said).values[:, 0]
    assert list(values) == list(range(len(values))) and said[-2]["n"] == len(values)


def test_run_leaves_its_outputs_here(board: Ssh, tmp_path: Path) -> None:
    folder = board.scratch()
    process = board.start("run", run_job(folder))
    said, failure = rest(process)
    assert said[-1] == said[-1] | {"event": "end", "reason": "done"} and failure is None
    assert "a library that talks on stdout" in process.stop().stderr
    got = board.get(f"{folder}/outputs", tmp_path)
    assert (got / "outputs.txt").read_text() == "0 0\n1 1\n2 2\n"


@pytest.mark.parametrize("size", [1 << 16, 1 << 20])
def test_job_of_any_length_arrives_whole(board: Ssh, size: int) -> None:
    assert board.call(ECHO, {"answer": size, "long": "é" * size}) == size


def test_many_agents_share_one_connection_at_once(board: Ssh) -> None:
    """Above the ten sessions that OpenSSH's server allows on one connection."""
    started: list[Any] = []
    makers = [threading.Thread(target=lambda: started.append(board.start("sample", counting()))) for _ in range(14)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len(started) == 14
    pids = {heard(p, frames(1))[0]["pid"] for p in started}
    assert len(pids) == 14
    for process in started:
        assert process.stop().status == 0
        said, failure = rest(process)
        assert said[-1]["reason"] == "stopped" and failure is None
    assert not any(alive(pid) for pid in pids)


def test_answer_of_a_function_comes_back(board: Ssh) -> None:
    value = board.call(ECHO, {"text": 'O\'Brien\n"ü" $HOME `id`', "n": None})
    assert value["params"] == {"text": 'O\'Brien\n"ü" $HOME `id`', "n": None}


@pytest.mark.parametrize(
    ("params", "kind", "told"),
    [
        ({"fault": "refuse"}, UsageError, "mode 7 is not one of 0, 1, 2"),
        ({"fault": "raise"}, HarnessError, "Input/output error: /sys/x"),
        ({"fault": "exit"}, HarnessError, "SystemExit: 3"),
        ({"fault": "kill"}, HarnessError, f"{ECHO}: the agent ended without an answer: Killed"),
    ],
)
def test_function_without_an_answer_says_why(
    board: Ssh, params: dict[str, Any], kind: type[HarnessError], told: str
) -> None:
    with pytest.raises(HarnessError) as raised:
        board.call(ECHO, params)
    assert type(raised.value) is kind and str(raised.value) == told


def test_function_that_takes_too_long_is_ended_on_the_board(board: Ssh, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no answer within 4 s"):
        board.call(ECHO, {"fault": "wait", "seconds": 60, "pid": str(tmp_path / "pid")}, timeout_s=4)
    wait_gone(int((tmp_path / "pid").read_text()), 1)


# ---------------------------------------------------------------------------------------------------------------------
# files


NAMES = ["plain.txt", "a b  c", 'it\'s "so"', "two\nlines", "ünïcödé ☃", "-rf", "$HOME `id` \\", "*", "a;b&c|d", "#x"]


@pytest.mark.parametrize("name", NAMES)
def test_file_of_any_name_goes_there_and_back(board: Ssh, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\0content of " + name.encode())
    there = board.put(path)
    assert there.endswith(f"/{name}") and Path(there).read_bytes() == path.read_bytes()
    into = tmp_path / "into here"
    into.mkdir()
    assert board.get(there, into) == into / name
    assert (into / name).read_bytes() == path.read_bytes()


def test_folder_goes_there_and_back_with_all_that_is_in_it(board: Ssh, tmp_path: Path) -> None:
    folder = tmp_path / "the folder"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / name).write_text(name)
    (folder / "empty").mkdir()
    there = board.put(folder)
    (tmp_path / "into").mkdir()
    got = board.get(there, tmp_path / "into")
    listing = sorted(p.relative_to(got).as_posix() for p in got.rglob("*"))
    assert listing == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    assert all((got / name / name).read_text() == name for name in NAMES)


def test_content_is_pushed_once_and_changed_content_again(board: Ssh, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"1" * 1000)
    there = Path(board.put(path))
    inode = there.stat().st_ino
    assert board.put(path) == str(there) and there.stat().st_ino == inode
    path.write_bytes(b"2" * 1000)
    assert board.put(path) != str(there) and there.read_bytes() == b"1" * 1000


def test_empty_file_and_empty_folder_are_pushed(board: Ssh, tmp_path: Path) -> None:
    (tmp_path / "empty file").touch()
    (tmp_path / "empty folder").mkdir()
    assert Path(board.put(tmp_path / "empty file")).read_bytes() == b""
    assert Path(board.put(tmp_path / "empty folder")).is_dir()


def test_what_is_not_there_is_told_in_one_line(board: Ssh, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        board.put(tmp_path / "none")
    with pytest.raises(HarnessError, match="/none cannot be fetched") as raised:
        board.get("/none", tmp_path)
    assert "\n" not in str(raised.value)


def test_link_out_of_the_folder_is_not_followed_home(board: Ssh, tmp_path: Path) -> None:
    """A board is not trusted with our file system."""
    there = Path(board.scratch()) / "out"
    there.mkdir()
    (there / "kept").write_text("kept")
    (there / "away").symlink_to("/etc")
    (tmp_path / "into").mkdir()
    got = board.get(str(there), tmp_path / "into")
    assert [p.name for p in got.iterdir()] == ["kept"]


def test_file_whose_link_is_cut_on_the_way_comes_whole(tmp_path: Path) -> None:
    """What came before the cut is not kept in front of what comes afterwards."""
    tools, begun = tmp_path / "tools", tmp_path / "begun"
    tools.mkdir()
    (tools / "tar").write_text(
        f'#!/bin/sh\n[ -e {begun} ] && exec /bin/tar "$@"\nhead -c 20000 /dev/zero; touch {begun}; exec sleep 20\n'
    )
    (tools / "tar").chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    (tmp_path / "results").write_text("0 0\n1 1\n")
    (tmp_path / "into").mkdir()
    with (
        Sshd(tmp_path / "s", environment=environment) as other,
        Ssh(other.address, sys.executable, other.config) as b,
        cutting(other, begun),
    ):
        got = b.get(str(tmp_path / "results"), tmp_path / "into")
    assert got.read_text() == "0 0\n1 1\n"


def test_what_cannot_be_read_here_is_told_in_one_line(board: Ssh, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="model/weights: cannot be read") as raised:
        board.put(tmp_path / "model")
    assert "\n" not in str(raised.value)


def test_content_behind_a_link_is_pushed_when_it_changes(board: Ssh, tmp_path: Path) -> None:
    for name in ("model", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "data").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "x").write_text("1")
    first = board.put(tmp_path / "model")
    (tmp_path / "elsewhere" / "x").write_text("2")
    second = board.put(tmp_path / "model")
    assert [Path(p, "data", "x").read_text() for p in (first, second)] == ["1", "2"]


def test_archive_that_breaks_leaves_nothing_behind(board: Ssh) -> None:
    folder = Path(board.scratch()) / "files-0"
    with pytest.raises(HarnessError, match="cannot write"):
        board._unpack(io.BytesIO(b"no archive" * 2000), str(folder))
    assert not list(folder.parent.iterdir())


def test_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("no folder")
    environment = {"HOME": str(tmp_path)}
    with Sshd(tmp_path / "s", environment=environment) as other, Ssh(other.address, sys.executable, other.config) as b:
        with pytest.raises(HarnessError) as raised:
            b.start("hello", {})
        assert "\n" not in str(raised.value) and "cannot write" in str(raised.value)


# ---------------------------------------------------------------------------------------------------------------------
# connecting


def test_board_behind_a_jump_host_is_reached(server: Sshd) -> None:
    config = server.client("jumping", ProxyJump="jump-host")
    jump = server.client("jump").read_text().replace(f"Host {BOARD}", "Host jump-host")
    config.write_text(config.read_text() + jump)
    with Ssh(server.address, sys.executable, config) as board:
        assert board.call(ECHO, {"answer": 5}) == 5


def test_command_of_the_configuration_stays_out_of_the_way(server: Sshd) -> None:
    config = server.client("with-command", RemoteCommand="tmux attach", RequestTTY="force")
    with Ssh(server.address, sys.executable, config) as board:
        assert board.call(ECHO, {"answer": 5}) == 5


@pytest.mark.parametrize("name", ["a b", "100%h", "l" * 100])
def test_folder_for_temporary_files_may_have_any_name(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with Ssh(server.address, sys.executable, server.config) as board:
        assert board.call(ECHO, {"answer": 5}) == 5


def refused(server: Sshd, config: Path) -> HarnessError:
    """What connecting with that configuration fails with, in one line."""
    with Ssh(server.address, sys.executable, config) as board, pytest.raises(HarnessError) as raised:
        board.start("hello", {})
    assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{BOARD}: ")
    return raised.value


def test_unknown_host_key_is_refused(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    error = refused(server, server.client("unknown", UserKnownHostsFile=str(tmp_path / "none")))
    assert isinstance(error, UsageError) and "its host key is not known" in str(error)


def test_unknown_host_key_is_refused_where_ssh_would_ask(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    changes = {"UserKnownHostsFile": str(tmp_path / "none"), "StrictHostKeyChecking": "ask"}
    error = refused(server, server.client("asking", **changes))
    assert isinstance(error, UsageError) and "its host key is not known" in str(error)


def test_changed_host_key_is_refused(server: Sshd, tmp_path: Path) -> None:
    key = (server.folder / "other_key.pub").read_text().split()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {key[0]} {key[1]}\n")
    error = refused(server, server.client("changed", UserKnownHostsFile=str(tmp_path / "known")))
    assert isinstance(error, UsageError) and "its host key has changed" in str(error)


def test_wrong_key_is_refused(server: Sshd) -> None:
    error = refused(server, server.client("wrong", IdentityFile=str(server.folder / "other_key")))
    assert isinstance(error, UsageError) and "does not let this user in" in str(error)


def test_port_where_nothing_answers_may_be_tried_again(server: Sshd) -> None:
    error = refused(server, server.client("port", Port="1"))
    assert isinstance(error, TransientError) and "no ssh server answers there" in str(error)


def test_host_without_an_address_is_refused(server: Sshd) -> None:
    error = refused(server, server.client("host", HostName="no-such-board.invalid"))
    assert isinstance(error, UsageError) and "no such host" in str(error)


def test_server_that_accepts_and_says_nothing_is_given_up(server: Sshd, tmp_path: Path) -> None:
    with Sshd(tmp_path / "s") as other:
        pid = int((other.folder / "pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            error = refused(other, other.config)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert isinstance(error, TransientError) and "timed out" in str(error) and time.monotonic() - began < 25


def test_configuration_that_is_not_there_is_refused(server: Sshd, tmp_path: Path) -> None:
    error = refused(server, tmp_path / "none")
    assert isinstance(error, UsageError) and "name another ssh_config" in str(error)


def test_configuration_with_a_mistake_is_refused(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(server.config.read_text() + "  NoSuchOption yes\n")
    error = refused(server, tmp_path / "config")
    assert isinstance(error, UsageError) and "mend the ssh configuration" in str(error)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "board",
        "ssh://",
        "ssh:///path",
        "ssh://board/path",
        "ssh://board?x=1",
        "ssh://board:port",
        "ssh://board:99999",
        "ssh://user:secret@board",
        "ssh://-oProxyCommand=touch",
        "ssh://-lroot@board",
        "ssh://a b",
        "ssh://board;id",
        "ssh://$(id)@board",
        "ssh://board\nx",
        "http://board",
        "ssh://[::1",
    ],
)
def test_what_is_no_address_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(UsageError) as raised:
        Ssh(address)
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)


def test_user_and_port_of_the_address_come_before_the_configuration(server: Sshd) -> None:
    config = server.client("elsewhere", Port="1", User="nobody")
    user = next(w.split()[1] for w in server.config.read_text().splitlines() if "User " in w)
    with Ssh(f"ssh://{user}@{BOARD}:{server.port}", sys.executable, config) as board:
        assert board.call(ECHO, {"answer": 5}) == 5
        assert board.name == f"{user}@{BOARD}:{server.port}"


def test_login_file_that_talks_is_told_unless_it_does_so_on_stderr(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(TESTS)}
    with Sshd(tmp_path / "s", environment=environment) as server:
        (tmp_path / ".bashrc").write_text("echo mind the fan >&2\n")
        with Ssh(server.address, sys.executable, server.config) as board:
            assert board.call(ECHO, {"answer": 5}) == 5
        (tmp_path / ".bashrc").write_text("echo welcome to this board\n")
        error = refused(server, server.config)
        assert isinstance(error, UsageError) and "print ['welcome to this board']" in str(error)


# ---------------------------------------------------------------------------------------------------------------------
# the other end's Python


def test_python_that_is_not_there_is_named(server: Sshd) -> None:
    with Ssh(server.address, "python9", server.config) as board:
        with pytest.raises(HarnessError, match="python9: not found") as raised:
            board.call(ECHO)
        assert "\n" not in str(raised.value)
        end = board.start("hello", {})
        assert not rest(end)[0] and end.stop().status == 127


def test_python_that_is_too_old_is_told(server: Sshd) -> None:
    with Ssh(server.address, str(old_python(6)), server.config) as board:
        with pytest.raises(HarnessError, match=r"the agent needs Python 3\.8 or newer") as raised:
            board.call(ECHO)
        assert "\n" not in str(raised.value)


def test_old_python_of_the_board_samples_and_answers(server: Sshd) -> None:
    with Ssh(server.address, str(old_python(8)), server.config) as board:
        process = board.start("sample", counting())
        said = heard(process, frames(2))
        assert said[0]["python"].startswith("3.8.")
        assert process.stop().status == 0
        assert board.call(ECHO, {"answer": [1, None]}) == [1, None]
        assert board.call("edgewatt.devices.agent.conditions:busy")["share"] >= 0


# ---------------------------------------------------------------------------------------------------------------------
# the clock


def test_clock_of_the_same_machine_is_off_by_nothing(board: Ssh) -> None:
    offset = board.clock_offset()
    assert abs(offset.offset_s) <= offset.bound_s and offset.n >= 20
    assert 0 < offset.bound_s < 0.05


# ---------------------------------------------------------------------------------------------------------------------
# ends


@pytest.mark.parametrize(("fault", "signal_"), [("segfault", "SIGSEGV"), ("killed", "SIGKILL"), ("abort", "SIGABRT")])
def test_crash_on_the_board_is_told_by_its_signal(board: Ssh, fault: str, signal_: str) -> None:
    process = board.start("run", run_job(board.scratch(), fault=fault, fault_at=1))
    said, failure = rest(process)
    assert failure is None and said[-1]["event"] not in ("end", "error")
    end = process.stop()
    assert (end.status, end.signal, end.out_of_memory) == (None, signal_, False)
    assert "edgewatt-" not in end.stderr
    if fault != "killed":
        assert "fake_runner.py" in end.stderr  # where it crashed


def test_agent_that_does_not_end_is_ended_with_its_children(board: Ssh, tmp_path: Path) -> None:
    job = run_job(board.scratch(), fault="hang", fault_at=1, child=str(tmp_path / "child"))
    process = board.start("run", job)
    pid = heard(process, lambda e: e["event"] == "alive")[0]["pid"]
    child = int((tmp_path / "child").read_text())
    assert alive(pid) and alive(child)
    end = process.stop(grace_s=0.5)
    assert (end.status, end.signal) == (None, "SIGKILL")
    wait_gone(pid, 1)
    wait_gone(child, 1)


def test_agent_that_was_ended_by_force_is_no_lost_link(board: Ssh) -> None:
    process = board.start("run", run_job(board.scratch(), fault="hang", fault_at=1))
    heard(process, lambda e: e["event"] == "alive")
    assert process.stop(grace_s=0.5).signal == "SIGKILL"
    assert rest(process)[1] is None


def test_job_that_finds_no_room_is_told(board: Ssh) -> None:
    board.scratch()
    board._jobs = "/dev/null/jobs"
    said, failure = rest(board.start("hello", {}))
    assert not said and type(failure) is HarnessError
    assert "the job cannot be written there" in str(failure) and "\n" not in str(failure)


def test_agent_that_cannot_end_itself_is_ended(board: Ssh) -> None:
    process = board.start("sample", counting())
    pid = heard(process, frames(1))[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert process.stop(grace_s=0.5).signal == "SIGKILL"
        wait_gone(pid, 1)
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_what_the_agent_started_ends_with_it(board: Ssh, tmp_path: Path) -> None:
    process = board.start("run", run_job(board.scratch(), child=str(tmp_path / "child")))
    assert rest(process)[0][-1]["event"] == "end"
    assert process.stop().status == 0
    wait_gone(int((tmp_path / "child").read_text()), 2)


def test_close_leaves_no_folder_no_process_and_no_thread(server: Sshd) -> None:
    threads, files = set(threading.enumerate()), open_files()
    board = Ssh(server.address, sys.executable, server.config)
    scratch = board.scratch()
    process = board.start("sample", counting())
    pid = heard(process, frames(1))[0]["pid"]
    socket = Path(board._socket or "")
    jobs = Path(next(w for w in Path(f"/proc/{pid}/cmdline").read_text().split("\0") if w.endswith(".json"))).parent
    assert Path(scratch).is_dir() and jobs.is_dir() and socket.is_socket()
    board.close()
    board.close()
    assert not Path(scratch).exists() and not jobs.exists() and not alive(pid)
    assert process.stop().status == 0
    assert set(threading.enumerate()) <= threads and open_files() <= files
    assert not socket.parent.exists()


def test_close_of_what_was_never_connected_does_nothing() -> None:
    Ssh("ssh://nowhere.invalid").close()


# ---------------------------------------------------------------------------------------------------------------------
# a link that is lost


def whole(said: list[dict[str, Any]]) -> None:
    """No sample is lost or came twice, and the agent ended in order."""
    values = samples(said).values[:, 0]
    assert list(values) == list(range(len(values)))
    sampled, end = said[-2:]
    assert sampled["n"] == len(values) and end == end | {"event": "end", "reason": "orphaned"}


def test_cut_link_loses_no_sample_and_leaves_no_agent(board: Ssh, server: Sshd) -> None:
    process = board.start("sample", counting())
    said = heard(process, frames(3))
    server.cut()
    wait_gone(said[0]["pid"], GONE_S)
    more, failure = rest(process)
    whole(said + more)
    assert type(failure) is TransientError and f"the link to {BOARD} was lost" in str(failure)
    end = process.stop()
    assert (end.status, end.signal) == (None, None) and "link" in end.stderr
    assert board.call(ECHO, {"answer": 5}) == 5  # and it goes on


def test_cut_link_to_an_agent_that_talked_much_is_told_too(board: Ssh, server: Sshd) -> None:
    """More on stderr than is kept: what tells the agent's process group came first."""
    readings = {"stream": "support.fake_functions:stream", "params": {"starting": "chatter"}}
    process = board.start("sample", {"rate_hz": 100, "batch_s": 0.1, **readings})
    said = heard(process, frames(3))
    server.cut()
    more, failure = rest(process)
    whole(said + more)
    assert type(failure) is TransientError and f"the link to {BOARD} was lost" in str(failure)


def test_agent_that_talked_much_is_ended_by_force(board: Ssh, tmp_path: Path) -> None:
    readings = {"starting": "chatter", "fault": "wait", "fault_at": 50, "seconds": 60}
    job = {"rate_hz": 100, "batch_s": 0.1, "stream": "support.fake_functions:stream", "params": readings}
    process = board.start("sample", job)
    pid = heard(process, frames(1))[0]["pid"]
    process.stop(grace_s=0)
    wait_gone(pid, 1)


def test_samples_survive_an_outage_of_seconds(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(TESTS), "HOME": str(tmp_path)}
    with Sshd(tmp_path / "s", environment=environment) as other, Ssh(other.address, sys.executable, other.config) as b:
        process = b.start("sample", counting())
        said = heard(process, frames(3))
        other.stop()
        time.sleep(6)
        other.start()
        more, failure = rest(process)
        whole(said + more)
        assert type(failure) is TransientError


def test_restart_of_the_board_is_told(board: Ssh, server: Sshd, tmp_path: Path) -> None:
    """Another boot's number, as after a restart, in the place that tells it."""
    process = board.start("sample", counting())
    heard(process, frames(2))
    process._began = re.fullmatch(rb"(\d+) (\d*) (\S*)", b"%s  another" % process._began[1])  # type: ignore[index]
    server.cut()
    failure = rest(process)[1]
    assert type(failure) is TransientError and f"{BOARD} restarted" in str(failure)
    again = board.start("sample", counting())  # and is not told of what was started since
    heard(again, frames(1))
    server.cut()
    assert "was lost" in str(rest(again)[1])


def test_link_that_carries_nothing_is_noticed_at_both_ends(board: Ssh, server: Sshd) -> None:
    process = board.start("sample", counting())
    said = heard(process, frames(3))
    server.signal(signal.SIGSTOP)
    try:
        wait_gone(said[0]["pid"], GONE_S)
        more, failure = rest(process)
    finally:
        server.signal(signal.SIGCONT)
    whole(said + more)
    assert type(failure) is TransientError and process.stop().status is None
    assert board.call(ECHO, {"answer": 5}) == 5


def test_run_on_a_cut_link_ends_with_its_children(board: Ssh, server: Sshd, tmp_path: Path) -> None:
    job = run_job(board.scratch(), fault="hang", fault_at=1, child=str(tmp_path / "child"))
    process = board.start("run", job)
    said = heard(process, lambda e: e["event"] == "alive")
    server.cut()
    wait_gone(said[0]["pid"], GONE_S)
    wait_gone(int((tmp_path / "child").read_text()), GONE_S)
    more, failure = rest(process)
    assert more[-1]["reason"] == "orphaned" and type(failure) is TransientError
    assert process.stop().signal is None


def test_meter_over_a_lost_link_keeps_its_samples_and_says_so(board: Ssh, server: Sshd) -> None:
    channels = [Channel(n, "power", "W", "gauge", covers=n) for n in ("count", "half")]
    meter = AgentMeter(board, "m", channels, counting())  # type: ignore[arg-type]
    meter.start()
    time.sleep(0.5)
    server.cut()
    time.sleep(0.5)
    trace = meter.stop()
    assert list(trace.column("count")) == list(range(len(trace.t_s))) and len(trace.t_s) > 30
    assert "was lost" in trace.facts["ended"]


def test_listener_that_comes_after_the_end_hears_what_was_said(board: Ssh, server: Sshd) -> None:
    process = board.start("sample", counting())
    said = heard(process, frames(2))
    server.cut()
    end = process.stop()
    more, failure = rest(process)
    whole(said + more)
    assert failure is not None and end.status is None
    assert rest(process) == ([], None)  # and once more, nothing


def test_call_on_a_cut_link_may_be_tried_again(board: Ssh, server: Sshd, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with cutting(server, pid), pytest.raises(TransientError, match="was lost"):
        board.call(ECHO, {"fault": "wait", "seconds": 30, "pid": str(pid)})
    wait_gone(int(pid.read_text()), GONE_S)


def test_setting_is_put_back_when_the_link_is_cut(board: Ssh, server: Sshd, tmp_path: Path) -> None:
    path = tmp_path / "governor"
    path.write_text("schedutil")
    with board.hold(SETTING, {"path": str(path), "value": "performance"}) as value:
        assert path.read_text() == "performance" and value["before"] == "schedutil"
        server.cut()
        wait_gone(value["pid"], GONE_S)
        assert path.read_text() == "schedutil"
    assert value["after"] == "schedutil"  # told by its spool


def test_setting_is_held_and_put_back(board: Ssh, tmp_path: Path) -> None:
    path = tmp_path / "governor"
    path.write_text("schedutil")
    with pytest.raises(ZeroDivisionError), board.hold(SETTING, {"path": str(path)}) as value:
        assert path.read_text() == "set"
        raise ZeroDivisionError
    assert path.read_text() == "schedutil" and value["after"] == "schedutil"


@pytest.mark.parametrize(
    ("params", "kind", "told"),
    [
        ({"entering": "refuse"}, UsageError, "mode 7 is not one of 0, 1, 2"),
        ({"entering": "raise"}, HarnessError, "Input/output error: /sys/x"),
        ({"leaving": "raise"}, HarnessError, "may not be put back: .*not put back: Input/output error: /sys/x"),
    ],
)
def test_setting_that_cannot_be_made_or_put_back_is_told(
    board: Ssh, tmp_path: Path, params: dict[str, Any], kind: type[HarnessError], told: str
) -> None:
    path = tmp_path / "governor"
    path.write_text("schedutil")
    with pytest.raises(HarnessError, match=told) as raised, board.hold(SETTING, {"path": str(path), **params}):
        assert "entering" not in params
    assert type(raised.value) is kind


def test_board_that_is_gone_is_closed_in_time(tmp_path: Path) -> None:
    with Sshd(tmp_path / "s", environment={"PYTHONPATH": str(TESTS), "HOME": str(tmp_path)}) as server:
        board = Ssh(server.address, sys.executable, server.config)
        started = [board.start("sample", counting()) for _ in range(3)]
        pids = [heard(p, frames(1))[0]["pid"] for p in started]
        server.stop()
        began = time.monotonic()
        board.close()
        assert time.monotonic() - began < 20
        assert not any(alive(pid) for pid in pids)


def test_board_that_answers_no_more_is_closed_in_time(tmp_path: Path) -> None:
    """As when its cable was pulled: nothing is refused, nothing comes."""
    with Sshd(tmp_path / "s", environment={"PYTHONPATH": str(TESTS), "HOME": str(tmp_path)}) as server:
        board = Ssh(server.address, sys.executable, server.config)
        started = [board.start("sample", counting()) for _ in range(3)]
        pids = [heard(p, frames(1))[0]["pid"] for p in started]
        listening = int((server.folder / "pid").read_text())
        os.kill(listening, signal.SIGSTOP)
        server.signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            board.close()
            took = time.monotonic() - began
        finally:
            os.kill(listening, signal.SIGCONT)
            server.signal(signal.SIGCONT)
        assert took < 25
        assert not any(alive(pid) for pid in pids)


# ---------------------------------------------------------------------------------------------------------------------
# a harness that is killed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_killed_harness_leaves_nothing_running_and_nothing_set(server: Sshd, tmp_path: Path, number: int) -> None:
    path = tmp_path / "governor"
    path.write_text("schedutil")
    job = run_job(str(tmp_path), fault="hang", fault_at=1, child=str(tmp_path / "child"))
    harness = textwrap.dedent(f"""
        import json, pathlib, signal, time
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it, and so would we
        from edgewatt.devices.ssh import Ssh
        board = Ssh({server.address!r}, {sys.executable!r}, pathlib.Path({str(server.config)!r}))
        sampler = board.start("sample", {counting()!r})
        runner = board.start("run", {job!r})
        with board.hold({SETTING!r}, {{"path": {str(path)!r}}}) as value:
            pids = [next(p.events(20))["pid"] for p in (sampler, runner)]
            for event in runner.events(20):
                if event["event"] == "alive":
                    break
            print(json.dumps([*pids, value["pid"]]), flush=True)
            time.sleep(600)
    """)
    with (
        tempfile.TemporaryDirectory(prefix="t-") as folder,  # what it cannot remove itself
        subprocess.Popen(
            [sys.executable, "-c", harness], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": folder}
        ) as process,
    ):
        assert process.stdout
        pids = json.loads(process.stdout.readline())
        pids.append(int((tmp_path / "child").read_text()))
        assert path.read_text() == "set" and all(alive(pid) for pid in pids)
        process.send_signal(number)
        began = time.monotonic()
        process.wait(5)
        for pid in pids:
            wait_gone(pid, began + GONE_S - time.monotonic())
        assert path.read_text() == "schedutil"
        server.cut()  # the connection that the harness has left behind
