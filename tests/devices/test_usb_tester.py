"""RDTech's USB testers: records by hand, answers that go wrong, and the emulated one."""

import os
import struct
import threading
import time
import tty
from typing import Any

import numpy as np
import pytest

from edgewatt.devices.agent.serial_port import MeterError
from edgewatt.devices.agent.usb_tester import Decoder, RecordError, parsed
from edgewatt.devices.host import Host
from edgewatt.devices.usb_tester import Um24c, Um25c, Um34c, renewed
from edgewatt.harness import conformance
from edgewatt.harness.api import Channel, HarnessError, Trace, UsageError
from edgewatt.harness.energy import energy
from support.serial_lab import Lab, against

MS = 1_000_000
SOAK = pytest.mark.soak


def record(model: int, volts: int, amperes: int, milliwatts: int, group: int = 0, mwh: int = 0) -> bytes:
    """130 bytes; volts and amperes in the model's steps, the energy in the group's place."""
    made = bytearray(130)
    struct.pack_into(">HHHIHHH", made, 0, model, volts, amperes, milliwatts, 25, 77, group)
    struct.pack_into(">II", made, 16 + 8 * group, 7, mwh)
    return bytes(made)


GOOD = record(0x09C9, 5000, 7800, 3900)


class FakePort:
    """Answers each f0 with the next of `answers`."""

    path = "/dev/rfcommTEST"

    def __init__(self, *answers: bytes) -> None:
        self._answers, self._waiting = list(answers), b""

    def write(self, data: bytes) -> None:
        assert data == b"\xf0"
        self._waiting = self._answers.pop(0) if self._answers else b""

    def read(self, timeout_s: float) -> bytes:
        piece, self._waiting = self._waiting[:50], self._waiting[50:]
        if not piece:
            time.sleep(max(0.0, timeout_s))
        return piece

    def drain(self) -> None:
        self._waiting = b""


def decoder(model: str = "um25c") -> Decoder:
    return Decoder({"model": model})


@pytest.mark.parametrize(
    ("model", "data", "values"),
    [
        ("um25c", record(0x09C9, 5000, 7800, 3900, 3, 1000), [3.9, 5.0, 0.78, 3600.0]),
        ("um24c", record(0x0963, 512, 1210, 6195, 0, 2), [6.195, 5.12, 1.21, 7.2]),
        ("um34c", record(0x0D4C, 900, 2000, 18000, 9, 1), [18.0, 9.0, 2.0, 3.6]),
    ],
)
def test_a_record_is_power_voltage_current_and_its_own_sum(model: str, data: bytes, values: list[float]) -> None:
    assert parsed(data, model) == pytest.approx(values)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (GOOD[:129], "short"),
        (GOOD + b"\0", "long"),
        (b"\0" + GOOD[:129], "another model"),
        (record(0x0963, 5000, 7800, 3900), "another model"),
        (record(0x09C9, 5000, 7800, 3400), "volts x amperes"),
        (record(0x09C9, 500, 780, 3900), "volts x amperes"),
        (GOOD[:2] + GOOD[3:] + b"\0", "volts x amperes"),
        (GOOD[:14] + b"\0\x0a" + GOOD[16:], "no such group"),
        (b"\xff" * 130, "another model"),
    ],
)
def test_what_is_no_record_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        parsed(data, "um25c")


def test_a_row_lies_in_the_middle_of_request_and_answer() -> None:
    made = decoder()
    assert made.request(1000 * MS) == b"\xf0"
    assert made.request(1010 * MS) == b""
    assert made.take(GOOD[:60], 1020 * MS) == []
    ((segment, clock_s, values),) = made.take(GOOD[60:], 1040 * MS)
    assert (segment, clock_s) == (0, pytest.approx(1.020))
    assert values[:3] == pytest.approx([3.9, 5.0, 0.78])
    assert made.request(1050 * MS) == b""
    assert made.request(1201 * MS) == b"\xf0"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"", "no answer"), (GOOD[:129], "short"), (b"\0" + GOOD[:129], "another model word")],
)
def test_an_answer_that_went_wrong_is_counted_let_pass_and_asked_again(answer: bytes, reason: str) -> None:
    made, now = decoder(), 1000 * MS
    made.request(now)
    if answer:
        assert made.take(answer, now + 20 * MS) == []
    asked = [t for t in range(10, 2000, 10) if made.request(now + t * MS)]
    assert made.notes["refused"][reason] >= 1
    assert asked[0] > 100  # first nothing is to come for a while
    assert made.take(GOOD, now + 1995 * MS)  # of the last request


