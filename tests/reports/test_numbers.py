"""Expected texts are rounded by hand."""

import math

import pytest

from edgewatt.reports.numbers import Quantity, axis, format_half_width, format_quantity, quantity, titled


@pytest.mark.parametrize(
    ("value", "uncertainty", "unit", "text"),
    [
        (0.0123456, 0.00056, "J", "12.35 ± 0.56 mJ"),
        (0.3149, 0.0157, "J", "315 ± 16 mJ"),
        (5.4321, 0.043, "W", "5.432 ± 0.043 W"),
        (1.8e9, 1.2e6, "Hz", "1.8000 ± 0.0012 GHz"),
        (2.5e-7, 1e-8, "s", "250 ± 10 ns"),
        (41.27, 0.5, "degC", "41.27 ± 0.50 °C"),
        (0.31234, 0.0123, "1", "0.312 ± 0.012"),
        (231.456, 1.7, "fps", "231.5 ± 1.7 FPS"),
        (12.5, 0.31, "1/s", "12.50 ± 0.31 /s"),
        (12.5, 0.31, "tokens/s", "12.50 ± 0.31 tokens/s"),
        (2.5e9, 1e8, "B/s", "2.50 ± 0.10 GB/s"),
        (7.385e9, None, "MAC", "7.385 GMAC"),
    ],
)
def test_value_ends_where_its_uncertainty_ends(value, uncertainty, unit, text):
    assert format_quantity(value, uncertainty, unit) == text


def test_uncertainty_that_rounds_up_to_the_next_power_of_ten_keeps_two_digits():
    assert format_quantity(5.4321, 0.0996, "W") == "5.43 ± 0.10 W"
    assert format_quantity(20.0, 9.96, "W") == "20 ± 10 W"


def test_large_uncertainty_rounds_to_tens_and_hundreds():
    assert format_quantity(123456, 2300, "s") == "123500 ± 2300 s"
    assert format_quantity(1234.5, 310.0, "degC") == "1230 ± 310 °C"


def test_prefix_is_that_of_the_larger_of_value_and_uncertainty():
    assert format_quantity(0.0003, 0.002, "J") == "0.3 ± 2.0 mJ"
    assert format_quantity(-0.01, 0.5, "W") == "-10 ± 500 mW"


def test_value_that_rounds_to_a_thousand_takes_the_next_prefix():
    assert format_quantity(0.99999, None, "s") == "1.000 s"
    assert format_quantity(999.96, None, "J") == "1.000 kJ"
    assert format_quantity(999.4, None, "J") == "999.4 J"


def test_seconds_have_no_kilo_and_bytes_no_milli():
    assert format_quantity(7200.0, None, "s") == "7200 s"
    assert format_quantity(0.5, None, "B") == "0.5000 B"
    assert format_quantity(1_536_000, None, "B") == "1.536 MB"


def test_without_uncertainty_four_digits_remain_and_whole_numbers_stay_whole():
    assert format_quantity(0.00123456, None, "s") == "1.235 ms"
    assert format_quantity(68_774, None, "1") == "68774"
    assert format_quantity(68_774, None, "count") == "68774"
    assert format_quantity(0, None, "J") == "0 J"


def test_zero_uncertainty_is_shown_as_zero():
    assert format_quantity(12, 0.0, "J") == "12 ± 0 J"


def test_uncertainty_far_below_the_last_digit_is_never_rounded_to_nothing():
    assert format_quantity(1.0, 1e-12, "J") == "1.00000 ± 0.00001 J"


def test_zero_has_no_sign():
    assert format_quantity(-0.0004, 0.03, "degC") == "0.000 ± 0.030 °C"
    assert format_quantity(-0.04, 1.2, "W") == "0.0 ± 1.2 W"


def test_number_that_is_none_is_a_dash_and_unknown_uncertainty_says_so():
    assert format_quantity(math.nan, 1.0, "J") == "—"
    assert format_quantity(math.inf, None, "W") == "—"
    assert format_quantity(2.0, math.inf, "J") == "2 ± unknown J"


def test_pieces_make_the_text():
    assert quantity(0.0123456, 0.00056, "J") == Quantity("12.35", "0.56", "mJ")
    assert quantity(3.0, None, "1") == Quantity("3", None, "")


def test_half_width_has_two_digits():
    assert format_half_width(0.000378, "J") == "± 380 µJ"
    assert format_half_width(0.0123, "1") == "± 0.012"


def test_axis_is_in_the_unit_its_largest_value_reads_well_in():
    factor, unit = axis(0.025, "s")
    assert unit == "ms"
    assert factor == pytest.approx(1000)
    assert axis(2.4e9, "Hz")[1] == "GHz"
    assert axis(0.0, "J") == (1.0, "J")


def test_axis_without_unit_is_titled_without_brackets():
    assert titled("AP", "") == "AP"
    assert titled("Latency", "ms") == "Latency (ms)"
