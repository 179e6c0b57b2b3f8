"""A board's own sensor and a meter in its supply line on one waveform, through the whole command."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from support.jetson_lab import PROFILES, Bench
from support.lab_board import LabBoard, flags
from support.serial_lab import Lab, boot_s

pytestmark = [pytest.mark.needs_jetson_lab, pytest.mark.needs_serial_lab, pytest.mark.slow, pytest.mark.timeout(600)]

NANO = PROFILES[1]
PERIOD_S = 2.5
WAVE = {"kind": "square", "low": 4.0, "high": 9.0, "hz": 1 / PERIOD_S, "duty": 0.5}
RUN = ("repeats=1", "idle_s=1", "window_s=5", "isolated_s=0", "warmup_min_s=0.2", "warmup_max_s=1")


def in_step(bench: Bench, lab: Lab) -> None:
    """The meter's wave begins anew where the board's does, within 10 ms."""
    late_s = []
    for _ in range(20):
        epoch = bench.epoch_s()
        due = epoch + (int((boot_s() - epoch + 0.2) / PERIOD_S) + 1) * PERIOD_S
        time.sleep(max(0.0, due - boot_s()))
        began = lab.wave("square", 4, 9, PERIOD_S)
        late_s.append((began - epoch + PERIOD_S / 2) % PERIOD_S - PERIOD_S / 2)
        if abs(late_s[-1]) < 0.01:
            return
    pytest.fail(f"two waves could not be begun within 10 ms of each other: {late_s}")


def measured(run: dict[str, Any], metric: str, meter: str) -> dict[str, Any]:
    found = [m for m in run["measurements"] if (m["metric"], m["meter"], m["phase"]) == (metric, meter, "window")]
    assert len(found) == 1, (len(found), run["warnings"], [f for f in run["flags"] if f["voids"]])
    return found[0]


def attached(board: LabBoard, lab: Lab) -> None:
    board.devices.write_text(
        board.devices.read_text()
        + f'[devices.orin.meters.supply]\nkind = "ina226"\naddress = "{lab.port}"\nboundary = "module"\n'
        + 'columns = ["time ms", "voltage mV", "current uA", "power uW"]\nshunt_ohm = 0.1\ngain_error = 0.002\n'
        + 'averaging_s = 0.001\nstart = "g"\nstop = "s"\n'
    )


def ratio_of(run: dict[str, Any]) -> tuple[float, float]:
    m = measured(run, "meter_ratio", "supply vs ina3221")
    return m["value"], m["uncertainty"]


def test_same_power_has_ratio_one_a_gain_error_is_flagged_and_calibration_removes_it(tmp_path: Path) -> None:
    with (
        Bench("two", NANO, waves={"VDD_IN": WAVE}, jtop=False, ideal=True) as bench,
        LabBoard(tmp_path, bench, power="ina3221") as board,
    ):
        bare = board.devices.read_text()
        with Lab("csv", "square", 4, 9, PERIOD_S, volts=5.0) as lab:
            in_step(bench, lab)
            attached(board, lab)
            run = board.json("run", "femtodet", "--device", "orin", *RUN)
        ratio, width = ratio_of(run)
        assert abs(ratio - 1) <= width < 0.03
        assert "meters_disagree" not in flags(run)
        board.devices.write_text(bare)
        with Lab("csv", "square", 4, 9, PERIOD_S, volts=5.0, error=5) as lab:
            in_step(bench, lab)
            attached(board, lab)
            assert "no calibration is stored" in board.ended(
                board.start("run", "femtodet", "--device", "orin", "--calibrated", *RUN), 2
            )
            run = board.json("run", "femtodet", "--device", "orin", *RUN)
            ratio, width = ratio_of(run)
            assert abs(ratio - 1.05) <= width
            assert "meters_disagree" in flags(run)
            calibration = board.json("calibrate", "orin", "--seconds", "20")
            found = {m["metric"]: m for m in calibration["measurements"]}
            gain = found["calibration_gain"]
            assert abs(gain["value"] - 1.05) < 0.005
            kept = json.loads((tmp_path / "calibrations" / "orin.json").read_text())
            assert kept["version"] == 1 and kept["device"] == "orin" and kept["board"]
            again = board.json("recompute", calibration["run"])
            assert not again["changes"].get("changed")
            applied = board.json("run", "femtodet", "--device", "orin", "--calibrated", *RUN)
        ratio, width = ratio_of(applied)
        assert abs(ratio - 1) <= width
        assert "meters_disagree" not in flags(applied)
        energy = measured(applied, "energy_j", "ina3221")
        assert "calibrated against supply on " in energy["method"]
        assert any("calibrated against supply" in w for w in applied["warnings"])
        raw = next(t for t in applied["meters"] if t["meter"] == "ina3221")
        assert raw["facts"]["calibration"]["sha256"]
