"""The judgement as a comment on a pull request, in the Markdown of GitHub.

Texts from the record must not become markup, mention people, refer to issues or link anywhere. Texts of items stand in code
spans, in which GitHub does none of that; the rest is escaped sign by sign.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from instar.gate import shown
from instar.gate.result import Broken, Decision, Result
from instar.report import units

LONGEST = 60_000
"""Characters; GitHub refuses a comment of more than 65,536."""
_SIGNS: dict[Decision, str] = {"pass": "✅", "fail": "❌", "undecided": "❔"}
_MOST_TESTS, _MOST_SLICES, _MOST_ITEMS, _MOST_SENTENCES = 20, 8, 10, 4
_MOVED = {True: ("Broken", "Repaired"), False: ("Fell", "Rose")}
_JOINER = "\u2060"
"""Takes no room and belongs to no name: what stands before and after it is no mention, reference or address."""
_STEERS = re.compile(r"[\\`*_{}\[\]()#+!|~]")
_REFERS = re.compile(r"@|(?<=\\)#|:(?=//|[\w+\\-]+:)|(?i:www)(?=\.)|(?i:gh)(?=-\d)|(?i:mailto|xmpp)(?=:)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "<span>$</span>"}


def render(result: Result) -> str:
    """The comment, shorter than `LONGEST` characters: the answer first, then whatever still fits."""
    names = f"{plain(result.old.name, 80)} → {plain(result.new.name, 80)}"
    text = f"## {_SIGNS[result.decision]} {shown.WORDS[result.decision]}: {names}\n\n**{plain(shown.headline(result), 600)}**\n"
    end = f"\n<sub>{_command(result)}The page has every item and slice.</sub>\n"
    left = LONGEST - len(text) - len(end)
    for block in _blocks(result):
        if len(block) + 1 <= left:
            text += f"\n{block}"
            left -= len(block) + 1
    return text + end


def plain(text: str, longest: int = 300) -> str:
    """A text as prose: no markup, HTML, mention, reference or link can come of it."""
    text = _STEERS.sub(r"\\\g<0>", "".join(_HTML.get(c, c) for c in shown.line(text, longest)))
    text = re.sub(r"^(\d*)(-|=|(?<=\d)\.(?=\s))", r"\1\\\2", text)  # at the start of a line these make lists and rules
    return _REFERS.sub(lambda m: m[0] + _JOINER, text)


def code(text: str, longest: int = 300, cell: bool = False) -> str:
    """A text as a code span; `cell`: inside a table, where even there an upright bar would part cells."""
    text = shown.line(text, longest) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    text = text.replace("|", "\\|") if cell else text
    return f"{fence} {text} {fence}"


def _blocks(result: Result) -> Iterator[str]:
    """The parts from the most to the least important; each is whole in itself."""
    if result.cautions:
        yield _list(result.cautions)
    if result.reasons and result.decision != "pass":
        yield _list(result.reasons)
    if result.tests:
        yield _tests(result)
    yield _sides(result)
    if result.broken:
        yield _broken(result)
    if result.slices:
        yield _slices(result)
    if result.measures:
        rows = [
            (plain(m.title, 80), plain(value), interval, plain(m.explanation)) for m, value, interval in shown.measures(result)
        ]
        yield _folded("Measures", _table(["Measure", "Value", "Interval", "What it means"], rows))
    if result.missing_ids:
        some = itertools.islice(result.missing_ids.items(), _MOST_ITEMS)
        lacking = [(code(name, 80, cell=True), plain(why)) for name, why in some]
        yield _folded(f"{units.number(result.missing)} items without an answer", _table(["Item", "Reason"], lacking))


def _tests(result: Result) -> str:
    tests = sorted(result.tests, key=lambda t: shown.ORDER[t.decision])
    rows = [
        (
            f"{_SIGNS[t.decision]} {t.decision}",
            plain(t.scope, 80),
            plain(shown.asked(t, result)),
            *shown.figure(t.figure, shown.unit(t, result.binary)),
            units.number(t.items) + (f" (about {units.number(t.needed)} would decide)" if t.needed else ""),
        )
        for t in tests[:_MOST_TESTS]
    ]
    table = _table(["Decision", "Where", "Budget", "Found", f"{result.level * 100:g} % interval", "Items"], rows)
    more = f"\n{units.number(len(tests) - len(rows))} more tests are on the page.\n" if len(tests) > len(rows) else ""
    noise = shown.noise(result)
    return f"{table}{more}\n{plain(noise, 600)}\n" if noise else f"{table}{more}"


def _sides(result: Result) -> str:
    rows = [(plain(title), *(f"{v} ({i})" if i else v for v, i in both)) for title, both in shown.sides(result)]
    return _table(["", "Old", "New"], rows)


def _broken(result: Result) -> str:
    items = _spread([group.items for group in result.broken])
    titles = ", ".join(f"{plain(g.title, 80)} ({units.number(g.size)})" for g in result.broken[:_MOST_SLICES])
    body = f"Groups of alike items, the worst first: {titles}.\n\n" + "".join(_item(item, result) for item in items)
    return _folded(f"{shown.moved(result)}: {len(items)} of the worst", body)


def _item(item: Broken, result: Result) -> str:
    lines = [f"- {code(item.id, 80)} {shown.always(result) if item.always else ''}".rstrip()]
    lines += [f"  asked {code(item.input)}"] if item.input is not None else []
    lines += [f"  right is {code(item.label)}"] if item.label is not None and item.label != item.before else []
    lines += [f"  before {code(item.before)}", f"  now {code(item.after)}"]
    return "<br>\n".join(lines) + "\n"


def _spread(groups: Sequence[Sequence[Broken]]) -> list[Broken]:
    """The worst of every group, then the second, …: ten that are alike would say one thing ten times."""
    rounds = itertools.zip_longest(*groups)
    return list(itertools.islice((item for turn in rounds for item in turn if item is not None), _MOST_ITEMS))


def _slices(result: Result) -> str:
    rows = [
        (
            f"{plain(s.column, 40)} = {plain(s.value, 60)}",
            units.number(s.items),
            units.number(s.negative),
            units.number(s.positive),
            *shown.figure(s.nfr, "share"),
            plain(shown.probability(s.p)),
        )
        for s in result.slices[:_MOST_SLICES]
    ]
    table = _table(["Slice", "Items", *_MOVED[result.binary], "Negative flips", f"{result.level * 100:g} % interval", "p"], rows)
    return _folded(f"The {len(rows)} most suspicious of {units.number(len(result.slices))} slices", table)


def _list(sentences: Sequence[str]) -> str:
    return "".join(f"- {plain(text, 500)}\n" for text in sentences[:_MOST_SENTENCES])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n</details>\n"


def _command(result: Result) -> str:
    return f"{code(result.command, 600)}. " if result.command else ""
