"""The judgement in a terminal or the log of a build: it reads without colour and at 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from instar.gate import shown
from instar.gate.result import Broken, Decision, Result
from instar.report import units

_STYLES: dict[Decision, str] = {"pass": "bold green", "fail": "bold red", "undecided": "bold yellow"}
_MOST_REASONS, _MOST_TESTS, _MOST_SLICES, _MOST_GROUPS, _MOST_ITEMS, _MOST_MISSING = 4, 20, 8, 5, 3, 5


def show(result: Result, console: Console) -> None:
    """Print the judgement: the answer in the first and in the last line, between them why and what broke."""
    _print(console, _verdict(result))
    _print(console, shown.headline(result))
    for text in result.cautions:
        _print(console, f"! {shown.line(text, 500)}", "yellow")
    for text in result.reasons[:_MOST_REASONS] if result.decision != "pass" else []:
        _print(console, f"· {shown.line(text, 500)}")
    if noise := shown.noise(result):
        _print(console, noise, "dim")
    if result.tests:
        console.print(_tests(result))
    console.print(_sides(result))
    if moved := shown.flows(result):
        _print(console, "\nItems: " + "; ".join(f"{units.number(count)} {words}" for _, words, count in moved))
    if result.measures:
        console.print(_measures(result))
    if result.slices:
        console.print(_slices(result))
    _broken(result, console)
    _missing(result, console)
    _print(console, _verdict(result))


def _verdict(result: Result) -> Text:
    text = Text(f"{shown.SIGNS[result.decision]} {shown.WORDS[result.decision]}", style=_STYLES[result.decision])
    return text.append(f"  {shown.line(result.old.name, 60)} → {shown.line(result.new.name, 60)}", style="not bold default")


def _tests(result: Result) -> Table:
    table = _table("What was tested", ["", "Where", "Budget", "Found"], right=(3,))
    tests = sorted(result.tests, key=lambda t: shown.ORDER[t.decision])
    for test in tests[:_MOST_TESTS]:
        size = f"\n{units.number(test.items)} items" + (f"; {units.number(test.needed)} would decide" if test.needed else "")
        table.add_row(
            Text(f"{shown.SIGNS[test.decision]} {test.decision}", style=_STYLES[test.decision]),
            Text(shown.line(test.scope, 60)).append(size, style="dim"),
            Text(shown.asked(test, result)),
            _figure(*shown.figure(test.figure, shown.unit(test, result.binary))),
        )
    if len(tests) > _MOST_TESTS:
        table.add_row("", Text(f"{len(tests) - _MOST_TESTS} more"), "", "")
    return table


def _sides(result: Result) -> Table:
    table = _table("Before and after", ["", "Old", "New"], right=(1, 2))
    for title, both in shown.sides(result):
        table.add_row(Text(title), *(_figure(value, interval) for value, interval in both))
    return table


def _measures(result: Result) -> Table:
    table = _table("Measures", ["", "Value", "What it means"], right=(1,))
    for m, value, interval in shown.measures(result):
        table.add_row(Text(shown.line(m.title, 60)), _figure(value, interval), Text(shown.line(m.explanation)))
    return table


def _slices(result: Result) -> Table:
    title = f"Slices, the most suspicious of {units.number(len(result.slices))}"
    table = _table(
        title,
        ["", "Items", *(("Broken", "Repaired") if result.binary else ("Fell", "Rose")), "Negative flips", "p"],
        right=(1, 2, 3, 4, 5),
    )
    for s in result.slices[:_MOST_SLICES]:
        table.add_row(
            Text(f"{shown.line(s.column, 30)} = {shown.line(s.value, 40)}"),
            *(Text(units.number(count)) for count in (s.items, s.negative, s.positive)),
            _figure(*shown.figure(s.nfr, "share")),
            Text(shown.probability(s.p)),
        )
    return table


def _broken(result: Result, console: Console) -> None:
    if not result.broken_ids:
        _print(console, f"\nNothing broke: {shown.moved(result)}.", "bold")
        return
    _print(console, f"\nWhat broke: {shown.moved(result)}", "bold")
    for group in result.broken[:_MOST_GROUPS]:
        _print(console, f"{shown.line(group.title, 60)} ({units.number(group.size)})", "bold", indent=2)
        for item in group.items[:_MOST_ITEMS]:
            _print(console, _item(item, result), indent=4)
    _print(console, "The page and the record have all of them.", "dim", indent=2)


def _item(item: Broken, result: Result) -> Text:
    text = Text(shown.line(item.id, 40), style="dim")
    if item.input is not None:
        text.append(f"  {shown.line(item.input, 140)}", style="not dim")
    if item.label is not None and item.label != item.before:
        text.append(f"\n  right is {shown.line(item.label, 60)}", style="not dim")
    text.append(f"\n  {shown.line(item.before, 60)}", style="not dim green").append(" → ", style="not dim")
    text.append(shown.line(item.after, 60), style="not dim red")
    always = shown.always(result) if item.always else ""
    return text.append(f"  ({always})") if always else text


def _missing(result: Result, console: Console) -> None:
    if not result.missing:
        return
    _print(console, f"\nItems without an answer: {units.number(result.missing)}; with any of them nothing passes", "bold")
    for name, why in list(result.missing_ids.items())[:_MOST_MISSING]:
        _print(console, f"{shown.line(name, 40)}: {shown.line(why, 140)}", indent=4)


def _figure(value: str, interval: str) -> Text:
    text = Text(value, style="bold")
    return text.append(f"\n{interval}", style="not bold dim") if interval else text


def _table(title: str, heads: list[str], right: tuple[int, ...]) -> Table:
    table = Table(
        title=Text(f"\n{title}", style="bold"), box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, padding=(0, 1)
    )
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if place in right else "left")
    return table


def _print(console: Console, text: str | Text, style: str = "", indent: int = 0) -> None:
    """Print text from a record: nothing in it is read as markup, an emoji code or something to highlight."""
    body = text if isinstance(text, Text) else Text(text, style=style)
    console.print(Padding(body, (0, 0, 0, indent)) if indent else body, markup=False, highlight=False, emoji=False)
