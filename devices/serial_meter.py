"""Meters on a serial port of the harness's own machine, whatever device they are wired to.

An agent of this machine reads the port (`devices/agent/serial_stream.py`), so that a busy harness loses nothing. Its
rows carry the meter's own clock and their arrival; the times of the trace are made of both (`devices/arrival.py`), on
this machine's clock, and both are kept beside them as `meter_clock` and `arrival`, so that they can be made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from edgewatt.devices import arrival
from edgewatt.devices.agent import serial_port
from edgewatt.devices.agent.agent import CLOCK
from edgewatt.devices.agent_meter import AgentMeter, timing
from edgewatt.devices.transport import Subprocess
from edgewatt.devices.wiring import Wiring
from edgewatt.harness.api import Channel, Device, Facts, Floats, Trace, TransientError, UsageError

STREAM = "edgewatt.devices.agent.serial_stream:stream"


class SerialMeter(AgentMeter):
    """One meter at one port. Its agent is this machine's, never that of the device it measures."""

    def __init__(
        self,
        name: str,
        port: str,
        baud: int,
        decoder: str,
        options: Facts,
        channels: Sequence[Channel],
        rate_hz: float,
        wiring: Wiring,
        *,
        step_s: float = 0.0,
        first_s: float | None = None,
        most_drift: float = arrival.MOST_DRIFT,
        is_asked: bool = False,
    ) -> None:
        """`channels` are the decoder's columns, in its order; `step_s` is the step of the meter's own clock.

        `first_s`: how long the meter may take for its first row (5 s); `most_drift`: how far its clock may be off;
        `is_asked`: it has none, its rows carry the middle of question and answer on ours.
        """
        self.port, self._wiring, self._step_s, self._most_drift = port, wiring, step_s, most_drift
        self._is_asked = is_asked
        clocks = [
            Channel("meter_clock", "time", "s", "gauge", "the meter's own clock"),
            Channel("arrival", "time", "s", "gauge", "when the row had arrived, on the clock of the trace"),
        ]
        params = {"port": port, "baud": baud, "decoder": decoder, "options": dict(options), "first_s": first_s}
        job = {"rate_hz": rate_hz, "stream": STREAM, "params": params, "gap_limit_s": 3 / rate_hz}
        self._agents = Subprocess()
        super().__init__(cast(Device, self._agents), name, [*channels, *clocks], job, clock=CLOCK)

    def start(self) -> None:
        """As every meter's. UsageError or TransientError if the port cannot be had, HarnessError if no row comes."""
        try:
            serial_port.check(self.port)
        except serial_port.MeterError as error:
            raise (TransientError if error.is_transient else UsageError)(f"{self.name}: {error}") from error
        try:
            super().start()
        except BaseException:
            self._agents.close()
            raise

    def stop(self) -> Trace:
        """As every meter's; the port is free afterwards."""
        trace = super().stop()
        self._agents.close()
        return trace

    def converted(self, raw: Floats) -> Floats:
        """Segment, clock and the decoder's columns, as they are: `_traced` makes channels and times of them."""
        return raw

    def believed(self, values: Floats) -> Floats:
        """The decoder's columns (n, columns), without what a later row says of an earlier one. To be overridden."""
        return values

    def _traced(self) -> Trace:
        raw = super()._traced()
        segment, clock_s, values = raw.values[:, 0], raw.values[:, 1], self.believed(raw.values[:, 2:])
        if self._is_asked:
            found = arrival.times_of_answers(clock_s, raw.t_s)
        else:
            found = arrival.times(segment, clock_s, raw.t_s, self._step_s, self._most_drift)
        placed = np.isfinite(found.t_s)
        t_s = found.t_s[placed]
        facts: dict[str, Any] = {
            **raw.facts,
            **timing(t_s * 1e9, np.zeros(len(t_s)), self.job["gap_limit_s"]),
            "clock_of": "harness",
            "clock_bound_s": found.bound_s + float(raw.facts.get("notes", {}).get("clock_unseen_s", 0.0)),
            "clock_drift": found.drift,
            "clock_starts": np.unique(np.r_[0, placed.cumsum()][list(found.starts)]).tolist(),
            "late_median_s": found.late_s[0],
            "late_max_s": found.late_s[1],
            "rows_unplaced": found.unplaced,
            "missing": int(np.isnan(values).sum()),
            "wiring": self._wiring.facts(),
        }
        columns = np.column_stack([values[placed], clock_s[placed], raw.t_s[placed]])
        return replace(raw, t_s=t_s, values=columns, facts=facts)


def baud_of(name: str, options: Mapping[str, Any], usual: int) -> int:
    """The option `baud`; UsageError if it is none."""
    baud = options.get("baud", usual)
    if isinstance(baud, str) and baud.isdigit():  # after --meter KIND:ADDRESS everything is a text
        baud = int(baud)
    if isinstance(baud, bool) or not isinstance(baud, int) or not 50 <= baud <= 12_000_000:
        raise UsageError(f"{name}: baud is {baud!r}; wanted a whole number from 50 to 12000000, such as {usual}")
    return baud
