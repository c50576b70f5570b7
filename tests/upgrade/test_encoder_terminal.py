"""The change of an encoder in a terminal and in Markdown: short, plain, and steered by nothing that is printed."""

from __future__ import annotations

import io
import re

import pytest
from made_reports import ALL, hostile
from rich.console import Console

from instar.gate.markdown import LONGEST
from instar.upgrade import markdown, terminal
from instar.upgrade.result import Report


def printed(made: Report, width: int = terminal.WIDTH, **given: object) -> str:
    out = io.StringIO()
    terminal.show(made, Console(file=out, width=width, **given))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("width", [60, terminal.WIDTH, 200])
def test_it_keeps_to_its_lines_without_escape_sequences(name: str, width: int) -> None:
    lines = printed(ALL[name](), width).splitlines()
    assert max(map(len, lines)) <= width
    if width >= terminal.WIDTH:
        assert len(lines) <= terminal.LINES
    assert not set("\x00\x07\x1b\u202e\ud800") & set("".join(lines))


def test_the_answer_is_first_and_what_it_rests_on_last() -> None:
    made = ALL["fine-tune"]()
    text = printed(made)
    lines = text.splitlines()
    assert lines[0] == "lsa (dims=384) → all-MiniLM-L6-v2"
    assert lines[1] in made.headline
    row = next(one for one in lines if one.lstrip().startswith("New query encoder, no map"))
    assert re.split(r"\s{2,}", row.strip())[1:] == ["72.6 %", "73.0 %", "73.3 %", "74.1 %", "▲ +2.4 points"]
    effort = next(one for one in lines if one.lstrip().startswith("50 %"))
    assert "7.10 h" in effort
    assert "Switching only the query encoder" in effort
    assert "expected." in lines[-1]


def test_what_has_no_room_is_counted_and_what_did_not_run_is_named() -> None:
    text = printed(ALL["large"]())
    rows = text.split("best first")[1].split("on the page")[0]
    shown = len(re.findall(r"\d %.*points", rows))
    assert f"{len(ALL['large']().arms) - shown} more" in rows
    assert re.search(r"Ridge map\s+not run", printed(ALL["not run"]()))


def test_colours_are_ours_and_markup_of_data_is_text() -> None:
    text = printed(hostile("[bold red]x[/] :boom: [link=https://evil.example]y[/link] \x1b[31mz"), 200, force_terminal=True)
    assert "[bold red]x[/] :boom: [link=https://evil.example]y[/link] �[31mz" in text
    assert "\x1b[31mz" not in text
    assert "\x1b]8" not in text  # no hyperlink


@pytest.mark.parametrize("name", list(ALL))
def test_markdown_is_short_whole_and_nothing_but_what_it_says(name: str) -> None:
    text = markdown.render(ALL[name]())
    assert len(text) < LONGEST
    assert text.count("<details>") == text.count("</details>")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table
    said = re.sub(r"(?<![`\\])(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    assert not re.search(r"@\w*[a-z]", said)
    assert not re.search(r"#\d", said)
    assert "://" not in said
    assert not re.search(r"(?<!\\)[\[\]`]", said)
    assert set(re.findall(r"<[^>]*>", said)) <= {"<details>", "</details>", "<summary>", "</summary>", "<sub>", "</sub>",
                                                 "<span>", "</span>"}  # fmt: skip
    assert not set("\x00\x07\x1b\u202e\ud800") & set(text)


def test_markdown_gives_the_answer_the_efforts_and_the_check() -> None:
    made = ALL["unrelated"]()
    text = markdown.render(made)
    assert text.startswith(f"## Change of encoder: lsa \\(dims=384\\) → all-MiniLM-L6-v2\n\n**{made.headline}**\n\n1. ")
    for part in ("| 50 % | 7.10 h | Asking with both encoders | 69.2 % | 67.9 … 70.5 | 69.6 % |", "✅ All", made.command,
                 "| BT² | 58.5 % (57.2 … 59.8) | 67.5 %", "20 000 documents"):  # fmt: skip
        assert part in text, part
    assert "⚠️" in markdown.render(ALL["no truth"]())
