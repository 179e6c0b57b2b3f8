"""Facts about energy that have a closed form or can be counted by hand."""

import dataclasses

import numpy as np
import pytest

from edgewatt.harness.api import Channel, Trace
from edgewatt.harness.energy import (
    GapError,
    energies,
    energy,
    minimum_window_s,
    net,
    sum_of,
    update_period,
)


def trace(t, values, kind="gauge", meter="m", **channel):
    quantity, unit = ("power", "W") if kind == "gauge" else ("energy", "J")
    c = Channel("x", quantity, unit, kind, "all of it", **channel)
    return Trace(meter, "boottime", (c,), np.asarray(t, float), np.asarray(values, float)[:, None])


def test_gauge_is_integrated_with_its_ends_interpolated():
    # A ramp of 2 W/s, sampled unevenly: from 0.25 s to 2.5 s it uses 2.5^2 - 0.25^2 J.
    t = np.array([0.0, 0.4, 1.0, 1.3, 2.2, 3.0])
    e = energy(trace(t, 2 * t), "x", 0.25, 2.5)
    assert e.energy_j == pytest.approx(2.5**2 - 0.25**2, abs=1e-12)
    assert e.n == 4
    assert e.power_w == pytest.approx(e.energy_j / 2.25)
    assert e.coverage == 1.0


def test_counter_is_subtracted_not_integrated():
    t = np.arange(0, 10.01, 0.1)
    e = energy(trace(t, 7 + 3 * t, "counter"), "x", 1.05, 9.0)
    assert e.energy_j == pytest.approx(3 * 7.95, abs=1e-9)


def test_counter_is_interpolated_between_the_refreshes_around_each_end():
    # 4 W, refreshed each second on the second, read every 0.01 s: reading the counter at 1.5 s and 8.5 s would give
    # 28 J too, but at 1.9 s and 8.1 s it would give 28 J as well, instead of 24.8 J.
    t = np.arange(0, 10, 0.01) + 0.005
    e = energy(trace(t, 4 * np.floor(t), "counter"), "x", 1.9, 8.1)
    assert e.energy_j == pytest.approx(4 * 6.2, abs=4 * 0.01)
    assert e.update_period_s == pytest.approx(1.0, abs=0.001)
    assert e.n == 7  # the refreshes at 2, 3, ... 8 s
    assert e.stale_share == pytest.approx(1 - 7 / 620, abs=0.001)


def test_wrap_is_added():
    t = np.arange(0, 10, 0.1)
    counted = (95 + 2 * t) % 100
    e = energy(trace(t, counted, "counter", wraps_at=100.0), "x", 1, 9)
    assert e.energy_j == pytest.approx(16, abs=1e-9)
    assert e.resets == 0


@pytest.mark.parametrize("shown", ["at once", "at once, counting on", "with the next refresh", "after a reboot"])
@pytest.mark.parametrize("reads_per_refresh", [2.7, 5.3, 10.0])
def test_restart_of_a_held_counter_costs_what_its_bar_says(shown, reads_per_refresh):
    # 5 W, refreshed every 0.1 s; whatever the counter shows around its restart, 8 s are 40 J.
    inside = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        made = np.arange(0.0, 12.0, 0.1) + random.uniform(0, 0.1)
        t = np.arange(0.2, 12.0, 0.1 / reads_per_refresh)
        refreshed = made[np.searchsorted(made, t, side="right") - 1]
        joules, at = 5 * refreshed, random.uniform(3, 7)
        if shown == "at once":
            joules[t >= at] = 5 * np.maximum(0.0, refreshed[t >= at] - at)
        elif shown == "at once, counting on":  # from what it last showed
            joules[t >= at] -= joules[t >= at][0]
        elif shown == "with the next refresh":
            joules[refreshed >= at] = 5 * (refreshed[refreshed >= at] - at)
        else:
            joules[t >= at] = 5 * np.maximum(0.0, refreshed[t >= at] - at)
            joules[(t >= at - 1.3) & (t < at)] = np.nan
        found = energy(trace(t, joules, "counter"), "x", 2.0, 10.0)
        inside.append(abs(found.energy_j - 40) <= found.uncertainty_j)
        assert found.resets == 1
        assert found.uncertainty_j < 5 * 0.1 * (8 if shown == "after a reboot" else 2)
    assert np.mean(inside) >= 0.95


