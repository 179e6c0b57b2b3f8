"""A real adb daemon: what holds with the emulated phones holds there, and Debian's client finds what we pushed."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewatt.devices.android.transport import Adb
from support.agents import native, samples
from support.android_lab import adb_client, real_adbd

pytestmark = pytest.mark.needs_realadbd


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with real_adbd() as held:
        yield held


def test_real_daemon_keeps_exit_codes_and_is_quick(address: str, tmp_path: Path) -> None:
    with Adb(address, key=tmp_path / "adbkey") as adb:
        done = adb.shell("echo out; echo err >&2; exit 42")
        assert (done.status, done.stdout, done.stderr) == (42, b"out\n", "err\n")
        assert adb.shell("cat", stdin=b"\0x" * 200_000).stdout == b"\0x" * 200_000
        assert adb.shell("kill -9 $$").status == 137
        took_s = []
        for _ in range(20):
            start_s = time.monotonic()
            adb.shell("true")
            took_s.append(time.monotonic() - start_s)
        assert sorted(took_s)[3] < 0.03


@pytest.mark.needs_adb
def test_clients_find_each_others_files_at_a_real_daemon(address: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_bytes(os.urandom(60_000_000))
    theirs.write_bytes(os.urandom(5_000_000))
    (tmp_path / "back").mkdir()
    with Adb(address, key=tmp_path / "adbkey") as adb, adb_client(address) as client:
        there = adb.put(ours)
        assert client("pull", there, tmp_path / "pulled").returncode == 0
        assert (tmp_path / "pulled").read_bytes() == ours.read_bytes()
        assert adb.get(there, tmp_path / "back").read_bytes() == ours.read_bytes()
        assert client("push", theirs, "/data/local/tmp/theirs").returncode == 0
        assert adb.get("/data/local/tmp/theirs", tmp_path / "back").read_bytes() == theirs.read_bytes()
        adb.shell("rm -rf /data/local/tmp/theirs /data/local/tmp/edgewatt/files")


def test_agent_at_a_real_daemon_outlives_its_link(address: str, tmp_path: Path) -> None:
    job = {"rate_hz": 50, "batch_s": 0.2, "nodes": [{"path": "/proc/sys/kernel/pid_max", "name": "x"}]}
    with Adb(address, key=tmp_path / "adbkey", agent=native()) as adb:
        sampler = adb.start("sample", job)
        said = [next(sampler.events(20)) for _ in range(4)]
        adb.connected()._wire.close()
        said += [next(sampler.events(20)) for _ in range(6)]
        end = sampler.stop()
        said += list(sampler.events(20))
        assert "relinked" in [e["event"] for e in said]
        assert len(samples(said).t_ns) == next(e["n"] for e in said if e["event"] == "sampled")
        assert (end.status, end.signal, end.stderr) == (0, None, "")
    with Adb(address, key=tmp_path / "adbkey") as adb:
        running = "for c in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$c; echo; done 2>/dev/null | grep -F edgewatt/jobs"
        assert adb.shell(f"{running} | grep -vF grep; ls /data/local/tmp/edgewatt/jobs").text == ""
