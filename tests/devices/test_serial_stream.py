"""Serial meters that are emulated: their joules against the truth, and every fault of a port."""

import os
import pty
import select
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from edgewatt.devices.host import Host
from edgewatt.devices.ppk2 import Ppk2
from edgewatt.harness import conformance, flags
from edgewatt.harness.analysis_meter import sample_doubts
from edgewatt.harness.analysis_view import Findings, view
from edgewatt.harness.api import HarnessError, Meter, Phase, Run, Trace, TransientError, UsageError
from edgewatt.harness.energy import Energy, energy
from support.serial_lab import Lab, boot_s

needs_serial_lab = pytest.mark.needs_serial_lab


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as found:
        yield found


TIED_S = 0.02  # a looser clock says that this machine was too busy for the emulated meter to keep its own pace
TRIES = 3
T = TypeVar("T")


def whole(lab: Lab, sample: Callable[[], T]) -> T:
    """What `sample` gives while the emulated meter loses nothing: a busy machine may hold it up, or its reader."""
    for _ in range(TRIES):
        lost = lab.status()["bytes_lost"]
        found = sample()
        if lab.status()["bytes_lost"] == lost:
            return found
    pytest.fail(f"the emulated meter could not keep up on this machine: it lost bytes in each of {TRIES} samplings")


def tied(lab: Lab, sample: Callable[[], Trace], tries: int = TRIES) -> Trace:
    """A trace of nothing lost, and of a meter that kept its own pace, if one of `tries` is so."""
    trace = whole(lab, sample)
    return trace if tries == 1 or trace.facts["clock_bound_s"] < TIED_S else tied(lab, sample, tries - 1)


def traced(meter: Meter, seconds: float) -> Trace:
    meter.start()
    try:
        time.sleep(seconds)
    finally:
        trace = meter.stop()
    return trace


def sampled(lab: Lab, meter: Meter, seconds: float) -> Trace:
    return tied(lab, lambda: traced(meter, seconds))


def within(trace: Trace, rim_s: float = 0.1) -> tuple[float, float]:
    return float(trace.t_s[0]) + rim_s, float(trace.t_s[-1]) - rim_s


def used(trace: Trace, start_s: float, end_s: float) -> Energy:
    return energy(trace, "power", start_s, end_s, clock_bound_s=trace.facts["clock_bound_s"])


def is_true(trace: Trace, lab: Any, share: float = 0.005) -> None:
    """The trace's joules lie within `share` of the true ones, and those inside the error bar."""
    start, end = within(trace)
    found, true_j = used(trace, start, end), lab.truth(start, end)["total_joules"]
    assert found.energy_j == pytest.approx(true_j, rel=share)
    assert abs(found.energy_j - true_j) <= found.uncertainty_j, (found, true_j)


WAVES = [
    ("constant", 1.5),
    ("sine", 2, 1, 1),
    ("square", 0.2, 2.0, 0.1),
    pytest.param(("step", 0.5, 3.0, 2.5), marks=pytest.mark.soak),
    pytest.param(("square", 0.2, 2.0, 0.5), marks=pytest.mark.soak),
    pytest.param(("sine", 1, 1, 0.02), marks=pytest.mark.soak),
    pytest.param(("constant", 0.00004), marks=pytest.mark.soak),
]


@needs_serial_lab
@pytest.mark.parametrize("wave", WAVES, ids=lambda w: f"{w[0]}-{w[-1]}")
def test_ppk2s_joules_are_the_true_ones(host: Host, wave: tuple[Any, ...]) -> None:
    with Lab("ppk2", *wave) as lab:
        trace = sampled(lab, Ppk2.attached_to(host, lab.port), 2.5)
        is_true(trace, lab)
        notes = trace.facts["notes"]
        assert notes["words_lost"] == 0 and notes["resyncs"] == 0 and trace.facts["rows_unplaced"] == 0
        assert trace.facts["gap_max_s"] < 0.0015 and trace.facts["clock_bound_s"] < 0.05
        assert np.all(trace.column("voltage") == 3.9) and trace.facts["clock_of"] == "harness"
        assert np.allclose(trace.column("power"), 3.9 * trace.column("current"))


@needs_serial_lab
def test_ppk2_keeps_the_rules_of_a_meter(host: Host) -> None:
    with Lab("ppk2", "constant", 1) as lab:
        trace = conformance.check_meter(Ppk2.attached_to(host, lab.port, logic=True, rate_hz=500))
        assert trace.facts["wiring"] == {"boundary": "supply"}


