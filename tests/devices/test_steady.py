"""The warm-up's rule, against sequences whose answer is known in closed form."""

import math
import random

import pytest

from edgewatt.devices.agent.steady import Steady, trend, trend_noise


def blocks_until_steady(rule: Steady, latency, most: int = 1000) -> int | None:
    """How many blocks it took; None: never."""
    for k in range(most):
        rule.add(latency(k))
        if rule.reached:
            return k + 1
    return None


def test_trend_of_a_line_is_its_rise() -> None:
    assert trend([3.0, 5.0, 7.0, 9.0]) == pytest.approx(6.0)
    assert trend([2.0, -2.0, -2.0, 2.0]) == pytest.approx(0.0)


def test_constant_latency_is_steady_once_there_are_enough_blocks() -> None:
    assert blocks_until_steady(Steady(0.02, blocks=5), lambda k: 0.010) == 5
    assert blocks_until_steady(Steady(0.0, blocks=3), lambda k: 0.010) == 3


def test_decaying_latency_is_steady_when_its_last_blocks_agree() -> None:
    # m_k = 1 + 0.5^k. Of the last three blocks k-2, k-1, k, the first is farthest from the middle one: 0.5^(k-1) off,
    # relative to 1 + 0.5^(k-1); the line through three points changes by last - first, 0.75 * 0.5^(k-2).
    def is_within(k: int) -> bool:
        middle = 1 + 0.5 ** (k - 1)
        return 0.5 ** (k - 1) <= 0.02 * middle and 0.75 * 0.5 ** (k - 2) <= 0.02 * middle

    first = next(k for k in range(2, 100) if is_within(k))
    assert first == 8  # by hand: 0.75 / 64 = 0.0117 <= 0.02 * 1.008, where 0.75 / 32 = 0.0234 is not
    assert blocks_until_steady(Steady(0.02, blocks=3), lambda k: 1 + 0.5**k) == first + 1


def test_latency_that_drifts_for_ever_is_never_steady() -> None:
    # 1 % of the start per block is a change of 4 % over five blocks at first; it grows as fast as the tolerance does.
    assert blocks_until_steady(Steady(0.02, blocks=5), lambda k: 1.01**k) is None


def test_drift_within_the_spread_allowed_is_still_seen_as_a_trend() -> None:
    # Five blocks rising by 0.9 % of the middle each: all within 1.8 % of it, and 3.6 % from first to last.
    rule = Steady(0.02, blocks=5)
    for k in range(5):
        rule.add(1 + 0.009 * (k - 2))
    assert rule.spread == pytest.approx(0.018) and rule.drift == pytest.approx(0.036)
    assert not rule.reached


def test_noise_within_the_tolerance_is_steady_and_beyond_it_takes_twice_the_blocks() -> None:
    assert blocks_until_steady(Steady(0.02, blocks=5), lambda k: 1 + 0.005 * (-1) ** k) == 5
    assert blocks_until_steady(Steady(0.02, blocks=5), lambda k: 1 + 0.03 * (-1) ** k) == 10


def test_error_of_a_trend_is_the_textbooks() -> None:
    # y = 0, 1, 0, 1 at x = 0..3: slope 0.2, residuals -0.2, 0.6, -0.6, 0.2, s^2 = 0.8 / 2, se = sqrt(0.4 / 5).
    assert trend([0.0, 1.0, 0.0, 1.0]) == pytest.approx(0.6)
    assert trend_noise([0.0, 1.0, 0.0, 1.0]) == pytest.approx(3 * math.sqrt(0.08))


def test_trend_through_noise_is_not_steady() -> None:
    # Rises by 3 % a block under noise of 3 %: over ten blocks the line changes by 27 %, its standard error is 3 %.
    rng = random.Random(7)
    rule = Steady(0.02, blocks=5)
    for k in range(10):
        rule.add(1 + 0.03 * k + rng.gauss(0, 0.03))
    assert not rule.reached


def test_random_noise_of_a_fifth_of_the_tolerance_settles_soon() -> None:
    rng = random.Random(3)
    taken = [blocks_until_steady(Steady(0.02, blocks=5), lambda k: rng.gauss(1, 0.004)) for _ in range(200)]
    assert sum(n is not None and n <= 8 for n in taken) >= 198


def test_level_that_steps_is_steady_again_when_the_step_has_left_the_blocks() -> None:
    rule = Steady(0.02, blocks=4)
    for _ in range(4):
        rule.add(1.0)
    assert rule.reached
    after = []
    for _ in range(4):
        rule.add(1.5)
        after.append(rule.reached)
    assert after == [False, False, False, True]


def test_node_that_still_moves_holds_it_up() -> None:
    rule = Steady(0.02, blocks=3, nodes={"temperature": 0.5, "power": 0.1})
    for temperature in (40.0, 41.0, 41.6, 41.9):
        rule.add(1.0, {"temperature": temperature, "power": 5.0})
        assert not rule.reached
    assert "temperature moved 0.9 (limit 0.5)" in rule.detail and "power" not in rule.detail
    rule.add(1.0, {"temperature": 42.0, "power": 5.0})
    assert rule.reached


def test_node_that_cannot_be_read_says_nothing() -> None:
    rule = Steady(0.02, blocks=3, nodes={"temperature": 0.5})
    for _ in range(3):
        rule.add(1.0, {"temperature": None})
    assert rule.reached and "temperature gave no reading" in rule.detail


def test_detail_tells_the_numbers() -> None:
    rule = Steady(0.02, blocks=3)
    rule.add(0.010)
    assert rule.detail == "1 of the 3 blocks needed"
    rule.add(0.010)
    rule.add(0.0101)
    assert rule.detail == "latency of the last 3 blocks within 1.00% of 0.01 s, changing by +1.00% (limit 2.00%)"
    assert math.isfinite(rule.drift)
