"""Settings of a phone: each set, read back and put back; what does not follow is refused and nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgewatt.devices.android import controls, journal
from edgewatt.devices.android.controls import held
from edgewatt.devices.android.device import Android
from edgewatt.devices.android.knobs import Airplane, FixedPerformance, Idle, Screen
from edgewatt.harness.api import HarnessError, TransientError, UsageError
from support.android_lab import PROFILES, Phone
from support.fake_phone import CPUFREQ, FakePhone, clocks
from support.recorded_phone import Done

CHIP = "/sys/bus/iio/devices/iio:device1"
CUT = "/sys/class/power_supply/battery/input_suspend"


@pytest.fixture(autouse=True)
def _own_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # keys
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(journal, "PATIENCE_S", 0.0)


def rooted(**more: Any) -> FakePhone:
    files = {**clocks(), CUT: "0", f"{CHIP}/name": "s2mpg12-odpm", f"{CHIP}/sampling_rate": "125.000000"}
    return FakePhone(files=files, is_root=True, **more)


def state(phone: FakePhone) -> dict[str, Any]:
    """All that a control could have changed."""
    return {
        "settings": dict(phone.settings), "files": dict(phone.files), "awake": phone.is_awake,
        "flying": phone.is_flying, "idle": phone.is_idle,
    }  # fmt: skip


def left(phone: FakePhone) -> list[Any]:
    """What stands in the phone's journal."""
    path = journal.folder() / f"{journal.phone(phone)}.json"  # type: ignore[arg-type]
    return journal.Journal(path, "phone").read()[0]


EACH: dict[str, tuple[Any, Callable[[FakePhone], bool]]] = {
    "screen": ("off", lambda p: p.is_awake is False),
    "brightness": (20, lambda p: p.settings["system", "screen_brightness"] == "20"),
    "stay_awake": (True, lambda p: p.settings["global", "stay_on_while_plugged_in"] == "7"),
    "airplane": ("on", lambda p: p.is_flying),
    "animations": (0, lambda p: p.settings["global", "animator_duration_scale"] == "0"),
    "background": ("limited", lambda p: p.is_idle),
    "fixed_performance": (True, lambda p: p.files[f"{CPUFREQ}/policy0/scaling_max_freq"] == "1197000"),
    "governor": ("performance", lambda p: p.files[f"{CPUFREQ}/policy6/scaling_governor"] == "performance"),
    "frequency": ("max", lambda p: p.files[f"{CPUFREQ}/policy6/scaling_min_freq"] == "2802000"),
    "charging": ("off", lambda p: p.files[CUT] == "1"),
    "odpm_rate_hz": (1000, lambda p: p.files[f"{CHIP}/sampling_rate"] == "1000"),
}


def test_every_control_is_tested_here() -> None:
    assert set(EACH) == set(controls.NAMES)


@pytest.mark.parametrize("control", EACH)
def test_a_control_holds_inside_and_not_after(control: str) -> None:
    phone = rooted(is_usb=True)
    value, holds = EACH[control]
    before = state(phone)
    with held(phone, {control: value}) as read_back:  # type: ignore[arg-type]
        assert holds(phone) and control in read_back
        assert left(phone)
    assert state(phone) == before and not left(phone)
    assert control in read_back["after"] and "not_put_back" not in read_back


