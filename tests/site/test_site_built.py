"""The site, built as `make site` does: no warning, every link and anchor holds, nothing comes from elsewhere, it fits a phone."""

from __future__ import annotations

import html
import re
import shutil
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from instar import catalogue
from instar.site import text
from instar.site.__main__ import build

sys.path.append(str(Path(__file__).parents[1] / "report"))
sys.path.append(str(Path(__file__).parents[1] / "shelf"))
from hostile_cards import Hostile, hostile
from report_browser import Browser

ROOT = Path(__file__).parents[2]
PROGRAM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("site"), pytest.mark.timeout(600)]


class Page(HTMLParser):
    """What a page offers and asks for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.anchors, self.links, self.loads, self.tags = path, set[str](), list[str](), list[str](), list[str]()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.loads.append(given.get("href", ""))
        self.loads += [given[key] for key in ("src", "srcset", "data", "poster") if key in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site with a method that tries everything beside the others."""
    out = tmp_path_factory.mktemp("built") / "site"
    with catalogue.holding(hostile(), Hostile):
        assert build(ROOT, out) == 0
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_method_problem_and_page_is_there(site: Path, pages: dict[Path, Page]) -> None:
    for folder, known in (("methods", catalogue.methods()), ("problems", catalogue.problems())):
        found = {path.stem for path in (site / folder).glob("*.html")}
        assert found - {"hostile"} == {text.file(slug) for slug in known} | {"index"}
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").exists()


def test_links_and_anchors_hold(site: Path, pages: dict[Path, Page]) -> None:
    lost = []
    for page in pages.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            start = site if parts.path.startswith("/") else page.path.parent  # the page for lost visitors, wherever they stand
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else page.path
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                lost.append(f"{page.path.relative_to(site)}: {link}")
    assert not lost, "\n".join(lost)


def test_nothing_comes_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for page in pages.values():
        for address in page.loads:
            parts = urlsplit(address)
            assert parts.scheme in ("", "data"), f"{page.path}: {address}"
            assert not parts.netloc, f"{page.path}: {address}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text("utf-8")), path


def test_a_hostile_card_is_only_shown(site: Path, pages: dict[Path, Page]) -> None:
    bad, good = (pages[site / "methods" / f"{name}.html"] for name in ("hostile", "softmax"))
    assert bad.tags.count("script") == good.tags.count("script")
    for page in pages.values():
        assert "onerror" not in page.path.read_text("utf-8") or "img" not in page.tags
    assert "alert(1)" in html.unescape(bad.path.read_text("utf-8"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("needs Chromium (chromium, chromium-browser or google-chrome)")
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


SEEN = ["index.html", "encoder.html", "claims.html", "domains.html", "methods/index.html", "methods/gla.html",
        "methods/hostile.html", "problems/text.html", "api/index.html", "api/instar.mixers.gla.html"]  # fmt: skip


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", SEEN)
def test_it_fits_the_window_and_asks_for_nothing(browser: Browser, site: Path, name: str, width: int) -> None:
    browser.open(site / name, width, 900)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    sent = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [e for e in browser.events if e.get("method") == "Runtime.exceptionThrown"] == []


def test_the_search_answers_from_files(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html", 1280, 900)
    browser.ask("document.querySelector('.md-search__button').click()")
    roots = "[...document.querySelectorAll('*')].filter((e) => e.shadowRoot)"
    found = f"{roots}.flatMap((e) => [...e.shadowRoot.querySelectorAll('a')].map((a) => a.href))"
    for letter in "gated linear attention":
        browser.call("Input.insertText", text=letter)
    deadline = time.monotonic() + 30
    while not any("methods/gla.html" in href for href in browser.ask(found)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert any("methods/gla.html" in href for href in browser.ask(found))
