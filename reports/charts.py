"""Figures of a page, drawn by Bokeh: how they all look, and text that stays text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bokeh.plotting import figure

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def chart(x: str, y: str, *, height: int = 320, **options: Any) -> figure:
    """An empty figure as wide as its place; `x` and `y` are the labels of its axes, with units."""
    from bokeh.models import BoxZoomTool, PanTool, ResetTool, SaveTool, WheelZoomTool
    from bokeh.plotting import figure

    made = figure(
        height=height,
        sizing_mode="stretch_width",
        x_axis_label=literal(x),
        y_axis_label=literal(y),
        tools=[PanTool(), BoxZoomTool(), WheelZoomTool(), ResetTool(), SaveTool()],
        toolbar_location="above",
        toolbar_inner=True,  # shown over the drawing while a pointer is there, so that it takes no place
        # The page scrolls under a finger or a wheel until the reader chooses a tool.
        active_drag=None,
        active_scroll=None,
        outline_line_color=None,
        background_fill_alpha=0,
        border_fill_alpha=0,
        min_border_left=56,
        **options,
    )
    made.toolbar.logo = None
    made.toolbar.autohide = True
    for axis in made.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font = axis.major_label_text_font = FONT
        axis.axis_label_text_font_size = "13px"
        axis.major_label_text_font_size = "12px"
        axis.minor_tick_line_color = None
    return made


@dataclass(frozen=True)
class Key:
    """One entry of a figure's legend, set beside it by the page: a click hides what is drawn under `name`."""

    label: str
    colour: str
    name: str = ""
    style: str = "line"  # line, dashed, dot, ring, fill


@dataclass(frozen=True)
class Chart:
    """A figure and its legend."""

    figure: figure
    keys: tuple[Key, ...] = ()


def hover(made: figure, rows: list[tuple[str, str]], **options: Any) -> None:
    """Values under the pointer; `rows` are (label, "@column") pairs."""
    from bokeh.models import HoverTool

    made.add_tools(HoverTool(tooltips=rows, **options))


def literal(text: str) -> str:
    """Text that Bokeh draws as it stands: its marks for mathematics would make it fetch a typesetter."""
    return text.replace("$$", "$\u200b$").replace("\\(", "\\\u200b(").replace("\\[", "\\\u200b[")
