"""Pulses are played around a job where a meter needs them, tie its clock, and are nothing of the job."""

import dataclasses

import numpy as np
import pytest

from edgewatt.devices.host import Host
from edgewatt.harness import pulses
from edgewatt.harness.analysis import analyse
from edgewatt.harness.api import Channel, Meter, Phase, Trace, UsageError
from edgewatt.harness.attach import attached
from edgewatt.harness.measure import Progress, Protocol, measure, recompute
from edgewatt.reports.timeline import timeline
from support import made_run
from support.command import PLUGIN

QUICK = Protocol(repeats=1, idle_s=0.1, window_s=0.3, isolated_s=0.1, warmup_min_s=0.1, warmup_max_s=0.5)
POWER = Channel("power", "power", "W", "gauge", "all of it", "supply", gain_error=0.001, age_s=0.0)


class Recorder(Meter):
    """A recorder with a clock of its own, that sees nothing."""

    name = "recorder"
    channels = (POWER,)
    period_s = 0.01
    clock = "recording"
    shares_clock = False

    def start(self) -> None:
        pass

    def stop(self) -> Trace:
        facts = {"clock_of": "recording", "ended": "nobody pressed its button"}
        return Trace(self.name, self.clock, self.channels, np.empty(0), np.empty((0, 1)), facts)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run with a recorder, its workload, and the stages that were shown."""
    with pytest.MonkeyPatch.context() as patch, Host() as host:
        patch.syspath_prepend(str(PLUGIN))
        import misbehaving

        workload, stages = misbehaving.Misbehaving(item_s=0.001), []

        def shown(step: Progress) -> None:
            stages.append(step.stage)

        into = tmp_path_factory.mktemp("run")
        run = measure(host, workload, QUICK, into, extra_meters=[Recorder()], progress=shown)
        yield run, workload, stages


def test_pulses_are_played_before_and_after_the_job(recorded) -> None:
    run, _, stages = recorded
    assert run.error is None
    found = [p for p in run.phases if p.phase == "pulse"]
    assert [p.repeat for p in found] == [0] * 5 + [1] * 4
    others = [p for p in run.phases if p.phase != "pulse"]
    assert found[4].end_s < others[0].start_s and others[-1].end_s < found[5].start_s
    lengths = [s for end in (0, 1) for s, workers in pulses.steps(end, run.id) if workers]
    off_s = np.subtract([p.duration_s for p in found], lengths)
    assert np.median(np.abs(off_s)) < 0.1  # this machine may hold up one or the other
    shown = [s for k, s in enumerate(stages) if k == 0 or s != stages[k - 1]]
    assert shown[:3] == ["prepare", "pulse", "load"] and shown[-1] == "pulse"


def test_pulses_are_in_no_figure(recorded) -> None:
    run, _, _ = recorded
    assert not [m for m in run.measurements if "pulse" in m.phase]
    assert {m.phase for m in run.measurements if m.metric == "duration_s"} == {
        p.phase for p in run.phases if p.phase != "pulse"
    }
    assert "pulse" in timeline(run).names  # shaded on the page


def test_recording_that_cannot_be_aligned_has_no_joules_and_says_why(recorded, tmp_path) -> None:
    run, workload, _ = recorded
    (flag,) = [f for f in run.flags if f.meter == "recorder"]
    assert flag.flag == "clock_skew" and flag.detail == "nobody pressed its button" and "energy_j" in flag.voids
    assert not [m for m in run.measurements if m.meter.startswith("recorder")]
    assert recompute(run, workload, tmp_path / "again").flags == run.flags


@pytest.mark.soak
def test_pulses_are_played_when_asked_for_and_not_otherwise(recorded, tmp_path) -> None:
    _, workload, _ = recorded
    with Host() as host:
        plain = measure(host, workload, QUICK, tmp_path / "plain")
        asked = measure(host, workload, dataclasses.replace(QUICK, pattern=True), tmp_path / "asked")
    assert not pulses.ends(plain.phases) and len(pulses.ends(asked.phases)) == 2
    assert [m.metric for m in plain.measurements] == [m.metric for m in asked.measurements]


def test_two_runs_play_different_pulses() -> None:
    one, two = (np.array([s for s, _ in pulses.steps(0, run)]) for run in ("20260101-000000-abcdef", "x"))
    assert np.abs(one - two).max() > 0.1 and pulses.steps(0, "x") == pulses.steps(0, "x")
    assert all(4 < sum(s for s, _ in pulses.steps(end, "x")) < 8 for end in (0, 1))


def played(first_s: float, end: int) -> list[Phase]:
    found = []
    for seconds, workers in pulses.steps(end, "a run"):
        if workers:
            found.append(Phase("pulse", first_s, first_s + seconds, 2, end))
        first_s += seconds
    return found


def test_joules_of_a_recording_are_those_of_the_phases_it_covered() -> None:
    """Closed form: 10 W in windows of 20 s, whatever the recorder's clock says."""
    job = made_run.phases()
    before, after = played(job[0].start_s - 10, 0), played(job[-1].end_s + 3, 1)
    times, levels = made_run.knots(job)
    t = np.arange(before[0].start_s - 5, after[-1].end_s + 5, 0.001)
    watts = np.where((t > times[0] + 9) & (t < times[-1] - 9), made_run.level(t, (times, levels)), 2.0)
    for p in [*before, *after]:
        watts[(t >= p.start_s) & (t < p.end_s)] = 6.0
    watts += np.random.default_rng(3).normal(0, 0.2, len(t))
    recorder_t = 1.7e9 + (t - t[0]) * (1 + 250e-6)
    trace = Trace("supply", "recording", (POWER,), recorder_t, watts[:, None], {"clock_of": "recording"})
    run = made_run.run([*before, *job, *after], [trace], made_run.items(job))
    measurements, flags, _ = analyse(run)
    assert not [f for f in flags if f.meter == "supply" and f.voids]
    joules = made_run.one(measurements, "energy_j", "window", "supply")
    true_j = sum(float(np.diff(made_run.joules(np.array([p.start_s, p.end_s]), (times, levels)))[0]) for p in job
                 if p.phase == "window")  # fmt: skip
    assert true_j == pytest.approx(400.0)
    assert abs(joules.value - true_j) <= joules.uncertainty <= 0.01 * true_j
    assert any(p.phase == "pulse" for p in run.phases) and timeline(run).panels
    # The same samples, said to be on another run's clock, give none.
    elsewhere = dataclasses.replace(run, phases=tuple(dataclasses.replace(p, start_s=p.start_s + 0.5 * (p.repeat == 1))
                                                      if p.phase == "pulse" else p for p in run.phases))  # fmt: skip
    measurements, flags, _ = analyse(elsewhere)
    assert "clock_skew" in {f.flag for f in flags if f.meter == "supply"}
    assert not [m for m in measurements if m.meter == "supply" and m.unit == "J"]


