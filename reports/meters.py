"""Two meters of one run side by side: both powers, one against the other, and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgewatt.harness import agreement
from edgewatt.harness.agreement import BlandAltman, Pair
from edgewatt.harness.analysis_meter import Source
from edgewatt.harness.analysis_view import Findings, on_device_clock
from edgewatt.harness.api import Floats, Measurement, Run
from edgewatt.harness.energy_samples import GapError
from edgewatt.reports import charts, colours, metrics, numbers, output, thinning, views
from edgewatt.reports.charts import Chart, Key

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TIME = "Time since the run began (s)"
_MOST = 20_000  # bins a power is drawn of
_A, _B, _LINE = colours.BLUE, colours.VERMILLION, colours.GREY
NONE = "This run has no meter in the device's supply line beside another one, so nothing can be compared."


@dataclass(frozen=True)
class Comparison:
    """A pair as it is shown; powers as (time, W) in bins no finer than each meter's own readings."""

    name: str
    a: str
    b: str
    power_a: tuple[Floats, Floats]
    power_b: tuple[Floats, Floats]
    agreement: BlandAltman | None
    rows: tuple[tuple[str, str, str], ...]  # what, value, how

    @property
    def words(self) -> str:
        """What the Bland-Altman plot says."""
        g = self.agreement
        if g is None:
            return "Fewer than three stretches of time that both meters saw whole: no agreement can be drawn."
        bias, low, high = (numbers.format_quantity(w, None, "W") for w in (g.bias_w, g.low_w, g.high_w))
        return (
            f"Mean powers of {len(g.mean_w)} stretches of {numbers.format_quantity(g.bin_s, None, 's')} of the whole "
            f"run, {self.a} - {self.b}: bias {bias}, 95 % limits of agreement {low} to {high} (bias ± 1.96 standard "
            "deviations, Bland and Altman 1986)."
        )


def comparisons(run: Run) -> list[Comparison]:
    """Every pair of the run, made anew from its raw samples."""
    clock = run.phases[0].clock if run.phases else ""
    moved = [(t, on_device_clock(t, run, Findings())) for t in run.traces]
    tied = [m for t, m in moved if not clock or m[0].clock == clock or t.facts.get("clock_of") == "harness"]
    found = []
    for pair in agreement.pairs(tied):
        try:
            found.append(_comparison(run, pair))
        except GapError:  # never read at the same time: the analysis says so in a warning
            continue
    return found


def _comparison(run: Run, pair: Pair) -> Comparison:
    origin_s = run.phases[0].start_s if run.phases else 0.0
    start_s, end_s = agreement.common_s(pair)
    powers = [_power(s, start_s, end_s, origin_s) for s in (pair.a, pair.b)]
    a, b = (f"{s.meter} ({s.boundary or 'boundary unknown'})" for s in (pair.a, pair.b))
    return Comparison(pair.name, a, b, powers[0], powers[1], agreement.bland_altman(pair), tuple(_rows(run, pair)))


def _power(source: Source, start_s: float, end_s: float, origin_s: float) -> tuple[Floats, Floats]:
    n = int(np.clip((end_s - start_s) / source.update.period_s, 2, _MOST))
    edges = np.linspace(start_s, end_s, n + 1)
    return (edges[1:] + edges[:-1]) / 2 - origin_s, agreement.power(source, edges)


def _rows(run: Run, pair: Pair) -> list[tuple[str, str, str]]:
    wanted = [("energy_j", s.meter) for s in (pair.a, pair.b)]
    wanted += [("meter_ratio", pair.name), ("meter_lag_s", pair.name)]
    rows = []
    for metric, meter in wanted:
        m = next((m for m in run.measurements if (m.metric, m.meter, m.phase) == (metric, meter, "window")), None)
        what = metrics.label(metric) + (f" of the windows, {meter}" if metric == "energy_j" else "")
        rows.append((what, _value(m), m.method if m else _why(run, pair, metric)))
    return rows


def _value(m: Measurement | None) -> str:
    return "unknown" if m is None else numbers.format_quantity(m.value, m.uncertainty, m.unit)


def _why(run: Run, pair: Pair, metric: str) -> str:
    about = [w for w in run.warnings if w.startswith(f"{pair.name}: ")]
    told = [w for w in about if ("lag" in w) == (metric == "meter_lag_s")] or about
    return "; ".join(told) or "no figure was given"


# ---------------------------------------------------------------------------------------------------------------------
# The page


def write(run: Run, path: Path) -> None:
    """The report of one run, in the form the suffix of `path` names: .html, .pdf or .svg; UsageError as `output`."""
    form = output.form(path)
    output.write(path, page(run) if form == ".html" else drawn(run, form))


def page(run: Run) -> bytes:
    """The HTML page."""
    from edgewatt.reports import page as pages
    from edgewatt.reports.tradeoff import version

    figures: dict[str, Chart] = {}
    found = comparisons(run)
    for k, c in enumerate(found):
        figures[f"power{k}"] = _over_time(c)
        if c.agreement is not None:
            figures[f"scatter{k}"] = _against(c, c.agreement)
            figures[f"agreement{k}"] = agreement_chart(c, c.agreement)
    one = views.run_view(run)
    return pages.render(
        "meters.html", figures, kind="two meters", title=one.label, subtitle=one.subtitle, version=version(), one=one,
        comparisons=found, nothing=NONE,
    )  # fmt: skip


