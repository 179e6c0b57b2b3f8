"""Phones over adb, emulated: commands, files, and agents through what happens to a link."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from edgewatt.devices.android import agents, sync
from edgewatt.devices.android.link import Link, Stream
from edgewatt.devices.android.shell import TRIES
from edgewatt.devices.android.transport import Adb
from edgewatt.harness.api import HarnessError, TransientError, UsageError
from support.agents import native, samples
from support.android_lab import PROTOS, Phone, adb_client

pytestmark = pytest.mark.needs_android_lab

COUNTING = {"rate_hz": 50, "batch_s": 0.2, "nodes": [{"path": "/proc/sys/kernel/pid_max", "name": "x"}]}
PERIOD_NS = 20_000_000


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "adbkey"


@pytest.fixture(
    scope="module", params=[pytest.param(p, marks=pytest.mark.soak if p == "shell_v2" else ()) for p in PROTOS]
)
def proto_phone(request: pytest.FixtureRequest) -> Iterator[Phone]:
    with Phone("pixel8", proto=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def phone() -> Iterator[Phone]:
    """One that is left as it was found."""
    with Phone("sm8650") as running:
        yield running


def rest(process: Any, silence_s: float = 40.0) -> list[dict[str, Any]]:
    return list(process.events(silence_s))


def events(said: list[dict[str, Any]]) -> list[str]:
    """Their names; an agent whose stream the daemon left silent is heard through its spool, and says so."""
    return [e["event"] for e in said if e["event"] != "relinked"]


def whole(said: list[dict[str, Any]]) -> None:
    """Every sample that the agent took is here, once and in order."""
    times = samples(said).t_ns
    told = next(e for e in said if e["event"] == "sampled")
    assert len(times) == told["n"] and (times[1:] > times[:-1]).all()
    assert len(times) + told["skipped"] == pytest.approx((times[-1] - times[0]) / PERIOD_NS + 1, abs=2)


def left_behind(address: str, key: Path) -> str:
    """What of ours still runs on the phone, or lies in its folder of jobs."""
    with Adb(address, key=key) as other:
        processes = other.shell("ps -A -o ARGS | grep -F /edgewatt/ | grep -v grep").text
        return processes + other.shell("ls /data/local/tmp/edgewatt/jobs 2>/dev/null").text


# ---------------------------------------------------------------------------------------------------------------------
# commands and files, in every dialect of the daemon


def test_exit_codes_and_both_outputs_are_kept(proto_phone: Phone, key: Path) -> None:
    with Adb(proto_phone.address, key=key) as adb:
        done = adb.shell("echo out; echo err >&2; exit 42")
        assert (done.status, done.stdout, done.stderr, done.why) == (42, b"out\n", "err\n", "err")
        assert adb.shell("printf 'a\\0\\r\\n\\377'").stdout == b"a\0\r\n\xff"
        assert adb.shell("cat", stdin=b"\0\xff\n" * 70000).stdout == b"\0\xff\n" * 70000
        words = ["it's", '"$HOME"', "a\nb", "`id`", "", "*", "\\", "ü"]
        assert adb.shell('for w in "$@"; do printf "%s|" "$w"; done', *words).text == "|".join([*words, ""])
        assert adb.shell("echo $#", *["w" * 1000] * 200).text == "200\n"
        assert adb.shell("kill -9 $$").status in (137, None)


def test_command_that_does_not_end_is_given_up_and_the_next_one_works(proto_phone: Phone, key: Path) -> None:
    with Adb(proto_phone.address, key=key) as adb:
        with pytest.raises(TransientError, match="did not end within"):
            adb.shell("sleep 100", timeout_s=0.3)
        with pytest.raises(TransientError, match="did not end within"):
            adb.shell("while :; do echo x; done", timeout_s=0.3)
        # The emulated daemon may swallow a command after one that was hung up in the middle of its output.
        assert adb.shell("echo here", tries=TRIES).text == "here\n"


def test_command_takes_milliseconds(proto_phone: Phone, key: Path) -> None:
    with Adb(proto_phone.address, key=key) as adb:
        adb.shell("true")
        took_s = []
        for _ in range(40):
            start_s = time.monotonic()
            adb.shell("true")
            took_s.append(time.monotonic() - start_s)
    # Without TCP_NODELAY each takes more than 40 ms, however quick the machine.
    assert sorted(took_s)[5] < 0.03


def test_files_and_folders_arrive_as_they_were_sent(proto_phone: Phone, key: Path, tmp_path: Path) -> None:
    source = tmp_path / "a folder's"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "empty").mkdir()
    content = os.urandom(3_000_001)
    (source / "deep" / "er" / "big").write_bytes(content)
    (source / "nothing").write_bytes(b"")
    (source / "program").write_text("#!/system/bin/sh\necho ran $1\n")
    (source / "program").chmod(0o755)
    with Adb(proto_phone.address, key=key) as adb:
        there = adb.put(source)
        assert adb.put(source) == there
        assert adb.shell('"$1/program" well', there).text == "ran well\n"
        back = adb.get(there, tmp_path / "back")
        assert sorted(p.relative_to(back).as_posix() for p in back.rglob("*")) == [
            "deep", "deep/er", "deep/er/big", "empty", "nothing", "program",
        ]  # fmt: skip
        assert (back / "deep" / "er" / "big").read_bytes() == content
        with pytest.raises(HarnessError, match="cannot be fetched"):
            adb.get("/data/local/tmp/none", tmp_path)
        with pytest.raises(UsageError, match="no such file"):
            adb.put(tmp_path / "none")
        assert adb.shell("cd /data/local/tmp/edgewatt/files; ls -d *.*").status != 0  # nothing half pushed


@pytest.mark.needs_adb
def test_what_one_client_pushed_the_other_pulls(phone: Phone, key: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_bytes(os.urandom(5_000_000))
    theirs.write_bytes(os.urandom(5_000_000))
    with Adb(phone.address, key=key) as adb, adb_client(phone.address) as client:
        assert client("pull", adb.put(ours), tmp_path / "pulled").returncode == 0
        assert (tmp_path / "pulled").read_bytes() == ours.read_bytes()
        assert client("push", theirs, "/data/local/tmp/theirs").returncode == 0
        (tmp_path / "back").mkdir()
        assert adb.get("/data/local/tmp/theirs", tmp_path / "back").read_bytes() == theirs.read_bytes()
        adb.shell("rm /data/local/tmp/theirs")


# ---------------------------------------------------------------------------------------------------------------------
# agents


def test_agent_is_heard_and_leaves_nothing(proto_phone: Phone, key: Path) -> None:
    with Adb(proto_phone.address, key=key, agent=native()) as adb:
        said = rest(hello := adb.start("hello", {}))
        assert events(said) == ["hello", "end"] and hello.stop().status == 0
        refused = adb.start("sample", {**COUNTING, "nodes": [{"path": "/none"}]})
        assert rest(refused)[-1]["kind"] == "refused" and refused.stop().status == 2
        sampler = adb.start("sample", COUNTING)
        said = [next(sampler.events(20)) for _ in range(4)]
        assert adb.shell("echo meanwhile").text == "meanwhile\n"
        end = sampler.stop()
        whole(said + rest(sampler))
        assert (end.status, end.signal, end.stderr) == (0, None, "")
        offset = adb.clock_offset()
        before_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        uptime_s = float(adb.shell("read -r t rest </proc/uptime; echo $t").text)
        after_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert (
            before_s + offset.offset_s - offset.bound_s - 0.01 <= uptime_s <= after_s + offset.offset_s + offset.bound_s
        )
        assert offset.bound_s < 0.02
        adb.start("sample", COUNTING)  # ends with the transport
    assert left_behind(proto_phone.address, key) == ""


def test_agent_that_hears_nothing_is_killed_with_what_it_started(phone: Phone, key: Path, tmp_path: Path) -> None:
    stubborn = tmp_path / "stubborn"
    stubborn.write_text(
        "#!/system/bin/sh\ntrap '' TERM HUP\nsleep 300 &\necho '{\"event\": \"hello\"}'\nwhile :; do sleep 1; done\n"
    )
    stubborn.chmod(0o755)
    with Adb(phone.address, key=key, agent=stubborn) as adb:
        process = adb.start("hello", {})
        assert next(process.events(10))["event"] == "hello"
        assert process.stop(0.3).signal == "SIGKILL"
        assert adb.shell("ps -A -o ARGS | grep -c '[s]leep 300'").text == "0\n"


def test_clock_without_an_agent_is_known_to_the_resolution_of_uptime(phone: Phone, key: Path) -> None:
    with Adb(phone.address, key=key, agent=native()) as adb, Adb(phone.address, key=key) as bare:
        exact, coarse = adb.clock_offset(), bare.clock_offset()
    assert 0.005 < coarse.bound_s < 0.05
    assert abs(exact.offset_s - coarse.offset_s) <= exact.bound_s + coarse.bound_s


def test_harness_that_was_killed_leaves_nothing_at_the_next_connection(phone: Phone, key: Path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from edgewatt.devices.android.shell import TRIES
        from edgewatt.devices.android.transport import Adb
        adb = Adb({phone.address!r}, key=Path({str(key)!r}), agent=Path({str(native())!r}))
        process = adb.start("sample", {COUNTING!r})
        [next(process.events(20)) for _ in range(3)]
        adb.shell('echo "touch $1" >"$2/x.undo"', "/data/local/tmp/undone", adb.scratch())
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert left_behind(phone.address, key) == ""
    with Adb(phone.address, key=key) as adb:
        assert adb.shell("ls /data/local/tmp/undone").status == 0


# ---------------------------------------------------------------------------------------------------------------------
# what happens to links


@pytest.mark.parametrize("proto", ["modern", "legacy"])
def test_lost_links_lose_no_sample(proto: str, key: Path) -> None:
    with Phone("sm8250-ma", proto=proto) as phone, Adb(phone.address, key=key, agent=native()) as adb:
        sampler = adb.start("sample", COUNTING)
        said = [next(sampler.events(20)) for _ in range(4)]
        phone.fault("drop-connection")
        said += [next(sampler.events(20)) for _ in range(8)]
        assert "relinked" in [e["event"] for e in said]
        phone.fault("drop-connection")
        time.sleep(2)
        end = sampler.stop()
        whole(said + rest(sampler))
        assert (end.status, end.signal) == (0, None)


@pytest.mark.slow
def test_phone_out_of_reach_for_20_s_loses_no_sample(key: Path) -> None:
    with Phone("pixel7") as phone, Adb(phone.address, key=key, agent=native()) as adb:
        sampler = adb.start("sample", COUNTING)
        said = [next(sampler.events(20)) for _ in range(4)]
        phone.fault("offline", 20)
        start_s = time.monotonic()
        while time.monotonic() - start_s < 23:
            said.append(next(sampler.events(40)))
        sampler.stop()
        whole(said + rest(sampler))


def test_stream_that_falls_silent_is_left_for_the_spool(
    phone: Phone, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "QUIET_S", 1.0)

    def silent(timeout_s: float) -> bytes:
        time.sleep(timeout_s)
        raise TimeoutError

    with Adb(phone.address, key=key, agent=native()) as adb:
        sampler = adb.start("sample", COUNTING)
        heard = sampler.events(20)
        said = [dict(next(heard)) for _ in range(3)]
        monkeypatch.setattr(sampler._stream, "read", silent)
        while [e["event"] for e in said].count("frames") < 20:
            said.append(dict(next(heard)))
        sampler.stop()
        said += rest(sampler)
    assert "relinked" in [e["event"] for e in said]
    whole(said)


def test_stream_whose_end_never_comes_ends_with_the_agent(
    phone: Phone, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was heard and the agent is gone, but the daemon does not close the stream."""
    monkeypatch.setattr(agents, "QUIET_S", 1.0)
    with Adb(phone.address, key=key, agent=native()) as adb:
        sampler = adb.start("sample", COUNTING)
        read = sampler._stream.read

        def endless(timeout_s: float) -> bytes:
            data = read(timeout_s)
            if data is None:
                time.sleep(timeout_s)
                raise TimeoutError
            return data

        monkeypatch.setattr(sampler._stream, "read", endless)
        heard = sampler.events(10)
        said = [dict(next(heard)) for _ in range(3)]
        sampler._signal("TERM")
        said += [dict(e) for e in heard]  # a TimeoutError if the end were not seen
        end = sampler.stop()
    whole(said)
    assert (end.status, end.signal) == (0, None)


