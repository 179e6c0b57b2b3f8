"""Two clocks with a known offset and drift, asked over a link with known delays."""

import numpy as np
import pytest

from edgewatt.harness.api import ClockOffset, HarnessError
from edgewatt.harness.clocks import bound_at, line, offset, offset_at, to_device, to_host


def pings(random, at_s, true_offset, n=20, drift=0.0):
    """Host before, device, host after; the way there and the way back take 0.1 to 5 ms, each its own."""
    out, back = random.uniform(1e-4, 5e-3, (2, n))
    before = at_s + 0.05 * np.arange(n)
    seen = before + out
    return list(zip(before, seen + true_offset + drift * seen, seen + back, strict=True))


def test_quickest_answer_is_kept():
    found = offset([(10.0, 15.5, 11.0), (20.0, 25.1, 20.2), (30.0, 35.3, 30.6)])
    assert found.offset_s == pytest.approx(5.0)
    assert found.bound_s == pytest.approx(0.1)
    assert found.at_s == pytest.approx(20.1)
    assert found.n == 3


def test_offset_is_never_off_by_more_than_its_bound():
    random = np.random.default_rng(1)
    for _ in range(500):
        true = random.uniform(-1e6, 1e6)
        found = offset(pings(random, random.uniform(0, 1e5), true))
        assert abs(found.offset_s - true) <= found.bound_s + 1e-9
        assert found.bound_s <= 5e-3


def test_answer_that_runs_backwards_is_left_out():
    assert offset([(2.0, 0.0, 1.0), (3.0, 4.0, 3.5)]).n == 1
    with pytest.raises(HarnessError, match="at least one"):
        offset([(2.0, 0.0, 1.0)])
    with pytest.raises(HarnessError):
        offset([])


def test_line_follows_a_drifting_clock_within_its_bound():
    random = np.random.default_rng(2)
    for _ in range(200):
        true, drift = random.uniform(-100, 100), random.uniform(-1e-4, 1e-4)
        first, last = offset(pings(random, 0.0, true, drift=drift)), offset(pings(random, 600.0, true, drift=drift))
        found = line(first, last)
        host = np.linspace(first.at_s, last.at_s, 50)
        off = np.abs(offset_at(found, host) - (true + drift * host))
        # The drift within one answer (5 ms x 1e-4) is no part of the bound.
        assert np.all(off <= bound_at(first, last, host) + 1e-6)
        assert np.all(off <= found.bound_s + 1e-6)


def test_bound_fans_out_beyond_the_two_offsets():
    first, last = ClockOffset(0, 0.001, 0, 0.0), ClockOffset(0, 0.002, 0, 10.0)
    # Through (0, +1 ms) and (10 s, -2 ms) a line falls by 3 ms in 10 s: 4 ms below after 20 s, its start counted too.
    np.testing.assert_allclose(bound_at(first, last, [0, 5, 10, 20]), [0.001, 0.0015, 0.002, 0.005])


def test_mapping_to_the_device_and_back_is_the_identity():
    clock = ClockOffset(offset_s=123.4, bound_s=0.001, drift=5e-5, at_s=1000.0)
    host = np.array([0.0, 1000.0, 5000.0])
    np.testing.assert_allclose(to_device(clock, host), [123.4 - 0.05, 1123.4, 5123.4 + 0.2])
    np.testing.assert_allclose(to_host(clock, to_device(clock, host)), host, atol=1e-9)


def test_line_wants_two_moments():
    with pytest.raises(ValueError, match="not after"):
        line(ClockOffset(at_s=5.0), ClockOffset(at_s=5.0))
