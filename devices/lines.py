"""Boards that send a line for each reading: INA226 and INA219 (`ina226`, `ina219`), and any other (`lines`).

    [devices.board.meters.supply]
    kind = "ina226"
    address = "/dev/ttyUSB0"
    baud = 115200
    columns = ["time ms", "voltage mV", "current uA", "power uW"]      # as the line has them; "-" passes one over
    # or, for lines of JSON, by key:  columns = {t = "time ms", bus = "voltage mV", i = "current mA"}
    shunt_ohm = 0.1                 # ina226, ina219: the step of the current is that of the chip over the shunt
    averaging_s = 0.001             # a reading is the mean of so long (the chip's conversions); unset: unknown
    volts = 5.0                     # where there is no column of voltage or power
    rate_hz = 100                   # where there is no column of time: lines are counted; unset: as they come
    voltage_step_v = 0.00125        # where it is known otherwise
    current_step_a = 0.000025
    start = "g"                     # what makes the board send, and stop; unset: it does by itself
    stop = "s"

and what every attached meter may tell (devices/wiring.py). After `--meter ina226:/dev/ttyUSB0` the columns are written
`columns=time ms,voltage mV,current uA,power uW`, those of JSON `columns=t:time ms,bus:voltage mV,i:current mA`. They
need not be told where the board does, in a line such as `# columns: ms,bus_mV,current_uA,power_uW`, a heading, or in
JSON keys such as `bus_mV`. Power is the column power, or else voltage x current.

Let the board send time, voltage, current and power: then each line can be checked, missing ones are known, and times
are those of the board. Where one of these is not there, a damaged digit cannot be told from a reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from edgewatt.devices.agent.line_layout import LayoutError, layout
from edgewatt.devices.agent_meter import timing
from edgewatt.devices.serial_meter import SerialMeter, baud_of
from edgewatt.devices.wiring import Wiring, refuse_rest
from edgewatt.harness.api import Channel, Device, Floats, Meter, Trace, UsageError

BAUD = 115200
NUMBERS = ("shunt_ohm", "averaging_s", "volts", "rate_hz", "voltage_step_v", "current_step_a")
OPTIONS = ("baud", "columns", "start", "stop", *NUMBERS)
USUAL_HZ = 1000.0  # what a rate is compared with until it is known
WAITING_S = 0.02  # a line without a time may have lain in a converter (FTDI: 16 ms) and on a busy machine for so long


class Lines(SerialMeter):
    """One board at one port. What is left open in its layout is known when it has spoken."""

    kind: ClassVar[str] = "lines"
    voltage_step_v: ClassVar[float] = 0.0
    shunt_step_v: ClassVar[float] = 0.0
    power_steps: ClassVar[float] = 0.0  # step of its power, in steps of the current x 1 V

    def __init__(self, port: str, wiring: Wiring, settings: Mapping[str, Any]) -> None:
        """`settings` are those of OPTIONS, checked."""
        self._settings, rate_hz = settings, settings.get("rate_hz")
        covers = "what it feeds"
        self._every = (
            wiring.channel(),
            Channel("voltage", "voltage", "V", "gauge", covers),
            Channel("current", "current", "A", "gauge", covers),
            Channel("doubt", "doubt", "1", "gauge", "1: the row before it was beside a damaged line, and is left out"),
        )
        options = {k: settings[k] for k in ("columns", "volts", "rate_hz", "start", "stop") if k in settings}
        super().__init__(
            self.kind,
            port,
            settings.get("baud", BAUD),
            "edgewatt.devices.agent.lines:Decoder",
            {**options, "power_steps": self.power_steps},
            self._every,
            rate_hz or USUAL_HZ,
            wiring,
        )
        self._clocks = self.channels[len(self._every) :]

    @classmethod
    def attached_to(cls, device: Device, address: str, **options: Any) -> Meter:
        """UsageError for an option that is none, columns that make no sense, or no port."""
        wiring, rest = Wiring.of(cls.kind, options)
        refuse_rest(cls.kind, [k for k in rest if k not in OPTIONS], OPTIONS)
        if not address:
            raise UsageError(f"{cls.kind}: has no address; name its port, such as {cls.kind}:/dev/ttyUSB0")
        return cls(address, wiring, checked(cls.kind, rest))

    def believed(self, values: Floats) -> Floats:
        """Without the rows that stood beside a damaged line."""
        return without_doubtful(values, len(self._every) - 1)

    def _traced(self) -> Trace:
        """As every serial meter's, with the channels that the board told, and how finely it told them."""
        notes = self._collected.sampled.get("notes") or {}
        steps = notes.get("steps") or {}
        clock = notes.get("clock", "column")
        self._step_s = {"column": float(steps.get("time", 1e-3)), "count": 0.0}.get(clock, WAITING_S)
        self.channels = (*self._every, *self._clocks)
        trace = super()._traced()
        values = trace.values
        period_s = float(np.median(np.diff(trace.t_s))) if len(trace.t_s) > 1 else self.period_s
        facts = {**trace.facts, "missing": int(np.isnan(values[:, 0]).sum())}
        if "rate_hz" not in self._settings:
            self.period_s = period_s  # how long a run waits for the reading after its end
            limit_s = max(3 * period_s, 0.05)
            facts |= {"rate_asked_hz": 1 / period_s, "gap_limit_s": limit_s}
            facts |= timing(trace.t_s * 1e9, np.zeros(len(trace.t_s)), limit_s)
        power, told = self._power(values, steps, notes.get("shunt_ohm"), period_s)
        kept = [0] + [k for k in (1, 2) if np.isfinite(values[:, k]).any()] + [3] * bool((values[:, 3] > 0).any())
        kept += range(len(self._every), len(self.channels))
        self.channels = (power, *(self.channels[k] for k in kept[1:]))
        return replace(trace, channels=self.channels, values=values[:, kept], facts=facts | told)

    def _power(
        self, values: Floats, steps: Mapping[str, Any], shunt_ohm: float | None, period_s: float
    ) -> tuple[Channel, dict[str, Any]]:
        """The channel of power with what is known of its rounding and age, and how that was made, as facts.

        A step of the current is a step of the power, V x it. The rounding of a voltage that stands still goes the same
        way in all of them: up to half a step over the voltage, as part of the gain error.
        """
        shunt_ohm = self._settings.get("shunt_ohm", shunt_ohm)
        current_a = self._settings.get("current_step_a", self.shunt_step_v / shunt_ohm if shunt_ohm else 0.0)
        current_a = max(current_a, float(steps.get("current", 0.0)))
        voltage_v = self._settings.get("voltage_step_v", self.voltage_step_v)
        voltage_v = max(voltage_v, float(steps.get("voltage", 0.0)))
        volts = float(np.nanmedian(np.abs(values[:, 1]))) if np.isfinite(values[:, 1]).any() else 0.0
        quantum = math.hypot(volts * current_a, float(steps.get("power", 0.0)))
        rounding = voltage_v / 2 / volts if volts > 0 else 0.0
        averaging_s = self._settings.get("averaging_s")
        given = self._every[0].gain_error
        power = replace(
            self._every[0],
            quantum=quantum or None,
            gain_error=math.hypot(given or 0.0, rounding) if rounding or given is not None else None,
            averaging_s=averaging_s,
            age_s=period_s if averaging_s is None else 0.0,
        )
        facts = {"current_step_a": current_a, "voltage_step_v": voltage_v, "voltage_rounding": rounding}
        return power, {**facts, "gain_error_told": given}


