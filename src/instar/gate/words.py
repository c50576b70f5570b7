"""Figures of the gate as people read them."""

from __future__ import annotations

from instar.gate.result import Figure

_JOINERS = "\u200c\u200d"
"""Without them Persian, Hindi and some emoji fall apart; they steer nothing."""


def percent(value: float, places: int | None = None) -> str:
    """A share in percent: 0.0213 is "2.1 %"; small ones keep a digit that says something."""
    size = abs(value) * 100
    if places is None:
        places = (
            0 if value == 0 or (size >= 1 and abs(size - round(size)) < 1e-9) else 1 if size >= 1 else 2 if size >= 0.1 else 3
        )
    return f"{value * 100:.{places}f} %".replace("-", "−")


def figure(found: Figure, level: float = 0.95) -> str:
    """A share with its interval: "3.1 % (95 % interval 2.2 % … 4.1 %)"."""
    if found.low is None or found.high is None:
        return percent(found.value)
    return f"{percent(found.value)} ({level * 100:g} % interval {percent(found.low)} … {percent(found.high)})"


def printable(text: str) -> str:
    """A text without signs that steer a terminal, turn the direction of writing, or are half a character."""
    return "".join(c if c.isprintable() or c in _JOINERS else "�" for c in text)


def counted(number: int, thing: str) -> str:
    """ "1 item", "3 items"; thousands are parted."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}".replace(",", "\u202f")
