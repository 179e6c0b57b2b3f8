"""The run loop's own rules, on the host."""

import dataclasses

import pytest

from edgewatt.devices.host import Host
from edgewatt.harness.api import Flag
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


def test_run_that_failed_keeps_what_was_measured(misbehaving, tmp_path):
    broken = dataclasses.replace(misbehaving, how="raise", at=5)
    with Host() as host:
        run = measure(host, broken, QUICK, tmp_path)
    assert run.error.kind == "failed" and "Frobnicate" in run.error.message
    assert [p.phase for p in run.phases] == ["load", "idle"]
    assert any(len(t.t_s) for t in run.traces)
