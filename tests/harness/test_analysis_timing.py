"""Latency, throughput and durations against hand-computed values."""

import dataclasses
import math

import numpy as np
import pytest

from edgewatt.harness.analysis import analyse
from edgewatt.harness.analysis_timing import needed_for
from edgewatt.harness.api import Items, Phase, Run, RunError
from support import made_run as made


def lasting(*windows: list[float]) -> Run:
    """One window after the other, each with items of the given lengths."""
    phases: list[Phase] = []
    its: list[Items] = []
    for k, durations in enumerate(windows):
        phase, items = made.lasting(durations, phases[-1].end_s + 1 if phases else 100.0, k)
        phases.append(phase)
        its.append(items)
    return made.run(phases, its=joined(its))


def joined(its: list[Items]) -> Items:
    columns = ("item", "picture", "phase", "part", "repeat", "start_s", "end_s", "tokens")
    return dataclasses.replace(its[0], **{c: np.concatenate([getattr(i, c) for i in its]) for c in columns})


def voiding(run: Run, flag: str) -> list[tuple[str, ...]]:
    return [f.voids for f in analyse(run)[1] if f.flag == flag]


def test_latency_is_the_median_of_whole_items() -> None:
    # 1 ms ... 101 ms: the median is 51 ms, the 90 % quantile 91 ms, the 99 % quantile 100 ms.
    found, _, _ = analyse(lasting([k / 1000 for k in range(1, 102)]))
    assert made.one(found, "latency_s").value == pytest.approx(0.051)
    assert made.one(found, "latency_p90_s").value == pytest.approx(0.091)
    assert made.one(found, "latency_p99_s").value == pytest.approx(0.100)
    assert made.one(found, "latency_s").n == 101
    # The 95 % interval of a median of 101 values runs from the 41st to the 61st (binomial): 10 ms either way.
    assert made.one(found, "latency_s").uncertainty == pytest.approx(0.010, abs=0.002)


def test_whole_item_spans_its_phases_and_each_phase_is_reported() -> None:
    phases = made.phases()
    found, _, _ = analyse(made.run(phases))
    assert made.one(found, "latency_s").value == pytest.approx(0.1)
    for name, seconds in made.ITEM.items():
        assert made.one(found, "latency_s", name).value == pytest.approx(seconds)
        assert made.one(found, "latency_s", name).n == 400


def test_pause_between_two_phases_of_an_item_belongs_to_the_item() -> None:
    phases = made.phases(1)
    items = made.items(phases)
    shorter = dataclasses.replace(items, end_s=np.where(items.phase == 0, items.end_s - 0.005, items.end_s))
    found, _, _ = analyse(made.run(phases, its=shorter))
    assert made.one(found, "latency_s").value == pytest.approx(0.1)
    assert made.one(found, "latency_s", "preprocess").value == pytest.approx(0.015)


def test_first_item_is_kept_apart_from_sustained_ones() -> None:
    phases = made.phases()
    found, _, _ = analyse(made.run(phases, its=made.items(phases, first_s=0.45)))
    first = made.one(found, "first_latency_s", "warmup")
    assert (first.value, first.n, first.uncertainty) == (pytest.approx(0.45), 1, None)
    assert made.one(found, "latency_s").value == pytest.approx(0.1)


def test_first_second_of_work_is_told_apart_from_the_sustained_state() -> None:
    """Fast while cool: 30 ms for a second, then 100 ms; the first item of all counts in neither."""
    durations_s = [0.45, *[0.030] * 34, *[0.1] * 20]
    warmup, items = made.lasting(durations_s, 60.0)
    warmup = dataclasses.replace(warmup, phase="warmup")
    window, more = made.lasting([0.1] * 100)
    items, more = (dataclasses.replace(i, parts=("warmup", "window")) for i in (items, more))
    both = joined([items, dataclasses.replace(more, part=more.part + 1)])
    found, _, _ = analyse(made.run([warmup, window], its=both))
    m = made.one(found, "burst_latency_s", "warmup")
    assert (m.value, m.n, m.unit) == (pytest.approx(0.030), 34, "s")
    assert made.one(found, "latency_s").value == pytest.approx(0.1)


