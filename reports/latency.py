"""How long each item took: its distribution, and how it moved over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgewatt.harness.analysis_view import WINDOW, Findings, view
from edgewatt.harness.api import Floats, Ints, Run
from edgewatt.reports import charts, colours, numbers
from edgewatt.reports.charts import Chart, Key
from edgewatt.reports.thinning import Drawn, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTILES = (0.5, 0.9, 0.99)
_MEDIAN_WORDS = "median of each fiftieth of a window"
_TAIL = 0.995  # a histogram ends where this share of the items is; what lies beyond is counted in words
_SPARSE = 200  # so few items are drawn as dots that can be seen one by one


@dataclass(frozen=True)
class Latencies:
    """Whole items of the steady windows, in order of time; arrays (n,)."""

    start_s: Floats
    latency_s: Floats
    repeat: Ints

    def __len__(self) -> int:
        return len(self.latency_s)


def latencies(run: Run) -> Latencies:
    """The items that the latency figures of a run are made of, each from its first phase's start to its last's end."""
    seen = view(run, Findings())
    whole = seen.whole_items(WINDOW)
    repeat = np.array([p.repeat for p in seen.named(WINDOW)], np.int64)
    return Latencies(whole.start_s, whole.duration_s, repeat[whole.interval])


def warmup_items(run: Run) -> int:
    """Items that ran before a steady window and are in no figure."""
    return sum(p.items for p in run.phases if p.phase == "warmup")


@dataclass(frozen=True)
class Histogram:
    """Counts (k,) between edges (k + 1,), both in the unit of the axis; `beyond` items lie right of the last edge."""

    edges: Floats
    counts: Ints
    beyond: int
    slowest: float
    unit: str
    factor: float

    @property
    def words(self) -> str:
        """What the drawing does not show; "" when it shows all."""
        if not self.beyond:
            return ""
        what = "1 item lies" if self.beyond == 1 else f"{self.beyond} items lie"
        return f"{what} beyond the right edge; the slowest took {numbers.format_quantity(self.slowest, None, 's')}."


def histogram(found: Latencies) -> Histogram:
    """The distribution of at least one item; its bins by Freedman and Diaconis, at least 10 and at most 80."""
    values = found.latency_s
    low, quarter, three_quarters, tail = np.quantile(values, [0, 0.25, 0.75, _TAIL])
    high = max(float(tail), float(np.quantile(values, 0.5)) * 1.05)
    if high >= values.max():
        high = float(values.max())
    if high <= low:
        low, high = low * 0.95, low * 1.05 or 1.0
    width = 2 * (three_quarters - quarter) / len(values) ** (1 / 3)
    bins = int(np.clip((high - low) / width if width > 0 else 10, 10, 80))
    counts, edges = np.histogram(values, bins, (low, high))
    factor, unit = numbers.axis(high, "s")
    beyond = int((values > high).sum())
    return Histogram(edges * factor, counts.astype(np.int64), beyond, float(values.max()), unit, factor)


def ecdf(found: Latencies, points: int = 1000) -> tuple[Floats, Floats]:
    """Latencies (k,) in seconds, and the share (k,) of items at most that slow; every item where there are few."""
    values = np.sort(found.latency_s)
    share = np.arange(1, len(values) + 1) / len(values)
    if len(values) <= points:
        return values, share
    # Closer together in the tail, where single items matter.
    at = np.unique(len(values) - np.geomspace(1, len(values), points).astype(np.int64))
    at = np.unique(np.concatenate([at, np.linspace(0, len(values) - 1, points).astype(np.int64)]))
    return values[at], share[at]


def over_time(found: Latencies, origin_s: float) -> tuple[Drawn, Drawn]:
    """Each item's latency at its start, seconds from `origin_s` on; and the median of each fiftieth of a window."""
    t = found.start_s - origin_s
    at, middle = [], []
    for r in np.unique(found.repeat):
        rows = np.flatnonzero(found.repeat == r)
        for block in np.array_split(rows, min(50, max(1, len(rows) // 5))):
            at.append(float(np.median(t[block])))
            middle.append(float(np.median(found.latency_s[block])))
        at.append(at[-1])
        middle.append(np.nan)  # no line from one repeat to the next
    line = Drawn(np.array(at), np.array(middle), len(at), len(at))
    return drawn(t, found.latency_s), line


# ---------------------------------------------------------------------------------------------------------------------
# On a page


def histogram_chart(found: Latencies) -> Chart:
    """The histogram with its quantiles marked."""
    h = histogram(found)
    made = charts.chart(numbers.titled("Latency of an item", h.unit), "Items", height=260)
    made.y_range.start = 0  # type: ignore[attr-defined]
    data = {"left": h.edges[:-1], "right": h.edges[1:], "count": h.counts}
    bars = made.quad(source=data, left="left", right="right", top="count", bottom=0, fill_color=colours.BLUE,
                     fill_alpha=0.8, line_color=None)  # fmt: skip
    charts.hover(made, [("Latency", f"@left{{0.00}} to @right{{0.00}} {h.unit}"), ("Items", "@count")],
                 renderers=[bars])  # fmt: skip
    keys = []
    for k, q in enumerate(_QUANTILES):
        at = float(np.quantile(found.latency_s, q))
        words, colour = f"p{q * 100:g}: {numbers.format_quantity(at, None, 's')}", colours.series(k + 1)
        if at * h.factor <= h.edges[-1]:
            made.vspan(x=[at * h.factor], line_color=colour, line_width=2, line_dash="dashed", name=words)
            keys.append(Key(words, colour, words, "dashed"))
    return Chart(made, tuple(keys))


def ecdf_chart(found: Sequence[Latencies], labels: Sequence[str]) -> Chart:
    """The share of items that took at most so long, one line for each run."""
    tops = [float(np.quantile(f.latency_s, _TAIL)) for f in found]
    factor, unit = numbers.axis(max(tops), "s")
    made = charts.chart(numbers.titled("Latency of an item", unit), "Share of items (%)", height=260)
    low = min(float(f.latency_s.min()) for f in found)
    made.x_range.start, made.x_range.end = low * 0.97 * factor, max(tops) * 1.05 * factor  # type: ignore[attr-defined]
    lines, keys = [], []
    for k, (f, label) in enumerate(zip(found, labels, strict=True)):
        x, share = ecdf(f)
        data = {"x": np.float32(x * factor), "y": np.float32(share * 100)}
        style = "line" if k < len(colours.SERIES) else "dashed"
        dash, name = ("solid" if style == "line" else "dashed"), charts.literal(label)
        lines.append(made.step(source=data, x="x", y="y", mode="after", line_width=2, color=colours.series(k),
                               line_dash=dash, name=name))  # fmt: skip
        keys.append(Key(label, colours.series(k), name, style))
    several = len(found) > 1
    charts.hover(made, [("Run", "$name")] * several + [("Latency", f"@x{{0.00}} {unit}"),
                 ("At most that slow", "@y{0.0} %")], renderers=lines, mode="mouse")  # fmt: skip
    return Chart(made, tuple(keys) if several else ())


def drift_chart(found: Latencies, origin_s: float) -> tuple[Chart, Drawn]:
    """Latency over time, and how much of it is drawn."""
    points, line = over_time(found, origin_s)
    factor, unit = numbers.axis(float(np.quantile(found.latency_s, _TAIL)), "s")
    made = charts.chart("Time since the run began (s)", numbers.titled("Latency", unit), height=260)
    data = {"x": np.float32(points.x), "y": np.float32(points.y * factor)}
    is_sparse = len(points.x) <= _SPARSE
    dots = made.scatter(source=data, x="x", y="y", size=8 if is_sparse else 3, color=colours.BLUE,
                        alpha=0.8 if is_sparse else 0.4, line_color=None, name="items")  # fmt: skip
    made.line(line.x, line.y * factor, color=colours.VERMILLION, line_width=2, name="medians")
    charts.hover(made, [("Time", "@x{0.000} s"), ("Latency", f"@y{{0.00}} {unit}")], renderers=[dots])
    keys = (Key("an item", colours.BLUE, "items", "dot"), Key(_MEDIAN_WORDS, colours.VERMILLION, "medians"))
    return Chart(made, keys), points


# ---------------------------------------------------------------------------------------------------------------------
# On paper


def draw_histogram(axes: Axes, found: Latencies) -> None:
    """The histogram with its quantiles marked."""
    h = histogram(found)
    axes.stairs(h.counts, h.edges, fill=True, color=colours.BLUE, alpha=0.8)
    for k, q in enumerate(_QUANTILES):
        at = float(np.quantile(found.latency_s, q)) * h.factor
        if at <= h.edges[-1]:
            axes.axvline(at, color=colours.series(k + 1), linestyle="--", label=f"p{q * 100:g}")
    axes.set_xlabel(numbers.titled("Latency of an item", h.unit))
    axes.set_ylabel("Items")
    axes.legend(loc="upper right")


def draw_ecdf(axes: Axes, found: Sequence[Latencies], labels: Sequence[str]) -> None:
    """The share of items that took at most so long, one line for each run."""
    tops = [float(np.quantile(f.latency_s, _TAIL)) for f in found]
    factor, unit = numbers.axis(max(tops), "s")
    for k, (f, label) in enumerate(zip(found, labels, strict=True)):
        x, share = ecdf(f)
        style = "-" if k < len(colours.SERIES) else "--"
        axes.step(x * factor, share * 100, where="post", color=colours.series(k), linestyle=style, label=label)
    low = min(float(f.latency_s.min()) for f in found)
    axes.set_xlim(low * 0.97 * factor, max(tops) * 1.05 * factor)
    axes.set_ylim(0, 101)
    axes.set_xlabel(numbers.titled("Latency of an item", unit))
    axes.set_ylabel("Share of items (%)")
    if len(found) > 1:
        axes.legend(loc="lower right")


def draw_drift(axes: Axes, found: Latencies, origin_s: float) -> None:
    """Latency over time."""
    points, line = over_time(found, origin_s)
    factor, unit = numbers.axis(float(np.quantile(found.latency_s, _TAIL)), "s")
    is_sparse = len(points.x) <= _SPARSE
    size, alpha = (6.0, 0.8) if is_sparse else (1.5, 0.35)
    axes.plot(points.x, points.y * factor, ".", markersize=size, alpha=alpha, color=colours.BLUE, rasterized=True)
    axes.plot(line.x, line.y * factor, color=colours.VERMILLION, label=_MEDIAN_WORDS)
    axes.set_xlabel("Time since the run began (s)")
    axes.set_ylabel(numbers.titled("Latency", unit))
    axes.legend(loc="upper right")
