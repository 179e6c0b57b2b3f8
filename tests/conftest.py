"""What every test may ask for."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import agents

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data; without it the test is skipped."""
    folder = Path(os.environ.get("EDGEWATT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "golden").is_dir():
        pytest.skip(f"no golden data at {folder}; set EDGEWATT_SHARED")
    return folder


Scenario = Callable[[Path], None]  # what happens and has to be so, its files in that folder


@pytest.fixture(scope="module")
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Scenario], None]]:
    """Waits for a test's `scenario`, and raises what it raised.

    All that are asked for in the module are begun at the first, two at a time: most of what they do is to wait.
    """
    asked = [
        item.callspec.params["scenario"]
        for item in request.session.items
        if getattr(item, "module", None) is request.module and "outcome" in getattr(item, "fixturenames", ())
    ]
    with ThreadPoolExecutor(2) as two:
        begun = {scenario: two.submit(scenario, tmp_path_factory.mktemp("scenario")) for scenario in asked}
        yield lambda scenario: begun[scenario].result()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What takes minutes to compile is begun at once: the first tests mostly wait."""
    is_wanted = any(item.get_closest_marker("needs_qemu") for item in session.items)
    if is_wanted and agents.why_no_aarch64() is None and not session.config.option.collectonly:
        agents.begun_aarch64()
