"""Emulated Jetson boards with the real jtop, through the whole command: on the board and over a real sshd.

What compares no joules with the truth is done on two boards at a time, since all of it mostly waits.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import Scenario
from edgewatt.devices.jetson.device import Jetson
from edgewatt.devices.jetson.meters import Ina3221, Jtop, Tegrastats
from edgewatt.harness.energy import energy
from support.jetson_lab import PROFILES, Bench, profile
from support.lab_board import LabBoard, flags

pytestmark = [pytest.mark.needs_jetson_lab, pytest.mark.needs_sshd, pytest.mark.slow, pytest.mark.timeout(600)]

AGX, NANO, NX = PROFILES
SOAK = pytest.mark.soak
TOTAL = {AGX: "sum of module rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", NANO: "VDD_IN", NX: "VDD_IN"}
MODE = {AGX: ("MODE_30W", "MODE_30W"), NANO: ("25W", "15W"), NX: ("MODE_15W_6CORE", "MODE_15W_2CORE")}

CHECKED = {"python", "engines", "power sensor", "jtop", "power mode", "clocks", "thermal head-room", "disk"}


def window_energy(run: Mapping[str, Any], meter: str) -> list[dict[str, Any]]:
    """The energy of the windows by one meter's total; none if there is no such figure."""
    found = [m for m in run["measurements"] if (m["metric"], m["phase"], m["meter"]) == ("energy_j", "window", meter)]
    assert len(found) < 2
    return found


# The model's own process, as the emulated board knows it by its command line.
LOAD = {"kind": "load", "idle": 0.5, "k": 4.0, "process": "agent.py run"}


@contextlib.contextmanager
def board(folder: Path, of: str | Mapping[str, Any], over_ssh: bool = False, **options: Any) -> Iterator[LabBoard]:
    """A board, up; `waves` and `jtop` are the bench's, everything else an option of the device."""
    given = {k: options.pop(k) for k in ("waves", "jtop") if k in options}
    with Bench("boards", of, **given) as bench, LabBoard(folder, bench, over_ssh, **options) as made:
        yield made


@pytest.mark.parametrize("of", [NANO, pytest.param(AGX, marks=SOAK), pytest.param(NX, marks=SOAK)])
def test_energy_of_every_source_agrees_with_the_truth(tmp_path: Path, of: str) -> None:
    shapes = [
        {"kind": "sine", "mean": 6.0, "amp": 3.0, "hz": 0.1},
        {"kind": "constant", "w": 4.1},
        {"kind": "step", "levels": [[0, 2.4], [7, 9.6], [16, 4.0]], "period": 23},
        {"kind": "constant", "w": 0.9},
    ]
    labels = [c["label"] for m in profile(of)["monitors"] for c in m["channels"] if c["label"] != "NC"]
    waves = dict(zip(labels, shapes, strict=False))
    with board(tmp_path, of, True, waves=waves) as lab, lab.entry().open() as device:
        assert isinstance(device, Jetson)
        meters = [Ina3221.of(device), Tegrastats.of(device, 0.5), Jtop.of(device, 0.5)]
        for meter in meters:
            meter.start()
        time.sleep(24)
        traces = [meter.stop() for meter in reversed(meters)]
        for trace in traces:
            start_s, end_s = trace.t_s[0] + 0.6, trace.t_s[-1] - 0.1
            assert end_s - start_s >= 20
            true = lab.bench.truth(start_s, end_s)["rails"]
            pace_s = float((trace.t_s[1:] - trace.t_s[:-1]).mean())
            for label in labels:
                found = energy(trace, label, start_s, end_s)
                error_j = found.energy_j - true[label]["joules"]
                where = f"{of} {trace.meter}/{label}: {found.energy_j:.3f} J, true {true[label]['joules']:.3f}"
                # The bar is that of a 95 % interval: one of these many errors may lie outside of it, none twice as far.
                assert abs(error_j) <= 2 * found.uncertainty_j + 1e-6, f"{where}, bar {found.uncertainty_j:.3f}"
                quantum_j = (trace.channel(label).quantum or 0.0) / 2 * (end_s - start_s)
                if waves[label]["kind"] == "step":
                    # half an interval times the step, at each of the edges in the window, and the rounding
                    edges_j = pace_s / 2 * (7.2 + 5.6 + 1.6) * 2
                    assert abs(error_j) <= edges_j + quantum_j, where
                elif waves[label]["kind"] == "sine":
                    assert abs(error_j) <= 0.01 * true[label]["joules"], where
                else:  # a constant is rounded the same way for ever
                    assert abs(error_j) <= 0.01 * true[label]["joules"] + quantum_j, where


