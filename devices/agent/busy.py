"""One worker of `pulse`: busy between the times it is told, and gone with whoever started it.

    python busy.py        one line "BEGIN_NS END_NS" in, the stamps of when it really began and stopped out

A process of its own: threads of one Python share one processor. A script that imports nothing of ours.
"""

import os
import signal
import sys
import time

PARENT_LOOKS = 20_000  # readings of the clock between two looks whether the parent is there, a few milliseconds

if hasattr(time, "CLOCK_BOOTTIME"):

    def now_ns() -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
else:
    now_ns = time.monotonic_ns


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked to end is the agent, which ends this
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    os.write(1, b"ready\n")
    for line in sys.stdin.buffer:  # its end: the agent is gone
        begin, end = map(int, line.split())
        started = now = now_ns()
        while now < begin:
            started = now = now_ns()
        looks = 0
        while now < end:
            now = now_ns()
            looks += 1
            if looks % PARENT_LOOKS == 0 and os.getppid() != parent:
                return
        os.write(1, b"%d %d\n" % (started, now))


if __name__ == "__main__":
    main()
