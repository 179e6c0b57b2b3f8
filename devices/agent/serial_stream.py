"""Meters on serial ports as a stream for the agent: opens, reads, hands bytes to a decoder, and opens again.

`stream(params)` wants {"port", "baud", "decoder": "module:Class", "options": {}, "first_s": 5}. Its rows are
("segment", "clock", *decoder.columns), stamped with the time (ns) at which the bytes that completed them had come:
never early, but late by what USB, the kernel and a busy machine add. Rows of one read differ by a nanosecond, so that
none looks like another's repeat.

A decoder is a class in a file of its own beside this one:

    class Decoder:
        columns: tuple[str, ...]                  # of the values of a row, SI units
        notes: dict                               # JSON, told at the end: what was lost, refused, resynchronised
        silence_s: float                          # optional: after so long without a byte `begin` is tried again
        def __init__(self, options: dict) -> None
        def begin(self, port: Port) -> None       # handshake after each opening; MeterError
        def request(self, now_ns: int) -> bytes   # what to send now; b"" if nothing (most meters talk by themselves)
        def take(self, data: bytes, now_ns: int) -> list[tuple[int, float, list[float]]]   # (segment, clock_s, values)
        def end(self, port: Port) -> None         # before closing

`clock_s` is the meter's own clock; `segment` another number whenever its relation to time broke.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from contextlib import suppress
from typing import Any

from edgewatt.devices.agent.agent import now_ns
from edgewatt.devices.agent.serial_port import GoneError, MeterError, Port, holders

FIRST_S = 5.0  # a meter that said nothing that makes sense for so long, says nothing
RETRY_S = 0.25  # how often a port that has gone is looked for
SILENCE_S = 5.0  # a meter that was restarted has forgotten that it should talk
LOOK_S = 0.05  # how often a decoder is asked what to send
# A fast meter is read every few milliseconds, not at every packet: that would cost a core. What came meanwhile is late
# by as much, its last bytes are not. A kernel holds 4 KiB at the least.
FAST_BYTES, PAUSE_S = 256, 0.004
WATCH_S, WATCH_COST = 2.0, 0.005  # how often others are looked for, and the most of the time that may take
MOST_TOLD = 10  # of each kind of event in the notes


def stream(params: dict[str, Any]) -> SerialStream:
    """The stream that the agent's `sample` names; MeterError if there is no meter to be read."""
    return SerialStream(params)


