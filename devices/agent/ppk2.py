"""Nordic's Power Profiler Kit II, decoded: bytes in, rows of power, voltage and current out. For the agent.

Commands, words and the formula of the current are those of PyPI ppk2-api 0.9.2 (IRNAS, after Nordic's own software):

    r = (4 adc - O) * 1.8 / 163840 / R;    I = UG * (r * (GS r + GI) + (S vdd + I))     in A, vdd in V

with the seven constants of each of the five ranges from the meter's metadata. There are only 2^17 pairs of ADC reading
and range, so the formula is done once for all of them.

No spike filter. After a change of range ppk2-api puts a rolling mean of what came before in the place of 3 samples,
and so moves energy; here every sample counts as it was sent, a row is the plain mean of its samples, and the energy of
the rows is that of the samples. What the switch itself leaves in 30 us is in it.

A row is the mean of `100 000 / rate_hz` samples. One of which more than half is missing is left out, any other is the
mean of what is there. Samples that no PPK2 can give (far beyond its limit) are in no mean, but count as over the limit.
The clock counts samples, lost ones too as far as the counter tells (modulo 64); where more may have been lost, or the
port was silent, a new segment begins, which the arrival times then put in its place.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from typing import Any

from edgewatt.devices.agent.ppk2_words import COUNTER, Piece, Words
from edgewatt.devices.agent.serial_port import MeterError, Port

SAMPLE_HZ = 100_000
ADC_V = 1.8 / 163840  # volts a step of 4 adc
CONSTANTS = ("R", "GS", "GI", "O", "S", "I", "UG")
RANGES = 5
START, STOP, RUNNING, REGULATOR, MODE, METADATA = 0x06, 0x07, 0x0C, 0x0D, 0x11, 0x19
MODES = {"ampere": 1, "source": 2}
LEAST_V, MOST_V = 0.8, 5.0
TRIES, ANSWER_S, PAUSE_S = 3, 1.0, 0.3  # for the metadata: how often, how long in all, and how long between two bytes
INPUTS = tuple(f"D{k}" for k in range(8))
BELIEVED = 1.5  # times the limit: no current above that passes through the meter
SILENCE_NS = 50_000_000  # a port silent for so long may have lost anything
USUAL_NS = 1_000_000_000  # how far back the usual lateness is looked for, and how long after a silence none is known
CUT_NS = 100_000_000  # pieces after a silence, long enough to tell what waited from what is new
UNSEEN_NS = 2_500_000  # a loss of less time than this is not to be told from waiting


class Decoder:
    """One PPK2: from its metadata to its rows."""

    silence_s = 4.0

    def __init__(self, options: dict[str, Any]) -> None:
        """`options`: rate_hz, limit_a, logic, and mode, volts, power_off where they are wanted."""
        self._group = round(SAMPLE_HZ / float(options.get("rate_hz", 1000)))
        self._limit_a = float(options.get("limit_a", 1.0))
        self._mode, self._volts = options.get("mode"), options.get("volts")
        self._has_logic, self._power_off = bool(options.get("logic")), bool(options.get("power_off"))
        self.columns = ("power", "voltage", "current", "over_range", *(INPUTS if self._has_logic else ()))
        self._words = Words()
        self._segment, self._n = -1, 0  # running number of the next sample, lost ones counted as far as known
        self._received = self._lost = self._impossible = self._breaks = self._left_out = 0
        self._is_sure = True  # of how much was lost at each break within a segment
        self._sums: Any = None
        self._first_group = 0
        self._now_ns = 0
        self._silence_ns: int | None = None  # when the last one ended, until the usual lateness since is known
        self._cut_ns = 0
        self._lateness: deque[tuple[int, int]] = deque()
        self._before_break: int | None = None  # usual lateness, until it is known how much the breaks since have cost
        self._break_ns = 0
        self._told: dict[str, Any] = {}

    # -----------------------------------------------------------------------------------------------------------------
    # The port

    def begin(self, port: Port) -> None:
        """Metadata read, mode and voltage set as far as asked, and started."""
        text = metadata(port)
        told = facts(text)
        volts, mode = self._supply(told)
        if self._mode:
            port.write(bytes([MODE, MODES[self._mode]]))
        if mode == "source" and self._volts is not None:
            port.write(bytes([REGULATOR, *regulator(volts)]))
            port.write(bytes([RUNNING, 1]))
        self._told = {
            "mode": mode,
            "mode_from": "option" if self._mode else "metadata",
            "volts": volts,
            "volts_from": "option" if self._volts is not None else "metadata",
            "calibration": {k: v for k, v in told.items() if k in CONSTANTS},
            "calibrated": told.get("Calibrated"),
            "hardware": told.get("HW"),
        }
        self._tables(told, volts)
        self._words.begin()
        self._new_segment()
        port.write(bytes([START]))

    def request(self, now_ns: int) -> bytes:
        """It talks by itself."""
        return b""

    def end(self, port: Port) -> None:
        """It stops talking; the power of the device stays as it is, unless told otherwise."""
        port.write(bytes([STOP]))
        if self._power_off:
            port.write(bytes([RUNNING, 0]))

    def _supply(self, told: dict[str, Any]) -> tuple[float, str]:
        """Volts and mode: as asked, or else as the meter says of itself."""
        mode = self._mode or {1: "ampere", 2: "source"}.get(told.get("mode", 2), "")
        if self._volts is not None:
            return float(self._volts), mode
        if mode != "source":
            raise MeterError(
                "ppk2: is in ampere mode, in which it measures no voltage; give the supply's (volts = 3.7), or let it "
                'feed the device (mode = "source")'
            )
        millivolts = told.get("VDD")
        if not isinstance(millivolts, float) or not LEAST_V <= millivolts / 1000 <= MOST_V:
            raise MeterError(f"ppk2: its metadata tell a voltage of {millivolts!r} mV; give it (volts = 3.3)")
        return millivolts / 1000, mode

    def _tables(self, told: dict[str, Any], volts: float) -> None:
        """The current of every pair of reading and range (131072,), in A, NaN where there is no such range."""
        import numpy as np

        code = np.arange(1 << 17)
        adc, scale = code & 0x3FFF, code >> 14
        c = {k: np.array([*told[k], *[math.nan] * (8 - RANGES)])[scale] for k in CONSTANTS}
        r = (4 * adc - c["O"]) * (ADC_V / c["R"])
        amperes = c["UG"] * (r * (c["GS"] * r + c["GI"]) + (c["S"] * volts + c["I"]))
        # At the limit: within a step of the ADC, which dithers, or at the end of the ADC in the widest range.
        step_a = 4 * ADC_V / c["R"]
        self._over = (amperes >= self._limit_a - step_a).astype(np.float64)
        self._amperes = np.where(np.abs(amperes) <= BELIEVED * self._limit_a, amperes, np.nan)
        self._volts_now = volts

    # -----------------------------------------------------------------------------------------------------------------
    # Rows

    def take(self, data: bytes, now_ns: int) -> list[tuple[int, float, list[float]]]:
        """Rows (segment, end on the meter's clock in s, values) that `data` completes."""
        rows: list[tuple[int, float, list[float]]] = []
        was_silent = now_ns - self._now_ns > SILENCE_NS and self._received > 0
        self._now_ns = now_ns
        pieces = self._words.take(data)
        ahead = sum(len(p.words) + p.missing for p in pieces)  # samples that had been made by now
        for piece in pieces:
            if was_silent or piece.is_break:
                rows += self._broken(piece, now_ns, ahead, was_silent)
                was_silent = False
            ahead -= len(piece.words) + piece.missing
            self._add(piece.words)
            rows += self._complete()
        self._cut()
        if pieces:
            self._note_lateness(now_ns)
        return rows

    @property
    def notes(self) -> dict[str, Any]:
        """What was received and lost, and how the meter was set up."""
        w = self._words
        lost = {
            "words": self._received,
            "words_lost": self._lost,
            "breaks": self._breaks,
            "resyncs": w.resyncs,
            "bytes_discarded": w.discarded_bytes,
            "bytes_duplicated": w.duplicated_bytes,
            "words_impossible": self._impossible,
            "rows_left_out": self._left_out,
            "segments": self._segment + 1,
            # By so much more the times within a segment may be off.
            "clock_unseen_s": 0.0 if self._is_sure else UNSEEN_NS * 1e-9,
        }
        return {**self._told, **lost, "sample_hz": SAMPLE_HZ, "samples_per_row": self._group, "spike_filter": "none"}

    def _broken(self, piece: Piece, now_ns: int, ahead: int, was_silent: bool) -> list[tuple[int, float, list[float]]]:
        """A break before `piece`: its words counted as lost, or a new segment where nobody can count them."""
        if piece.is_first:
            return []
        self._breaks += piece.is_break
        self._lost += piece.missing
        usual = self._usual_ns()
        if was_silent:
            self._lateness.clear()
            self._silence_ns = self._cut_ns = now_ns
        # Arrivals are never early: one that leaves little room for more says that hardly more can be missing.
        late = now_ns - round((self._n + ahead) * 1e9 / SAMPLE_HZ)
        is_exact = piece.thrown > 0 and abs(piece.thrown / 4 - piece.missing) <= 1
        if not was_silent and (is_exact or (usual is not None and late - usual < UNSEEN_NS)):
            self._is_sure &= is_exact
            self._n += piece.missing
            return []
        rows = self._flushed()
        self._n += piece.missing
        self._before_break = usual if self._before_break is None else self._before_break
        self._break_ns = now_ns
        self._new_segment()
        return rows

    def _usual_ns(self) -> int | None:
        """The lateness of the quickest arrivals; None where they may all be of a backlog.

        What waited during a silence comes late, and less and less so. If the rest of it is lost meanwhile, what is new
        comes no later than what waited did: the loss does not show.
        """
        if self._silence_ns is not None and self._now_ns - self._silence_ns < USUAL_NS:
            return None
        half_ns = self._now_ns - USUAL_NS // 2
        older = [late for at, late in self._lateness if at <= half_ns]
        newer = [late for at, late in self._lateness if at > half_ns]
        quickest = [min(part) for part in (older, newer) if part]
        return min(quickest) if quickest and max(quickest) - min(quickest) < UNSEEN_NS else None

    def _cut(self) -> None:
        """Another segment, again and again after a silence, until the usual lateness is known.

        Of what waited whole turns of the counter may be lost, which nothing shows. Where nothing was, the arrivals put
        the segments together again.
        """
        if self._silence_ns is None or self._now_ns - self._cut_ns < CUT_NS:
            return
        if self._usual_ns() is None:
            self._segment += 1
            self._cut_ns = self._now_ns
        else:
            self._silence_ns = None

    def _new_segment(self) -> None:
        self._segment += 1
        self._sums = None

    def _note_lateness(self, now_ns: int) -> None:
        """The lateness of the last second; and how many words a break has cost, once it can be told by arrival."""
        late = now_ns - round(self._n * 1e9 / SAMPLE_HZ)
        self._lateness.append((now_ns, late))
        while now_ns - self._lateness[0][0] > USUAL_NS:
            self._lateness.popleft()
        if self._before_break is not None and now_ns - self._break_ns > USUAL_NS:
            usual = self._usual_ns()
            if usual is not None:
                more_s = (usual - self._before_break) * 1e-9
                self._lost += max(0, round(more_s * SAMPLE_HZ / COUNTER)) * COUNTER
                self._before_break = None

    def _add(self, words: Any) -> None:
        """Sums of each group's samples: how many, how many make sense, their current, those over the limit, inputs."""
        import numpy as np

        code = words & 0x1FFFF
        amperes = self._amperes[code]
        group = np.arange(self._n, self._n + len(words)) // self._group
        self._n += len(words)
        self._received += len(words)
        if self._sums is None:
            self._first_group = int(group[0])
            self._sums = np.zeros((0, 4 + 8 * self._has_logic))
        wanted = int(group[-1]) + 1 - self._first_group
        if wanted > len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros((wanted - len(self._sums), self._sums.shape[1]))])
        sane = np.isfinite(amperes)
        if not sane.all():
            self._impossible += int((~sane).sum())
            amperes = np.where(sane, amperes, 0.0)
        weights = [None, sane, amperes, self._over[code]]
        if self._has_logic:
            weights += [words >> 24 + bit & 1 for bit in range(8)]
        for column, weight in enumerate(weights):
            self._sums[:, column] += np.bincount(group - self._first_group, weight, wanted)

    def _complete(self) -> list[tuple[int, float, list[float]]]:
        """Rows of the groups that can get no more samples."""
        if self._sums is None:
            return []
        n = self._n // self._group - self._first_group
        sums, self._sums = self._sums[:n], self._sums[n:]
        rows = self._rows(sums)
        self._first_group += n
        return rows

    def _flushed(self) -> list[tuple[int, float, list[float]]]:
        """The row of the group in hand, if half of it is there."""
        sums, self._sums = self._sums, None
        return [] if sums is None else self._rows(sums)

    def _rows(self, sums: Any) -> list[tuple[int, float, list[float]]]:
        if not len(sums):
            return []
        half = self._group / 2
        k = (sums[:, 0] >= half).nonzero()[0]
        self._left_out += len(sums) - len(k)
        sums = sums[k]
        current = (sums[:, 2] / sums[:, 1].clip(1)).tolist()
        is_sane = (sums[:, 1] >= half).tolist()
        shares = (sums[:, 3:] / sums[:, :1]).tolist()
        ends = ((k + self._first_group + 1) * (self._group / SAMPLE_HZ)).tolist()
        volts, segment = self._volts_now, self._segment
        return [
            (
                segment,
                ends[i],
                [a * volts if is_sane[i] else math.nan, volts, a if is_sane[i] else math.nan, *shares[i]],
            )
            for i, a in enumerate(current)
        ]


