"""The trace report: power, temperature, clocks and load of one run over time, its phases shaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewatt.harness.api import Run
from edgewatt.reports import charts, colours, conclusions, numbers, output, views
from edgewatt.reports.charts import Chart, Key
from edgewatt.reports.timeline import Panel, Series, Span, Timeline, merged, timeline

if TYPE_CHECKING:
    from bokeh.plotting import figure
    from matplotlib.axes import Axes

_TIME = "Time since the run began (s)"
_TINT = 0.13  # opacity of the phases behind the lines
_EVENT = "#C62828"


def write(run: Run, path: Path) -> None:
    """The report of one run, in the form the suffix of `path` names: .html, .pdf or .svg.

    UsageError for another suffix, or a place that cannot be written to.
    """
    form = output.form(path)
    output.write(path, page(run) if form == ".html" else drawn(run, form))


def caption(panel: Panel) -> str:
    """What a reader must know of a panel's lines."""
    said = []
    counters = [s.label for s in panel.series if s.is_difference]
    if counters:
        which = "" if len(counters) == len(panel.series) else f" ({', '.join(counters)})"
        what = f"An energy counter{which} is" if len(counters) == 1 else f"Energy counters{which} are"
        said.append(f"{what} shown as power: the mean between two fresh readings, drawn as steps.")
    if any(s.idle is not None for s in panel.series):
        said.append("Dotted lines: the measured idle level of the channel in the same colour.")
    thin = [s for s in panel.series if s.points.shown < s.points.total]
    counts = {f"{s.points.shown} of {s.points.total} points" for s in thin}
    if not thin:
        said.append("Every point is drawn.")
    elif len(counts) == 1 and len(thin) == len(panel.series):
        each = " of each line" if len(thin) > 1 else ""
        said.append(f"Drawn are {counts.pop()}{each}, the extremes among them.")
    else:
        named = "; ".join(f"{s.label} {s.points.shown} of {s.points.total}" for s in thin)
        said.append(f"Some lines are drawn with fewer points than they have, the extremes among them: {named}.")
    return " ".join(said)


# ---------------------------------------------------------------------------------------------------------------------
# The page


def page(run: Run) -> bytes:
    """The HTML page."""
    from edgewatt.reports import page as pages
    from edgewatt.reports.tradeoff import version

    found = timeline(run)
    figures: dict[str, Chart] = {}
    if found.panels:
        strip = _strip(found)
        figures["phases"] = Chart(strip)
        for k, panel in enumerate(found.panels):
            figures[f"panel{k}"] = _panel(found, panel, strip.x_range)
    one = views.run_view(run)
    panels = [
        {"name": f"panel{k}", "title": p.title, "unit": p.unit, "caption": caption(p), "words": _described(p)}
        for k, p in enumerate(found.panels)
    ]
    return pages.render(
        "trace.html",
        figures,
        kind="trace report",
        title=one.label,
        subtitle=one.subtitle,
        version=version(),
        one=one,
        panels=panels,
        flag_tags=_tags(run),
        has_energy=any(p.quantity == "power" for p in found.panels),
        no_joules=conclusions.no_joules(run),
        phase_keys=[Key(n, _colour(n, found), f"phase {n}", "shade") for n in found.names],
        phase_words=", ".join(found.names) or "none",
        phases=[
            {"name": p.name, "start_s": p.start_s, "end_s": p.end_s, "words": p.words, "colour": _colour(p.name, found)}
            for p in found.phases
        ],
        events=merged(found.events),
        notes=[*found.notes],
    )


def _tags(run: Run) -> list[tuple[str, bool]]:
    """Each flag once, with the meter it speaks of, and whether it voids anything."""
    found: dict[str, bool] = {}
    for f in run.flags:
        name = f"{f.flag.replace('_', ' ')}: {f.meter}" if f.meter else f.flag.replace("_", " ")
        found[name] = found.get(name, False) or bool(f.voids)
    return list(found.items())


def _colour(name: str, found: Timeline) -> str:
    return colours.phase(name, found.names)


def _described(panel: Panel) -> str:
    """A panel in words, for who cannot see it."""
    said = []
    for s in panel.series:
        y = s.points.y[np.isfinite(s.points.y)]
        if len(y):
            said.append(f"{s.label} from {y.min():.3g} to {y.max():.3g} {panel.unit}")
    return f"{panel.title} over time: {'; '.join(said)}"


def _base(y: str, height: int, **options: Any) -> figure:
    made = charts.chart(_TIME, y, height=height, **options)
    from bokeh.models import BoxZoomTool, CrosshairTool
    from bokeh.models.annotations import Span as Line

    zoom = next(t for t in made.tools if isinstance(t, BoxZoomTool))
    zoom.dimensions = "width"
    made.toolbar.active_drag = zoom
    made.min_border_left = 72  # room for any tick, so that all panels begin at the same place
    made.add_tools(CrosshairTool(overlay=Line(dimension="height", line_width=1, line_color=colours.GREY)))
    return made


def _strip(found: Timeline) -> figure:
    """The phases as a row of blocks with their names under the pointer."""
    from bokeh.models import FixedTicker

    margin = 0.01 * (found.end_s - found.start_s)
    limits = (found.start_s - margin, found.end_s + margin)
    made = _base(" ", 92, x_range=limits, y_range=(0, 1))
    made.yaxis.ticker = FixedTicker(ticks=[])
    made.ygrid.visible = False
    blocks = []
    for name in found.names:
        spans = [p for p in found.phases if p.name == name]
        data = {
            "left": [p.start_s for p in spans],
            "right": [p.end_s for p in spans],
            "words": [charts.literal(p.words) for p in spans],
        }
        blocks.append(made.quad(source=data, left="left", right="right", top=1, bottom=0, name=f"phase {name}",
                                fill_color=_colour(name, found), line_color=None, fill_alpha=0.75))  # fmt: skip
    charts.hover(made, [("Phase", "@words")], renderers=blocks)
    return made