class Ina226(Lines):
    """A board with an INA226: steps of 1.25 mV, and of 2.5 uV over its shunt (TI SBOS547A, 7.5); power 25 of those."""

    kind = "ina226"
    voltage_step_v, shunt_step_v, power_steps = 1.25e-3, 2.5e-6, 25.0


class Ina219(Lines):
    """A board with an INA219: steps of 4 mV, and of 10 uV over its shunt (TI SBOS448G, 7.5); power 20 of those."""

    kind = "ina219"
    voltage_step_v, shunt_step_v, power_steps = 4e-3, 10e-6, 20.0


def without_doubtful(values: Floats, doubt: int) -> Floats:
    """Values (n, c) in which the power, voltage and current before each row with doubt > 0 are missing."""
    values = values.copy()
    bad = np.flatnonzero(values[1:, doubt] > 0)
    values[bad, :doubt] = np.nan
    return values


def checked(kind: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, each of the right kind and in its range; UsageError."""
    settings = dict(told)
    for key in NUMBERS:
        if key not in told:
            continue
        try:
            settings[key] = float(told[key])
        except (TypeError, ValueError):
            settings[key] = math.nan
        if isinstance(told[key], bool) or not 0 < settings[key] < 1e6:
            raise UsageError(f"{kind}: {key} is {told[key]!r}; wanted a number above 0")
    if "baud" in told:
        settings["baud"] = baud_of(kind, told, BAUD)
    for key in ("start", "stop"):
        if not isinstance(told.get(key, ""), str) or not told.get(key, "").isascii():
            raise UsageError(f"{kind}: {key} is {told[key]!r}; wanted what the board understands, such as 'g'")
    if "columns" in told:
        try:
            layout(told["columns"], "volts" in told)
        except LayoutError as error:
            raise UsageError(f"{kind}: {error}") from error
    return settings
