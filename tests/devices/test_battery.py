"""The battery's gauge on made trees: its sign, its units, and when it is no measure."""

import time
from pathlib import Path

import pytest

from edgewatt.devices import battery
from edgewatt.devices.battery import Battery
from edgewatt.devices.host import Host
from support.sysfs_tree import Tree


def read(folder: Path) -> dict[str, float | None]:
    columns, reading = battery.source({"folder": str(folder)})
    return dict(zip(columns, reading(), strict=True))


def laptop(root: Path, **files: object) -> Path:
    return Tree(root).supply("BAT0", **{"type": "Battery", "present": 1, "status": "Discharging", **files})


def said(root: Path) -> list[str]:
    host = Host(sysfs=str(root))
    assert not Battery.found_on(host)
    return list(Battery.problems(host))


@pytest.mark.parametrize("power_now", [12_340_000, -12_340_000])
def test_discharging_is_positive_whatever_sign_the_driver_uses(tmp_path: Path, power_now: int) -> None:
    folder = laptop(tmp_path, power_now=power_now, voltage_now=11_400_000)
    assert read(folder) == {"power": pytest.approx(12.34), "charging": 0.0, "voltage": pytest.approx(11.4)}


def test_charging_is_negative_and_told(tmp_path: Path) -> None:
    folder = laptop(tmp_path, status="Charging", power_now=20_000_000, voltage_now=12_000_000)
    assert read(folder) == {"power": -20.0, "charging": 1.0, "voltage": 12.0}


def test_power_is_voltage_times_current_where_no_power_is_told(tmp_path: Path) -> None:
    folder = laptop(tmp_path, current_now=-1_469_687, voltage_now=3_999_000)
    assert read(folder)["power"] == pytest.approx(1.469687 * 3.999, rel=1e-6)


def test_full_battery_tells_no_power_and_that_something_else_feeds_the_machine(tmp_path: Path) -> None:
    folder = laptop(tmp_path, status="Full", power_now=0, voltage_now=12_000_000)
    assert read(folder) == {"power": None, "charging": 1.0, "voltage": 12.0}
    assert "unplug the charger" in said(tmp_path)[0]


def test_adapter_on_line_is_external_power_even_if_the_battery_discharges(tmp_path: Path) -> None:
    folder = laptop(tmp_path, power_now=5_000_000)
    Tree(tmp_path).supply("AC", type="Mains", online=1)
    assert read(folder)["charging"] == 1.0


def test_unknown_status_is_a_gap_not_a_guess(tmp_path: Path) -> None:
    folder = laptop(tmp_path, status="Unknown", power_now=5_000_000)
    assert read(folder) == {"power": None, "charging": None, "voltage": None}


def test_battery_without_current_says_why_it_is_no_meter(tmp_path: Path) -> None:
    laptop(tmp_path, voltage_now=11_400_000, capacity=80)
    assert "current_now cannot be read" in said(tmp_path)[0]


def test_milliamperes_passed_off_as_microamperes_are_refused(tmp_path: Path) -> None:
    laptop(tmp_path, current_now=420, voltage_now=3_900_000)
    assert "is it in milliamperes?" in said(tmp_path)[0]


@pytest.mark.parametrize("content", ["", "garbage", "12.5 W"])
def test_garbage_is_no_meter(tmp_path: Path, content: str) -> None:
    laptop(tmp_path, power_now=content)
    assert "left out" in said(tmp_path)[0]


def test_mouse_and_empty_bay_are_not_the_machines_batteries(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging", power_now=100_000)
    tree.supply("BAT1", type="Battery", present=0, status="Unknown")
    host = Host(sysfs=str(tmp_path))
    assert not Battery.found_on(host)
    assert not Battery.problems(host)


def test_every_battery_is_a_meter_of_its_own_and_is_asked_rarely(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for name in ("BAT0", "BAT1"):
        tree.supply(name, type="Battery", status="Discharging", power_now=6_000_000)
    meters = Battery.found_on(Host(sysfs=str(tmp_path)))
    assert [m.name for m in meters] == ["battery-BAT0", "battery-BAT1"]
    assert {c.boundary for m in meters for c in m.channels if c.is_energy} == {"battery"}
    assert all(m.period_s >= 0.2 for m in meters)


def test_agent_samples_the_status_beside_the_power(tmp_path: Path) -> None:
    folder = laptop(tmp_path, power_now=8_000_000, voltage_now=11_000_000)
    with Host(sysfs=str(tmp_path)) as host:
        (meter,) = Battery.found_on(host)
        meter.start()
        (folder / "status").write_text("Charging\n")
        time.sleep(0.5)
        trace = meter.stop()
    assert list(trace.values[0]) == [8.0, 0.0, 11.0]
    assert list(trace.values[-1]) == [-8.0, 1.0, 11.0]
