"""The page of a change of encoder: complete, escaped, closed to the outside, the same from the same record, usable."""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_reports import ALL, EXAMPLES, MARKED, report

from instar.upgrade import drawing, page, shown
from instar.upgrade.result import Figure, as_json, load

sys.path.append(str(Path(__file__).parent.parent / "report"))  # the browser of the report's tests
from report_browser import Browser

PROGRAM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (chromium, chromium-browser or google-chrome)")


class Reader(HTMLParser):
    """Collects tags, attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        self.text += "" if self._inside else f"{data} "


@functools.cache
def text_of(name: str) -> str:
    return page.render(ALL[name]())


@functools.cache
def page_of(name: str) -> Reader:
    return Reader(text_of(name))


def test_the_answer_comes_first_and_everything_else_is_there() -> None:
    made, text = ALL["unrelated"](), page_of("unrelated").text
    assert re.search(r"<h1>(.*?)</h1>", text_of("unrelated"), re.S)[1] == made.headline.replace(" %", "\u00a0%")
    headings = ["What to do, by effort", "What is found while rows are re-encoded (recall@10)", "All ways to search",
                "Queries whose first results changed", "How alike the two encoders are", "How to redo it"]  # fmt: skip
    assert re.findall(r"<h2>(.*?)</h2>", text_of("unrelated")) == headings
    said = [*made.advice, *made.cautions, made.command, *(a.title for a in made.arms), *(a.idea for a in made.arms)]
    figures = ["61.2 %", "59.9 … 62.5", "held out 61.6 %", "▼ −2.7 points", "mAP 49.0 %", "14.2 h", "146 MiB"]
    rest = ["quantiles of the cosines", "All 72 predicted recalls", "Linear CKA", "ab" * 32, "squad_nqg dev"]
    for wanted in (*said, *figures, *rest):
        assert wanted in text, wanted


def test_what_could_not_run_says_why_and_what_is_unknown_is_not_made_up() -> None:
    for arm in ALL["not run"]().arms:
        assert arm.not_run in page_of("not run").text
    assert "Time to re-encode all unknown" in page_of("no hours").text
    assert "Relevant is here what the new encoder finds itself" in page_of("no truth").text
    assert "6 of 72 predicted recalls lie more than 2.0 points" in page_of("no truth").text
    bare = page_of("bare")
    assert "the predictions were not checked" in bare.text
    assert not {"efforts", "curve", "examples"} & {a.get("id") for _, a in bare.tags}


def test_the_picture_draws_what_is_recommended_and_its_file_holds_every_figure() -> None:
    made = ALL["large"]()
    drawn = shown.drawn(made)
    assert len(drawn) <= 7
    assert {"two_encoders", "no_map"} <= {a.id for a in drawn}
    assert max((a for a in made.arms if a.kind == "map"), key=lambda a: a.curve[0].recall.value) in drawn
    plot = drawing.backfill(made)
    assert plot is not None
    rows = list(csv.DictReader(io.StringIO(plot.csv)))
    assert len(rows) == sum(len(a.curve) for a in made.arms)
    now = next(r for r in rows if r["arm"] == "bt2" and float(r["share"]) == 0)
    assert (float(now["recall"]), float(now["held_out"])) == (0.585, 0.589)
    assert [f"backfill-arm-{i}" in plot.inline for i in range(8)] == [i < len(drawn) for i in range(8)]
    assert "7.10 h" in plot.inline
    assert drawing.backfill(ALL["bare"]()) is None
    hours = drawing.backfill(ALL["no hours"]())
    assert hours is not None
    assert " h<" not in hours.inline


def test_examples_mark_what_is_right() -> None:
    text = text_of("unrelated")
    assert text.count("✓ relevant") == 4
    assert len(re.findall(r'<article class="example">', text)) == len(EXAMPLES)
    assert "becomes right" in page_of("unrelated").text
    kept = replace(report(), examples=[{**EXAMPLES[0], "arm": EXAMPLES[0]["old"]}])
    assert "As recommended" in page_of("unrelated").text
    assert "As recommended" not in page.render(kept)  # it would say the same as the search as it is now
    assert text_of("large").count('<article class="example">') == 30


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [(Figure(0.03, 0.01, 0.05), "better"), (Figure(-0.03, -0.05, -0.01), "worse"), (Figure(0.03, -0.01, 0.07), ""),
     (Figure(0.03), "")],
)  # fmt: skip
def test_only_what_lies_beyond_chance_is_called_better_or_worse(figure: Figure, verdict: str) -> None:
    assert shown.verdict(figure) == verdict
    made = report()
    points = [replace(p, against_old=figure) for p in made.arms[1].curve]
    text = page.render(replace(made, arms=[made.arms[0], replace(made.arms[1], curve=points)]))
    assert text.count(f'<td class="stage {verdict}"') >= 3


@pytest.mark.parametrize(
    ("within", "worst", "chance", "verdict"),
    [(72, 0.019, 0.01, "pass"), (70, 0.04, 0.05, "unsure"), (70, 0.04, 0.03, "fail")],
)
def test_predictions_are_judged_by_the_margin_and_by_chance(within: int, worst: float, chance: float, verdict: str) -> None:
    made = replace(report().check, within=within, worst=worst, chance=chance)
    assert shown.check(made)[0] == verdict
    sign = {"pass": "✓ All 72", "unsure": "? 2 of 72", "fail": "✗ 2 of 72"}[verdict]
    assert sign in Reader(page.render(replace(report(), check=made))).text


def test_figures_read_as_people_write_them() -> None:
    assert [shown.hours(v) for v in (None, 0, 0.002, 0.05, 14.2, 100)] == [
        "unknown",
        "none",
        "7.2 s",
        "3 min",
        "14.2 h",
        "4.17 days",
    ]
    assert [shown.points(v) for v in (0.031, -0.02704, 0.0, -0.0001)] == [
        "+3.1 points",
        "−2.7 points",
        "0.0 points",
        "0.0 points",
    ]
    assert shown.around(Figure(0.7, 0.65, 0.75)) == "70.0 % (65.0 … 75.0)"
    assert shown.around(Figure(1.0, 1.0, 1.0)) == "100.0 %"
    for most in (3, 7, 11, 20):
        found = shown.fewer(report().choices, most)
        assert len(found) <= most
        assert [found[0].fraction, found[-1].fraction] == [0.0, 1.0]


@pytest.mark.parametrize("name", list(ALL))
def test_nothing_from_a_record_becomes_markup_or_is_loaded(name: str) -> None:
    found = page_of(name)
    names = [tag for tag, _ in found.tags]
    assert names.count("script") == 1
    assert not {"img", "iframe", "object", "embed", "link", "base", "form"} & set(names)
    assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)
    assert not set("\x00\x07\x1b\u202e\u202c\ud800") & set(text_of(name))
    for tag, attributes in found.tags:
        for key, value in attributes.items():
            if key in ("src", "srcset", "data", "action", "poster", "xlink:href", "href"):
                assert (value or "").startswith(("#", "data:")), (tag, key, value)
    ids = [a["id"] for _, a in found.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert all((a.get("href") or "")[1:] in ids for tag, a in found.tags if tag == "a" and (a.get("href") or "").startswith("#"))


def test_hostile_texts_are_still_there_to_read() -> None:
    for part in ("<script>alert(1)</script><img src=x onerror=alert(2)>", "\"'&amp;", "{{ 7*7 }} ]]>", "$x^2$"):
        assert part in page_of("hostile").text
    assert " ".join(MARKED.split())[:50] in page_of("marked").text


def test_the_policy_allows_this_script_and_no_other() -> None:
    policy = next(a["content"] for t, a in page_of("hostile").tags if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text_of("hostile"), re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in str(policy)


@pytest.mark.parametrize("name", ["unrelated", "bare", "hostile", "not run"])
def test_a_record_that_was_kept_gives_the_same_page(name: str, tmp_path: Path) -> None:
    kept = tmp_path / "encoder.json"
    kept.write_text(as_json(ALL[name]()), "utf-8")
    assert load(kept) == ALL[name]()
    assert page.render(load(kept)) == text_of(name)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


def _open(browser: Browser, folder: Path, name: str, width: int, **given: object) -> None:
    path = folder / "encoder.html"
    path.write_text(text_of(name), "utf-8")
    browser.open(path, width, 800, **given)  # type: ignore[arg-type]


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["unrelated", "bare", "hostile", "large"])
def test_it_fits_the_window_without_complaint(browser: Browser, tmp_path: Path, name: str, width: int, dark: bool) -> None:
    _open(browser, tmp_path, name, width, dark=dark, fragment="#selftest")
    assert browser.ask("document.documentElement.dataset.ready") == "yes"
    assert browser.ask("document.documentElement.dataset.errors") is None
    assert browser.ask("document.documentElement.scrollWidth") <= width
    browser.ask("1")  # so that what was said before has arrived
    assert [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")] == []
    sent = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(url.startswith(("file:", "data:")) for url in sent)


@needs_browser
def test_ways_to_search_are_sorted_filtered_and_light_up_their_lines(browser: Browser, tmp_path: Path) -> None:
    _open(browser, tmp_path, "unrelated", 1280)
    browser.ask("document.querySelector('#arms th:nth-child(3) button').click()")
    values = browser.ask("[...document.querySelectorAll('#arms tbody tr')].map((r) => r.cells[2].dataset.value)")
    known = [float(v) for v in values if v]
    assert known == sorted(known)
    assert values[-1] == ""  # what stays as it is has no half way
    browser.ask("f = document.querySelector('#arms input'); f.value = 'ridge'; f.dispatchEvent(new Event('input'))")
    assert browser.ask("document.querySelectorAll('#arms tbody tr:not(.gone)').length") == 1
    browser.ask("row = document.querySelector('[data-line]'); row.dispatchEvent(new Event('mouseenter'))")
    dim = "[...document.querySelectorAll('#curve svg .dim')].map((e) => e.id.split('-').pop())"
    assert browser.ask("row.dataset.line") not in set(browser.ask(dim))
    assert len(set(browser.ask(dim))) == len(shown.drawn(ALL["unrelated"]())) - 1
    browser.ask("row.dispatchEvent(new Event('mouseleave'))")
    assert browser.ask(dim) == []


@needs_browser
def test_it_reads_without_a_script_and_prints(browser: Browser, tmp_path: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        _open(browser, tmp_path, "unrelated", 1280)
        assert browser.ask("document.documentElement.dataset.ready") is None
        assert "Residual MLP map" in browser.ask("document.body.innerText")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    _open(browser, tmp_path, "unrelated", 700, media="print", dark=True)
    assert browser.ask("document.documentElement.scrollWidth") <= 700
    browser.call("Emulation.setEmulatedMedia", media="")
