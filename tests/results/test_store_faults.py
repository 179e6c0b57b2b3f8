"""A run is whole or absent: killed writers, several at once, full disks, places that are no store."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.results import schema
from edgewatt.results.store import Store
from support.example_run import example_run
from support.same import assert_same_run
from support.writers import Writers

NOBODY = 65534
needs_root = pytest.mark.needs_root


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    with Writers() as started:
        yield started


def assert_whole(folder: Path) -> list[str]:
    """The ids of the runs in a store that holds nothing but whole runs."""
    store = Store(folder)
    ids = [r.id for r in store.list()]
    assert len(ids) == len(set(ids))
    for place in ("traces", "outputs"):
        there = {p.name for p in (folder / place).iterdir()} if (folder / place).exists() else set()
        assert there == set(ids), place
    assert not (folder / ".writing").exists() or not list((folder / ".writing").iterdir())
    return ids


def assert_complete(folder: Path) -> None:
    """Every sample of every run is there."""
    store, expected = Store(folder), example_run(0, repeats=1)
    for row in store.list():
        assert_same_run(dataclasses.replace(expected, id=row.id), store.get(row.id))


@pytest.mark.slow
def test_writers_killed_at_random_moments_leave_only_whole_runs(tmp_path, writers) -> None:
    dice, leftovers, stored = random.Random(7), 0, 0
    for k in range(40):
        folder = tmp_path / f"runs{k // 8}"  # a new store now and then: its making is interrupted too
        pid = writers.start(folder, [f"{k}-{n}" for n in range(1000)])
        time.sleep(dice.random() * 0.25)
        os.kill(pid, signal.SIGKILL)
        assert writers.wait(pid) == -signal.SIGKILL
        leftovers += bool(list(folder.glob(".writing/*")))
        stored += len(assert_whole(folder))
    for folder in tmp_path.iterdir():
        assert_complete(folder)
    assert leftovers >= 5, "the kills came at moments that test nothing"
    assert stored >= 5


@pytest.mark.parametrize(("at", "is_stored"), [("written", False), ("placed", False), ("stored", True)])
def test_a_writer_killed_at_a_given_moment_leaves_all_or_nothing(tmp_path, writers, at, is_stored) -> None:
    folder = tmp_path / "runs"
    Store(folder)
    pid = writers.start(folder, ["a"], at, "SIGKILL")
    assert writers.wait(pid) == -signal.SIGKILL
    assert list((folder / ".writing").iterdir()), "it was killed in the middle"
    assert (folder / "traces" / "a").is_dir() == (at != "written")
    assert assert_whole(folder) == (["a"] if is_stored else [])
    assert_complete(folder)
    if not is_stored:
        assert writers.wait(writers.start(folder, ["a"])) == 0
        assert assert_whole(folder) == ["a"]


@pytest.mark.parametrize("at", ["written", "placed"])
def test_a_writer_that_only_takes_long_is_not_taken_for_dead(tmp_path, writers, at) -> None:
    folder = tmp_path / "runs"
    Store(folder)
    pid = writers.start(folder, ["slow"], at, "SIGSTOP")
    _wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "T")
    assert Store(folder).list() == ()
    Store(folder).add(dataclasses.replace(example_run(0, repeats=1), id="quick"))
    assert (folder / ".writing" / "slow.lock").exists()
    os.kill(pid, signal.SIGCONT)
    assert writers.wait(pid) == 0
    assert sorted(assert_whole(folder)) == ["quick", "slow"]
    assert_complete(folder)


def test_several_processes_make_and_fill_one_store_at_once(tmp_path, writers) -> None:
    folder = tmp_path / "runs"
    pids = [writers.start(folder, [f"{k}-{n}" for n in range(12)]) for k in range(4)]
    assert [writers.wait(pid) for pid in pids] == [0, 0, 0, 0]
    assert len(assert_whole(folder)) == 48
    assert_complete(folder)


def test_one_run_written_twice_at_once_is_stored_once(tmp_path, writers, capfd) -> None:
    folder = tmp_path / "runs"
    Store(folder)
    pids = [writers.start(folder, ["same"]) for _ in range(3)]
    assert sorted(writers.wait(pid) for pid in pids) == [0, 1, 1]
    assert assert_whole(folder) == ["same"]
    assert_complete(folder)


def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path / "runs")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, "ADVISORY_LOCK", 1)
    monkeypatch.setattr(store, "_lock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.add(example_run(0, repeats=1))
    assert not assert_whole(tmp_path / "runs")


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_database_lost_at_the_last_moment_is_asked_later(tmp_path, monkeypatch, is_stored) -> None:
    folder, run = tmp_path / "runs", example_run(0, repeats=1)
    store = Store(folder)
    session, gone = store._session, OperationalError("COMMIT", {}, Exception("connection lost"))
    is_lost = False

    @contextlib.contextmanager
    def losing_session(writes: bool = False) -> Iterator[Session]:
        nonlocal is_lost
        if is_lost:
            raise gone
        with session(writes) as opened:
            yield opened
            is_lost = writes
            if is_lost and not is_stored:
                raise gone
        if is_lost:
            raise gone

    monkeypatch.setattr(store, "_session", losing_session)
    with pytest.raises(HarnessError, match="connection lost"):
        store.add(run)
    assert (folder / "traces" / run.id).is_dir(), "nothing is decided yet"
    assert assert_whole(folder) == ([run.id] if is_stored else [])
    assert_complete(folder)


# -- no room


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = Path(tempfile.mkdtemp())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"cannot mount: {mounted.stderr.strip().partition(chr(10))[0]}")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", folder], check=False)
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def fill(folder: Path, free_bytes: int) -> Path:
    """A file that leaves so much room."""
    filler = folder / "filler"
    room = os.statvfs(folder)
    filler.write_bytes(b"x" * max(0, room.f_bavail * room.f_frsize - free_bytes))
    return filler


@needs_root
@pytest.mark.parametrize("free_kb", [0, 4, 16, 40, 60, 72, 80, 88, 96, 104, 112])
def test_a_full_disk_is_one_line_and_nothing_half_written(small_disk, free_kb) -> None:
    folder = small_disk / "runs"
    store, run = Store(folder), example_run(0, repeats=1)
    store.add(dataclasses.replace(run, id="before"))
    filler = fill(small_disk, free_kb * 1024)
    with pytest.raises(UsageError, match=r"runs: the disk is full, nothing was stored; make room or") as raised:
        store.add(run)
    assert "\n" not in str(raised.value)
    filler.unlink()
    assert assert_whole(folder) == ["before"]
    store.add(run)
    assert sorted(assert_whole(folder)) == sorted(["before", run.id])
    assert_same_run(run, store.get(run.id))


@needs_root
def test_no_store_is_made_on_a_full_disk(small_disk) -> None:
    filler = fill(small_disk, 8192)
    with pytest.raises(UsageError, match="the disk is full"):
        Store(small_disk / "runs")
    filler.unlink()
    Store(small_disk / "runs").add(example_run(0, repeats=1))
    assert_whole(small_disk / "runs")


@needs_root
def test_too_little_room_is_said_before_anything_is_measured(small_disk) -> None:
    store = Store(small_disk / "runs")
    with pytest.raises(UsageError, match="the disk is full"):
        store.check()


@needs_root
def test_a_store_on_a_read_only_disk_is_read_but_not_written(small_disk) -> None:
    folder, run = small_disk / "runs", example_run(0, repeats=1)
    Store(folder).add(run)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    store = Store(folder)
    assert_same_run(run, store.get("latest"))
    assert len(store.list()) == 1
    with pytest.raises(UsageError, match=r"runs: read-only; mend its permissions"):
        store.add(dataclasses.replace(run, id="other"))
    with pytest.raises(UsageError, match="read-only"):
        store.check()
    with pytest.raises(UsageError, match="cannot be written"):
        Store(small_disk / "new")


# -- permissions


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """What happens inside has no rights of root's."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others may enter but not write."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        subprocess.run(["chmod", "-R", "u+w", name], check=True)


