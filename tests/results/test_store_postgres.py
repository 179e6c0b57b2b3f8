"""The same store on a real PostgreSQL server, its traces in a folder."""

import dataclasses
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from edgewatt.harness.api import ClockOffset, Measurement, UsageError
from edgewatt.results.store import Store
from support import postgres
from support.example_run import example_run
from support.same import assert_same_run, assert_same_trace
from support.writers import Writers

pytestmark = pytest.mark.needs_postgres


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Iterator[int]:
    pytest.importorskip("psycopg")
    if postgres.programs() is None:
        pytest.skip("no initdb on the PATH or in /usr/lib/postgresql")
    with postgres.server(tmp_path_factory.mktemp("postgres")) as port:
        yield port


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the traces are."""
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def address(port, folder) -> str:
    return f"postgresql+psycopg://lab:{quote(postgres.PASSWORD, safe='')}@127.0.0.1:{port}/lab?traces={folder}"


def test_several_processes_make_and_fill_one_store_at_once(address) -> None:
    with Writers() as writers:  # first: the server's database is empty yet
        pids = [writers.start(address, [f"{k}-{n}" for n in range(5)]) for k in range(4)]
        assert [writers.wait(pid) for pid in pids] == [0, 0, 0, 0]
    store, expected = Store(address), example_run(0, repeats=1)
    rows = store.list()
    assert len(rows) == 20
    for row in rows[::5]:
        assert_same_run(dataclasses.replace(expected, id=row.id), store.get(row.id))


@pytest.mark.parametrize("options", [{}, {"error": "crashed", "with_power": False}])
def test_a_run_comes_back_the_same_in_every_field(address, options) -> None:
    run = example_run(6 + len(options), **options)
    Store(address).add(run)
    assert_same_run(run, Store(address).get(run.id[:-1]))
    with pytest.raises(UsageError, match="already"):
        Store(address).add(run)


def test_numbers_and_text_that_postgres_refuses_are_stored(address) -> None:
    odd = Measurement("latency_s", math.nan, math.nan, "s", "window", 2**40, "n\0n", parts={"edge": math.inf})
    run = dataclasses.replace(
        example_run(5),
        measurements=(odd,),
        clock_offset=ClockOffset(math.nan, math.inf),
        device={"a\0b": "\ud800", "grün": [1.5e308, 2**70, "日本"]},
        warnings=("x\0y",),
    )
    Store(address).add(run)
    back = Store(address).get(run.id)
    assert math.isnan(back.measurements[0].value)
    assert (back.measurements[0].uncertainty, back.measurements[0].n) == (None, 2**40)
    assert back.clock_offset.bound_s == math.inf
    assert back.device == {"a\ufffdb": "?", "grün": [1.5e308, 2**70, "日本"]}
    assert back.warnings == ("x\ufffdy",)


def test_runs_are_listed_windowed_and_found(address) -> None:
    run = example_run(9, created_utc="2031-01-01T00:00:00Z")
    store = Store(address)
    store.add(run)
    assert store.get("latest", samples=False).id == run.id
    assert [r.id for r in store.list(since="2030-01-01")] == [run.id]
    assert store.list(since="2030-01-01", valid=True) == ()
    assert len(store.list(workload="femtodet", device="host", limit=3)) == 3
    whole = run.trace("hwmon")
    inside = (whole.t_s >= 1005) & (whole.t_s <= 1009)
    part = dataclasses.replace(whole, t_s=whole.t_s[inside], values=whole.values[inside])
    assert_same_trace(part, store.window(run.id, "hwmon", 1005, 1009))
    with pytest.raises(UsageError, match="no run 'nothing'"):
        store.get("nothing")


@pytest.mark.parametrize(("at", "is_stored"), [("written", False), ("placed", False), ("stored", True)])
def test_a_writer_killed_at_a_given_moment_leaves_all_or_nothing(address, folder, at, is_stored) -> None:
    Store(address)
    with Writers() as writers:
        pid = writers.start(address, [f"killed-{at}"], at, "SIGKILL")
        assert writers.wait(pid) == -signal.SIGKILL
    assert [p.name for p in (folder / ".writing").glob("*.lock")] == [f"killed-{at}.lock"]
    store = Store(address)
    assert list((folder / ".writing").iterdir()) == []
    assert (folder / "traces" / f"killed-{at}").exists() == is_stored
    assert (f"killed-{at}" in {r.id for r in store.list()}) == is_stored


def test_no_error_shows_the_password(port, address, folder) -> None:
    shown = Store(address).address
    assert shown == f"postgresql+psycopg://lab:***@127.0.0.1:{port}/lab?traces={folder}"
    for wrong in (
        address.replace("lab:", "lab:no", 1),
        address.replace("/lab?", "/other?"),
        address.replace(f":{port}", ":1"),
        address.replace("127.0.0.1", "nowhere.invalid"),
    ):
        with pytest.raises(UsageError, match="does not answer") as raised:
            Store(wrong)
        said = str(raised.value)
        assert "\n" not in said
        assert not any(s in said for s in (postgres.PASSWORD, quote(postgres.PASSWORD, safe=""), "nop@ss"))


def test_a_database_of_others_is_left_alone(port, address, folder) -> None:
    import psycopg

    with psycopg.connect(f"host=127.0.0.1 port={port} user=lab dbname=postgres", password=postgres.PASSWORD) as db:
        db.execute("CREATE TABLE recipes (id INTEGER)")
    with pytest.raises(UsageError, match="not a store of edgewatt: it holds recipes"):
        Store(address.replace("/lab?", "/postgres?"))
