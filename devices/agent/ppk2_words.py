"""The words a PPK2 sends 100 000 times a second, found again in whatever a serial port makes of them. For the agent.

A word is 4 bytes, little-endian: bits 0-13 ADC, 14-16 range, 18-23 a counter, 24-31 the digital inputs (layout: PyPI
ppk2-api 0.9.2; the counter: Nordic's own software). The counter is what tells whether anything was lost: words are
taken as they follow each other, and where they do not, the bytes are searched for the next place, at any of the four
alignments, at which RUN words count on one by one. What lies between is not believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# So many words must count on before they are believed: chance does that once in 64^15. At a wrong alignment the bits of
# the counter are those of the inputs or of the ADC, which stand still or are noise.
RUN = 16
# Words on each side of a break that are not believed: one may be made of bytes of two, or be none, and fit by chance.
DOUBTED = 2
HISTORY = 16384  # bytes kept, to know a piece that came twice
PATTERN = 64  # bytes that must be the same, for a piece to be one that came twice
COUNTER = 64  # the counter starts again at 0
TURNS = 32  # turns of the counter back to which a piece may have come twice: 8 KiB
LIKE = 0.75  # of the words of a turn that may be like another's by chance, where there is noise
TAIL, HELD = 16, 2 * COUNTER  # if the last TAIL words are the same as earlier ones, HELD wait for what follows
FEW = 24  # words that came twice and are too few for PATTERN
UNDECIDED = 4 * (4 * RUN + 4 + PATTERN)  # bytes kept while no place to go on from was found


@dataclass(frozen=True)
class Piece:
    """Words (n,) uint32 that follow each other. Before them, where `is_break`: `missing` words, modulo 64, and
    `thrown` bytes that were no words. `is_first`: nothing is known of what came before."""

    words: Any
    missing: int = 0
    thrown: int = 0
    is_break: bool = False
    is_first: bool = False


class Words:
    """Bytes in, words out. `begin` before the first, and whenever the meter was started again."""

    def __init__(self) -> None:
        import numpy

        self._np = numpy
        self.resyncs = self.discarded_bytes = self.duplicated_bytes = 0
        self.begin()

    def begin(self) -> None:
        """What comes next is searched for its first word."""
        self._rest, self._before, self._skip = b"", b"", 0
        self._thrown = 0  # bytes, since the last word
        self._next = -1  # the counter of the word that should come; -1: none is known

    def take(self, data: bytes) -> list[Piece]:
        """What `data` completes, in order; within a piece the words follow each other."""
        if self._skip:
            cut = min(self._skip, len(data))
            self._skip -= cut
            data = data[cut:]
        np, pieces = self._np, []
        data, done, is_doubtful = self._rest + data, 0, False
        while len(data) - done >= 4:
            words = np.frombuffer(data, "<u4", (len(data) - done) // 4, done)
            good = self._leading(words)
            before = self._turns_before(data, done)
            twice = self._twice(before, words[:good])
            if twice:
                begin, lag = twice
                pieces.append(Piece(words[:begin], is_break=is_doubtful))
                self._next = self._next + begin & 63
                self.duplicated_bytes += 4 * lag
                done += 4 * begin
                self._skip = max(0, done + 4 * lag - len(data))
                data, is_doubtful = data[:done] + data[done + 4 * lag :], True
                continue
            is_tail = good == len(words) and self._may_repeat(before, words)
            sure = max(0, good - (HELD if is_tail else DOUBTED))
            if sure:
                pieces.append(Piece(words[:sure], is_break=is_doubtful))
                done, is_doubtful = done + 4 * sure, False
                self._next = self._next + sure & 63
            if good == len(words):
                break
            at = done + 4 * (good - sure)
            repeated = self._repeated(data, at)
            if repeated:
                self.duplicated_bytes += repeated
                cut = min(repeated, len(data) - at)
                self._skip = repeated - cut
                data, is_doubtful = data[:at] + data[at + cut :], True
                continue
            start = self._found(data, done)
            if start < 0:  # decided when more is there; but what is no word at all is not kept for ever
                useless = len(data) - done - UNDECIDED
                if useless > 0:
                    self.discarded_bytes += useless
                    self._thrown += useless
                    done += useless
                break
            start += 4 * DOUBTED * (self._next >= 0 or start + self._thrown > done)
            first = int(np.frombuffer(data, "<u4", 1, start)[0] >> 18 & 63)
            missing = first - self._next & 63 if self._next >= 0 else 0
            thrown = self._thrown + start - done
            again = COUNTER - missing
            if self._next >= 0 and again <= FEW and self._ends_with(data, done, data[start : start + 4 * again]):
                self.duplicated_bytes += 4 * again
                missing, start = 0, start + 4 * again
                self._skip = max(0, start - len(data))
            self.resyncs += self._next >= 0
            self.discarded_bytes += start - done
            self._thrown = 0
            run = np.frombuffer(data[start : start + 4 * RUN], "<u4", max(0, min(RUN, (len(data) - start) // 4)))
            is_first = self._next < 0
            if len(run):
                self._next = int(run[0] >> 18 & 63)
            good = self._leading(run)
            pieces.append(Piece(run[:good], missing, thrown, True, is_first))
            done, is_doubtful = start + 4 * good, good == 0
            self._next = self._next + good & 63
        self._rest = data[done:]
        self._before = (self._before + data[:done])[-HISTORY:]
        return [p for p in pieces if len(p.words)]

    def _ends_with(self, data: bytes, done: int, piece: bytes) -> bool:
        """Whether `piece` is the last that was taken before `done`."""
        return (self._before[-len(piece) :] + data[:done])[-len(piece) :] == piece

    def _turns_before(self, data: bytes, done: int) -> Any:
        """The words of the last TURNS turns before data[done:]."""
        room = 4 * COUNTER * TURNS
        before = (self._before[-room:] + data[:done])[-room:]
        return self._np.frombuffer(before[len(before) % 4 :], "<u4")

    def _twice(self, before: Any, words: Any) -> tuple[int, int] | None:
        """Where in `words` a piece of whole turns of the counter begins a second time, and its length in words.

        The counter does not show such a piece. Equal words in which there is noise do: a turn that is the same as one
        of the last TURNS and quite unlike the others.
        """
        np = self._np
        if len(words) < COUNTER:
            return None
        every = np.concatenate([before, words])
        for at in range(len(before), len(every) - COUNTER + 1, COUNTER):
            turns = min(TURNS, at // COUNTER)
            if turns < 2:
                continue
            like = (every[at - COUNTER * turns : at].reshape(turns, COUNTER) == every[at : at + COUNTER]).sum(axis=1)
            same = int(like.argmax())
            if like[same] < COUNTER or (np.delete(like, same) > LIKE * COUNTER).any():
                continue
            readings = every[at : at + COUNTER] & 0x1FFFF
            if (readings[1:] == readings[:-1]).sum() > LIKE * COUNTER:  # a steady load that has just begun
                continue
            lag = (turns - same) * COUNTER
            reach = min(COUNTER, at - len(before), at - lag)
            differs = (every[at - reach : at] != every[at - reach - lag : at - lag]).nonzero()[0]
            begin = at - reach + (int(differs[-1]) + 1 if len(differs) else 0)
            return begin - len(before), lag
        return None

    def _may_repeat(self, before: Any, words: Any) -> bool:
        """Whether the last words are the same as some a whole number of turns before: a piece that comes twice?"""
        np = self._np
        if len(before) + len(words) < 3 * COUNTER + TAIL:
            return False
        every = np.concatenate([before, words])
        at = len(every) - TAIL
        turns = at // COUNTER
        first = at - COUNTER * turns
        earlier = every[first : first + COUNTER * turns].reshape(turns, COUNTER)[:, :TAIL]
        like = (earlier == every[at:]).sum(axis=1)
        return bool((like == TAIL).sum() == 1 and (like > LIKE * TAIL).sum() == 1)

    def _leading(self, words: Any) -> int:
        """How many words from the first on are what should come."""
        if self._next < 0 or len(words) == 0:
            return 0
        np = self._np
        # The counter of each word against that of the one before it, in place: this is done for every byte there is.
        counters = words >> 18 & 63
        wanted = (np.arange(self._next, self._next + len(words), dtype=np.uint32)) & 63
        wrong = (counters != wanted) | ((words >> 14 & 7) > 4)
        first = int(wrong.argmax())
        return first if wrong[first] else len(words)

    def _found(self, data: bytes, start: int) -> int:
        """Where, from `start` on, RUN words count on one by one; -1 if nowhere yet."""
        np = self._np
        n = len(data) - start - 3
        if n < 4 * RUN:
            return -1
        raw = np.frombuffer(data, np.uint8, len(data) - start, start)
        counter, scale = raw[2 : 2 + n] >> 2, (raw[1 : 1 + n] >> 6) | (raw[2 : 2 + n] & 1) << 2
        follows = ((counter[4:] - counter[:-4]) & 63 == 1) & (scale[4:] <= 4) & (scale[:-4] <= 4)
        # follows[b]: the word at byte b + 4 follows the one at b; wanted: RUN - 1 of them, 4 bytes apart.
        m = len(follows) - 4 * (RUN - 2)
        if m <= 0:
            return -1
        both = follows[:m].copy()
        for k in range(1, RUN - 1):
            both &= follows[4 * k : 4 * k + m]
        at = int(both.argmax())
        return start + at if both[at] else -1

    def _repeated(self, data: bytes, at: int) -> int:
        """Length (bytes) of the piece before `at` that comes a second time from there on; 0 if none does."""
        pattern = data[at + 4 : at + 4 + PATTERN]
        if len(pattern) < PATTERN:
            return 0
        history = self._before + data[: at + 4]
        found = history.rfind(pattern)
        if found < 0:
            return 0
        lag = len(history) - found  # all of it that is there must be the same: few words may be so by chance
        come = data[at + 4 : at + lag]
        return lag if history[found : found + len(come)] == come else 0
