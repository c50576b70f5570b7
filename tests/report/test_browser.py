"""The page in a real browser: its script runs, and it fits a phone, a desktop, the dark and paper."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_records import full, store
from matplotlib import image
from report_browser import Browser

from instar.report import report

PROGRAM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (chromium, chromium-browser or google-chrome)")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, module_shelf: None) -> Path:
    folder = store(tmp_path_factory.mktemp("records"), full())
    return report([folder], folder / "page.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


def _complaints(browser: Browser) -> list[object]:
    browser.ask("1")  # so that what was said before has arrived
    return [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]


def _requests(browser: Browser) -> list[str]:
    sent = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
def test_it_fits_the_window_and_is_not_blank(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, 800, dark=dark)
    assert browser.ask("document.documentElement.dataset.ready") == "yes"
    assert browser.ask("document.documentElement.scrollWidth") <= width
    pixels = image.imread(io.BytesIO(browser.photograph()))[..., :3]
    assert np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 50
    background = float(np.median(pixels))
    assert background < 0.2 if dark else background > 0.9
    assert _complaints(browser) == []
    assert _requests(browser) == []


def test_the_script_sorts_filters_and_hides(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 800, fragment="#selftest")
    values = [float(v) for v in browser.ask("document.documentElement.dataset.sorted").split()]
    assert values == sorted(values)
    assert len(values) >= 5
    assert browser.ask("document.documentElement.dataset.filtered") == "6"
    assert browser.ask("document.querySelectorAll('tr.gone').length") == 0
    assert browser.ask("document.documentElement.dataset.errors") is None
    browser.ask("document.querySelector('[data-group=time]').click()")
    assert browser.ask("document.querySelector('td[data-kind=time]').offsetParent === null") is True
    assert browser.ask("document.querySelector('td[data-kind=quality]').offsetParent === null") is False


def test_opened_details_fit_a_phone_too(browser: Browser, page: Path) -> None:
    browser.open(page, 380, 800, fragment="#selftest")
    assert browser.ask("[...document.querySelectorAll('details')].every((d) => d.open)") is True
    assert browser.ask("document.documentElement.scrollWidth") <= 380


def test_missing_figures_are_sorted_to_the_end(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 800)
    read = "[...document.querySelectorAll('table.card tbody tr')].map((r) => r.cells[1].dataset.value)"
    for _ in range(2):
        browser.ask("document.querySelector('table.card tr:last-child th:nth-child(2) button').click()")
        values = browser.ask(read)
        assert values[-1] == ""
        assert "" not in values[:-1]


def test_it_reads_without_a_script(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page, 1280, 800)
        assert browser.ask("document.documentElement.dataset.ready") is None
        assert browser.ask("document.querySelector('.tools').offsetParent === null") is True
        assert "Score card" in browser.ask("document.body.innerText")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_it_prints_on_a4_with_dark_ink_on_white(browser: Browser, page: Path) -> None:
    browser.open(page, 700, 1000, dark=True, media="print")
    pixels = image.imread(io.BytesIO(browser.photograph()))[..., :3]
    assert float(np.median(pixels)) > 0.9
    assert browser.ask("document.documentElement.scrollWidth") <= 700
    browser.call("Emulation.setEmulatedMedia", media="")
    assert len(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"]) > 10_000
