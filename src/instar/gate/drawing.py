"""The picture of a decision: what was found, how sure that is, and what is allowed, on one axis."""

from __future__ import annotations

from typing import Any

from instar.gate import shown
from instar.gate.result import Decision, Figure, Result
from instar.report.plots import LIGHT, SERIES_LIGHT, Plot, draw, label
from instar.report.table import sheet

_COLOURS: dict[Decision, str] = {"pass": SERIES_LIGHT[2], "fail": SERIES_LIGHT[1], "undecided": SERIES_LIGHT[4]}
_MOST = 12
"""Rows of tests: the failed ones first. The table beside the picture has them all."""


def decision(result: Result) -> Plot | None:
    """Every tested share with its interval and its budget; above them the flips and the noise from which they come.

    None where no share was tested (scores, or counts alone).
    """
    tests = [t for t in result.tests if shown.unit(t, result.binary) == "share"]
    tests = sorted(tests, key=lambda t: shown.ORDER[t.decision])[:_MOST]
    if not tests:
        return None
    seen = {m.id: m.figure for m in result.measures}
    context: list[tuple[str, Figure]] = []
    if result.floor is not None:
        context = [("all negative flips", seen["nfr"])] if "nfr" in seen else []
        context += [("noise floor: the old version run again", result.floor)]
    height = 0.8 + 0.46 * (len(tests) + len(context))

    def paint(figure: Any, axes: Any) -> None:
        axes.axvline(0, color=LIGHT["muted"], lw=1)
        place = float(len(tests) + len(context))
        for name, found in context:
            place -= 1
            _interval(axes, found, place, LIGHT["muted"], "o")
            _words(axes, name, place, LIGHT["muted"])
        if context:
            axes.axhline(place - 0.3, color=LIGHT["line"], lw=1)
        for test in tests:
            place -= 1
            colour = _COLOURS[test.decision]
            _interval(axes, test.figure, place, colour, "D")
            axes.plot([test.budget] * 2, [place - 0.24, place + 0.24], color=LIGHT["ink"], lw=2.2, solid_capstyle="butt")
            what = {"max_nfr": "", "max_accuracy_drop": ", drop of accuracy", "max_flips": ""}[test.kind]
            name = f"{shown.SIGNS[test.decision]} {test.decision}: {label(test.scope, 30)}{what}"
            _words(axes, name, place, colour, bold=True)
        axes.set_yticks([])
        axes.set_ylim(-0.5, len(tests) + len(context) - 0.1)
        axes.spines["left"].set_visible(False)
        axes.grid(False, axis="y")
        axes.margins(x=0.06)
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda v, _: f"{v * 100:.3g} %".replace("-", "−"))
        axes.set_xlabel("share of the items")

    beyond = "negative flips beyond the noise floor" if result.floor else "negative flips"
    note = (
        f"Diamond: {beyond}; line: {result.level * 100:g} % interval; upright bar: budget. A test passes when its whole line "
        "lies left of its budget, fails when it lies right of it, and is undecided when the budget lies inside."
    )
    rows = [[shown.line(t.scope), t.kind, t.decision, t.figure.value, t.figure.low, t.figure.high, t.budget] for t in tests] + [
        [name, "", "", f.value, f.low, f.high, None] for name, f in context
    ]
    csv = sheet(["scope", "limit", "decision", "value", "low", "high", "budget"], rows)
    return draw("decision", "What was found, and what is allowed", note, csv, paint, height)


def _interval(axes: Any, found: Figure, place: float, colour: str, marker: str) -> None:
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [place] * 2, color=colour, lw=2.6)
    axes.plot(found.value, place, marker, color=colour, ms=7, mew=0)


def _words(axes: Any, text: str, place: float, colour: str, bold: bool = False) -> None:
    """The row's name above its line, so that the picture stays readable where it is narrow."""
    paper = {"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 1.5}  # no line of the grid runs through the words
    look: dict[str, Any] = {"color": colour, "size": 9, "weight": "bold" if bold else "normal", "bbox": paper}
    axes.text(0, place + 0.36, text, transform=axes.get_yaxis_transform(), **look)