class Stored(Recorder):
    """A recorder whose file is there now."""

    name = "supply"

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def read(self) -> Trace:
        return self._trace


def test_attaching_makes_a_run_of_its_own(recorded, tmp_path) -> None:
    run, workload, _ = recorded
    trace = Trace("file", "recording", (POWER,), np.arange(20.0), np.ones((20, 1)), {"clock_of": "recording"})
    new = attached(run, [Stored(trace)], workload, tmp_path)
    assert new.id != run.id and new.spec["attached_to"] == run.id and run.trace("recorder")
    assert [t.meter for t in new.traces] == [*(t.meter for t in run.traces), "supply"]
    assert any(f.flag == "clock_skew" and f.meter == "supply" for f in new.flags)
    kept = [m for m in new.measurements if m.metric == "latency_s"]
    assert kept == [m for m in run.measurements if m.metric == "latency_s"]


def test_attaching_to_a_run_without_pulses_is_refused(recorded, tmp_path) -> None:
    run, workload, _ = recorded
    silent = dataclasses.replace(run, phases=tuple(p for p in run.phases if p.phase != "pulse"))
    with pytest.raises(UsageError, match="measure again with --set pattern=true"):
        attached(silent, [Stored(run.trace("recorder"))], workload, tmp_path)
    with pytest.raises(UsageError, match="has a meter 'recorder' already"):
        attached(run, [_named(Stored(run.trace("recorder")), "recorder")], workload, tmp_path)


def _named(meter: Meter, name: str) -> Meter:
    meter.name = name
    return meter
