"""The survey of devices: one that cannot be reached is told and does not hide the others."""

from dataclasses import dataclass, field
from typing import Any

from edgewatt.devices.host import Host
from edgewatt.harness import survey
from edgewatt.harness.api import Device, Meter, TransientError


@dataclass(frozen=True)
class Found:
    """A device of the device file; one without a device cannot be reached."""

    name: str
    device: Device | None
    kind: str = "host"
    address: str = ""
    meters: tuple[Meter, ...] = field(default=())

    def open(self) -> Device:
        if self.device is None:
            raise TransientError(f"{self.name}: no route to host; see that it is switched on")
        return self.device

    def attached(self, device: Device) -> tuple[Meter, ...]:
        return self.meters


def test_device_out_of_reach_is_told_and_the_next_is_looked_at(tmp_path: Any) -> None:
    entries = [Found("orin", None), Found("bench", Host(sysfs=str(tmp_path)))]
    found = [survey.look(e, 0.1) for e in entries]  # type: ignore[arg-type]
    assert [d["error"] for d in found] == ["orin: no route to host; see that it is switched on", None]
    words = survey.in_words(found)
    assert "orin (host)\n  not usable: orin: no route to host; see that it is switched on" in words
    assert "bench (host)" in words
