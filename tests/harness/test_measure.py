"""The run loop's own parts, without a device."""

from collections.abc import Sequence

import numpy as np
import pytest

from edgewatt.harness import measure
from edgewatt.harness.api import Channel, HarnessError, Meter, Trace, UsageError

POWER = Channel("OUT", "power", "W", "gauge", "everything", "dc-input")


class Scripted(Meter):
    """Gives the same trace whenever it is stopped; `breaks` when it is."""

    period_s = 0.0

    def __init__(self, name: str, values: Sequence[float] = (), breaks: bool = False) -> None:
        self.name, self.channels, self.breaks, self.running = name, (POWER,), breaks, False
        self.values = np.array(values, np.float64)[:, None]

    def start(self) -> None:
        self.running = True

    def stop(self) -> Trace:
        self.running = False
        if self.breaks:
            raise HarnessError(f"{self.name}: lost")
        return Trace(self.name, "boottime", self.channels, np.arange(len(self.values), dtype=np.float64), self.values)


def session() -> measure._Session:
    return measure._Session(None, None, measure.Protocol(), None, lambda _: None)  # type: ignore[arg-type]


def test_every_meter_is_stopped_where_one_cannot_be() -> None:
    meters = [Scripted("a"), Scripted("b", breaks=True), Scripted("c")]
    run = session()
    with pytest.raises(HarnessError, match="b: lost"), run.sampled(meters):
        assert all(m.running for m in meters)
    assert not any(m.running for m in meters)
    assert [t.meter for t in run.traces] == ["a", "c"]


def test_two_meters_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two meters are called 'a'"):
        measure._apart([Scripted("a"), Scripted("b"), Scripted("a")])


def test_meter_too_slow_or_silent_to_be_probed_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PROBE_S", 0.0)
    protocol = measure.Protocol()
    for values in ([], [12.0], [np.nan] * 5):
        assert measure._windows([Scripted("slow", values)], protocol) == (protocol.window_s, protocol.isolated_s, [])


def test_slow_meter_is_watched_for_five_of_its_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(measure.time, "sleep", slept.append)
    meter = Scripted("slow")
    meter.period_s = 2.0
    measure.watched(meter, 1.0)
    assert slept == [10.0]
