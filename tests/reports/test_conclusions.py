import dataclasses

from edgewatt.harness.analysis_energy import GAIN_UNTOLD
from edgewatt.harness.api import Channel, Flag, Measurement, RunError
from edgewatt.reports import breakdown, conclusions
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


def test_meter_in_the_supply_line_is_trusted_before_the_devices_own():
    found = [energy(2.0, "gauge", "battery"), energy(1.5, "supply", "rails")]
    external = trace_of(RAIL, [0, 1], [2, 2], "supply", wiring={"boundary": "rails"})
    assert conclusions.headline(hand_run(measured=found))[0].main.measurement.meter == "gauge"
    run = hand_run(measured=found, traces=[external])
    assert conclusions.headline(run)[0].main.measurement.meter == "supply"
    spoiled = hand_run(
        measured=found, traces=[external], flags=[Flag("gap", ("energy_per_inference_j",), "3 s", "supply")]
    )
    assert conclusions.headline(spoiled)[0].main.measurement.meter == "gauge"


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


def test_budget_with_rounding_as_a_gain_says_that_the_sensors_own_is_not_known():
    rounding = {"gain": 0.01, "edge": 0.02}
    told = dataclasses.replace(energy(1.0, "supply", "dc-input"), parts=rounding)
    untold = dataclasses.replace(told, method=f"by hand; {GAIN_UNTOLD}")
    run = hand_run(measured=[told, untold])
    assert [bool(b.note) for r in conclusions.results(run) if (b := breakdown.budget(r))] == [False, True]


def token(value, phase, meter="rapl", boundary="package"):
    return Measurement("energy_per_token_j", value, 0.01, "J", phase, 10, "by hand", meter, boundary)


SPOKEN = (
    Measurement("latency_s", 1.2, 0.01, "s", "window", 20, "by hand"),
    Measurement("ttft_s", 0.7, 0.02, "s", "window", 20, "by hand"),
    Measurement("ttft_p90_s", 0.8, 0.02, "s", "window", 20, "by hand"),
    Measurement("decode_tokens_per_s", 25.0, 0.5, "1/s", "window", 240, "by hand"),
    Measurement("prefill_tokens_per_s", 360.0, 4.0, "1/s", "window", 3600, "by hand"),
    Measurement("flops_per_s", 1.5e12, 1e10, "FLOP/s", "prefill", 20, "by hand"),
    Measurement("pope_f1", 0.85, 0.01, "1", "run", 500, "by hand"),
    energy(3.84, "rapl", "package"),
    token(0.02, "prefill"), token(0.03, "window/prefill"), token(0.33, "decode"), token(0.32, "window/decode"),
)  # fmt: skip


def test_headline_of_a_language_model_has_its_first_token_its_speed_and_the_energy_of_a_token():
    tiles = {t.label: t for t in conclusions.headline(hand_run(measured=SPOKEN))}
    assert str(tiles["Time to first token, median"].main.quantity) == "700 ± 20 ms"
    assert [r.label for r in tiles["Time to first token, median"].lesser] == ["Time to first token, p90"]
    assert str(tiles["Decoding speed"].main.quantity) == "25.00 ± 0.50 tokens/s"
    assert [str(r.quantity) for r in tiles["Decoding speed"].lesser] == ["360.0 ± 4.0 tokens/s"]
    assert tiles["POPE F1"].main.measurement.value == 0.85
    # Decoded in the items before looped alone, never the prompt's.
    assert tiles["Energy per token decoded"].main.measurement.value == 0.32
    absent = {t.label for t in conclusions.headline(hand_run())}
    assert not absent & {"Time to first token, median", "Decoding speed", "Energy per token decoded"}


def test_energy_of_a_token_in_a_loop_stands_where_the_items_have_none():
    run = hand_run(measured=[m for m in SPOKEN if not m.phase.startswith("window/")])
    assert conclusions.best(run, "energy_per_token_j").measurement.value == 0.33


def test_energy_of_a_token_is_of_the_meter_of_the_headline():
    run = hand_run(measured=[*SPOKEN, energy(9.0, "psu", "wall"), token(0.7, "decode", "psu", "wall")])
    tiles = {t.label: t for t in conclusions.headline(run)}
    assert tiles["Energy per token decoded"].main.measurement.meter == "psu"


def test_work_of_a_phase_has_a_heading_of_its_own_and_reads_well():
    (r,) = [r for r in conclusions.results(hand_run(measured=SPOKEN)) if r.measurement.metric == "flops_per_s"]
    assert (r.label, str(r.quantity)) == ("Operations per second", "1.500 ± 0.010 TFLOP/s")


def test_what_is_void_names_figures_of_tokens_only_where_there_are_any():
    flag = Flag("throttled", ("latency_s", "ttft_s", "energy_per_token_j"), "2.4 GHz to 1.2 GHz")
    assert conclusions.doubts(hand_run(flags=[flag]))[0].voids == ("Latency, median",)
    assert conclusions.doubts(hand_run(measured=SPOKEN, flags=[flag]))[0].voids == (
        "Latency, median", "Time to first token, median", "Energy per token",
    )  # fmt: skip
