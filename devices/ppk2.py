"""Nordic's Power Profiler Kit II as a meter: up to 1 A at 0.8 to 5 V, 100 000 samples a second, averaged to rows.

    [devices.board.meters.supply]
    kind = "ppk2"
    address = "/dev/ttyACM0"
    mode = "source"       # it feeds the device; "ampere": it lies in another supply's line. Unset: as the meter is set
    volts = 3.3           # source: set, and the device switched on; ampere: that of the supply, which it cannot measure
    rate_hz = 1000        # rows a second, a divisor of 100 000, at most 5000
    limit_a = 1.0         # readings at it are counted in `over_range`: the current may have been higher
    logic = false         # its inputs D0 to D7 as channels: the share of the row's samples in which each was high
    power_off = false     # at the end the device stays as it is fed, unless this is true

and what every attached meter may tell (devices/wiring.py). Its accuracy differs from range to range and is not told by
the meter itself, so `gain_error` stays unknown unless it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgewatt.devices.agent.ppk2 import INPUTS, LEAST_V, MODES, MOST_V, SAMPLE_HZ
from edgewatt.devices.serial_meter import SerialMeter
from edgewatt.devices.wiring import Wiring, refuse_rest
from edgewatt.harness.api import Channel, Device, Meter, UsageError
from edgewatt.harness.plugins import nearest

BAUD = 115200  # of no meaning over USB; the meter takes any
OPTIONS = ("mode", "volts", "rate_hz", "limit_a", "logic", "power_off")
MOST_HZ = 5000
MOST_DRIFT = 1e-3  # its samples are clocked by a crystal: 1e-4 and an allowance


class Ppk2(SerialMeter):
    """The meter at one port; it has no other program beside it."""

    def __init__(self, port: str, wiring: Wiring, settings: Mapping[str, Any]) -> None:
        """`settings` are those of OPTIONS, checked."""
        rate_hz = float(settings.get("rate_hz", 1000))
        period_s, covers = 1 / rate_hz, "what it feeds"
        channels = [
            wiring.channel(averaging_s=period_s, age_s=0.0),
            Channel("voltage", "voltage", "V", "gauge", covers),
            Channel("current", "current", "A", "gauge", covers, averaging_s=period_s),
            Channel("over_range", "over_range", "1", "gauge", "samples at the limit of its current"),
        ]
        if settings.get("logic"):
            channels += [Channel(name, "logic", "1", "gauge", f"digital input {name}") for name in INPUTS]
        decoder = "edgewatt.devices.agent.ppk2:Decoder"
        super().__init__(
            "ppk2", port, BAUD, decoder, settings, channels, rate_hz, wiring, first_s=3.0, most_drift=MOST_DRIFT
        )

    @classmethod
    def attached_to(cls, device: Device, address: str, **options: Any) -> Meter:
        """UsageError for an option that is none, or a mode without the voltage it needs."""
        wiring, rest = Wiring.of("ppk2", options)
        refuse_rest("ppk2", [k for k in rest if k not in OPTIONS], OPTIONS)
        if not address:
            raise UsageError("ppk2: has no address; name its port, such as ppk2:/dev/ttyACM0")
        return cls(address, wiring, checked(rest))


def checked(told: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, each of the right kind and in its range; UsageError."""
    settings = dict(told)
    mode = told.get("mode")
    if mode is not None and mode not in MODES:
        raise UsageError(f"ppk2: mode is {mode!r}; {nearest(str(mode), MODES)}")
    if told.get("volts") is not None:
        settings["volts"] = _number(told, "volts", LEAST_V, MOST_V)
    elif mode == "ampere":
        raise UsageError("ppk2: in ampere mode it measures no voltage; give the supply's, such as volts = 3.7")
    if "rate_hz" in told:
        rate_hz = settings["rate_hz"] = _number(told, "rate_hz", 1, MOST_HZ)
        if SAMPLE_HZ % rate_hz:
            group = max(round(SAMPLE_HZ / rate_hz), SAMPLE_HZ // MOST_HZ)
            near = next(SAMPLE_HZ // g for g in range(group, SAMPLE_HZ + 1) if SAMPLE_HZ % g == 0)
            raise UsageError(f"ppk2: rate_hz is {told['rate_hz']!r}; wanted a divisor of {SAMPLE_HZ}, such as {near}")
    if "limit_a" in told:
        settings["limit_a"] = _number(told, "limit_a", 1e-6, 10)
    for key in ("logic", "power_off"):
        value = told.get(key, False)
        if isinstance(value, str) and value in ("true", "false"):  # after --meter KIND:ADDRESS everything is a text
            value = value == "true"
        if not isinstance(value, bool):
            raise UsageError(f"ppk2: {key} is {value!r}; wanted true or false")
        settings[key] = value
    return settings


def _number(told: Mapping[str, Any], key: str, least: float, most: float) -> float:
    try:
        value = float(told[key])
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(told[key], bool) or not least <= value <= most:
        raise UsageError(f"ppk2: {key} is {told[key]!r}; wanted a number from {least:g} to {most:g}")
    return value
