"""How an attached meter is wired: checked before anything is opened."""

import pytest

from edgewatt.devices.wiring import Wiring, refuse_rest
from edgewatt.harness.api import UsageError


def test_wiring_is_taken_out_of_the_options_and_the_rest_is_left():
    wiring, rest = Wiring.of("ppk2", {"boundary": "dc-input", "series_resistance_ohm": "0.05", "volts": 3.9})
    assert (wiring.boundary, wiring.series_resistance_ohm, rest) == ("dc-input", 0.05, {"volts": 3.9})


def test_channel_carries_boundary_gain_error_and_what_it_covers():
    wiring, _ = Wiring.of("ppk2", {"boundary": "battery", "covers": "the phone", "gain_error": 0.01})
    channel = wiring.channel(quantum=1e-6)
    assert (channel.quantity, channel.unit, channel.kind) == ("power", "W", "gauge")
    assert (channel.boundary, channel.covers, channel.gain_error, channel.quantum) == (
        "battery",
        "the phone",
        0.01,
        1e-6,
    )


def test_nothing_said_is_a_supply_and_an_unknown_gain_error():
    wiring, _ = Wiring.of("ppk2", {})
    assert wiring.channel().boundary == "supply"
    assert wiring.channel().gain_error is None
    assert wiring.facts() == {"boundary": "supply"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"boundary": "bateri"}, "did you mean battery"),
        ({"boundary": "here"}, "known: "),
        ({"series_resistance_ohm": "thick"}, "wanted a number from 0 to 1000"),
        ({"series_resistance_ohm": True}, "wanted a number"),
        ({"efficiency": 1.2}, "from 0.01 to 1"),
        ({"efficiency": float("nan")}, "from 0.01 to 1"),
        ({"gain_error": -0.1}, "from 0 to 1"),
        ({"note": 3}, "wanted a text"),
    ],
)
def test_wiring_that_makes_no_sense_is_one_clear_line(options, words):
    with pytest.raises(UsageError, match=words) as caught:
        Wiring.of("ppk2", options)
    assert "\n" not in str(caught.value)


def test_option_that_nobody_knows_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean boundary"):
        refuse_rest("ppk2", ["boundry"], ["volts", "mode"])
