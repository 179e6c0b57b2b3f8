"""The page docs/adding-a-meter.md: its meter works as printed."""

import re
import socket
import threading
import time
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


class Supply:
    """A stand-in for a supply: answers 12.5 W, but nonsense to one question (the first is 1)."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.asked = self.answers_nonsense_to = 0

    def answer(self) -> bytes:
        self.asked += 1
        return b"OVLD\n" if self.asked == self.answers_nonsense_to else b"+1.25000E+01\n"


@pytest.fixture
def supply() -> Iterator[Supply]:
    listening = socket.create_server(("127.0.0.1", 0))
    supply = Supply(listening.getsockname())

    def serve() -> None:
        while True:
            try:
                link, _ = listening.accept()
            except OSError:
                return
            with link:
                while link.recv(64) == b"MEAS:POW?\n":
                    link.sendall(supply.answer())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield supply
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)


def test_meter_of_the_page_keeps_the_rules(scpi: Any, supply: Supply) -> None:
    host, port = supply.address
    meter = scpi.attached_to(Host(), f"{host}:{port}", gain_error=0.0005)
    trace = conformance.check_meter(meter)
    assert trace.channels[0].gain_error == 0.0005
    assert set(trace.values[:, 0]) == {12.5}


def test_meter_of_the_page_makes_a_gap_of_nonsense(scpi: Any, supply: Supply) -> None:
    supply.answers_nonsense_to = 3
    meter = scpi(*supply.address, None)
    meter.start()
    until = time.monotonic() + 20
    while supply.asked < 4 and time.monotonic() < until:  # then the third answer was understood or not
        time.sleep(0.01)
    trace = meter.stop()
    assert trace.facts["missing"] == 1 and len(trace.t_s) >= 3


def test_meter_of_the_page_says_what_is_wrong_in_one_line(scpi: Any) -> None:
    with pytest.raises(UsageError, match="wanted HOST:PORT"):
        scpi.attached_to(Host(), "10.0.0.7")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with pytest.raises(HarnessError, match="is the supply on"):
        scpi(*address, None).start()