def test_counter_that_stamps_its_readings_pays_nothing_for_their_age():
    # 2 W, from 5 s on 6 W: between two exact readings a counter misses nothing, and none is read late.
    t = np.arange(0.0, 12.0, 0.1)
    joules = 2 * t + 4 * np.maximum(0.0, t - 5.0)
    late, stamped = (energy(trace(t, joules, "counter", age_s=a), "x", 2.0, 10.0) for a in (None, 0.0))
    assert stamped.energy_j == late.energy_j == pytest.approx(36.0)
    assert late.parts["edge"] > 0.1  # up to 0.1 s at 4 W more
    assert stamped.parts["edge"] < late.parts["edge"] / 3


def test_restart_is_bridged_flagged_and_uncovered_never_unwrapped():
    t = np.arange(0, 10, 0.1)
    counted = np.where(t < 4.95, 1000 + 2 * t, 2 * (t - 4.95))
    for wraps_at in (None, 262143.3):
        e = energy(trace(t, counted, "counter", wraps_at=wraps_at), "x", 1, 9)
        assert e.energy_j == pytest.approx(16, abs=0.2)
        assert e.resets == 1
        assert e.coverage == pytest.approx(1 - 0.1 / 8, abs=1e-6)
        assert e.parts["gap"] > 0
        assert len(e.gaps) == 1


def test_missing_readings_are_left_out_of_their_own_channel_only():
    t = np.arange(0, 10, 0.1)
    v = np.full(len(t), 5.0)
    w = v.copy()
    w[30:33] = np.nan
    channels = tuple(Channel(n, "power", "W", "gauge", "x") for n in "ab")
    both = Trace("m", "boottime", channels, t, np.stack([v, w], axis=1))
    assert energy(both, "a", 1, 9).n == 81
    assert energy(both, "b", 1, 9).n == 78
    assert energy(both, "b", 1, 9).energy_j == pytest.approx(40)


def test_gap_is_uncovered_and_widens_the_bar():
    t = np.arange(0, 20, 0.1)
    v = 5 + np.sin(3 * t)
    keep = (t < 8) | (t > 10)
    whole, holed = energy(trace(t, v), "x", 1, 19), energy(trace(t[keep], v[keep]), "x", 1, 19)
    assert whole.coverage == 1.0 and whole.gaps == ()
    # 2.1 s without a sample between 7.9 s and 10.1 s, less a period at each rim.
    (gap,) = holed.gaps
    assert gap == (pytest.approx(7.9), pytest.approx(10.1))
    assert holed.coverage == pytest.approx(1 - (2.2 - 0.2) / 18, abs=1e-6)
    assert holed.uncertainty_j > 5 * whole.uncertainty_j
    assert abs(holed.energy_j - whole.energy_j) <= holed.uncertainty_j


def test_three_missing_periods_are_no_gap():
    t = np.array([0.0, 1, 2, 3, 6, 7, 8, 9, 10])
    assert energy(trace(t, 2 + t), "x", 0.5, 9.5).coverage == 1.0


def test_window_inside_a_gap_is_refused():
    t = np.concatenate([np.arange(0, 5, 0.1), np.arange(10, 15, 0.1)])
    with pytest.raises(GapError, match="nothing was measured between 7"):
        energy(trace(t, 1 + t), "x", 7, 8)


def test_window_beyond_the_samples_is_refused():
    t = np.arange(0, 10, 0.1)
    for start, end in ((-0.1, 5), (5, 9.95)):
        with pytest.raises(GapError, match="start sampling before the first phase"):
            energy(trace(t, 1 + t), "x", start, end)


def test_window_from_the_first_to_the_last_read_is_allowed():
    t = np.arange(0, 10, 0.01)
    for kind, v in (("gauge", np.full(len(t), 3.0)), ("counter", 3 * np.floor(t / 0.25) * 0.25)):
        e = energy(trace(t, v, kind), "x", t[0], t[-1])
        assert e.energy_j == pytest.approx(3 * t[-1], abs=3 * 0.02)