def test_a_late_answer_is_not_taken_for_the_next() -> None:
    made, now = decoder(), 1000 * MS
    made.request(now)
    assert made.request(now + 650 * MS) == b""  # given up; it may still come
    assert made.take(record(0x09C9, 5000, 1000, 500), now + 700 * MS) == []
    assert made.notes["stray_bytes"] == 130
    assert made.request(now + 800 * MS) == b""
    assert made.request(now + 860 * MS) == b"\xf0"
    assert made.take(GOOD, now + 900 * MS)[0][2][0] == pytest.approx(3.9)


def test_another_model_is_named() -> None:
    other = record(0x0D4C, 500, 780, 3900)
    with pytest.raises(MeterError, match="it is a um34c, not a um25c; attach it as um34c"):
        decoder().begin(FakePort(other, other, other))  # type: ignore[arg-type]


def test_what_is_no_tester_is_said() -> None:
    with pytest.raises(MeterError, match="answered 6 bytes, b'ERROR"):
        decoder().begin(FakePort(b"ERROR\n"))  # type: ignore[arg-type]


def test_it_is_asked_more_than_once_at_first() -> None:
    decoder().begin(FakePort(GOOD[:50], GOOD))  # type: ignore[arg-type]


def test_options_that_make_no_sense_are_refused() -> None:
    host = Host.from_config("host", "", {})
    for options, said in (
        ({"averaging": 1}, "did you mean averaging_s"),
        ({"averaging_s": "x"}, "averaging_s is 'x'"),
        ({"baud": True}, "baud is True"),
    ):
        with pytest.raises(UsageError, match=said):
            Um25c.attached_to(host, "/dev/x", **options)
    assert [c.boundary for c in Um34c.attached_to(host, "/dev/x").channels[:1]] == ["usb"]


