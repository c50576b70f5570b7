"""The report on a change of encoder as an issue or a comment on a pull request, in the Markdown of GitHub.

Texts from the record must not become markup, mention people, refer to issues or link anywhere (see `gate.markdown`).
"""

from __future__ import annotations

from collections.abc import Sequence

from instar.gate.markdown import LONGEST, code, plain
from instar.report import units
from instar.upgrade import shown
from instar.upgrade.result import Arm, Report

_MOST_SENTENCES, _MOST_CHOICES, _MOST_ARMS = 8, 20, 40
_SIGNS = {"pass": "✅ ", "unsure": "❔ ", "fail": "⚠️ ", "": ""}


def render(report: Report) -> str:
    """The comment, shorter than `LONGEST` characters: the answer first, then whatever still fits."""
    names = f"{plain(report.old.name, 80)} → {plain(report.new.name, 80)}"
    text = f"## Change of encoder: {names}\n\n**{plain(report.headline, 600)}**\n"
    command = f"{code(report.command, 600)}. " if report.command else ""
    end = f"\n<sub>{command}Measured on {plain(shown.scope(report), 300)}. The page has every figure.</sub>\n"
    left = LONGEST - len(text) - len(end)
    for block in _blocks(report):
        if len(block) + 1 <= left:
            text += f"\n{block}"
            left -= len(block) + 1
    return text + end


def _blocks(report: Report) -> list[str]:
    verdict, sentence = shown.check(report.check)
    found = [_list(report.advice), "".join(f"> {plain(one, 500)}\n\n" for one in report.cautions[:_MOST_SENTENCES])]
    found += [_efforts(report)] if report.choices else []
    found.append(f"{_SIGNS[verdict]}{plain(sentence, 600)}\n")
    found.append(f"Recall@{report.k}: the share of {shown.TRUTH[report.truth]} that stands among the first {report.k} results.\n")
    return [block for block in (*found, _arms(report)) if block]


def _efforts(report: Report) -> str:
    rows = [
        (
            shown.share(c.fraction),
            shown.hours(c.hours),
            plain(units.sentence(c.words), 120) + ("" if c.sure else " (level with others)"),
            *(text or "–" for text in shown.figure(c.recall)),
            shown.realised(c.recall) or "–",
        )
        for c in shown.fewer(report.choices, _MOST_CHOICES)
    ]
    heads = ["Re-encoded", "Time", "Way to search", f"Recall@{report.k}", f"{report.level * 100:g} % interval", "Held out"]
    return _table(heads, rows)


def _arms(report: Report) -> str:
    found = [*shown.ran(report), *(a for a in report.arms if not a.curve)]
    rows = [_arm(a) for a in found[:_MOST_ARMS]]
    more = f"\n{units.number(len(found) - _MOST_ARMS)} more are on the page.\n" if len(found) > _MOST_ARMS else ""
    table = _table(["Way to search", "Now", "Half re-encoded", "All re-encoded", "Now against the old search"], rows)
    return f"<details><summary>All ways to search, best first</summary>\n\n{table}{more}\n</details>\n"


def _arm(arm: Arm) -> tuple[str, ...]:
    name = plain(shown.called(arm), 80)
    if not arm.curve:
        return name, "–", "–", "–", f"not run: {plain(arm.not_run, 200)}"
    stages = shown.stages(arm)
    against = "–" if stages[0] is None else plain(shown.difference(stages[0].against_old))
    return name, *("–" if p is None else shown.around(p.recall) for p in stages), against


def _list(sentences: Sequence[str]) -> str:
    return "".join(f"{i}. {plain(text, 500)}\n" for i, text in enumerate(sentences[:_MOST_SENTENCES], 1))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
