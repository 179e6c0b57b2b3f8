"""Power rails of a phone: what each feeds, which of them make the figure, and their sum.

Names change from one generation of phones to the next, so they are told by pattern and kept as the maker spells them
(rail lists of the public Pixel kernels, and of the scripts of LISA, ANGLE and Oboe that read them). A sum of rails is
never the device's power: every rail that is not fitted with a meter is missing from it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import Channel, Floats

BOUNDARY = "rails"
"""Of the rails that compute: their sum is the figure."""

OTHERS = "other rails"
"""Of rails that nobody knows; shown by themselves, in no sum with others."""

LONGEST_NAME = 64  # characters; what a phone prints is not trusted to be short

_COMPUTE = (
    (r"_CPU(CL)?2(_M)?$", "the big CPU cores"),
    (r"_CPU(CL)?1(_M)?$", "the middle CPU cores"),
    (r"_CPU((CL)?0)?$", "the little CPU cores"),
    (r"_CPU_M$", "the CPU cores' memories"),
    (r"_(G3D|GPU)$", "the GPU"),
    (r"_TPU(_M)?$", "the edge TPU"),
    (r"_MIF$", "the memory interface"),
    (r"_VDD_INT(_M)?$", "the interconnect"),
    (r"_(VDD2H_MEM|VDDQ_MEM|VDD2L)$", "the DRAM"),
    (r"_AOC(_RET)?$", "the always-on processor"),
)
_DISTURBANCES = (
    (r"^VSYS_PWR_DISP", "display"),
    (r"^VSYS_PWR_(MODEM|RFFE|WLAN|MMWAVE|UWB|GNSS|NFC)", "radios"),
)

WHOLE = "sum of measured rails"
MOST_W = 100.0  # no rail of a phone gives more, nor does its battery


@dataclass(frozen=True)
class Rail:
    """A rail's raw name, what it feeds, and where its joules are counted: BOUNDARY, "display", "radios" or OTHERS."""

    name: str
    feeds: str
    boundary: str

    @property
    def computes(self) -> bool:
        """Whether it feeds what runs a model."""
        return self.boundary == BOUNDARY


def rail(name: str) -> Rail:
    """What is known of a rail by its name."""
    for pattern, feeds in _COMPUTE:
        if re.search(pattern, name):
            return Rail(name, feeds, BOUNDARY)
    for pattern, what in _DISTURBANCES:
        if re.search(pattern, name):
            return Rail(name, f"the {what}", what)
    return Rail(name, "something unknown", OTHERS)


def unmapped(names: Sequence[str]) -> list[str]:
    """The rails that nobody knows."""
    return [n for n in names if rail(n).boundary == OTHERS]


def compute(names: Sequence[str]) -> list[str]:
    """The rails of which the sum is the figure."""
    return [n for n in names if rail(n).computes]


