"""Stores of other versions: old ones open, newer ones are refused, databases of others are left alone."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from edgewatt.harness.api import UsageError
from edgewatt.results import schema
from edgewatt.results.models import Base
from edgewatt.results.store import Store
from support.example_run import example_run
from support.same import assert_same_run

OLD = Path(__file__).parent.parent / "data" / "store_0001"


@pytest.fixture
def old_store(tmp_path) -> Path:
    """A copy of a store made by the first version."""
    return shutil.copytree(OLD, tmp_path / "runs", ignore=shutil.ignore_patterns("expected.json"))


def version(folder: Path) -> str:
    db = sqlite3.connect(folder / "edgewatt.db")
    (found,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
    db.close()
    return found


def set_version(folder: Path, number: str) -> None:
    db = sqlite3.connect(folder / "edgewatt.db")
    db.execute("UPDATE alembic_version SET version_num = ?", [number])
    db.commit()
    db.close()


def test_a_store_of_the_first_version_still_gives_every_number(old_store) -> None:
    expected = json.loads((OLD / "expected.json").read_text())
    store = Store(old_store)
    for wanted in expected["runs"]:
        assert store.get(wanted["run"]).as_json() | {"outputs": None} == wanted
    run = store.get(expected["runs"][0]["run"])
    for meter, samples in expected["samples"].items():
        assert run.trace(meter).t_s.tolist() == samples["t_s"]
        values = run.trace(meter).values
        assert np.where(np.isnan(values), None, values).tolist() == samples["values"]
    for name, column in expected["items"].items():
        assert getattr(run.items, name).tolist() == column
    assert run.outputs["detections"].read_text() == '{"detections": []}'


def test_a_new_store_has_the_newest_version(tmp_path) -> None:
    Store(tmp_path / "runs")
    assert version(tmp_path / "runs") == schema.VERSION
    assert ScriptDirectory.from_config(schema.config()).get_current_head() == schema.VERSION


def test_the_migrations_make_what_the_models_say(tmp_path) -> None:
    store = Store(tmp_path / "runs")
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


@pytest.fixture
def next_version(tmp_path, monkeypatch) -> None:
    """An edgewatt whose tables have one column more."""
    folder = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "v9999_note.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision = '9999', {schema.VERSION!r}\n"
        "def upgrade():\n    op.add_column('runs', sa.Column('note', sa.Text, nullable=False, server_default='none'))\n"
    )
    monkeypatch.setattr(schema, "MIGRATIONS", folder)
    monkeypatch.setattr(schema, "VERSION", "9999")


def test_an_old_store_is_migrated_with_all_its_runs(old_store, next_version) -> None:
    store = Store(old_store)
    assert version(old_store) == "9999"
    assert "note" in {c["name"] for c in inspect(store._engine).get_columns("runs")}
    assert len(store.list()) == 2
    run = example_run(8)
    store.add(run)
    assert_same_run(run, Store(old_store).get(run.id))


def test_a_migration_that_fails_changes_nothing(old_store, next_version) -> None:
    broken = schema.MIGRATIONS / "versions" / "v9999_note.py"
    broken.write_text(broken.read_text() + "    raise OSError(28, 'No space left on device')\n")
    before = (old_store / "edgewatt.db").read_bytes()
    with pytest.raises(UsageError, match="the disk is full"):
        Store(old_store)
    assert version(old_store) == "0001"
    db = sqlite3.connect(old_store / "edgewatt.db")
    assert "note" not in {r[1] for r in db.execute("PRAGMA table_info(runs)")}
    db.close()
    assert (old_store / "edgewatt.db").read_bytes() == before


def test_a_store_of_a_newer_version_is_refused_and_left_alone(old_store) -> None:
    set_version(old_store, "0099")
    before = (old_store / "edgewatt.db").read_bytes()
    with pytest.raises(UsageError, match=r"its tables are of version 0099, this edgewatt knows up to .*; upgrade edge"):
        Store(old_store)
    assert (old_store / "edgewatt.db").read_bytes() == before


def test_a_database_of_others_is_refused_and_left_alone(tmp_path) -> None:
    db = sqlite3.connect(tmp_path / "edgewatt.db")
    db.execute("CREATE TABLE recipes (id INTEGER)")
    db.commit()
    with pytest.raises(UsageError, match="not a store of edgewatt: it holds recipes"):
        Store(tmp_path)
    db.execute("CREATE TABLE alembic_version (version_num TEXT)")
    db.execute("INSERT INTO alembic_version VALUES ('abc')")
    db.commit()
    with pytest.raises(UsageError, match="not a store of edgewatt: it holds alembic_version, recipes"):
        Store(tmp_path)
    assert {r[0] for r in db.execute("SELECT name FROM sqlite_master")} == {"recipes", "alembic_version"}
    db.close()


def test_an_existing_store_opens_without_alembic(tmp_path, monkeypatch) -> None:
    Store(tmp_path / "runs")
    monkeypatch.setattr(schema, "config", lambda: pytest.fail("the migrations were looked at"))
    assert Store(tmp_path / "runs").list() == ()
