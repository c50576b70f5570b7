"""The picture of a backfill: what each way to search finds while more and more rows are re-encoded."""

from __future__ import annotations

from typing import Any

from instar.gate.shown import line
from instar.report.plots import LIGHT, Plot, Styles, draw, label
from instar.report.table import sheet
from instar.upgrade import shown
from instar.upgrade.result import Arm, Report

_WIDTHS = {True: 2.4, False: 1.3}
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HEADER = [
    *("arm", "title", "order", "share", "recall", "low", "high", "held_out"),
    *("map", "against_old", "against_old_low", "against_old_high", "hours", "bytes"),
]


def backfill(report: Report) -> Plot | None:
    """Recall against the share of re-encoded rows; None where no arm has a curve.

    A line an arm, the intervals of the recommended ones as bands, held-out queries as markers; the old search and the new one as
    level lines. Where hours are known they stand below the shares.
    """
    arms, recommended = shown.drawn(report), set(shown.recommended(report))
    if not arms:
        return None
    styles = Styles.of([a.id for a in arms])

    def paint(figure: Any, axes: Any) -> None:
        for arm in arms:
            _line(axes, arm, styles, arm.id in recommended)
        # Most lines start at or below the level of the old search and rise.
        paper = {"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 1, "alpha": 0.8}
        for words, side, upright in (("old search", report.old, "top"), ("new encoder, all re-encoded", report.new, "bottom")):
            level = side.own_recall.value
            axes.axhline(level, color=LIGHT["muted"], lw=1, ls=(0, (4, 3)), zorder=1)
            axes.text(0.02, level, words, va=upright, size=8.5, color=LIGHT["muted"], zorder=1.5, bbox=paper)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks(_TICKS, [_tick(report, at) for at in _TICKS])
        axes.yaxis.set_major_formatter(lambda v, _: f"{v * 100:.3g} %".replace("-", "−"))
        axes.set_xlabel("rows re-encoded" + ("; below: time of encoding them" if report.hours_full is not None else ""))
        axes.set_ylabel(f"Recall@{report.k}")
        look: dict[str, Any] = {"loc": "outside lower left", "ncols": 2, "frameon": False, "fontsize": 8.5, "columnspacing": 1.2}
        figure.legend(*zip(*(_key(axes, arm, styles, arm.id in recommended) for arm in arms), strict=True), **look)

    level = f"{report.level * 100:g} %"
    note = (
        f"Lines: predicted recall; bands: {level} intervals of the recommended ways; markers: held-out queries, which took no "
        "part in any choice. Dashed: the search as it is now, and the new encoder alone once every row is re-encoded."
    )
    return draw("backfill", f"What is found while rows are re-encoded (recall@{report.k})", note, _csv(report), paint, 4.2)


def _line(axes: Any, arm: Arm, styles: Styles, strong: bool) -> None:
    """The curve of an arm; its parts are named, so that the page can light them up."""
    colour, place = styles.colour(arm.id), styles.index[arm.id]
    front = 3 if strong else 2
    shares, recall = [p.fraction for p in arm.curve], [p.recall for p in arm.curve]
    axes.plot(shares, [f.value for f in recall], color=colour, lw=_WIDTHS[strong], zorder=front, gid=f"arm-{place}")
    held = [(x, f.realised) for x, f in zip(shares, recall, strict=True) if f.realised is not None]
    if held:
        look = {"color": colour, "ms": 4.5, "mew": 0, "ls": "", "zorder": front + 0.5}
        axes.plot(*zip(*held, strict=True), marker=styles.marker(arm.id), gid=f"held-{place}", **look)
    band = [(x, f.low, f.high) for x, f in zip(shares, recall, strict=True) if f.low is not None and f.high is not None]
    if strong and band:
        axes.fill_between(*zip(*band, strict=True), color=colour, alpha=0.16, lw=0, gid=f"band-{place}")


def _key(axes: Any, arm: Arm, styles: Styles, strong: bool) -> tuple[Any, str]:
    """What stands for an arm in the legend, and its name."""
    look = {"color": styles.colour(arm.id), "lw": _WIDTHS[strong], "ms": 5, "mew": 0}
    return axes.plot([], [], marker=styles.marker(arm.id), **look)[0], label(line(shown.called(arm), 34), 34)


def _tick(report: Report, fraction: float) -> str:
    text = shown.share(fraction)
    return text if report.hours_full is None else f"{text}\n{shown.hours(report.hours_full * fraction) if fraction else '0'}"


def _csv(report: Report) -> str:
    """Every figure of every arm, also of those that have no line."""
    rows = [
        [
            line(a.id), line(a.title), line(a.order), p.fraction, p.recall.value, p.recall.low, p.recall.high, p.recall.realised,
            p.ap.value, p.against_old.value, p.against_old.low, p.against_old.high, p.hours, p.bytes,
        ]
        for a in report.arms
        for p in a.curve
    ]  # fmt: skip
    return sheet(_HEADER, rows)
