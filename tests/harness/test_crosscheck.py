"""Two meters against each other: powers whose ratio and delay are put in by hand come out again."""

import numpy as np
import pytest

from edgewatt.harness import agreement, flags
from edgewatt.harness.analysis import analyse
from edgewatt.harness.api import Channel, Trace
from support import made_run as made

PHASES = made.phases(repeats=3)
FEEDS = {"wiring": {"boundary": "dc-input"}}


def trace(meter, *, gain=1.0, late_s=0.0, boundary="dc-input", rate_hz=100.0, noise_w=0.02, seed=1, watts=made.WATTS,
          gain_error=0.01, **facts):  # fmt: skip
    """A gauge that shows the phases' power times `gain`, `late_s` after it was drawn."""
    t = made.stamps(PHASES, rate_hz) + 0.3 / rate_hz
    noise = noise_w * np.random.default_rng(seed).standard_normal(len(t))
    values = gain * made.level(t - late_s, made.knots(PHASES, watts)) + noise
    channel = Channel("power", "power", "W", "gauge", "the board", boundary, gain_error=gain_error)
    return Trace(meter, "boottime", (channel,), t, values[:, None], facts)


def analysed(*traces):
    return analyse(made.run(PHASES, traces))


def disagreement(flags_found):
    return [f for f in flags_found if f.flag == flags.METERS_DISAGREE]


def test_meters_that_agree_have_ratio_one_inside_its_interval_and_no_flag():
    for seed in range(5):
        found, doubts, _ = analysed(trace("supply", seed=seed, **FEEDS), trace("own", seed=100 + seed, rate_hz=20.0))
        m = made.one(found, "meter_ratio")
        assert (m.meter, m.unit, m.boundary, m.n) == ("supply vs own", "1", "dc-input", 3)
        assert abs(m.value - 1) < 0.002
        assert 0.0141 < m.uncertainty < 0.02, "two gain errors of 1 % are root 2 % together"
        assert not disagreement(doubts)


def test_ratio_is_the_first_meter_by_the_second():
    found, doubts, _ = analysed(trace("supply", gain=1.05, **FEEDS), trace("own"))
    assert made.one(found, "meter_ratio").value == pytest.approx(1.05, abs=0.001)
    (flag,) = disagreement(doubts)
    assert (flag.meter, flag.voids) == ("supply vs own", ())
    assert "1.050" in flag.detail
    assert "supply (dc-input) / own (dc-input)" in flag.detail
    assert "one of them is wrong" in flag.detail
    assert "edgewatt calibrate" in flag.detail


def test_the_order_of_the_traces_does_not_matter():
    found, _, _ = analysed(trace("own"), trace("supply", gain=1.05, **FEEDS))
    assert made.one(found, "meter_ratio").meter == "supply vs own"
    assert made.one(found, "meter_ratio").value == pytest.approx(1.05, abs=0.001)


def test_a_wider_boundary_may_hold_more():
    _, doubts, _ = analysed(trace("supply", gain=1.1, **FEEDS), trace("own", boundary="module"))
    (flag,) = disagreement(doubts)
    assert "supply (dc-input) may hold more than own (module)" in flag.detail


def test_a_part_cannot_show_more_than_the_whole():
    _, doubts, _ = analysed(trace("supply", gain=0.9, **FEEDS), trace("own", boundary="module"))
    (flag,) = disagreement(doubts)
    assert "that cannot be" in flag.detail
    _, doubts, _ = analysed(trace("supply", gain=0.9, **FEEDS), trace("rapl", boundary="package"))
    assert "that cannot be" in disagreement(doubts)[0].detail


def test_a_package_that_takes_less_than_the_board_is_no_contradiction():
    found, doubts, _ = analysed(trace("supply", gain=2.0, **FEEDS), trace("rapl", boundary="package"))
    assert made.one(found, "meter_ratio").value == pytest.approx(2.0, abs=0.002)
    assert not disagreement(doubts)


def test_a_gain_error_that_nobody_states_is_told_not_to_be_in_the_interval():
    found, doubts, _ = analysed(trace("supply", gain=1.05, **FEEDS), trace("own", gain_error=None))
    m = made.one(found, "meter_ratio")
    assert m.uncertainty == pytest.approx(0.0105, abs=0.001)
    for words in (m.method, disagreement(doubts)[0].detail):
        assert "no gain error of own, which is not stated" in words


