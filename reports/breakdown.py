"""What a whole is made of: time and energy by phase, uncertainty by cause. Bars of parts, on a page and on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgewatt.harness.analysis_energy import GAIN_UNTOLD
from edgewatt.harness.api import Measurement, Run
from edgewatt.reports import colours, conclusions, metrics
from edgewatt.reports.conclusions import Result
from edgewatt.reports.numbers import format_half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# cause, as a measurement names it -> its words and its colour, the same in every bar
_CAUSES = {
    "gain": ("sensor's gain", colours.BLUE),
    "edge": ("edges of the window", colours.ORANGE),
    "sampling": ("time between readings", colours.GREEN),
    "quantisation": ("step of a reading", colours.PURPLE),
    "clock": ("clock offset", colours.SKY),
    "repeats": ("spread over repeats", colours.VERMILLION),
    "items": ("spread over items", "#7B3F00"),
    "idle": ("idle power", colours.GREY),
    "drift": ("drift of idle power", "#4D4D4D"),
    "idle step": ("drift of idle power", "#4D4D4D"),
    "smear": ("slow sensor between phases", "#B08D57"),
    "gap": ("gaps between readings", "#B08D57"),
    "rounding": ("rounding of the arithmetic", colours.BLACK),
}
_SLICE = "window/"  # a phase of the items within the windows, not looped alone
NEGLIGIBLE = 0.001  # a part below this share is in the table only


@dataclass(frozen=True)
class Part:
    """One part of a whole: its share (0..1), how it is written, its colour; `is_valid` False: shown struck out."""

    name: str
    share: float
    text: str
    colour: str
    is_valid: bool = True
    method: str = ""


@dataclass(frozen=True)
class Bar:
    """A whole and its parts, in order."""

    title: str
    whole: str
    parts: tuple[Part, ...]
    note: str = ""
    void: str = ""  # why the whole must not be used


# ---------------------------------------------------------------------------------------------------------------------
# By phase


def by_phase(run: Run) -> list[Bar]:
    """Time (and energy, where the meter supports it) of an item by phase; no bar where there is only one phase."""
    bars = []
    latency = next((r for k in conclusions.LATENCY if (r := conclusions.best(run, k))), None)
    if latency:
        title = "Time, medians"
        bars += _phase_bar(run, latency, title, "Medians of the phases need not add up to the median of the whole.")
    energy = conclusions.best(run, conclusions.ENERGY)
    if energy:
        m = energy.measurement
        bars += _phase_bar(run, energy, f"Energy, {_of(m)}", "")
    return bars


def _phase_bar(run: Run, whole: Result, title: str, note: str) -> list[Bar]:
    """The whole's phases: slices of the windows ("window/detect") where there are any, else phases looped alone."""
    m = whole.measurement
    same = [r for r in conclusions.results(run) if (r.measurement.metric, r.measurement.meter) == (m.metric, m.meter)]
    found = [r for r in same if r.measurement.phase.startswith(_SLICE)]
    if not found:
        found = [r for r in same if r.measurement.phase in run.items.names]
        if m.unit == "J":
            note = "Each phase was looped alone; caches and clocks may differ from those in the whole."
    names = (*run.items.names, "other")
    found = [r for r in found if _name(r) in names]
    found.sort(key=lambda r: names.index(_name(r)))
    total = sum(max(r.measurement.value, 0.0) for r in found)
    if len(found) < 2 or total <= 0:
        return []
    parts = tuple(
        Part(
            _name(r),
            max(r.measurement.value, 0.0) / total,
            str(r.quantity),
            colours.phase(_name(r), run.items.names),
            r.is_valid,
            r.measurement.method,
        )
        for r in found
    )
    return [Bar(title, str(whole.quantity), parts, note, whole.void_reason)]


def _name(r: Result) -> str:
    return r.measurement.phase.removeprefix(_SLICE)


# ---------------------------------------------------------------------------------------------------------------------
# By cause


def budgets(run: Run) -> list[Bar]:
    """Where the uncertainty of each energy figure of the windows comes from: shares of its variance."""
    wanted = (conclusions.ENERGY, conclusions.ENERGY_NET)
    found = [r for metric in wanted for r in conclusions.whole(run, metric)]
    found.sort(key=lambda r: not r.is_valid)
    return [bar for r in found if (bar := budget(r))]


def budget(r: Result) -> Bar | None:
    """The parts of one figure's uncertainty; None where it has none."""
    m = r.measurement
    widths = {k: float(v) for k, v in m.parts.items() if isinstance(v, (int, float)) and math.isfinite(v) and v >= 0}
    total = sum(w * w for w in widths.values())
    if total <= 0:
        return None
    ordered = sorted(((k, w) for k, w in widths.items() if w), key=lambda kw: -kw[1])
    parts = []
    for cause, w in ordered:
        words, colour = _CAUSES.get(cause, (cause.replace("_", " "), colours.BLACK))
        parts.append(Part(words, w * w / total, format_half_width(w, m.unit), colour))
    # None of it is no claim that the sensor is exact.
    is_untold = widths.get("gain") == 0 or GAIN_UNTOLD in m.method
    note = "No gain error of its own is stated for this sensor, so none is in the bar." if is_untold else ""
    return Bar(f"{r.label}, {_of(m)}", str(r.quantity), tuple(parts), note, r.void_reason)


def _of(m: Measurement) -> str:
    return ", ".join(p for p in (m.meter, m.boundary) if p) or metrics.label(m.metric)


# ---------------------------------------------------------------------------------------------------------------------
# On paper


def draw_bars(axes: Axes, bars: Sequence[Bar], x_label: str) -> None:
    """Bars of parts below each other, shares in percent; one legend entry for each name."""
    seen: set[str] = set()
    for k, bar in enumerate(bars):
        whole = f"({bar.whole}) VOID: {bar.void}" if bar.void else bar.whole
        axes.text(0, k - 0.32, f"{bar.title}: {whole}", fontsize=7, va="bottom")
        left = 0.0
        for part in bar.parts:
            label = None if part.name in seen or part.share < NEGLIGIBLE else part.name
            if label:
                seen.add(part.name)
            axes.barh(k, part.share * 100, left=left, height=0.5, color=part.colour, label=label,
                      edgecolor="white", linewidth=0.6, alpha=1.0 if part.is_valid else 0.35)  # fmt: skip
            if part.share > 0.07:
                axes.text(left + part.share * 50, k, f"{part.share * 100:.0f} %", ha="center", va="center",
                          color=colours.ink_on(part.colour), fontsize=6.5, fontweight="bold")  # fmt: skip
            left += part.share * 100
    axes.set_yticks([])
    axes.set_ylim(len(bars) - 0.6, -0.85)
    axes.set_xlim(0, 100)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(x_label)
    axes.grid(visible=False)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 0.99), ncols=4, borderaxespad=0.2, handlelength=1.0, columnspacing=1.2
    )
