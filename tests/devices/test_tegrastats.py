"""NVIDIA's tegrastats: what its lines say, and what is done when it says nothing, nonsense, or ends."""

import json
import os
import stat
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgewatt.devices.agent import tegrastats
from edgewatt.devices.agent.agent import now_ns
from edgewatt.devices.agent.tegrastats import Core, Line, Tegrastats, TegrastatsError, parsed, probe
from edgewatt.devices.transport import AGENT
from support.agents import Plain, alive, old_python, samples
from support.jetson_lab import PROFILES, Bench
from support.jetson_lab import profile as board_profile

LINES = Path(__file__).resolve().parent.parent / "data" / "tegrastats"
MB = 1 << 20


def line(name: str) -> str:
    return (LINES / f"{name}.txt").read_text().rstrip("\n")


# ---------------------------------------------------------------------------------------------------------------------
# its lines, read by eye


READ = {
    "agx-orin-jetpack5": Line(
        {"VDD_GPU_SOC": 2400, "VDD_CPU_CV": 800, "VIN_SYS_5V0": 3528, "VDDQ_VDD2_1V8AO": 302},
        {"CPU": 47.5, "Tboard": 31, "SOC2": 44.25, "tj": 47.5},
        (Core(0.12, 729e6), Core(0.0, 729e6), None, None),
        0.03,
        (611e6,),
        2133e6,
        3001 * MB,
    ),
    "agx-orin-jetpack7": Line(
        {"VDD_GPU_SOC": 5140, "VDD_CPU_CV": 3269, "VIN_SYS_5V0": 5501},
        {"cpu": 53.125, "soc2": 48.5},
        (Core(0.23, 2201e6), Core(1.0, 2201e6)),
        0.55,
        (1300e6, 1290e6),
        3199e6,
        20001 * MB,
    ),
    "orin-nano-jetpack6": Line(
        {"VDD_IN": 5264, "VDD_CPU_GPU_CV": 718, "VDD_SOC": 1795},
        {"cpu": 44.25, "gpu": 46, "tj": 46},
        (Core(0.01, 729e6), Core(0.04, 729e6)),
        0.0,
        (),
        None,
        2700 * MB,
    ),
    "agx-xavier": Line(
        {"GPU": 1156, "CPU": 386, "SOC": 2505, "CV": 0, "VDDRQ": 193, "SYS5V": 2693},
        {"AO": 35, "GPU": 35.5, "Tdiode": 37.25, "PMIC": 50, "AUX": 35, "CPU": 36.5, "thermal": 35.6, "Tboard": 35},
        (Core(0.05, 1190e6), None),
        0.07,
        (318e6,),
        1331e6,
        1801 * MB,
    ),
    "nano": Line(
        {"POM_5V_IN": 934, "POM_5V_GPU": 0, "POM_5V_CPU": 85},
        {"PLL": 25.5, "CPU": 29.5, "PMIC": 100, "GPU": 29, "AO": 34, "thermal": 29},
        (Core(0.10, 102e6), Core(0.08, 102e6), Core(0.09, 102e6), None),
        0.0,
        (76e6,),
        1600e6,
        900 * MB,
    ),
    "tx2": Line(
        {"VDD_IN": 1384, "VDD_CPU": 154, "VDD_GPU": 77, "VDD_SOC": 385, "VDD_WIFI": 365, "VDD_DDR": 193},
        {"BCPU": 32.5, "MCPU": 32.5, "GPU": 31, "PLL": 32.5, "Tboard": 28, "Tdiode": 30.25},
        (Core(0.03, 345e6), None, None, Core(0.01, 345e6)),
        0.0,
        (114e6,),
        665e6,
        1200 * MB,
    ),
    "agx-orin-without-root": Line(
        {}, {"CPU": 47.5, "tj": 47.5}, (Core(0.12, 729e6), Core(0.0, 729e6)), 0.0, (), None, 3001 * MB
    ),
}


def test_every_kind_of_line_is_read() -> None:
    assert {p.stem for p in LINES.glob("*.txt")} == set(READ)