def _over_time(c: Comparison) -> Chart:
    made = charts.chart(_TIME, "Power (W)", height=300)
    for name, (x, y), colour in (("a", c.power_a, _A), ("b", c.power_b, _B)):
        points = thinning.drawn(x, y)
        made.line(points.x, points.y, line_color=colour, line_width=1.4, name=name, line_alpha=0.85)
    return Chart(made, (Key(c.a, _A, "a"), Key(c.b, _B, "b")))


def _against(c: Comparison, g: BlandAltman) -> Chart:
    x, y = g.mean_w - g.difference_w / 2, g.mean_w + g.difference_w / 2
    made = charts.chart(f"{c.b} (W)", f"{c.a} (W)", height=320)
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    made.line(ends, ends, line_color=_LINE, line_dash="dashed", name="equal")
    made.scatter(x, y, size=6, fill_color=_A, line_color=None, fill_alpha=0.6)
    return Chart(made, (Key("equal powers", _LINE, "equal", "dashed"),))


def agreement_chart(c: Comparison, g: BlandAltman) -> Chart:
    """Differences over means (Bland and Altman)."""
    made = charts.chart("Mean of both (W)", "Difference (W)", height=320)
    ends = [float(g.mean_w.min()), float(g.mean_w.max())]
    for level, dash, name in (
        (g.bias_w, "solid", "bias"),
        (g.low_w, "dashed", "limits"),
        (g.high_w, "dashed", "limits"),
    ):
        made.line(ends, [level, level], line_color=_B, line_dash=dash, line_width=1.4, name=name)
    made.line(ends, [0.0, 0.0], line_color=_LINE, line_width=1)
    dots = made.scatter(g.mean_w, g.difference_w, size=6, fill_color=_A, line_color=None, fill_alpha=0.6)
    charts.hover(made, [("mean", "@x{0.000} W"), ("difference", "@y{0.0000} W")], renderers=[dots])
    return Chart(made, (Key("bias", _B, "bias"), Key("95 % limits of agreement", _B, "limits", "dashed")))


# ---------------------------------------------------------------------------------------------------------------------
# On paper


def drawn(run: Run, form: str) -> bytes:
    """The figure for a paper: a row for each pair."""
    from edgewatt.reports import paper

    found: Sequence[Comparison] = comparisons(run)
    title = f"{views.title(run)}, run {run.id}"
    with paper.style():
        sheet = paper.sheet(paper.PAGE_IN, 0.6 + 4.2 * max(len(found), 1))
        sheet.suptitle(title, fontsize=9, fontweight="bold")
        if not found:
            paper.note(sheet.subplots(), NONE)
        for row, c in zip(sheet.subfigures(max(len(found), 1), 1, squeeze=False)[:, 0] if found else (), found,
                          strict=True):  # fmt: skip
            axes = row.subplot_mosaic([["power", "power"], ["scatter", "agreement"]])
            _draw(axes, c)
            said = [f"{what}: {value}" for what, value, _ in c.rows]
            row.supxlabel("\n".join(said), fontsize=6.5)
        return paper.encoded(sheet, form, title)


def _draw(axes: dict[str, Axes], c: Comparison) -> None:
    power = axes["power"]
    for (x, y), colour, label in ((c.power_a, _A, c.a), (c.power_b, _B, c.b)):
        points = thinning.drawn(x, y)
        power.plot(points.x, points.y, color=colour, linewidth=0.7, label=label, alpha=0.85)
    power.set_xlabel(_TIME)
    power.set_ylabel("Power (W)")
    power.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    g = c.agreement
    if g is None:
        for name in ("scatter", "agreement"):
            axes[name].set_axis_off()
        axes["agreement"].text(0.5, 0.5, c.words, ha="center", wrap=True, transform=axes["agreement"].transAxes)
        return
    x, y = g.mean_w - g.difference_w / 2, g.mean_w + g.difference_w / 2
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axes["scatter"].plot(ends, ends, "--", color=_LINE, linewidth=0.8)
    axes["scatter"].plot(x, y, ".", color=_A, markersize=3)
    axes["scatter"].set_xlabel(f"{c.b} (W)")
    axes["scatter"].set_ylabel(f"{c.a} (W)")
    axes["agreement"].plot(g.mean_w, g.difference_w, ".", color=_A, markersize=3)
    axes["agreement"].axhline(g.bias_w, color=_B, linewidth=0.9)
    for level in (g.low_w, g.high_w):
        axes["agreement"].axhline(level, color=_B, linewidth=0.9, linestyle="--")
    axes["agreement"].set_xlabel("Mean of both (W)")
    axes["agreement"].set_ylabel("Difference (W)")


__all__ = ["Comparison", "agreement_chart", "comparisons", "drawn", "page", "write"]
