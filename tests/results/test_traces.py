"""Traces in Parquet: bit for bit, whatever the samples are."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgewatt.harness.api import Channel, HarnessError, Trace
from edgewatt.results import traces
from support.same import assert_same_trace

anything = settings(
    deadline=None, max_examples=60, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def power(name: str = "VDD_IN", quantum: float | None = None) -> Channel:
    return Channel(name, "power", "W", "gauge", "the board", quantum=quantum)


def trace_of(t_s: np.ndarray, *columns: np.ndarray, quantum: float | None = None) -> Trace:
    channels = tuple(power(f"rail {k}", quantum) for k in range(len(columns)))
    values = np.column_stack(columns) if columns else np.empty((len(t_s), 0))
    return Trace("rails", "boottime", channels, t_s, values)


def written(trace: Trace, folder: Path) -> Path:
    path = folder / "trace.parquet"
    path.unlink(missing_ok=True)
    traces.write(trace, path)
    return path


def columns_used(path: Path) -> dict[str, int]:
    """Column -> how many of its entries are not null."""
    table = pq.read_table(path)
    return {name: len(table) - table.column(name).null_count for name in table.column_names}


@anything
@given(
    values=arrays.arrays(
        np.float64, st.tuples(st.integers(0, 40), st.integers(0, 3)), elements=st.floats(allow_nan=True, width=64)
    ),
    quantum=st.sampled_from([None, 0.025, 1e-6, 2.0**-14, 1.0, 5e-324, 1e308]),
    data=st.data(),
)
def test_any_floats_come_back_bit_for_bit(tmp_path, values, quantum, data) -> None:
    n, c = values.shape
    t_s = data.draw(arrays.arrays(np.float64, n, elements=st.floats(allow_nan=True)))
    trace = trace_of(t_s, *values.T, quantum=quantum)
    assert values.shape == trace.values.shape
    assert_same_trace(trace, traces.read(written(trace, tmp_path)))
    assert trace.values.shape == (n, c)


@anything
@given(
    counts=arrays.arrays(np.int64, st.integers(1, 60), elements=st.integers(-(2**53) + 1, 2**53 - 1)),
    step=st.sampled_from([1e-6, 1e-3, 0.025, 2.0**-14, 1.0]),
    missing=st.integers(0, 59),
)
def test_multiples_of_a_step_are_stored_as_integers_only(tmp_path, counts, step, missing) -> None:
    values = counts * step
    values[missing:] = np.nan
    t_s = np.arange(len(values)) / 1e3 + 12345.0
    path = written(trace_of(t_s, values, quantum=step), tmp_path)
    assert_same_trace(trace_of(t_s, values, quantum=step), traces.read(path))
    if missing:
        assert columns_used(path)["counts:rail 0"] == np.count_nonzero(~np.isnan(values))
    assert columns_used(path)["value:rail 0"] == 0


def test_one_odd_reading_among_counts_is_kept_beside_them(tmp_path) -> None:
    values = np.arange(1000) * 1e-6
    values[17], values[18], values[19], values[20] = np.pi, -0.0, np.inf, 1e300
    trace = trace_of(np.arange(1000) / 1e3, values)
    path = written(trace, tmp_path)
    assert_same_trace(trace, traces.read(path))
    assert np.signbit(traces.read(path).values[18, 0])
    assert columns_used(path)["value:rail 0"] == 4


@pytest.mark.parametrize("convert", [lambda ns: ns / 1e9, lambda ns: ns * 1e-9])
def test_whole_nanoseconds_are_stored_as_integers_however_they_were_converted(tmp_path, convert) -> None:
    ns = np.cumsum(np.random.default_rng(0).integers(1, 2_000_000, 5000)) + 86_400 * 10**9
    trace = trace_of(convert(ns), np.ones(len(ns)))
    path = written(trace, tmp_path)
    table = pq.read_table(path)
    assert table.column("t_ns").to_pylist() == ns.tolist()
    assert table.column("t_s").null_count == len(ns)
    assert_same_trace(trace, traces.read(path))


def test_an_empty_trace_and_one_sample_come_back(tmp_path) -> None:
    for n in (0, 1):
        trace = trace_of(np.full(n, 5.5), np.full(n, 2.25), np.full(n, np.nan))
        assert_same_trace(trace, traces.read(written(trace, tmp_path)))


def test_channels_and_facts_stand_in_the_file_itself(tmp_path) -> None:
    channel = Channel("VDD_IN", "power", "W", "gauge", "module", "module", 0.005, 0.01, "all", None, 0.1)
    trace = Trace(
        "ina3221", "monotonic", (channel,), np.array([1.0]), np.array([[2.0]]), {"rate_hz": 99.5, "errors": {}}
    )
    assert_same_trace(trace, traces.read(written(trace, tmp_path)))


def test_appended_chunks_of_any_size_are_one_trace(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(traces, "ROWS", 1000)
    rng = np.random.default_rng(3)
    t_s, values = np.cumsum(rng.random(7777)), rng.integers(0, 4096, (7777, 2)) * 0.025
    whole = trace_of(t_s, *values.T)
    with traces.TraceWriter(tmp_path / "t.parquet", "rails", "boottime", whole.channels) as file:
        at = 0
        for size in [0, 1, 999, 1000, 1001, 3000, 500, 7777]:
            file.append(t_s[at : at + size], values[at : at + size])
            at += size
        assert file.n == 7000
    assert file.n == 7777
    parquet = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert [parquet.row_group(g).num_rows for g in range(parquet.num_row_groups)] == [1000] * 7 + [777]
    assert_same_trace(whole, traces.read(tmp_path / "t.parquet"))


def test_what_was_appended_may_be_overwritten_by_its_owner(tmp_path) -> None:
    buffer = np.ones((10, 1))
    with traces.TraceWriter(tmp_path / "t.parquet", "rails", "boottime", [power()]) as file:
        for k in range(3):
            buffer[:] = k
            file.append(np.arange(10) + 10.0 * k, buffer)
    assert traces.read(tmp_path / "t.parquet").values[:, 0].tolist() == [0.0] * 10 + [1.0] * 10 + [2.0] * 10


def test_a_column_that_stops_counting_later_still_comes_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(traces, "ROWS", 500)
    values = np.concatenate([np.arange(500) * 1e-3, np.random.default_rng(0).random(700)])
    trace = trace_of(np.arange(1200.0), values)
    assert_same_trace(trace, traces.read(written(trace, tmp_path)))


def test_a_window_has_its_ends_and_nothing_outside(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(traces, "ROWS", 100)
    t_s = np.arange(1000) / 10
    path = written(trace_of(t_s, np.arange(1000.0)), tmp_path)
    window = traces.read_window(path, 9.9, 20.0)
    assert window.t_s[0] == 9.9
    assert window.t_s[-1] == 20.0
    assert window.values[:, 0].tolist() == list(range(99, 201))
    assert len(traces.read_window(path, 200.0, 300.0).t_s) == 0
    assert len(traces.read_window(path, -5.0, 1e9).t_s) == 1000


def test_a_window_reads_only_the_row_groups_it_touches(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(traces, "ROWS", 100)
    path = written(trace_of(np.arange(1000) / 10, np.arange(1000.0)), tmp_path)
    asked = []
    read_row_group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, g: asked.append(g) or read_row_group(self, g))
    traces.read_window(path, 35.0, 41.0)
    assert asked == [3, 4]


def test_noisy_counts_take_less_than_half_of_their_floats(tmp_path) -> None:
    rng = np.random.default_rng(0)
    n = 100_000
    t_s = (np.arange(n) * 1_000_000 + rng.normal(0, 2e4, n).astype(np.int64)) / 1e9
    path = written(trace_of(t_s, *(np.rint(1000 + rng.normal(0, 20, (5, n))) * 0.005), quantum=0.005), tmp_path)
    assert path.stat().st_size < n * 6 * 8 / 4


def test_a_damaged_page_is_noticed(tmp_path) -> None:
    rng = np.random.default_rng(0)
    path = written(trace_of(np.arange(5000) / 1e3, rng.random(5000)), tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        traces.read(path)


def test_a_newer_format_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(traces, "FORMAT", 2)
    path = written(trace_of(np.arange(3.0), np.arange(3.0)), tmp_path)
    monkeypatch.undo()
    assert json.loads(pq.ParquetFile(path).schema_arrow.metadata[b"edgewatt.trace"])["format"] == 2
    with pytest.raises(HarnessError, match="upgrade edgewatt"):
        traces.read(path)


def test_two_channels_of_one_name_are_refused(tmp_path) -> None:
    with pytest.raises(HarnessError, match="same name"):
        traces.TraceWriter(tmp_path / "t.parquet", "rails", "boottime", [power("a"), power("a")])


def test_values_of_the_wrong_shape_are_refused(tmp_path) -> None:
    file = traces.TraceWriter(tmp_path / "t.parquet", "rails", "boottime", [power()])
    with pytest.raises(ValueError, match="shape"):
        file.append(np.arange(3.0), np.ones((3, 2)))
