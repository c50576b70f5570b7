"""Texts of cards in Markdown are shown, never obeyed."""

from __future__ import annotations

import html
import inspect
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instar import catalogue
from instar.errors import DataError
from instar.site import docstrings, equation, links, methods, text

sys.path.append(str(Path(__file__).parents[1] / "shelf"))
from hostile_cards import HOSTILE, Hostile, hostile
from made_judgements import judgement

SIGNS = "`*_{}[]()#+-.!|~^<>&\"'\\/:=@$% \n\t"
TEXTS = st.text(st.sampled_from(SIGNS) | st.characters(), max_size=60)


class Reader(HTMLParser):
    """Tags, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(source: str) -> Reader:
    extensions = ["tables", "attr_list", "md_in_html", "toc", "pymdownx.superfences"]
    return Reader(markdown.markdown(source, extensions=extensions))


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example(HOSTILE)
@example("1. one")
@example("    four")
@example('{{ 7 * 7 }} {% raw %} --8<-- "file" ::: instar')
@example("&lt;b&gt; &#60;")
def test_prose_says_what_the_card_says(said: str) -> None:
    found = rendered(text.plain(said))
    wanted = re.sub(r"`([^`]+)`", r"\1", " ".join(text.clean(said).split()))
    assert found.text.strip() == wanted.strip()
    assert set(found.tags) <= {"p", "code"}


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_code_and_cells_too(said: str) -> None:
    found = rendered(text.table(["a", "b"], [[text.code(said), text.plain(said)]]))
    assert found.tags.count("td") == 2
    assert found.tags.count("tr") == 2
    assert set(found.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("`~ab<{|\n "), max_size=60))
def test_a_block_of_code_is_not_closed_from_inside(said: str) -> None:
    found = rendered(f"{text.block(said)}\n\nafter")
    assert found.text.rstrip().endswith("after")
    assert found.tags[-1] == "p"
    assert "".join(said.split()) in "".join(found.text.split())


def test_a_link_goes_to_the_web_or_nowhere() -> None:
    assert rendered(text.link("x", "https://example.org/a?b=c&d=%20")).tags == ["p", "a"]
    for address in ("javascript:alert(1)", "https://", "data:text/html,x", "//example.org", ""):
        assert rendered(text.link("x", address)).tags == ["p"]
    assert 'onclick="' not in html.unescape(text.link("x", 'https://e.org/"onclick="alert(1)')).replace("%22", "")


def test_names_of_files_stay_in_their_folder() -> None:
    for name in ("../../etc", "a/b", "C:\\x", "..", "", "<script>", "a\x00b"):
        assert re.fullmatch(r"[\w-][\w.-]*", text.file(name)), name


def test_docstrings_keep_their_words_and_lists() -> None:
    said = """y_t = W_o [norm(o_t) ∘ *x*].

    Legend:
        B batch · T time

    Args:
        width: D. heads: `H`.
        gate: "vector" a gate,
            or "none".

    Shapes: x [B, T, D] -> y. Raises ShapeError.
    """
    found = rendered(docstrings.markdown(inspect.cleandoc(said)))
    assert found.tags.count("li") == 2
    assert found.tags.count("pre") == 1
    assert "em" not in found.tags
    assert "".join(found.text.split()) == "".join(said.replace("`", "").replace("Args:", "Arguments").split())


def test_links_between_pages_hold_and_others_become_paths(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "src").mkdir()
    page, readme = tmp_path / "docs" / "deep" / "a.md", tmp_path / "README.md"
    page.parent.mkdir()
    readme.write_text("[a](docs/deep/a.md#x)", "utf-8")
    page.write_text(
        "# A `b`\n[home](../../README.md) [`src`](../../src) [code](../../src)\n```md\n[no](nothing.md)\n```\n", "utf-8"
    )
    names = {page: "deep/a.md", readme: "index.md"}
    assert links.moved(readme, tmp_path, names) == "[a](deep/a.md#x)"
    moved = links.moved(page, tmp_path, names)
    assert "[home](../index.md) <code>src</code> code (<code>src</code>)" in moved
    assert "[no](nothing.md)" in moved
    assert links.title(moved) == "A b"
    page.write_text("[no](nothing.md)", "utf-8")
    with pytest.raises(DataError, match=r"nothing\.md"):
        links.moved(page, tmp_path, names)


def test_equations_are_set_or_shown_and_nothing_else() -> None:
    for latex in (card.equation for card in catalogue.methods().values() if card.equation):
        assert equation.mathml(latex) is not None, latex
    bad = [r"\text{<script>alert(1)</script>}", r"a \unknown b", "x_a_b", r"\text{</math><img src=x onerror=alert(1)>}"]
    for latex in bad:
        assert equation.mathml(latex) is None, latex
        assert set(rendered(equation.markdown(latex)).tags) <= {"div", "pre", "code", "span"}
    assert "<mo>&#x0003C;</mo>" in str(equation.mathml("a<b"))


def test_a_hostile_card_is_only_shown() -> None:
    with catalogue.holding(hostile(), Hostile):
        page = methods.page(
            hostile(), [replace(judgement(), method="hostile", text=HOSTILE, reason=HOSTILE, paper_value=HOSTILE)]
        )
    found = rendered(page)
    assert not {"script", "img"} & set(found.tags)
    assert found.text.count("alert(1)") >= 5