def test_bad_asking_is_told():
    t = np.arange(0, 10, 0.1)
    with pytest.raises(KeyError, match="no channel y"):
        energy(trace(t, t), "y", 1, 2)
    with pytest.raises(ValueError, match="end after its start"):
        energy(trace(t, t), "x", 2, 1)
    with pytest.raises(GapError, match="1 readings"):
        energy(trace([0.0], [1.0]), "x", 0, 0.5)
    hot = Trace("m", "boottime", (Channel("t", "temperature", "degC", "gauge", "x"),), t, t[:, None])
    with pytest.raises(ValueError, match="temperature"):
        energy(hot, "t", 1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Update periods


@pytest.mark.parametrize("period_s", [0.02, 0.13, 1.0, 2.6])
@pytest.mark.parametrize("times_faster", [1.3, 2.5, 10.0, 50.0])
def test_update_period_is_measured_by_changes_not_reads(period_s, times_faster):
    random = np.random.default_rng(3)
    t = np.arange(0, 100 * period_s, period_s / times_faster)
    made = np.floor(t / period_s + 0.4)
    gauge = 5 + random.standard_normal(200)[made.astype(int)]
    for kind, v in (("gauge", gauge), ("counter", 3.0 * made)):
        u = update_period(trace(t, v, kind), "x")
        assert u.known
        assert u.period_s == pytest.approx(period_s, rel=0.03)
        assert u.fresh == pytest.approx(100, abs=2)
        assert u.reads == len(t)


def test_constant_gauge_cannot_show_its_period():
    t = np.arange(0, 10, 0.1)
    u = update_period(trace(t, np.full(len(t), 5.0)), "x")
    assert not u.known
    assert u.period_s == pytest.approx(0.1)


def test_square_wave_is_not_taken_for_a_slow_sensor():
    t = np.arange(0, 30, 0.01)
    u = update_period(trace(t, np.where(t % 2 < 1, 10.0, 2.0)), "x")
    assert u.period_s == pytest.approx(0.01)


def test_slow_quantised_power_is_not_taken_for_a_slow_sensor():
    t = np.arange(0, 30, 0.01)
    u = update_period(trace(t, np.round(5 + np.sin(t / 5), 1), quantum=0.1), "x")
    assert u.period_s == pytest.approx(0.01)


def test_held_gauge_is_put_back_to_when_it_was_made():
    # A ramp held for 1 s and read every 10 ms lags by 0.5 s; without putting it back 8 s would be off by 4 J.
    t = np.arange(0, 12, 0.01)
    e = energy(trace(t, 10 + np.floor(t + 0.3) - 0.3, averaging_s=0.0), "x", 2, 10)
    assert e.energy_j == pytest.approx(80 + (10**2 - 2**2) / 2, abs=8 * 0.01)


def test_averaging_gauge_loses_nothing_between_its_refreshes():
    # 100 ms at 20 W once a second, on 1 W; the sensor gives the mean of each 0.7 s.
    def joules(t):
        return t + 19 * (np.floor(t) * 0.1 + np.minimum(t % 1, 0.1))

    random = np.random.default_rng(1)
    t = np.arange(0, 60, 0.02)
    made = np.floor(t / 0.7) * 0.7
    v = (joules(made) - joules(made - 0.7)) / 0.7 + 1e-3 * random.standard_normal(100)[(made / 0.7 + 0.5).astype(int)]
    e = energy(trace(t, v, averaging_s=0.7), "x", 5.0, 55.0)
    # Whole seconds: 50 J and 50 bursts. A trapezoid would be off by some bursts.
    assert e.energy_j == pytest.approx(50 + 50 * 1.9, abs=1.9)


def test_minimum_window_follows_the_update_period():
    assert minimum_window_s(1.0) == pytest.approx(100.0)  # measuring rule: 1 s updates, 2 % wanted: 100 s
    assert minimum_window_s(0.05, 0.01) == pytest.approx(10.0)


# ---------------------------------------------------------------------------------------------------------------------
# The parts of the error bar


def test_gain_error_is_a_share_of_the_energy():
    t = np.arange(0, 10, 0.1)
    e = energy(trace(t, np.full(len(t), 5.0), gain_error=0.01), "x", 1, 9)
    assert e.parts["gain"] == pytest.approx(0.4)
    assert e.uncertainty_j == pytest.approx(0.4)


def test_clock_offset_costs_the_step_of_power_at_each_boundary():
    # 10 W from 5 s to 15 s on 2 W: an offset of 20 ms moves 20 ms x 8 W at either end.
    t = np.arange(0, 20, 0.001)
    v = np.where((t >= 5) & (t < 15), 10.0, 2.0)
    e = energy(trace(t, v), "x", 5, 15, clock_bound_s=0.02)
    assert e.parts["clock"] == pytest.approx(np.sqrt(2) * 0.02 * 8, rel=0.05)
    assert energy(trace(t, v), "x", 6, 14, clock_bound_s=0.02).parts["clock"] == pytest.approx(0, abs=1e-9)


def test_clock_offset_costs_the_most_that_passes_within_its_bound():
    # 10 W and 2 W in turns of 10 ms: the 20 ms of the bound hold the mean, half of them 10 ms x 4 W more or less.
    t = np.arange(0, 4, 0.0005)
    v = np.where((t % 0.02) < 0.01, 10.0, 2.0)
    e = energy(trace(t, v), "x", 1, 3, clock_bound_s=0.02)
    assert e.parts["clock"] == pytest.approx(np.sqrt(2) * 0.01 * 4, rel=0.05)


def test_stretches_that_were_placed_by_themselves_cost_at_both_sides_of_their_break():
    # 2 W, from 2 s on 10 W, and what comes from there on was placed by itself.
    t = np.arange(0, 4, 0.001)
    v = np.where(t < 2, 2.0, 10.0)
    placed_anew = dataclasses.replace(trace(t, v), facts={"clock_starts": [0, 2000]})
    ends = 0.02 * 4  # at each end and each side of the break the power is 4 W off the mean
    placed_once = trace(t, v)
    assert energy(placed_once, "x", 1, 3, clock_bound_s=0.02).parts["clock"] == pytest.approx(2**0.5 * ends, rel=0.05)
    assert energy(placed_anew, "x", 1, 3, clock_bound_s=0.02).parts["clock"] == pytest.approx(2 * ends, rel=0.05)
    parts = energies(placed_anew, "x", [(0.5, 1.5), (1, 3)], clock_bound_s=0.02).parts["clock"]
    assert parts == pytest.approx([0, 2 * ends], rel=0.05, abs=1e-9)


def test_rounding_of_a_constant_power_does_not_average_out():
    t = np.arange(0, 100, 0.1)
    true = 5.04
    e = energy(trace(t, np.full(len(t), 5.0), quantum=0.1), "x", 10, 90)
    assert e.parts["quantisation"] == pytest.approx(0.05 * 80)  # half a quantum all the time
    assert abs(e.energy_j - true * 80) <= e.uncertainty_j


def test_noise_smears_rounding():
    random = np.random.default_rng(2)
    t = np.arange(0, 100, 0.1)
    v = np.round((5.04 + 0.1 * random.standard_normal(len(t))) / 0.1) * 0.1
    e = energy(trace(t, v, quantum=0.1), "x", 10, 90)
    assert abs(e.energy_j - 5.04 * 80) <= e.uncertainty_j < 1.5


def test_quantised_counter_is_off_by_its_two_end_readings():
    t = np.arange(0, 100, 0.1)
    e = energy(trace(t, np.floor(50 * t) / 10, "counter", quantum=0.1), "x", 10, 90)
    assert e.parts["quantisation"] == pytest.approx(1.96 * 0.1 / np.sqrt(6))


def test_parts_combine_in_quadrature():
    t = np.arange(0, 20, 0.1)
    e = energy(trace(t, 5 + np.sin(9 * t), quantum=0.1, gain_error=0.02), "x", 2, 18, clock_bound_s=0.01)
    assert e.uncertainty_j == pytest.approx(np.sqrt(sum(p**2 for p in e.parts.values())))


# ---------------------------------------------------------------------------------------------------------------------
# Sums and differences


def noisy(meter="m", seed=0, level=5.0, **channel):
    random = np.random.default_rng(seed)
    t = np.arange(0, 100, 0.1)
    return trace(t, level + 0.5 * random.standard_normal(len(t)), meter=meter, **channel)


def test_gain_adds_up_within_a_meter_and_noise_does_not():
    one = trace(np.arange(0, 100, 0.1), noisy().values[:, 0], gain_error=0.01)
    a, b = energy(one, "x", 10, 30), energy(one, "x", 60, 80)
    total = sum_of([a, b])
    assert total.energy_j == pytest.approx(a.energy_j + b.energy_j)
    assert total.parts["gain"] == pytest.approx(a.parts["gain"] + b.parts["gain"])
    assert total.parts["sampling"] == pytest.approx(np.hypot(a.parts["sampling"], b.parts["sampling"]))
    assert total.duration_s == pytest.approx(40)
    assert total.power_w == pytest.approx(total.energy_j / 40)
    other = energy(noisy("other", 1, gain_error=0.01), "x", 10, 30)
    assert sum_of([a, other]).parts["gain"] == pytest.approx(np.hypot(a.parts["gain"], other.parts["gain"]))


def test_channels_side_by_side_keep_their_duration():
    t = np.arange(0, 100, 0.1)
    channels = tuple(Channel(n, "power", "W", "gauge", "x") for n in "ab")
    both = Trace("m", "boottime", channels, t, np.stack([np.full(len(t), 2.0), np.full(len(t), 3.0)], axis=1))
    total = sum_of([energy(both, n, 10, 30) for n in "ab"])
    assert total.power_w == pytest.approx(5.0)


def test_net_energy_is_gross_less_the_time_weighted_idle():
    # Idle 2 W for 10 s before and 3 W for 30 s after; load 10 W for 50 s.
    t = np.arange(0, 100, 0.1)
    one = trace(t, np.select([t < 10.05, t < 60.05], [2.0, 10.0], 3.0))
    found = net(energy(one, "x", 10.1, 60.0), energy(one, "x", 0, 10.0), energy(one, "x", 60.1, 90.1))
    idle_w = (2 * 10 + 3 * 30) / 40
    assert found.idle_w == pytest.approx(idle_w)
    assert found.energy_j == pytest.approx((10 - idle_w) * 49.9)
    assert found.drift_w == pytest.approx(1.0)
    assert found.drift_w > found.noise_w  # a real drift: there is no noise
    assert found.parts["drift"] == pytest.approx(0.5 * 49.9)


def test_gain_error_of_net_energy_is_that_of_the_difference():
    t = np.arange(0, 100, 0.1)
    one = trace(t, np.where((t > 20) & (t < 80), 6.0, 4.0), gain_error=0.01)
    found = net(energy(one, "x", 30, 70), energy(one, "x", 1, 19), energy(one, "x", 81, 99))
    assert found.energy_j == pytest.approx(80)
    assert found.parts["gain"] == pytest.approx(0.8)


def test_noise_alone_is_seldom_taken_for_drift():
    drifts = [
        net(energy(n, "x", 40, 60), energy(n, "x", 5, 35), energy(n, "x", 65, 95)) for n in map(seeded, range(200))
    ]
    assert np.mean([abs(d.drift_w) > d.noise_w for d in drifts]) < 0.05
    assert np.mean([abs(d.energy_j) > d.uncertainty_j for d in drifts]) < 0.05


def seeded(seed):
    return noisy(seed=seed)


# ---------------------------------------------------------------------------------------------------------------------
# Many intervals


@pytest.mark.parametrize("kind", ["gauge", "counter"])
def test_adjacent_intervals_partition_the_window(kind):
    random = np.random.default_rng(5)
    t = np.sort(random.uniform(0, 100, 3000))
    v = random.uniform(1, 9, len(t))
    one = trace(t, np.cumsum(v) if kind == "counter" else v, kind)
    cuts = np.concatenate([[10.0], np.sort(random.uniform(10, 90, 5000)), [90.0]])
    each = energies(one, "x", np.stack([cuts[:-1], cuts[1:]], axis=1))
    whole = energy(one, "x", 10, 90)
    assert len(each) == 5001
    assert each.energy_j.sum() == pytest.approx(whole.energy_j, rel=1e-12)
    assert np.all(each.uncertainty_j >= 0) and np.all(np.isfinite(each.uncertainty_j))


def test_one_interval_of_many_agrees_with_itself_alone():
    one = noisy()
    alone = energy(one, "x", 20, 60)
    among = energies(one, "x", [[20, 60], [60, 90]])
    assert among.energy_j[0] == pytest.approx(alone.energy_j)
    assert among.uncertainty_j[0] == pytest.approx(alone.uncertainty_j, rel=0.5)


def test_interval_in_a_gap_has_no_coverage():
    t = np.concatenate([np.arange(0, 5, 0.1), np.arange(10, 15, 0.1)])
    each = energies(trace(t, 1 + t), "x", [[1, 2], [7, 8], [4, 11]])
    assert each.coverage[0] == 1.0 and each.coverage[1] == 0.0
    assert each.coverage[2] == pytest.approx(1 - (5.1 - 0.2) / 7, abs=1e-6)


def test_no_intervals_give_no_energies():
    assert len(energies(noisy(), "x", np.empty((0, 2)))) == 0


def test_age_of_a_register_widens_the_bar_by_what_happened_meanwhile():
    # Power climbs by 2 W/s: over 10 s it ends 20 W higher, so seeing all of it up to 5 ms late costs up to 0.1 J.
    t = np.arange(0.0, 12.0, 0.01)
    p = 5 + 2 * t
    fresh = Channel("VDD_IN", "power", "W", "gauge", "board", "rails", averaging_s=0.0)
    aged = dataclasses.replace(fresh, age_s=0.005)
    bars = [energy(Trace("m", "boottime", (c,), t, p[:, None]), "VDD_IN", 1.0, 11.0) for c in (fresh, aged)]
    assert bars[0].energy_j == pytest.approx(bars[1].energy_j)
    assert bars[1].parts["edge"] == pytest.approx(0.1, rel=0.01)


def test_read_that_lasts_widens_the_bar_of_a_gauge_by_what_happened_meanwhile():
    # Power climbs by 2 W/s: read up to 25 ms before or after its stamp, the window's 20 W more cost up to 0.5 J.
    t = np.arange(0.0, 12.0, 0.46)
    c = Channel("VDD_IN", "power", "W", "gauge", "board", "rails", averaging_s=0.0)
    late = 5 + 2 * (t + 0.02)
    found = energy(Trace("m", "boottime", (c,), t, late[:, None], {"read_s": 0.05}), "VDD_IN", 1.0, 11.0)
    true_j = 50 + 11**2 - 1**2
    assert found.energy_j - true_j == pytest.approx(0.4)
    assert found.parts["edge"] == pytest.approx(0.5, rel=0.01)


def test_read_that_lasts_widens_the_bar_of_a_counter():
    # 10 W; each end's reading belongs anywhere within the 2 ms of its read: +- 10 mJ, uniform, at both ends.
    t = np.arange(0.0, 12.0, 0.01)
    c = Channel("pkg", "energy", "J", "counter", "socket", "package")
    trace = Trace("m", "boottime", (c,), t, 10 * t[:, None], {"read_s": 0.002})
    found = energy(trace, "pkg", 1.0, 11.0)
    assert 2 * 0.01 * np.sqrt(2 / 3) <= found.uncertainty_j <= 4 * 0.01 * np.sqrt(2 / 3)


def test_counter_renewed_at_its_own_pace_is_uncertain_by_its_age_at_both_ends():
    # 25 W, renewed about every 1 ms and read every 10 ms: each end is off by 0 to 25 mJ, all of it alike.
    t = np.arange(0.0, 12.0, 0.01)
    c = Channel("pkg", "energy", "J", "counter", "socket", "package", age_s=0.001)
    found = energy(Trace("m", "boottime", (c,), t, 25 * t[:, None]), "pkg", 1.0, 11.0)
    assert 2 * 0.0125 * np.sqrt(2 / 3) <= found.uncertainty_j <= 4 * 0.0125 * np.sqrt(2 / 3)
