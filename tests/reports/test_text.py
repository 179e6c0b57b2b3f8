from edgewatt.harness.api import Flag, Measurement, RunError
from edgewatt.reports import text
from support.hand_runs import MEASURED, bare_run, hand_run


def line_of(summary, start):
    return next(line for line in summary.splitlines() if line.strip().startswith(start))


def test_summary_has_value_uncertainty_unit_and_n():
    found = text.summary(hand_run())
    assert line_of(found, "Energy per inference ").split() == [
        "Energy", "per", "inference", "12.35", "±", "0.50", "mJ", "n=1503", "rapl,", "package",
    ]  # fmt: skip
    assert "19.954 ± 0.080 ms" in line_of(found, "Latency, median")
    assert "50.12 ± 0.20 FPS" in line_of(found, "Throughput")
    assert "0.2345" in line_of(found, "AP ")
    assert "1.000 ± 0.020 W" in line_of(found, "Idle power")


def test_cost_of_sampling_is_told_by_meter():
    costs = [
        Measurement("sampler_cpu_s_per_s", c, None, "1", "run", 1, "", m) for m, c in (("jtop", 0.07), ("h", 0.01))
    ]
    found = [line.split() for line in text.summary(hand_run(measured=[*MEASURED, *costs])).splitlines()]
    told = [line for line in found if line[:2] == ["Sampling", "cost"]]
    assert [(line[6], line[-1]) for line in told] == [("0.01000", "h"), ("0.07000", "jtop")]


def test_voided_figure_is_bracketed_and_says_what_voids_it():
    run = hand_run(flags=[Flag("low_coverage", ("power_w",), "61 % (limit 95 %)", "rapl")])
    assert "(5.432 ± 0.043 W)" in line_of(text.summary(run), "Power ")
    assert "void: low coverage" in line_of(text.summary(run), "Power ")


def test_flags_are_told_in_words_with_their_evidence():
    run = hand_run(flags=[Flag("charging", ("energy_j",), "62 % of the readings", "battery")])
    told = " ".join(text.summary(run).split())
    assert "charging (battery): The battery was being charged" in told
    assert "Evidence: 62 % of the readings. Not usable: Energy." in told


def test_voided_metrics_whose_names_hold_commas_are_told_apart():
    run = hand_run(flags=[Flag("throttled", ("latency_s", "latency_p90_s"), "fell by 30 %")])
    assert "Not usable: Latency, median; Latency, p90." in " ".join(text.summary(run).split())


def test_run_without_power_says_so_and_shows_no_joule():
    found = text.summary(hand_run(with_power=False))
    assert "no joules: host has no power sensor that could be read" in found
    assert "mJ" not in found
    assert " J" not in found


def test_error_stands_on_the_second_line():
    run = bare_run(error=RunError("out_of_memory", "board: the model was killed; give it more memory"))
    assert text.summary(run).splitlines()[1] == (
        "ended badly (out of memory): board: the model was killed; give it more memory"
    )


def test_control_characters_of_a_device_do_not_reach_the_terminal():
    run = bare_run(device_name="pi\x1b[2Jxel\u202e\r7", warnings=("a\x07b\nc",))
    found = text.summary(run)
    assert "pi[2Jxel7" in found
    assert "ab c" in found
    assert not any(c in found for c in "\x1b\x07\r\u202e")