def test_load_of_the_model_is_followed(tmp_path: Path) -> None:
    waves = {"VDD_CPU_GPU_CV": LOAD, "VDD_IN": LOAD, "VDD_SOC": {"kind": "constant", "w": 1.0}}
    with board(tmp_path, NANO, waves=waves, rate_hz=150) as lab:
        run = lab.run("window_s=10", "idle_s=2", "isolated_s=0")
        (window,) = [p for p in run["phases"] if p["phase"] == "window"]
        true_j = lab.bench.truth(window["start_s"], window["end_s"])["rails"]["VDD_IN"]["joules"]
        (whole,) = window_energy(run, "ina3221")
        assert true_j > 20  # the model did draw
        assert whole["value"] == pytest.approx(true_j, rel=0.02)
        assert abs(whole["value"] - true_j) <= whole["uncertainty"]


@pytest.mark.parametrize(
    ("wave", "is_aliased"),
    [
        ({"kind": "square", "low": 2, "high": 10, "hz": 10}, True),
        pytest.param({"kind": "sine", "mean": 6, "amp": 3, "hz": 0.1}, False, marks=SOAK),
    ],
    ids=["10 Hz square", "slow sine"],
)
def test_load_faster_than_jtop_reads_is_flagged_and_void(
    tmp_path: Path, wave: dict[str, Any], is_aliased: bool
) -> None:
    with board(tmp_path, NANO, waves={"VDD_IN": wave}, power="jtop") as lab:
        run = lab.run("window_s=25", "max_window_s=25", "isolated_s=0")
        (window,) = [p for p in run["phases"] if p["phase"] == "window"]
        true_j = lab.bench.truth(window["start_s"], window["end_s"])["rails"]["VDD_IN"]["joules"]
        voided = {f["flag"] for f in run["flags"] if f["meter"] == "jtop" and "energy_j" in f["voids"]}
        assert ("aliased" in voided) is is_aliased, run["flags"]
        (whole,) = window_energy(run, "jtop")
        assert abs(whole["value"] - true_j) <= whole["uncertainty"]


# ---------------------------------------------------------------------------------------------------------------------
# Two boards at a time


def commands_work(of: str, over_ssh: bool, folder: Path) -> None:
    facts = profile(of)
    with board(folder, of, over_ssh) as lab:
        (seen,) = lab.json("devices", "orin")["devices"]
        assert seen["error"] is None and seen["has_energy"]
        told = seen["facts"]
        assert told["l4t"] == facts["l4t"] and told["model"] == facts["devicetree"]["model"]
        assert told["power_source"] == "ina3221" and told["power_mode"]["name"] == MODE[of][0]
        assert told["jtop"].get("problem") is None, told["jtop"]
        rails = {
            c["name"]: c for m in seen["meters"] if m["meter"] == "ina3221" for c in m["channels"] if c["is_energy"]
        }
        labels = {c["label"] for m in facts["monitors"] for c in m["channels"]} - {"NC"}
        assert set(rails) == labels and {c["boundary"] for c in rails.values()} == {"module"}
        checked = {c["name"]: c for c in lab.json("doctor", "orin")["checks"]}
        assert set(checked) >= CHECKED
        assert checked["jtop"]["is_well"] and checked["power sensor"]["is_well"]
        assert MODE[of][0] in checked["power mode"]["detail"]
        run = lab.run(f"controls.power_mode={MODE[of][1]}")
        assert run["error"] is None and "simulated" in flags(run)
        (whole,) = window_energy(run, "ina3221")
        assert whole["method"].startswith(f"{TOTAL[of]}:") and whole["boundary"] == "module"
        assert run["spec"]["controls_read_back"]["power_mode"]["name"] == MODE[of][1]
        assert run["spec"]["controls_read_back"]["after"]["power_mode"]["name"] == MODE[of][0]
        assert lab.mode() == MODE[of][0]
        clocks = {m["meter"]: m["value"] for m in run["measurements"] if m["metric"] == "frequency_hz"}
        limit = next(m["cpu_max_khz"] for m in facts["nvpmodel"]["modes"] if m["name"] == MODE[of][1]) * 1e3
        assert 0 < clocks["health/cpu"] <= limit * 1.001
        assert {m["meter"] for m in run["measurements"] if m["metric"] == "sampler_cpu_s_per_s"} >= {
            "ina3221",
            "health",
        }
        assert not lab.agents()


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(partial(commands_work, NANO, True), id="Nano over ssh"),
        pytest.param(partial(commands_work, NX, False), id="NX"),
        pytest.param(partial(commands_work, AGX, False), id="AGX", marks=SOAK),
        pytest.param(partial(commands_work, AGX, True), id="AGX over ssh", marks=SOAK),
        pytest.param(partial(commands_work, NANO, False), id="Nano", marks=SOAK),
        pytest.param(partial(commands_work, NX, True), id="NX over ssh", marks=SOAK),
    ],
)
def test_commands_work_on_every_board(outcome: Callable[[Scenario], None], scenario: Scenario) -> None:
    outcome(scenario)