def test_a_spread_over_windows_larger_than_the_bars_widens_the_interval():
    t = made.stamps(PHASES)
    values = made.level(t, made.knots(PHASES))
    windows = [p for p in PHASES if p.phase == "window"]
    for p, gain in zip(windows, (0.98, 1.0, 1.02), strict=True):
        values[(t > p.start_s - 0.5) & (t < p.end_s + 0.5)] *= gain
    noise = 0.02 * np.random.default_rng(3).standard_normal(len(t))
    uneven = made.with_column(trace("own", gain_error=0.0), values + noise)
    found, _, _ = analysed(trace("supply", gain_error=0.0, **FEEDS), uneven)
    m = made.one(found, "meter_ratio")
    # Student's t of two degrees of freedom (4.303) by the standard error 0.02 / sqrt(3).
    assert m.uncertainty == pytest.approx(4.303 * 0.02 / np.sqrt(3), rel=0.1)


def test_no_meter_in_the_supply_line_means_no_comparison():
    found, doubts, _ = analysed(trace("one"), trace("two", gain=2.0))
    assert not {m.metric for m in found} & {"meter_ratio", "meter_lag_s"}
    assert not disagreement(doubts)


def test_two_external_meters_are_compared_once():
    found, _, _ = analysed(trace("first", **FEEDS), trace("second", seed=2, **FEEDS), trace("own", seed=3))
    assert {m.meter for m in found if m.metric == "meter_ratio"} == {
        "first vs second", "first vs own", "second vs own",
    }  # fmt: skip


def test_a_meter_whose_joules_are_void_is_not_compared():
    charging = trace("own", charging=0.5)
    found, doubts, warnings = analysed(trace("supply", gain=1.5, **FEEDS), charging)
    assert not [m for m in found if m.metric == "meter_ratio"]
    assert not disagreement(doubts)
    assert any("supply vs own: not compared" in w and "charging" in w for w in warnings)


@pytest.mark.parametrize("late_s", [-0.7, -0.013, 0.0, 0.2, 1.4])
def test_lag_is_found_with_its_interval(late_s):
    hits = 0
    for seed in range(10):
        own = trace("own", late_s=late_s, rate_hz=10.0, noise_w=0.3, seed=seed)
        found, _, _ = analysed(trace("supply", seed=50 + seed, noise_w=0.3, **FEEDS), own)
        m = made.one(found, "meter_lag_s")
        assert abs(m.value - late_s) < 0.05
        hits += abs(m.value - late_s) <= m.uncertainty
    assert hits >= 8


def test_lag_of_a_constant_power_is_unknown():
    still = dict.fromkeys(made.WATTS, 5.0)
    found, _, warnings = analysed(trace("supply", watts=still, **FEEDS), trace("own", watts=still, seed=2))
    assert not [m for m in found if m.metric == "meter_lag_s"]
    assert any("lag unknown" in w and "vary" in w for w in warnings)
    assert made.one(found, "meter_ratio").value == pytest.approx(1.0, abs=0.002)


def test_agreement_has_the_bias_and_limits_that_were_put_in():
    a, b = trace("a", gain=1.0, noise_w=0.0, **FEEDS), trace("b", noise_w=0.0)
    t = a.t_s
    shift = np.where((t // 1.0).astype(int) % 2 == 0, 0.3, 0.1)  # a - b by whole seconds; means of a bin differ by it
    a = made.with_column(a, a.values[:, 0] + shift + 1e-3 * np.random.default_rng(1).standard_normal(len(t)))
    (pair,) = agreement.pairs([(a, 0.0), (b, 0.0)])
    found = agreement.bland_altman(pair)
    assert found.bias_w == pytest.approx(0.2, abs=0.005)
    assert found.high_w - found.bias_w == pytest.approx(1.96 * np.std(found.difference_w, ddof=1))
    assert found.high_w - found.bias_w == pytest.approx(0.196, rel=0.2)
    assert 50 <= len(found.mean_w) <= 500


def test_bins_with_a_gap_are_left_out_of_the_agreement():
    a, b = trace("a", **FEEDS), trace("b", rate_hz=10.0)
    holed = b.values[:, 0].copy()
    holed[(b.t_s > 120) & (b.t_s < 135)] = np.nan
    (pair,) = agreement.pairs([(a, 0.0), (made.with_column(b, holed), 0.0)])
    found = agreement.bland_altman(pair)
    assert np.all(np.abs(found.difference_w) < 5), "an interpolated gap would differ by watts"
    assert len(found.mean_w) * found.bin_s < a.t_s[-1] - a.t_s[0] - 14
