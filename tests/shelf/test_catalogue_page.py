"""The page of the catalogue: all that it must show, nothing from elsewhere, and a real browser on it."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hostile_cards import Hostile, hostile
from made_judgements import judgement
from matplotlib import image

from instar import catalogue
from instar.shelf import listed, page

sys.path.append(str(Path(__file__).parent.parent / "report"))  # the browser of the report's tests
from report_browser import Browser

PROGRAM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
JUDGED = [
    judgement(),
    judgement("aaren", verdict="does not hold here", value=None, interval=None),
    judgement("softmax1", verdict="not run", value=None, interval=None),
]


class Reader(HTMLParser):
    """Collects tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def text() -> str:
    return page.render(JUDGED)


@pytest.fixture(scope="module")
def bad() -> str:
    with catalogue.holding(hostile(), Hostile):
        return page.render([judgement(text="</script><script>alert(4)</script>")])


def test_every_paper_and_method_has_its_place(text: str) -> None:
    articles = [attributes for tag, attributes in Reader(text).tags if tag == "article"]
    papers = listed.papers()
    assert [a["id"] for a in articles[:47]] == [
        f"e-{paper.slug}".replace("_", "-") + (f"-{paper.arxiv.replace('.', '-')}" if paper.slug == "survey_efficient" else "")
        for paper in papers
    ]
    for card in catalogue.methods().values():
        assert f"instar show {card.slug}" in text or card.slug in text
    assert len({a["id"] for a in articles}) == len(articles)
    running = sum(a["data-runs"] == "yes" for a in articles[:47])
    assert f"47 papers on updating transformers, {running} of which run here" in text


def test_links_lead_to_places_on_the_page(text: str) -> None:
    tags = Reader(text).tags
    places = {attributes["id"] for _, attributes in tags if attributes.get("id")}
    for _, attributes in tags:
        link = attributes.get("href")
        if link and link.startswith("#"):
            assert link[1:] in places, link


def test_nothing_is_loaded_from_elsewhere_and_the_bytes_repeat(text: str) -> None:
    assert text == page.render(JUDGED)
    for tag, attributes in Reader(text).tags:
        assert "src" not in attributes
        if tag in ("link", "img", "iframe", "object", "embed"):
            pytest.fail(f"<{tag}> on the page")
    assert "default-src 'none'" in text
    assert "url(" not in text.replace("url(#", "")


def test_verdicts_and_gaps_are_said(text: str) -> None:
    assert "holds 1" in text
    assert "does not hold here 1" in text
    assert re.search(r"<dt><bdi>several modalities</bdi></dt>.*?</dd>", text, re.S)
    for domain in listed.domains():
        assert domain.title in text


def test_hostile_cards_stay_text(bad: str) -> None:
    tags = Reader(bad).tags
    assert sum(tag == "script" for tag, _ in tags) == 2  # the data and the page's own
    assert "img" not in [tag for tag, _ in tags]
    assert all(a["href"].startswith(("#", "https://arxiv.org/abs/")) for t, a in tags if t == "a" and a["href"])
    data = re.search(r'<script type="application/json" id="needs">(.*?)</script>', bad, re.S)
    assert data is not None
    assert any("<script>alert(1)" in answer["title"] for answer in json.loads(data[1])["answers"])


browsed = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (chromium, chromium-browser or google-chrome)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, text: str, bad: str) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, content in (("good", text), ("bad", bad)):
        (folder / f"{name}.html").write_text(content, "utf-8")
    return {name: folder / f"{name}.html" for name in ("good", "bad")}


def complaints(browser: Browser) -> list[object]:
    browser.ask("1")  # so that what was said before has arrived
    requests = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    bad = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    return [*bad, *(url for url in requests if not url.startswith(("file:", "data:")))]


def say(browser: Browser, place: str, value: str) -> None:
    browser.ask(
        f"(() => {{ const field = document.querySelector({place!r}); field.value = {json.dumps(value)};"
        " field.dispatchEvent(new Event('input')); })()"
    )


@browsed
@pytest.mark.parametrize(
    ("name", "width", "dark"), [("good", 390, False), ("good", 390, True), ("good", 1280, True), ("bad", 390, False)]
)
def test_it_fits_the_window(browser: Browser, paths: dict[str, Path], name: str, width: int, dark: bool) -> None:
    browser.open(paths[name], width, 900, dark=dark)
    browser.ask("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.documentElement.dataset.errors") is None
    pixels = image.imread(io.BytesIO(browser.photograph()))[..., :3]
    assert np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 50
    background = float(np.median(pixels))
    assert background < 0.2 if dark else background > 0.9
    assert complaints(browser) == []


@browsed
def test_it_searches_as_the_command_does(browser: Browser, paths: dict[str, Path]) -> None:
    browser.open(paths["good"], 1280, 900)
    say(browser, "#need", "edit facts")
    assert browser.ask("document.querySelector('#answers a').hash") == "#e-pmet"
    assert browser.ask("document.getElementById('said').textContent") == ""
    say(browser, "#need", "which restaurants are open tonight")
    assert "Nothing here answers that outright" in browser.ask("document.getElementById('said').textContent")
    say(browser, "#need", "")
    assert browser.ask("document.querySelectorAll('#answers li').length") == 0


@browsed
def test_filters_leave_what_fits_and_links_bring_all_back(browser: Browser, paths: dict[str, Path]) -> None:
    left = "[...document.querySelectorAll('.entry')].filter((e) => e.offsetParent !== null)"
    browser.open(paths["good"], 1280, 900)
    total = browser.ask(f"{left}.length")
    say(browser, "[data-filter=clock]", "per fact")
    assert browser.ask(f"{left}.every((e) => e.dataset.clock === 'per fact')") is True
    assert 0 < browser.ask(f"{left}.length") < total
    say(browser, "[data-filter=words]", "no entry has these words")
    assert browser.ask(f"{left}.length") == 0
    assert browser.ask("document.getElementById('left').textContent").startswith("0 of ")
    browser.ask("location.hash = '#e-gla'")
    deadline = time.monotonic() + 10
    while browser.ask(f"{left}.length") != total and time.monotonic() < deadline:
        time.sleep(0.05)
    assert browser.ask("document.getElementById('e-gla').offsetParent !== null") is True
    assert browser.ask(f"{left}.length") == total


@browsed
def test_it_reads_without_a_script(browser: Browser, paths: dict[str, Path]) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(paths["good"], 1280, 900)
        assert browser.ask("document.querySelector('.seek').offsetParent === null") is True
        assert browser.ask("document.querySelectorAll('.entry').length") >= 47
        assert "instar find" in browser.ask("document.querySelector('#find').textContent")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