def test_throughput_is_items_by_duration() -> None:
    phases = made.phases()
    found, _, _ = analyse(made.run(phases))
    m = made.one(found, "throughput_fps")
    assert (m.value, m.n, m.unit) == (pytest.approx(10.0), 400, "1/s")
    assert m.uncertainty == pytest.approx(0.0, abs=1e-9)


def test_throughput_of_unlike_repeats_is_sum_by_sum_with_a_wide_bar() -> None:
    found, _, _ = analyse(lasting([0.1] * 100, [0.2] * 100))  # 200 items in 30 s
    m = made.one(found, "throughput_fps")
    assert m.value == pytest.approx(200 / 30)
    assert m.uncertainty is not None
    assert m.uncertainty > 5  # 10/s and 5/s


def test_durations_of_phases_are_added() -> None:
    found, _, _ = analyse(made.run(made.phases(3)))
    assert made.one(found, "duration_s", "window").value == pytest.approx(60.0)
    assert made.one(found, "duration_s", "idle").value == pytest.approx(40.0)
    assert made.one(found, "duration_s", "load").value == pytest.approx(1.0)


def test_repeats_that_differ_widen_the_bar_and_repeats_that_agree_do_not() -> None:
    rng = np.random.default_rng(3)
    durations = [list(0.1 + 0.01 * rng.random(400)) for _ in range(3)]
    alike = made.one(analyse(lasting(*durations))[0], "latency_s")
    apart = [[d + 0.002 * k for d in each] for k, each in enumerate(durations)]
    unlike = made.one(analyse(lasting(*apart))[0], "latency_s")
    assert alike.uncertainty is not None
    assert unlike.uncertainty is not None
    assert alike.uncertainty < 0.002
    assert unlike.uncertainty > 0.004  # the means lie 2 ms apart: t(2) x 2 ms / sqrt(3) = 5 ms


# few_samples


def test_fewest_items_follow_from_the_binomial_law() -> None:
    # 0.5^n <= 0.025 from n = 6 on, 0.9^n from 36, 0.99^n from 368.
    assert [needed_for(q) for q in (0.5, 0.9, 0.99)] == [6, 36, 368]


def test_p99_of_367_items_is_void_and_of_368_it_stands() -> None:
    assert ("latency_p99_s",) in voiding(lasting([0.01] * 184, [0.01] * 183), "few_samples")
    assert voiding(lasting([0.01] * 184, [0.01] * 184), "few_samples") == []


def test_five_items_do_not_even_make_a_median() -> None:
    run = lasting([0.01] * 3, [0.01] * 2)
    assert voiding(run, "few_samples") == [("latency_s", "latency_p90_s", "latency_p99_s")]
    (flag,) = [f for f in analyse(run)[1] if f.flag == "few_samples"]
    assert "5 items" in flag.detail
    assert "latency_p99_s needs 368" in flag.detail


def test_one_repeat_is_told_and_voids_nothing() -> None:
    assert voiding(lasting([0.01] * 400), "few_samples") == [()]
    assert voiding(lasting([0.01] * 400, [0.01] * 400), "few_samples") == []


# not_steady


def test_latency_that_creeps_up_is_not_steady() -> None:
    rng = np.random.default_rng(1)
    noise = 1 + 0.01 * rng.standard_normal(600)
    creep = list(0.1 * noise * np.linspace(1.0, 1.12, 600))  # thirds differ by 8 %
    (voids,) = voiding(lasting(creep), "not_steady")
    assert {"latency_s", "throughput_fps", "energy_per_inference_j"} <= set(voids)
    (flag,) = [f for f in analyse(lasting(creep))[1] if f.flag == "not_steady"]
    assert "limit 5%" in flag.detail


def test_small_creep_and_plain_noise_are_steady() -> None:
    rng = np.random.default_rng(1)
    noise = 1 + 0.1 * rng.standard_normal(600)
    assert voiding(lasting(list(0.1 * noise * np.linspace(1.0, 1.04, 600))), "not_steady") == []  # thirds: 2.7 %
    few = 1 + 0.2 * rng.standard_normal(30)
    assert voiding(lasting(list(0.1 * few)), "not_steady") == []


