import dataclasses

from edgewatt.harness.api import Channel, Flag, Measurement, RunError
from edgewatt.reports import conclusions
from support.hand_runs import MEASURED, bare_run, hand_run, trace_of

RAIL = Channel("VDD", "power", "W", "gauge", "the board", "board")


def energy(value, meter, boundary):
    return Measurement("energy_per_inference_j", value, 0.01, "J", "window", 10, "by hand", meter, boundary)


def test_flag_voids_the_metrics_it_names_and_no_others():
    run = hand_run(flags=[Flag("throttled", ("latency_s",), "2.4 GHz to 1.2 GHz")])
    void = {r.measurement.metric for r in conclusions.results(run) if not r.is_valid}
    assert void == {"latency_s"}


def test_flag_of_one_meter_leaves_the_others_valid():
    both = [energy(1.0, "rapl", "package"), energy(2.0, "hwmon/ina", "board"), energy(0.5, "hwmon2", "board")]
    run = hand_run(measured=both, flags=[Flag("gap", ("energy_per_inference_j",), "3 s", "hwmon")])
    assert {r.measurement.meter: r.is_valid for r in conclusions.results(run)} == {
        "rapl": True,
        "hwmon/ina": False,
        "hwmon2": True,
    }


def test_headline_is_the_widest_valid_boundary():
    found = [energy(1.0, "rapl", "package"), energy(2.0, "psu", "wall"), energy(1.5, "ina", "board")]
    assert conclusions.headline(hand_run(measured=found))[0].main.measurement.meter == "psu"
    spoiled = hand_run(measured=found, flags=[Flag("gap", ("energy_per_inference_j",), "3 s", "psu")])
    assert conclusions.headline(spoiled)[0].main.measurement.meter == "ina"


def test_idle_power_is_not_taken_for_the_power_of_the_run():
    tile = next(t for t in conclusions.headline(hand_run()) if t.label == "Power, gross")
    assert tile.main.measurement.value == 5.4321
    assert [r.label for r in tile.lesser] == ["Idle power"]


def test_run_that_got_no_further_than_idle_has_no_power_of_its_own():
    idle = Measurement("power_w", 1.0, 0.02, "W", "idle", 1, "by hand", "rapl", "package")
    run = hand_run(measured=[idle], error=RunError("hung", "no sign of life for 30 s"))
    assert conclusions.best(run, "power_w") is None
    assert [t.label for t in conclusions.headline(run) if t.main] == []


def test_net_and_power_stand_beside_the_energy_of_the_same_meter():
    other = energy(9.0, "psu", "wall")
    tile = conclusions.headline(hand_run(measured=[*MEASURED, other]))[0]
    assert tile.main.measurement.meter == "psu"
    assert tile.lesser == ()


def test_device_without_sensor_has_no_joules_in_words():
    assert conclusions.no_joules(bare_run()) == "no joules: board has no power sensor that could be read"


def test_doubt_about_speed_is_not_the_reason_for_missing_joules():
    run = bare_run(flags=(Flag("throttled", ("latency_s", "energy_j"), "fell by 30 %"),))
    assert conclusions.no_joules(run) == "no joules: board has no power sensor that could be read"


def test_sensor_that_could_not_support_a_figure_says_why():
    gap = Flag("gap", ("energy_j", "energy_per_inference_j"), "3.2 s without a reading", "m")
    run = bare_run(traces=[trace_of(RAIL, [0, 1], [2, 2])], flags=(gap,))
    assert conclusions.no_joules(run) == "no joules: gap (3.2 s without a reading)"


def test_voided_energy_is_no_joules_with_the_flag_as_reason():
    run = hand_run(flags=[Flag("charging", ("energy_per_inference_j",), "62 % of the readings", "rapl")])
    assert conclusions.no_joules(run) == "joules were measured, but are void: charging (62 % of the readings)"
    assert conclusions.no_joules(hand_run()) == ""


def test_run_that_ended_badly_has_no_joules_for_that_reason():
    run = bare_run(error=RunError("hung", "no sign of life for 30 s"), traces=[trace_of(RAIL, [0, 1], [2, 2])])
    assert conclusions.no_joules(run) == "no joules: the run ended before they were measured"


def test_quality_from_synthetic_weights_is_marked_even_if_nothing_voids_it():
    run = hand_run(flags=[Flag("synthetic_weights", (), "seed 0")])
    marked = {r.measurement.metric for r in conclusions.results(run) if "synthetic weights" in r.marks}
    assert marked == {"ap", "ap50"}


def test_every_figure_of_a_simulated_device_is_marked():
    run = hand_run(flags=[Flag("simulated", (), "an emulated tree")])
    assert all(r.marks == ("simulated",) for r in conclusions.results(run))


def test_only_the_figures_of_a_simulated_meter_are_marked():
    run = hand_run(flags=[Flag("simulated", (), "an emulated tree", "rapl")])
    marked = {r.measurement.metric for r in conclusions.results(run) if r.marks}
    assert marked == {"energy_per_inference_j", "energy_per_inference_net_j", "power_w"}


def test_flag_of_a_plugin_keeps_its_evidence_though_it_has_no_meaning_here():
    run = dataclasses.replace(bare_run(), flags=(Flag("on_fire", (), "at 300 degC"),))
    assert [(d.meaning, d.detail) for d in conclusions.doubts(run)] == [("", "at 300 degC")]
