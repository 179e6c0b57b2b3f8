"""The published-figures report: what papers and repositories print of a system, and what our runs have beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewatt.harness.api import Run, UsageError
from edgewatt.reports import charts, colours, numbers, output, published_data
from edgewatt.reports import published_rules as rules
from edgewatt.reports.charts import Chart, Key
from edgewatt.reports.published_rules import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgewatt.results.store import Store

FORMS = (*output.FORMS, ".csv")
_MOST_DRAWN = 60  # rows of a figure
_NAMES = {"mobilevlm": "MobileVLM", "imp": "Imp", "femtodet": "FemtoDet"}
NOTHING = "No run of ours has any of these figures: theirs stand alone."


def write(runs: Iterable[Run], path: Path, system: str = "") -> None:
    """The report of these runs (none: theirs alone), in the form the suffix of `path` names: .html, .pdf, .svg, .csv.

    `system`: mobilevlm, imp or femtodet; "": all. UsageError for another system or suffix, or a place that cannot be
    written to.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMS:
        named = repr(path.suffix) if path.suffix else "none"
        raise UsageError(f"report {path}: found suffix {named}, wanted .html, .pdf, .svg or .csv; rename the file")
    found = rules.comparisons(published_data.load(system), runs)
    if suffix == ".csv":
        content = table(found).encode()
    elif suffix == ".html":
        content = page(found, system)
    else:
        content = drawn(found, suffix, system)
    output.write(path, content)


def runs_of(store: Store, system: str = "") -> list[Run]:
    """The runs of a store that published figures can be set beside; samples are read only where tokens are counted."""
    wanted = (system,) if system else published_data.SYSTEMS
    rows = [r for r in store.list() if r.workload in wanted and not r.error]
    return [store.get(r.id, samples=r.workload != "femtodet") for r in rows]


def heading(system: str) -> str:
    """What the report is of."""
    return f"Published figures: {_NAMES[system]}" if system else "Published figures beside ours"


# ---------------------------------------------------------------------------------------------------------------------
# As a table

_OURS = ("run", "our_metric", "our_phase", "our_value", "our_uncertainty", "our_unit", "theirs_si", "ratio",
         "ratio_uncertainty", "comparable", "reasons")  # fmt: skip


def table(found: Sequence[Comparison]) -> str:
    """CSV: each figure as printed and in our words, its notes, and ours beside it."""
    file = io.StringIO()
    columns = ["key", *found[0].figure.printed, *_DERIVED, *_OURS] if found else []
    written = csv.DictWriter(file, columns, lineterminator="\n")
    written.writeheader()
    for c in found:
        written.writerow(_row(c))
    return file.getvalue()


_DERIVED = ("quantity", "model", "chip", "part", "engine", "scheme", "size_px", "prompt_tokens", "output_tokens",
            "definition", "note", "conflicts_with")  # fmt: skip


def _row(c: Comparison) -> dict[str, Any]:
    f, m = c.figure, c.result.measurement if c.result else None
    told: dict[str, Any] = {"key": f.key, **f.printed}
    told |= {k: getattr(f, k) for k in _DERIVED if hasattr(f, k)}
    told |= {"note": " ".join(n.name for n in f.notes), "conflicts_with": " ".join(f.conflicts_with)}
    told |= {"theirs_si": f"{f.value:.12g}", "reasons": c.why_none}
    if m is not None and c.run is not None:
        ratio = c.ratio or (None, None)
        told |= {
            "run": c.run.id,
            "our_metric": m.metric,
            "our_phase": m.phase,
            "our_value": m.value,
            "our_uncertainty": m.uncertainty,
            "our_unit": m.unit,
            "ratio": ratio[0],
            "ratio_uncertainty": ratio[1],
            "comparable": "yes" if c.is_comparable else "no",
            "reasons": "; ".join(f"{r.rule}: {r.detail}" for r in c.reasons),
        }
    return told


# ---------------------------------------------------------------------------------------------------------------------
# The page


@dataclass(frozen=True)
class Line:
    """One figure, ready for a template."""

    what: str
    printed_as: str
    theirs: str
    setup: str
    ours: str
    run: str
    ratio: str
    is_comparable: bool
    is_void: bool
    why: tuple[str, ...]
    source: str
    definition: str
    notes: tuple[tuple[str, str], ...]  # kind, name
    key: str
    conflicts: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """The figures of one model."""

    title: str
    is_ours: bool
    lines: tuple[Line, ...]
    beside: int  # of them, how many have a figure of ours beside them


