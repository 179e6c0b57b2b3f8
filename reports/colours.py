"""Colours that people with any colour vision tell apart, on paper and on a screen, light or dark.

Okabe and Ito, Color Universal Design (2008), without its yellow (too faint on white) and with its blue a little
lighter, so that it has a contrast of more than 3 on white and on the dark page. Those that have come first.
"""

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#1A80BB", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY, BLACK = "#8A8F98", "#000000"

SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)

_PHASES = {
    "idle": GREY,
    "load": "#B08D57",
    "pulse": VERMILLION,
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


def ink_on(colour: str) -> str:
    """Black or white, whichever is read more easily on that colour (relative luminance, WCAG 2.2)."""
    linear = [((v / 255 + 0.055) / 1.055) ** 2.4 for v in bytes.fromhex(colour[1:])]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.3 else "#ffffff"
