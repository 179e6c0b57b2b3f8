"""One self-contained HTML page: template, style, figures and the script that draws them, with nothing to fetch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

    from edgewatt.reports.charts import Chart


def render(template: str, figures: Mapping[str, Chart], **values: Any) -> bytes:
    """The page of a template; `figures` are placed by name with `drawn(name, ...)`, `values` are escaped.

    A page without figures carries no drawing script.
    """
    from markupsafe import Markup

    script, library = "", ""
    placed: dict[str, str] = {}
    if figures:
        from bokeh.embed import components
        from bokeh.resources import Resources

        script, placed = components({name: c.figure for name, c in figures.items()})
        library = Resources(mode="inline", components=["bokeh"], minified=True).render_js()
    page = _environment().get_template(template)
    text = page.render(
        figure={name: Markup(div) for name, div in placed.items()},
        keys={name: c.keys for name, c in figures.items()},
        library=Markup(library),
        script=Markup(script),
        **values,
    )
    return text.encode()


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
