"""Colours that people with any colour vision tell apart, on paper and on a screen, light or dark.

Okabe and Ito, Color Universal Design (2008); the yellow is left out (too faint on white), the order puts first the
colours that have contrast on white and on black.
"""

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY, BLACK = "#8A8F98", "#000000"

SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)

_PHASES = {
    "idle": GREY,
    "load": "#B08D57",
    "warmup": ORANGE,
    "window": BLUE,
    "preprocess": SKY,
    "detect": GREEN,
    "postprocess": PURPLE,
    "other": GREY,
    "vision": SKY,
    "prefill": GREEN,
    "decode": PURPLE,
}


def series(k: int) -> str:
    """The colour of the k-th series."""
    return SERIES[k % len(SERIES)]


def phase(name: str, others: tuple[str, ...] = ()) -> str:
    """The colour of a phase; one that is not known here takes one by its place among `others`."""
    if name in _PHASES:
        return _PHASES[name]
    return series(2 + (others.index(name) if name in others else 0))