def test_step_from_one_window_to_the_next_is_not_steady() -> None:
    rng = np.random.default_rng(2)
    windows = [list(level * (1 + 0.01 * rng.standard_normal(300))) for level in (0.100, 0.104, 0.108)]
    assert len(voiding(lasting(*windows), "not_steady")) == 1
    same = [list(0.1 * (1 + 0.01 * rng.standard_normal(300))) for _ in range(3)]
    assert voiding(lasting(*same), "not_steady") == []


def test_warm_up_that_never_settled_is_told() -> None:
    phases = made.phases()
    events = [
        {"repeat": 0, "reached": True, "after_s": 1.5},
        {"repeat": 1, "reached": False, "after_s": 60.0, "detail": "block medians 4 % apart"},
    ]
    (flag,) = [f for f in analyse(made.run(phases, engine={"steady": events}))[1] if f.flag == "not_steady"]
    assert flag.voids == ()
    assert "1 of 2 warm-ups" in flag.detail and "after 60 s: block medians 4 % apart" in flag.detail
    assert voiding(made.run(phases, engine={"steady": events[:1]}), "not_steady") == []


# Runs that ended badly, odd data


def test_window_cut_off_by_an_error_gives_no_number() -> None:
    phases = made.phases(2)
    cut = [p for p in phases if p.repeat == 0]
    last = Phase("window", cut[-1].end_s + 3, cut[-1].end_s + 8, 30, 1)
    run = made.run((*cut, last), spec={"window_s": 20.0}, error=RunError("crashed", "SIGSEGV"))
    found, _, warnings = analyse(run)
    assert made.one(found, "latency_s").n == 200
    assert made.one(found, "throughput_fps").value == pytest.approx(10.0)
    assert made.one(found, "duration_s").value == pytest.approx(20.0)
    assert any("repeat 1 was cut off after 5 s" in w for w in warnings)


def test_items_of_a_window_that_never_ended_are_not_counted() -> None:
    phases = made.phases(2)
    items = made.items(phases)
    ended = [p for p in phases if (p.phase, p.repeat) != ("window", 1)]
    found, _, _ = analyse(made.run(ended, its=items, error=RunError("killed", "SIGKILL")))
    assert made.one(found, "latency_s").n == 200


def test_recorded_items_win_over_the_claimed_number() -> None:
    phases = made.phases(2)
    claimed = [dataclasses.replace(p, items=p.items + 5) if p.phase == "window" else p for p in phases]
    found, _, warnings = analyse(made.run(claimed, its=made.items(phases)))
    assert made.one(found, "throughput_fps").n == 400
    assert any("says it ran 205 items, 200 are recorded" in w for w in warnings)


def test_without_recorded_items_the_claimed_number_counts_and_there_is_no_latency() -> None:
    found, flags, _ = analyse(made.run(made.phases(2), its=Items.none()))
    assert made.one(found, "throughput_fps").value == pytest.approx(10.0)
    assert ("latency_s", "window") not in made.names(found)
    assert any(f.flag == "few_samples" and "latency_s" in f.voids for f in flags)


def test_phase_of_no_length_is_left_out_and_said() -> None:
    phases = made.phases(1)
    at = phases[-1].end_s
    found, _, warnings = analyse(made.run((*phases, Phase("idle", at, at), Phase("idle", at, math.nan))))
    assert made.one(found, "duration_s", "idle").value == pytest.approx(20.0)
    assert sum("left out" in w for w in warnings if w.startswith("idle")) == 2


def test_items_that_run_backwards_are_left_out_and_said() -> None:
    phases = made.phases(2)
    items = made.items(phases)
    end = items.end_s.copy()
    end[-3:] = items.start_s[-3:] - 1.0
    found, _, warnings = analyse(made.run(phases, its=dataclasses.replace(items, end_s=end)))
    assert made.one(found, "latency_s").n == 399
    assert any(w.startswith("3 of ") for w in warnings)


def test_run_without_anything_gives_a_warning_and_no_number() -> None:
    found, flags, warnings = analyse(made.run((), its=Items.none()))
    assert found == ()
    assert flags == ()
    assert len(warnings) == 1