@pytest.mark.parametrize("control", EACH)
def test_a_phone_that_ignores_a_control_is_refused(control: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for knob in (Airplane, FixedPerformance, Idle, Screen):
        monkeypatch.setattr(knob, "settles_s", 0.0)
    phone = rooted(is_usb=True, is_deaf=True)
    with pytest.raises(UsageError, match="did not follow") as refused, held(phone, {control: EACH[control][0]}):  # type: ignore[arg-type]
        pytest.fail("held something that was not set")
    assert control in str(refused.value) and "\n" not in str(refused.value)
    assert not left(phone)


def test_all_of_them_at_once_are_put_back_in_the_reverse_order() -> None:
    phone = rooted(is_usb=True, settings={("system", "screen_brightness"): "120"})
    before = state(phone)
    wanted = {c: v for c, (v, _) in EACH.items() if c != "fixed_performance"}
    with held(phone, wanted) as read_back:  # type: ignore[arg-type]
        assert all(holds(phone) for c, (_, holds) in EACH.items() if c in wanted)
        phone.calls.clear()
    assert state(phone) == before
    assert read_back["after"]["brightness"] == {"screen_brightness_mode": None, "screen_brightness": "120"}
    puts = [c for c in phone.calls if c[:2] == ("settings", "put") or c[:1] in (("input",), (CUT,)) or "unforce" in c]
    assert puts[0] == ("cmd", "deviceidle", "unforce") and puts[1] == ("input", "keyevent", "224")
    assert puts[-1] == (CUT, "0")


def test_what_holds_already_is_not_touched_and_told() -> None:
    phone = FakePhone(settings={("system", "screen_brightness"): "20", ("system", "screen_brightness_mode"): "0"})
    with held(phone, {"brightness": 20}) as read_back:  # type: ignore[arg-type]
        assert read_back["brightness"] == {"screen_brightness_mode": "0", "screen_brightness": "20"}
    assert not [c for c in phone.calls if c[:2] == ("settings", "put")]


def test_a_setting_that_was_not_there_is_taken_away_again() -> None:
    phone = FakePhone()
    with held(phone, {"animations": 0}):  # type: ignore[arg-type]
        assert len(phone.settings) == 3
    assert phone.settings == {}


def test_a_mode_that_nobody_can_see_is_turned_off_all_the_same() -> None:
    phone = FakePhone(files={k: "1803000" if "scaling_m" in k else v for k, v in clocks().items()})
    phone.files[f"{CPUFREQ}/policy0/scaling_max_freq"] = "1197000"  # the mode changes nothing that can be read
    with pytest.raises(UsageError, match="did not follow"), held(phone, {"fixed_performance": True}):  # type: ignore[arg-type]
        pytest.fail("held something that cannot be seen")
    assert [c[-1] for c in phone.calls if c[:2] == ("cmd", "power")] == ["true", "false"]


@pytest.mark.parametrize(
    "status, said",
    [
        (
            255,
            "java.lang.SecurityException: Permission denial: writing to settings requires WRITE_SETTINGS\n\tat a.b(C)",
        ),
        (20, "cmd: Can't find service: settings"),
        (
            None,
            "java.lang.SecurityException: Permission denial: writing to settings requires WRITE_SETTINGS\n\tat a.b(C)",
        ),
    ],
)
def test_a_phone_that_lets_nobody_write_says_why(status: int | None, said: str) -> None:
    class Strict(FakePhone):
        def _does(self, *words: str) -> Done:
            return Done(status, b"", said)

    with (
        pytest.raises(UsageError, match="brightness was refused") as refused,
        held(Strict(), {"brightness": 5}),  # type: ignore[arg-type]
    ):
        pytest.fail("held something that was refused")
    assert said.splitlines()[0] in str(refused.value) and "\n" not in str(refused.value)


def test_what_was_set_before_a_refusal_is_put_back() -> None:
    phone = FakePhone(files=clocks(), has_fixed_mode=False)
    with (
        pytest.raises(UsageError, match=r"fixed_performance was refused: .*Failed to set FIXED_PERFORMANCE"),
        held(phone, {"brightness": 20, "fixed_performance": True}),  # type: ignore[arg-type]
    ):
        pytest.fail("held something that was not set")
    assert phone.settings == {} and not left(phone)


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError, TransientError, RuntimeError])
def test_everything_is_put_back_however_a_run_ends(error: type[BaseException]) -> None:
    phone = rooted()
    before = state(phone)
    with pytest.raises(error, match="in the middle"), held(phone, {"frequency": "min", "brightness": 1}):  # type: ignore[arg-type]
        raise error("in the middle")
    assert state(phone) == before and not left(phone)


