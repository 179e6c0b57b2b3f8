"""Figures for a paper, drawn by matplotlib: searchable text, embedded fonts, the same bytes from the same run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_IN, PAGE_IN = 3.5, 7.16  # widths of one and of two columns, IEEE author guide

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws the same
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "errorbar.capsize": 2.0,
    "pdf.fonttype": 42,  # TrueType: the fonts are embedded and the text can be searched
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "edgewatt",  # ids that do not change from one drawing to the next
    "text.parse_math": False,  # a device's name may hold a dollar sign
    "text.usetex": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Figures drawn within look alike; nothing of it stays behind."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        for key, value in _STYLE.items():
            mpl.rcParams[key] = value  # type: ignore[index]
        yield


def sheet(width_in: float, height_in: float) -> Figure:
    """An empty figure of that size, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def encoded(made: Figure, form: str, title: str) -> bytes:
    """The file of a figure: ".pdf" or ".svg", without dates, so that it changes only when the run does."""
    # The layout's solver ends within a rounding error of the same place each time: made the very same here.
    made.draw_without_rendering()
    made.set_layout_engine("none")
    for axes in made.axes:
        axes.set_position([round(v, 6) for v in axes.get_position().bounds])  # type: ignore[arg-type]
    file = io.BytesIO()
    metadata: dict[str, Any] = {"Title": title, "Creator": "edgewatt"}
    metadata |= {"CreationDate": None} if form == ".pdf" else {"Date": None}
    made.savefig(file, format=form[1:], metadata=metadata)
    return file.getvalue()


def note(axes: Axes, text: str) -> None:
    """Words in the middle of a figure that has nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, wrap=True)