@pytest.mark.parametrize("name", READ)
def test_line_is_read_as_by_eye(name: str) -> None:
    got = parsed(line(name))
    assert got == READ[name] and list(got.rails_mw) == list(READ[name].rails_mw)


@pytest.mark.parametrize("name", READ)
def test_carriage_return_or_blanks_around_a_line_change_nothing(name: str) -> None:
    assert parsed(f"  {line(name)} \r\n") == parsed(line(name))


def test_running_average_is_never_taken_for_power() -> None:
    busy = "RAM 1/2MB CPU [1%@1] VDD_IN 16321mW/11204mW VDD_SOC 7104mW/4944mW/9999mW"
    assert parsed(busy).rails_mw == {"VDD_IN": 16321, "VDD_SOC": 7104}


def test_rail_without_power_is_zero_and_one_not_named_is_absent() -> None:
    told = parsed("RAM 1/2MB CPU [1%@1] CV 0mW/0mW").rails_mw
    assert told == {"CV": 0}


def test_torn_figure_is_no_reading() -> None:
    assert parsed("RAM 1/2MB CPU [1%@1] VDD_IN 526").rails_mw == {}
    assert parsed("RAM 1/2MB CPU [1%@1] VDD_IN 5263mW").rails_mw == {}
    assert parsed("RAM 1/2MB CPU [1%@1] VDD_IN 5263mW/").rails_mw == {}
    assert parsed("RAM 1/2MB CPU [1%@1] VDD_IN 5263mW/52").rails_mw == {"VDD_IN": 5263}


@pytest.mark.parametrize("text", ["", "\0", "tegrastats: not permitted", "VDD_IN 5mW/5mW", "RAM x/yMB", "[1%@1]"])
def test_what_is_no_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no line of tegrastats"):
        parsed(text)


PIECES = st.one_of(
    st.sampled_from(" ".join(line(name) for name in READ).split(" ")),
    st.sampled_from(["RAM 1/2MB", "CPU [", "]", "CPU [off,]", "GR3D_FREQ 9%@[", "EMC_FREQ 1%@", "NC", "mW/", "@-256C"]),
    st.integers(0, 400).map(lambda n: "GR3D_FREQ " + "9" * n + "%@" + "9" * n),
    st.integers(0, 400).map(lambda n: "RAM " + "9" * n + "/1MB EMC_FREQ 1%@" + "9" * n),
    st.integers(0, 400).map(lambda n: "CPU [" + "9" * n + "%@1] x@" + "9" * n + "C"),
    st.integers(0, 400).map(lambda n: "VDD_IN " + "9" * n + "mW/1mW"),
    st.text(max_size=20),
)


@settings(max_examples=400, deadline=None)
@example(["RAM " + "9" * 9 + "/1MB EMC_FREQ 1%@1"], "")
@given(st.lists(PIECES, max_size=40), st.sampled_from(["", " "]))
def test_nonsense_is_refused_or_gives_finite_numbers(pieces: list[str], between: str) -> None:
    try:
        told = parsed(between.join(pieces))
    except ValueError:
        return
    numbers = [*told.rails_mw.values(), *told.zones_c.values(), *told.gpu_clocks_hz]
    numbers += [v for core in told.cores if core for v in (core.load, core.clock_hz or 0)]
    numbers += [v or 0 for v in (told.gpu_load, told.emc_clock_hz, told.memory_bytes)]
    assert all(-1e9 < v < 1e15 for v in numbers)
    assert "NC" not in told.rails_mw and "RAM" not in told.rails_mw


NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,15}", fullmatch=True).filter(lambda n: n not in ("RAM", "SWAP", "IRAM", "NC"))
FIGURES = st.integers(0, 99999)
FIELDS = st.one_of(
    st.builds(
        "{} {}/{}{}".format, st.sampled_from(["RAM", "SWAP", "IRAM"]), FIGURES, FIGURES, st.sampled_from(["MB", "kB"])
    ),
    st.builds("{} {}".format, NAMES, FIGURES),
    st.builds("{}@{}C".format, NAMES, FIGURES),
    st.builds("{} {}%@[{},{}]".format, NAMES, FIGURES, FIGURES, FIGURES),
    st.sampled_from(["(lfb 9x4MB)", "NVENC off", "MTS fg 0% bg 0%", "CPU [1%@729,off]", "GR3D_FREQ 0%", "FAN 3/10rpm"]),
)


