"""95 % intervals of scores, for the choice of questions: what other questions of the same kind might have given.

They are those of a benchmark that was asked whole, too: its questions are a sample of all that could be asked. Where
some of its questions were drawn, no allowance is made for what share they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from edgewatt.harness.api import Floats

Interval = tuple[float, float]

REPLICATES = 1000  # of the bootstrap
_AT_ONCE = 100
_Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def wilson(share: float, n: int) -> Interval:
    """Wilson's score interval of a share of `n` trials (Wilson, JASA 22 (1927) 209); never wider than 0..1."""
    if n < 1:
        raise ValueError("no trials, no interval")
    z2 = _Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def bootstrap(statistic: Callable[[Floats], Floats], strata: Sequence[Hashable], seed: int) -> Interval | None:
    """The percentile interval over bootstrap samples of groups, drawn within each stratum.

    `strata[k]` is the stratum of group k. `statistic` takes how often each group was drawn, (samples, groups), and
    returns its value for each sample, NaN where there is none. None where a stratum has a single group: nothing then
    tells how others would have fared.
    """
    members: dict[Hashable, list[int]] = {}
    for k, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(k)
    if not members or min(map(len, members.values())) < 2:
        return None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(REPLICATES // _AT_ONCE):
        weights = np.zeros((_AT_ONCE, len(strata)))
        for indices in members.values():
            n = len(indices)
            draws = rng.integers(0, n, (_AT_ONCE, n)) + n * np.arange(_AT_ONCE)[:, None]
            weights[:, indices] = np.bincount(draws.ravel(), minlength=_AT_ONCE * n).reshape(_AT_ONCE, n)
        values.append(statistic(weights))
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
