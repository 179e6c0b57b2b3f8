"""hwmon chips on made trees: graphics cards, power supplies, INA chips, and what is none of them."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgewatt.devices.host import Host
from edgewatt.devices.hwmon import Hwmon
from edgewatt.harness import channels as harness_channels
from edgewatt.harness.api import Channel, Meter
from support.sysfs_tree import Tree, Wave
from support.unprivileged import nobody


def found(tree: Tree) -> dict[str, dict[str, Channel]]:
    """Meter -> channel name -> channel, found on a tree while it lives."""
    with tree.live():
        meters = Hwmon.found_on(Host(sysfs=str(tree.root)))
    return {m.name: {c.name: c for c in m.channels} for m in meters}


def problems(tree: Tree) -> Sequence[str]:
    with tree.live():
        return Hwmon.problems(Host(sysfs=str(tree.root)))


def agent_meter(tree: Tree) -> Meter:
    (meter,) = Hwmon.found_on(Host(sysfs=str(tree.root)))
    return meter


def test_amdgpu_average_is_watts_of_the_chip_over_its_interval(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    files = {
        "power1_average": 33_000_000,
        "power1_label": "PPT",
        "power1_average_interval": 1000,
        "power1_cap": 250_000_000,
    }
    tree.hwmon(3, "amdgpu", files)
    channel = found(tree)["hwmon-amdgpu"]["PPT"]
    assert (channel.quantity, channel.unit, channel.kind, channel.boundary) == ("power", "W", "gauge", "package")
    assert channel.averaging_s == 1.0


def test_power_limits_are_not_readings(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.hwmon(0, "amdgpu", {"power1_cap": 250_000_000, "power1_cap_max": 300_000_000, "power1_max": 1})
    assert found(tree) == {}
    assert "none of 1 chips" in problems(tree)[0]


def test_board_reads_microwatts_as_watts(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.hwmon(0, "ina226", {"power1_input": 5_120_000, "power1_label": "VDD_IN"})
    with Host(sysfs=str(tree.root)) as host:
        (meter,) = Hwmon.found_on(host)
        trace = brief(meter)
    assert trace[0] == pytest.approx(5.12)


def brief(meter: Meter) -> Sequence[float]:
    """One sample of every channel of a meter."""
    meter.start()
    time.sleep(0.05)
    values: Sequence[float] = meter.stop().values[0]
    return values


def test_ina226_step_is_25_times_the_current_step(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    files = {"power1_input": 5_000_000, "shunt_resistor": 2000, "update_interval": 35}
    tree.hwmon(0, "ina226", files)
    channel = found(tree)["hwmon-ina226"]["power1"]
    assert channel.quantum == pytest.approx(25 * 2.5e-6 / 0.002)  # data sheet: 31.25 mW at 2 mOhm
    assert channel.averaging_s == pytest.approx(0.035)
    assert channel.boundary == "rails"
    assert channel.gain_error is None  # the shunt's tolerance is not known


def test_slow_chip_is_asked_twice_per_refresh_and_no_more(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.hwmon(0, "ina226", {"power1_input": 5_000_000, "update_interval": 100})
    assert agent_meter(tree).period_s == pytest.approx(0.05)


def test_counter_is_preferred_to_the_power_of_the_same_sensor(tmp_path: Path) -> None:
    """The Intel xe driver: card and package, each as energy and as power."""
    tree = Tree(tmp_path)
    files = {f"{q}{n}_label": label for q in ("energy", "power") for n, label in ((1, "card"), (2, "pkg"))}
    chip = tree.hwmon(
        0,
        "xe",
        files | {"power1_input": 40_000_000, "power2_input": 30_000_000, "energy1_input": 0, "energy2_input": 0},
    )
    tree.feed(chip / "energy1_input", Wave("constant", 40), "counter_uj")
    tree.feed(chip / "energy2_input", Wave("constant", 30), "counter_uj")
    channels = found(tree)["hwmon-xe"]
    assert {n: (c.kind, c.parent) for n, c in channels.items()} == {
        "card": ("counter", None),
        "pkg": ("counter", "card"),
        "card power": ("gauge", "card"),
        "pkg power": ("gauge", "pkg"),
    }
    assert [c.name for c in harness_channels.roots(list(channels.values()))] == ["card"]
    assert (channels["card"].boundary, channels["pkg"].boundary) == ("board", "package")


def test_standing_counter_leaves_the_gauge_as_root(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.hwmon(0, "i915", {"energy1_input": 777, "power1_input": 9_000_000})
    assert {n: c.parent for n, c in found(tree)["hwmon-i915"].items()} == {"power1": None}
    assert "stood still" in problems(tree)[0]


def test_labels_missing_leave_the_files_names(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.hwmon(0, "power_meter", {"power1_average": 180_000_000, "power2_average": 20_000_000})
    assert list(found(tree)["hwmon-power_meter"]) == ["power1", "power2"]


def test_supply_output_lies_within_its_input(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    files = {"power1_input": 120_000_000, "power1_label": "pin", "power2_input": 100_000_000, "power2_label": "pout1"}
    tree.hwmon(0, "pfe1100", files)
    channels = found(tree)["hwmon-pfe1100"]
    assert {n: (c.boundary, c.parent) for n, c in channels.items()} == {
        "pin": ("psu-input", None),
        "pout1": ("psu-output", "pin"),
    }


def test_ina3221_rails_are_volts_times_amperes(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    files = {}
    for n, (name, mv, ma) in enumerate([("VDD_IN", 5064, 1203), ("VDD_CPU", 5056, 421), ("NC", 0, 0)], 1):
        files |= {f"in{n}_label": name, f"in{n}_input": mv, f"curr{n}_input": ma, f"shunt{n}_resistor": 5000}
    files |= {"in7_input": 10_000, "curr4_input": 1624, "in7_label": "sum of shunt voltages"}  # a sum, not a rail
    tree.hwmon(0, "ina3221", files)
    with Host(sysfs=str(tree.root)) as host:
        (meter,) = Hwmon.found_on(host)
        values = dict(zip([c.name for c in meter.channels], brief(meter), strict=True))
    assert values == pytest.approx(
        {
            "VDD_IN voltage": 5.064,
            "VDD_IN current": 1.203,
            "VDD_IN": 5.064 * 1.203,
            "VDD_CPU voltage": 5.056,
            "VDD_CPU current": 0.421,
            "VDD_CPU": 5.056 * 0.421,
        }
    )
    power = {c.name: c for c in meter.channels}["VDD_IN"]
    assert power.quantum == pytest.approx(5.064 * 40e-6 / 0.005)  # 8 mA at 5 mOhm
    assert [c.name for c in harness_channels.roots(meter.channels)] == ["VDD_IN"]


def ina3221(tree: Tree, labels: Sequence[str], number: int = 0) -> None:
    files = {}
    for n, label in enumerate(labels, 1):
        files |= {f"in{n}_label": label, f"in{n}_input": 5000, f"curr{n}_input": 400 * n}
    tree.hwmon(number, "ina3221", files)


@pytest.mark.parametrize("total", ["VDD_IN", "VIN", "POM_5V_IN"])
def test_input_of_a_jetson_module_contains_its_other_rails(tmp_path: Path, total: str) -> None:
    tree = Tree(tmp_path)
    ina3221(tree, ["VDD_CPU_GPU_CV", total, "VDD_SOC"])
    channels = [c for c in found(tree)["hwmon-ina3221"].values() if c.is_energy]
    assert {c.name: c.parent for c in channels} == {"VDD_CPU_GPU_CV": total, total: None, "VDD_SOC": total}
    (whole,) = harness_channels.groups(tuple(channels))
    assert [c.name for c in whole.roots] == [total]


def test_rails_of_a_module_without_an_input_rail_are_added(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    ina3221(tree, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"])
    channels = tuple(c for c in found(tree)["hwmon-ina3221"].values() if c.is_energy)
    assert [c.name for c in harness_channels.roots(channels)] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]


def test_same_label_on_another_chip_is_one_rail_among_others(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    files = {"power1_input": 5_000_000, "power1_label": "VIN", "power2_input": 2_000_000, "power2_label": "VCORE"}
    tree.hwmon(0, "pac1934", files)
    assert {c.parent for c in found(tree)["hwmon-pac1934"].values()} == {None}


def test_voltage_and_current_of_the_same_label_are_multiplied(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    files = {"in1_input": 12_000, "in1_label": "12V", "curr2_input": 3000, "curr2_label": "12V"}
    tree.hwmon(0, "lm25066", files)
    assert "12V" in found(tree)["hwmon-lm25066"]


def test_unlabelled_voltage_and_current_are_not_multiplied(tmp_path: Path) -> None:
    """A Super-I/O chip: in1 is +5V standby, curr1 is something else."""
    tree = Tree(tmp_path)
    tree.hwmon(0, "nct6775", {"in1_input": 5000, "curr1_input": 3000})
    assert found(tree) == {}


def test_battery_shown_as_hwmon_is_left_to_the_battery_meter(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.supply("BAT0", type="Battery")
    tree.supply("ucsi-source-psy-USBC000:001", type="USB")
    tree.hwmon(0, "BAT0", {"in0_input": 11_000, "curr1_input": 1000, "power1_input": 11_000_000})
    tree.hwmon(1, "ucsi_source_psy_USBC000:001", {"power1_input": 15_000_000})
    assert found(tree) == {}


def test_two_cards_of_one_driver_are_two_meters_named_by_address(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for n, address in ((1, "0000:03:00.0"), (4, "0000:43:00.0")):
        chip = tree.hwmon(n, "amdgpu", {"power1_average": 20_000_000})
        (tmp_path / "devices" / address).mkdir(parents=True)
        (chip / "device").symlink_to(tmp_path / "devices" / address)
    assert sorted(found(tree)) == ["hwmon-amdgpu-0000:03:00.0", "hwmon-amdgpu-0000:43:00.0"]


def test_amd_energy_counts_sockets_not_every_core(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    files = {"energy1_label": "Ecore000", "energy2_label": "Ecore001", "energy3_label": "Esocket0"}
    chip = tree.hwmon(0, "amd_energy", files)
    for n in (1, 2, 3):
        tree.write(f"class/hwmon/hwmon0/energy{n}_input", 0)
        tree.feed(chip / f"energy{n}_input", Wave("constant", 20), "counter_uj")
    assert list(found(tree)["hwmon-amd_energy"]) == ["Esocket0"]


@pytest.mark.parametrize("content", ["", "N/A", "-5000000", "3000000000", "1e6"])
def test_nonsense_is_absent_and_said(tmp_path: Path, content: str) -> None:
    tree = Tree(tmp_path)
    tree.hwmon(0, "amdgpu", {"power1_average": content})
    assert found(tree) == {}
    assert "left out" in problems(tree)[0]


def test_chip_that_shows_zero_everywhere_is_absent_but_a_rail_switched_off_is_not(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.hwmon(0, "ina226", {"power1_input": 0})
    tree.hwmon(
        1,
        "ina230",
        {"power1_input": 0, "power1_label": "VDD_GPU", "power2_input": 4_000_000, "power2_label": "VDD_CPU"},
    )
    assert {m: list(c) for m, c in found(tree).items()} == {"hwmon-ina230": ["VDD_GPU", "VDD_CPU"]}
    assert "reads 0 W" in problems(tree)[0]


def test_file_for_root_only_is_absent_and_says_what_to_do(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    chip = tree.hwmon(0, "amd_energy", {"energy1_input": 5, "energy1_label": "Esocket0"})
    counter = chip / "energy1_input"
    counter.chmod(0o400 if counter.stat().st_uid == 0 else 0o000)
    with nobody(tmp_path):
        host = Host(sysfs=str(tmp_path))
        assert not Hwmon.found_on(host)
        assert "readable by root only" in Hwmon.problems(host)[0]