@settings(deadline=None)
@given(
    st.dictionaries(NAMES, FIGURES, min_size=1, max_size=6),
    st.lists(FIELDS, max_size=8),
    st.lists(FIELDS, max_size=2),
    st.sampled_from(["", "mW"]),
    st.integers(1, 2),
)
def test_rails_are_told_from_whatever_else_a_line_has(
    rails: dict[str, int], before: list[str], after: list[str], unit: str, averages: int
) -> None:
    row = [f"{name} {mw}{unit}" + f"/{mw + 7}{unit}" * averages for name, mw in rails.items()]
    assert parsed(" ".join(["RAM 2257/30536MB", *before, *row, *after])).rails_mw == rails


def test_pair_of_figures_without_a_unit_is_no_rail_where_rails_have_one() -> None:
    assert parsed("RAM 1/2MB FAN 3/10 PUMP 4/4 VDD_IN 5mW/5mW").rails_mw == {"VDD_IN": 5}


def test_pair_of_figures_away_from_the_rails_is_no_rail() -> None:
    assert parsed("RAM 1/2MB FAN 3/10 GPU@30C GPU 5/5 CPU 6/6 new 0%").rails_mw == {"GPU": 5, "CPU": 6}


def test_name_that_two_rails_have_is_neither() -> None:
    assert parsed("RAM 1/2MB VDD_A 5mW/5mW VDD_B 6mW/6mW VDD_A 7mW/7mW").rails_mw == {"VDD_B": 6}


def test_line_longer_than_any_is_none() -> None:
    with pytest.raises(ValueError, match="no line of tegrastats"):
        parsed("RAM 1/2MB VDD_IN 5mW/5mW" + " x" * tegrastats.LONGEST_LINE)


# ---------------------------------------------------------------------------------------------------------------------
# the program

LINE = "RAM 1/2MB CPU [1%@1] VDD_IN {}mW/1mW VDD_SOC 7mW/7mW NC 1mW/1mW"
Maker = Callable[[str], str]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Maker]:
    """A program in tegrastats' place, called by its path, that does what the text says: `say(n)` prints a line.

    It goes on when what it wrote was read, so that lines come one by one, however slow their reader is.
    """

    def make(text: str) -> str:
        path = tmp_path / "tegrastats"
        begins = f"""\
            #!{sys.executable}
            import fcntl, os, signal, sys, termios, time
            (open({str(tmp_path / "starts")!r}, "a")).write(f"{{os.getpid()}} {{' '.join(sys.argv[1:])}}\\n")
            def write(text):
                sys.stdout.write(text), sys.stdout.flush()
                while any(fcntl.ioctl(1, termios.FIONREAD, bytes(4))): time.sleep(0.001)
            def say(n): write({LINE!r}.format(n) + "\\n")
            """
        path.write_text(textwrap.dedent(begins) + textwrap.dedent(text))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    yield make
    for pid in pids(tmp_path):
        assert not alive(pid)


def pids(folder: Path) -> list[int]:
    starts = folder / "starts"
    return [int(s.split()[0]) for s in starts.read_text().splitlines()] if starts.exists() else []


def readings(stream: Tegrastats, n: int, within_s: float = 15.0) -> list[Any]:
    """The next n; AssertionError if they do not come in time."""
    got: list[Any] = []
    deadline = time.monotonic() + within_s
    while len(got) < n:
        assert time.monotonic() < deadline, f"{len(got)} of {n} readings came"
        reading = stream.read(0.25)
        if reading is not None:
            got.append(reading)
    return got


