"""The machine's condition on made trees: temperature, clocks, slowdowns; and their absence."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edgewatt.devices import health
from edgewatt.devices.health import Health
from edgewatt.devices.host import Host
from edgewatt.devices.thermometers import celsius, thermometers
from support.sysfs_tree import Tree


def read(root: Path) -> dict[str, float | None]:
    (meter,) = Health.found_on(Host(sysfs=str(root)))
    columns, reading = health.source({"sysfs": str(root), "columns": [c.name for c in meter.channels]})
    return dict(zip(columns, reading(), strict=True))


def test_machine_without_sensors_has_load_and_memory_only_and_says_so(tmp_path: Path) -> None:
    Tree(tmp_path)
    values = read(tmp_path)
    assert set(values) == {"utilisation", "memory"}
    assert 0 <= (values["utilisation"] or 0) <= 1
    assert 0 < (values["memory"] or 0) < psutil.virtual_memory().total
    said = Health.problems(Host(sysfs=str(tmp_path)))
    assert len(said) == 2
    assert all("virtual machine" in s for s in said)


def test_clocks_are_hertz_one_for_each_core(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.processors(4, khz=3_000_000)  # two cores of two threads
    tree.write("devices/system/cpu/cpufreq/policy2/scaling_cur_freq", 1_000_000)
    assert {k: v for k, v in read(tmp_path).items() if k.startswith("cpu")} == {"cpu0": 3e9, "cpu2": 1e9}


def test_cores_of_two_sockets_with_equal_numbers_are_two(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.processors(2)
    tree.write("devices/system/cpu/cpu1/topology/physical_package_id", 1)
    assert {"cpu0", "cpu1"} <= set(read(tmp_path))


def test_machine_with_very_many_cores_tells_its_fastest(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.processors(80, khz=2_000_000)
    tree.write("devices/system/cpu/cpufreq/policy70/scaling_cur_freq", 3_500_000)
    values = read(tmp_path)
    assert values["fastest cpu"] == 3.5e9
    assert "cpu0" not in values


def clocks(monkeypatch: pytest.MonkeyPatch, cpu_freq: Callable[[], object]) -> list[tuple[str, float | None]]:
    """What is made of psutil's clock on a real machine whose /sys has none."""
    monkeypatch.setattr(health, "frequency_files", lambda root: {})
    monkeypatch.setattr("edgewatt.devices.host_facts.virtual", lambda *roots: False)
    monkeypatch.setattr(psutil, "cpu_freq", cpu_freq, raising=False)
    return [(channel.name, read()) for channel, read in health._clocks(Path("/sys"))]


def test_clock_of_proc_cpuinfo_stands_in_where_there_is_no_cpufreq(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clocks(monkeypatch, lambda: SimpleNamespace(current=1510.4)) == [("cpu", 1510.4e6)]


@pytest.mark.parametrize(
    "error",
    [AttributeError("None has no 'current'"), ValueError("''"), FileNotFoundError("/sys")],
)
def test_clock_that_psutil_fails_on_is_absent(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing() -> None:
        raise error

    assert clocks(monkeypatch, failing) == []


@pytest.mark.parametrize("told", [None, SimpleNamespace(current=0.0), SimpleNamespace(current=None)])
def test_clock_that_psutil_does_not_know_is_absent(monkeypatch: pytest.MonkeyPatch, told: object) -> None:
    assert clocks(monkeypatch, lambda: told) == []


def test_psutil_without_clocks_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "cpu_freq", raising=False)
    assert health._mean_hz() is None


def test_slowdowns_are_counted_once_per_core_and_once_per_package(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.processors(4)  # two cores of two threads
    for cpu in range(4):
        tree.write(f"devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count", 5 if cpu < 2 else 7)
        tree.write(f"devices/system/cpu/cpu{cpu}/thermal_throttle/package_throttle_count", 3)
    values = read(tmp_path)
    assert values["core_throttle_count"] == 12
    assert values["package_throttle_count"] == 3


def test_temperature_is_the_packages_not_every_cores(tmp_path: Path) -> None:
    files = {"temp1_input": 51_000, "temp1_label": "Package id 0", "temp2_input": 48_000, "temp2_label": "Core 0"}
    Tree(tmp_path).hwmon(2, "coretemp", files)
    assert read(tmp_path)["coretemp/Package id 0"] == 51.0
    assert "coretemp/Core 0" not in read(tmp_path)


def test_processors_temperature_comes_first(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.hwmon(0, "nvme", {"temp1_input": 38_850, "temp1_label": "Composite"})
    tree.hwmon(
        1, "k10temp", {"temp3_input": 45_000, "temp3_label": "Tccd1", "temp1_input": 47_250, "temp1_label": "Tctl"}
    )
    names = [t.name for t in thermometers(tmp_path)]
    assert names == ["k10temp/Tctl", "k10temp/Tccd1", "nvme/Composite"]
    assert health.steady_nodes(tmp_path) == [
        {
            "name": "k10temp/Tctl",
            "path": str(tmp_path / "class/hwmon/hwmon1/temp1_input"),
            "scale": 0.001,
            "tolerance": 1.0,
        }
    ]


def test_two_disks_of_one_driver_have_two_names(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for n in (0, 1):
        tree.hwmon(n, "nvme", {"temp1_input": 40_000 + n, "temp1_label": "Composite"})
    assert [t.name for t in thermometers(tmp_path)] == ["nvme/Composite", "nvme/Composite #2"]


def test_thermal_zones_stand_in_where_no_chip_has_a_temperature(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.write("class/thermal/thermal_zone0/type", "cpu-thermal")
    tree.write("class/thermal/thermal_zone0/temp", 55_500)
    tree.write("class/thermal/thermal_zone0/trip_point_1_type", "critical")
    tree.write("class/thermal/thermal_zone0/trip_point_1_temp", 110_000)
    (zone,) = thermometers(tmp_path)
    assert (zone.name, zone.celsius(), zone.critical_c) == ("cpu-thermal", 55.5, 110.0)


@pytest.mark.parametrize("code", [0, -256_000, -5_700_000, 131_000, None])
def test_codes_for_no_temperature_are_missing(code: int | None) -> None:
    assert celsius(code) is None


def test_sensor_that_vanishes_is_a_gap(tmp_path: Path) -> None:
    chip = Tree(tmp_path).hwmon(0, "coretemp", {"temp1_input": 50_000})
    _, reading = health.source({"sysfs": str(tmp_path), "columns": ["coretemp/temp1", "no such"]})
    assert reading() == [50.0, None]
    (chip / "temp1_input").unlink()
    assert reading() == [None, None]


def test_a_living_machine_tells_its_own_condition() -> None:
    """Whatever this machine is: real /sys, no made tree."""
    with Host() as host:
        (meter,) = Health.found_on(host)
        columns, reading = health.source({"sysfs": "/sys", "columns": [c.name for c in meter.channels]})
        values = dict(zip(columns, reading(), strict=True))
    assert 0 <= (values["utilisation"] or 0) <= 1
    assert 0 < (values["memory"] or 0) < psutil.virtual_memory().total
