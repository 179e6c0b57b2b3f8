"""Runs outside the store: the table, the JSON, the samples."""

import csv
import dataclasses
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from edgewatt.harness.api import Run, UsageError
from edgewatt.results import export as exporting
from edgewatt.results import traces
from edgewatt.results.export import export
from edgewatt.results.plain import plain
from edgewatt.results.store import Store
from support.example_run import example_run
from support.same import assert_same_trace


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """A good run, one with other parameters, one that failed."""
    good, failed = example_run(0), example_run(2, error="hung", with_power=False)
    other = dataclasses.replace(example_run(1), spec={"size": 320.5, "prompt": 'two\nlines, "quoted"', "seed": "x"})
    return [good, other, failed]


@pytest.fixture(scope="module")
def store(runs, tmp_path_factory) -> Store:
    store = Store(tmp_path_factory.mktemp("export") / "runs")
    for run in runs:
        store.add(run)
    return store


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_one_row_per_measurement_with_every_digit(store, runs, tmp_path) -> None:
    export(store, [runs[0].id], "csv", tmp_path / "table.csv")
    rows = rows_of((tmp_path / "table.csv").read_text())
    assert len(rows) == len(runs[0].measurements)
    for row, m in zip(rows, runs[0].measurements, strict=True):
        assert (row["run"], row["metric"], row["unit"], row["phase"]) == (runs[0].id, m.metric, m.unit, m.phase)
        assert (row["method"], row["meter"], row["boundary"], row["n"]) == (m.method, m.meter, m.boundary, str(m.n))
        assert float(row["value"]) == m.value
        assert row["uncertainty"] == ("" if m.uncertainty is None else repr(m.uncertainty))
        assert (row["spec.size"], row["spec.engine"], row["spec.limit"]) == ("416", "onnxruntime", "")


def test_csv_says_which_numbers_a_flag_voids(store, runs) -> None:
    out = io.StringIO()
    export(store, [runs[0].id], "csv", out)
    void = {(r["metric"], r["meter"]): r["flags"] for r in rows_of(out.getvalue()) if r["is_void"] == "true"}
    assert void == {
        ("ap", ""): "synthetic_weights",
        ("ap50", ""): "synthetic_weights",
        ("energy_per_inference_j", "hwmon/ina226/power1"): "window_too_short",
    }


def test_a_failed_run_has_a_row_too(store, runs) -> None:
    out = io.StringIO()
    export(store, None, "csv", out)
    (failed,) = [r for r in rows_of(out.getvalue()) if r["run"] == runs[2].id]
    assert (failed["error"], failed["metric"], failed["value"]) == ("hung", "", "")


def test_parameters_of_all_runs_are_columns(store, runs) -> None:
    out = io.StringIO()
    export(store, None, "csv", out)
    rows = {r["run"]: r for r in rows_of(out.getvalue())}
    assert rows[runs[1].id]["spec.prompt"] == 'two\nlines, "quoted"'
    assert rows[runs[1].id]["spec.engine"] == ""
    assert rows[runs[0].id]["spec.prompt"] == ""
    assert rows[runs[0].id]["spec.controls"] == "{}"


def test_json_is_each_run_as_run_json_prints_it(store, runs, tmp_path) -> None:
    export(store, None, "json", tmp_path / "runs.json")
    found = json.loads((tmp_path / "runs.json").read_text())
    assert [r["run"] for r in found["runs"]] == [r.id for r in store.list()]
    for run in found["runs"]:
        assert run == plain(store.get(run["run"]).as_json()) | {"store": store.address}
        assert {"cell", "attempt", "flags", "phases", "measurements"} <= run.keys()


def test_an_empty_store_exports_nothing_well_formed(tmp_path) -> None:
    store = Store(tmp_path / "runs")
    out = io.StringIO()
    export(store, None, "json", out)
    assert json.loads(out.getvalue()) == {"runs": []}
    export(store, None, "parquet", tmp_path / "table")
    assert len(pq.read_table(tmp_path / "table" / "measurements.parquet")) == 0


def test_parquet_has_the_table_and_every_sample(store, runs, tmp_path) -> None:
    export(store, None, "parquet", tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "measurements.parquet")
    assert len(table) == len(runs[0].measurements) + len(runs[1].measurements) + 1
    first = table.slice(0, 1).to_pylist()[0]
    m = runs[0].measurements[0]
    assert (first["value"], first["uncertainty"], first["n"], first["is_void"]) == (m.value, m.uncertainty, m.n, False)
    assert table.schema.field("spec.size").type == "double", "416 and 320.5"
    assert first["spec.size"] == 416.0
    assert first["spec.seed"] == "0", "0 and 'x'"
    assert table.schema.field("spec.threads").type == "int64"
    for run in runs:
        names = {p.name for p in (tmp_path / "out" / "traces" / run.id).iterdir()}
        assert len(names) == len(run.traces) + 1
    rapl = next((tmp_path / "out" / "traces" / runs[0].id).glob("*rapl*"))
    assert_same_trace(runs[0].trace("rapl"), traces.read(rapl))


def test_a_file_appears_whole_or_not_at_all(store, tmp_path, monkeypatch) -> None:
    target = tmp_path / "table.csv"
    target.write_text("before")
    monkeypatch.setattr(exporting, "_rows", lambda *_: [{"run": "x"}, 1 / 0])
    for form, output in (("csv", target), ("parquet", tmp_path / "folder")):
        with pytest.raises(ZeroDivisionError):
            export(store, None, form, output)
    assert target.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("form", "output", "says"),
    [
        ("csv", "missing/table.csv", "cannot write .*missing/table.csv: No such file or directory; name another"),
        ("parquet", "full", "is there already; name a new folder"),
        ("xls", "table.xls", "no format 'xls'; wanted csv, parquet or json"),
    ],
)
def test_what_cannot_be_written_is_one_line(store, tmp_path, form, output, says) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(UsageError, match=says):
        export(store, None, form, tmp_path / output)
    with pytest.raises(UsageError, match="no run"):
        export(store, ["nothing"], "json", io.StringIO())


def test_a_new_file_may_be_read_by_others_as_the_umask_says(store, tmp_path) -> None:
    export(store, None, "csv", tmp_path / "table.csv")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "table.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_pipe_is_written_into_not_replaced(store, runs, tmp_path) -> None:
    """As /dev/stdout and /dev/null are."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        export(store, None, "csv", pipe)
        assert rows_of(read.result(10))
    assert pipe.is_fifo()


def test_what_a_link_points_to_is_replaced_not_the_link(store, tmp_path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real.csv")
    export(store, None, "csv", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and rows_of((tmp_path / "real.csv").read_text())
