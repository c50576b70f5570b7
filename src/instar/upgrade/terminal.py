"""The report on a change of encoder in a terminal: at most 40 lines of 100 columns, plain where it is piped."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from instar.gate.shown import line
from instar.report import units
from instar.upgrade import shown
from instar.upgrade.result import Arm, Choice, Point, Report

WIDTH, LINES = 100, 40
"""What is kept to, where the terminal is not narrower."""
_ADVICE_LINES, _CAUTION_LINES, _MOST_CHOICES, _MOST_ARMS = 10, 6, 7, 20
_LONGEST = 280
_FRAME = 4
"""Lines of a table beside its rows, and the empty one before it."""
_STYLES = {"better": "green", "worse": "red", "": "", "pass": "green", "unsure": "yellow", "fail": "red"}


def show(report: Report, console: Console) -> None:
    """Print the answer, what each effort buys, and the ways to search before anything is re-encoded."""
    verdict, sentence = shown.check(report.check)
    first = [
        Text(f"{line(report.old.name, 45)} → {line(report.new.name, 45)}", style="dim"),
        Text(line(report.headline, _LONGEST), style="bold"),
    ]
    advice = [Text(f"{i}. {line(one, _LONGEST)}") for i, one in enumerate(report.advice, 1)]
    cautions = [Text(f"! {line(one, _LONGEST)}", style="yellow") for one in report.cautions]
    text = [*first, *_fitting(console, advice, _ADVICE_LINES), *_fitting(console, cautions, _CAUTION_LINES)]
    last = [Text(), Text(line(sentence, 2 * _LONGEST), style=_STYLES[verdict])]
    efforts = shown.fewer(report.choices, _MOST_CHOICES)
    used = _height(console, [*text, *last]) + (len(efforts) + _FRAME if efforts else 0)
    for one in text:
        _print(console, one)
    if efforts:
        console.print(_efforts(report, efforts))
    console.print(_arms(report, max(2, min(_MOST_ARMS, LINES - used - _FRAME))))
    for one in last:
        _print(console, one)


def _efforts(report: Report, choices: Sequence[Choice]) -> Table:
    table = _table(f"By effort: recall@{report.k} with {report.level * 100:g} % interval (≈: level with others)")
    for head in ("Re-encoded", "Time", "Stored", "Recall"):
        table.add_column(Text(head), justify="right", no_wrap=True)
    _name(table)
    for choice in choices:
        size = shown.bytes_of(report, choice)
        table.add_row(
            shown.share(choice.fraction),
            shown.hours(choice.hours),
            "unknown" if size is None else shown.size(size),
            shown.around(choice.recall),
            Text(line(units.sentence(choice.words), 37 if choice.sure else 35) + ("" if choice.sure else " ≈")),
        )
    return table


def _arms(report: Report, most: int) -> Table:
    found = [*shown.ran(report), *(a for a in report.arms if not a.curve)]
    table = _table(f"Ways to search, best first: recall@{report.k}")
    _name(table)
    for head in ("Now", "Held out", "Half done", "All done", "Now against old"):
        table.add_column(Text(head), justify="right", no_wrap=True)
    cut = len(found) > most
    for arm in found[: most - cut]:
        table.add_row(*_arm(arm))
    if cut:
        table.add_row(Text(f"{units.number(len(found) - most + 1)} more on the page", style="dim"))
    return table


def _arm(arm: Arm) -> list[Text]:
    name = Text(line(shown.called(arm), 32))
    if not arm.curve:
        return [name, Text("not run", style="dim")]
    now, half, done = shown.stages(arm)

    def recall(point: Point | None) -> Text:
        return Text("–" if point is None else shown.figure(point.recall)[0])

    against = Text("–") if now is None else Text(shown.difference(now.against_old), _STYLES[shown.verdict(now.against_old)])
    held_out = Text("" if now is None else shown.realised(now.recall))
    return [name, recall(now), held_out, recall(half), recall(done), against]


def _table(title: str) -> Table:
    return Table(
        title=Text(f"\n{title}", style="bold"), box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, padding=(0, 1)
    )


def _name(table: Table) -> None:
    """A column of names, which are cut where there is no room."""
    table.add_column(Text("Way to search"), overflow="ellipsis", no_wrap=True)


def _height(console: Console, parts: Sequence[Text]) -> int:
    return sum(len(part.wrap(console, console.width)) for part in parts)


def _fitting(console: Console, parts: Sequence[Text], lines: int) -> Sequence[Text]:
    """The first ones, in no more lines."""
    return [part for i, part in enumerate(parts) if _height(console, parts[: i + 1]) <= lines]


def _print(console: Console, text: Text) -> None:
    """Print text from a record: nothing in it is read as markup, an emoji code or something to highlight."""
    console.print(text, markup=False, highlight=False, emoji=False)
