"""Numbers as people read them: rounded to their uncertainty, with SI prefixes. For printing only."""

import math
from dataclasses import dataclass

_PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}

# Units that take prefixes, and the largest that reads well: nobody says kiloseconds.
_PREFIXED = {"s": 0, "J": 6, "W": 6, "V": 3, "A": 3, "Hz": 9, "B": 12, "B/s": 12,
             "FLOP/s": 12, "MAC": 12}  # fmt: skip
_WRITTEN = {"degC": "°C", "1": "", "1/s": "/s", "fps": "FPS", "count": "", "s/s": ""}
_WHOLE = ("B", "count", "MAC")  # below one there is nothing: no milli-bytes

_DIGITS = 4  # of a number that has no uncertainty
_MOST_DIGITS = 6  # of a number that has one


@dataclass(frozen=True)
class Quantity:
    """A number in pieces, for a page to set: "12.34", "0.56" (None: it has no uncertainty), "mJ" ("" for a ratio)."""

    value: str
    uncertainty: str | None
    unit: str

    def __str__(self) -> str:
        number = self.value if self.uncertainty is None else f"{self.value} ± {self.uncertainty}"
        return f"{number} {self.unit}".rstrip()


def _exponent(x: float, digits: int) -> int:
    """Power of ten of `x` once it is rounded to that many digits: 9.97 with two is 10, so 1."""
    return int(f"{x:.{digits - 1}e}".split("e")[1])


def _prefix(size: float, unit: str, digits: int) -> int:
    """The power of ten (a multiple of three) by which a number of that size is best read."""
    if unit not in _PREFIXED or size == 0:
        return 0
    lowest = 0 if unit in _WHOLE else -12
    return max(lowest, min(_PREFIXED[unit], 3 * (_exponent(size, digits) // 3)))


def _fixed(x: float, decimals: int) -> str:
    """`x` with that many decimals; a negative number of them rounds to tens, hundreds, ..."""
    text = f"{round(x, decimals):.{max(decimals, 0)}f}"
    return text.lstrip("-") if not float(text) else text  # never "-0.0"


def quantity(value: float, uncertainty: float | None, unit: str) -> Quantity:
    """`value` and the half-width of its 95 % interval, both in `unit`, as pieces of text.

    The uncertainty keeps two digits and the value ends where it ends; without one (None) the value keeps four digits,
    and whole numbers stay whole. A value that is no number is a dash.
    """
    written = _WRITTEN.get(unit, unit)
    if not math.isfinite(value):
        return Quantity("—", None, "")
    if uncertainty is not None and not math.isfinite(uncertainty):
        plain = quantity(value, None, unit)
        return Quantity(plain.value, "unknown", plain.unit)

    if not uncertainty:
        power = _prefix(abs(value), unit, _DIGITS)
        scaled = value / 10**power
        if power == 0 and value == int(value):
            text = str(int(value))
        else:
            text = _fixed(scaled, max(0, _DIGITS - 1 - _exponent(abs(scaled), _DIGITS)))
        return Quantity(text, None if uncertainty is None else "0", _PREFIXES[power] + written)

    uncertainty = abs(uncertainty)
    power = _prefix(max(abs(value), uncertainty), unit, _MOST_DIGITS)
    scaled, width = value / 10**power, uncertainty / 10**power
    decimals = 1 - _exponent(width, 2)
    if scaled:
        finest = _MOST_DIGITS - 1 - _exponent(abs(scaled), _MOST_DIGITS)
        if decimals > finest:  # a bar far below the last digit shown is rounded up, never to nothing
            decimals = finest
            width = math.ceil(width * 10**decimals) / 10**decimals
    return Quantity(_fixed(scaled, decimals), _fixed(width, decimals), _PREFIXES[power] + written)


def format_quantity(value: float, uncertainty: float | None, unit: str) -> str:
    """`value` ± `uncertainty` (the half-width of its 95 % interval; None: it has none) in words: "12.34 ± 0.56 mJ"."""
    return str(quantity(value, uncertainty, unit))


def format_half_width(uncertainty: float, unit: str) -> str:
    """The half-width of an interval alone, with two digits: "± 0.56 mJ"."""
    q = quantity(0.0, uncertainty, unit)
    return f"± {q.uncertainty} {q.unit}".rstrip()


def axis(largest: float, unit: str) -> tuple[float, str]:
    """What to multiply values by, and the unit they then have, so that an axis up to `largest` reads well."""
    power = _prefix(abs(largest), unit, 2) if math.isfinite(largest) else 0
    return 10.0**-power, _PREFIXES[power] + _WRITTEN.get(unit, unit)


def titled(words: str, unit: str) -> str:
    """The label of an axis: "Latency (ms)"; a ratio has no unit to show."""
    return f"{words} ({unit})" if unit else words
