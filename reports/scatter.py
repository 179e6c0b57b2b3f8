"""Runs against each other: energy, latency and quality, with error bars both ways and the Pareto front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewatt.harness.api import Floats, Run
from edgewatt.reports import charts, colours, conclusions, metrics, numbers
from edgewatt.reports.charts import Chart, Key
from edgewatt.reports.conclusions import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_VARIED_FIRST = ("variant", "model", "weights", "size", "engine", "provider", "threads")
_NOT_A_NAME = ("seed",)  # tells repeated runs apart, not what they are of


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: its device and workload, and the parameters in which the runs differ."""
    keys = list(dict.fromkeys(k for r in runs for k in r.spec))
    varied = [k for k in keys if k not in _NOT_A_NAME and len({repr(r.spec.get(k)) for r in runs}) > 1]
    varied.sort(key=lambda k: _VARIED_FIRST.index(k) if k in _VARIED_FIRST else len(_VARIED_FIRST))
    named = []
    for r in runs:
        words = [r.device_name] if len({x.device_name for x in runs}) > 1 or not varied else []
        words += [r.workload] if len({x.workload for x in runs}) > 1 or not (words or varied) else []
        named.append(" · ".join(words + [_varied(k, r.spec.get(k)) for k in varied[:4]]))
    twice = {n for n, count in Counter(named).items() if count > 1}
    return [f"{n} · {r.id[-8:]}" if n in twice else n for n, r in zip(named, runs, strict=True)]


def _varied(key: str, value: object) -> str:
    """A parameter in a name: a word speaks for itself, a number needs its key."""
    return value if isinstance(value, str) else f"{key} {value}"


@dataclass(frozen=True)
class Point:
    """One run in a figure: values and half-widths in SI units; `is_simulated` ones are drawn hollow."""

    number: int  # its run's place in the list of runs, from 1
    label: str
    x: float
    x_error: float
    y: float
    y_error: float
    is_simulated: bool
    is_best: bool = False  # on the Pareto front


@dataclass(frozen=True)
class Plane:
    """Two metrics against each other. `left_out` says which runs have no point, and why."""

    title: str
    x_label: str
    x_unit: str
    y_label: str
    y_unit: str
    points: tuple[Point, ...]
    left_out: tuple[str, ...]
    front_words: str
    y_is_good_high: bool = False


