"""Calibrations kept with a device: applied to the same board, refused to another, and what applying one does."""

import json

import numpy as np
import pytest

from edgewatt.harness import calibration_file
from edgewatt.harness.api import Channel, Run, Trace, UsageError
from edgewatt.harness.calibrated import applied, calibration_of
from edgewatt.harness.devicefile import Entry
from edgewatt.harness.energy import energy

ENTRY = Entry("orin", "jetson", "board.lan")
FACTS = {"model": "Orin Nano", "serial": "123", "kernel": "5.15"}
TOLD = {
    "meter": "ina3221", "channel": "VDD_IN",
    "fit": {"gain": 1.05, "gain_error": 0.002, "offset_w": 0.2, "offset_error_w": 0.01, "delay_s": 0.15,
            "delay_error_s": 0.01, "averaging_s": 0.3, "averaging_error_s": 0.02, "relative_error": 0.003},
    "reference": {"meter": "supply", "channel": "power", "boundary": "dc-input", "covers": "all", "gain_error": 0.004,
                  "wiring": {}},
    "seconds": 60.0, "levels": [0, 1, 2],
}  # fmt: skip


def kept(tmp_path, told=TOLD, facts=FACTS):
    path = tmp_path / "calibrations" / "orin.json"
    run = Run("r1", "2026-11-26T10:00:00+00:00", "orin", "calibrate", {}, facts, engine={"calibration": told})
    calibration_file.keep(path, ENTRY, run, "runs")
    return path


def test_what_is_kept_is_wanted_again_with_both_gain_errors(tmp_path):
    found = calibration_file.wanted(kept(tmp_path), ENTRY, FACTS)["ina3221"]
    assert (found["channel"], found["gain"], found["reference"], found["run"]) == ("VDD_IN", 1.05, "supply", "r1")
    assert found["gain_error"] == pytest.approx(0.005)  # 0.003 and 0.004 in quadrature
    assert len(found["sha256"]) == 64


def test_a_reference_without_gain_error_leaves_that_of_the_fit(tmp_path):
    told = {**TOLD, "reference": {**TOLD["reference"], "gain_error": None}}
    found = calibration_file.wanted(kept(tmp_path, told), ENTRY, FACTS)["ina3221"]
    assert (found["gain_error"], found["reference_gain_error"]) == (0.003, None)


def test_two_calibrated_channels_of_one_meter_are_refused(tmp_path):
    kept(tmp_path)
    path = kept(tmp_path, {**TOLD, "channel": "VDD_SOC"})
    with pytest.raises(UsageError, match=r"two channels of ina3221.*remove"):
        calibration_file.wanted(path, ENTRY, FACTS)


def test_another_board_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"of another board .*123.*456.*edgewatt calibrate orin"):
        calibration_file.wanted(kept(tmp_path), ENTRY, {**FACTS, "serial": "456"})


def test_no_calibration_is_refused_with_the_next_step(tmp_path):
    with pytest.raises(UsageError, match=r"no calibration is stored.*edgewatt calibrate orin"):
        calibration_file.wanted(tmp_path / "none.json", ENTRY, FACTS)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', json.dumps({"version": 1, "calibrations": {"a/b": {}}})])
def test_a_damaged_file_is_one_clear_line(tmp_path, text):
    path = kept(tmp_path)
    path.write_text(text)
    with pytest.raises(UsageError, match="calibrate again"):
        calibration_file.wanted(path, ENTRY, FACTS)


def test_a_calibration_changes_values_times_and_channel_of_a_gauge(tmp_path):
    told = calibration_file.wanted(kept(tmp_path), ENTRY, FACTS)["ina3221"]
    channel = Channel("VDD_IN", "power", "W", "gauge", "module", "module", quantum=0.1, gain_error=0.05)
    raw = Trace("ina3221", "boottime", (channel,), np.array([1.0, 2.0]), np.array([[4.0], [np.nan]]),
                {"calibration": told})  # fmt: skip
    found, bound_s = applied(raw)
    assert found.values[0, 0] == pytest.approx(4.4)
    assert np.isnan(found.values[1, 0])
    assert found.t_s == pytest.approx([0.85, 1.85])
    c = found.channels[0]
    assert (c.boundary, c.averaging_s, bound_s) == ("dc-input", 0.3, 0.01)
    assert c.gain_error == pytest.approx(0.005)
    assert raw.values[0, 0] == 4.0, "the raw values stay"


def test_an_offset_of_a_counter_grows_with_time(tmp_path):
    told = calibration_file.wanted(kept(tmp_path), ENTRY, FACTS)["ina3221"]
    channel = Channel("VDD_IN", "energy", "J", "counter", "module", "module")
    raw = Trace("ina3221", "boottime", (channel,), np.array([10.0, 20.0]), np.array([[0.0], [100.0]]),
                {"calibration": told})  # fmt: skip
    assert np.diff(applied(raw)[0].values[:, 0]) == pytest.approx([1.05 * 100 + 0.2 * 10])


@pytest.mark.parametrize("offset_w", [-0.2, 0.0, 0.2])
def test_a_counter_read_faster_than_it_is_renewed_keeps_its_energy(tmp_path, offset_w):
    """Renewed every 0.1 s, read every 20 ms; 3 W and a wave of 2 W on it, whose joules are known in closed form."""
    told = calibration_file.wanted(kept(tmp_path), ENTRY, FACTS)["ina3221"] | {"offset_w": offset_w, "gain": 1.0}
    t = np.arange(0, 60, 0.02)
    renewed = np.floor(t / 0.1 + 1e-9) * 0.1
    channel = Channel("VDD_IN", "energy", "J", "counter", "module", "module")
    values = 3 * renewed + 2 / 0.7 * (1 - np.cos(0.7 * renewed))
    values[7] = np.nan
    raw = Trace("ina3221", "boottime", (channel,), t, values[:, None], {"calibration": told | {"delay_s": None}})
    found = energy(applied(raw)[0], "VDD_IN", 10.0, 50.0)
    true_j = (3 + offset_w) * 40 + 2 / 0.7 * (np.cos(7.0) - np.cos(35.0))
    assert abs(found.energy_j - true_j) <= found.uncertainty_j < 0.03 * true_j
    assert found.resets == 0 and found.update_period_s == pytest.approx(0.1, rel=0.02)


def test_a_trace_without_its_calibrated_channel_is_as_it_was_and_says_nothing(tmp_path):
    told = calibration_file.wanted(kept(tmp_path), ENTRY, FACTS)["ina3221"] | {"channel": "VDD_OTHER"}
    channel = Channel("VDD_IN", "power", "W", "gauge", "x")
    raw = Trace("ina3221", "boottime", (channel,), np.array([1.0]), np.array([[1.0]]), {"calibration": told})
    assert applied(raw) == (raw, 0.0) and calibration_of(raw) is None


@pytest.mark.parametrize("text", ["{", '{"version": 2, "calibrations": {}}'])
def test_what_is_stored_and_not_understood_is_never_overwritten(tmp_path, text):
    path = kept(tmp_path)
    path.write_text(text)
    with pytest.raises(UsageError, match="remove it and calibrate again"):
        calibration_file.check(path)
    with pytest.raises(UsageError, match="remove it and calibrate again"):
        kept(tmp_path)
    assert path.read_text() == text and list(path.parent.iterdir()) == [path]


def test_a_trace_without_calibration_is_as_it_was():
    raw = Trace("m", "boottime", (Channel("P", "power", "W", "gauge", "x"),), np.array([1.0]), np.array([[1.0]]))
    found, bound_s = applied(raw)
    assert found is raw and bound_s == 0
