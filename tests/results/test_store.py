"""The store: what goes in comes out, found by id, by prefix, by filter, by time."""

import dataclasses
import json
import math
import sqlite3
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from edgewatt.harness.api import (
    ClockOffset,
    Flag,
    HarnessError,
    Measurement,
    Phase,
    Run,
    RunError,
    TransientError,
    UsageError,
)
from edgewatt.results import database
from edgewatt.results.store import Store
from support.example_run import example_run
from support.same import assert_same_run, assert_same_trace


def small_run(id: str, created_utc: str = "2026-01-01T00:00:00Z", **fields) -> Run:
    fields = {"spec": {}, "device": {}, **fields}
    return Run(id=id, created_utc=created_utc, device_name="host", workload="femtodet", **fields)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


@pytest.mark.parametrize(
    "options", [{}, {"with_power": False}, {"error": "hung"}, {"error": RunError("crashed", "SIGSEGV", "a\nb")}]
)
def test_a_run_comes_back_the_same_in_every_field(store, options) -> None:
    run = example_run(4, **options)
    store.add(run)
    assert_same_run(run, Store(store.folder).get(run.id))


def test_a_bare_run_comes_back(store) -> None:
    store.add(small_run("a"))
    assert_same_run(small_run("a"), store.get("a"))


def test_outputs_are_copies_in_the_store(store, tmp_path) -> None:
    run = example_run(0, folder=tmp_path / "made")
    store.add(run)
    (tmp_path / "made" / "detections.json").unlink()
    kept = store.get(run.id).outputs["detections"]
    assert kept.is_relative_to(store.folder)
    assert json.loads(kept.read_text())["seed"] == 0


def test_outputs_of_one_name_in_two_folders_do_not_overwrite_one_another(store, tmp_path) -> None:
    outputs = {}
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        outputs[name] = tmp_path / name / "x.txt"
        outputs[name].write_text(name)
    store.add(small_run("r", outputs=outputs))
    assert {k: p.read_text() for k, p in store.get("r").outputs.items()} == {"a": "a", "b": "b", "c": "c"}


def test_a_missing_output_is_refused_and_nothing_is_stored(store, tmp_path) -> None:
    with pytest.raises(UsageError, match="its output detections is not a file at"):
        store.add(dataclasses.replace(example_run(0), outputs={"detections": tmp_path / "gone"}))
    assert store.list() == ()
    assert [p for p in store.folder.rglob("*") if p.is_file()] == [store.folder / "edgewatt.db"]


def test_numbers_no_database_keeps_become_none_or_nan(store) -> None:
    odd = Measurement("latency_s", math.nan, None, "s", "window", 0, "nothing ran", parts={"edge": math.inf})
    run = small_run("a", measurements=(odd,), clock_offset=ClockOffset(math.nan, math.inf), spec={"x": math.nan})
    store.add(run)
    back = store.get("a")
    assert math.isnan(back.measurements[0].value)
    assert back.measurements[0].parts == {"edge": None}
    assert math.isnan(back.clock_offset.offset_s)
    assert back.clock_offset.bound_s == math.inf
    assert back.spec == {"x": None}


def test_numpy_numbers_paths_and_foul_text_are_stored_as_json(store) -> None:
    spec = {
        "size": np.int64(416),
        "share": np.float32(0.5),
        "data": Path("/data"),
        "on": np.True_,
        "list": np.arange(3),
    }
    device = {"cmd\0line": "a\0b", "file": "caf\udce9", 7: {1, 2}, "long": "x" * 100_000}
    store.add(dataclasses.replace(small_run("a"), spec=spec, device=device, attempt=1))
    back = store.get("a")
    assert back.spec == {"size": 416, "share": 0.5, "data": "/data", "on": True, "list": [0, 1, 2]}
    assert back.device["7"] == [1, 2]
    assert back.device["cmd\ufffdline"] == "a\ufffdb"
    assert back.device["long"].endswith("... (cut from 100000 characters)")
    assert len(back.device["long"]) < 70_000


def test_a_run_is_never_changed(store) -> None:
    run = example_run(1)
    store.add(run)
    with pytest.raises(UsageError, match=f"has a run {run.id} already"):
        store.add(dataclasses.replace(run, measurements=()))
    assert_same_run(run, store.get(run.id))


@pytest.mark.parametrize("id", ["", "../../etc", "a/b", ".hidden", "x" * 200, "a b"])
def test_an_id_that_is_no_file_name_is_refused(store, id) -> None:
    with pytest.raises(UsageError, match="not a name for a run"):
        store.add(small_run(id))


