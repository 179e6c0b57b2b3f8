"""What every test may ask for."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data; without it the test is skipped."""
    folder = Path(os.environ.get("EDGEWATT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "golden").is_dir():
        pytest.skip(f"no golden data at {folder}; set EDGEWATT_SHARED")
    return folder