def page(found: Sequence[Comparison], system: str = "") -> bytes:
    """The HTML page."""
    from edgewatt.reports import page as pages
    from edgewatt.reports.tradeoff import version

    beside = _drawable(found)
    figures = {"ratios": ratio_chart(beside)} if beside else {}
    groups = _groups(found)
    notes = published_data.notes_of(c.figure for c in found)
    return pages.render(
        "published.html",
        figures,
        kind="published figures",
        title=heading(system),
        subtitle=(_summary(found),),
        version=version(),
        groups=[g for g in groups if g.is_ours],
        context=[g for g in groups if not g.is_ours],
        rules=[(name, words) for name, words in rules.RULES.items()],
        notes=[(n, [c.figure.key for c in found if n in c.figure.notes]) for n in notes],
        nothing="" if any(c.result for c in found) else NOTHING,
        drawn_words=_drawn_words(beside),
        caption=_caption(found, beside),
    )


def _summary(found: Sequence[Comparison]) -> str:
    beside = [c for c in found if c.result is not None]
    comparable = sum(c.is_comparable for c in beside)
    runs = len({c.run.id for c in beside if c.run is not None})
    said = f"{len(found)} figures from {len({c.figure.printed['source'] for c in found})} sources"
    if not beside:
        return said
    number = f"{runs} run{'s' * (runs != 1)}"
    return f"{said}; {len(beside)} have one of ours beside them ({number}), {comparable} of these are comparable"


def _groups(found: Sequence[Comparison]) -> list[Group]:
    """By model, ours first; a model of ours under one heading, whichever way a source spells it."""

    def name(c: Comparison) -> tuple[bool, str]:
        f = c.figure
        return (not f.model, _model(f.model) if f.model else f"{f.printed['system']}: {f.printed['variant']}")

    ordered = sorted(found, key=name)
    made = []
    for (is_other, title), of_one in groupby(ordered, key=name):
        kept = list(of_one)
        lines = tuple(_line(c) for c in kept)
        made.append(Group(title, not is_other, lines, sum(c.result is not None for c in kept)))
    return made


def _model(model: str) -> str:
    workload, _, variant = model.partition("/")
    return f"{_NAMES[workload]} {variant}"


