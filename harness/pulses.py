"""The load pattern that ties a recording's clock to the device's: busy and idle turns before and after the job.

Lengths are unequal, so that the pattern matches itself at no other lag (its sliding correlation is below 0.3 everywhere
else), and the one before the job is not that after it. Every run stretches each length by a random share of its own:
the pulses of another run do not fit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from edgewatt.harness.api import Floats, Phase

PULSE = "pulse"  # the name of these phases
CHIP_S = 0.3
MARGIN = 2  # chips of idle before the first and after the last
STRETCH = 0.25
# Busy and idle lengths in chips. Found by search over all sequences of 15 chips: the largest sliding correlation of
# either pattern with the other, or with itself at another lag, is 0.26.
BEFORE = ((1, 2), (3, 1), (2, 2), (1, 1), (2, 0))
AFTER = ((3, 3), (4, 1), (1, 2), (1, 0))
ENDS = (BEFORE, AFTER)  # by `Phase.repeat`


def steps(end: int, run: str) -> list[tuple[float, int]]:
    """Seconds and workers of one end (0: before the job, 1: after it), as that run plays them; on all processors."""
    own = random.Random(f"{run} {end}")
    found = [(MARGIN * CHIP_S, 0)]
    for busy, idle in ENDS[end]:
        for chips, workers in ((busy, -1), (idle, 0)):
            if chips:
                found.append((round(chips * CHIP_S * own.uniform(1 - STRETCH, 1 + STRETCH), 4), workers))
    return [*found, (MARGIN * CHIP_S, 0)]


def ends(phases: Sequence[Phase]) -> list[Floats]:
    """Start and end (k, 2) of the pulses, an array for each end that was played."""
    played = sorted({p.repeat for p in phases if p.phase == PULSE})
    return [
        np.array(sorted((p.start_s, p.end_s) for p in phases if p.phase == PULSE and p.repeat == r)) for r in played
    ]
