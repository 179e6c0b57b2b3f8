"""A file that another instrument recorded is read as it is meant, or refused with the columns it has."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgewatt.devices.recording import Recording
from edgewatt.harness.api import HarnessError, Trace, UsageError


def read(tmp_path: Path, content: str | bytes, **options: Any) -> Trace:
    path = tmp_path / "recorded.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Recording(path, options).read()


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("t_s,power_mw\n0,1500\n0.5,2500\n1,500\n", {}),
        ("Time (ms);P [mW]\n0;1500\n500;2500\n1000;500\n", {}),
        ("Time (s)\tPower (W)\n0\t1.5\n0.5\t2.5\n1\t0.5\n", {}),
        ("time s;power W\n0;1,5\n0,5;2,5\n1,0;0,5\n", {}),  # decimal comma
        ("Elapsed [s];Supply [mW]\n7,0;1500,0\n7,5;2500,0\n8,0;500,0\n", {}),
        ("\ufefftime_us,total µW\n0,1500000\n500000,2500000\n1000000,500000\n", {}),
        ("0 1.5\n0.5  2.5\n1 0.5\n", {"time": "1 s", "power": "2 W"}),  # no header
        ("# made by x\n# 2024-01-01\nt,p\n0,1.5\n# a word\n.5,2.5\n1,.5\n", {"time": "t s", "power": "p W"}),
        ("Model,ABC\nSerial,12\n\nt (s),P (W),note\n0,1.5,a\n0.5,2.5,b\n1,0.5,c\n", {}),
        ('"Time","Main W"\r\n"10:00:00.0","1.5"\r\n"10:00:00.5","2.5"\r\n"10:00:01.0","0.5"\r\n', {}),
        ("a,b\n1.5,x\n2.5,x\n0.5,x\n", {"power": "a W", "rate_hz": "2"}),
        ("Time(ms),Main(mA),Main Voltage(V)\n0,750,2\n500,1250,2\n1000,250,2\n", {}),
        ("t ms,I (A),other (A)\n0,0.5,7\n500,0.833333333333,7\n1000,0.166666666667,7\n", {"current": "I", "volts": 3}),
        ("t ms,I (A)\n0,0.5\n500,0.833333333333\n1000,0.166666666667\n0.0", {"volts": "3"}),  # cut off in a number
    ],
)  # fmt: skip
def test_power_is_the_same_however_it_is_written(tmp_path: Path, content: str, options: dict[str, Any]) -> None:
    trace = read(tmp_path, content, **options)
    assert trace.t_s - trace.t_s[0] == pytest.approx([0, 0.5, 1])
    assert trace.column("power") == pytest.approx([1.5, 2.5, 0.5])
    channel = trace.channel("power")
    assert (channel.unit, channel.kind, channel.boundary) == ("W", "gauge", "supply")
    assert trace.facts["clock_of"] == "recording" and trace.facts["wiring"] == {"boundary": "supply"}


def test_parquet_is_read_with_its_time_stamps(tmp_path: Path) -> None:
    times = pa.array([1_700_000_000_000, 1_700_000_000_250], pa.timestamp("ms"))
    pq.write_table(pa.table({"when": times, "load_mw": [1500.0, None], "note": ["a", "b"]}), tmp_path / "r.parquet")
    trace = Recording(tmp_path / "r.parquet", {}).read()
    assert trace.t_s == pytest.approx([1_700_000_000.0, 1_700_000_000.25], abs=1e-6)
    assert trace.column("power")[0] == 1.5 and np.isnan(trace.column("power")[1])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquet_stamps_far_from_now_are_read_as_they_are(tmp_path: Path, unit: Any) -> None:
    far = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit] * (9_000_000_000 if unit == "ns" else 253_400_000_000)
    pq.write_table(pa.table({"t": pa.array([0, far], pa.timestamp(unit)), "p_w": [1.0, 2.0]}), tmp_path / "r.parquet")
    trace = Recording(tmp_path / "r.parquet", {}).read()
    assert trace.t_s.tolist() == [0.0, 9_000_000_000.0 if unit == "ns" else 253_400_000_000.0]


def test_stamps_that_are_none_cost_their_rows_alone(tmp_path: Path) -> None:
    dated = "t,P (W)\n0000-00-00 00:00:00,9\n2026-11-27 23:59:59,1\n,7\n2026-11-28 00:00:00,2\n"
    trace = read(tmp_path, dated)
    assert np.diff(trace.t_s).tolist() == [1.0] and trace.facts["rows_without_time"] == 2
    daily = "t,P (W)\n14:00:00,1\n,7\n14:00:01,2\n23:59:59,3\n,7\n00:00:01,4\n"
    assert np.diff(read(tmp_path, daily).t_s).tolist() == [1.0, 35998.0, 2.0]


def test_whatever_a_file_does_to_its_reader_the_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.csv").write_text("t_s,p_w\n0,1\n1,1\n")
    meter = Recording(tmp_path / "r.csv", {"wait_s": "0.1"})
    meter.start()
    monkeypatch.setattr("edgewatt.devices.table.read", lambda path: 1 / 0)
    trace = meter.stop()
    assert len(trace.t_s) == 0 and "cannot be read (ZeroDivisionError" in trace.facts["ended"]
    assert "edgewatt attach RUN file:" in trace.facts["ended"]


def test_energy_is_a_counter(tmp_path: Path) -> None:
    trace = read(tmp_path, "t (s),E (mWh),P (W)\n0,0\n1,1,2\n2,2,3\n3,3,4\n", energy="E", boundary="wall")
    assert trace.column("energy") == pytest.approx([3.6, 7.2, 10.8])  # 1 mWh is 3.6 J; the short row is no row
    assert (trace.channels[0].kind, trace.channels[0].boundary) == ("counter", "wall")
    assert trace.facts["lines_skipped"] == 1


def test_what_is_no_number_is_a_gap(tmp_path: Path) -> None:
    trace = read(tmp_path, "t (s),P (W)\n0,1\n1,OVLD\n2,\n3,4\nx,5\n4,1.5\n")
    assert list(trace.t_s) == [0, 1, 2, 3, 4]
    assert trace.column("power") == pytest.approx([1, np.nan, np.nan, 4, 1.5], nan_ok=True)
    assert trace.facts["missing"] == 2 and trace.facts["rows_without_time"] == 1


def test_rows_with_one_stamp_are_averaged(tmp_path: Path) -> None:
    trace = read(tmp_path, "t (ms),P (W)\n0,1\n0,3\n1,4\n1,\n1,8\n2,5\n")
    assert trace.t_s == pytest.approx([0, 0.001, 0.002]) and trace.column("power") == pytest.approx([2, 6, 5])


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("t (s),A (W),B (W)\n0,1,2\n1,1,2\n", {}, "power may be any of 'A (W)', 'B (W)'; say which, power=NAME"),
        ("t (s),A,B\n0,1,2\n1,1,2\n", {}, "has the columns 't (s)', 'A', 'B'; no power by its unit"),
        ("t,A (W)\n0,1\n1,1\n", {}, "has the columns 't', 'A (W)', none with a unit of time"),
        ("t (s),A\n0,1\n1,1\n", {"power": "A"}, "the unit of 'A' is not told"),
        ("t (s),A (V)\n0,1\n1,1\n", {"power": "A"}, "'A' is in a unit of voltage, wanted one of power"),
        ("t (s),A (W)\n0,1\n1,1\n", {"power": "C"}, "has no column 'C' for power; it has 't (s)', 'A (W)'"),
        ("t (s),A (W)\n0,1\n2,1\n1,1\n", {}, "its times fall back at row 3 (2 to 1)"),
        ("t (s),I (A)\n0,1\n1,1\n", {}, "no power by its unit"),
        ("hello\nworld\n", {}, "no rows of numbers found; it begins with 'hello'"),
        ("", {}, "no rows of numbers found"),
        (b"\x00\x01\x02", {}, "is no text; wanted CSV (UTF-8) or Parquet"),
        (b"PAR1 and nothing", {}, "is a damaged Parquet file"),
    ],
)
def test_doubtful_file_is_refused_with_what_it_has(
    tmp_path: Path, content: str | bytes, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(HarnessError) as refused:
        read(tmp_path, content, **options)
    assert told in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"volt": "3"}, "has no option 'volt'"),
        ({"volts": "many"}, "volts is 'many'; wanted a number above 0"),
        ({"clock": "gps"}, "clock is 'gps'; wanted pattern, realtime, monotonic, boottime"),
        ({"clock": "realtime"}, "clock=realtime needs clock_bound_s"),
        ({"boundary": "dc"}, "boundary is 'dc'"),
    ],
)
def test_wrong_options_are_refused_at_once(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match="file"):
        Recording(tmp_path / "r.csv", options)
    try:
        Recording(tmp_path / "r.csv", options)
    except UsageError as error:
        assert told in str(error)


def test_folder_that_is_not_there_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        Recording(tmp_path / "none" / "r.csv", {}).start()


def test_file_that_never_comes_says_how_to_attach_it(tmp_path: Path) -> None:
    meter = Recording(tmp_path / "r.csv", {"wait_s": "0.2"})
    meter.start()
    trace = meter.stop()
    assert len(trace.t_s) == 0 and trace.channels[0].is_energy
    assert "r.csv is not there" in trace.facts["ended"] and "edgewatt attach RUN file:" in trace.facts["ended"]


def test_stamps_of_this_machine_come_onto_the_clock_of_its_traces(tmp_path: Path) -> None:
    meter = Recording(tmp_path / "r.csv", {"clock": "realtime", "clock_bound_s": "0.003", "wait_s": "0.3"})
    meter.start()
    now, boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    (tmp_path / "r.csv").write_text(f"t (s),P (W)\n{now!r},1\n{now + 1!r},1\n")
    trace = meter.stop()
    assert meter.shares_clock and trace.clock == "boottime" and trace.facts["clock_of"] == "harness"
    assert trace.t_s == pytest.approx([boot, boot + 1], abs=0.002)
    assert trace.facts["clock_bound_s"] == pytest.approx(0.003, abs=0.001)


@pytest.mark.soak
def test_hundred_megabytes_are_read_in_seconds(tmp_path: Path) -> None:
    n = 5_000_000
    t = np.arange(n) / 5000
    with (tmp_path / "r.csv").open("w") as file:
        file.write("t (s),P (mW)\n")
        for k in range(0, n, 100_000):
            file.write("\n".join(f"{a:.4f},{1000 + (i % 7):.6f}" for i, a in enumerate(t[k : k + 100_000], k)) + "\n")
    began = time.monotonic()
    trace = Recording(tmp_path / "r.csv", {}).read()
    assert len(trace.t_s) == n and time.monotonic() - began < 30
    assert trace.column("power")[:8] == pytest.approx([1.0, 1.001, 1.002, 1.003, 1.004, 1.005, 1.006, 1.0])