def test_transfer_that_breaks_is_begun_again(key: Path, tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(os.urandom(12_000_000))
    (tmp_path / "back").mkdir()
    with Phone("sm8350-inv") as phone, Adb(phone.address, key=key) as adb:
        adb.shell("true")
        phone.fault("drop-connection", 5_000_000)
        there = adb.put(file)
        phone.fault("drop-connection", 5_000_000)
        assert adb.get(there, tmp_path / "back").read_bytes() == file.read_bytes()
        assert adb.shell("ls /data/local/tmp/edgewatt/files | wc -l").text.strip() == "1"


def test_transfer_that_the_daemon_swallows_is_begun_again(
    phone: Phone, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other one is opened and then never answered."""
    monkeypatch.setattr(sync, "ANSWER_S", 0.5)
    waited_s: list[float] = []
    numbers, opened = itertools.count(), Link.open

    def silent(timeout_s: float) -> bytes:
        waited_s.append(timeout_s)
        time.sleep(timeout_s)
        raise TimeoutError

    def swallowing(link: Link, service: str) -> Stream | None:
        stream = opened(link, service)
        if service == "sync:" and next(numbers) % 2 == 0:
            monkeypatch.setattr(stream, "read", silent)
        return stream

    monkeypatch.setattr(Link, "open", swallowing)
    (tmp_path / "file").write_bytes(os.urandom(50_000))
    (tmp_path / "back").mkdir()
    with Adb(phone.address, key=key) as adb:
        back = adb.get(adb.put(tmp_path / "file"), tmp_path / "back")
        assert back.read_bytes() == (tmp_path / "file").read_bytes()
    assert waited_s == [0.5, 0.5]


def test_slow_link_works(key: Path, tmp_path: Path) -> None:
    file = tmp_path / "some"
    file.write_bytes(os.urandom(100_000))
    (tmp_path / "back").mkdir()
    with Phone("sm8350-inv") as phone, Adb(phone.address, key=key) as adb:
        phone.fault("slow", 60)
        assert adb.shell("exit 3").status == 3
        assert adb.get(adb.put(file), tmp_path / "back").read_bytes() == file.read_bytes()


def test_restart_is_told_and_the_next_connection_works(key: Path) -> None:
    with Phone("sm8650") as phone, Adb(phone.address, key=key, agent=native()) as adb:
        time.sleep(10)  # told by its uptime alone (its boot id is this machine's): that has to be more than afterwards
        sampler = adb.start("sample", COUNTING)
        [next(sampler.events(20)) for _ in range(3)]
        phone.fault("reboot", 2)
        with pytest.raises(TransientError, match="restarted"):
            rest(sampler)
        sampler.stop()
        assert adb.shell("echo again").text == "again\n"
        assert events(rest(adb.start("hello", {}))) == ["hello", "end"]


def test_phone_that_comes_back_is_waited_for_and_an_absent_one_is_told(key: Path) -> None:
    with Phone("sm8650") as phone, Adb(phone.address, key=key) as adb:
        adb.shell("true")
        phone.fault("offline", 3)
        assert adb.shell("echo again", tries=3).text == "again\n"
        address = phone.address
    with Adb(address, key=key) as adb, pytest.raises(TransientError, match="cannot be reached"):
        adb.shell("true")


def test_phone_that_asks_is_explained_and_one_that_refuses_too(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Phone("pixel6", auth="accept", prompt_s=0.5) as phone:
        with Adb(phone.address, key=tmp_path / "new" / "adbkey") as adb:
            assert adb.shell("echo in").text == "in\n"
        assert "tap Allow" in capsys.readouterr().err
        assert (tmp_path / "new" / "adbkey").stat().st_mode & 0o777 == 0o600
        with Adb(phone.address, key=tmp_path / "new" / "adbkey") as adb:  # known now
            assert adb.shell("echo in").text == "in\n"
        assert capsys.readouterr().err == ""
        phone.fault("auth-reject")
        with Adb(phone.address, key=key, authorise_s=1.0) as adb, pytest.raises(UsageError, match="did not let us in"):
            adb.shell("true")


# ---------------------------------------------------------------------------------------------------------------------
# several at once


def test_four_phones_at_once_do_not_hear_each_other(key: Path, tmp_path: Path) -> None:
    agent = native()  # compiled here, and not by four threads at once

    def use(number: int, address: str) -> tuple[set[str], list[dict[str, Any]]]:
        with Adb(address, key=key, agent=agent) as adb:
            sampler = adb.start("sample", COUNTING)
            asked = "getprop ro.product.device; echo $1"
            texts = {adb.shell(asked, str(number), tries=TRIES).text for _ in range(20)}
            file = tmp_path / f"f{number}"
            file.write_bytes(bytes([number]) * 500_000)
            (tmp_path / f"b{number}").mkdir()
            assert adb.get(adb.put(file), tmp_path / f"b{number}").read_bytes() == bytes([number]) * 500_000
            sampler.stop()
            return texts, rest(sampler)

    with ExitStack() as stack:
        four = stack.enter_context(ThreadPoolExecutor(4))  # left last: a phone that is gone ends who waits for it
        phones = [stack.enter_context(Phone(profile)) for profile in ("pixel6", "pixel8", "sm8650", "sm8250-ma")]
        heard = list(four.map(use, range(4), [phone.address for phone in phones], timeout=200))
    for number, (texts, said) in enumerate(heard):
        whole(said)
        assert len(texts) == 1 and texts.pop().endswith(f"\n{number}\n")
