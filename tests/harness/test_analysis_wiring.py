"""What lies between an external meter and the device is told, and taken off nothing."""

import numpy as np
import pytest

from edgewatt.harness.analysis import analyse
from edgewatt.harness.api import Channel, Trace
from support import made_run as made

POWER = Channel("power", "power", "W", "gauge", "the board", "dc-input")
CURRENT = Channel("current", "current", "A", "gauge", "the board", "dc-input")


def wired(with_current: bool = True, **wiring: object) -> Trace:
    """5 W at 5 V, so 1 A, all along."""
    phases = made.phases()
    t_s = np.arange(phases[0].start_s - 1, phases[-1].end_s + 1, 0.1)
    watts = 5 + 0.01 * np.sin(t_s)
    columns = [watts, watts / 5] if with_current else [watts]
    channels = (POWER, CURRENT) if with_current else (POWER,)
    return Trace("supply", "boottime", channels, t_s, np.stack(columns, axis=1), {"wiring": wiring})


def warnings(trace: Trace) -> str:
    return "\n".join(w for w in analyse(made.run(made.phases(), [trace]))[2] if w.startswith("supply"))


def test_loss_in_the_leads_is_told_from_the_current() -> None:
    said = warnings(wired(series_resistance_ohm=0.05))
    assert "0.05 ohm" in said and "0.05 W (1.0%)" in said  # 1 A squared x 0.05 ohm, of 5 W


def test_loss_in_the_leads_is_not_taken_off() -> None:
    found, _, _ = analyse(made.run(made.phases(), [wired(series_resistance_ohm=0.5)]))
    assert made.one(found, "power_w").value == pytest.approx(5.0, rel=1e-3)


def test_meter_without_current_does_not_guess_the_loss() -> None:
    assert "not known" in warnings(wired(with_current=False, series_resistance_ohm=0.05))


def test_converter_is_told() -> None:
    assert "efficiency 0.9" in warnings(wired(efficiency=0.9))


def test_plain_wiring_says_nothing() -> None:
    assert not warnings(wired(boundary="dc-input"))