def test_readings_are_watts_of_the_rails_asked_for_stamped_when_they_came(made: Maker, tmp_path: Path) -> None:
    command = made("for k in range(1000): say(5000 + k), time.sleep(0.02)")
    stream = tegrastats.stream({"rails": ["VDD_IN", "VDD_NONE"], "interval_ms": 20, "command": command})
    try:
        assert stream.columns == ["VDD_IN", "VDD_NONE"]
        before = now_ns()
        got = readings(stream, 10)
        assert [row for _, _, row in got] == [[pytest.approx(5.0 + k / 1000), None] for k in range(10)]
        stamps = [t for t, _, _ in got]
        assert stamps == sorted(stamps) and before < stamps[0] and stamps[-1] < now_ns()
        assert stream.notes["restarts"] == 0 and stream.notes["interval_asked_s"] == pytest.approx(0.02)
    finally:
        stream.close()
    assert (tmp_path / "starts").read_text().split()[1:] == ["--interval", "20"]


def test_line_that_comes_in_pieces_is_one_reading(made: Maker) -> None:
    command = made("""
        text = "RAM 1/2MB CPU [1%@1] VDD_IN 5264mW/1mW\\n"
        for k in range(100):
            write(text[:34]), write(text[34:])
    """)
    stream = Tegrastats(["VDD_IN"], 100, command)
    try:
        assert [row for _, _, row in readings(stream, 4)] == [[pytest.approx(5.264)]] * 4
    finally:
        stream.close()


def test_nonsense_between_lines_is_passed_over(made: Maker) -> None:
    command = made("""
        for k in range(100):
            say(k)
            os.write(1, b"\\xff\\x00\\xfe no line\\n\\n\\n" + b"x" * 100000 + b"\\n" + os.urandom(300) + b"\\n")
            time.sleep(0.01)
    """)
    stream = Tegrastats(["VDD_IN"], 10, command)
    try:
        assert [row[0] for _, _, row in readings(stream, 20)] == pytest.approx([k / 1000 for k in range(20)])
    finally:
        stream.close()


def test_program_that_ends_is_started_anew_and_told(made: Maker, tmp_path: Path) -> None:
    command = made("""
        say(5), say(6)
        write("RAM 1/2MB CPU [1%@1] VDD_IN 9999mW/1")  # torn by its end
    """)
    stream = Tegrastats(["VDD_IN"], 10, command)
    try:
        assert [row[0] for _, _, row in readings(stream, 6)] == pytest.approx([0.005, 0.006] * 3)
        assert stream.notes["restarts"] == 2 and stream.notes["why"] == ["it ended with status 0"] * 2
        with pytest.raises(TegrastatsError, match="was started 4 times and does not go on: it ended with status 0"):
            readings(stream, 100)
    finally:
        stream.close()
    assert len(pids(tmp_path)) == 4


def test_last_words_of_a_program_are_told(made: Maker) -> None:
    command = made("say(5), print('out of luck', file=sys.stderr), sys.exit(3)")
    stream = Tegrastats(["VDD_IN"], 10, command)
    try:
        readings(stream, 2)
        assert stream.notes["why"] == ["it ended with status 3: out of luck"]
    finally:
        stream.close()