def test_a_reading_counts_once_for_each_time_it_was_renewed() -> None:
    t_s = np.arange(12) * 0.2
    watts = np.array([1.0, 1.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    new = renewed(t_s, np.column_stack([watts, watts, watts]))
    assert np.flatnonzero(new).tolist() == [0, 2, 5, 8, 11]  # changes; then every third read, as 0.4 s are too few


def test_the_bar_holds_for_a_load_that_switches_between_two_levels() -> None:
    """1 and 3 W, 4 s each; the register shows the mean of half a second, or the moment. Closed forms, 120 cases."""
    rng, inside = np.random.default_rng(7), []
    for k in range(120):
        phase_s, first_s, mean_s = rng.uniform(0, 8), rng.uniform(0, 0.5), (0.5, 1e-6)[k % 2]

        def joules(t_s: Any, phase_s: float = phase_s) -> Any:
            turns, rest_s = np.divmod(t_s + phase_s, 8.0)
            return 16 * turns + 3 * np.minimum(rest_s, 4) + np.maximum(0, rest_s - 4)

        t_s = np.cumsum(rng.uniform(0.2, 0.206, 130))
        made_s = np.floor((t_s - first_s) / 0.5) * 0.5 + first_s
        watts = np.round((joules(made_s) - joules(made_s - mean_s)) / mean_s, 3)
        watts[~renewed(t_s, np.column_stack([watts] * 3))] = np.nan
        channel = Channel("power", "power", "W", "gauge", "x", "usb", quantum=1e-3, age_s=0.5)
        start_s, end_s = 2 + rng.uniform(0, 1), rng.uniform(18, 24)
        found = energy(Trace("um25c", "boottime", (channel,), t_s, watts[:, None], {}), "power", start_s, end_s)
        inside.append(abs(found.energy_j - (joules(end_s) - joules(start_s))) <= found.uncertainty_j)
    assert np.mean(inside) >= 0.95


# ---------------------------------------------------------------------------------------------------------------------
# Ports


def attached(port: str, kind: type[Um25c] = Um25c, **options: Any) -> Any:
    return kind.attached_to(Host.from_config("host", "", {}), port, **options)


def test_answers_of_which_bytes_are_lost_or_come_twice_make_no_wrong_power() -> None:
    """A tester on a pseudo-terminal, every other answer of which is damaged: a byte less, one more, or late."""
    fd, slave = os.openpty()
    tty.setraw(slave)
    port, ends, answers = os.ttyname(slave), threading.Event(), [0]
    os.set_blocking(fd, False)

    def run() -> None:
        while not ends.wait(0.002):
            try:
                if b"\xf0" not in os.read(fd, 100):
                    continue
            except OSError:
                continue
            n = answers[0] = answers[0] + 1
            milliamperes = 100 + n % 7 * 100
            data = record(0x09C9, 5000, milliamperes * 10, milliamperes * 5)
            at = n % 20
            data = [data, data[:at] + data[at + 1 :], data, data[: at + 1] + data[at:]][n % 4]
            os.write(fd, data)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    os.close(slave)
    meter = attached(port)
    meter.start()
    time.sleep(4)
    trace: Trace = meter.stop()
    ends.set()
    thread.join()
    os.close(fd)
    watts = trace.column("voltage") * trace.column("current")
    assert len(watts) >= 5
    assert set(np.round(watts, 6)) <= {0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5}
    assert sum(trace.facts["notes"]["refused"].values()) >= 2


@pytest.mark.needs_serial_lab
def test_another_kind_of_meter_on_the_port_is_one_clear_error() -> None:
    with Lab("csv", "constant", 1.5) as lab, pytest.raises(HarnessError, match="wanted 130 of a um24c") as error:
        attached(lab.port, Um24c).start()
    assert "\n" not in str(error.value)


def test_a_tester_that_does_not_answer_is_one_clear_error() -> None:
    fd, slave = os.openpty()
    tty.setraw(slave)
    port = os.ttyname(slave)
    os.close(slave)
    with pytest.raises(HarnessError, match="does not answer; see that it has power"):
        attached(port).start()
    os.close(fd)


WAVES = [
    (("constant", 1.5), 10.0, 0.005),
    # Whole turns: what is late at its ends is so at both.
    pytest.param(("square", 1.0, 3.0, 8.0), 24.0, 0.005, marks=SOAK),
    pytest.param(("step", 1.0, 3.0, 10), 25.0, 0.02, marks=SOAK),
    pytest.param(("sine", 2.0, 1.0, 10.0), 60.0, 0.005, marks=SOAK),
    pytest.param(("square", 0.2, 2.0, 0.1), 60.0, 0.005, marks=SOAK),  # the lab's reading is the mean of its period
    pytest.param(("sine", 2.0, 1.0, 3.3), 60.0, 0.01, marks=SOAK),
]


@pytest.mark.needs_serial_lab
@pytest.mark.parametrize(("wave", "seconds", "limit"), WAVES)
def test_energy_is_the_true_one_over_a_long_window(wave: Any, seconds: float, limit: float) -> None:
    with Lab("um25c", *wave, volts=5.0) as lab:
        true_j, found, trace = against(lab, attached(lab.port), seconds, margin_s=1.2)
    assert found.energy_j == pytest.approx(true_j, rel=limit)
    assert abs(found.energy_j - true_j) <= found.uncertainty_j
    assert found.uncertainty_j < 0.2 * true_j
    assert trace.facts["clock_of"] == "harness" and trace.facts["read_s"] < 0.1
    assert 4 < (len(trace.t_s) - 1) / (trace.t_s[-1] - trace.t_s[0]) <= 5.1


FAULTS = [
    pytest.param(("unplug", 3), False, marks=SOAK),
    pytest.param(("garbage", 200), True, marks=SOAK),
    pytest.param(("short-write",), True, marks=SOAK),
    pytest.param(("clock-drift", 300), True, marks=SOAK),
]


@pytest.mark.needs_serial_lab
@pytest.mark.parametrize(("fault", "is_whole"), FAULTS)
def test_a_fault_is_a_gap_and_never_a_wrong_joule(fault: tuple[Any, ...], is_whole: bool) -> None:
    with Lab("um25c", "square", 1.0, 3.0, 8.0, volts=5.0) as lab:
        true_j, found, _ = against(lab, attached(lab.port), 16.0, fault, margin_s=1.2)
    assert abs(found.energy_j - true_j) <= found.uncertainty_j
    assert (found.coverage > 0.95) is is_whole


@pytest.mark.needs_serial_lab
def test_a_tester_keeps_the_rules_of_meters() -> None:
    with Lab("um25c", "constant", 1.5) as lab:
        conformance.check_meter(attached(lab.port), seconds=1.5)
