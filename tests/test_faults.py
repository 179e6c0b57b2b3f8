"""What goes wrong in the middle of a run ends it with a stored, explained error and a clean device."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from support.command import QUICK, Command, executable

STEADY = (*QUICK, "window_s=1.5")


@pytest.fixture
def edgewatt(tmp_path):
    command = Command(tmp_path)
    yield command
    left = wait_until_gone(command)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []


def wait_until_gone(command: Command, limit_s: float = 5.0) -> list[int]:
    """Processes still there after at most `limit_s`."""
    end = time.monotonic() + limit_s
    while (left := command.left_running()) and time.monotonic() < end:
        time.sleep(0.05)
    return left


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("segfault", "crashed", "SIGSEGV"),
        pytest.param("abort", "crashed", "SIGABRT", marks=pytest.mark.soak),
        ("kill", "killed", "SIGKILL"),
        ("raise", "failed", "Frobnicate"),
        ("load", "failed", "the model file is broken"),
    ],
)
def test_model_that_dies_is_stored_with_the_reason(edgewatt, how, kind, words):
    run = edgewatt.json("run", "misbehaving", "--set", *STEADY, f"how={how}", status=1)
    assert run["error"]["kind"] == kind
    assert words in run["error"]["message"]
    assert edgewatt.json("show", "latest")["error"] == run["error"]


def test_model_that_hangs_is_ended(edgewatt):
    started = time.monotonic()
    run = edgewatt.json("run", "misbehaving", "--set", *STEADY, "how=hang", "item_timeout_s=3", "idle_s=0", status=1)
    assert run["error"]["kind"] == "hung"
    assert time.monotonic() - started < 60


def test_model_over_its_memory_limit_is_out_of_memory(edgewatt):
    run = edgewatt.json("run", "misbehaving", "--set", *STEADY, "how=memory", "memory_limit_bytes=1000000000", status=1)
    assert run["error"]["kind"] == "out_of_memory"
    assert "memory_limit_bytes" in run["error"]["message"]


def test_children_of_the_model_end_with_the_run(edgewatt):
    edgewatt.json("run", "misbehaving", "--set", *QUICK, "how=child")


def test_next_run_after_a_crash_works(edgewatt):
    edgewatt.json("run", "misbehaving", "--set", *STEADY, "how=segfault", status=1)
    assert edgewatt.json("run", "misbehaving", "--set", *QUICK)["error"] is None
    assert len(edgewatt.json("list")["runs"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 5, *(pytest.param(k, marks=pytest.mark.soak) for k in (2, 3, 4))])
def test_interrupt_at_any_moment_leaves_nothing_half_written(edgewatt, seed):
    process = edgewatt.start("run", "misbehaving", "--set", *QUICK)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(random.Random(seed).uniform(0.2, 4.0))  # earlier it is the interpreter that is starting
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert "Traceback" not in err + out
    assert process.returncode in (0, 1, 2, -signal.SIGINT)
    assert wait_until_gone(edgewatt) == []
    if (edgewatt.folder / "runs" / "edgewatt.db").exists():
        runs = edgewatt.json("list")["runs"]
        assert len(runs) == (1 if process.returncode in (0, 1) else 0)
        for run in runs:
            assert edgewatt.json("show", run["id"])["run"] == run["id"]


def test_interrupt_inside_a_finaliser_is_not_lost():
    """Python swallows what a finaliser raises; the interrupt has to arrive all the same."""
    program = """
import os, signal, sys, time
from edgewatt.harness import cli

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

def command():
    Finalised()
    time.sleep(20)
    return 0

cli.run_command = command
try:
    cli.main()
except KeyboardInterrupt:
    print("arrived")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("arrived\n", "", 0)


def test_interrupted_run_is_stored_as_interrupted(edgewatt):
    process = edgewatt.start("run", "misbehaving", "--set", *QUICK, "window_s=60")
    for line in process.stderr:
        if "measuring" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert edgewatt.json("show", "latest")["error"]["kind"] == "interrupted"


def test_agent_ends_by_itself_when_the_harness_is_killed(edgewatt):
    process = edgewatt.start("run", "misbehaving", "--set", *QUICK, "window_s=60")
    for line in process.stderr:
        if "measuring" in line:
            break
    process.kill()
    process.communicate()
    assert wait_until_gone(edgewatt, 5.0) == []
    assert edgewatt.json("run", "misbehaving", "--set", *QUICK)["error"] is None


def test_two_runs_share_a_store(edgewatt):
    both = [edgewatt.start("run", "misbehaving", "--set", *QUICK, "--json") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert len(edgewatt.json("list")["runs"]) == 2


def test_store_that_is_a_file_is_refused(edgewatt):
    (edgewatt.folder / "runs").write_text("mine")
    assert "runs" in edgewatt.refused("run", "misbehaving", "--set", *QUICK)
    assert (edgewatt.folder / "runs").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 80 MB, a little more than a store wants to see free."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.needs_root
def test_full_disk_is_refused_before_anything_is_measured(edgewatt, small_disk):
    (small_disk / "ballast").write_bytes(bytes((80 << 20) - 8192))
    assert "disk" in edgewatt.refused("run", "misbehaving", "--set", *QUICK, "--store", small_disk / "runs")
    assert [p.name for p in small_disk.rglob("*") if p.suffix == ".parquet"] == []


@pytest.mark.needs_root
def test_disk_that_fills_during_the_run_costs_no_run_and_leaves_nothing_half_written(
    edgewatt, small_disk, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = edgewatt.start("run", "misbehaving", "--set", *QUICK, "window_s=3", "--store", small_disk / "runs")
    for line in process.stderr:
        if "measuring" in line:
            break
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(65536))
            ballast.flush()
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode == 1, (out, err)
    (small_disk / "ballast").unlink()
    assert edgewatt.json("list", "--store", small_disk / "runs")["runs"] == []
    (refuge,) = tmp_path.glob("edgewatt-kept-*")
    assert f"is kept in {refuge}" in err
    assert edgewatt.json("show", "latest", "--store", refuge)["error"] is None
    edgewatt.json("run", "misbehaving", "--set", *QUICK, "--store", small_disk / "runs")


def test_run_that_can_be_kept_nowhere_leaves_nothing_behind(tmp_path, monkeypatch):
    from edgewatt.harness.api import UsageError
    from edgewatt.harness.commands.stores import kept
    from edgewatt.results.store import Store
    from support.example_run import example_run

    def refuse(*_):
        raise UsageError("the disk is full")

    store, run = Store(tmp_path / "runs"), example_run()
    monkeypatch.setattr(Store, "add", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UsageError, match="the disk is full"):
        kept(store, run)
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


@pytest.mark.needs_root
def test_read_only_store_is_refused(edgewatt, small_disk):
    edgewatt.json("run", "misbehaving", "--set", *QUICK, "--store", small_disk / "runs")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert (
        "read-only" in edgewatt.refused("run", "misbehaving", "--set", *QUICK, "--store", small_disk / "runs").lower()
    )
    assert len(edgewatt.json("list", "--store", small_disk / "runs")["runs"]) == 1


def test_command_is_killed_by_nothing_it_prints_to(edgewatt):
    """A reader that goes away (`| head`) is no error."""
    edgewatt.json("run", "misbehaving", "--set", *QUICK)
    done = subprocess.run(
        ["sh", "-c", f"{executable()} export --format json | head -c 10"],
        cwd=edgewatt.folder, env=edgewatt.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