def test_a_meter_of_any_name_is_stored(store) -> None:
    run = example_run(0)
    traces = tuple(dataclasses.replace(t, meter=f"../{t.meter} µ/{'x' * 300}") for t in run.traces)
    run = dataclasses.replace(run, traces=traces)
    store.add(run)
    assert_same_run(run, store.get(run.id))


# -- found again


def test_a_unique_start_of_an_id_is_enough(store) -> None:
    for id in ("20260101-aa", "20260101-ab", "2027", "20", "a_c", "abc"):
        store.add(small_run(id))
    assert store.get("20260101-ab").id == "20260101-ab"
    assert store.get("2027").id == "2027"
    assert store.get("20").id == "20", "a whole id is meant even where it starts others"
    assert store.get("a_").id == "a_c", "the characters of LIKE mean themselves"
    with pytest.raises(UsageError, match=r"run '202' may be 20260101-aa, 20260101-ab, 2027; give more of its id"):
        store.get("202")


def test_an_unknown_id_gets_the_nearest(store) -> None:
    with pytest.raises(UsageError, match="empty"):
        store.get("latest")
    with pytest.raises(UsageError, match="the store is empty"):
        store.get("x")
    store.add(small_run("20260101-aa"))
    store.add(small_run("20260102-bb", "2026-01-02T00:00:00Z"))
    with pytest.raises(UsageError, match=r"no run '20260101-ax'; did you mean 20260101-aa\?"):
        store.get("20260101-ax")
    with pytest.raises(UsageError, match=r"no run 'zzz'; the newest is 20260102-bb"):
        store.get("zzz")


def test_latest_is_the_newest_by_its_own_time(store) -> None:
    for id, day in (("b", "2026-03-02"), ("c", "2026-03-03"), ("a", "2026-03-01")):
        store.add(small_run(id, f"{day}T00:00:00Z"))
    assert store.get("latest").id == "c"
    assert store.latest().id == "c"
    assert store.latest(device="nothing") is None


def test_runs_are_listed_by_time_and_filtered(store) -> None:
    void = Flag("gap", ("energy_j",), "0.4 s without a reading", "rapl")
    harmless = Flag("few_samples", (), "1 repeat")
    store.add(small_run("late", "2026-03-01T12:00:00+00:00"))
    store.add(small_run("early", "2026-02-28T23:00:00Z", flags=(void, harmless)))
    store.add(small_run("failed", "2026-03-01T10:00:00Z", error=RunError("hung", "no item for 60 s")))
    store.add(dataclasses.replace(small_run("other", "2026-03-01T14:00:00+02:00"), device_name="orin", workload="imp"))
    assert [r.id for r in store.list()] == ["early", "failed", "late", "other"]
    assert [r.id for r in store.list(limit=2)] == ["late", "other"]
    assert [r.id for r in store.list(workload="imp")] == ["other"]
    assert [r.id for r in store.list(device="host", valid=True)] == ["late"]
    assert [r.id for r in store.list(since="2026-03-01")] == ["failed", "late", "other"]
    assert [r.id for r in store.list(since=date(2026, 3, 1), limit=1)] == ["other"]
    assert [r.id for r in store.list(since="2026-03-01T11:30+00:00")] == ["late", "other"]
    with pytest.raises(UsageError, match="not a moment"):
        store.list(since="yesterday")


def test_a_row_tells_what_is_wrong_with_a_run(store) -> None:
    run = example_run(3)
    store.add(run)
    store.add(small_run("failed", "2026-03-20T10:00:00Z", error=RunError("hung", "no item for 60 s")))
    first, second = store.list()
    assert first.flags == ("synthetic_weights", "window_too_short", "throttled")
    assert first.voids == ("ap", "ap50", "energy_per_inference_j")
    assert (first.cell, first.attempt, first.spec["size"], first.is_valid) == ("host/femtodet/416", 1, 416, False)
    assert (second.error, second.is_valid) == ("hung", False)


def test_ten_thousand_runs_are_listed(store) -> None:
    with sqlite3.connect(store.folder / "edgewatt.db") as db:
        store.add(example_run(0))
        names = [r[1] for r in db.execute("PRAGMA table_info(runs)") if r[1] not in ("number", "id", "created_s")]
        copied = ", ".join(names)
        db.execute(
            f"WITH RECURSIVE k(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM k WHERE i < 10000) "
            f"INSERT INTO runs (number, id, created_s, {copied}) "
            f"SELECT i, 'run' || i, created_s + i, {copied} FROM runs, k WHERE number = 1"
        )
        columns = [r[1] for r in db.execute("PRAGMA table_info(flags)") if r[1] != "run"]
        flags = ", ".join(columns)
        db.execute(
            f"INSERT INTO flags (run, {flags}) SELECT number, {flags} FROM runs, flags WHERE run = 1 AND number > 1"
        )
    db.close()
    assert len(store.list()) == 10_000
    assert [r.id for r in store.list(limit=20)][-1] == "run10000"
    assert store.get("latest", samples=False).id == "run10000"


