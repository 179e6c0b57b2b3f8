"""The trade-off report as a figure for a paper: .pdf or .svg."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgewatt.harness.api import Run
from edgewatt.reports import breakdown, conclusions, latency, paper, scatter, views
from edgewatt.reports.conclusions import Tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def drawn(runs: Sequence[Run], form: str, title: str) -> bytes:
    """One run: its figures, latencies, phases and uncertainty. Several: the runs against each other."""
    with paper.style():
        sheet = _one(runs[0], title) if len(runs) == 1 else _many(runs, title)
        return paper.encoded(sheet, form, title)


# ---------------------------------------------------------------------------------------------------------------------
# One run


def _one(run: Run, title: str) -> Figure:
    found = latency.latencies(run)
    phases, budgets = breakdown.by_phase(run), breakdown.budgets(run)
    rows = ["card"] + ["latency"] * bool(len(found)) + ["drift"] * bool(len(found))
    rows += ["phases"] * bool(phases) + ["budgets"] * bool(budgets)
    heights = {"card": _card_height(run), "latency": 1.9, "drift": 1.5, "phases": 0.7 + 0.42 * len(phases),
               "budgets": 0.7 + 0.42 * len(budgets)}  # fmt: skip
    sheet = paper.sheet(paper.PAGE_IN, sum(heights[r] for r in rows) + 0.3)
    mosaic = [[r, r] if r != "latency" else ["histogram", "ecdf"] for r in rows]
    axes = sheet.subplot_mosaic(mosaic, height_ratios=[heights[r] for r in rows])  # type: ignore[arg-type]
    sheet.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    _card(axes["card"], run)
    if len(found):
        latency.draw_histogram(axes["histogram"], found)
        latency.draw_ecdf(axes["ecdf"], [found], [title])
        latency.draw_drift(axes["drift"], found, run.phases[0].start_s)
        axes["histogram"].set_title("Distribution of latencies")
        axes["ecdf"].set_title("Share of items done within a time")
        axes["drift"].set_title("Latency over time")
    if phases:
        breakdown.draw_bars(axes["phases"], phases, "Share of the whole (%)")
        axes["phases"].set_title("By phase of an item")
    if budgets:
        breakdown.draw_bars(axes["budgets"], budgets, "Share of the variance (%)")
        axes["budgets"].set_title("Uncertainty of the energy")
    return sheet


def _lines(run: Run) -> list[tuple[str, str, str]]:
    """The headline as rows: what, the value, the rest."""
    return [line for tile in conclusions.headline(run) for row in _tile_lines(tile) for line in _wrapped(*row)]


def _wrapped(name: str, value: str, rest: str) -> list[tuple[str, str, str]]:
    """One row in as many lines as its words need; a value without a rest may be as wide as both."""
    values = [value] if rest else textwrap.wrap(value, 72)
    rests = textwrap.wrap(rest, 54) or [""]
    lines = max(len(values), len(rests))
    columns = ([name], values, rests)
    return [tuple(c[k] if k < len(c) else "" for c in columns) for k in range(lines)]  # type: ignore[misc]


def _tile_lines(tile: Tile) -> list[tuple[str, str, str]]:
    if tile.main is None:
        return [(tile.label, tile.words, "")]
    rows = []
    for k, r in enumerate((tile.main, *tile.lesser)):
        m = r.measurement
        rest = [f"n = {m.n}", m.meter, f"boundary: {m.boundary}" if m.boundary else ""]
        rest += [] if r.is_valid else [f"VOID: {r.void_reason}"]
        rest += [k for k in r.marks if k not in r.void_reason]
        # A voided figure stands in brackets: a line through it would be lost when the text is copied.
        value = str(r.quantity) if r.is_valid else f"({r.quantity})"
        rows.append((tile.label if k == 0 else r.label, value, ", ".join(p for p in rest if p)))
    if tile.words:
        rows.insert(0, (tile.label, tile.words, ""))
    return rows


def _notes(run: Run) -> list[str]:
    said = [*views.subtitle(run)]
    if run.error:
        said.append(f"This run ended badly ({run.error.kind.replace('_', ' ')}): {run.error.message}")
    for d in conclusions.doubts(run):
        void = f" Void: {'; '.join(d.voids)}." if d.voids else ""
        said.append(f"{d.flag.replace('_', ' ').capitalize()}{f' ({d.meter})' if d.meter else ''}: {d.detail}.{void}")
    return [line for text in said for line in textwrap.wrap(text, 120)]


_LINE_IN = 0.155


def _card_height(run: Run) -> float:
    return _LINE_IN * (len(_lines(run)) + len(_notes(run)) + 1) + 0.1


def _card(axes: Axes, run: Run) -> None:
    rows, notes = _lines(run), _notes(run)
    axes.set_axis_off()
    step = 1 / (len(rows) + len(notes) + 1)
    y = 1.0

    def put(x: float, text: str, **look: Any) -> None:
        # Its room is reckoned by `_card_height`; the layout is not to squeeze the figures for it.
        axes.text(x, y, text, transform=axes.transAxes, va="top", **look).set_in_layout(False)

    for text in notes[:2]:
        put(0, text, fontsize=7, color="#444444")
        y -= step
    y -= step / 2
    for name, value, rest in rows:
        put(0, name)
        put(0.3, value, fontweight="bold")
        put(0.55, rest, fontsize=7, color="#444444")
        y -= step
    y -= step / 2
    for text in notes[2:]:
        put(0, text, fontsize=7, color="#444444")
        y -= step


# ---------------------------------------------------------------------------------------------------------------------
# Several runs


def _many(runs: Sequence[Run], title: str) -> Figure:
    planes = scatter.planes(runs)
    named = [f"{k}: {n}" for k, n in enumerate(scatter.labels(runs), 1)]
    found = [(n, f) for n, r in zip(named, runs, strict=True) if len(f := latency.latencies(r))]
    drawings = len(planes) + bool(found)
    rows = (drawings + 1) // 2 or 1
    words = _key(runs, named, planes)
    sheet = paper.sheet(paper.PAGE_IN, 2.7 * rows + _LINE_IN * (len(words) + 1) + 0.35)
    heights = [2.7] * rows + [_LINE_IN * (len(words) + 1)]
    grid = sheet.add_gridspec(rows + 1, 2, height_ratios=heights)
    sheet.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    places = [sheet.add_subplot(grid[k // 2, k % 2]) for k in range(drawings)]
    for plane, axes in zip(planes, places, strict=False):
        scatter.draw_plane(axes, plane)
    if found:
        latency.draw_ecdf(places[-1], [f for _, f in found], [n.split(":")[0] for n, _ in found])
        places[-1].set_title("Share of items done within a time")
    text = sheet.add_subplot(grid[rows, :])
    text.set_axis_off()
    text.text(0, 1, "\n".join(words), transform=text.transAxes, va="top", fontsize=6.5, linespacing=1.5)
    return sheet


def _key(runs: Sequence[Run], named: Sequence[str], planes: Sequence[scatter.Plane]) -> list[str]:
    """What the numbers stand for, the doubts of each run, and what was left out."""
    said = []
    for name, run in zip(named, runs, strict=True):
        flags = ", ".join(dict.fromkeys(f.flag.replace("_", " ") for f in run.flags))
        n = conclusions.repeats(run)
        said.append(f"{name}; {n} repeat{'s' * (n != 1)}, run {run.id}{f'; flags: {flags}' if flags else ''}")
    left_out = dict.fromkeys(text for p in planes for text in p.left_out)
    said += [f"Left out of a figure: {text}" for text in left_out]
    said.append("Error bars are half-widths of 95 % intervals.")
    return [line for text in said for line in textwrap.wrap(text, 130)]