def front(cost: Floats, other_cost: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which points (n,) no other one beats: none is at most as costly both ways and cheaper in one."""
    order = np.lexsort((other_cost, cost))
    best = np.zeros(len(cost), bool)
    # In order of the first cost a point is on the front where its other cost is below all before it (or equal to the
    # last one on the front, the same point twice).
    lowest, at = np.inf, np.nan
    for k in order:
        if other_cost[k] < lowest or (other_cost[k] == lowest and cost[k] == at):
            best[k], lowest, at = True, other_cost[k], cost[k]
    return best


def planes(runs: Sequence[Run]) -> list[Plane]:
    """The figures that at least two runs have points in: energy by latency, energy of a token by its time, and quality
    by energy or by latency."""
    names = [f"{k}: {name}" for k, name in enumerate(labels(runs), 1)]
    boundary = common_boundary(runs)
    latency = [next((r for k in conclusions.LATENCY if (r := conclusions.best(run, k))), None) for run in runs]
    energy = [_energy_within(run, boundary) for run in runs]
    where = f" ({boundary})" if boundary else ""
    joules = f"Energy per inference{where}"
    found = [_plane(runs, names, "Energy by latency", "Latency, median", latency, joules, energy)]
    boundary = common_boundary(runs, conclusions.ENERGY_TOKEN)
    where = f" ({boundary})" if boundary else ""
    each = [conclusions.best(run, "tpot_s") for run in runs]
    token = [_energy_within(run, boundary, conclusions.ENERGY_TOKEN) for run in runs]
    title = "Energy of a token by its time"
    found.append(_plane(runs, names, title, "Time per token decoded, median", each, f"Energy per token{where}", token))
    for metric in conclusions.QUALITY:
        quality, what = [conclusions.best(run, metric) for run in runs], metrics.label(metric)
        found.append(_plane(runs, names, f"{what} by energy", joules, energy, what, quality, good_high=True))
        found.append(_plane(runs, names, f"{what} by latency", "Latency, median", latency, what, quality, True))
    return [p for p in found if len(p.points) > 1]


def common_boundary(runs: Sequence[Run], metric: str = conclusions.ENERGY) -> str:
    """The boundary within which most runs have a valid energy, the widest of those; joules of two are not compared."""
    count = Counter(b for run in runs for b in {r.measurement.boundary for r in _energies(run, metric)})
    return min(count, key=lambda b: (-count[b], conclusions.breadth(b)), default="")


def _energies(run: Run, metric: str) -> list[Result]:
    """One of each meter: tokens have two, decoded in the items and in a loop."""
    found: dict[str, Result] = {}
    for r in conclusions.whole(run, metric):
        if r.is_valid:
            found.setdefault(r.measurement.meter, r)
    return list(found.values())


def _energy_within(run: Run, boundary: str, metric: str = conclusions.ENERGY) -> Result | None:
    """Of several meters within the boundary the one that measured most: parts of a whole have less."""
    found = [r for r in _energies(run, metric) if r.measurement.boundary == boundary]
    return max(found, key=lambda r: r.measurement.value, default=None)


def _plane(
    runs: Sequence[Run],
    names: Sequence[str],
    title: str,
    x_label: str,
    xs: Sequence[Result | None],
    y_label: str,
    ys: Sequence[Result | None],
    good_high: bool = False,
) -> Plane:
    points, left_out = [], []
    for k, (run, name, x, y) in enumerate(zip(runs, names, xs, ys, strict=True), 1):
        absent = [_absent(run, what, r) for what, r in ((x_label, x), (y_label, y))]
        if x is None or y is None or any(absent):
            left_out.append(f"{name} ({'; '.join(dict.fromkeys(a for a in absent if a))})")
            continue
        a, b = x.measurement, y.measurement
        marked = "simulated" in (*x.marks, *y.marks)
        points.append(Point(k, name, a.value, a.uncertainty or 0.0, b.value, b.uncertainty or 0.0, marked))
    if points:
        sign = -1.0 if good_high else 1.0
        best = front(np.array([p.x for p in points]), sign * np.array([p.y for p in points]))
        points = [replace(p, is_best=bool(k)) for p, k in zip(points, best, strict=True)]
    units = [next((metrics.unit(r.measurement) for r in rs if r), "") for rs in (xs, ys)]
    words = "no other run shown is better in one and at least as good in the other"
    return Plane(title, x_label, units[0], y_label, units[1], tuple(points), tuple(left_out), words, good_high)


def _absent(run: Run, what: str, r: Result | None) -> str:
    """Why a run has no such value; "" when it has."""
    name = what if metrics.group_of(what) == "Quality" else what.split(",")[0].split(" (")[0].lower()
    if r is not None:
        return "" if r.is_valid else f"{name} is void: {r.void_reason}"
    if run.error:
        return f"ended badly: {run.error.kind.replace('_', ' ')}"
    if what.startswith("Energy"):
        return conclusions.no_joules(run) or f"no joules within the same boundary as the others: {what}"
    return f"no {name}"


# ---------------------------------------------------------------------------------------------------------------------
# On a page and on paper


def scaled(plane: Plane) -> tuple[float, str, float, str]:
    """Factors and labels of both axes."""
    x_factor, x_unit = numbers.axis(max(p.x for p in plane.points), plane.x_unit)
    y_factor, y_unit = numbers.axis(max(p.y for p in plane.points), plane.y_unit)
    return x_factor, numbers.titled(plane.x_label, x_unit), y_factor, numbers.titled(plane.y_label, y_unit)


def crowds(plane: Plane) -> list[tuple[float, float, str]]:
    """Where to write the numbers of the points, in SI units: points that lie on each other share one text."""
    wide = max(p.x for p in plane.points) - min(p.x for p in plane.points) or 1.0
    high = max(p.y for p in plane.points) - min(p.y for p in plane.points) or 1.0
    found: list[list[Point]] = []
    for p in plane.points:
        near = (c for c in found if abs(c[0].x - p.x) < 0.03 * wide and abs(c[0].y - p.y) < 0.04 * high)
        crowd = next(near, None)
        if crowd is None:
            found.append([p])
        else:
            crowd.append(p)
    return [(max(p.x for p in c), max(p.y for p in c), ", ".join(str(p.number) for p in c)) for c in found]


def _range(values: Sequence[tuple[float, float]], factor: float) -> tuple[float, float]:
    """An axis that holds all values with their bars."""
    low, high = min(v - e for v, e in values) * factor, max(v + e for v, e in values) * factor
    pad = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def plane_chart(plane: Plane) -> Chart:
    """The points with error bars; those on the front are joined, simulated ones hollow."""
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource
    from bokeh.models.annotations import LabelSet, TeeHead, Whisker

    fx, x_label, fy, y_label = scaled(plane)
    p = plane.points
    made = charts.chart(
        x_label,
        y_label,
        height=400,
        x_range=_range([(k.x, k.x_error) for k in p], fx),
        y_range=_range([(k.y, k.y_error) for k in p], fy),
    )
    best = sorted((k for k in p if k.is_best), key=lambda k: k.x)
    corners = {"x": [k.x * fx for k in best], "y": [k.y * fy for k in best]}
    made.step(source=corners, x="x", y="y", mode="after", color=colours.VERMILLION, line_width=1.5, line_dash="dashed",
              name="front")  # fmt: skip
    keys = [Key("Pareto front", colours.VERMILLION, "front", "dashed")]
    for is_best, is_simulated in ((False, True), (False, False), (True, True), (True, False)):
        chosen = [k for k in p if (k.is_best, k.is_simulated) == (is_best, is_simulated)]
        if not chosen:
            continue
        colour = colours.VERMILLION if is_best else colours.BLUE
        words = ("on the front" if is_best else "beaten by another run") + (", simulated" if is_simulated else "")
        data = ColumnDataSource(
            {
                "x": [k.x * fx for k in chosen],
                "y": [k.y * fy for k in chosen],
                "x0": [(k.x - k.x_error) * fx for k in chosen],
                "x1": [(k.x + k.x_error) * fx for k in chosen],
                "y0": [(k.y - k.y_error) * fy for k in chosen],
                "y1": [(k.y + k.y_error) * fy for k in chosen],
                "label": [charts.literal(k.label + (" (simulated)" if k.is_simulated else "")) for k in chosen],
                "x_text": [numbers.format_quantity(k.x, k.x_error or None, plane.x_unit) for k in chosen],
                "y_text": [numbers.format_quantity(k.y, k.y_error or None, plane.y_unit) for k in chosen],
            }
        )
        head = TeeHead(size=6, line_color=colour)
        ends: dict[str, Any] = {
            "source": data,
            "line_color": colour,
            "name": words,
            "upper_head": head,
            "lower_head": head,
        }
        made.add_layout(Whisker(dimension="height", base="x", lower="y0", upper="y1", **ends))
        made.add_layout(Whisker(dimension="width", base="y", lower="x0", upper="x1", **ends))
        dots = made.scatter(source=data, x="x", y="y", size=11 if is_best else 8, line_color=colour, line_width=2,
                            fill_color=colour, fill_alpha=0 if is_simulated else 1, name=words,
                            marker="diamond" if is_simulated else "circle")  # fmt: skip
        rows = [("Run", "@label"), (plane.x_label, "@x_text"), (plane.y_label, "@y_text")]
        charts.hover(made, rows, renderers=[dots])
        keys.append(Key(words, colour, words, "ring" if is_simulated else "dot"))
    texts = crowds(plane)
    source = ColumnDataSource(
        {"x": [c[0] * fx for c in texts], "y": [c[1] * fy for c in texts], "text": [c[2] for c in texts]}
    )
    made.add_layout(LabelSet(source=source, x="x", y="y", text="text", x_offset=9, y_offset=6,
                             text_font_size="13px", text_font=value(charts.FONT)))  # fmt: skip
    return Chart(made, tuple(keys))


def draw_plane(axes: Axes, plane: Plane) -> None:
    """The same on paper."""
    fx, x_label, fy, y_label = scaled(plane)
    best = sorted((k for k in plane.points if k.is_best), key=lambda k: k.x)
    axes.step([k.x * fx for k in best], [k.y * fy for k in best], where="post", color=colours.VERMILLION,
              linestyle="--", linewidth=0.8, label="Pareto front")  # fmt: skip
    seen: set[str] = set()
    for k in plane.points:
        colour = colours.VERMILLION if k.is_best else colours.BLUE
        words = ("on the front" if k.is_best else "beaten by another run") + (", simulated" if k.is_simulated else "")
        axes.errorbar(k.x * fx, k.y * fy, xerr=k.x_error * fx, yerr=k.y_error * fy, color=colour, elinewidth=0.8,
                      fmt="D" if k.is_simulated else "o", markersize=4.5, mfc="none" if k.is_simulated else colour,
                      label=None if words in seen else words)  # fmt: skip
        seen.add(words)
    for x, y, text in crowds(plane):
        axes.annotate(text, (x * fx, y * fy), textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.set_xlim(*_range([(k.x, k.x_error) for k in plane.points], fx))
    axes.set_ylim(*_range([(k.y, k.y_error) for k in plane.points], fy))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(plane.title)
    axes.legend(loc="best")