def commands_work_through(source: str, of: str, over_ssh: bool, folder: Path) -> None:
    with board(folder, of, over_ssh, power=source) as lab:
        (seen,) = lab.json("devices", "orin", "--seconds", "1.5")["devices"]
        assert seen["error"] is None and seen["facts"]["power_source"] == source
        assert source in {m["meter"] for m in seen["meters"]} and "ina3221" not in {m["meter"] for m in seen["meters"]}
        assert lab.json("doctor", "orin")["checks"]
        run = lab.run("window_s=6", "max_window_s=6", "isolated_s=0")
        assert run["error"] is None
        (whole,) = window_energy(run, source)
        assert whole["method"].startswith(f"{TOTAL[of]}:") and whole["value"] > 0
        # two readings a second do not carry two per cent of six seconds: said, and voided, not reported as fact
        assert "window_too_short" in flags(run, source)


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(partial(commands_work_through, "jtop", NANO, True), id="jtop, Nano over ssh"),
        pytest.param(partial(commands_work_through, "tegrastats", AGX, False), id="tegrastats, AGX", marks=SOAK),
        pytest.param(partial(commands_work_through, "jtop", AGX, False), id="jtop, AGX", marks=SOAK),
        pytest.param(
            partial(commands_work_through, "tegrastats", NANO, True), id="tegrastats, Nano over ssh", marks=SOAK
        ),
        pytest.param(partial(commands_work_through, "tegrastats", NX, False), id="tegrastats, NX", marks=SOAK),
        pytest.param(partial(commands_work_through, "jtop", NX, False), id="jtop, NX", marks=SOAK),
    ],
)
def test_commands_work_through_one_source_alone(outcome: Callable[[Scenario], None], scenario: Scenario) -> None:
    outcome(scenario)


# ---------------------------------------------------------------------------------------------------------------------
# Faults: each ends in a stored run with its error or flag, what was set is put back, and the next run works


def check_next(lab: LabBoard) -> None:
    """The next run works and leaves nothing."""
    run = lab.run("max_window_s=2", "isolated_s=0")  # a slow meter would make windows long
    assert run["error"] is None
    assert not lab.agents()


def jtop_service_that_is_killed_and_comes_back_leaves_a_gap(folder: Path) -> None:
    with board(folder, NANO, power="jtop") as lab:
        process = lab.start_run("window_s=16", "max_window_s=16", "isolated_s=0")
        time.sleep(4)
        lab.bench.kill_service()
        time.sleep(2)
        lab.bench.start_service()
        run = json.loads(lab.ended(process))
        assert run["error"] is None
        (meter,) = [m for m in run["meters"] if m["meter"] == "jtop"]
        assert meter["facts"]["notes"]["restarts"] >= 1, meter["facts"]
        assert "gap" in flags(run, "jtop"), run["flags"]
        check_next(lab)