def regulator(volts: float) -> tuple[int, int]:
    """The two bytes that set the regulator: 1 mV steps from (3, 32) for 0.8 V (ppk2-api, `_convert_source_voltage`)."""
    high, low = divmod(round(volts * 1000) - 800 + 32, 256)
    return 3 + high, low


def metadata(port: Port) -> str:
    """The meter's metadata, up to and without END; MeterError if it does not tell them whole in a few tries."""
    heard = b""
    for _ in range(TRIES):
        port.write(bytes([STOP]))
        port.drain()
        port.write(bytes([METADATA]))
        answer = _answer(port)
        heard = answer or heard
        text = answer.decode("ascii", "replace")
        if "END" in text and is_whole(text):
            return text.partition("END")[0]
    if not heard:
        raise MeterError(
            f"{port.path}: nothing came within {TRIES * ANSWER_S:g} s when asked for metadata; see that it is a PPK2 "
            "with power, and of its two ports take the other"
        )
    if re.search(rb"\bR0: ", heard) or b"Calibrated" in heard:
        raise MeterError(
            f"{port.path}: its metadata broke off after {len(heard)} bytes ({heard[-20:]!a}), wanted all constants of "
            f"{RANGES} ranges and END, in {TRIES} tries; unplug the PPK2 and plug it in again"
        )
    raise MeterError(
        f"{port.path}: {len(heard)} bytes came that are no PPK2's metadata ({heard[:40]!a}); see what is at that port"
    )


def _answer(port: Port) -> bytes:
    """What comes until END, or until nothing more does."""
    answer, until = b"", time.monotonic() + ANSWER_S
    while b"END" not in answer and time.monotonic() < until and len(answer) < 1 << 16:
        data = port.read(PAUSE_S if answer else until - time.monotonic())
        if not data:
            break
        answer += data
    return answer


def is_whole(text: str) -> bool:
    """Whether every constant of every range is told, and makes sense."""
    try:
        facts(text)
    except MeterError:
        return False
    return True


def facts(text: str) -> dict[str, Any]:
    """What metadata tell: each of CONSTANTS as a list by range, the rest by name, numbers as floats where they are."""
    told: dict[str, Any] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            told[key.strip()] = _number(value.strip())
    for name in CONSTANTS:
        values = [told.pop(f"{name}{k}", None) for k in range(RANGES)]
        if not all(isinstance(v, float) and math.isfinite(v) for v in values) or (name == "R" and min(values) <= 0):
            raise MeterError(f"ppk2: its metadata tell {name} as {values}; wanted {RANGES} numbers")
        told[name] = values
    return told


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