def _line(c: Comparison) -> Line:
    f = c.figure
    return Line(
        what=f.of.words,
        printed_as=f"{f.printed['metric']}, {f.printed['variant']}",
        theirs=rules.theirs_in_words(f),
        setup=rules.setup(f),
        ours=rules.ours_in_words(c),
        run=f"{c.run.device_name}, run {c.run.id}" if c.run else "",
        ratio=rules.ratio_in_words(c),
        is_comparable=c.is_comparable,
        is_void=c.result is not None and not c.result.is_valid,
        why=tuple(r.detail for r in c.reasons) if c.result else (c.why_none,),
        source=f.printed["source"],
        definition=f.definition,
        notes=tuple((n.kind, n.name) for n in f.notes),
        key=f.key,
        conflicts=f.conflicts_with,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The figure: ratios, a row each, on a logarithmic axis


def _drawable(found: Sequence[Comparison]) -> list[Comparison]:
    """Those with a ratio that can be drawn, the comparable ones first."""
    kept = [c for c in found if c.ratio is not None and c.ratio[0] > 0]
    return sorted(kept, key=lambda c: (not c.is_comparable, len(c.reasons)))[:_MOST_DRAWN]


def _name(c: Comparison) -> str:
    where = c.figure.chip.partition(",")[0] or c.figure.printed["backend"] or "not stated"
    return f"{c.figure.of.words}: {_model(c.figure.model)}, {where} [{c.figure.key}]"


def _caption(found: Sequence[Comparison], beside: Sequence[Comparison]) -> str:
    every = sum(c.ratio is not None and c.ratio[0] > 0 for c in found)
    left = f" Only {len(beside)} of {every} are drawn." if every > len(beside) else ""
    return (
        "Ours over theirs; bars hold our 95 % interval and the rounding of theirs. Hollow diamonds must not be "
        f"compared: the table says why.{left}"
    )


def _drawn_words(beside: Sequence[Comparison]) -> str:
    """The figure in words, for who cannot see it."""
    return "Ours over theirs. " + "; ".join(
        f"{_name(c)}: {rules.ratio_in_words(c)}{'' if c.is_comparable else ', not comparable'}" for c in beside
    )


def _ends(c: Comparison) -> tuple[float, float, float]:
    value, error = c.ratio or (1.0, None)
    low = value - (error or 0.0)
    return max(low, value / 100), value, value + (error or 0.0)


def ratio_chart(beside: Sequence[Comparison]) -> Chart:
    """Comparable ones filled, the others hollow."""
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource, NumeralTickFormatter
    from bokeh.models.annotations import LabelSet

    n = len(beside)
    ends = [_ends(c) for c in beside]
    low, high = min(e[0] for e in ends) / 1.6, max(e[2] for e in ends) * 1.6
    made = charts.chart("Ours / theirs", "", height=90 + 36 * n, x_axis_type="log",
                        x_range=(min(low, 0.7), max(high, 1.4)), y_range=(n - 0.5, -0.8))  # fmt: skip
    made.min_border_left = 8
    made.yaxis.visible = False
    names = ColumnDataSource({"y": list(range(n)), "x": [4] * n, "name": [charts.literal(_name(c)) for c in beside]})
    # Above its row, not at an axis: on a narrow screen an axis of such names would leave no room.
    made.add_layout(LabelSet(source=names, x="x", x_units="screen", y="y", y_offset=6, text="name",
                             text_font_size="12px", text_font=value(charts.FONT)))  # fmt: skip
    made.xaxis.formatter = NumeralTickFormatter(format="0.[000]")
    made.ygrid.visible = False
    made.line([1, 1], [-0.8, n - 0.5], line_color=colours.GREY, line_dash="dashed", name="equal")
    keys = [Key("equal", colours.GREY, "equal", "dashed")]
    for is_good, words, colour in ((True, "comparable", colours.BLUE), (False, "not comparable", colours.VERMILLION)):
        rows = [k for k, c in enumerate(beside) if c.is_comparable == is_good]
        if not rows:
            continue
        data = ColumnDataSource(
            {
                "y": rows,
                "low": [ends[k][0] for k in rows],
                "x": [ends[k][1] for k in rows],
                "high": [ends[k][2] for k in rows],
                "name": [charts.literal(_name(beside[k])) for k in rows],
                "ours": [rules.ours_in_words(beside[k]) for k in rows],
                "theirs": [rules.theirs_in_words(beside[k].figure) for k in rows],
            }
        )
        made.segment(source=data, x0="low", x1="high", y0="y", y1="y", line_color=colour, line_width=1.5, name=words)
        dots = made.scatter(
            source=data,
            x="x",
            y="y",
            size=9,
            line_color=colour,
            line_width=2,
            fill_color=colour,
            fill_alpha=float(is_good),
            marker="circle" if is_good else "diamond",
            name=words,
        )
        charts.hover(made, [("figure", "@name"), ("ours", "@ours"), ("theirs", "@theirs")], renderers=[dots])
        keys.append(Key(words, colour, words, "dot" if is_good else "ring"))
    return Chart(made, tuple(keys))


# ---------------------------------------------------------------------------------------------------------------------
# On paper


def drawn(found: Sequence[Comparison], form: str, system: str = "") -> bytes:
    """The ratios; where there is none of ours, the published decoding speeds (FemtoDet: AP50) alone."""
    from edgewatt.reports import paper

    title, beside = heading(system), _drawable(found)
    with paper.style():
        rows = beside or _alone(found)
        sheet = paper.sheet(paper.PAGE_IN, 1.1 + 0.17 * len(rows))
        sheet.set_layout_engine("constrained", w_pad=0.25)  # names are a little wider in a file than when laid out
        axes = sheet.subplots()
        sheet.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        if beside:
            _draw_ratios(axes, beside)
        else:
            _draw_alone(axes, rows)
        sheet.supxlabel(_summary(found) + ("" if beside else f". {NOTHING}"), fontsize=6.5)
        return paper.encoded(sheet, form, title)


def _draw_ratios(axes: Axes, beside: Sequence[Comparison]) -> None:
    seen: set[str] = set()
    for k, c in enumerate(beside):
        low, value, high = _ends(c)
        words = "comparable" if c.is_comparable else "not comparable"
        colour = colours.BLUE if c.is_comparable else colours.VERMILLION
        axes.errorbar(value, k, xerr=[[value - low], [high - value]], color=colour, elinewidth=0.8, markersize=4,
                      fmt="o" if c.is_comparable else "D", mfc=colour if c.is_comparable else "none",
                      label=None if words in seen else words)  # fmt: skip
        seen.add(words)
    axes.axvline(1, color=colours.GREY, linestyle="--", linewidth=0.8)
    _rows(axes, [_name(c) for c in beside], "Ours / theirs")
    axes.legend(loc="best")


def _alone(found: Sequence[Comparison]) -> list[Comparison]:
    """What is drawn where nothing of ours is there: one quantity of models of ours."""
    for quantity in ("decode_tokens_per_s", "ap50"):
        rows = [c for c in found if c.figure.quantity == quantity and c.figure.model]
        if rows:
            return rows[:_MOST_DRAWN]
    return []


def _draw_alone(axes: Axes, rows: Sequence[Comparison]) -> None:
    values = [c.figure.value for c in rows]
    axes.plot(values, range(len(rows)), "o", color=colours.BLUE, markersize=4)
    for k, c in enumerate(rows):
        axes.annotate(rules.theirs_in_words(c.figure), (values[k], k), textcoords="offset points", xytext=(5, -2.5),
                      fontsize=6)  # fmt: skip
    axes.margins(x=0.2)
    of = rows[0].figure.of
    label = numbers.titled(of.words, "" if of.unit == "1" else of.unit)
    _rows(axes, [f"{_name(c)}, {c.figure.scheme or 'precision not stated'}" for c in rows], label)


def _rows(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
