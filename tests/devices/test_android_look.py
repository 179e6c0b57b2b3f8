"""A phone looked at: in one round trip, by its own shell, and nothing that it says can be taken for something else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgewatt.devices.android import look as looking
from edgewatt.devices.android.look import LONGEST_TEXT, look, parsed
from edgewatt.devices.android.transport import Adb
from edgewatt.harness.api import HarnessError, TransientError, UsageError
from support.android_lab import Phone, real_adbd
from support.recorded_phone import Done


class Local:
    """A shell of this machine in place of the phone's; `most` bytes of script and words at a time."""

    def __init__(self, name: str, most: int = 1 << 20) -> None:
        if shutil.which(name) is None:
            pytest.skip(f"no {name}")
        self.name, self.most, self.asked = name, most, 0

    def __call__(self, script: str, *words: str, timeout_s: float = 30.0) -> Done:
        if len(script) + sum(map(len, words)) > self.most:
            raise HarnessError("a script too long for the phone")
        self.asked += 1
        done = subprocess.run([self.name, "-c", script, "sh", *words], capture_output=True, timeout=60, check=False)
        return Done(done.returncode, done.stdout, done.stderr.decode())


@pytest.fixture(params=["mksh", "dash", "bash"])
def shell(request: pytest.FixtureRequest) -> Local:
    return Local(request.param)


def test_files_are_read_as_they_are(shell: Local, tmp_path: Path) -> None:
    texts = {
        "plain": "1803000",
        "a b": "two words",
        "quotes": 'it\'s "so" $(id) `id` \\n %s *',
        "lines": "t=349894\n  CH0(T=1)[S10M], 5\n\n-n last",
        "control": "\x1b[31mred\x1b[0m\x07",
        "empty": "",
        "dash": "-e x",
        "utf8": "°C",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(f"{text}\n", "utf-8")
    seen = look(shell, [f"{tmp_path}/*", f"{tmp_path}/absent", f"{tmp_path}/*/none"], {})
    assert {p.removeprefix(f"{tmp_path}/"): f["text"] for p, f in seen.files.items()} == texts
    assert seen.problem(f"{tmp_path}/absent") == f"{tmp_path}/absent is not there"
    assert shell.asked == 1


def test_what_cannot_be_read_is_told(shell: Local, tmp_path: Path) -> None:
    (tmp_path / "huge").write_text("z" * (LONGEST_TEXT + 1))
    (tmp_path / "whole").write_text("z" * LONGEST_TEXT)
    (tmp_path / "folder").mkdir()
    seen = look(shell, [f"{tmp_path}/*", "/proc/self/mem", "/dev/null"], {})
    assert seen.files[f"{tmp_path}/huge"] == {"error": "longer than 16 KiB"}
    assert seen.files[f"{tmp_path}/whole"] == {"text": "z" * LONGEST_TEXT}
    assert seen.files["/proc/self/mem"] == {"error": "Input/output error"}
    assert seen.files["/dev/null"] == {"error": "not a plain file"}
    assert f"{tmp_path}/folder" not in seen.files


def test_tools_answer_with_status_and_errors(shell: Local) -> None:
    tools = {
        "well": ["printf", "%s|", "a b", "$x", "'"],
        "ill": ["sh", "-c", "echo out; echo 'no such thing' >&2; exit 3"],
        "absent": ["no-such-program-here"],
        "input": ["cat"],
    }
    seen = look(shell, [], tools)
    assert seen.answer("well") == "a b|$x|'|"
    assert seen.tools["ill"] == {"status": 3, "out": "out\n", "err": "no such thing\n"}
    assert seen.tools["absent"] == {"status": None, "out": "", "err": "not found"}
    assert seen.answer("input") == ""


def test_a_tool_that_goes_on_for_ever_is_cut(shell: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "TOOL_S", 1)
    seen = look(shell, [], {"long": ["sleep", "30"], "loud": ["yes"], "last": ["echo", "here"]})
    assert seen.answer("long") is None and seen.answer("loud") is None
    assert len(seen.tools["loud"]["out"]) == looking.LONGEST_ANSWER
    assert seen.answer("last") == "here\n"


def test_a_file_cannot_pretend_to_be_another(tmp_path: Path) -> None:
    word = "0" * 32
    said = f"{word} file /a{word}1\nx {'1' * 32} file /etc/passwd{'1' * 32}root\n{word} end {word}".encode()
    files, _ = parsed(said, word)
    assert list(files) == ["/a"] and "root" in files["/a"]["text"]


def test_an_answer_cut_short_may_be_asked_for_again() -> None:
    word = "0" * 32
    for said in (b"", f"{word} file /a{word}12".encode(), f"{word} file /a{word}12{word} en".encode()):
        with pytest.raises(TransientError, match="cut short"):
            parsed(said, word)


def test_no_shell_that_can_do_this_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="syntax error") as refused:
        parsed(b"", "0" * 32, "sh: syntax error: unexpected word\nmore\n")
    assert "\n" not in str(refused.value)


def test_an_adb_that_takes_4_kib_is_asked_in_parts(tmp_path: Path) -> None:
    shell = Local("dash", most=4000)
    for k in range(60):
        (tmp_path / f"a-file-with-a-rather-long-name-{k}").write_text(str(k))
    patterns = [f"{tmp_path}/a-file-with-a-rather-long-name-{k}" for k in range(60)]
    seen = look(shell, patterns, {"one": ["echo", "1"], "two": ["echo", "2"]})
    assert [seen.number(p) for p in patterns] == list(range(60))
    assert (seen.answer("one"), seen.answer("two")) == ("1\n", "2\n")
    assert shell.asked > 1


def test_more_files_than_the_limit_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "MOST_FILES", 3)
    for k in range(9):
        (tmp_path / str(k)).write_text("1")
    seen = look(Local("dash"), [f"{tmp_path}/*"], {"last": ["echo", "here"]})
    assert len(seen.files) == 3 and seen.answer("last") == "here\n"


@pytest.mark.needs_android_lab
@pytest.mark.parametrize("proto", ["modern", "legacy"])
def test_an_emulated_phone_is_seen_as_shell_sees_it(proto: str, tmp_path: Path) -> None:
    with Phone("pixel6", proto=proto) as phone:
        adb = Adb(phone.address, key=tmp_path / "adbkey")
        try:
            seen = look(adb.shell, ["/sys/class/thermal/thermal_zone*/type", "/sys/bus/iio/devices/*/energy_value"], {})
        finally:
            adb.close()
    assert [seen.text(p) for p in seen.paths("/sys/class/thermal/thermal_zone*/type")][:3] == ["BIG", "MID", "LITTLE"]
    energies = seen.paths("/sys/bus/iio/devices/*/energy_value")
    assert len(energies) == 2 and all(seen.files[p] == {"error": "Permission denied"} for p in energies)
    assert not seen.is_root and "readproc" in seen.groups
    assert seen.free_bytes and seen.free_bytes > 1 << 20


@pytest.mark.needs_realadbd
def test_a_plain_system_behind_a_real_adb_daemon_is_seen(tmp_path: Path) -> None:
    with real_adbd() as address:
        adb = Adb(address, key=tmp_path / "adbkey")
        try:
            seen = look(adb.shell, ["/proc/version", "/proc/meminfo"], {"getprop": ["getprop"], "m": ["uname", "-m"]})
        finally:
            adb.close()
    assert (seen.text("/proc/version") or "").startswith("Linux version ")
    assert seen.answer("getprop") is None and seen.tools["getprop"]["err"] == "not found"
    assert seen.answer("m") == f"{subprocess.check_output(['uname', '-m'], text=True)}"
