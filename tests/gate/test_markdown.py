"""The comment on a pull request: short enough, and nothing in it but what it says."""

from __future__ import annotations

import re

import pytest
from made_results import ALL, HOSTILE, MARKED, broken, hostile, result

from instar.gate import markdown
from instar.gate.result import Group


def prose(text: str) -> str:
    """What GitHub would read for mentions, references and links: all but the code spans."""
    return re.sub(r"(?<![`\\])(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize(("decision", "sign"), [("pass", "✅"), ("fail", "❌"), ("undecided", "❔")])
def test_the_answer_is_the_first_line(decision: str, sign: str) -> None:
    text = markdown.render(ALL[decision]())
    assert text.splitlines()[0] == f"## {sign} {decision.upper()}: minilm-v1.jsonl → minilm-v2.jsonl"
    for part in (
        "| all items |",
        "3080",
        "Noise floor: 1.1 %",
        "` banking-00000 `",
        "| domain = banking |",
        "--policy gate.toml",
    ):
        assert part in text


@pytest.mark.parametrize("name", list(ALL))
def test_it_is_short_enough_and_its_tables_are_whole(name: str) -> None:
    text = markdown.render(ALL[name]())
    assert len(text) < markdown.LONGEST
    assert text.count("<details>") == text.count("</details>")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        columns = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(columns) == 1, table


@pytest.mark.parametrize("name", list(ALL))
def test_nothing_in_it_mentions_refers_links_or_is_markup(name: str) -> None:
    text = markdown.render(ALL[name]())
    said = prose(text)
    assert not re.search(r"@\w", said)
    assert not re.search(r"#\d", said)
    assert "://" not in said
    assert not re.search(r"www\.", said)
    assert not re.search(r"(?<!\\)[\[\]`]", said)
    assert set(re.findall(r"<[^>]*>", said)) <= {"<details>", "</details>", "<summary>", "</summary>", "<br>", "<sub>", "</sub>",
                                                 "<span>", "</span>"}  # fmt: skip
    assert not re.search(r"^(#|=|---)", "\n".join(said.splitlines()[1:]), re.M)
    assert not set("\x00\x07\x1b\u202e\ud800") & set(text)


def test_at_most_ten_items_of_different_groups() -> None:
    text = markdown.render(ALL["large"]())
    assert len(re.findall(r"^- ` banking-", text, re.M)) == 10
    for first in ("00000", "01200", "02100", "02600", "02900"):  # the worst of every group
        assert f"banking-{first}" in text


def test_the_longest_texts_leave_out_parts_but_never_break_one() -> None:
    text = markdown.render(hostile("$|`<&@" * 200))
    assert len(text) < markdown.LONGEST
    assert text.count("<details>") == text.count("</details>")


def test_code_spans_hold_any_text() -> None:
    assert markdown.code("a `b` ``c`` d") == "``` a `b` ``c`` d ```"
    assert markdown.code("a|b", cell=True) == "` a\\|b `"
    assert markdown.code("") == "`   `"
    assert "\n" not in markdown.code(HOSTILE + MARKED)


def test_prose_is_escaped_only_where_needed() -> None:
    assert markdown.plain("minilm-v1.jsonl: 2.3 % of all") == "minilm-v1.jsonl: 2.3 % of all"
    assert markdown.plain("1. one") == "1\\. one"
    assert markdown.plain("- one") == "\\- one"
    assert markdown.plain("*a* _b_ <c> &d;") == "\\*a\\* \\_b\\_ &lt;c&gt; &amp;d;"


def test_an_item_says_what_is_right_only_where_that_is_news() -> None:
    items = [broken(0, label="x", before="y", after="z")]
    assert "right is ` x `" in markdown.render(result("fail", broken=[Group("t", 1, 1.0, items)]))
    assert "right is" not in markdown.render(result("fail"))
