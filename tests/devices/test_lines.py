"""Boards that send lines: what a row must be, and that no damage to the bytes makes a wrong joule."""

import os
import random
import subprocess
import sys
import threading
import time
import tty
from typing import Any

import numpy as np
import pytest

from edgewatt.devices.agent.line_layout import LayoutError, layout
from edgewatt.devices.agent.lines import Decoder
from edgewatt.devices.agent.serial_port import MeterError
from edgewatt.devices.arrival import times
from edgewatt.devices.host import Host
from edgewatt.devices.lines import Ina219, Ina226, Lines, without_doubtful
from edgewatt.harness import conformance
from edgewatt.harness.api import HarnessError, Trace, TransientError, UsageError
from edgewatt.harness.energy import energy
from support.serial_lab import Lab, against, boot_s

FOUR = ["time ms", "voltage mV", "current uA", "power uW"]
MS = 1_000_000


class FakePort:
    path = "/dev/ttyTEST"

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def decoder(**options: Any) -> Any:
    made = Decoder(options)
    made.begin(FakePort())  # type: ignore[arg-type]
    return made


def rows(made: Any, data: bytes, chunk: int = 150, began_ns: int = 0, chunk_ns: int = 5 * MS) -> list[Any]:
    got = []
    for k, start in enumerate(range(0, len(data), chunk)):
        got += made.take(data[start : start + chunk], began_ns + (k + 1) * chunk_ns)
    return got


