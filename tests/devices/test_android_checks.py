"""What `edgewatt doctor` says of a phone: each check with what was found, and the next step where it is not well."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgewatt.devices.android import checks, conditions, facts, health
from edgewatt.devices.android.device import Android
from edgewatt.devices.android.transport import Adb
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import Channel, Check
from support.android_lab import PROFILES, Phone, real_adbd
from support.fake_phone import properties, tool
from support.recorded_phone import Done

NAMES = [
    "adb", "settings", "agent", "power sensor", "root", "battery", "charging", "thermal status", "thermal head-room",
    "screen", "room",
]  # fmt: skip
BATTERY = "Current Battery Service state:\n  USB powered: false\n  status: 3\n  level: 67\n"
THERMAL = (
    "IsStatusOverride: false\nThermal Status: 0\nCurrent temperatures from HAL:\n"
    "\tTemperature{mValue=33.0, mType=3, mName=SKIN, mStatus=0}\nTemperature static thresholds from HAL:\n"
    "\tTemperatureThreshold{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, 39.0, 41.0, 43.0]}\n"
)


@pytest.fixture(autouse=True)
def _own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def phone(free_bytes: int | None = 20 << 30, is_root: bool = True, **answers: str) -> Any:
    """A phone on which all is well, but for what is given."""
    told = {"battery": BATTERY, "thermal": THERMAL, "power": "  mWakefulness=Asleep\n", **answers}
    tools = {
        facts.PROPERTIES: tool(properties(ro__build__type=answers.get("build", "user"))),
        facts.BATTERY: tool(told["battery"]),
        health.THERMAL: tool(told["thermal"]),
        conditions.POWER: tool(told["power"]),
    }
    seen = Snapshot({}, {}, tools, free_bytes, is_root)
    rails = Channel("rails", "energy", "J", "counter", "8 rails of the processor", "rails")
    return SimpleNamespace(
        name="phone", address="192.0.2.7:5555", kind="android", options={}, seen=seen, look=lambda: seen,
        shell=lambda *_, **__: Done(), is_usb=False, transport=SimpleNamespace(features={"shell_v2"}),
        agent_kind="native", hello={"engines": ["onnxruntime"]}, abi="arm64-v8a", why_shell="",
        meters=lambda: [SimpleNamespace(name="odpm", channels=(rails,))],
    )  # fmt: skip


def found(device: Any) -> dict[str, Check]:
    told = list(checks.of(device))
    assert all(c.detail and "\n" not in c.detail for c in told)
    return {c.name: c for c in told}


def test_a_phone_that_is_well_is_told_so_in_every_check() -> None:
    told = found(phone())
    assert list(told) == NAMES
    assert {name for name, c in told.items() if c.is_well is not True} == set()
    assert told["power sensor"].detail == "odpm (8 rails of the processor; boundary rails)"
    assert told["thermal head-room"].detail == "SKIN is at 33 degC, 10 K below where it slows down"


@pytest.mark.parametrize(
    "name, changed, step",
    [
        ("battery", {"battery": BATTERY.replace("67", "12")}, "charge it to 20 % or more"),
        ("battery", {"battery": BATTERY.replace(":\n", ":\n  (UPDATES STOPPED)\n", 1)}, "dumpsys battery reset"),
        ("charging", {"battery": BATTERY.replace("false", "true")}, "--tcpip"),
        ("thermal status", {"thermal": THERMAL.replace("Status: 0", "Status: 1")}, "let the phone cool"),
        ("thermal status", {"thermal": THERMAL.replace("Override: false", "Override: true")}, "thermalservice reset"),
        ("thermal head-room", {"thermal": THERMAL.replace("=33.0", "=38.0")}, "let it cool"),
        ("screen", {"power": "  mWakefulness=Awake\n"}, "--set controls.screen=off"),
        ("room", {"free_bytes": 1 << 20}, "free some"),
    ],
)
def test_what_is_not_well_ends_with_the_next_step(name: str, changed: dict[str, Any], step: str) -> None:
    told = found(phone(**changed))[name]
    assert told.is_well is False and step in told.detail


def test_an_agent_that_is_not_there_or_runs_no_models_is_told_with_the_command_that_builds_it() -> None:
    device = phone()
    device.agent_kind, device.why_shell = "", "none was built for arm64-v8a: edgewatt agent build --abi arm64-v8a"
    assert found(device)["agent"].is_well is False
    assert "edgewatt agent build --abi arm64-v8a" in found(device)["agent"].detail
    device.agent_kind, device.hello = "native", {"engines": []}
    assert found(device)["agent"].is_well is False
    assert "runs no models; edgewatt agent build --abi arm64-v8a with the NDK" in found(device)["agent"].detail


def test_no_power_sensor_is_told_with_what_could_be_done() -> None:
    device = phone()
    device.meters = lambda: []
    assert "no joules" in found(device)["power sensor"].detail and found(device)["power sensor"].is_well is False


def test_root_that_may_be_had_is_told_with_the_option() -> None:
    assert "root = true" in found(phone(is_root=False, build="userdebug"))["root"].detail
    assert "not available" in found(phone(is_root=False))["root"].detail


def test_a_slow_link_is_told_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(0.2 * k for k in range(100))
    monkeypatch.setattr(checks.time, "monotonic", lambda: next(clock))
    told = found(phone())["adb"]
    assert told.is_well is False and told.detail.startswith("200 ms there and back (network), slow")


@pytest.mark.needs_android_lab
@pytest.mark.parametrize("profile", [PROFILES[0], PROFILES[-1]])
def test_an_emulated_phone_is_looked_at_whole(profile: str) -> None:
    with (
        Phone(profile, proto="legacy") as lab,
        Android.from_config("phone", lab.address, {"agent": "shell"}) as device,
    ):
        told = found(device)
    assert list(told) == NAMES
    assert told["agent"].is_well is None and told["screen"].is_well is None
    assert told["battery"].is_well is True and told["thermal status"].is_well is True
    assert "no exit codes" in told["adb"].detail


@pytest.mark.needs_realadbd
def test_a_real_adb_daemon_without_android_is_looked_at_whole() -> None:
    with real_adbd() as address, Android.from_config("phone", address, {"agent": "shell"}) as device:
        assert isinstance(device.transport, Adb)
        told = found(device)
        raised = {f.flag for f in device.health()}
    assert told["power sensor"].is_well is False and told["battery"].is_well is None
    assert told["thermal status"].is_well is None and told["root"].detail
    assert told["room"].is_well is not None and raised <= {"busy", "simulated"}
