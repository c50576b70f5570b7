"""The page of a judgement: complete, escaped, closed to the outside, the same from the same record, and usable in a browser."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_results import ALL, HOSTILE, MARKED, broken, result

from instar.gate import page, shown
from instar.gate.result import Group

sys.path.append(str(Path(__file__).parent.parent / "report"))  # the browser of the report's tests
from report_browser import Browser

PROGRAM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (chromium, chromium-browser or google-chrome)")


class Reader(HTMLParser):
    """Collects tags, attributes, headings and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        self.text += "" if self._inside else data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def classed(self, word: str) -> int:
        return sum(word in (a.get("class") or "").split() for _, a in self.tags)


@functools.cache
def text_of(name: str) -> str:
    return page.render(ALL[name]())


@functools.cache
def page_of(name: str) -> Reader:
    return Reader(text_of(name))


@pytest.mark.parametrize("decision", ["pass", "fail", "undecided"])
def test_the_answer_is_the_first_heading_and_the_title(decision: str) -> None:
    text = text_of(decision)
    heading = re.search(r"<h1>(.*?)</h1>", text, re.S)
    assert heading is not None
    assert decision.upper() in heading[1]
    assert f"<title>{decision.upper()}: minilm-v1.jsonl → minilm-v2.jsonl · Instar</title>" in text
    assert f'<section class="verdict {decision}">' in text
    assert f"{decision.upper()}: 1.9" not in page_of(decision).text  # the word is not said twice


def test_everything_of_the_record_is_on_the_page() -> None:
    made, found = result("fail"), page_of("fail")
    text = " ".join(found.text.split())
    for wanted in (*made.cautions, *made.reasons, *made.missing_ids, *made.missing_ids.values(), made.command, "ab" * 32):
        assert wanted in text
    for group in made.broken:
        assert group.title in text
        assert all(item.id in text for item in group.items)
    for name in ("domain = banking", "McNemar's test", "must work", "393 MiB", "2.20 ms", "89.0 … 91.1 %", "1.1 % (0.8 … 1.5 %)"):
        assert name in text
    assert found.classed("item") == 151
    assert found.classed("strip") == len(made.slices)
    assert "right before, wrong now" in text


def test_the_picture_shows_what_was_tested() -> None:
    svg = next(a for a in page_of("fail").named("svg"))
    assert svg["role"] == "img"
    assert "budget" in (svg["aria-label"] or "")
    assert "✗ fail: domain = banking" in page_of("fail").text
    assert "noise floor: the old version run again" in page_of("fail").text
    assert "noise floor: the old" not in page_of("no floor").text
    assert "The policy sets no budget" in page_of("plain").text


def test_marks_that_are_scores() -> None:
    found = page_of("continuous").text
    assert "mark fell by 0.62" in found
    assert "drop of the mean mark, at most 0.01" in found
    assert "8 marks fell, 64 rose" in found
    assert ">Before</dt>" in text_of("continuous")
    assert "better in every earlier run" in found
    assert "Where the items went" not in found


def test_nothing_broken_and_no_slice() -> None:
    found = page_of("plain")
    assert "Nothing: 0 items broke, 0 were repaired." in found.text
    assert found.classed("item") == 0
    assert not {"slices", "missing", "measures"} & {a.get("id") for _, a in found.tags}


def test_large_records_stay_usable() -> None:
    found = page_of("large")
    assert found.classed("item") == 3000
    assert found.classed("strip") == 500
    assert len(text_of("large").encode()) < 6_000_000
    ids = next(a["href"] for a in found.named("a") if a.get("download") == "broken-ids.txt")
    assert len(base64.b64decode(str(ids).partition("base64,")[2]).decode().split()) == 3000


def test_thousands_of_long_texts_do_not_make_a_huge_page() -> None:
    items = [broken(i, input="word " * 20_000, before="y" * 100_000, after="z" * 100_000) for i in range(2000)]
    assert len(page.render(result("fail", broken=[Group("long", 2000, 2000.0, items)])).encode()) < 10_000_000


@pytest.mark.parametrize("name", list(ALL))
def test_nothing_from_a_record_becomes_markup(name: str) -> None:
    found = page_of(name)
    names = [tag for tag, _ in found.tags]
    assert names.count("script") == 1
    assert not {"img", "iframe", "object", "embed", "link", "base", "form"} & set(names)
    assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)
    assert not set("\x00\x07\x1b\u202e\u202c\ud800") & set(text_of(name))
    text_of(name).encode()  # no half characters


def test_hostile_texts_are_still_there_to_read() -> None:
    for part in ("<script>alert(1)</script><img src=x onerror=alert(2)>", "\"'&amp;", "{{ 7*7 }} ]]>", "$x^2$"):
        assert part in page_of("hostile").text
    assert " ".join(MARKED.split())[:50] in page_of("marked").text
    assert (
        "96 165 more characters" in " ".join(page_of("hostile").text.split()) or "more characters are" in page_of("hostile").text
    )


