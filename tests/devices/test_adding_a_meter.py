"""The page docs/adding-a-meter.md: its meter works as printed."""

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgewatt.devices.host import Host
from edgewatt.harness import conformance
from edgewatt.harness.api import HarnessError, UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-meter.md"


@pytest.fixture(scope="module")
def scpi() -> Any:
    """The class in the page's first Python block."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
    held: dict[str, Any] = {"__name__": "my_meters.scpi"}
    exec(compile(code, str(PAGE), "exec"), held)
    return held["Scpi"]


@pytest.fixture
def supply() -> Iterator[tuple[str, int]]:
    """A stand-in for a supply: answers 12.5 W, and once nonsense."""
    listening = socket.create_server(("127.0.0.1", 0))
    answers = iter([b"+1.25000E+01\n"] * 2 + [b"OVLD\n"] + [b"+1.25000E+01\n"] * 100)

    def serve() -> None:
        while True:
            try:
                link, _ = listening.accept()
            except OSError:
                return
            with link:
                while link.recv(64) == b"MEAS:POW?\n":
                    link.sendall(next(answers))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)


def test_meter_of_the_page_keeps_the_rules(scpi: Any, supply: tuple[str, int]) -> None:
    meter = scpi.attached_to(Host(), f"{supply[0]}:{supply[1]}", gain_error=0.0005)
    trace = conformance.check_meter(meter, seconds=0.35)
    assert trace.channels[0].gain_error == 0.0005
    assert set(trace.values[:, 0]) == {12.5}


def test_meter_of_the_page_makes_a_gap_of_nonsense(scpi: Any, supply: tuple[str, int]) -> None:
    meter = scpi(*supply, None)
    meter.start()
    threading.Event().wait(0.45)
    trace = meter.stop()
    assert trace.facts["missing"] == 1


def test_meter_of_the_page_says_what_is_wrong_in_one_line(scpi: Any) -> None:
    with pytest.raises(UsageError, match="wanted HOST:PORT"):
        scpi.attached_to(Host(), "10.0.0.7")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with pytest.raises(HarnessError, match="is the supply on"):
        scpi(*address, None).start()