def _panel(found: Timeline, panel: Panel, x_range: Any) -> Chart:
    """One quantity, with the phases behind it and gaps and restarts marked."""
    from bokeh.models.annotations import BoxAnnotation
    from bokeh.models.annotations import Span as Line

    made = _base(numbers.titled(panel.title, panel.unit), 300 if panel.quantity == "power" else 200, x_range=x_range)
    if panel.quantity in ("power", "utilisation"):
        made.y_range.start = 0  # type: ignore[attr-defined]
    for p in found.phases:
        shade = BoxAnnotation(left=p.start_s, right=p.end_s, fill_color=_colour(p.name, found), fill_alpha=_TINT,
                              line_color=None, level="underlay", name=f"phase {p.name}")  # fmt: skip
        made.add_layout(shade)
    lines: list[Any] = []
    keys = []
    for s in panel.series:
        name = charts.literal(s.label)
        style = "dashed" if s.dashed else "line"
        data = {"x": np.float32(s.points.x), "y": np.float32(s.points.y)}
        look: dict[str, Any] = {"color": s.colour, "line_width": 1.3, "line_dash": "dashed" if s.dashed else "solid"}
        if s.is_step:
            lines.append(made.step(source=data, x="x", y="y", name=name, mode="before", **look))
        else:
            lines.append(made.line(source=data, x="x", y="y", name=name, **look))
        if s.idle is not None:
            made.add_layout(Line(location=s.idle, dimension="width", line_color=s.colour, line_dash="dotted",
                                 line_width=1.5, name=name))  # fmt: skip
        keys.append(Key(_key(s), s.colour, name, style))
    for e in _of_panel(found, panel):
        made.add_layout(BoxAnnotation(left=e.start_s, right=e.end_s, fill_color=_EVENT, fill_alpha=0.25, name=e.name,
                                      line_color=_EVENT, line_alpha=0.6, hatch_pattern="/", hatch_color=_EVENT,
                                      hatch_alpha=0.5))  # fmt: skip
        if e.name not in {k.name for k in keys}:
            keys.append(Key("no reading" if e.name == "gap" else "counter restarted", _EVENT, e.name, "fill"))
    charts.hover(made, [("Channel", "$name"), ("Time", "@x{0.000} s"), (panel.title, f"@y{{0.000}} {panel.unit}")],
                 renderers=lines, mode="mouse", line_policy="nearest")  # fmt: skip
    return Chart(made, tuple(keys))


def _key(s: Series) -> str:
    return f"{s.label} ({s.covers})" if s.covers and s.covers not in s.label else s.label


def _of_panel(found: Timeline, panel: Panel) -> Sequence[Span]:
    """Gaps and restarts of the panel's own channels."""
    labels = {s.label for s in panel.series}
    return merged([e for e in found.events if e.words.rsplit(": ", 1)[0] in labels])


# ---------------------------------------------------------------------------------------------------------------------
# On paper


def drawn(run: Run, form: str) -> bytes:
    """The figure for a paper: one panel below the other on one time axis."""
    from matplotlib.patches import Patch

    from edgewatt.reports import paper

    found = timeline(run)
    title = f"{views.title(run)}, run {run.id}"
    marks = [f.flag.replace("_", " ") for f in run.flags if f.flag in ("simulated", "synthetic_weights")]
    n = max(len(found.panels), 1)
    with paper.style():
        sheet = paper.sheet(paper.PAGE_IN, 0.9 + 1.45 * n)
        ratios = [1.5 if p.quantity == "power" else 1.0 for p in found.panels] or [1.0]
        axes = sheet.subplots(n, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
        sheet.suptitle(f"{title}{' · ' if marks else ''}{' · '.join(marks)}", fontsize=9, fontweight="bold")
        if not found.panels:
            paper.note(axes[0], "This run left no samples to draw.")
        for panel, place in zip(found.panels, axes, strict=False):
            _draw_panel(place, found, panel)
        if not any(p.quantity == "power" for p in found.panels):
            sheet.text(0.01, 0.002, conclusions.no_joules(run), fontsize=7)
        if found.panels:
            axes[-1].set_xlabel(_TIME)
            axes[-1].set_xlim(found.start_s, found.end_s)
            patches = [Patch(color=_colour(k, found), alpha=0.35, label=k) for k in found.names]
            sheet.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 8) or 1)
        return paper.encoded(sheet, form, title)


def _draw_panel(axes: Axes, found: Timeline, panel: Panel) -> None:
    for p in found.phases:
        axes.axvspan(p.start_s, p.end_s, color=_colour(p.name, found), alpha=0.18, linewidth=0)
    for s in panel.series:
        style = "--" if s.dashed else "-"
        where = {"drawstyle": "steps-pre"} if s.is_step else {}
        axes.plot(s.points.x, s.points.y, style, color=s.colour, linewidth=0.6, label=s.label, **where)  # type: ignore[arg-type]
        if s.idle is not None:
            axes.axhline(s.idle, color=s.colour, linestyle=":", linewidth=0.9)
    for e in _of_panel(found, panel):
        axes.axvspan(e.start_s, e.end_s, facecolor="none", edgecolor=_EVENT, hatch="////", linewidth=0.4)
    if panel.quantity in ("power", "utilisation"):
        axes.set_ylim(bottom=0)
    axes.set_ylabel(numbers.titled(panel.title, panel.unit))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=6, borderaxespad=0.2)
