"""RDTech's USB testers UM24C, UM25C and UM34C: asked for a record, several times a second. For the agent.

The byte f0 is answered by 130 bytes, big-endian: model at 0, volts at 2 and amperes at 4 (16 bits), milliwatts at 6 (32
bits), the selected group at 14, and from 16 on ten groups of mAh and mWh (32 bits each). Steps of volts and amperes
are the model's (sigrok's page "RDTech UM series"; the same in rdserialtool and rd-usb, which were written against the
meters). How its last two bytes are made is not public, so that they check nothing; what does is the model, the group,
and that volts x amperes are the watts.

The record is made when it is asked for, of values that the meter renews twice a second. A row's time is the middle of
request and answer. What does not come whole and in time is counted, what is late is let pass, and it is asked again.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from typing import Any

from edgewatt.devices.agent.serial_port import MeterError, Port

ASK, RECORD = b"\xf0", 130
MODELS = {  # model word, V and A of a step
    "um24c": (0x0963, 1e-2, 1e-3),
    "um25c": (0x09C9, 1e-3, 1e-4),
    "um34c": (0x0D4C, 1e-2, 1e-3),
}
WATT_STEP = 1e-3
PERIOD_NS = 200_000_000  # of asking: at least twice for each renewal
LATE_NS = 600_000_000  # an answer that took longer is given up (Bluetooth: some 100 ms)
QUIET_NS = 150_000_000  # after one that went wrong, nothing may come for so long before it is asked again
TRIES, ANSWER_S = 3, 1.0
AGREE = 0.01  # volts x amperes against watts, their steps apart
GROUPS = 10
J_PER_MWH = 3.6


class RecordError(ValueError):
    """An answer that is no record of this meter; the message is the reason, to be counted."""


def parsed(record: bytes, model: str) -> list[float]:
    """Power (W), voltage (V), current (A) and the selected group's energy (J) of a record; RecordError."""
    word, volt_step, ampere_step = MODELS[model]
    if len(record) != RECORD:
        raise RecordError("short" if len(record) < RECORD else "long")
    found, volts, amperes, milliwatts = struct.unpack_from(">HHHI", record)
    (group,) = struct.unpack_from(">H", record, 14)
    if found != word:
        raise RecordError("another model word")
    if group >= GROUPS:
        raise RecordError("no such group")
    voltage_v, current_a, power_w = volts * volt_step, amperes * ampere_step, milliwatts * WATT_STEP
    rounding = voltage_v * ampere_step + current_a * volt_step + WATT_STEP
    if abs(voltage_v * current_a - power_w) > AGREE * power_w + rounding:
        raise RecordError("volts x amperes are not its watts")
    (milliwatt_hours,) = struct.unpack_from(">I", record, 20 + 8 * group)
    return [power_w, voltage_v, current_a, milliwatt_hours * J_PER_MWH]


class Decoder:
    """Asks, and makes rows of the answers."""

    columns = ("power", "voltage", "current", "accumulated")
    silence_s = 3.0

    def __init__(self, options: dict[str, Any]) -> None:
        """`options`: model, one of MODELS."""
        self._model = str(options["model"])
        self._buffer = bytearray()
        self._asked_ns: int | None = None
        self._due_ns = self._quiet_until_ns = 0
        self._asked = self._rows = self._stray = 0
        self._refused: Counter[str] = Counter()

    def begin(self, port: Port) -> None:
        """It is asked until it answers, and it is the model that was wanted; MeterError."""
        self._buffer.clear()
        self._asked_ns, self._due_ns, self._quiet_until_ns = None, 0, 0
        heard = b""
        for _ in range(TRIES):
            port.drain()
            port.write(ASK)
            answer = _answer(port)
            heard = answer or heard
            try:
                parsed(answer, self._model)
                return
            except RecordError:
                continue
        raise MeterError(f"{port.path}: {self._unlike(heard)}")

    def _unlike(self, heard: bytes) -> str:
        if not heard:
            return (
                f"the {self._model} does not answer; see that it has power, that it is paired and bound to this port, "
                "and that no other program (or telephone) is connected to it"
            )
        word = int.from_bytes(heard[:2], "big")
        for name, (number, *_) in MODELS.items():
            if number == word and name != self._model:
                return f"it is a {name}, not a {self._model}; attach it as {name}"
        return f"answered {len(heard)} bytes, {heard[:12]!a}...; wanted {RECORD} of a {self._model}; is it one?"

    def request(self, now_ns: int) -> bytes:
        """f0 when it is time, and nothing is still to come."""
        if self._asked_ns is not None:
            if now_ns - self._asked_ns <= LATE_NS:
                return b""
            self._refuse("short" if self._buffer else "no answer", now_ns)
        if now_ns < max(self._due_ns, self._quiet_until_ns):
            return b""
        self._asked_ns = now_ns
        self._due_ns = max(self._due_ns + PERIOD_NS, now_ns + PERIOD_NS // 2)
        self._asked += 1
        return ASK

    def take(self, data: bytes, now_ns: int) -> list[tuple[int, float, list[float]]]:
        """A row, if `data` completes an answer: (0, middle of request and answer in s on our clock, values)."""
        if self._asked_ns is None:
            self._stray += len(data)
            self._quiet_until_ns = now_ns + QUIET_NS
            return []
        self._buffer += data
        if len(self._buffer) < RECORD:
            return []
        asked_ns = self._asked_ns
        try:
            values = parsed(bytes(self._buffer), self._model)
        except RecordError as error:
            self._refuse(str(error), now_ns)
            return []
        self._buffer.clear()
        self._asked_ns = None
        self._rows += 1
        return [(0, (asked_ns + now_ns) / 2 * 1e-9, values)]

    def end(self, port: Port) -> None:
        """It says nothing unasked."""

    @property
    def notes(self) -> dict[str, Any]:
        """How often it was asked, and what was not believed."""
        return {
            "model": self._model,
            "asked": self._asked,
            "rows": self._rows,
            "refused": dict(self._refused),
            "stray_bytes": self._stray,
        }

    def _refuse(self, reason: str, now_ns: int) -> None:
        self._refused[reason] += 1
        self._buffer.clear()
        self._asked_ns = None
        self._quiet_until_ns = now_ns + QUIET_NS


def _answer(port: Port) -> bytes:
    """What comes within ANSWER_S, up to a record and what follows it at once."""
    answer, until = b"", time.monotonic() + ANSWER_S
    while len(answer) < RECORD and time.monotonic() < until:
        answer += port.read(until - time.monotonic())
    return answer
