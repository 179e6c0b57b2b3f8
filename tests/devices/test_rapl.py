"""RAPL on made trees that move as the kernel's counters do."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgewatt.devices.host import Host
from edgewatt.devices.rapl import Rapl
from edgewatt.harness.api import Channel, Meter
from support.sysfs_tree import Tree, Wave
from support.unprivileged import nobody

TEN_W = Wave("constant", 10.0)


def found(tree: Tree) -> dict[str, Channel]:
    """The channels found on a tree while it lives, by name."""
    with tree.live():
        meters = Rapl.found_on(Host(sysfs=str(tree.root)))
    return {c.name: c for m in meters for c in m.channels}


def problems(tree: Tree) -> Sequence[str]:
    with tree.live():
        return Rapl.problems(Host(sysfs=str(tree.root)))


def test_two_sockets_are_two_roots_and_their_parts_hang_below(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W, TEN_W], parts={"core": 0.6, "uncore": 0.1}, dram=Wave("constant", 3))
    channels = found(tree)
    assert {n: (c.parent, c.boundary) for n, c in channels.items()} == {
        "package-0": (None, "package"),
        "package-0/core": ("package-0", "rails"),
        "package-0/uncore": ("package-0", "rails"),
        "package-0/dram": (None, "dram"),
        "package-1": (None, "package"),
        "package-1/core": ("package-1", "rails"),
        "package-1/uncore": ("package-1", "rails"),
        "package-1/dram": (None, "dram"),
    }


def test_counters_are_joules_and_wrap_where_the_kernel_says(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W], range_uj=262_143_328_850)
    channel = found(tree)["package-0"]
    assert (channel.quantity, channel.unit, channel.kind) == ("energy", "J", "counter")
    assert channel.wraps_at == pytest.approx(262_143.32885, rel=1e-12)
    assert channel.quantum is None
    assert channel.gain_error is None


def test_psys_contains_packages_and_memory(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W], parts={"core": 0.5}, dram=Wave("constant", 2), platform=Wave("constant", 18))
    channels = found(tree)
    assert channels["psys"].parent is None
    assert channels["psys"].boundary == "board"
    assert channels["package-0"].parent == "psys"
    assert channels["package-0/dram"].parent == "psys"
    assert channels["package-0/core"].parent == "package-0"


def test_psys_below_its_packages_is_not_believed(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W], platform=Wave("constant", 4))
    assert set(found(tree)) == {"package-0"}
    assert found(tree)["package-0"].parent is None
    said = re.fullmatch(
        r"RAPL: psys shows (\S+) W, less than the packages it contains \((\S+) W\); left out", problems(tree)[0]
    )
    assert said is not None
    assert [float(watts) for watts in said.groups()] == pytest.approx([4, 10], rel=0.4)  # probed for 0.3 s, live


def test_mmio_zone_of_the_same_package_is_counted_once(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W])
    tree.zone("intel-rapl-mmio:0", "package-0", TEN_W)
    assert list(found(tree)) == ["package-0"]


def test_mmio_zone_alone_is_used(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.zone("intel-rapl-mmio:0", "package-0", TEN_W)
    assert list(found(tree)) == ["package-0"]


@pytest.mark.parametrize("flat", [True, False])
def test_nested_zones_are_found_once_whether_also_shown_flat_or_not(tmp_path: Path, flat: bool) -> None:
    tree = Tree(tmp_path)
    tree.zone("intel-rapl:0", "package-0", TEN_W)
    tree.zone("intel-rapl:0:0", "core", TEN_W.times(0.5), flat=flat)
    assert list(found(tree)) == ["package-0", "package-0/core"]


def test_amd_ryzen_shows_package_and_core(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W], parts={"core": 0.1}, range_uj=65_532_610_987, quantum_uj=15.2587890625)
    assert {n: c.parent for n, c in found(tree).items()} == {"package-0": None, "package-0/core": "package-0"}


def test_dies_of_one_package_are_roots_of_their_own(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.zone("intel-rapl:0", "package-0-die-0", TEN_W)
    tree.zone("intel-rapl:1", "package-0-die-1", TEN_W)
    assert {n: c.parent for n, c in found(tree).items()} == {"package-0-die-0": None, "package-0-die-1": None}


def test_counter_that_stands_still_is_absent_and_said(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W], parts={"uncore": 0.0})
    assert list(found(tree)) == ["package-0"]
    assert "uncore" in problems(tree)[0]
    assert "stood still" in problems(tree)[0]


def test_counter_refreshed_once_a_second_is_not_taken_for_dead(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([Wave("constant", 60.0)], update_s=1.0)
    assert list(found(tree)) == ["package-0"]


def test_counter_that_wraps_during_the_probe_is_kept(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W], range_uj=50_000, start_uj=49_990)
    assert found(tree)["package-0"].wraps_at == pytest.approx(0.05)


@pytest.mark.parametrize("content", ["", "garbage", "0x1f", "12.5", "99999999999999999999999999", "\x00\x01"])
def test_counter_that_holds_no_number_is_absent_and_said(tmp_path: Path, content: str) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W])
    tree.feeds.clear()
    tree.write("class/powercap/intel-rapl:0/energy_uj", content)
    assert found(tree) == {}
    assert "does not hold a number" in problems(tree)[0]


def test_incredible_power_is_absent_and_said(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([Wave("constant", 1e6)])
    assert found(tree) == {}
    assert "not credible" in problems(tree)[0]


def test_counter_for_root_only_is_absent_and_says_what_to_do(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.rapl([TEN_W])
    counter = tmp_path / "class/powercap/intel-rapl:0/energy_uj"
    counter.chmod(0o400 if counter.stat().st_uid == 0 else 0o000)
    with nobody(tmp_path):
        host = Host(sysfs=str(tmp_path))
        assert Rapl.found_on(host) == ()
        (said,) = Rapl.problems(host)
    assert "readable by root only" in said
    assert f"sudo chmod a+r {counter}" in said


def test_machine_without_rapl_says_so(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    assert found(tree) == {}
    (said,) = problems(tree)
    assert "virtual machine" in said


def test_wrapping_counter_sampled_by_the_agent_adds_up_to_the_true_energy(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    feed = tree.rapl([Wave("square", 5, 25, 0.2)], range_uj=8_000_000, start_uj=7_500_000)["package-0"]
    with tree.live() as live, Host(sysfs=str(tmp_path)) as host:
        (meter,) = Rapl.found_on(host)
        t_s, joules = sampled(meter, 1.5)
    steps = np.diff(joules)
    wraps = int((steps < 0).sum())
    assert wraps >= 2  # 15 W over 1.5 s are 22 J: round after 0.5 J, and then every 8 J
    true_j, late_j = feed.wave.joules(t_s[0], t_s[-1]), 25 * live.late_s(t_s[0], t_s[-1])
    assert abs(steps.sum() + 8.0 * wraps - true_j) <= 0.01 * true_j + late_j


def sampled(meter: Meter, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of a meter's only channel over some seconds."""
    meter.start()
    time.sleep(seconds)
    trace = meter.stop()
    return trace.t_s, trace.values[:, 0]


def test_importing_the_meters_needs_no_hardware_library() -> None:
    code = "import sys, edgewatt.devices.nvml, edgewatt.devices.host; print('pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
