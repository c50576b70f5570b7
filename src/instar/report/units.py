"""Figures as people read them: one place for units, significant digits, intervals and signs."""

from __future__ import annotations

import math

from instar.bench.statistics import Estimate

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_COUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_PLAIN = ("", "1", "fraction", "ratio")
_COUNTED = ("parameters", "items", "count")
"""Counts whose name the title says already."""


def scale(unit: str, value: float) -> tuple[float, str]:
    """The divisor and the name of the unit in which `value` reads best: 0.0123 s -> (1e-3, "ms")."""
    head, slash, rest = unit.partition("/")
    tail = slash + rest
    size = abs(value)
    if head in ("s", "second", "seconds"):
        factor, name = next((s for s in _SECONDS if size >= s[0]), _SECONDS[0] if size == 0 else _SECONDS[-1])
        return factor, name + tail
    if head in ("B", "byte", "bytes"):
        factor, name = next((s for s in _BYTES if size >= s[0]), _BYTES[-1])
        return factor, name + tail
    if unit in _PLAIN:
        return 1.0, ""
    if size >= 10_000:
        factor, prefix = next(s for s in _COUNTS if size >= s[0])
        if unit in _COUNTED:
            return factor, prefix
        return factor, f"{prefix}{unit}" if len(unit) <= 2 or unit.isupper() or unit == "FLOPs" else f"{prefix} {unit}"
    return 1.0, "" if unit in _COUNTED else unit


def printable(text: str) -> str:
    """Text from a record without what would steer a terminal or break an XML file."""
    return "".join(c if c.isprintable() else "�" for c in text)


def sentence(text: str) -> str:
    """A title at the start of a line."""
    return text[:1].upper() + text[1:]


def number(value: float, digits: int = 4, *, signed: bool = False) -> str:
    """`digits` significant digits without an exponent where that stays short; a true minus sign."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "not a number"
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e9:
        grouped = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"
        return sign(grouped.replace(",", "\u202f"), signed)  # a narrow space parts the thousands
    places = digits - 1 - math.floor(math.log10(abs(value)))
    text = f"{value:.{max(0, min(places, 9))}f}" if 1e-5 <= abs(value) < 1e9 else f"{value:.{digits - 1}g}"
    return sign(text, signed)


def sign(text: str, signed: bool = False) -> str:
    """A true minus sign, and a plus sign where one is wanted."""
    if text.startswith("-"):
        return "−" + text[1:]
    return f"+{text}" if signed else text


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """A figure with its unit, scaled: `quantity(3072, "bytes")` is "3.00 KiB"."""
    factor, name = scale(unit, value)
    return f"{number(value / factor, digits)} {name}".rstrip()


def signed(value: float, unit: str, low: float | None = None, high: float | None = None) -> str:
    """A difference with its sign, to the digits that its interval supports."""
    factor, name = scale(unit, value)
    places = _places(value, low, high, factor)
    return f"{_fixed(value / factor, places, True)} {name}".rstrip()


def interval(low: float, high: float, unit: str, about: float) -> str:
    """`low … high` in the unit of the figure they surround."""
    factor, _ = scale(unit, about)
    places = _places(about, low, high, factor)
    return f"{_fixed(low / factor, places)} … {_fixed(high / factor, places)}"


def estimate(found: Estimate, unit: str, *, spread: bool = False) -> tuple[str, str]:
    """A figure and what surrounds it: ("2.183 bits", "±0.012"), or with `spread` the range ("12.3 ms", "11.9–13.0").

    The second is empty for exact figures and where too few seeds were run.
    """
    factor, name = scale(unit, found.value)
    if found.interval is None or found.low == found.high:
        return quantity(found.value, unit, 4), ""
    low, high = found.interval
    places = _places(found.value, low, high, factor, 1 if spread else 2)
    main = f"{_fixed(found.value / factor, places)} {name}".rstrip()
    if spread:
        return main, f"{_fixed(low / factor, places)}–{_fixed(high / factor, places)}"
    return main, f"±{_fixed((high - low) / 2 / factor, places)}"


def times(ratio: float) -> str:
    """A ratio: 3.10×, 0.42×, and 1/64 where it is small."""
    return f"1/{number(1 / ratio, 2)}" if 0 < ratio < 0.1 else f"{number(ratio, 3 if ratio >= 1 else 2)}×"


def _places(value: float, low: float | None, high: float | None, factor: float, digits: int = 2) -> int:
    """Decimals such that the half-width shows `digits` significant digits."""
    if low is None or high is None or low == high:
        size, digits = abs(value) / factor, 3
    else:
        size = (high - low) / 2 / factor
    if size == 0 or not math.isfinite(size):
        return 3
    return max(0, min(digits - 1 - math.floor(math.log10(size)), 6))


def _fixed(value: float, places: int, signed: bool = False) -> str:
    text = f"{value:.{places}f}"
    return sign(text.removeprefix("-") if float(text) == 0 else text, signed)
