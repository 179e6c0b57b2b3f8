import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewatt.harness.api import Flag, Measurement, RunError
from edgewatt.reports import scatter
from support.hand_runs import bare_run, hand_run


def measured(latency_s, energy_j, ap=None, boundary="board", meter="ina"):
    found = [
        Measurement("latency_s", latency_s, 0.0001, "s", "window", 9, "by hand"),
        Measurement("energy_per_inference_j", energy_j, 0.001, "J", "window", 9, "by hand", meter, boundary),
    ]
    return tuple(found + ([Measurement("ap", ap, None, "1", "", 9, "by hand")] if ap is not None else []))


def run(latency_s, energy_j, ap=None, boundary="board", size=416, **changes):
    return bare_run(measurements=measured(latency_s, energy_j, ap, boundary), spec={"size": size}, **changes)


def test_front_holds_what_no_other_beats():
    #             fast+dear  beaten  middle  slow+cheap  beaten by the last
    cost = np.array([1.0, 2.0, 2.0, 4.0, 5.0])
    other = np.array([9.0, 9.5, 5.0, 1.0, 1.0])
    np.testing.assert_array_equal(scatter.front(cost, other), [True, False, True, True, False])


def test_two_runs_at_the_same_place_are_both_on_the_front():
    np.testing.assert_array_equal(
        scatter.front(np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 3.0])), [True, True, False]
    )


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=30))
@settings(deadline=None)
def test_front_is_what_pairwise_comparison_leaves(points):
    def is_beaten(p):
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)

    cost, other = np.array(points, float).T
    assert scatter.front(cost, other).tolist() == [not is_beaten(p) for p in points]


def test_quality_is_better_when_higher():
    runs = [run(0.01, 1.0, ap=0.2), run(0.01, 2.0, ap=0.3, size=640), run(0.01, 3.0, ap=0.25, size=320)]
    plane = next(p for p in scatter.planes(runs) if p.title == "AP by energy")
    assert [p.is_best for p in plane.points] == [True, True, False]


def test_joules_of_two_boundaries_are_never_set_against_each_other():
    runs = [run(0.01, 1.0), run(0.02, 0.5, size=320), run(0.03, 0.1, boundary="package", size=640)]
    plane = scatter.planes(runs)[0]
    assert [p.number for p in plane.points] == [1, 2]
    assert "no joules within the same boundary" in plane.left_out[0]
    assert plane.y_label == "Energy per inference (board)"


def test_voided_and_failed_runs_are_left_out_with_the_reason():
    void = run(0.03, 0.1, size=640, flags=(Flag("throttled", ("latency_s",), "x"),))
    bad = bare_run(spec={"size": 800}, error=RunError("hung", "x"))
    plane = scatter.planes([run(0.01, 1.0), run(0.02, 0.5, size=320), void, bad])[0]
    assert plane.left_out == ("3: size 640 (latency is void: throttled)", "4: size 800 (ended badly: hung)")


def test_simulated_points_are_told_apart():
    runs = [run(0.01, 1.0), run(0.02, 0.5, size=320, flags=(Flag("simulated", (), "emulated"),))]
    assert [p.is_simulated for p in scatter.planes(runs)[0].points] == [False, True]


def test_runs_are_named_by_what_differs():
    runs = [
        bare_run(spec={"size": s, "engine": e, "seed": k}) for k, (s, e) in enumerate([(320, "torch"), (416, "ncnn")])
    ]
    assert scatter.labels(runs) == ["size 320 · torch", "size 416 · ncnn"]
    elsewhere = bare_run(spec=runs[0].spec, device_name="pixel")
    assert scatter.labels([runs[0], elsewhere]) == ["board", "pixel"]


def test_equal_runs_are_told_apart_by_their_ids():
    names = scatter.labels([hand_run(id="20260101T000000-aaaaaaaa"), hand_run(id="20260101T000000-bbbbbbbb")])
    assert names == ["host · aaaaaaaa", "host · bbbbbbbb"]


def test_numbers_of_points_on_each_other_share_one_text():
    runs = [run(0.0100, 1.0), run(0.0101, 1.001, size=320), run(0.05, 9.0, size=640)]
    assert sorted(text for _, _, text in scatter.crowds(scatter.planes(runs)[0])) == ["1, 2", "3"]


def spoken(tpot_s, token_j, size):
    more = (
        Measurement("tpot_s", tpot_s, 0.001, "s", "window", 9, "by hand"),
        Measurement("energy_per_token_j", token_j, 0.01, "J", "window/decode", 9, "by hand", "ina", "board"),
        Measurement("energy_per_token_j", 2 * token_j, 0.01, "J", "decode", 9, "by hand", "ina", "board"),
        Measurement("pope_f1", 0.8, 0.01, "1", "run", 9, "by hand"),
    )
    return bare_run(measurements=measured(1.0, 4.0) + more, spec={"size": size})


def test_language_models_are_set_against_each_other_by_token():
    planes = {p.title: p for p in scatter.planes([spoken(0.04, 0.3, 336), spoken(0.08, 0.2, 384), run(0.01, 1.0)])}
    assert list(planes) == ["Energy by latency", "Energy of a token by its time", "POPE F1 by energy",
                            "POPE F1 by latency"]  # fmt: skip
    plane = planes["Energy of a token by its time"]
    assert [(p.x, p.y) for p in plane.points] == [(0.04, 0.3), (0.08, 0.2)]  # in the items, not in a loop
    assert (plane.y_label, plane.x_unit, plane.y_unit) == ("Energy per token (board)", "s", "J")
    assert "no time per token decoded" in plane.left_out[0]
    assert "no POPE F1" in planes["POPE F1 by energy"].left_out[0]
