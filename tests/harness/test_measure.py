"""The run loop's own rules, on the host."""

import contextlib
import dataclasses
import time

import numpy as np
import pytest

from edgewatt.devices.host import Host
from edgewatt.harness.api import Channel, Flag, Meter, Trace, UsageError
from edgewatt.harness.measure import Protocol, measure, recompute
from support.command import PLUGIN

QUICK = Protocol(repeats=1, idle_s=0.1, window_s=0.3, isolated_s=0.1, warmup_min_s=0.1, warmup_max_s=0.5)


@pytest.fixture
def misbehaving(monkeypatch):
    monkeypatch.syspath_prepend(str(PLUGIN))
    import misbehaving

    return misbehaving.Misbehaving(item_s=0.001)


class Doubtful(Host):
    """A host that is always too hot when a run begins."""

    def health(self):
        return (Flag("hot", (), "95 degC (limit: 90)"),)


def test_doubts_before_the_run_come_out_of_recompute_again(misbehaving, tmp_path):
    with Doubtful() as host:
        run = measure(host, misbehaving, QUICK, tmp_path)
    assert run.error is None
    assert "hot" in {f.flag for f in run.flags}
    again = recompute(run, misbehaving, tmp_path / "again")
    assert again.flags == run.flags
    assert again.measurements == run.measurements
    assert again.warnings == run.warnings


class Dimmed(Host):
    """A host whose screen is on until a control turns it off."""

    is_on = True

    @contextlib.contextmanager
    def controls(self, wanted):
        self.is_on = wanted.get("screen") != "off"
        try:
            yield dict(wanted)
        finally:
            self.is_on = True

    def health(self):
        return (Flag("screen_on", (), "the screen is on"),) if self.is_on else ()


@pytest.mark.parametrize(("controls", "is_doubtful"), [({}, True), ({"screen": "off"}, False)])
def test_doubts_are_of_the_device_as_its_controls_set_it(misbehaving, tmp_path, controls, is_doubtful):
    with Dimmed() as host:
        run = measure(host, misbehaving, QUICK, tmp_path, controls=controls)
    assert ("screen_on" in {f.flag for f in run.flags}) is is_doubtful
    assert ("screen_on" in {f["flag"] for f in run.device["doubts_before"]}) is is_doubtful


def test_run_that_failed_keeps_what_was_measured(misbehaving, tmp_path):
    broken = dataclasses.replace(misbehaving, how="raise", at=5)
    with Host() as host:
        run = measure(host, broken, QUICK, tmp_path)
    assert run.error.kind == "failed" and "Frobnicate" in run.error.message
    assert [p.phase for p in run.phases] == ["load", "idle"]
    assert any(len(t.t_s) for t in run.traces)


@pytest.mark.parametrize("fault", [ValueError("odd"), MemoryError()])
def test_fault_of_the_analysis_costs_no_sample(misbehaving, tmp_path, monkeypatch, fault):
    def fail(run):
        raise fault

    monkeypatch.setattr("edgewatt.harness.analysis.analyse", fail)
    with Host() as host:
        run = measure(host, misbehaving, QUICK, tmp_path)
    assert run.error.kind == "failed" and f"unexpected {type(fault).__name__}" in run.error.message
    assert any(len(t.t_s) for t in run.traces) and not run.measurements


def test_calibration_that_no_meter_of_the_run_can_take_is_refused_or_told(misbehaving, tmp_path):
    def asked(*channels):
        told = {"gain": 1.0, "offset_w": 0.0, "gain_error": 0.01, "reference_gain_error": 0.01, "boundary": "board",
                "covers": "all", "reference": "supply", "date": "2026-11-27"}  # fmt: skip
        return lambda facts: {name: {**told, "channel": channel} for name, channel in channels}

    with Host() as host:
        for none in (("own", "total"),), (("slow", "other"),):
            with pytest.raises(UsageError, match=r"(own/total|slow/other): was calibrated, and this run does not read"):
                measure(host, misbehaving, QUICK, tmp_path, extra_meters=[Slow()], calibrations=asked(*none))
        both = asked(("own", "total"), ("slow", "total"))
        run = measure(host, misbehaving, QUICK, tmp_path, extra_meters=[Slow()], calibrations=both)
    assert "own/total: was calibrated, and this run does not read it" in run.warnings
    assert any(w.startswith("slow/total: calibrated against supply") for w in run.warnings)


class Slow(Meter):
    """A counter of 2 W that is read every millisecond and moves every 10 ms, when watched again every 10.4 ms."""

    name = "slow"
    channels = (Channel("total", "energy", "J", "counter", "all of it", "board"),)
    period_s = 0.001
    moves_s = 0.0096

    def start(self):
        self.moves_s += 0.0004
        self.began_s = time.clock_gettime(time.CLOCK_BOOTTIME)

    def stop(self):
        t_s = np.arange(self.began_s, time.clock_gettime(time.CLOCK_BOOTTIME), self.period_s)
        joules = 2.0 * self.moves_s * np.floor(t_s / self.moves_s)
        return Trace(self.name, self.clock, self.channels, t_s, joules[:, None])


def test_window_made_longer_for_a_meter_is_long_enough_for_it(misbehaving, tmp_path):
    with Host() as host:
        run = measure(host, misbehaving, QUICK, tmp_path, extra_meters=[Slow()])
    (window,) = [p for p in run.phases if p.phase == "window"]
    assert 1.04 < window.end_s - window.start_s < 1.5  # 100 of its periods, for 2 % at both ends
    assert "window_too_short" not in {f.flag for f in run.flags if f.meter == "slow"}
    assert any("slow/total refreshes every 0.01 s" in w for w in run.warnings), run.warnings
