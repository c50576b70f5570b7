"""How the figures of a report on a change of encoder are written and which of them are shown, the same in every output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instar.gate.words import percent
from instar.report import units
from instar.upgrade.result import Arm, Check, Choice, Figure, Point, Report

TRUTH: Mapping[str, str] = {
    "queries": "the documents known to be relevant to a query",
    "labels": "the documents that share the query's label",
    "neighbours": "the documents that the new encoder itself finds first (what is relevant nobody said)",
}
"""What recall counts, by how it is known what is right."""
FUSION: Mapping[str, str] = {
    "cosine": "cosines as they are",
    "quantile": "quantiles of the cosines",
    "rank": "places in the two lists",
}
"""How scores of old and new rows became one list."""
LIKENESS: Mapping[str, tuple[str, str]] = {
    "cka": ("Linear CKA", "1: the same space up to rotation and scale; 0: nothing in common."),
    "neighbours": ("Shared nearest neighbours", "The share of a document's nearest neighbours that both encoders agree on."),
    "cosine": ("Cosine of old and new vector", "The mean over documents; near 1 only where both encoders use the same axes."),
}
"""Known measures of likeness: title and meaning."""
GLYPHS: Mapping[str, str] = {"better": "▲", "worse": "▼", "": "="}
_HALF = 0.5
_MOST_DRAWN = 7
_CLOSE = 1e-9


def share(fraction: float) -> str:
    """A share of rows: "0 %", "50 %", "2.5 %"."""
    return f"{fraction * 100:.4g} %"


def figure(found: Figure) -> tuple[str, str]:
    """A share and its interval: ("71.2 %", "69.9 … 72.5"). The second is empty where there is none."""
    if found.low is None or found.high is None or found.low == found.high:
        return percent(found.value, 1), ""
    return percent(found.value, 1), f"{_bare(found.low)} … {_bare(found.high)}"


def around(found: Figure) -> str:
    """A share with its interval in brackets."""
    main, interval = figure(found)
    return f"{main} ({interval})" if interval else main


def realised(found: Figure) -> str:
    """What held-out queries gave; empty where none were asked."""
    return "" if found.realised is None else percent(found.realised, 1)


def points(value: float, *, signed: bool = True) -> str:
    """A difference of shares: "+3.1 points"."""
    text = f"{value * 100:.1f}"
    return f"{units.sign(text.removeprefix('-') if float(text) == 0 else text, signed and float(text) != 0)} points"


def verdict(difference: Figure) -> str:
    """Whether a difference lies beyond chance: "better", "worse", or "" where its interval holds 0 or is not known."""
    if difference.low is None or difference.high is None:
        return ""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else ""


def difference(found: Figure) -> str:
    """A difference from the search as it is now, with its sign and a mark: "▲ +3.1 points"."""
    return f"{GLYPHS[verdict(found)]} {points(found.value)}"


def hours(value: float | None) -> str:
    """A time as people plan it: "3.0 min", "14.2 h", "5.2 days"."""
    if value is None:
        return "unknown"
    if value == 0:
        return "none"
    for least, factor, name in ((48.0, 1 / 24, "days"), (1.0, 1.0, "h"), (1 / 60, 60.0, "min")):
        if value >= least:
            return f"{units.number(value * factor, 3)} {name}"
    return f"{units.number(value * 3600, 2)} s"


def seconds(value: float | None) -> str:
    """A measured time; "–" where it is not known."""
    return "–" if value is None else "none" if value == 0 else hours(value / 3600) if value >= 60 else units.quantity(value, "s")


def size(value: float) -> str:
    """Bytes."""
    return units.quantity(value, "bytes") if value else "unknown"


def at(arm: Arm, fraction: float) -> Point | None:
    """The point of an arm at a share of re-encoded rows."""
    return next((p for p in arm.curve if abs(p.fraction - fraction) < _CLOSE), None)


def stages(arm: Arm) -> tuple[Point | None, Point | None, Point | None]:
    """Before anything is re-encoded, at half, and when all is done."""
    return at(arm, 0.0), at(arm, _HALF), at(arm, 1.0)


def called(arm: Arm) -> str:
    """The title at the start of a line."""
    return units.sentence(arm.title)


def recommended(report: Report) -> list[str]:
    """Ids of the arms that some choice takes while old rows are left (later most arms are one), in order of effort; then that
    for the whole way."""
    whole = [] if report.during is None else [report.during.arm]
    return list(dict.fromkeys([*(c.arm for c in report.choices if c.fraction < 1), *whole]))


def during(report: Report) -> str:
    """What to search with on the whole way from the first re-encoded row to the last; empty where the record does not say."""
    if report.during is None:
        return ""
    merged = FUSION.get(report.during.fusion, report.during.fusion)
    level = "" if report.during.sure else "; level with simpler ways"
    return f"One way for the whole backfill: {report.during.words} (old and new rows merged by {merged}{level})."


def ran(report: Report) -> list[Arm]:
    """Arms with a curve, those first that find most before anything is re-encoded."""
    return sorted((a for a in report.arms if a.curve), key=lambda a: -a.curve[0].recall.value)


def drawn(report: Report) -> list[Arm]:
    """The arms worth a line: what is recommended, the plain ones, then the best of each kind; not what stays as it is."""
    lines = [a for a in ran(report) if len(a.curve) > 1]
    plain = [a.id for kind in ("two encoders", "switch") for a in lines if a.kind == kind]
    best = [next(a.id for a in lines if a.kind == kind) for kind in dict.fromkeys(a.kind for a in lines)]
    wanted = [name for name in dict.fromkeys([*recommended(report), *plain, *best]) if any(a.id == name for a in lines)]
    return [a for a in lines if a.id in wanted[:_MOST_DRAWN]]


def bytes_of(report: Report, choice: Choice) -> float | None:
    """Stored vectors of all rows under a choice."""
    arm = next((a for a in report.arms if a.id == choice.arm), None)
    point = at(arm, choice.fraction) if arm else None
    return point.bytes if point else None


def fewer(choices: Sequence[Choice], most: int) -> list[Choice]:
    """At most so many efforts: the first, the last, and evenly spaced ones between them."""
    if len(choices) <= most:
        return list(choices)
    step = -(-(len(choices) - 2) // (most - 2))
    return [choices[0], *choices[1:-1:step], choices[-1]]


def check(found: Check) -> tuple[str, str]:
    """Whether the predictions held on held-out queries: (pass, unsure, fail, or "" where nothing was checked; the sentences).

    unsure: some lie beyond the margin, none beyond what so few queries differ by chance.
    """
    if not found.figures:
        return "", "No query was held out, so the predictions were not checked."
    margin, number = points(found.margin, signed=False), units.number(found.figures)
    at = f" ({found.worst_at})" if found.worst_at else ""
    worst = f"the largest difference is {points(found.worst, signed=False)}{at}"
    queries, by_chance = units.number(found.queries), points(found.chance, signed=False)
    chance = f"By the chance of {queries} queries alone, ±{by_chance} are to be expected."
    if found.within == found.figures:
        return "pass", f"All {number} predicted recalls lie within {margin} of what held-out queries gave; {worst}. {chance}"
    missed = f"{units.number(found.figures - found.within)} of {number} predicted recalls"
    said = f"{missed} lie more than {margin} from what held-out queries gave; {worst}. {chance}"
    return ("unsure" if found.worst <= found.chance else "fail"), said


def scope(report: Report) -> str:
    """What was measured, in a line."""
    rows = "" if report.rows == report.documents else f" (a sample: the index holds {units.number(report.rows)})"
    return f"{units.number(report.documents)} documents{rows}, {units.number(report.queries)} queries, {report.data}"


def likeness(report: Report) -> list[tuple[str, str, str]]:
    """How alike the two spaces are: (title, value, meaning)."""
    found = []
    for name, value in report.likeness.items():
        known, meaning = LIKENESS.get(name, (units.sentence(name.replace("_", " ")), ""))
        found.append((known, units.number(value, 2), meaning))
    return found


def texts(value: Any) -> list[str]:
    """One text or several, of an example."""
    return [value] if isinstance(value, str) else [str(one) for one in value or ()]


def _bare(value: float) -> str:
    return percent(value, 1).removesuffix(" %")
