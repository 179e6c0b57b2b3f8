"""Drawn scenes are the same everywhere for the same seed."""

import os
import subprocess
import sys
from pathlib import Path

from edgewatt.workloads import scenes


def test_another_process_draws_the_same_scenes(tmp_path, monkeypatch):
    """And another seed draws others."""
    monkeypatch.setenv("EDGEWATT_CACHE", str(tmp_path / "cache"))
    program = "from edgewatt.workloads import scenes; print(scenes.folder(3))"
    environment = os.environ | {"EDGEWATT_CACHE": str(tmp_path / "other cache"), "PYTHONHASHSEED": "7"}
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert told.startswith(str(tmp_path / "other cache"))
    here = contents(scenes.folder(3))
    assert len(here) == 24
    assert contents(told) == here
    assert not set(contents(scenes.folder(4)).values()) & set(here.values())


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
