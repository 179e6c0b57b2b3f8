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
    whole = f"sum of measured rails {' + '.join(added)}"
    total = Channel(
        whole, "energy", "J", "counter", f"{len(added)} rails of the processor and its memory", BOUNDARY,
        quantum=quantum_j * float(np.sqrt(len(added))), age_s=age_s,
    )  # fmt: skip
    known = [rail(n) for n in names]
    return (
        total,
        *(
            Channel(
                r.name, "energy", "J", "counter", f"{r.feeds}, by the rail {r.name}", r.boundary,
                quantum=quantum_j, parent=whole if r.computes else None, age_s=age_s,
            )
            for r in known
        ),
    )  # fmt: skip


def with_total(names: Sequence[str], joules: Floats) -> Floats:
    """Counters (n, names) with the sum of those that compute before them, (n, 1 + names); NaN where one is missing.

    Counters restart one by one, and what the others grew by may hide it. So the sum starts at 0 again whenever one of
    them falls.
    """
    part = joules[:, [k for k, n in enumerate(names) if rail(n).computes]]
    whole = np.isfinite(part).all(axis=1)
    summed = np.full(len(joules), np.nan)
    known = part[whole]
    if len(known):
        fell = np.concatenate([[False], (np.diff(known, axis=0) < 0).any(axis=1)])
        summed[whole] = since_start(known.sum(axis=1), fell)
    return np.column_stack([summed, joules])


def since_start(joules: Floats, fell: npt.NDArray[np.bool_]) -> Floats:
    """A counter (n,) from 0 at its first reading, and from 0 again at each that is the first of a new segment."""
    first = np.maximum.accumulate(np.where(fell, np.arange(len(joules)), 0))
    return np.asarray(joules - joules[first])
