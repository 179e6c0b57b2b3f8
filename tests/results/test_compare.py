"""What changed between two sets of measurements."""

import dataclasses
import json
import math

import pytest

from edgewatt.harness.api import Measurement
from edgewatt.results.compare import difference
from support.example_run import example_run

A = Measurement("energy_j", 10.0, 0.5, "J", "window", 3, "subtracted", "rapl/package-0", "package")


def changed(**fields: object) -> Measurement:
    return dataclasses.replace(A, **fields)


def test_a_run_differs_from_itself_in_nothing() -> None:
    measurements = example_run(0).measurements
    found = difference(measurements, measurements[::-1])
    assert not found
    assert found.same == len(measurements)
    assert found.in_words() == f"all {len(measurements)} measurements come out the same"


@pytest.mark.parametrize(("new", "differs"), [(10.0 + 9e-9, False), (10.0 - 9e-9, False), (10.0 + 2e-8, True)])
def test_a_value_may_move_by_a_billionth(new, differs) -> None:
    assert bool(difference([A], [changed(value=new)])) == differs


def test_zero_nan_and_infinity_are_equal_to_themselves_only() -> None:
    for value in (0.0, math.nan, math.inf, -math.inf):
        assert not difference([changed(value=value)], [changed(value=value)])
    for old, new in ((0.0, 1e-30), (math.nan, 1.0), (1.0, math.nan), (math.inf, -math.inf), (math.inf, 1.0)):
        assert len(difference([changed(value=old)], [changed(value=new)]).changed) == 1


@pytest.mark.parametrize("fields", [{"uncertainty": 0.6}, {"uncertainty": None}, {"unit": "Wh"}, {"value": 12.0}])
def test_value_uncertainty_and_unit_count(fields) -> None:
    (change,) = difference([A], [changed(**fields)]).changed
    assert change.old == A


def test_method_and_count_do_not() -> None:
    assert not difference([A], [changed(method="integrated", n=4)])


def test_what_is_new_and_what_is_gone_is_told_apart_by_phase_and_meter() -> None:
    other = changed(meter="rapl/dram")
    later = changed(phase="idle")
    found = difference([A, other], [later, A])
    assert (found.changed, found.added, found.gone, found.same) == ((), (later,), (other,), 1)
    assert found.in_words().splitlines() == [
        "measurements: 1 the same, 0 changed, 1 new, 1 gone",
        "  new: energy_j idle rapl/package-0 10 J",
        "  gone: energy_j window rapl/dram 10 J",
    ]


def test_several_alike_are_compared_in_their_order() -> None:
    second = changed(value=11.0)
    found = difference([A, second], [A, changed(value=22.0), changed(value=33.0)])
    assert [(c.old.value, c.new.value) for c in found.changed] == [(11.0, 22.0)]
    assert [m.value for m in found.added] == [33.0]


def test_changes_in_words_and_as_json() -> None:
    found = difference([A], [changed(value=10.1)])
    assert "  energy_j window rapl/package-0: 10 -> 10.1 J (+0.01 of it)" in found.in_words()
    assert found.changed[0].relative == pytest.approx(0.01)
    as_json = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert as_json["changed"][0]["old"] == {"value": 10.0, "uncertainty": 0.5, "unit": "J"}
    assert as_json["changed"][0]["meter"] == "rapl/package-0"
    wider = difference([A], [changed(uncertainty=None)])
    assert "energy_j window rapl/package-0: uncertainty 0.5 -> none J" in wider.in_words()
