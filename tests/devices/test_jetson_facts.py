"""Facts of Jetson boards out of their files and tools: the shapes of JetPack 4 to 7, and what a board may not tell."""

import errno
import os

import pytest

from edgewatt.devices.agent import nvpmodel
from edgewatt.devices.jetson import conditions, facts
from support.board_tree import seen

CPU = "/sys/devices/system/cpu"
ZONE = "/sys/class/thermal/thermal_zone{}/{}"
TREE = "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234"
LISTING = """NVPM VERB: PM_CONFIG: DEFAULT=MODE_15W(2)
NVPM VERB: POWER_MODEL: ID=0 NAME=MAXN
NVPM VERB: POWER_MODEL: ID=2 NAME=MODE_15W
"""


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", "36.4.3", "6.2"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64", "35.4.1", "5.1.2"),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t186ref, EABI: aarch64", "32.7.1", "4.6.1"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", "99.1.0", None),
        ("nonsense", None, None),
    ],
)
def test_release_of_the_board(line: str, l4t: str | None, jetpack: str | None) -> None:
    told = facts.facts(seen({"/etc/nv_tegra_release": line}))
    assert (told["l4t"], told["jetpack"]) == (l4t, jetpack)


def test_jetpack_may_be_told_by_its_package() -> None:
    told = facts.facts(
        seen(
            {},
            {"packages": "nvidia-jetpack 6.2.1+b38\nlibnvinfer10 10.3.0.30-1+cuda12.5\ncuda-cudart-12-6 12.6.68-1\n"},
        )
    )
    assert told["jetpack"] == "6.2.1+b38" and told["libraries"] == {"cuda": "12.6.68", "tensorrt": "10.3.0.30"}


def test_module_carrier_and_chip_come_from_the_device_tree() -> None:
    board = seen({"/proc/device-tree/compatible": TREE})
    assert (facts.module(board), facts.carrier(board), facts.soc(board)) == ("p3767-0005", "p3768-0000", "tegra234")
    assert facts.is_jetson(board) and not facts.is_jetson(seen({"/proc/device-tree/compatible": "raspberrypi,5\0brcm"}))


@pytest.mark.parametrize(
    ("answer", "mode"),
    [
        ("NV Power Mode: MODE_15W_6CORE\n2\n", (2, "MODE_15W_6CORE")),
        ("NV Fan Mode:quiet\nNV Power Mode: MAXN\n0\n", (0, "MAXN")),
        ("NV Power Mode: MAXN\n0\nNV Fan Mode:quiet\n", (0, "MAXN")),
        ("NVPM ERROR: no current power mode\n", None),
        ("", None),
    ],
)
def test_power_mode_as_the_tool_prints_it(answer: str, mode: tuple[int, str] | None) -> None:
    assert nvpmodel.current_mode(answer) == mode


def test_modes_are_listed_and_chosen_by_name_or_id() -> None:
    known = nvpmodel.modes(LISTING)
    assert known == {0: "MAXN", 2: "MODE_15W"}
    assert [nvpmodel.chosen(w, known, None) for w in ("mode_15w", "2", 0, "MAXN")] == [2, 2, 0, 0]
    with pytest.raises(
        nvpmodel.RefusedError, match=r"power_mode=MODE_16W: .*MAXN \(0\), MODE_15W \(2\); did you mean MODE_15W"
    ):
        nvpmodel.chosen("MODE_16W", known, None)
    with pytest.raises(nvpmodel.RefusedError, match="no modes that nvpmodel tells"):
        nvpmodel.chosen("1", {}, None)


def test_zones_that_sleep_have_no_temperature() -> None:
    files: dict[str, str | OSError | int] = {
        ZONE.format(0, "type"): "CPU-therm", ZONE.format(0, "temp"): 42500,
        ZONE.format(1, "type"): "GPU-therm", ZONE.format(1, "temp"): -256000,
        ZONE.format(2, "type"): "CV0-therm", ZONE.format(2, "temp"): OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
        ZONE.format(0, "trip_point_0_type"): "passive", ZONE.format(0, "trip_point_0_temp"): 95000,
        ZONE.format(0, "trip_point_1_type"): "critical", ZONE.format(0, "trip_point_1_temp"): 105000,
    }  # fmt: skip
    board = seen(files)
    assert facts.temperatures(board) == {"CPU-therm": 42.5}
    assert facts.zones(board)[0] == ("CPU-therm", ZONE.format(0, "temp"), 42.5, 95.0)
    watched = [channel.name for channel, _ in conditions.nodes(board)]
    assert watched == ["CPU-therm", "GPU-therm"]  # the GPU's wakes up with it, the others stay out


@pytest.mark.parametrize(("low", "is_locked"), [(115200, False), (1728000, True)])
def test_clocks_are_locked_when_lowest_is_highest(low: int, is_locked: bool) -> None:
    files: dict[str, str | OSError | int] = {}
    for k, online in ((0, 1), (1, 1), (2, 0)):
        base = f"{CPU}/cpu{k}/cpufreq/scaling"
        files |= {f"{CPU}/cpu{k}/online": online, f"{base}_cur_freq": 729600, f"{base}_max_freq": 1728000}
        files |= {f"{base}_min_freq": low if online else 1, f"{base}_governor": "schedutil"}
    board = seen(files)
    assert facts.clocks_locked(board) is is_locked
    assert facts.clocks(board)["cpu"] == {
        "min_hz": low * 1000, "max_hz": 1_728_000_000, "now_hz": 729_600_000, "online": 2, "governors": ["schedutil"],
    }  # fmt: skip


@pytest.mark.parametrize("node", ["17000000.gv11b", "17000000.ga10b", "17000000.gpu"])
def test_gpu_is_found_under_the_name_of_each_release(node: str) -> None:
    base = f"/sys/class/devfreq/{node}"
    board = seen({f"{base}/cur_freq": 306000000, f"{base}/device/load": 250, "/sys/class/devfreq/vic/cur_freq": 1})
    assert facts.gpu_folders(board) == [base]
    assert [channel.name for channel, _ in conditions.nodes(board)] == ["gpu clock", "gpu load"]


def test_board_that_tells_nothing_has_no_facts_and_no_fault() -> None:
    told = facts.facts(seen({}))
    assert told["model"] is None and told["power_mode"] is None and told["clocks_locked"] is None
    assert told["temperatures_c"] == {} and told["fan_percent"] is None
