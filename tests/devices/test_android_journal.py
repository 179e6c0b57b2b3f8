"""The journal of what is set on a phone: written before, gone after, and what a killed harness left is put back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgewatt.devices.android import checks, journal
from edgewatt.devices.android.controls import held
from edgewatt.devices.android.device import Android
from edgewatt.devices.android.journal import Held
from edgewatt.devices.android.knobs import Node, Screen, Setting
from edgewatt.harness.api import HarnessError, UsageError
from support.android_lab import Phone
from support.fake_phone import CPUFREQ, SERIAL, FakePhone, clocks, tool

BRIGHTNESS = Setting("system", "screen_brightness")
GOVERNOR = Node(f"{CPUFREQ}/policy0/scaling_governor")
LEFT = [
    Held("brightness", BRIGHTNESS, "120", "5"),
    Held("governor", GOVERNOR, "sched_pixel", "performance"),
    Held("screen", Screen(), "on", "off"),
]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "edgewatt" / "journal"


def left_behind() -> FakePhone:
    """A phone as a harness that was killed left it, with its journal."""
    phone = FakePhone(files=clocks(), is_root=True)
    with journal.taken(phone) as book:  # type: ignore[arg-type]
        book.write(LEFT, journal.boot(phone))  # type: ignore[arg-type]
    phone.settings["system", "screen_brightness"] = "5"
    phone.files[GOVERNOR.path] = "performance"
    phone.is_awake = False
    return phone


def restored(phone: FakePhone) -> dict[str, Any]:
    return journal.restore(phone)  # type: ignore[arg-type]


def pending(phone: FakePhone) -> list[Held]:
    return journal.pending(journal.phone(phone))  # type: ignore[arg-type]


def test_it_is_written_before_anything_is_set_and_gone_at_the_end(state: Path) -> None:
    phone = FakePhone(settings={("system", "screen_brightness"): "120"})
    seen_at_first_put: list[Any] = []

    def look(words: tuple[str, ...]) -> None:
        if "put" in words and not seen_at_first_put:
            (path,) = state.glob("*.json")
            seen_at_first_put.append((json.loads(path.read_text()), path.stat().st_mode & 0o777))

    phone.before_call = look
    with held(phone, {"brightness": 5}):  # type: ignore[arg-type]
        pass
    ((told, mode),) = seen_at_first_put
    assert mode == 0o600 and state.stat().st_mode & 0o777 == 0o700
    assert [h["before"] for h in told["held"]] == [None, "120"] and told["pid"] == os.getpid()
    assert SERIAL not in json.dumps(told)
    assert not list(state.glob("*.json")) and not list(state.glob("*.new"))


def test_nothing_is_set_when_it_cannot_be_written(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.os, "fsync", full)
    phone = FakePhone()
    with pytest.raises(HarnessError, match="No space left on device"), held(phone, {"brightness": 5}):  # type: ignore[arg-type]
        pytest.fail("held without a journal")
    assert phone.settings == {}


def test_what_was_left_is_pending_and_put_back_in_the_reverse_order() -> None:
    phone = left_behind()
    assert pending(phone) == LEFT
    phone.calls.clear()
    assert restored(phone) == {
        "screen": "on", "policy0/scaling_governor": "sched_pixel", "screen_brightness": "120",
    }  # fmt: skip
    assert (phone.is_awake, phone.files[GOVERNOR.path]) == (True, "sched_pixel")
    assert phone.settings["system", "screen_brightness"] == "120"
    assert not pending(phone) and restored(phone) == {}


def test_after_a_restart_only_what_outlives_it_is_put_back() -> None:
    phone = left_behind()
    phone.restart()
    told = restored(phone)
    assert told == {
        "screen": "undone by the phone's restart",
        "policy0/scaling_governor": "undone by the phone's restart",
        "screen_brightness": "120",
    }
    assert phone.settings["system", "screen_brightness"] == "120"


def test_a_shorter_time_up_is_a_restart_even_with_the_same_boot_id() -> None:
    then = journal.Boot("a", 1000.0)
    assert then.is_over(journal.Boot("a", 20.0)) and then.is_over(journal.Boot("b", 2000.0))
    assert not then.is_over(journal.Boot("a", 1000.5)) and not journal.Boot("", 5.0).is_over(journal.Boot("b", 6.0))


def test_what_somebody_set_by_hand_since_is_left() -> None:
    phone = left_behind()
    phone.settings["system", "screen_brightness"] = "200"
    assert restored(phone)["screen_brightness"] == "200, set by somebody else since; left so"
    assert phone.settings["system", "screen_brightness"] == "200" and not pending(phone)


def test_what_cannot_be_put_back_stays(state: Path) -> None:
    phone = left_behind()
    phone.is_root = False
    with pytest.raises(HarnessError, match=r"policy0/scaling_governor \(.*Permission denied"):
        restored(phone)
    assert phone.settings["system", "screen_brightness"] == "120"
    assert pending(phone) == LEFT
    phone.is_root = True
    assert restored(phone)["policy0/scaling_governor"] == "sched_pixel"


def test_the_next_run_puts_back_first_and_says_so() -> None:
    phone = left_behind()
    with held(phone, {"animations": 0}) as read_back:  # type: ignore[arg-type]
        assert phone.settings["system", "screen_brightness"] == "120"
        assert read_back["restored"]["screen_brightness"] == "120"
    assert not pending(phone)


def test_a_run_that_sets_nothing_puts_back_too() -> None:
    phone = left_behind()
    with held(phone, {}) as read_back:  # type: ignore[arg-type]
        assert read_back["restored"]["screen"] == "on"


def test_two_at_once_on_one_phone_are_refused() -> None:
    phone, same = FakePhone(), FakePhone(address="0123456789ABCDEF")  # over the network and over USB
    with (
        held(phone, {"brightness": 5}),  # type: ignore[arg-type]
        pytest.raises(UsageError, match=rf"another edgewatt \(pid {os.getpid()}\) holds"),
        held(same, {"brightness": 6}),  # type: ignore[arg-type]
    ):
        pytest.fail("two held one phone")
    other = FakePhone(tools={"getprop": tool("[ro.serialno]: [OTHER]\n")})
    with held(phone, {"brightness": 5}), held(other, {"brightness": 6}):  # type: ignore[arg-type]
        assert not pending(phone)  # it is held, and not left


@pytest.mark.parametrize("text", ["", "{", '{"form": 9}', '{"form": 1, "held": [{"knob": ["rm", "x"]}]}', "[]"])
def test_a_damaged_journal_is_one_line_with_its_place(state: Path, text: str) -> None:
    phone = left_behind()
    (path,) = state.glob("*.json")
    path.write_text(text)
    with pytest.raises(HarnessError, match=rf"{path}: cannot be read .* then delete it") as refused:
        restored(phone)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------------------------------------------------------
# Emulated phones

HOLD = """
    import sys, time
    from edgewatt.devices.android.device import Android
    with Android.from_config("phone", sys.argv[1], {"agent": "shell"}) as device:
        with device.controls({"brightness": 5, "animations": 0}):
            print("held", flush=True)
            time.sleep(60)