@needs_serial_lab
def test_ppk2_api_gives_the_same_mean_current(host: Host) -> None:
    """PyPI ppk2-api on the same port, of the same wave: 0.5 A in the mean."""
    ppk2_api = pytest.importorskip("ppk2_api.ppk2_api")
    with Lab("ppk2", "sine", 1.95, 1.5, 0.1) as lab:
        ours_a = float(np.mean(sampled(lab, Ppk2.attached_to(host, lab.port), 2.2).column("current")[:2000]))
        theirs = ppk2_api.PPK2_API(lab.port, timeout=1)

        def received() -> bytes:
            data = bytearray()
            theirs.start_measuring()
            until = time.monotonic() + 2.3
            while time.monotonic() < until:
                data += theirs.get_data()
                time.sleep(0.005)
            theirs.stop_measuring()
            return bytes(data)

        try:
            theirs.get_modifiers()
            theirs.set_source_voltage(3900)
            data = whole(lab, received)
        finally:
            theirs.ser.close()
        samples, _ = theirs.get_samples(data)  # only now: decoding takes as long as measuring
        assert len(samples) > 150_000
        periods = len(samples) // 10_000  # whole ones
        assert ours_a == pytest.approx(0.5, rel=2e-3)
        assert float(np.mean(samples[: periods * 10_000])) * 1e-6 == pytest.approx(ours_a, rel=5e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Faults: a gap, told, or no reading at all; never a wrong joule

FAULTS = [
    ("drop-samples", 1000, 0.01),
    ("garbage", 37, 0.0),
    ("stall", 0.7, 0.6),
    ("unplug", 0.7, 0.6),
    pytest.param("drop-samples", 6400, 0.06, marks=pytest.mark.soak),
    pytest.param("drop-samples", 40, 0.0, marks=pytest.mark.soak),
    pytest.param("garbage", 5000, 0.0, marks=pytest.mark.soak),
    pytest.param("stall", 0.2, 0.0, marks=pytest.mark.soak),
    pytest.param("stall", 3, 2.9, marks=pytest.mark.soak),
    pytest.param("unplug", 3, 2.9, marks=pytest.mark.soak),
    pytest.param("reset", "", 4.0, marks=pytest.mark.soak),
]


@needs_serial_lab
@pytest.mark.parametrize("fault, word, least_gap_s", FAULTS)
def test_fault_of_a_ppk2_is_a_gap_and_never_a_wrong_joule(
    host: Host, fault: str, word: Any, least_gap_s: float
) -> None:
    """Inside the error bar over the whole, and within 0.5 % on each side of the gap."""
    with Lab("ppk2", "square", 0.2, 2.0, 0.1) as lab:
        meter = Ppk2.attached_to(host, lab.port)
        meter.start()
        time.sleep(1.5)
        lab.fault(fault, word) if word else lab.fault(fault)
        time.sleep(2 + 1.6 * least_gap_s)
        trace = meter.stop()
        start, end = within(trace)
        found, true_j = used(trace, start, end), lab.truth(start, end)["total_joules"]
        assert abs(found.energy_j - true_j) <= found.uncertainty_j, (found, true_j, trace.facts)
        gaps_s = np.diff(trace.t_s)
        if fault == "stall":  # what waited comes late, as far as the emulated meter had room for it
            least_gap_s = min(least_gap_s, lab.status()["bytes_lost"] / 400_000 - 0.01)
        assert gaps_s.max() >= least_gap_s - 2 * trace.facts["clock_bound_s"] and end - start > 3
        assert (trace.facts["gaps_over_limit"] > 0) == (gaps_s.max() > 0.003)
        if least_gap_s > 0.05:
            gaps_s[: np.searchsorted(trace.t_s, start + 1)] = 0  # a busy machine may have held up the first rows
            before, after = trace.t_s[gaps_s.argmax()] - 0.02, trace.t_s[gaps_s.argmax() + 1] + 0.02
            for a, b in ((start, before), (after, end)):
                side, side_j = used(trace, a, b), lab.truth(a, b)["total_joules"]
                # A stall ties the clock loosely. A cut that is off by so long, at most half a pulse, moves up to 0.9 W
                # (the wave's distance from its mean) times that, at both ends; the bar knows the mean power there.
                moved_j = 2 * 0.9 * min(trace.facts["clock_bound_s"], 0.05)
                assert abs(side.energy_j - side_j) <= max(5e-3 * side_j, side.uncertainty_j, moved_j)
        assert np.nanmax(trace.column("power")) < 2.1 and np.nanmax(trace.column("over_range")) == 0


@needs_serial_lab
def test_drift_of_the_meters_clock_is_found(host: Host) -> None:
    with Lab("ppk2", "square", 0.2, 2.0, 0.1) as lab:
        lab.fault("clock-drift", 900)
        trace = sampled(lab, Ppk2.attached_to(host, lab.port), 5)
        is_true(trace, lab)
        slack = 2 * trace.facts["clock_bound_s"] / 5
        assert slack < 0.01 and trace.facts["clock_drift"] == pytest.approx(9e-4, abs=slack)


@needs_serial_lab
def test_tiny_fragments_change_nothing(host: Host) -> None:
    with Lab("ppk2", "square", 0.2, 2.0, 0.1) as lab:
        lab.fault("short-write")
        trace = sampled(lab, Ppk2.attached_to(host, lab.port), 3)
        start, end = within(trace)
        # The emulated meter hardly keeps up so: a queue that never empties is a delay that no arrival shows.
        assert used(trace, start, end).energy_j == pytest.approx(lab.truth(start, end)["total_joules"], rel=0.05)
        assert trace.facts["notes"]["resyncs"] == 0


@needs_serial_lab
def test_truncated_metadata_are_one_clear_error(host: Host) -> None:
    with Lab("ppk2", "constant", 1) as lab:
        lab.fault("truncate-metadata")
        with pytest.raises(HarnessError, match=r"ppk2: no sample: .*its metadata broke off after \d+ bytes") as caught:
            Ppk2.attached_to(host, lab.port).start()
        assert "\n" not in str(caught.value)
        lab.fault("truncate-metadata", "off")
        is_true(sampled(lab, Ppk2.attached_to(host, lab.port), 1), lab)  # the port is free again


@needs_serial_lab
def test_other_meter_at_the_port_is_one_clear_error(host: Host) -> None:
    with Lab("csv", "constant", 1) as lab, pytest.raises(HarnessError, match="are no PPK2's metadata"):
        Ppk2.attached_to(host, lab.port).start()


@needs_serial_lab
def test_port_in_another_programs_hands_is_named_with_it(host: Host) -> None:
    with Lab("ppk2", "constant", 1) as lab:
        hold = "import os, sys, time; os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY); print('open', flush=True)"
        words = [sys.executable, "-c", f"{hold}; time.sleep(60)", lab.port]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
            assert other.stdout and other.stdout.readline() == b"open\n"
            with pytest.raises(TransientError, match=rf"process {other.pid} \(python.*has the port open"):
                Ppk2.attached_to(host, lab.port).start()
            other.kill()


@needs_serial_lab
def test_program_that_steals_bytes_is_named_and_makes_no_wrong_joule(host: Host) -> None:
    steal = "import os, sys, time\nf = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)\nend = time.time() + 2.5\n"
    steal += "while time.time() < end:\n os.read(f, 700)\n time.sleep(0.05)"
    with Lab("ppk2", "square", 0.2, 2.0, 0.1) as lab:
        meter = Ppk2.attached_to(host, lab.port)
        meter.start()
        time.sleep(1)
        with subprocess.Popen([sys.executable, "-c", steal, lab.port]) as thief:
            thief.wait(20)
        time.sleep(1)
        trace = meter.stop()
        notes = trace.facts["notes"]
        assert [o["pid"] for o in notes["other_programs"]] == [thief.pid]
        assert notes["words_lost"] > 100 and np.nanmax(trace.column("power")) < 2.1
        is_true(trace, lab, share=0.02)


def test_missing_port_is_refused_with_the_next_step(host: Host) -> None:
    with pytest.raises(UsageError, match=r"ppk2: /dev/ttyNONE: no such serial port; plug the meter in"):
        Ppk2.attached_to(host, "/dev/ttyNONE").start()
    with pytest.raises(UsageError, match="is no serial port"):
        Ppk2.attached_to(host, str(Path(__file__))).start()


def test_missing_pyserial_names_the_extra(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(UsageError, match=r"pip install 'edgewatt\[serial\]'"):
        Ppk2.attached_to(host, "/dev/ttyACM0").start()


def test_silent_meter_is_refused(host: Host) -> None:
    master, slave = pty.openpty()
    try:
        tty.setraw(slave)
        path = os.ttyname(slave)
        os.close(slave)
        with pytest.raises(HarnessError, match="nothing came within 3 s when asked for metadata; see that it is"):
            Ppk2.attached_to(host, path).start()
    finally:
        os.close(master)


@contextmanager
def man_in_the_middle(port: str, harm: Any) -> Iterator[str]:
    """A pty before the port; `harm` (bytes -> bytes) sees what comes from the meter."""
    far = os.open(port, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(far)
    master, slave = pty.openpty()
    tty.setraw(slave)
    ended = threading.Event()

    def carry() -> None:
        while not ended.is_set():
            for fd in select.select([far, master], [], [], 0.1)[0]:
                with suppress(OSError):
                    data = os.read(fd, 4096)
                    if fd == master:
                        os.write(far, data)
                    else:
                        data = harm(data)
                        while data:
                            data = data[os.write(master, data) :]

    thread = threading.Thread(target=carry, daemon=True)
    thread.start()
    try:
        path = os.ttyname(slave)
        os.close(slave)
        yield path
    finally:
        ended.set()
        thread.join(5)
        os.close(far)
        os.close(master)


class Harm:
    """Every so often bytes are dropped, doubled or changed, once the meter talks."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind, self.draw = kind, np.random.default_rng(seed)
        self.times, self._next = 0, time.monotonic() + 1.0

    def __call__(self, data: bytes) -> bytes:
        if time.monotonic() < self._next or len(data) < 100:
            return data
        self._next = time.monotonic() + 0.3
        self.times += 1
        at, n = int(self.draw.integers(0, len(data) - 30)), int(self.draw.integers(1, 30))
        if self.kind == "dropped":
            return data[:at] + data[at + n :]
        if self.kind == "doubled":
            return data[: at + n] + data[at:]
        return data[:at] + self.draw.bytes(n + 20) + data[at + n :]


@needs_serial_lab
@pytest.mark.parametrize("kind, seed", [("dropped", 1), ("doubled", 2), ("changed", 3)])
def test_harmed_bytes_are_found_again_and_cost_next_to_nothing(host: Host, kind: str, seed: int) -> None:
    harms = []

    def harmed(lab: Lab) -> Trace:
        harms.append(Harm(kind, seed))
        with man_in_the_middle(lab.port, harms[-1]) as path:
            return traced(Ppk2.attached_to(host, path), 3.5)

    with Lab("ppk2", "square", 0.2, 2.0, 0.1) as lab:
        trace, harm = tied(lab, lambda: harmed(lab)), harms[-1]
        is_true(trace, lab)
        notes = trace.facts["notes"]
        assert harm.times >= 5 and notes["breaks"] >= harm.times - 2
        assert np.nanmax(trace.column("power")) < 2.1 and np.nanmax(trace.column("over_range")) == 0
        assert len(trace.t_s) > 0.97 * np.ptp(trace.t_s) * 1000


# ---------------------------------------------------------------------------------------------------------------------
# Beyond the range


@needs_serial_lab
def test_power_beyond_the_range_voids_joules(host: Host) -> None:
    with Lab("ppk2", "square", 1.0, 8.0, 0.5) as lab:  # 2 A at 3.9 V, shown as 1 A
        trace = sampled(lab, Ppk2.attached_to(host, lab.port), 2.5)
    share = trace.column("over_range")
    assert 0.3 < share.mean() < 0.7 and set(np.round(share[np.isfinite(share)])) == {0.0, 1.0}
    start, end = within(trace)
    run = Run("r", "", "host", "w", {}, {}, phases=(Phase("window", start, end),), traces=(trace,))
    found = Findings()
    sample_doubts(view(run, found), trace, found)
    (flag,) = [f for f in found.flags if f.flag == flags.OVER_RANGE]
    assert set(flag.voids) == set(flags.ENERGY_METRICS) and "limit: none" in flag.detail


@needs_serial_lab
def test_port_is_free_and_the_device_still_fed_afterwards(host: Host) -> None:
    with Lab("ppk2", "constant", 1) as lab:
        sampled(lab, Ppk2.attached_to(host, lab.port, mode="source", volts=3.9), 0.5)
        before = boot_s()
        trace = sampled(lab, Ppk2.attached_to(host, lab.port), 1)
        assert trace.t_s[0] > before and np.mean(trace.column("power")) == pytest.approx(1, rel=1e-3)
        sampled(lab, Ppk2.attached_to(host, lab.port, power_off=True), 0.5)
        assert np.all(sampled(lab, Ppk2.attached_to(host, lab.port), 0.5).column("power") == 0)