def test_a_store_of_somebody_else_is_read_but_not_written(open_folder) -> None:
    run = dataclasses.replace(example_run(0, repeats=1), outputs={})
    folder = open_folder / "runs"
    Store(folder).add(run)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with as_nobody():
        store = Store(folder)
        assert_same_run(run, store.get("latest"))
        for act in (store.check, lambda: store.add(dataclasses.replace(run, id="other"))):
            with pytest.raises(UsageError, match="runs: read-only; mend its permissions or name another --store"):
                act()


def test_no_store_is_made_where_nobody_may_write(open_folder) -> None:
    open_folder.chmod(0o555)
    for folder in (open_folder, open_folder / "runs", open_folder / "deep" / "runs"):
        with as_nobody(), pytest.raises(UsageError, match=f"store {folder}: cannot be written"):
            Store(folder)
    assert list(open_folder.iterdir()) == []


# -- not a store


def test_a_damaged_database_is_said_to_be(tmp_path) -> None:
    Store(tmp_path / "runs").add(example_run(0, repeats=1))
    path = tmp_path / "runs" / "edgewatt.db"
    path.write_bytes(path.read_bytes()[:4096] + b"rubbish!" * 4096)
    with pytest.raises(UsageError, match=r"its edgewatt.db is damaged, or not a store"):
        Store(tmp_path / "runs").list()


def test_a_file_is_not_a_store(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="a file, wanted a folder"):
        Store(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=r"Not a directory; name another --store"):
        Store(tmp_path / "notes.txt" / "runs")


def test_a_folder_of_other_things_is_not_made_a_store(tmp_path) -> None:
    (tmp_path / "holiday.jpg").write_text("x")
    with pytest.raises(UsageError, match=r"not a store, it holds holiday.jpg; name a new or an empty folder"):
        Store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_reading_makes_no_store(tmp_path) -> None:
    with pytest.raises(UsageError, match="there is no store"):
        Store(tmp_path / "runs", create=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be read as one" * 100, b"x"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content) -> None:
    (tmp_path / "edgewatt.db").write_bytes(content)
    with pytest.raises(UsageError, match=r"its edgewatt.db is not a store"):
        Store(tmp_path)
    assert (tmp_path / "edgewatt.db").read_bytes() == content


def _wait_for(is_so) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)