@pytest.mark.parametrize("name", list(ALL))
def test_nothing_is_loaded_from_outside(name: str) -> None:
    for tag, attributes in page_of(name).tags:
        for key, value in attributes.items():
            if key in ("src", "srcset", "data", "action", "poster", "xlink:href", "href"):
                assert (value or "").startswith(("#", "data:")), (tag, key, value)
    assert not re.search(r"url\(\s*['\"]?(?!#|data:)", re.sub(r"<bdi>.*?</bdi>", "", text_of(name), flags=re.S))


def test_the_policy_allows_this_script_and_no_other() -> None:
    policy = next(a["content"] for a in page_of("hostile").named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text_of("hostile"), re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in str(policy)


@pytest.mark.parametrize("name", list(ALL))
def test_identifiers_are_unique_and_links_lead_somewhere(name: str) -> None:
    found = [a["id"] for _, a in page_of(name).tags if a.get("id")]
    assert len(found) == len(set(found))
    assert all((a.get("href") or "")[1:] in found for a in page_of(name).named("a") if (a.get("href") or "").startswith("#"))


def test_the_same_record_gives_the_same_bytes() -> None:
    assert page.render(ALL["fail"]()) == text_of("fail")


def test_texts_are_cut_between_words_and_say_how_much_is_left_out() -> None:
    found = shown.folded("word " * 2000, 4000)
    assert found.head.endswith("word")
    assert found.cut == 6000
    assert found.head + found.rest == ("word " * 800)
    assert shown.folded("short", 4000) == shown.Folded("short", "", 0)
    assert shown.folded("a\nb\nc\nd\ne\nf", 4000).head == "a\nb\nc\nd\ne"
    assert shown.line("a\n\tb\u00a0c\x1b") == "a b c�"
    assert len(shown.line(HOSTILE * 1000, 80)) <= 80


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


def _open(browser: Browser, folder: Path, name: str, width: int, **given: object) -> None:
    path = folder / "gate.html"
    path.write_text(text_of(name), "utf-8")
    browser.open(path, width, 800, **given)  # type: ignore[arg-type]


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("name", ["fail", "plain", "hostile", "large"])
def test_it_fits_the_window_without_complaint(browser: Browser, tmp_path: Path, name: str, width: int, dark: bool) -> None:
    _open(browser, tmp_path, name, width, dark=dark, fragment="#selftest" if name != "large" else "")
    assert browser.ask("document.documentElement.dataset.ready") == "yes"
    assert browser.ask("document.documentElement.dataset.errors") is None
    assert browser.ask("document.documentElement.scrollWidth") <= width
    browser.ask("1")  # so that what was said before has arrived
    assert [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")] == []
    sent = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(url.startswith(("file:", "data:")) for url in sent)


@needs_browser
def test_broken_items_can_be_searched(browser: Browser, tmp_path: Path) -> None:
    _open(browser, tmp_path, "fail", 1280)
    seen = "document.querySelectorAll('.item:not(.gone)').length"
    said = "document.querySelector('.finder output').textContent"
    browser.ask("s = document.querySelector('.finder input'); s.value = 'banking-00050'; s.dispatchEvent(new Event('input'))")
    assert browser.ask(seen) == 1
    assert browser.ask("document.querySelector('.item:not(.gone)').checkVisibility()") is True  # its group was opened
    assert browser.ask(said) == "1 of 151 shown items"
    browser.ask("s.value = ''; s.dispatchEvent(new Event('input')); document.querySelector('.finder [type=checkbox]').click()")
    always = sum(item.always for group in result("fail").broken for item in group.items)
    assert browser.ask(seen) == always
    browser.ask("document.querySelector('.finder [type=checkbox]').click()")
    assert browser.ask(seen) == 151
    assert browser.ask(said) == ""


@needs_browser
def test_slices_are_sorted_and_filtered(browser: Browser, tmp_path: Path) -> None:
    _open(browser, tmp_path, "large", 1280)
    browser.ask("document.querySelector('#slices th:nth-child(2) button').click()")
    read = "[...document.querySelectorAll('#slices tbody tr')].map((r) => Number(r.cells[1].dataset.value))"
    values = browser.ask(read)
    assert len(values) == 500
    assert values == sorted(values)
    browser.ask("f = document.querySelector('#slices input'); f.value = 'travel 7'; f.dispatchEvent(new Event('input'))")
    assert 1 <= browser.ask("document.querySelectorAll('#slices tbody tr:not(.gone)').length") < 20


@needs_browser
def test_it_reads_without_a_script_and_prints(browser: Browser, tmp_path: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        _open(browser, tmp_path, "fail", 1280)
        assert browser.ask("document.documentElement.dataset.ready") is None
        assert browser.ask("document.querySelector('.finder').checkVisibility()") is False
        assert "banking-00000" in browser.ask("document.body.innerText")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    _open(browser, tmp_path, "fail", 700, media="print", dark=True)
    assert browser.ask("document.documentElement.scrollWidth") <= 700
    browser.call("Emulation.setEmulatedMedia", media="")
    assert len(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"]) > 10_000