def test_program_that_falls_silent_is_started_anew(made: Maker, tmp_path: Path) -> None:
    command = made("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # and does not end when asked to
        say(5)
        time.sleep(600)
    """)
    stream = Tegrastats(["VDD_IN"], 10, command)
    try:
        got = readings(stream, 2)
        assert [row for _, _, row in got] == [[pytest.approx(0.005)]] * 2
        assert (got[1][0] - got[0][0]) * 1e-9 > 3  # the hole stays in the stamps
        assert stream.notes["restarts"] == 1 and "no line for 3" in stream.notes["why"][0]
    finally:
        stream.close()
    assert len(pids(tmp_path)) == 2


def test_program_that_tells_no_rail_is_given_up_with_advice(made: Maker) -> None:
    command = made("while True: write('RAM 1/2MB CPU [1%@1] CPU@47C\\n'), time.sleep(0.01)")
    stream = Tegrastats(["VDD_IN"], 10, command)
    try:
        with pytest.raises(TegrastatsError, match="no rail in its lines"):
            readings(stream, 100)
    finally:
        stream.close()
    said = probe({"command": command, "interval_ms": 10})
    assert said["rails"] == {} and "no rail in its lines" in said["problem"] and said["line"].startswith("RAM 1/2MB")


def test_rail_that_is_missing_now_and_then_is_missing_then(made: Maker) -> None:
    command = made("""
        while True:
            say(5), time.sleep(0.01)
            write("RAM 1/2MB CPU [1%@1] VDD_SOC 7mW/7mW\\n"), time.sleep(0.01)
    """)
    stream = Tegrastats(["VDD_IN", "VDD_SOC"], 10, command)
    try:
        rows = [row for _, _, row in readings(stream, 4)]
    finally:
        stream.close()
    assert rows == [[pytest.approx(0.005), pytest.approx(0.007)], [None, pytest.approx(0.007)]] * 2


def test_rails_that_are_not_there_are_named_beside_those_that_are(made: Maker) -> None:
    stream = Tegrastats(["VDD_CPU"], 10, made("while True: say(5), time.sleep(0.01)"))
    try:
        with pytest.raises(TegrastatsError, match="tells of VDD_IN, VDD_SOC, not of VDD_CPU"):
            readings(stream, 100)
    finally:
        stream.close()


def test_rails_that_vanish_are_missing_and_no_end(made: Maker) -> None:
    command = made("""
        say(5)
        while True: write("RAM 1/2MB CPU [1%@1]\\n"), time.sleep(0.05)
    """)
    stream = Tegrastats(["VDD_IN"], 50, command)
    try:
        assert [row for _, _, row in readings(stream, 6)] == [[pytest.approx(0.005)], *[[None]] * 5]
    finally:
        stream.close()


def test_of_lines_that_come_together_the_newest_is_a_reading(made: Maker) -> None:
    command = made("""
        while True: write("".join(f"RAM 1/2MB VDD_IN {mw}mW/1mW\\n" for mw in (5, 6, 7))), time.sleep(0.1)
    """)
    stream = Tegrastats(["VDD_IN"], 100, command)
    try:
        assert [row for _, _, row in readings(stream, 3)] == [[pytest.approx(0.007)]] * 3
        assert stream.notes["merged_lines"] == 6
    finally:
        stream.close()


def test_nonsense_without_a_line_is_silence(made: Maker) -> None:
    command = made("""
        say(5)
        while True: write("no line\\n"), time.sleep(0.05)
    """)
    stream = Tegrastats(["VDD_IN"], 50, command)
    try:
        readings(stream, 2)
        assert stream.notes["restarts"] == 1 and "no line for 3" in stream.notes["why"][0]
    finally:
        stream.close()


def test_its_pace_and_its_cost_are_told(made: Maker) -> None:
    command = made("""
        for k in range(20):
            began = time.process_time()
            while time.process_time() < began + 0.02: pass  # 0.4 s in all
            say(k), time.sleep(0.02)
        time.sleep(600)
    """)
    before_s = time.monotonic()
    stream = Tegrastats(["VDD_IN"], 40, command)
    try:
        begun_s = time.monotonic()
        stamps_s = [t * 1e-9 for t, _, _ in readings(stream, 20)]
        read_s = time.monotonic()
    finally:
        stream.close()
    after_s = time.monotonic()
    assert stream.notes["interval_s"] == pytest.approx(np.median(np.diff(stamps_s)))
    # Beside it, a Python that starts; it ran at least while it was read.
    assert 0.39 / (after_s - before_s) < stream.notes["cost_cpu_s_per_s"] < 0.7 / (read_s - begun_s)


def test_closing_twice_is_harmless(made: Maker) -> None:
    stream = Tegrastats(["VDD_IN"], 10, made("while True: say(5), time.sleep(0.01)"))
    readings(stream, 1)
    stream.close()
    stream.close()
    assert stream.read(0.01) is None


def test_probe_tells_the_rails_or_what_the_program_says(made: Maker) -> None:
    command = made("while True: say(5264), time.sleep(0.01)")
    assert probe({"command": command, "interval_ms": 10}) == {
        "rails": pytest.approx({"VDD_IN": 5.264, "VDD_SOC": 0.007}),
        "line": LINE.format(5264),
        "problem": None,
    }
    command = made("print('cannot open /dev/x'), sys.exit(1)")
    assert probe({"command": command})["problem"] == f"{command} printed no line of its kind: cannot open /dev/x"
    command = made("time.sleep(600)")
    began = time.monotonic()
    problem = probe({"command": command, "seconds": 0.5})["problem"]
    assert problem == f"{command} printed no line of its kind (signal 15 ended it)"
    assert time.monotonic() - began < 3


def test_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    none = str(tmp_path / "tegrastats")
    assert "tegrastats cannot be started: No such file or directory" in probe({"command": none})["problem"]
    with pytest.raises(TegrastatsError, match="tegrastats cannot be started: No such file or directory"):
        Tegrastats(["VDD_IN"], 100, none)
    (tmp_path / "tegrastats").touch()
    with pytest.raises(TegrastatsError, match="tegrastats cannot be started: Permission denied"):
        Tegrastats(["VDD_IN"], 100, none)


@pytest.mark.parametrize("minor", [None, 8], ids=["this python", "python 3.8"])
def test_agent_finds_it_on_the_path_and_samples_it(made: Maker, tmp_path: Path, minor: int | None) -> None:
    made("while True: say(5000), time.sleep(0.02)")
    python = str(old_python(minor)) if minor else sys.executable
    agent = Plain("python", [python, str(AGENT)], tmp_path)
    agent.environment["PATH"] = f"{tmp_path}{os.pathsep}{agent.environment['PATH']}"
    params = {"rails": ["VDD_IN", "VDD_SOC"], "interval_ms": 20}
    job = {"rate_hz": 50, "stream": "edgewatt.devices.agent.tegrastats:stream", "params": params, "duration_s": 2}
    (tmp_path / "edgewatt").mkdir()
    (tmp_path / "edgewatt" / "devices").symlink_to(AGENT.parents[1])  # and none of the packages beside it
    agent.environment["PYTHONPATH"] = str(tmp_path)
    said = agent.events("sample", job)
    got = samples(said)
    assert said[-1]["reason"] == "done", said[-1]
    assert len(got.values) > 5 and got.values == pytest.approx(np.tile([5.0, 0.007], (len(got.values), 1)))
    assert said[-2]["notes"]["restarts"] == 0 and said[-2]["cpu_s_per_s"] > 0


# ---------------------------------------------------------------------------------------------------------------------
# on a board

WATTS = (7.3, 1.9, 2.6, 0.9, 0.5, 0.4)


@pytest.mark.needs_jetson_lab
@pytest.mark.parametrize("name", [pytest.param(PROFILES[0], marks=pytest.mark.soak), *PROFILES[1:]])
def test_constant_power_on_a_board_is_read_to_the_milliwatt(name: str, tmp_path: Path) -> None:
    channels = [c["label"] for monitor in board_profile(name)["monitors"] for c in monitor["channels"]]
    rails = [label for label in channels if label != "NC"]
    waves = {rail: {"kind": "constant", "w": watts} for rail, watts in zip(rails, WATTS, strict=False)}
    agent = Plain("python", [], tmp_path)
    params = {"rails": rails, "interval_ms": 50}
    stream = "edgewatt.devices.agent.tegrastats:stream"
    path = agent.job({"rate_hz": 20, "stream": stream, "params": params, "duration_s": 4})
    with Bench("tegrastats", name, waves=waves, jtop=False) as bench:
        words = [sys.executable, str(AGENT), "sample", str(path)]
        done = bench.exec(words, env={**os.environ, "PYTHONPATH": str(AGENT.parents[3])})
        said = [json.loads(text) for text in done.stdout.splitlines()]
        assert said[-1]["event"] == "end", done.stderr
        got = samples(said)
        began, ended = got.t_ns[0] * 1e-9, got.t_ns[-1] * 1e-9
        truth = bench.truth(began, ended)["rails"]
    assert len(got.t_ns) > 10
    for rail, watts in zip(rails, got.values.T, strict=True):
        # What the chip's steps make of it, cut down to whole milliwatts.
        sensed = truth[rail]["sensor_joules"] / (ended - began)
        assert (watts <= sensed + 1e-6).all() and (watts > sensed - 2e-3).all(), rail
        assert truth[rail]["mean_w"] == pytest.approx(waves[rail]["w"])
