"""What workloads keep in the cache is there whole or not at all."""

from pathlib import Path

import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads import cache


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEWATT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_survives_a_maker_that_fails(cached):
    def fail(folder):
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left on device"):
        cache.made("thing", fail)
    assert list((cached / "workloads").iterdir()) == []
    whole = cache.made("thing", lambda folder: (folder / "whole").touch())
    assert [p.name for p in whole.iterdir()] == ["whole"]


def test_cache_made_twice_at_the_same_time_is_one(cached):
    """The second maker finishes while the first is still at it."""

    def slow(folder):
        (folder / "by").write_text("slow")
        assert (cache.made("thing", lambda f: (f / "by").write_text("quick")) / "by").read_text() == "quick"

    assert (cache.made("thing", slow) / "by").read_text() == "quick"
    assert [p.name for p in (cached / "workloads").iterdir()] == ["thing"]


def test_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEWATT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match="set EDGEWATT_CACHE to a folder that can") as refused:
        cache.made("thing", lambda folder: None)
    assert "\n" not in str(refused.value)


def test_user_s_cache_folder_is_used_without_the_variable(monkeypatch):
    monkeypatch.delenv("EDGEWATT_CACHE")
    assert cache.root().is_relative_to(Path.home())
