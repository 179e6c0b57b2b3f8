"""The host device: its options, its meters together, its gates, and its conformance to the contract."""

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgewatt.devices import sysfs
from edgewatt.devices.host import Host
from edgewatt.harness import conformance
from edgewatt.harness.api import UsageError
from support.sysfs_tree import Tree, Wave


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else computes here, and the made tree is taken for a real one."""
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 3.0)
    monkeypatch.setattr("edgewatt.devices.sysfs.is_real", lambda _: True)


def gates(root: Path) -> dict[str, str]:
    return {f.flag: f.detail for f in Host(sysfs=str(root)).health()}


def test_keeps_the_contract_of_a_device(tmp_path: Path) -> None:
    conformance.check_device(Host.from_config("host", "", {}), tmp_path)


def test_meters_of_a_laptop_keep_the_contract_of_a_meter(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([Wave("constant", 10)], parts={"core": 0.5}, platform=Wave("constant", 20))
    tree.supply("BAT0", type="Battery", status="Discharging", power_now=20_000_000)
    tree.hwmon(0, "amdgpu", {"power1_average": 5_000_000})
    with tree.live(), Host(sysfs=str(tmp_path)) as host:
        meters = {m.name: m for m in host.meters()}
        assert sorted(meters) == ["battery-BAT0", "health", "hwmon-amdgpu", "rapl"]
        for name in ("rapl", "hwmon-amdgpu"):
            conformance.check_meter(meters[name], seconds=0.2)
        for name in ("battery-BAT0", "health"):
            conformance.check_meter(meters[name], seconds=0.7)


def test_host_without_a_sensor_says_why_and_has_no_energy_meter(tmp_path: Path) -> None:
    Tree(tmp_path)
    host = Host(sysfs=str(tmp_path))
    assert not [c for m in host.meters() for c in m.channels if c.is_energy]
    said = host.why_absent()
    assert {"rapl", "hwmon", "battery", "nvml", "health"} <= set(said)
    assert said["rapl"]
    assert said["hwmon"]


def test_rate_reaches_every_meter_that_can_follow_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.hwmon(0, "amdgpu", {"power1_average": 5_000_000})
    host = Host.from_config("x", "", {"sysfs": str(tmp_path), "rate_hz": 500})
    periods = {m.name: m.period_s for m in host.meters()}
    assert periods == {"hwmon-amdgpu": pytest.approx(1 / 500), "health": pytest.approx(0.25)}


@pytest.mark.parametrize(
    ("address", "options", "words"),
    [
        ("10.0.0.1", {}, "no address"),
        ("", {"sysf": "/sys"}, "did you mean sysfs?"),
        ("", {"sysfs": "/no/such/folder"}, "/no/such/folder"),
        ("", {"sysfs": 3}, "wanted a folder"),
        ("", {"rate_hz": 0}, "0.1 to 2000"),
        ("", {"rate_hz": "fast"}, "'fast'"),
        ("", {"rate_hz": True}, "True"),
        ("", {"rate_hz": float("nan")}, "nan"),
    ],
)
def test_wrong_options_get_one_clear_line(address: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as told:
        Host.from_config("bench", address, options)
    assert words in str(told.value)
    assert str(told.value).startswith("bench: ")
    assert "\n" not in str(told.value)


def test_description_is_plain_json_and_names_nobody(tmp_path: Path) -> None:
    import getpass
    import platform
    import re

    text = json.dumps(Host().describe(), allow_nan=False)
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    secrets = [platform.node(), getpass.getuser()]
    secrets += [boot_id.read_text().strip()] if boot_id.exists() else []
    assert not [s for s in secrets if re.search(rf"\b{re.escape(s)}\b", text)]


def test_quiet_cool_machine_has_nothing_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    tree = Tree(tmp_path)
    tree.processors(2)
    tree.hwmon(0, "coretemp", {"temp1_input": 45_000, "temp1_crit": 100_000})
    tree.supply("BAT0", type="Battery", status="Discharging", power_now=5_000_000)
    assert gates(tmp_path) == {}


def test_made_tree_is_flagged_as_simulated_and_a_mounted_sysfs_is_not(tmp_path: Path) -> None:
    Tree(tmp_path)
    assert str(tmp_path) in gates(tmp_path)["simulated"]
    mounts = f"sysfs {tmp_path}/sys sysfs ro 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\ntmpfs {tmp_path}/sys/fs tmpfs rw 0 0\n"
    assert sysfs.is_real(tmp_path / "sys" / "class", mounts)
    assert not sysfs.is_real(tmp_path / "sys" / "fs" / "cgroup", mounts)
    assert not sysfs.is_real(tmp_path, mounts)


def test_charging_is_flagged_with_its_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    Tree(tmp_path).supply("BAT0", type="Battery", status="Charging", power_now=31_500_000)
    assert "31.5 W" in gates(tmp_path)["charging"]


def test_others_at_work_are_flagged_with_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tree(tmp_path)
    monkeypatch.setattr(os, "getloadavg", lambda: (7.25, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 61.0)
    assert "61% of 4 processors" in gates(tmp_path)["busy"]
    assert "load average 7.25" in gates(tmp_path)["busy"]


def test_temperature_near_critical_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    Tree(tmp_path).hwmon(0, "coretemp", {"temp1_input": 94_000, "temp1_crit": 100_000})
    assert "94 degC before the run, critical is 100" in gates(tmp_path)["hot"]


def test_powersave_pins_the_clock_except_under_pstate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    Tree(tmp_path / "a").processors(2, governor="powersave", driver="acpi-cpufreq")
    Tree(tmp_path / "b").processors(2, governor="powersave", driver="intel_pstate")
    Tree(tmp_path / "c").processors(2, governor="powersave", driver="amd-pstate-epp")
    assert "0.80 GHz of 3.60 GHz" in gates(tmp_path / "a")["slow_clocks"]
    assert gates(tmp_path / "b") == {}
    assert gates(tmp_path / "c") == {}


def test_limited_clock_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    tree = Tree(tmp_path)
    tree.processors(1)
    tree.write("devices/system/cpu/cpufreq/policy0/scaling_max_freq", 1_800_000)
    assert "1.80 GHz of 3.60 GHz" in gates(tmp_path)["slow_clocks"]


def test_slowdowns_long_ago_are_no_flag_but_one_now_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    tree = Tree(tmp_path)
    tree.processors(2)
    count = tree.write("devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", 40)
    assert gates(tmp_path) == {}
    monkeypatch.setattr("edgewatt.devices.host.time.sleep", lambda _: count.write_text("43\n"))
    assert "went up by 3" in gates(tmp_path)["throttled"]


def test_unknown_control_is_refused_before_anything_is_set(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.processors(2)
    with pytest.raises(UsageError, match="no control 'nvpmodel'; known: governor"):
        Host(sysfs=str(tmp_path)).controls({"governor": "performance", "nvpmodel": 2})
    with Host(sysfs=str(tmp_path)).controls({}) as read_back:
        assert read_back == {}