def jtop_service_that_stays_dead_gives_no_joules(folder: Path) -> None:
    with board(folder, NANO, power="jtop") as lab:
        process = lab.start_run("window_s=10", "max_window_s=10", "isolated_s=0")
        time.sleep(3)
        lab.bench.kill_service()
        run = json.loads(lab.ended(process))
        assert run["error"] is None
        good = window_energy(run, "jtop")
        voided = {f["flag"] for f in run["flags"] if f["meter"] == "jtop" and "energy_j" in f["voids"]}
        assert not good or voided, run["flags"]
        assert {"jtop"} <= {m["meter"] for m in run["meters"]}
        told = lab.json("doctor", "orin")
        assert any(c["name"] == "jtop" and c["is_well"] is False for c in told["checks"])
        lab.bench.start_service()
        check_next(lab)


def another_client_of_jtop_sets_the_pace(folder: Path) -> None:
    client = "from jtop import jtop\nwith jtop(interval=2.0) as j:\n    print('up', flush=True)\n    while j.ok(): pass"
    with board(folder, NANO, power="jtop") as lab:
        other = lab.bench.start([sys.executable, "-c", client], stdout=subprocess.PIPE)
        assert other.stdout is not None and other.stdout.readline()
        run = lab.run("window_s=10", "max_window_s=10", "isolated_s=0")
        (meter,) = [m for m in run["meters"] if m["meter"] == "jtop"]
        notes = meter["facts"]["notes"]
        assert notes["other_client"] and notes["interval_service_s"] == pytest.approx(2.0)
        assert {"window_too_short", "shared_meter"} <= set(flags(run, "jtop"))
        other.kill()
        time.sleep(7)
        check_next(lab)


def rail_that_begins_to_fail_is_told_and_voids_the_run(folder: Path) -> None:
    changed = copy.deepcopy(profile(NANO))
    begins_s = 45.0  # since the board is up: the model works by then, and for some time to come
    changed["monitors"][0]["channels"][0]["error_window"] = {"period": 1e6, "from": begins_s, "to": 1e6, "errno": "EIO"}
    with board(folder, changed, jtop=False) as lab:
        process = lab.start_run("window_s=55", "isolated_s=0")
        run = json.loads(lab.ended(process))
        assert run["error"] is None
        voided = {f["flag"] for f in run["flags"] if f["meter"] == "ina3221" and "energy_j" in f["voids"]}
        assert voided, run["flags"]
        (meter,) = [m for m in run["meters"] if m["meter"] == "ina3221"]
        assert "Input/output error" in meter["facts"]["errors"]["VDD_IN"]["text"]
        (seen,) = lab.json("devices", "orin")["devices"]
        assert any("VDD_IN" in reason and "Input/output error" in reason for reason in seen["absent"])
        check_next(lab)


def sensor_that_is_off_line_is_left_out_and_named(folder: Path) -> None:
    changed = copy.deepcopy(profile(AGX))
    changed["monitors"][0]["channels"][1]["disabled"] = True
    changed["monitors"][1]["channels"][1]["read_error"] = "EREMOTEIO"
    with board(folder, changed, jtop=False) as lab:
        (seen,) = lab.json("devices", "orin")["devices"]
        said = " ".join(seen["absent"])
        assert "VDD_CPU_CV: its channel is switched off" in said
        assert "VDDQ_VDD2_1V8AO" in said and "Remote I/O error" in said
        run = lab.run()
        (whole,) = window_energy(run, "ina3221")
        assert whole["method"].startswith("sum of module rails VDD_GPU_SOC + VIN_SYS_5V0:")
        assert "VDD" in flags(run, "ina3221")["rail_missing"]


def power_mode_that_the_board_refuses_is_a_stored_error(jtop: bool, folder: Path) -> None:
    with board(folder, AGX, jtop=jtop) as lab:
        if jtop:  # another TPC mask needs a restart
            run = lab.run("controls.power_mode=MODE_15W", status=1)
            assert run["error"]["kind"] == "failed" and "MODE_30W" in run["error"]["message"]
            assert lab.stored()["error"] == run["error"]
        wrong = lab.start("run", "femtodet", "--device", "orin", "--set", "controls.power_mode=MODE_16W")
        said = lab.ended(wrong, status=2)
        assert len(said.strip().splitlines()) == 1 and "MODE_15W" in said
        assert lab.mode() == "MODE_30W"
        check_next(lab)