# -- samples


def test_a_window_of_a_trace_is_what_slicing_gives(store) -> None:
    run = example_run(2)
    store.add(run)
    whole = run.trace("rapl")
    inside = (whole.t_s >= 1010.0) & (whole.t_s <= 1020.0)
    expected = dataclasses.replace(whole, t_s=whole.t_s[inside], values=whole.values[inside])
    assert_same_trace(expected, store.window(run.id[:-2], "rapl", 1010.0, 1020.0))
    with pytest.raises(UsageError, match=f"run {run.id} has no meter odpm; it has rapl, hwmon, health"):
        store.window(run.id, "odpm", 0, 1)


def test_without_samples_a_run_knows_its_lengths_and_opens_no_file(store) -> None:
    run = example_run(2)
    store.add(run)
    for path in store.folder.glob("traces/*/*"):
        path.unlink()
    light = store.get(run.id, samples=False)
    assert light.as_json()["meters"] == run.as_json()["meters"]
    assert light.measurements == run.measurements
    assert np.isnan(light.trace("rapl").values).all()
    assert len(light.items) == 0


def test_a_missing_or_changed_file_is_named(store) -> None:
    run = example_run(2)
    store.add(run)
    path = next(store.folder.glob("traces/*/*rapl*"))
    good = path.read_bytes()
    path.write_bytes(good[:100] + b"x" + good[101:])
    with pytest.raises(HarnessError, match=r"rapl.parquet is not the file that was stored; restore it"):
        store.get(run.id)
    path.write_bytes(good[:-50])
    with pytest.raises(HarnessError, match=r"rapl.parquet is damaged"):
        store.window(run.id, "rapl", 0, 1e9)
    path.unlink()
    with pytest.raises(HarnessError, match=r"rapl.parquet is missing"):
        store.get(run.id)
    with pytest.raises(HarnessError, match=r"rapl.parquet is missing"):
        store.window(run.id, "rapl", 0, 1)


def test_a_path_that_leaves_the_store_is_not_followed(store) -> None:
    run = example_run(2)
    store.add(run)
    with sqlite3.connect(store.folder / "edgewatt.db") as db:
        db.execute("UPDATE traces SET file = '../../etc/passwd' WHERE meter = 'rapl'")
    db.close()
    with pytest.raises(HarnessError, match="outside its folder"):
        store.get(run.id)


# -- addresses


def test_a_folder_an_sqlite_address_and_a_trace_folder_are_one_store(tmp_path) -> None:
    run = example_run(5)
    Store(tmp_path / "runs").add(run)
    assert_same_run(run, Store(f"sqlite:///{tmp_path}/runs/edgewatt.db").get("latest"))
    apart = Store(f"sqlite:///{tmp_path}/base.db?traces={tmp_path}/files")
    apart.add(run)
    assert_same_run(run, Store(f"sqlite:///{tmp_path}/base.db", traces=tmp_path / "files").get(run.id))
    assert (tmp_path / "files" / "traces" / run.id).is_dir()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("mysql://u:secret@h/b", "mysql is not supported"),
        ("postgresql://u:secret@h/b", "add .traces=/shared/folder"),
        ("nonsense://u:secret@h/b?traces=/tmp", "supported"),
        ("postgresql+psycopg://u:secret@h:port/b", "not an address"),
        ("sqlite://", "kept in a file"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(address, says) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        Store(address)
    assert "secret" not in str(raised.value)


def test_no_password_is_shown_of_an_address(tmp_path) -> None:
    pytest.importorskip("psycopg")
    address = f"postgresql+psycopg://lab:s3cr%2Fet@127.0.0.1:1/base?traces={tmp_path}&password=hush"
    with pytest.raises(UsageError, match="does not answer") as raised:
        Store(address)
    assert not any(s in str(raised.value) for s in ("s3cr", "hush"))
    assert "\n" not in str(raised.value)
    assert "lab:***@127.0.0.1" in str(raised.value)


def test_a_writer_that_waits_too_long_says_so(store, monkeypatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    store = Store(store.folder)
    other = sqlite3.connect(store.folder / "edgewatt.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientError, match="another process kept it locked"):
        store.add(small_run("a"))
    other.execute("ROLLBACK")
    other.close()
    assert list(store.folder.glob("traces/*")) == []
    store.add(small_run("a"))


def test_phases_keep_their_order_and_exact_times(store) -> None:
    phases = tuple(Phase("idle", k / 3, (k + 1) / 3, k, k, "monotonic") for k in (5, 1, 3))
    store.add(small_run("a", phases=phases))
    assert store.get("a").phases == phases