"""


@contextmanager
def killed_in_the_middle(phone: Phone) -> Iterator[Android]:
    """The phone after a harness that held settings there was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), phone.address], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "held\n"
        with Android.from_config("phone", phone.address, {"agent": "shell"}) as device:
            assert not journal.pending(journal.phone(device))  # its holder lives
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            yield device


def brightness(device: Android) -> str:
    return device.shell("settings get system screen_brightness").stdout.decode().strip()


@pytest.mark.needs_android_lab
def test_a_harness_killed_in_the_middle_is_found_and_made_good() -> None:
    with Phone("pixel8") as phone:
        with killed_in_the_middle(phone) as device:
            assert brightness(device) == "5"
            (found,) = [c for c in checks.of(device) if c.name == "settings"]
            assert found.is_well is False and "edgewatt doctor phone --restore" in found.detail
            assert "animations" in found.detail and "brightness" in found.detail
            assert device.restore()["screen_brightness"] == "unset"
            assert brightness(device) == "null"
            (found,) = [c for c in checks.of(device) if c.name == "settings"]
            assert found.is_well is True
        with killed_in_the_middle(phone) as device:
            phone.fault("reboot", "1")
            told = journal.patiently(device.restore)
            assert told["screen_brightness"] == "unset" and brightness(device) == "null"
