"""Numbers with error bars from repeated values: quantiles, ratios of sums, means.

Everything is seeded: the same values give the same bar. Half-widths are those of 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import Floats, Ints

RESAMPLES = 1000
MOST_RANKS = 1000  # that a bootstrap of groups tells apart
MOST_DRAWN = 10_000_000  # indices of a bootstrap held at once


def quantile(values: npt.ArrayLike, q: float, seed: int) -> tuple[float, float]:
    """The q-quantile of `values` (n,) and the half-width of its 95 % bootstrap interval, in their unit.

    A bootstrap sample's q-quantile is one of the sorted values, and its rank follows from how many of n uniform
    draws fall below: the i-th smallest of n uniforms is Beta(i, n + 1 - i) distributed. So ranks are drawn, not
    samples, and 10^5 values cost one sort (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).
    Values that depend on each other (a slow minute) carry less than the interval says.
    NaN where there is no value; with one value the half-width is NaN, since nothing is known of the spread.
    """
    x = _finite(values)
    n = len(x)
    if n == 0:
        return float("nan"), float("nan")
    value = float(np.quantile(x, q))
    if n == 1:
        return value, float("nan")
    x = np.sort(x)
    # np.quantile interpolates linearly at the fractional rank q (n - 1); so does each bootstrap sample.
    rank = q * (n - 1)
    low = int(np.floor(rank))
    share = rank - low
    random = np.random.default_rng(seed)
    u = random.beta(low + 1, n - low, RESAMPLES)
    draws = x[np.minimum((u * n).astype(np.int64), n - 1)]
    if share > 0:
        # The next order statistic, given this one: the smallest of the n - low - 1 uniforms that lie above it.
        u = u + (1 - u) * random.beta(1, n - low - 1, RESAMPLES)
        draws = (1 - share) * draws + share * x[np.minimum((u * n).astype(np.int64), n - 1)]
    return value, _half_width(draws)


def ratio_of_sums(numerators: npt.ArrayLike, denominators: npt.ArrayLike, seed: int) -> tuple[float, float]:
    """sum(numerators) / sum(denominators) over repeats (n,), and its 95 % half-width by bootstrap over repeats.

    A mean of ratios would weigh a short repeat like a long one. Few repeats make a bootstrap too sure of itself:
    its spread is sqrt((n - 1) / n) of the true one, and its quantiles are the normal's; both are corrected, the
    second by Student's t. With one repeat the half-width is NaN.
    """
    a, b = np.asarray(numerators, float), np.asarray(denominators, float)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(
            f"numerators {a.shape} and denominators {b.shape}, wanted two equal rows of at least one value"
        )
    n = len(a)
    ratio = float(a.sum() / b.sum())
    if n == 1:
        return ratio, float("nan")
    random = np.random.default_rng(seed)
    draws = np.concatenate([a[pick].sum(axis=1) / b[pick].sum(axis=1) for pick in _picks(random, n, RESAMPLES * 2)])
    # The interval's half-width, from the draws' spread: with n = 3 the draws take ten values, too few for quantiles.
    return ratio, float(student(n - 1) * np.std(draws) * np.sqrt(n / (n - 1)))


def quantiles_of_groups(
    values: npt.ArrayLike, groups: npt.ArrayLike, qs: Sequence[float], seed: int
) -> list[tuple[float, float]]:
    """As `quantile`, for each of `qs`, of values (n,) that come in `groups` (n,) and resemble each other in one.

    Such as the steps of an item: whole groups are drawn, and few of them are corrected for as in `ratio_of_sums`.
    Of many values the draws are known to a thousandth of their ranks. NaN for the half-width where there is one group.
    """
    x, of = np.asarray(values, float), np.asarray(groups)
    order = np.argsort(x, kind="stable")
    x = x[order]
    found = [float(np.quantile(x, q)) if len(x) else float("nan") for q in qs]
    named, of = np.unique(of[order], return_inverse=True)
    k = len(named)
    if k < 2:
        return [(value, float("nan")) for value in found]
    # How many values of each group lie between one rank and the next, and the value half-way between the two.
    ranks = np.unique(np.linspace(0, len(x), min(len(x), MOST_RANKS) + 1).astype(np.int64))
    place = np.searchsorted(ranks, np.arange(len(x)), side="right") - 1
    bins = len(ranks) - 1
    counts = np.bincount(of * bins + place, minlength=k * bins).reshape(k, bins).astype(float)
    middle = x[(ranks[:-1] + ranks[1:] - 1) // 2]
    draws: list[Floats] = []
    for pick in _picks(np.random.default_rng(seed), k, RESAMPLES):
        rows = len(pick)
        times = np.bincount((pick + k * np.arange(rows)[:, None]).ravel(), minlength=rows * k).reshape(rows, k)
        below = np.cumsum(times @ counts, axis=1)
        draws.append(np.array([middle[(below < q * below[:, -1:]).sum(axis=1)] for q in qs]))
    widths = student(k - 1) * np.std(np.concatenate(draws, axis=1), axis=1) * np.sqrt(k / (k - 1))
    return list(zip(found, map(float, widths), strict=True))


def _picks(random: np.random.Generator, n: int, rows: int) -> Iterator[Ints]:
    """Draws (k, n) with replacement out of n, `rows` in all, some at a time where they would fill the memory."""
    at_once = max(1, MOST_DRAWN // n)
    for first in range(0, rows, at_once):
        yield random.integers(0, n, (min(at_once, rows - first), n))


def mean_t(values: npt.ArrayLike) -> tuple[float, float]:
    """Mean of `values` (n,) and its 95 % half-width by Student's t; NaN for what cannot be known."""
    x = _finite(values)
    n = len(x)
    if n == 0:
        return float("nan"), float("nan")
    if n == 1:
        return float(x[0]), float("nan")
    return float(np.mean(x)), float(student(n - 1) * np.std(x, ddof=1) / np.sqrt(n))


def _finite(values: npt.ArrayLike) -> Floats:
    x = np.asarray(values, float).ravel()
    return np.asarray(x[np.isfinite(x)])


def _half_width(draws: Floats) -> float:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float((high - low) / 2)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # here: scipy takes its time to import, and the command line imports this

    return float(stdtrit(freedom, 0.975))
