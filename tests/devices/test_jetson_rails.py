"""Rails of Jetson boards out of their files: found by label, judged by value, added only where they may be."""

import errno
import os
import re

import pytest

from edgewatt.devices.jetson import rails
from edgewatt.harness.channels import groups, parts
from support.board_tree import CHIP, chip, iio, seen

NANO = {1: ("VDD_IN", 5000, 912, 5000), 2: ("VDD_CPU_GPU_CV", 4992, 104, 5000), 3: ("VDD_SOC", 5008, 344, 5000)}
AGX = {1: ("VDD_GPU_SOC", 19992, 120, 2000), 2: ("VDD_CPU_CV", 19992, 180, 2000), 3: ("VIN_SYS_5V0", 5040, 800, 2000)}
AGX_2 = {1: ("NC", 0, 0, 2000), 2: ("VDDQ_VDD2_1V8AO", 5024, 60, 2000), 3: ("NC", 0, 0, 2000)}


def quantum_w(rail: rails.Rail) -> float | None:
    return rails.quantum_w(rail.shunt_ohm, rail.volts)


def channels(found: list[rails.Rail], **more: object) -> list:  # type: ignore[type-arg]
    return list(rails.channels([r.name for r in found], {r.name: quantum_w(r) for r in found}, **more))  # type: ignore[arg-type]


def test_total_contains_its_rails_and_is_the_whole_module() -> None:
    found, problems = rails.rails(seen(chip("1-0040", 1, NANO)))
    assert problems == []
    assert [(r.name, round(r.watts, 6)) for r in found] == [
        ("VDD_IN", 4.56), ("VDD_CPU_GPU_CV", 0.519168), ("VDD_SOC", 1.722752),
    ]  # fmt: skip
    made = channels(found)
    assert [c.parent for c in made] == [None, "VDD_IN", "VDD_IN"]
    assert {c.boundary for c in made} == {"module"}
    (whole,) = groups(made)
    assert whole.label == "VDD_IN" and [c.name for c in parts(made)] == ["VDD_CPU_GPU_CV", "VDD_SOC"]


def test_board_without_a_total_gives_a_sum_that_is_called_so() -> None:
    found, _ = rails.rails(seen(chip("1-0040", 3, AGX) | chip("1-0041", 4, AGX_2)))
    made = channels(found)
    (whole,) = groups(made)
    assert whole.label == "sum of module rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert {c.name: c.parent for c in made}["VDDQ_VDD2_1V8AO"] == "VIN_SYS_5V0"


def test_what_contains_what_can_be_told_by_hand() -> None:
    found, _ = rails.rails(seen(chip("1-0040", 3, AGX) | chip("1-0041", 4, AGX_2)))
    made = channels(found, overrides={"VDDQ_VDD2_1V8AO": ""})
    assert len(groups(made)[0].roots) == 4


def test_step_of_a_reading_comes_from_the_shunt() -> None:
    found, _ = rails.rails(seen(chip("1-0040", 3, AGX)))
    # 40 uV over 2 mOhm are 20 mA; at 19.992 V 0.39984 W (public lines of this board are multiples of 0.4 W)
    assert quantum_w(found[0]) == pytest.approx(0.39984)
    assert quantum_w(found[2]) == pytest.approx(0.1008)


def test_jetpack_4_has_other_files_and_tells_no_shunt() -> None:
    found, problems = rails.rails(
        seen(iio("7-0040", {0: ("VDD_IN", 4960, 806), 1: ("NC", 0, 0), 2: ("VDD_SOC", 4960, 280)}))
    )
    assert [(r.name, quantum_w(r)) for r in found] == [("VDD_IN", None), ("VDD_SOC", None)] and problems == []
    assert found[0].watts == pytest.approx(4.96 * 0.806)


def test_chip_found_by_bus_and_by_driver_is_one_chip() -> None:
    by_bus = chip("1-0040", 1, NANO)
    by_driver = {p.replace("/devices/", "/drivers/ina3221/"): v for p, v in by_bus.items()}
    found, _ = rails.rails(seen(by_bus | by_driver))
    assert len(found) == 3


def test_ina238_tells_microwatts_and_is_the_input() -> None:
    base = CHIP.format(chip="2-0044", n=5)
    files = {f"{base}/name": "ina238", f"{base}/power1_input": 61_250_000}
    found, _ = rails.rails(seen(files | chip("1-0040", 3, {1: ("VDD_GPU", 5000, 400, 5000)})))
    made = channels(found)
    assert [(c.name, c.parent) for c in made] == [("VDD_GPU", "VIN"), ("VIN", None)]
    assert next(r for r in found if r.name == "VIN").watts == pytest.approx(61.25)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"in1_input": OSError(errno.EIO, os.strerror(errno.EIO))},
            "VDD_IN: .*in1_input cannot be read: Input/output error",
        ),
        ({"in1_enable": 0}, "VDD_IN: its channel is switched off"),
        ({"curr1_input": "n/a"}, "VDD_IN: .*curr1_input does not hold a number"),
        ({"in1_label": ""}, "has no label"),
        ({"curr1_input": 5_000_000}, "VDD_IN: .* would be 2.5e.04 W, not credible"),
        ({"curr1_input": -400}, "VDD_IN: .* not credible"),
    ],
)
def test_rail_that_cannot_be_read_is_left_out_and_named(change: dict[str, object], told: str) -> None:
    base = CHIP.format(chip="1-0040", n=1)
    files = chip("1-0040", 1, NANO) | {f"{base}/{name}": value for name, value in change.items()}
    found, problems = rails.rails(seen(files))  # type: ignore[arg-type]
    assert [r.name for r in found] == ["VDD_CPU_GPU_CV", "VDD_SOC"]
    assert len(problems) == 1
    assert re.search(told, problems[0]), problems


def test_rail_without_one_of_its_files_is_left_out() -> None:
    files = chip("1-0040", 1, NANO)
    del files[f"{CHIP.format(chip='1-0040', n=1)}/in1_input"]
    found, problems = rails.rails(seen(files))
    assert [r.name for r in found] == ["VDD_CPU_GPU_CV", "VDD_SOC"] and "is not there" in problems[0]


def test_chip_on_which_all_is_zero_is_not_fitted() -> None:
    found, problems = rails.rails(seen(chip("1-0040", 1, {1: ("VDD_IN", 0, 0, 5000), 2: ("VDD_SOC", 0, 0, 5000)})))
    assert found == [] and "0 W" in problems[0]


def test_two_rails_of_one_name_are_told_apart() -> None:
    one = {1: ("VDD_X", 5000, 100, 5000)}
    found, _ = rails.rails(seen(chip("1-0040", 1, one) | chip("1-0041", 2, one)))
    assert [r.name for r in found] == ["VDD_X 1-0040", "VDD_X 1-0041"]


def test_no_chip_is_no_rail() -> None:
    assert rails.rails(seen({"/etc/nv_tegra_release": "x"})) == ([], [])