class SerialStream:
    """A meter at a port, from its first row until `close`; while the port is gone there are no rows."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._path, self._baud = str(params["port"]), int(params["baud"])
        module, _, name = str(params["decoder"]).partition(":")
        self._decoder: Any = getattr(importlib.import_module(module), name)(dict(params.get("options") or {}))
        self.columns = ("segment", "clock", *self._decoder.columns)
        self._silence_ns = int(getattr(self._decoder, "silence_s", SILENCE_S) * 1e9)
        self._rows: deque[tuple[int, int, list[float]]] = deque()
        self._segment, self._segment_key, self._opening = -1, (-1, -1), 0
        self._stamp_ns = 0
        self._bytes, self._first_bytes = 0, b""
        self._reopened: list[dict[str, Any]] = []
        self._restarts = 0
        self._why: deque[str] = deque(maxlen=MOST_TOLD)
        self._others: dict[int, dict[str, Any]] = {}
        self._port: Port | None = Port(self._path, self._baud)
        try:
            self._open(self._port)
            self._wait_for_first(float(params.get("first_s") or FIRST_S))
        except GoneError as error:
            self.close()
            raise MeterError(f"{self._path}: {error.strerror}; plug the meter in again", is_transient=True) from error
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> dict[str, Any]:
        """What the decoder has to say, and how often the port was opened again (`restarts`, `why`)."""
        told: dict[str, Any] = {"port": self._path, "baud": self._baud, "bytes": self._bytes, **self._decoder.notes}
        if self._restarts:
            told.update(restarts=self._restarts, why=list(dict.fromkeys(self._why)), reopened=self._reopened)
        if self._port is None:
            told["gone"] = "the port did not come back"
        if self._others:
            told["other_programs"] = list(self._others.values())
        return told

    def read(self, timeout_s: float) -> tuple[int, int, list[float]] | None:
        """The next row (arrival in ns, 0, values); None if none came in that time."""
        if not self._rows:
            self._fill(timeout_s)
        return self._rows.popleft() if self._rows else None

    def close(self) -> None:
        """The meter is told to stop, and the port is free again."""
        port, self._port = self._port, self._port
        if port is not None:
            with suppress(OSError, MeterError):
                self._decoder.end(port)
            port.close()

    def _wait_for_first(self, first_s: float) -> None:
        until = time.monotonic() + first_s
        while not self._rows:
            self._fill(0.1)
            if self._port is None:
                raise MeterError(f"{self._path}: the port went away at once; plug the meter in again")
            if not self._rows and time.monotonic() > until:
                raise MeterError(self._silence(first_s))

    def _silence(self, first_s: float) -> str:
        if not self._bytes:
            return (
                f"{self._path}: nothing came within {first_s:g} s at {self._baud} baud; see that the meter has power, "
                "that its wires are the right way round (its TX to our RX), and that `baud` is right"
            )
        return (
            f"{self._path}: {self._bytes} bytes came within {first_s:g} s and make no sense, such as "
            f"{self._first_bytes[:40]!a}; wanted is `baud` ({self._baud} now) and the kind of meter it is"
        )

    def _fill(self, timeout_s: float) -> None:
        """Reads until there is a row or the time is over."""
        until_ns = now_ns() + int(timeout_s * 1e9)
        now = now_ns()
        while not self._rows:
            if self._port is None and not self._is_back():
                left_s = (until_ns - now_ns()) * 1e-9
                time.sleep(max(0.0, min(RETRY_S, left_s)))
                if left_s <= RETRY_S:
                    return
                continue
            assert self._port is not None
            try:
                asked = self._decoder.request(now)
                if asked:
                    self._port.write(asked)
                self._pause()
                data = self._port.read(min(LOOK_S, (until_ns - now) * 1e-9))
                now = now_ns()
                if data:
                    self._take(data, now)
                elif now - self._heard_ns > self._silence_ns:
                    self._begin_again(self._port)
                self._watch(now)
            except GoneError as error:
                self._lose(str(error.strerror))
            if now >= until_ns:
                return

    def _pause(self) -> None:
        if self._got > FAST_BYTES:
            time.sleep(PAUSE_S)

    def _take(self, data: bytes, now: int) -> None:
        self._heard_ns, self._got = now, len(data)
        self._bytes += len(data)
        if len(self._first_bytes) < 40:
            self._first_bytes += data[:40]
        stamp = max(now, self._stamp_ns + 1)
        for segment, clock_s, values in self._decoder.take(data, now):
            if (self._opening, segment) != self._segment_key:
                self._segment, self._segment_key = self._segment + 1, (self._opening, segment)
            self._rows.append((stamp, 0, [self._segment, clock_s, *values]))
            stamp += 1
        self._stamp_ns = stamp - 1

    def _open(self, port: Port) -> None:
        self._heard_ns, self._got = now_ns(), 0
        self._watch_ns = self._heard_ns + int(WATCH_S * 1e9)
        self._decoder.begin(port)
        self._heard_ns = now_ns()

    def _begin_again(self, port: Port) -> None:
        """The meter fell silent: maybe it was restarted."""
        self._restarts += 1
        self._why.append("it fell silent")
        self._opening += 1
        with suppress(MeterError):  # tried again after the next silence
            self._decoder.begin(port)
        self._heard_ns, self._got = now_ns(), 0

    def _lose(self, why: str) -> None:
        assert self._port is not None
        self._port.close()
        self._port = None
        self._lost_ns = now_ns()
        self._why.append(why)

    def _is_back(self) -> bool:
        """Whether the port could be opened again; it may be another one behind the same name."""
        try:
            port = Port(self._path, self._baud)
        except MeterError as error:
            if error.is_transient and self._why[-1] != str(error):
                self._why.append(str(error))
            return False
        self._opening += 1
        try:
            self._open(port)
        except (GoneError, MeterError) as error:
            port.close()
            if self._why[-1] != str(error):
                self._why.append(str(error))
            return False
        self._port = port
        self._restarts += 1
        if len(self._reopened) < MOST_TOLD:
            self._reopened.append({"gone_ns": self._lost_ns, "back_ns": now_ns()})
        return True

    def _watch(self, now: int) -> None:
        """Looks who else has the port open, now and then: root's programs are not kept out by any lock."""
        if now < self._watch_ns:
            return
        for pid, program in holders(self._path):
            self._others.setdefault(pid, {"pid": pid, "program": program, "seen_ns": now})
        cost_ns = now_ns() - now
        self._watch_ns = now + max(int(WATCH_S * 1e9), int(cost_ns / WATCH_COST))
