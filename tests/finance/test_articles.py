"""Addresses, texts, duplicates and symbols: one article is one article, and about the companies that it names."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instar.data.finance.duplicates import NEAR, WINDOW, Copy, Seen, find, simhash
from instar.data.finance.symbols import Linker, Symbol, read_symbols
from instar.data.finance.urls import canonical
from instar.data.finance.words import LONGEST, digest, plain, sentences
from instar.errors import DataError

PLAIN = "https://news.example/alu-wins%20again"


@pytest.mark.parametrize(
    "same",
    [
        "http://News.Example/alu-wins%20again",
        "https://news.example:443/alu-wins%20again/",
        "https://news.example/alu-wins%20again?utm_source=rss&utm_medium=feed",
        "https://news.example/./x/../alu%2Dwins%20again#top",
        "https://user@news.example./alu-wins again?fbclid=123&ref=home",
    ],
)
def test_one_article_has_one_address(same: str) -> None:
    assert canonical(same) == PLAIN


def test_colons_and_dollars_are_one_spelling_and_what_names_the_page_stays() -> None:
    assert canonical("https://a.example/x%3A-%24y") == canonical("https://a.example/x:-$y")
    assert canonical("https://a.example/?b=2&a=1") == canonical("https://a.example/?a=1&b=2&utm_id=9")
    different = [
        "https://a.example/?a=1",
        "https://a.example/?a=2",
        "https://a.example/a%2Fb",
        "https://a.example/a/b",
        "https://a.example:8080/",
    ]
    assert len({canonical(one) for one in different}) == len(different)


@pytest.mark.parametrize(
    "bad", ["javascript:alert(1)", "mailto:a@b.example", "//x", "file:///etc/passwd", "https://", "http://[::1", "https://a b/"]
)
def test_what_is_no_address_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"address|host"):
        canonical(bad)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.text(max_size=20))
def test_the_canonical_address_of_a_canonical_address_is_itself(path: str, query: str) -> None:
    try:
        once = canonical(f"https://a.example/{path}?{query}")
    except ValueError:
        return
    assert canonical(once) == once


def test_markup_becomes_text_without_what_runs_or_steers() -> None:
    hostile = (
        "<p>Alu &amp; Co<script>steal('&lt;')</script> rose.</p><style>p{}</style>"
        "<iframe src=x>no</iframe>\x1b[31m\x00Fine\u200b."
    )
    text = plain(hostile)
    assert text.splitlines()[0] == "Alu & Co rose."
    assert "Fine" in text
    assert not any(word in text for word in ("steal", "p{}", "no", "\x1b", "\x00", "\u200b"))
    assert plain("<b>unclosed <i>tags") == "unclosed tags"
    assert plain("Alu <![foo[ x ]]>won <![ y>again") == "Alu won again"  # sections that no HTML has
    assert plain("a < b and \ud800c") == "a < b and c"
    assert len(plain("long " * LONGEST)) <= LONGEST
    assert digest("It’s  ALU.") == digest("it's alu")
    assert digest(" — ") == ""


def test_sentences_end_where_they_do() -> None:
    text = "Alu Inc. rose by 3.5 percent. Mr. Smith said “it is well.” Sales on Jan. 5 fell! Why? 7 reasons"
    assert sentences(text) == [
        "Alu Inc. rose by 3.5 percent.",
        "Mr. Smith said “it is well.”",
        "Sales on Jan. 5 fell!",
        "Why?",
        "7 reasons",
    ]


def text_of(seed: int, words: int = 200) -> str:
    return " ".join(f"w{n}" for n in np.random.default_rng(seed).integers(500, size=words))


def test_simhash_is_near_for_near_texts_and_half_for_others() -> None:
    one = text_of(0)
    code = simhash(one)
    assert code is not None
    assert simhash(one.upper() + " .") == code
    near = one.replace(one.split()[100], "changed", 1)
    assert (code ^ (simhash(near) or 0)).bit_count() <= 8
    far = [(code ^ (simhash(text_of(seed)) or 0)).bit_count() for seed in range(1, 200)]
    assert abs(np.mean(far) - 32) < 2
    assert simhash("seven words are not enough for one") is None


def seen(key: str, known: int = 0, url: str = "", body: str = "", code: int | None = None, of: str = "") -> Seen:
    return Seen(key, url, known, body, code, frozenset(of.split()))


def test_copies_are_told_by_address_body_and_near_words_and_the_earliest_stays() -> None:
    rows = [
        seen("late", 9, "u1"),
        seen("first", 1, "u1", "b1", 0b1111),
        seen("twin", 1, "u1"),
        seen("body", 5, "u2", "b1"),
        seen("near", 6, "u3", "b3", 0b1000),
        seen("other", 6, "u4", "b4", 0b1111_0000_1111),
        seen("week", 2 + WINDOW, "u5", "b5", 0b1111),
    ]
    stay, copies, same = find(rows)
    assert stay == ["first", "other", "week"]
    assert copies == [
        Copy("body", "first", "body", True),
        Copy("near", "first", "near", False),
        Copy("late", "first", "url", True),
    ]
    assert same == [("twin", "first")]
    assert find(rows[::-1]) == (stay, copies, same)
    assert find(rows, urls=False, near=False) == (["first", "twin", "body", "near", "other", "late", "week"], [], [])


def test_one_template_about_several_companies_makes_no_copies() -> None:
    rows = [
        seen("alu", 1, "u1", "b1", 0b1111, "ALU"),
        seen("bor", 2, "u2", "b2", 0b1110, "BOR"),
        seen("both", 3, "u3", "b3", 0b1101, "ALU BOR"),
        seen("unsaid", 4, "u4", "b4", 0b1011),
        seen("again", 5, "u5", "b5", 0b1110, "BOR"),
        seen("changed", 6, "u1", "b6", None, "CUP"),
    ]
    stay, copies, _ = find(rows)
    assert stay == ["alu", "bor"]
    assert [(copy.key, copy.of) for copy in copies] == [("both", "alu"), ("unsaid", "alu"), ("again", "bor"), ("changed", "alu")]
    assert not any(copy.same_words for copy in copies)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="<>![]/-?&#;ax\"' \n", max_size=60))
def test_any_markup_is_read(markup: str) -> None:
    for text in (markup, "<![" + markup, "<![a[" + markup):
        assert len(plain(text)) <= len(text)


def test_the_blocks_find_what_a_plain_search_finds() -> None:
    draw = np.random.default_rng(0)
    codes = [int(value) for value in draw.integers(2**63, size=40, dtype=np.uint64)]
    for code in codes[:40]:
        flips = draw.choice(64, int(draw.integers(0, 6)), replace=False)
        codes.append(code ^ sum(1 << int(bit) for bit in flips))
    rows = [seen(f"k{i:03d}", i * (WINDOW // 60), f"u{i}", "", code) for i, code in enumerate(codes)]
    stay: list[int] = []
    for i, code in enumerate(codes):
        near = [j for j in stay if (i - j) * (WINDOW // 60) <= WINDOW and (codes[j] ^ code).bit_count() <= NEAR]
        if not near:
            stay.append(i)
    assert find(rows)[0] == [f"k{i:03d}" for i in stay]
    assert len(stay) < len(codes)


def test_later_articles_never_change_what_earlier_ones_are() -> None:
    draw = np.random.default_rng(1)
    rows = [
        seen(f"{i}", int(draw.integers(50)), f"u{draw.integers(20)}", f"b{draw.integers(20)}", int(draw.integers(16)))
        for i in range(200)
    ]
    whole = find(rows)
    for cut in (5, 20, 40):
        kept = {row.key for row in rows if row.known <= cut}
        part = find([row for row in rows if row.key in kept])
        assert part[0] == [key for key in whole[0] if key in kept]
        assert part[1] == [copy for copy in whole[1] if copy.key in kept]


LINKER = Linker(
    [
        Symbol("ALU", ("Alu Works",)),
        Symbol("A", ("Agil",)),
        Symbol("ALL", ("Allsure Corp",)),
        Symbol("OLD", ("Oldco",), date(2000, 1, 1), date(2010, 12, 31)),
        Symbol("OLD", ("Newold",), date(2015, 1, 1)),
        Symbol("BRK.B"),
    ]
)
DAY = date(2023, 5, 1)


@pytest.mark.parametrize(
    ("title", "body", "expected"),
    [
        ("ALU jumps", "", {"ALU": "ticker"}),
        ("Aluminium and ALUMNI", "Value", {}),
        ("ALU-led rally", "", {"ALU": "ticker"}),
        ("Alu Works rose", "", {"ALU": "name"}),
        ("ALU WORKS ROSE ALL DAY", "", {"ALU": "name"}),
        ("alu works", "the alu works", {}),
        ("A good day for ALL", "", {}),
        ("Buy (NYSE: A) and $ALL", "", {"A": "exchange", "ALL": "cashtag"}),
        ("Allsure Corp and Agil", "", {"ALL": "name", "A": "name"}),
        ("Shares of BRK.B", "", {"BRK.B": "ticker"}),
        ("$BRK.B.", "", {"BRK.B": "cashtag"}),
        ("Newold again", "", {"OLD": "name"}),
        ("A $ALUX and ALU.X", "", {}),
    ],
)
def test_which_companies_an_article_names(title: str, body: str, expected: dict[str, str]) -> None:
    links, unknown = LINKER.links(title, body, (), DAY)
    assert {link.symbol: link.rule for link in links} == expected
    assert unknown == []


def test_symbols_hold_in_their_days_and_titles_say_more_than_bodies() -> None:
    assert LINKER.valid("OLD", date(2005, 5, 5))
    assert not LINKER.valid("OLD", date(2012, 5, 5))
    links, unknown = LINKER.links("", "", ["old", "ZZZ"], date(2012, 5, 5))
    assert (links, unknown) == ([], ["OLD", "ZZZ"])
    title, body = (LINKER.links(*texts, (), DAY)[0][0].relevance for texts in (("ALU rose", ""), ("", "ALU rose")))
    assert title > body
    assert LINKER.links("Oldco", "", (), date(2016, 5, 5)) == ([], [])  # the ticker is Newold's by then
    assert LINKER.links("ALU", "", ["ALU"], DAY)[0][0].rule == "given"
    free = Linker([])
    assert free.links("ALU", "", ["XYZ", "<b>", "x" * 50], DAY)[1] == ["<B>", "X" * 50]


def test_a_table_of_symbols_is_read_and_its_errors_are_told(tmp_path: Path) -> None:
    path = tmp_path / "symbols.csv"
    path.write_text("symbol,name,aliases,from,to\nalu,Alu Works,Alu|Aluminium Works,2001-02-03,\n^IX,,,,2020-01-01\n")
    first, second = read_symbols(path)
    assert first == Symbol("ALU", ("Alu Works", "Alu", "Aluminium Works"), date(2001, 2, 3), date.max)
    assert (second.symbol, second.names, second.last) == ("^IX", (), date(2020, 1, 1))
    for text, match in (
        ("name\nAlu\n", "column symbol"),
        ("symbol\n../x y\n", "line 2"),
        ("symbol,from\nALU,yesterday\n", "line 2"),
        ("symbol,name\nALU,Alu Works, Inc.\n", "more fields"),
        ("symbol,from,to\nALU,2020-01-02,2020-01-01\n", "before it begins"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=match):
            read_symbols(path)
    path.write_bytes(b"symbol\n\xff\xfe\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_symbols(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_symbols(tmp_path / "none.csv")