def channels(names: Sequence[str], *, quantum_j: float, age_s: float | None) -> tuple[Channel, ...]:
    """The sum of the rails that compute, then a counter of joules for every rail.

    One reading stamps many rails, and one load moves them all: what is not known of the ends of a window goes the same
    way in each. So the sum is a channel of its own, whose error bar is made of its own readings, and its rails are the
    split of it.
    """
    added = compute(names)
    count = "1 rail" if len(added) == 1 else f"{len(added)} rails"
    covers = f"{count} of the processor and its memory: {' + '.join(added)}"
    total = Channel(
        WHOLE, "energy", "J", "counter", covers, BOUNDARY,
        quantum=quantum_j * float(np.sqrt(len(added))), age_s=age_s,
    )  # fmt: skip
    known = [rail(n) for n in names]
    return (
        total,
        *(
            Channel(
                r.name, "energy", "J", "counter", f"{r.feeds}, by the rail {r.name}", r.boundary,
                quantum=quantum_j, parent=WHOLE if r.computes else None, age_s=age_s,
            )
            for r in known
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Counters:
    """Counters read together: stamps (n,) in seconds, joules (n, names), and where they restarted (n,), bool."""

    names: tuple[str, ...]
    t_s: Floats
    joules: Floats
    fell: npt.NDArray[np.bool_]


def merged(parts: Sequence[Counters]) -> tuple[Floats, Floats]:
    """Parts that were read at moments of their own as one table: stamps (m,), and joules (m, 1 + names).

    A part's rails are NaN at the stamps of others. The sum comes first (`_sum`).
    """
    t_s = np.unique(np.concatenate([p.t_s for p in parts])) if parts else np.empty(0)
    values = np.full((len(t_s), 1 + sum(len(p.names) for p in parts)), np.nan)
    first = 1
    for p in parts:
        values[np.searchsorted(t_s, p.t_s), first : first + len(p.names)] = p.joules
        first += len(p.names)
    values[:, 0] = _sum(parts, t_s)
    return t_s, values


def _sum(parts: Sequence[Counters], t_s: Floats) -> Floats:
    """Joules (m,) of all rails that compute, at the stamps of the first part that has one; elsewhere NaN.

    The other parts are read a moment later and are interpolated to it, but never across a restart. Counters restart one
    by one, and what the others grow by may hide it: so the sum starts at 0 again whenever one of them does.
    """
    added = [p for p in parts if compute(p.names)]
    summed = np.full(len(t_s), np.nan)
    if not added:
        return summed
    at = added[0].t_s
    whole, segment, total = np.ones(len(at), bool), np.zeros(len(at)), np.zeros(len(at))
    for p in added:
        here = p.joules[:, [k for k, n in enumerate(p.names) if rail(n).computes]].sum(axis=1)
        known = np.isfinite(here)
        t, here, own = p.t_s[known], here[known], np.cumsum(p.fell)[known]
        if len(t) < 2:
            return summed
        i = np.clip(np.searchsorted(t, at, side="right") - 1, 0, len(t) - 2)
        is_same = (own[i] == own[i + 1]) | (at == t[i]) | (at == t[i + 1])
        whole &= (at >= t[0]) & (at <= t[-1]) & is_same & ((p is not added[0]) | np.isin(at, t))
        total += np.interp(at, t, here)
        segment += np.where(at == t[i + 1], own[i + 1], own[i])
    good = np.flatnonzero(whole)
    if len(good):
        is_new = np.diff(segment[good], prepend=segment[good][:1]) != 0
        first = np.maximum.accumulate(np.where(is_new, np.arange(len(good)), 0))
        summed[np.searchsorted(t_s, at[good])] = total[good] - total[good][first]
    return summed


def counted(names: Sequence[str], t_s: Floats, joules: Floats, resets: npt.NDArray[np.bool_] | None = None) -> Counters:
    """Counters (n, names) at t_s (n,), restarts found; `resets` are those known otherwise.

    One that falls has restarted. One that grows faster than any phone draws (MOST_W) has leapt, whatever it stands for:
    it is counted from 0 from there on, as after a restart, for the leap is no energy.
    """
    rise = np.diff(joules, axis=0, prepend=joules[:1])
    leapt = rise > MOST_W * np.maximum(np.diff(t_s, prepend=t_s[:1]), 1e-3)[:, None]
    if leapt.any():
        begins = leapt | (rise < 0)
        first = np.maximum.accumulate(np.where(begins, np.arange(len(joules))[:, None], 0), axis=0)
        columns = np.arange(joules.shape[1])[None, :]
        joules = joules - np.where(leapt[first, columns], joules[first, columns], 0.0)
    fell = falls(joules)
    return Counters(tuple(names), t_s, joules, fell if resets is None else fell | resets)


def falls(counters: Floats) -> npt.NDArray[np.bool_]:
    """Where a counter of (n, k) is below what it was at the row before, (n,)."""
    return np.concatenate([[False], (np.diff(counters, axis=0) < 0).any(axis=1)])[: len(counters)]
