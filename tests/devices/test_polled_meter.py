"""A meter of which only `read` was written."""

import math
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from edgewatt.devices.polled_meter import PolledMeter
from edgewatt.harness.api import Channel, HarnessError, TransientError


class Counting(PolledMeter):
    """Its readings are 0, 1, 2, ...; `faults` says what happens at which."""

    name = "counting"
    channels = (Channel("count", "power", "W", "gauge", covers="nothing"),)
    period_s = 0.005

    def __init__(self, **faults: Exception) -> None:
        self.k = -1
        self.faults = {int(k[1:]): e for k, e in faults.items()}
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1

    def close(self) -> None:
        self.closed += 1

    def read(self) -> Sequence[float]:
        self.k += 1
        if self.k in self.faults:
            raise self.faults[self.k]
        return [float(self.k)]


def wait_for(meter: Counting, k: int) -> None:
    deadline = time.monotonic() + 5
    while meter.k < k and time.monotonic() < deadline:
        time.sleep(0.001)


def test_readings_come_in_order_with_their_times() -> None:
    meter = Counting()
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    meter.start()
    wait_for(meter, 20)
    trace = meter.stop()
    assert list(trace.values[:, 0]) == list(range(len(trace.t_s))) and len(trace.t_s) > 20
    assert before < trace.t_s[0] and (np.diff(trace.t_s) > 0).all() and trace.clock == "boottime"
    assert np.median(np.diff(trace.t_s)) == pytest.approx(0.005, rel=0.2)
    assert trace.facts["rate_asked_hz"] == 200 and "errors" not in trace.facts and "ended" not in trace.facts
    assert (meter.opened, meter.closed) == (1, 1)


@pytest.mark.parametrize("error", [TransientError("the port is busy"), OSError(5, "Input/output error")])
def test_reading_that_fails_for_once_is_missing_and_counted(error: Exception) -> None:
    meter = Counting(_2=error, _4=error)
    meter.start()
    wait_for(meter, 6)
    trace = meter.stop()
    assert [math.isnan(v) for v in trace.values[:6, 0]] == [False, False, True, False, True, False]
    assert trace.facts["errors"]["count"] == {"count": 2, "text": str(error)} and trace.facts["missing"] == 2


def test_other_errors_end_the_sampling_and_say_why() -> None:
    meter = Counting(_3=ZeroDivisionError("by zero"))
    meter.start()
    wait_for(meter, 3)
    trace = meter.stop()
    assert len(trace.t_s) == 3 and trace.facts["ended"] == "ZeroDivisionError: by zero" and meter.closed == 1


def test_no_first_sample_is_an_error_and_leaves_no_thread() -> None:
    threads = threading.active_count()
    with pytest.raises(HarnessError, match="counting: no sample: unplugged"):
        Counting(_0=HarnessError("unplugged")).start()
    slow = Counting(**{f"_{k}": TransientError("busy") for k in range(1000)})
    slow.first_sample_s = 0.1
    with pytest.raises(HarnessError, match=r"counting: no sample within 0\.1 s: busy"):
        slow.start()
    assert threading.active_count() == threads


def test_wrong_number_of_values_ends_the_sampling() -> None:
    class Two(Counting):
        def read(self) -> Sequence[float]:
            return [1.0, 2.0]

    with pytest.raises(HarnessError, match="2 values for 1 channels"):
        Two().start()


def test_started_again_it_begins_anew_and_stop_twice_is_harmless() -> None:
    meter = Counting()
    with pytest.raises(RuntimeError, match="never started"):
        meter.stop()
    meter.start()
    first = meter.stop()
    assert meter.stop() is first
    meter.start()
    with pytest.raises(RuntimeError, match="started already"):
        meter.start()
    assert meter.stop().t_s[0] > first.t_s[-1]


def test_reading_that_hangs_does_not_reach_into_the_next_sampling() -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    class Hanging(Counting):
        first_sample_s = 0.3

        def read(self) -> Sequence[float]:
            if self.k == 2:
                hangs.set()
                goes_on.wait()
            return super().read()

    meter = Hanging()
    meter.start()
    hangs.wait()
    trace = meter.stop()
    assert list(trace.values[:, 0]) == [0, 1, 2] and "did not return within 0.3 s" in trace.facts["ended"]
    with pytest.raises(HarnessError, match="counting: a reading that was begun before has not returned"):
        meter.start()
    goes_on.set()
    assert meter._left
    meter._left.join()
    meter.start()
    after = meter.stop()
    assert after.values[0, 0] > 3 and (np.diff(after.t_s) > 0).all() and "ended" not in after.facts


def test_late_reading_does_not_delay_the_next() -> None:
    class Slow(Counting):
        def read(self) -> Sequence[float]:
            if self.k == 19:
                time.sleep(0.022)
            return super().read()

    meter = Slow()
    meter.start()
    wait_for(meter, 40)
    trace = meter.stop()
    offset_s = (trace.t_s - trace.t_s[0] + 0.0025) % 0.005 - 0.0025  # against a timetable of 5 ms
    assert abs(np.median(offset_s[21:40]) - np.median(offset_s[:20])) < 0.001


WITHOUT_BOOTTIME = """
import time
del time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC, time.clock_gettime_ns
from edgewatt.devices import polled_meter
from edgewatt.devices.agent import agent
from edgewatt.devices.host import Host
print(polled_meter.PolledMeter.clock, Host.clock, agent.CLOCK, polled_meter.now_ns is agent.now_ns)
"""


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="needs a system with CLOCK_BOOTTIME to take it away")
def test_where_there_is_no_boottime_clock_the_agent_the_host_and_the_meter_still_share_one() -> None:
    told = subprocess.run([sys.executable, "-c", WITHOUT_BOOTTIME], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["monotonic", "monotonic", "monotonic", "True"]
