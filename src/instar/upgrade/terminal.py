"""The report on a change of encoder in a terminal: at most 40 lines of 100 columns, plain where it is piped."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from instar.gate.shown import line
from instar.report import units
from instar.upgrade import shown
from instar.upgrade.result import Arm, Point, Report

WIDTH, LINES = 100, 40
"""What is kept to, where the terminal is not narrower."""
_MOST_ADVICE, _MOST_CAUTIONS, _MOST_CHOICES, _MOST_ARMS = 3, 2, 7, 20
_TWO_LINES = 180
_STYLES = {"better": "green", "worse": "red", "": "", "pass": "green", "fail": "yellow"}


def show(report: Report, console: Console) -> None:
    """Print the answer, what each effort buys, and the ways to search before anything is re-encoded."""
    text = [Text(f"{line(report.old.name, 45)} → {line(report.new.name, 45)}", style="dim")]
    text.append(Text(line(report.headline, _TWO_LINES), style="bold"))
    text += [Text(f"{i}. {line(one, _TWO_LINES)}") for i, one in enumerate(report.advice[:_MOST_ADVICE], 1)]
    text += [Text(f"! {line(one, _TWO_LINES)}", style="yellow") for one in report.cautions[:_MOST_CAUTIONS]]
    verdict, sentence = shown.check(report.check)
    last = Text(line(sentence, 2 * _TWO_LINES), style=_STYLES[verdict])
    efforts = _efforts(report) if report.choices else None
    used = sum(_height(console, one) for one in [*text, last])
    used += _height(console, efforts) if efforts else 0
    for one in text:
        _print(console, one)
    if efforts:
        console.print(efforts)
    console.print(_arms(report, max(1, min(_MOST_ARMS, LINES - used - 4))))
    _print(console, last)


def _efforts(report: Report) -> Table:
    table = _table(f"By effort: recall@{report.k} with {report.level * 100:g} % interval (≈: level with others)")
    for head in ("Re-encoded", "Time", "Stored", "Recall"):
        table.add_column(Text(head), justify="right", no_wrap=True)
    _name(table)
    for choice in shown.fewer(report.choices, _MOST_CHOICES):
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
    return Table(title=Text(title, style="bold"), box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, padding=(0, 1))


def _name(table: Table) -> None:
    """A column of names, which are cut where there is no room."""
    table.add_column(Text("Way to search"), overflow="ellipsis", no_wrap=True)


def _height(console: Console, part: Text | Table) -> int:
    return len(console.render_lines(part, console.options.update(height=None), pad=False))


def _print(console: Console, text: Text) -> None:
    """Print text from a record: nothing in it is read as markup, an emoji code or something to highlight."""
    console.print(text, markup=False, highlight=False, emoji=False)
