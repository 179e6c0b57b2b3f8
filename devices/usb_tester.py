"""RDTech's USB testers as meters: `um25c`, and its coarser relatives `um24c` and `um34c`.

    [devices.phone.meters.usb]
    kind = "um25c"
    address = "/dev/rfcomm0"        # rfcomm bind 0 00:15:A5:01:02:03, after pairing it (its PIN is 1234)
    averaging_s = 0.5               # if a reading is known to be the mean of so long; unset: unknown

and what every attached meter may tell (devices/wiring.py); unset, its boundary is `usb`. It shows values that are
renewed twice a second, so that it is for loads that stand still, or for windows of a minute and more. The maker's
figures for the UM25C (0.5 per mille and 2 digits of voltage, 1 per mille and 4 digits of current) are not taken for
granted: give `gain_error`. Its own sum of energy has steps of 3.6 J; it is kept as the channel `accumulated`, and is
in no figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgewatt.devices.agent.usb_tester import J_PER_MWH, MODELS, WATT_STEP
from edgewatt.devices.serial_meter import SerialMeter, baud_of
from edgewatt.devices.wiring import Wiring, refuse_rest
from edgewatt.harness.api import Channel, Device, Floats, Meter, Trace, UsageError

BAUD = 9600  # of no meaning over Bluetooth
RATE_HZ = 5.0
REFRESH_S = 0.5  # sigrok's page "RDTech UM series"; the UM25C's data: "refresh rate 2 Hz"
SAME_S = 0.9 * REFRESH_S  # a reading that is the same after so long was renewed meanwhile
OPTIONS = ("baud", "averaging_s")


class Um25c(SerialMeter):
    """One tester at one port."""

    kind: ClassVar[str] = "um25c"
    probe_s = 3.0  # some renewals

    def __init__(self, port: str, wiring: Wiring, baud: int = BAUD, averaging_s: float | None = None) -> None:
        _, volt_step, ampere_step = MODELS[self.kind]
        covers = "what it feeds"
        channels = [
            wiring.channel(quantum=WATT_STEP, averaging_s=averaging_s, age_s=REFRESH_S),
            Channel("voltage", "voltage", "V", "gauge", covers, quantum=volt_step),
            Channel("current", "current", "A", "gauge", covers, quantum=ampere_step),
            Channel("accumulated", "accumulated", "J", "gauge", "its own sum of the group shown", quantum=J_PER_MWH),
        ]
        options = {"model": self.kind}
        super().__init__(
            self.kind, port, baud, "edgewatt.devices.agent.usb_tester:Decoder", options, channels, RATE_HZ, wiring,
            is_asked=True,
        )  # fmt: skip

    @classmethod
    def attached_to(cls, device: Device, address: str, **options: Any) -> Meter:
        """UsageError for an option that is none."""
        wiring, rest = Wiring.of(cls.kind, {"boundary": "usb", **options})
        refuse_rest(cls.kind, [k for k in rest if k not in OPTIONS], OPTIONS)
        if not address:
            raise UsageError(f"{cls.kind}: has no address; name its port, such as {cls.kind}:/dev/rfcomm0")
        baud = rest.get("baud", BAUD)
        number = int(baud) if isinstance(baud, str) and baud.isdigit() else baud
        return cls(address, wiring, baud_of(cls.kind, {"baud": number}, BAUD), _averaging_s(cls.kind, rest))

    def _traced(self) -> Trace:
        """As every serial meter's, but its times are the middles of request and answer: they are on our clock as it is.

        What a middle may be off is half of the time between them; the fact `read_s` is that time.
        """
        trace = super()._traced()
        t_s, arrived_s = trace.column("meter_clock"), trace.column("arrival")
        is_new = renewed(t_s, trace.values[:, :3])
        values = trace.values.copy()
        values[~is_new, 0] = np.nan
        read_s = 2 * (arrived_s - t_s)
        told: dict[str, Any] = {"clock_drift": 0.0, "clock_bound_s": 0.0, "read_s": None, "renewed": int(is_new.sum())}
        if len(t_s):
            told |= {"read_s": float(np.median(read_s)), "clock_bound_s": float(np.quantile(read_s, 0.95)) / 2}
        return replace(trace, t_s=t_s, values=values, facts={**trace.facts, **told})


def renewed(t_s: Floats, values: Floats) -> npt.NDArray[np.bool_]:
    """Which reads (n,) brought a renewed reading: others than the read before, or due by the meter's pace.

    Read twice for each renewal, a load that switches between a few levels would look as if it were seen twice as finely
    as it is. The power of a repeat is therefore missing; its voltage and current are kept.
    """
    changed = np.r_[True, (values[1:] != values[:-1]).any(axis=1)] if len(t_s) else np.empty(0, bool)
    last_s = -np.inf
    for k in range(len(t_s)):
        changed[k] |= t_s[k] - last_s >= SAME_S
        if changed[k]:
            last_s = t_s[k]
    return changed


class Um24c(Um25c):
    """The same with steps of 10 mV and 1 mA."""

    kind = "um24c"


class Um34c(Um25c):
    """The same with steps of 10 mV and 1 mA."""

    kind = "um34c"


def _averaging_s(kind: str, told: Mapping[str, Any]) -> float | None:
    if "averaging_s" not in told:
        return None
    try:
        value = float(told["averaging_s"])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 60:
        raise UsageError(f"{kind}: averaging_s is {told['averaging_s']!r}; wanted a number of seconds from 0 to 60")
    return value
