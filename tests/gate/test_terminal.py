"""The judgement in a terminal: readable without colour at 80 columns, and steered by nothing that it prints."""

from __future__ import annotations

import io

import pytest
from made_results import ALL, hostile
from rich.console import Console

from instar.gate import terminal
from instar.gate.result import Result


def printed(made: Result, width: int = 80, **given: object) -> str:
    out = io.StringIO()
    terminal.show(made, Console(file=out, width=width, **given))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize(("decision", "sign"), [("pass", "✓"), ("fail", "✗"), ("undecided", "?")])
def test_the_answer_is_first_and_last(decision: str, sign: str) -> None:
    lines = printed(ALL[decision]()).splitlines()
    assert lines[0] == lines[-1] == f"{sign} {decision.upper()}  minilm-v1.jsonl → minilm-v2.jsonl"


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_keeps_to_the_width_without_escape_sequences(name: str, width: int) -> None:
    text = printed(ALL[name](), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert not set("\x00\x07\x1b\u202e\ud800") & set(text)


def test_what_matters_is_there_and_the_rest_is_counted() -> None:
    text = printed(ALL["large"](), 120)
    for part in (
        "What was tested",
        "domain = banking",
        "negative flips (NFR)",
        "most suspicious of 500",
        "3\u202f000 items broke",
        "card_arrival → card_delivery_estimate",
        "Items without an answer: 3",
        "timeout after 30 s",
    ):
        assert part in text
    assert text.count("banking-0") < 25
    assert len(text.splitlines()) < 130


def test_colours_are_ours_and_markup_of_data_is_text() -> None:
    text = printed(hostile("[bold red]x[/] :boom: [link=https://evil.example]y[/link] \x1b[31mz"), 200, force_terminal=True)
    assert "[bold red]x[/] :boom: [link=https://evil.example]y[/link] �[31mz" in text
    assert "\x1b[31mz" not in text
    assert "\x1b]8" not in text  # no hyperlink


def test_nothing_broke() -> None:
    assert "Nothing broke" in printed(ALL["plain"]())