# ---------------------------------------------------------------------------------------------------------------------
# The layout


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["time ms", "voltage mV", "-", "power uW"], ["time ms", "voltage mV", "-", "power uW"]),
        ("time ms,voltage mV,-,power uW", ["time ms", "voltage mV", "-", "power uW"]),
        ("ms,bus_mV,current_uA,power_uW", ["time ms", "voltage mV", "current uA", "power uW"]),
        (["Timestamp (s)", "Bus Voltage [V]", "Current [mA]"], ["time s", "voltage V", "current mA"]),
        ({"t": "time us", "p": "power W"}, ["t: time us", "p: power W"]),
        ("t:time us,p:power µW", ["t: time us", "p: power uW"]),
    ],
)
def test_a_layout_is_a_quantity_and_a_unit_for_each_column(told: Any, words: list[str]) -> None:
    assert layout(told).words() == words


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["time ms", "powr mW"], "did you mean power"),
        (["time ms", "power mWh"], "did you mean mW"),
        (["time mV", "power mW"], "mV is no unit of time"),
        (["time ms", "shunt mV", "current mA"], "'shunt' is no quantity"),
        (["time ms", "voltage mV"], "give no power"),
        (["power mW", "power W"], "power twice"),
        ([], "wanted such as"),
        (7, "wanted such as"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused_with_what_was_meant(told: Any, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        layout(told)


def test_options_after_a_colon_are_those_of_the_device_file() -> None:
    host = Host.from_config("host", "", {})
    one = Ina226.attached_to(host, "/dev/x", columns=FOUR, baud=9600, shunt_ohm=0.1)
    other = Ina226.attached_to(host, "/dev/x", columns=",".join(FOUR), baud="9600", shunt_ohm="0.1")
    assert isinstance(one, Lines) and isinstance(other, Lines)
    assert one.job["params"]["baud"] == other.job["params"]["baud"] == 9600


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"colums": "x"}, "did you mean columns"),
        ({"columns": "time ms,power mX"}, "did you mean"),
        ({"columns": "time ms,current mA"}, "give no power"),
        ({"shunt_ohm": "-1"}, "shunt_ohm is '-1'; wanted a number above 0"),
        ({"baud": "fast"}, "baud is 'fast'"),
        ({"boundary": "dc-inputt"}, "did you mean dc-input"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Ina219.attached_to(Host.from_config("host", "", {}), "/dev/x", **options)


# ---------------------------------------------------------------------------------------------------------------------
# Lines, by hand


def test_a_line_is_power_voltage_and_current_at_its_own_time() -> None:
    got = rows(decoder(columns=FOUR), b"cut,off\r\n1000,5000.00,400000,2000000\r\n1001,5001.25,400025,2000625\r\n")
    assert [r[1] for r in got] == pytest.approx([1.0, 1.001])
    assert got[0][2] == pytest.approx([2.0, 5.0, 0.4, 0.0])
    assert got[1][2] == pytest.approx([2.000625, 5.00125, 0.400025, 0.0])


@pytest.mark.parametrize(
    ("options", "text", "watts", "clock_s"),
    [
        ({"columns": ["time s", "voltage V", "current A"]}, "x\n0.5;5.0;0.25\n", 1.25, 0.5),
        ({"columns": ["time us", "power mW"]}, "x\n500000\t1250\n", 1.25, 0.5),
        ({"columns": ["current mA", "-", "time ms"], "volts": 5.0}, "x\n250 77 500\n", 1.25, 0.5),
        ({"columns": {"t": "time ms", "p": "power mW"}}, 'x\n{"p": 1250, "t": 500, "name": "ina"}\n', 1.25, 0.5),
        ({}, 'x\n{"ms": 500, "bus_mV": 5000, "current_mA": 250, "temp": 31}\n', 1.25, 0.5),
        ({}, "x\ntime_ms,bus_V,current_mA\n500,5.000,250\n", 1.25, 0.5),
        ({}, "x\n# board v2, columns: ms,bus_mV,current_uA,temp_C\n500,5000,250000,31\n", 1.25, 0.5),
        ({"columns": ["-", "time ms", "power mW"]}, "x\nINA226,500,1250\n", 1.25, 0.5),
    ],
)
def test_lines_of_other_boards(options: dict[str, Any], text: str, watts: float, clock_s: float) -> None:
    got = rows(decoder(**options), text.encode())
    assert len(got) == 1
    assert got[0][1] == pytest.approx(clock_s)
    assert got[0][2][0] == pytest.approx(watts)


def test_a_chip_whose_power_has_no_sign_gets_that_of_its_current() -> None:
    got = rows(decoder(columns=FOUR), b"x\n1,5000,-400000,2000000\n")
    assert got[0][2][:3] == pytest.approx([-2.0, 5.0, -0.4])


def test_lines_nobody_described_are_shown_and_refused() -> None:
    with pytest.raises(MeterError, match=r"'17,5000,400'.*describe them, such as columns = "):
        rows(decoder(), b"x\n17,5000,400\n" + b"18,5000,400\n" * 40, chunk_ns=1000 * MS)


def test_units_that_cannot_be_are_told() -> None:
    with pytest.raises(MeterError, match=r"power that is 0\.001 times its voltage x current"):
        text = "".join(f"{k},5000,400000,2000000\n" for k in range(50))
        rows(
            decoder(columns=["time ms", "voltage V", "current mA", "power mW"]),
            b"x\n" + text.encode(),
            chunk_ns=1000 * MS,
        )


def test_another_number_of_columns_is_told() -> None:
    with pytest.raises(MeterError, match="has 3 columns, wanted 4"):
        rows(decoder(columns=FOUR), b"x\n" + b"1,2,3\n" * 100, chunk_ns=1000 * MS)


def test_a_board_is_started_and_stopped() -> None:
    made, port = decoder(columns=FOUR, start="g", stop="s"), FakePort()
    made.begin(port)
    made.end(port)
    assert port.written == b"gs"


def line(ms: int, ua: int) -> str:
    return f"{ms},5000.00,{ua},{ua * 5}\r\n"


def test_a_restart_begins_a_segment_and_missing_lines_do_not() -> None:
    text = "x\n" + "".join(line(k, 400000 + k) for k in range(1000, 1100))
    missing = "".join(line(k, 400000 + k) for k in range(1150, 1200))
    restarted = "".join(line(k, 300000 + k) for k in range(0, 100))
    made = decoder(columns=FOUR)
    whole = len(text) + len(missing)
    got = rows(made, text.encode(), chunk_ns=7 * MS)
    last = len(text) // 150 * 7 * MS
    got += rows(made, missing.encode(), began_ns=last + 50 * MS, chunk_ns=7 * MS)
    before = {r[0] for r in got}
    got += rows(made, restarted.encode(), began_ns=whole // 150 * 7 * MS + 60 * MS, chunk_ns=7 * MS)
    assert len(before) == 1
    assert len({r[0] for r in got}) == 2
    assert [r[1] for r in got if r[0] in before][98:102] == pytest.approx([1.098, 1.099, 1.151, 1.152])


def test_lines_within_a_step_of_the_clock_are_one_row_of_their_mean() -> None:
    got = rows(decoder(columns=["time ms", "power mW"]), b"x\n1,100\n1,200\n1,600\n2,500\n", chunk=1000)
    assert [(r[1], r[2][0]) for r in got] == [(0.001, pytest.approx(0.3)), (0.002, pytest.approx(0.5))]


def test_a_clock_much_coarser_than_the_lines_leaves_none_of_them_out() -> None:
    """Whole seconds, 100 lines a second, one in each read: 10 W for the first tenth of each, then 5 W."""
    columns = ["time s", "voltage V", "current A", "power W"]
    text = [f"{k // 100},5.00,{'2.000,10.000' if k % 100 < 10 else '1.000,5.000'}\n".encode() for k in range(1000)]
    made, got = decoder(columns=columns), []
    for k, one in enumerate([b"x\n", *text]):
        got += made.take(one, k * 10 * MS)
    assert len(got) == 1000 and {r[2][3] for r in got} == {0.0}
    assert sum(r[2][0] for r in got) / 1000 == pytest.approx(5.5)
    arrival_s = np.arange(1, 1001) * 0.01
    found = times(np.zeros(1000), np.array([r[1] for r in got]), arrival_s, step_s=1.0)
    assert np.abs(found.t_s - arrival_s).max() <= found.bound_s < 1.1


def test_a_row_damaged_by_letters_is_no_comment() -> None:
    text = b"x\n10,5000,100\n20,5000,100\n30,500xK0,100\n40,5000,10\n50,5000,100\n60,5000,100\n"
    made = decoder(columns=["time ms", "voltage mV", "current mA"])
    got = rows(made, text, chunk=12)
    assert [r[1] for r in got] == pytest.approx([0.01, 0.02, 0.05, 0.06])  # the digit lost beside it is in none
    assert [r[2][3] for r in got] == [0, 0, 1, 0] and made.notes["refused"]["not a number"] == 1


def test_a_doubt_reaches_the_row_before_it_also_where_its_own_cannot_be_placed() -> None:
    meter = attached("/dev/ttyX")
    values = np.array([[1.0, 5, 0.2, 0], [9.0, 5, 1.8, 0], [1.0, 5, 0.2, 1]])
    assert np.isnan(meter.believed(values)[1, :3]).all() and np.isfinite(meter.believed(values)[[0, 2]]).all()


def test_without_a_time_rows_are_counted_or_come_when_they_come() -> None:
    counted = rows(decoder(columns=["power mW"], rate_hz=100), b"x\n" + b"500\n" * 50, chunk=4, chunk_ns=10 * MS)
    assert np.diff([r[1] for r in counted]) == pytest.approx(0.01)
    come = rows(decoder(columns=["power mW"]), b"x\n100\n200\n300\n400\n", chunk=10, chunk_ns=10 * MS)
    assert [(r[1], r[2][0]) for r in come] == [(0.01, pytest.approx(0.15)), (0.02, pytest.approx(0.35))]


# ---------------------------------------------------------------------------------------------------------------------
# Damage. The power of a line is a function of its time, so that each row can be told to be right or wrong.


def true_ua(ms: int) -> int:
    return 300_000 + ms * 7919 % 200_000


def damaged(seed: int, lines: int = 400) -> tuple[bytes, int]:
    """A stream in which pieces are lost, come twice, or are foreign; and how many lines that can have hurt."""
    rng = random.Random(seed)
    data, hurt = b"x\n" + "".join(line(k, true_ua(k)) for k in range(5000, 5000 + lines)).encode(), 0
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randrange(100, len(data) - 200), rng.choice([1, 1, 2, 5, 20, 64, 150])
        piece = data[at : at + length]
        how = rng.choice(["lost", "twice", "garbage", "changed"])
        if how == "lost":
            data = data[:at] + data[at + length :]
        elif how == "twice":
            data = data[:at] + piece + data[at:]
        elif how == "garbage":
            data = data[:at] + bytes(rng.randrange(256) for _ in range(length)) + data[at:]
        else:
            data = data[:at] + bytes(rng.randrange(256) for _ in range(length)) + data[at + length :]
        hurt += length // 20 + 8
    return data, hurt


def believed(got: list[Any]) -> list[tuple[float, float]]:
    values = np.array([r[2] for r in got])
    return [(r[1], w) for r, w in zip(got, without_doubtful(values, 3)[:, 0], strict=True) if np.isfinite(w)]


@pytest.mark.parametrize("seed", [*range(150), *(pytest.param(k, marks=pytest.mark.soak) for k in range(150, 3000))])
def test_a_checked_line_that_was_damaged_makes_no_wrong_power(seed: int) -> None:
    data, hurt = damaged(seed)
    got = believed(rows(decoder(columns=FOUR), data))
    wrong = [(t, w) for t, w in got if abs(w - true_ua(round(t * 1000)) * 5e-6) > 0.011 * w]
    assert not wrong
    assert len(got) >= 400 - hurt


def test_lines_next_to_a_damaged_one_are_not_believed_where_nothing_checks_them() -> None:
    text = "x\n" + "".join(f"{k},5000.00,{true_ua(k)}\n" for k in range(5000, 5100))
    for at in range(text.index("5050,"), text.index("5051,")):  # 30 bytes lost from each place in a line on
        got = believed(rows(decoder(columns=FOUR[:3]), (text[:at] + text[at + 30 :]).encode()))
        assert all(w == pytest.approx(true_ua(round(t * 1000)) * 5e-6) for t, w in got)
        assert len(got) > 90


def test_a_piece_that_came_twice_counts_once() -> None:
    text = b"x\n" + "".join(line(k, 400_000) for k in range(5000, 5400)).encode()
    got = rows(decoder(columns=FOUR), text[:3000] + text[2000:3000] + text[3000:], chunk=1000)
    assert len({r[0] for r in got}) == 1
    assert 399 <= len(got) <= 400


# ---------------------------------------------------------------------------------------------------------------------
# Ports


class Board:
    """A pseudo-terminal on which a thread writes what `text(ms)` gives, every 5 ms, once it is open."""

    def __init__(self, text: Any) -> None:
        self._fd, slave = os.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        self._slave, self._text = slave, text
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Board":
        os.set_blocking(self._fd, False)
        os.close(self._slave)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        os.close(self._fd)

    def _run(self) -> None:
        start, done = boot_s(), 0
        while not self._ends.wait(0.005):
            now = int((boot_s() - start) * 1000)
            data = b"".join(self._text(ms) for ms in range(done, now))
            done = now
            try:
                os.write(self._fd, data)
            except (BlockingIOError, OSError):
                continue


def attached(port: str, kind: type[Lines] = Ina226, **options: Any) -> Any:
    return kind.attached_to(Host.from_config("host", "", {}), port, **options)


def recorded(meter: Any, seconds: float) -> Trace:
    meter.start()
    time.sleep(seconds)
    trace: Trace = meter.stop()
    return trace


def test_a_wrong_baud_is_one_clear_error() -> None:
    rng = random.Random(1)
    with Board(lambda ms: bytes(rng.choice([0, 0x80, 0xF8, 0xE0, 0xFF, 10]) for _ in range(10))) as board:
        with pytest.raises(HarnessError, match=r"make no sense.*baud.*9600") as error:
            attached(board.port, baud=9600, columns=FOUR).start()
        assert "\n" not in str(error.value)


def test_a_silent_board_is_one_clear_error() -> None:
    with Board(lambda ms: b"") as board, pytest.raises(HarnessError, match="nothing came within"):
        attached(board.port).start()


def test_a_board_that_tells_nothing_of_its_columns_is_one_clear_error() -> None:
    with (
        Board(lambda ms: b"%d,5000,400,2000\n" % ms) as board,
        pytest.raises(HarnessError, match="columns = ") as error,
    ):
        attached(board.port).start()
    assert "\n" not in str(error.value)


def test_a_port_in_other_hands_is_left_alone() -> None:
    with Board(lambda ms: line(ms, 400_000).encode()) as board:
        holds = f"f = open({board.port!r}, 'rb'); print(1, flush=True); input()"
        other = subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdin and other.stdout
        other.stdout.readline()
        try:
            with pytest.raises(TransientError, match=f"process {other.pid}"):
                attached(board.port, columns=FOUR).start()
        finally:
            other.communicate(b"\n")


def test_damaged_bytes_on_a_port_make_no_wrong_joule() -> None:
    rng = random.Random(3)

    def text(ms: int) -> bytes:
        sent = line(ms, 400_000 if ms // 50 % 2 else 40_000).encode()  # 2 W and 0.2 W
        if rng.random() < 0.02:
            at = rng.randrange(len(sent))
            return sent[:at] + rng.choice([b"", sent, b"\x00\xff7"]) + sent[at + rng.randint(0, 9) :]
        return sent

    with Board(text) as board:
        trace = recorded(attached(board.port, columns=FOUR), 4.0)
    start_s = trace.t_s[0] + 0.5
    found = energy(trace, "power", start_s, start_s + 3.0, clock_bound_s=trace.facts["clock_bound_s"])
    assert sum(trace.facts["notes"]["refused"].values()) > 20
    assert found.energy_j == pytest.approx(3.3, rel=0.005)
    assert abs(found.energy_j - 3.3) < found.uncertainty_j
    assert {round(w, 6) for w in trace.column("power")[np.isfinite(trace.column("power"))]} <= {2.0, 0.2}


# ---------------------------------------------------------------------------------------------------------------------
# Against the emulated board


SOAK = pytest.mark.soak
WAVES = [
    (("constant", 1.5), {"volts": 4.1234}, {}),  # lies between two steps of the voltage
    pytest.param(("constant", 1.5), {}, {}, marks=SOAK),
    (("square", 0.2, 2.0, 0.1), {}, {}),
    pytest.param(("step", 0.5, 2.0, 2.0), {}, {}, marks=SOAK),
    pytest.param(("sine", 2, 1, 1), {}, {}, marks=SOAK),
    pytest.param(("square", 0.2, 2.0, 0.1), {}, {"averaging_s": 0.001}, marks=SOAK),
    pytest.param(("square", 0.2, 2.0, 0.1, 0.3), {"volts": 3.3}, {"columns": FOUR}, marks=SOAK),
    pytest.param(("sine", 2, 1, 0.7), {"rate": 200}, {"averaging_s": 0.005}, marks=SOAK),
    pytest.param(("sine", 2, 1, 0.7), {"rate": 2000}, {}, marks=SOAK),
    pytest.param(("sine", 2, 1, 0.7), {"noise_ua": 3000}, {"columns": "ms,bus_mV,current_uA,-"}, marks=SOAK),
]


@pytest.mark.needs_serial_lab
@pytest.mark.parametrize(("wave", "lab_options", "options"), WAVES)
def test_energy_is_the_true_one(wave: Any, lab_options: Any, options: Any) -> None:
    with Lab("csv", *wave, **lab_options) as lab:
        true_j, found, trace = against(lab, attached(lab.port, **options), 2.4)
    assert found.energy_j == pytest.approx(true_j, rel=0.005)
    assert abs(found.energy_j - true_j) <= found.uncertainty_j
    assert found.uncertainty_j < 0.01 * true_j
    assert trace.facts["clock_of"] == "harness" and trace.facts["wiring"]["boundary"] == "supply"


@pytest.mark.needs_serial_lab
@pytest.mark.soak
def test_energy_of_a_load_that_is_followed() -> None:
    """The lab looks at the load every 10 ms and tells nothing of it before: its lines are right if made afterwards."""
    busy = "import time\nwhile True:\n e = time.time() + 0.2\n while time.time() < e: pass\n time.sleep(0.15)"
    load = subprocess.Popen([sys.executable, "-c", busy])
    try:
        with Lab("csv", "load", 0.5, 3.0, follow=load.pid) as lab:
            meter = attached(lab.port)
            meter.start()
            time.sleep(1)
            lab.fault("stall", 3.6)
            t0 = boot_s() + 0.05
            time.sleep(4)
            trace = meter.stop()
            found = energy(trace, "power", t0, t0 + 3.4, clock_bound_s=trace.facts["clock_bound_s"])
            true_j = lab.truth(t0, t0 + 3.4)["total_joules"]
    finally:
        load.kill()
        load.wait()
    assert found.energy_j == pytest.approx(true_j, rel=0.005)
    assert abs(found.energy_j - true_j) <= found.uncertainty_j


FAULTS = [
    (("garbage", 300), True),
    (("drop-samples", 200), False),
    (("unplug", 0.7), False),
    pytest.param(("garbage", 3000), True, marks=SOAK),
    pytest.param(("short-write",), True, marks=SOAK),
    pytest.param(("stall", 1), True, marks=SOAK),
    pytest.param(("reset",), True, marks=SOAK),
    pytest.param(("clock-drift", 300), True, marks=SOAK),
    pytest.param(("clock-drift", -300), True, marks=SOAK),
]


@pytest.mark.needs_serial_lab
@pytest.mark.parametrize(("fault", "is_whole"), FAULTS)
def test_a_fault_is_a_gap_and_never_a_wrong_joule(fault: tuple[Any, ...], is_whole: bool) -> None:
    with Lab("csv", "sine", 2, 1, 0.7) as lab:
        true_j, found, _ = against(lab, attached(lab.port), 2.4, fault)
    assert abs(found.energy_j - true_j) <= found.uncertainty_j
    if is_whole:
        assert found.coverage > 0.98
        assert found.energy_j == pytest.approx(true_j, rel=0.005)
    else:
        assert found.coverage < 0.95 and found.gaps


@pytest.mark.needs_serial_lab
def test_a_board_keeps_the_rules_of_meters() -> None:
    with Lab("csv", "square", 0.2, 2.0, 0.1) as lab:
        conformance.check_meter(attached(lab.port), seconds=0.5)


@pytest.mark.needs_serial_lab
def test_rounding_of_the_chip_is_told() -> None:
    with Lab("csv", "constant", 2.0, volts=4.0) as lab:
        trace = recorded(attached(lab.port, shunt_ohm=0.05, gain_error=0.001), 0.5)
    power = trace.channel("power")
    assert power.quantum == pytest.approx(4.0 * 2.5e-6 / 0.05, rel=1e-3)  # 50 uA at 4 V
    assert power.gain_error == pytest.approx(np.hypot(0.001, 0.000625 / 4.0), rel=1e-3)  # half of 1.25 mV at 4 V
