"""Time and energy of each input, against closed forms: power is constant while an item runs."""

import dataclasses

import numpy as np
import pytest

from edgewatt.harness.analysis_items import input_figures
from edgewatt.harness.api import Items, Phase
from support import made_run as made
from support.asked import FIRST_S, JOULES, SECONDS, TURNS, asked, counted, gauged


def found(windows, *make, seconds=SECONDS, **more):
    phases, items = asked(windows, seconds, **more)
    return input_figures(made.run(phases, [m(items) for m in make], items))


def test_times_are_medians_of_an_inputs_items():
    each = found(TURNS)
    assert each.picture.tolist() == [0, 1] and each.items.tolist() == [4, 4]
    assert each.latency_s == pytest.approx(SECONDS)
    assert each.ttft_s == pytest.approx(FIRST_S)
    assert each.energies == ()


@pytest.mark.parametrize("make", [counted, gauged])
def test_energy_of_each_input_is_its_own_power_by_its_own_length(make):
    (energy,) = found(TURNS, make).energies
    assert energy.energy_j == pytest.approx(JOULES, rel=0.002)
    assert (np.abs(energy.energy_j - JOULES) <= energy.uncertainty_j).all()
    assert (energy.uncertainty_j < 0.05 * np.array(JOULES)).all()
    assert energy.why == ""


def test_energies_of_all_items_sum_to_the_windows():
    phases, items = asked(TURNS)
    trace = counted(items)
    each = input_figures(made.run(phases, [trace], items))
    whole = sum(float(np.interp(p.end_s, trace.t_s, trace.values[:, 0])) for p in phases)
    whole -= sum(float(np.interp(p.start_s, trace.t_s, trace.values[:, 0])) for p in phases)
    assert whole == pytest.approx(4 * 10 + 4 * 25)
    assert (each.energies[0].energy_j * each.items).sum() == pytest.approx(whole)


def test_gain_error_is_the_same_in_all_items_and_does_not_average_out():
    (energy,) = found(TURNS, lambda i: counted(i, channel=made.counter(gain_error=0.03))).energies
    assert energy.parts["gain"] == pytest.approx([0.3, 0.75])
    assert (energy.uncertainty_j >= [0.3, 0.75]).all()


def test_constant_power_costs_no_smear_and_no_spread():
    (energy,) = found([[0, 1] * 4], lambda i: counted(i, (8.0, 8.0))).energies
    assert energy.energy_j == pytest.approx([16, 8])
    assert energy.parts["smear"] == pytest.approx([0, 0], abs=1e-9)
    assert energy.parts["items"] == pytest.approx([0, 0], abs=1e-9)


def test_smear_is_a_sixth_of_the_step_at_either_end_by_the_update_period():
    """Between two items of the other kind, 20 W away: 2 x 20 W / 6 x 10 ms."""
    (energy,) = found([[0, 1, 0]], counted).energies
    assert energy.parts["smear"][1] == pytest.approx(2 * 20 / 6 * 0.01, rel=0.01)


def test_items_that_differ_widen_the_bar_by_students_t():
    """Three items of one input, of 10, 12 and 14 J: 4.303 x 2 J / sqrt(3)."""
    phases, items = asked([[0, 1, 2]], seconds=(2.0,) * 3, first_s=(1.0,) * 3)
    of_one = dataclasses.replace(items, picture=np.zeros(len(items), np.int64))
    (energy,) = input_figures(made.run(phases, [counted(items, (5.0, 6.0, 7.0))], of_one)).energies
    assert energy.energy_j == pytest.approx([12.0])
    assert energy.parts["items"] == pytest.approx([4.303 * 2 / 3**0.5], rel=1e-3)


def test_input_shorter_than_twenty_update_periods_has_no_number_and_the_reason_is_told_once():
    seconds = (2.0, 0.1, 0.15)
    each = found([[0, 1, 2] * 3], lambda i: counted(i, (5.0, 5.0, 5.0)), seconds=seconds, first_s=(0.05,) * 3)
    (energy,) = each.energies
    assert energy.energy_j[0] == pytest.approx(10)
    assert np.isnan(energy.energy_j[1:]).all() and np.isnan(energy.uncertainty_j[1:]).all()
    assert "2 of 3 inputs last 0.1 to 0.15 s" in energy.why and "0.2 s" in energy.why
    assert each.latency_s == pytest.approx(seconds), "times need no sensor"


def test_clock_tied_too_loosely_gives_no_number():
    (energy,) = found(TURNS, lambda i: counted(i, clock_bound_s=0.1)).energies
    assert np.isnan(energy.energy_j).all() and "the clocks are tied within 100 ms" in energy.why


def test_sensor_that_never_moves_gives_no_number():
    def still(items):
        trace = gauged(items)
        return dataclasses.replace(trace, values=np.full_like(trace.values, 8.0))

    (energy,) = found(TURNS, still).energies
    assert np.isnan(energy.energy_j).all() and "renews a reading" in energy.why


def test_meter_on_a_clock_of_its_own_is_left_out():
    assert found(TURNS, lambda i: dataclasses.replace(counted(i), clock="other")).energies == ()


def test_samples_that_end_before_the_window_give_the_reason():
    def cut(items):
        trace = counted(items)
        keep = trace.t_s < 103
        return dataclasses.replace(trace, t_s=trace.t_s[keep], values=trace.values[keep])

    (energy,) = found(TURNS, cut).energies
    assert np.isnan(energy.energy_j).all() and "samples from" in energy.why


def test_input_in_a_gap_has_no_number():
    def holed(items):  # nothing is read from 102 s to 103 s, the second item
        trace = counted(items)
        keep = (trace.t_s <= 102) | (trace.t_s >= 103)
        return dataclasses.replace(trace, t_s=trace.t_s[keep], values=trace.values[keep])

    (energy,) = found([[0, 1, 0, 0, 0]], holed).energies
    assert energy.energy_j[0] == pytest.approx(10, rel=0.01) and np.isnan(energy.energy_j[1])
    assert "95%" in energy.why


def test_part_of_a_total_is_not_shown_beside_it():
    def nested(items):
        trace = counted(items)
        part = made.counter("core", parent="package-0")
        return dataclasses.replace(trace, channels=(*trace.channels, part), values=np.repeat(trace.values, 2, axis=1))

    each = found(TURNS, nested).energies
    assert [e.meter for e in each] == ["rapl"]


def test_run_without_items_has_no_inputs():
    each = input_figures(made.run([Phase("window", 100.0, 110.0)], its=Items.none()))
    assert len(each.picture) == 0 and each.energies == ()


def test_items_without_a_prefill_have_no_first_token():
    of = made.phases()
    each = input_figures(made.run(of, [made.counted(of, rate_hz=1000.0)]))
    assert each.picture.tolist() == list(range(7)), "made_run's items are of seven pictures"
    assert np.isnan(each.ttft_s).all() and each.latency_s == pytest.approx([0.1] * 7)
    assert each.energies[0].energy_j == pytest.approx([1.0] * 7, rel=1e-3), "10 W for 0.1 s"