@pytest.mark.parametrize(
    "wanted, said",
    [
        ({"brightnes": 20}, "did you mean brightness"),
        ({"brightness": 256}, "from 0 to 255"),
        ({"brightness": "half"}, "from 0 to 255"),
        ({"brightness": True}, "from 0 to 255"),
        ({"screen": "dim"}, "on or off"),
        ({"animations": 0.5}, "on or off"),
        ({"background": "none"}, "limited"),
        ({"governor": "perfomance"}, "did you mean performance"),
        ({"frequency": "fast"}, "wanted max, min, hertz"),
        ({"frequency": 1.2e9}, "policy0 has no step of 1.2e+09 Hz; near: 300000000, 1197000000, 1803000000"),
        ({"frequency": "nan"}, "no step of nan"),
        ({"frequency": "3:max"}, "no policy '3'"),
        ({"odpm_rate_hz": 100}, "7.8125, 15.625"),
        ({"odpm_rate_hz": True}, "7.8125, 15.625"),
        ({"airplane": "on"}, "use a cable"),
        ({"fixed_performance": True, "governor": "performance"}, "leave governor and frequency out"),
        ({"fixed_performance": False}, "leave it out"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_set(wanted: Mapping[str, Any], said: str) -> None:
    phone = rooted()
    before = state(phone)
    with pytest.raises(UsageError) as refused, held(phone, {"stay_awake": True, **wanted}):  # type: ignore[arg-type]
        pytest.fail("held something wrong")
    assert said in str(refused.value) and str(refused.value).startswith("phone: ") and "\n" not in str(refused.value)
    assert state(phone) == before and not [c for c in phone.calls if "put" in c]


@pytest.mark.parametrize("control", ["governor", "frequency", "charging", "odpm_rate_hz"])
def test_without_root_the_kernels_files_are_refused_with_the_next_step(control: str) -> None:
    phone = FakePhone(files=clocks())
    with pytest.raises(UsageError, match="needs root on the phone: adb root"), held(phone, {control: EACH[control][0]}):  # type: ignore[arg-type]
        pytest.fail("held something without root")


@pytest.mark.parametrize(
    "control, lacks",
    [
        ("screen", {"is_awake": None}),
        ("charging", {"files": clocks()}),
        ("odpm_rate_hz", {"files": clocks()}),
        ("governor", {"files": {}}),
        ("frequency", {"files": {}}),
        ("fixed_performance", {"files": {}}),
    ],
)
def test_what_a_phone_does_not_have_or_tell_is_refused(control: str, lacks: dict[str, Any]) -> None:
    phone = FakePhone(is_root=True, **lacks)
    with pytest.raises(UsageError, match=control), held(phone, {control: EACH[control][0]}):  # type: ignore[arg-type]
        pytest.fail("held something that is not there")


def test_clusters_can_be_pinned_apart_and_each_end_moves_in_the_order_the_kernel_takes() -> None:
    phone = rooted()
    with held(phone, {"frequency": "0:1.197e9,6:min"}) as read_back:  # type: ignore[arg-type]
        pinned = {p.removeprefix(CPUFREQ): t for p, t in phone.files.items() if "scaling_m" in p}
        assert pinned == {
            "/policy0/scaling_min_freq": "1197000", "/policy0/scaling_max_freq": "1197000",
            "/policy6/scaling_min_freq": "500000", "/policy6/scaling_max_freq": "500000",
        }  # fmt: skip
    writes = [c for c in phone.calls if len(c) == 2 and c[0].startswith(f"{CPUFREQ}/policy0/scaling_m")]
    assert [(c[0].rpartition("/")[2], c[1]) for c in writes] == [
        ("scaling_max_freq", "1197000"), ("scaling_min_freq", "1197000"),
        ("scaling_min_freq", "300000"), ("scaling_max_freq", "1803000"),
    ]  # fmt: skip
    assert read_back["frequency"]["policy6/scaling_max_freq"] == "500000"


def test_a_rate_that_the_chip_prints_with_decimals_is_the_one_that_was_set() -> None:
    phone = rooted()
    with held(phone, {"odpm_rate_hz": "125"}) as read_back:  # type: ignore[arg-type]
        assert read_back["odpm_rate_hz"] == "125.000000"


def test_a_phone_that_is_away_at_the_end_is_an_error_and_stays_in_the_journal() -> None:
    phone = FakePhone()
    with (
        pytest.raises(HarnessError, match="edgewatt doctor phone --restore") as ended,
        held(phone, {"brightness": 5}) as told,
    ):  # type: ignore[arg-type]
        phone.is_away = True
    assert not isinstance(ended.value, UsageError)
    assert set(told["not_put_back"]) == {"screen_brightness", "screen_brightness_mode"}
    phone.is_away = False
    assert len(left(phone)) == 2
    assert journal.restore(phone) == {"screen_brightness": "unset", "screen_brightness_mode": "unset"}  # type: ignore[arg-type]
    assert phone.settings == {}


def test_a_link_lost_in_a_run_stays_the_reason_when_the_end_fails_too() -> None:
    phone = FakePhone()
    with pytest.raises(TransientError, match=r"lost.*could not be put back"), held(phone, {"brightness": 5}):  # type: ignore[arg-type]
        phone.is_away = True
        raise TransientError("the link was lost")


def test_a_restart_in_the_middle_leaves_settings_to_be_put_back_and_files_alone() -> None:
    phone = rooted(settings={("system", "screen_brightness"): "120", ("system", "screen_brightness_mode"): "1"})
    with held(phone, {"brightness": 5, "governor": "performance"}):  # type: ignore[arg-type]
        phone.restart()
        phone.files |= clocks()
        phone.calls.clear()
    assert phone.settings["system", "screen_brightness"] == "120"
    assert not [c for c in phone.calls if len(c) == 2 and "scaling_governor" in c[0] and c[1] == "sched_pixel"]
    assert not left(phone)


def test_nothing_is_asked_of_a_phone_when_nothing_is_wanted() -> None:
    phone = FakePhone()
    with held(phone, {}) as read_back:  # type: ignore[arg-type]
        assert read_back == {}
    assert phone.calls == []


# ---------------------------------------------------------------------------------------------------------------------
# Emulated phones, over the real link


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[Phone], Android]]:
    """Opens a lab phone as a device; all are closed at the end."""
    devices: list[Android] = []

    def open_(phone: Phone) -> Android:
        options = {"agent": "shell"}
        device = Android.from_config("phone", phone.address, options)
        devices.append(device)
        return device

    yield open_
    for device in devices:
        device.close()


SETTINGS = {"brightness": 20, "animations": 0, "stay_awake": "on"}


def setting(device: Android, table: str, key: str) -> str:
    return device.shell('settings get "$1" "$2"', table, key).stdout.decode().strip()


@pytest.mark.needs_android_lab
@pytest.mark.parametrize("profile", PROFILES)
def test_every_control_on_every_phone_holds_or_is_refused(
    profile: str, opened: Callable[[Phone], Android], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FixedPerformance, "settles_s", 0.0)
    with Phone(profile) as phone:
        device = opened(phone)
        device.shell("settings put system screen_brightness 77")
        with held(device, SETTINGS) as read_back:
            assert setting(device, "system", "screen_brightness") == "20"
            assert set(read_back) == set(SETTINGS)
        assert setting(device, "system", "screen_brightness") == "77"
        assert setting(device, "global", "animator_duration_scale") == "null"
        for control in sorted(set(EACH) - set(SETTINGS)):  # the lab has none of them, or ignores what is written
            with pytest.raises(UsageError, match=control), held(device, {control: EACH[control][0]}):
                pytest.fail(f"{control} was held")
        assert not journal.pending(journal.phone(device))


@pytest.mark.needs_android_lab
def test_root_sets_the_rate_of_power_meters_and_is_told_that_clocks_do_not_follow(
    opened: Callable[[Phone], Android],
) -> None:
    with Phone("pixel6", root=True) as phone:
        device = opened(phone)
        rates = "cat /sys/bus/iio/devices/iio:device*/sampling_rate"
        before = device.shell(rates).stdout
        with held(device, {"odpm_rate_hz": 1000}):
            assert device.shell(rates).stdout.split() == [b"1000.000000"] * 2
        assert device.shell(rates).stdout == before
        for wanted in ({"governor": "performance"}, {"frequency": "min"}):
            with pytest.raises(UsageError, match="this phone ignores it"), held(device, wanted):
                pytest.fail("held clocks that do not follow")
        with pytest.raises(UsageError, match="no file that cuts charging"), held(device, {"charging": "off"}):
            pytest.fail("cut charging where there is nothing to cut it")


@pytest.mark.needs_android_lab
def test_settings_are_put_back_after_a_fault_in_the_middle(
    opened: Callable[[Phone], Android], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PATIENCE_S", 40.0)
    with Phone("sm8650") as phone:
        device = opened(phone)
        for fault in (("drop-connection",), ("offline", "3"), ("reboot", "2")):
            with held(device, SETTINGS) as read_back:
                phone.fault(*fault)
            assert setting(device, "system", "screen_brightness") == "null"
            assert setting(device, "global", "window_animation_scale") == "null"
            assert read_back["after"]["brightness"]["screen_brightness"] is None
            assert not journal.pending(journal.phone(device))