def mode_clocks_and_fan_are_put_back_when_stopped_by_hand(jtop: bool, folder: Path) -> None:
    with board(folder, NANO, jtop=jtop) as lab:
        process = lab.start_run(
            "window_s=30", "controls.power_mode=15W", "controls.jetson_clocks=true", "controls.fan_speed=80"
        )
        time.sleep(1)
        assert lab.mode() == "15W"
        os.kill(process.pid, signal.SIGINT)  # what entered the board has become the command
        run = json.loads(lab.ended(process, status=1))
        assert run["error"]["kind"] == "interrupted"
        assert run["spec"]["controls_read_back"]["jetson_clocks"] is True
        assert lab.mode() == "25W"
        assert lab.bench.exec(["cat", "/sys/jetbench/max_clocks"]).stdout.strip() == "0"
        check_next(lab)


def harness_that_is_killed_leaves_a_board_as_it_was(folder: Path) -> None:
    with board(folder, NANO, True) as lab:
        process = lab.start_run("window_s=60", "controls.power_mode=15W")
        assert lab.mode() == "15W"
        process.kill()
        process.communicate()
        killed_s = time.monotonic()
        while lab.models() and time.monotonic() - killed_s < 10:
            time.sleep(0.05)
        assert time.monotonic() - killed_s <= 5.5 and not lab.models()
        while lab.mode() != "25W" and time.monotonic() - killed_s < 20:
            time.sleep(0.2)
        assert lab.mode() == "25W"
        while lab.agents() and time.monotonic() - killed_s < 20:
            time.sleep(0.2)
        check_next(lab)


def link_that_is_cut_ends_the_agents_and_is_stored(folder: Path) -> None:
    with board(folder, NANO, True) as lab:
        assert lab.sshd is not None
        process = lab.start_run("window_s=60", "controls.power_mode=15W")
        time.sleep(4)
        lab.sshd.cut()
        cut_s = time.monotonic()
        while lab.models() and time.monotonic() - cut_s < 10:
            time.sleep(0.05)
        assert time.monotonic() - cut_s <= 5.0, "the model went on"
        run = json.loads(lab.ended(process, status=1))
        assert run["error"]["kind"] == "lost_link", run["error"]
        (meter,) = [m for m in run["meters"] if m["meter"] == "ina3221"]
        assert meter["samples"] >= 300  # what was sampled before the cut is not lost
        assert lab.mode() == "25W"
        assert lab.stored()["error"]["kind"] == "lost_link"
        check_next(lab)


def board_that_restarts_in_a_run_is_stored_as_such(folder: Path) -> None:
    with board(folder, NANO, True) as lab:
        assert lab.sshd is not None
        process = lab.start_run("window_s=60")
        time.sleep(3)
        lab.sshd.stop()
        lab.bench.down()
        time.sleep(1)
        lab.bench.__enter__()
        lab.sshd.start()
        run = json.loads(lab.ended(process, status=1))
        assert run["error"]["kind"] == lab.stored()["error"]["kind"] == "lost_link", run["error"]
        (meter,) = [m for m in run["meters"] if m["meter"] == "ina3221"]
        assert meter["samples"] >= 200  # what was heard before is not lost
        check_next(lab)


@pytest.mark.parametrize(
    "scenario",
    [
        jtop_service_that_is_killed_and_comes_back_leaves_a_gap,
        rail_that_begins_to_fail_is_told_and_voids_the_run,
        sensor_that_is_off_line_is_left_out_and_named,
        harness_that_is_killed_leaves_a_board_as_it_was,
        board_that_restarts_in_a_run_is_stored_as_such,
        pytest.param(partial(power_mode_that_the_board_refuses_is_a_stored_error, False), id="mode refused, tools"),
        pytest.param(partial(mode_clocks_and_fan_are_put_back_when_stopped_by_hand, True), id="stopped by hand, jtop"),
        pytest.param(
            partial(power_mode_that_the_board_refuses_is_a_stored_error, True), id="mode refused, jtop", marks=SOAK
        ),
        pytest.param(
            partial(mode_clocks_and_fan_are_put_back_when_stopped_by_hand, False),
            id="stopped by hand, tools",
            marks=SOAK,
        ),
        pytest.param(link_that_is_cut_ends_the_agents_and_is_stored, marks=SOAK),
        pytest.param(jtop_service_that_stays_dead_gives_no_joules, marks=SOAK),
        pytest.param(another_client_of_jtop_sets_the_pace, marks=SOAK),
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_fault_is_told_and_the_next_run_works(outcome: Callable[[Scenario], None], scenario: Scenario) -> None:
    outcome(scenario)
