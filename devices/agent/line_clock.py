"""The clock of a meter that sends lines: which of its times are believed, and where it broke. For the agent.

Bytes that were lost, doubled or changed make times that do not follow the one before. A time out of its turn is
believed only when the next line goes on from it; the line itself is then given up, as it may be made of two.
"""

from __future__ import annotations

from collections import deque

STEPS = 32  # of so many steps the longest tells what a step may be
SURE = 4  # fewer tell nothing: any up to FIRST_S is taken
FIRST_S = 5.0
LONGER = 2.5  # times the longest: lines are missing
AHEAD_S, BEHIND_S = 0.1, 0.5  # by so much a jump may differ from the time that passed, to be a gap of the same clock
SILENCE_S, SILENCE_ROWS = 0.1, 5.0  # counted rows: a silence that long may have lost some
FOLLOWS, JUMPED, SAME, WAITS = "follows", "jumped", "same", "waits"


class Times:
    """Times from a column. `segment` counts up where the clock broke."""

    def __init__(self) -> None:
        self.segment = 0
        self.waiting_lost = 0  # lines whose time came out of turn and was not gone on from
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._last_s: float | None = None
        self._last_ns = 0
        self._waiting: tuple[float, int] | None = None

    def begin(self) -> None:
        """What comes has nothing to do with what came before."""
        self.segment += 1
        self._last_s = self._waiting = None

    def is_back(self, time_s: float) -> bool:
        """Whether a time lies before the last one that was believed."""
        return self._last_s is not None and time_s < self._last_s

    def place(self, time_s: float, resolution_s: float, now_ns: int) -> str:
        """FOLLOWS, JUMPED (after lines that are missing, or a break: `segment`), SAME as the last, or WAITS."""
        last_s = self._last_s
        if last_s is None:
            return self._take(time_s, now_ns, FOLLOWS)
        if time_s == last_s:
            return SAME
        if self._is_next(time_s - last_s, resolution_s):
            self._steps.append(time_s - last_s)
            return self._take(time_s, now_ns, FOLLOWS)
        waiting = self._waiting
        if waiting is None or not self._is_next(time_s - waiting[0], resolution_s):
            self.waiting_lost += waiting is not None
            self._waiting = (time_s, now_ns)
            return WAITS
        jump_s, passed_s = waiting[0] - last_s, (waiting[1] - self._last_ns) * 1e-9
        if jump_s < 0 or not passed_s - BEHIND_S <= jump_s <= passed_s + AHEAD_S:
            self.segment += 1
        self.waiting_lost += 1
        self._waiting = None
        return self._take(time_s, now_ns, JUMPED)

    def _is_next(self, step_s: float, resolution_s: float) -> bool:
        most_s = LONGER * max(self._steps) if len(self._steps) >= SURE else FIRST_S
        return 0 < step_s <= most_s + 2 * resolution_s

    def _take(self, time_s: float, now_ns: int, how: str) -> str:
        self.waiting_lost += self._waiting is not None
        self._waiting = None
        self._last_s, self._last_ns = time_s, now_ns
        return how


class Count:
    """Times from counting rows of a known rate: nothing tells how many are missing, so each doubt is a break."""

    def __init__(self, rate_hz: float) -> None:
        self.segment = 0
        self._rate_hz, self._n = rate_hz, 0
        self._start: tuple[int, int] | None = None  # row and ns of the segment's first row
        self._last_ns = 0

    def begin(self) -> None:
        """Rows may be missing, or came twice."""
        self.segment += 1
        self._start = None

    def next_s(self, now_ns: int) -> float:
        """The time of the next row."""
        silence_s = max(SILENCE_S, SILENCE_ROWS / self._rate_hz)
        if self._start is not None:
            counted_s, passed_s = (self._n - self._start[0]) / self._rate_hz, (now_ns - self._start[1]) * 1e-9
            if (now_ns - self._last_ns) * 1e-9 > silence_s or counted_s > passed_s + silence_s:
                self.begin()
        if self._start is None:
            self._start = (self._n, now_ns)
        self._last_ns = now_ns
        self._n += 1
        return self._n / self._rate_hz
