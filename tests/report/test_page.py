"""The page: complete, escaped, closed to the outside, the same from the same records."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_records import HOSTILE, METRICS, full, run, store, timing

from instar.bench.claims import Judgement
from instar.errors import OutputError, RecordError
from instar.report import report

CLAIM = {
    "method": "gla",
    "claim": "gate",
    "text": f"The gate matters. {HOSTILE}",
    "source": "Table 3",
    "paper_value": "15.4 against 16.6",
    "kind": "compare",
    "measure": "prose.bits_per_byte@T",
    "subject": "gla",
    "against": "gla:no_gate",
    "direction": "lower",
    "margin": 0.01,
    "verdict": "holds",
    "value": 0.031,
    "interval": (0.021, 0.041),
    "seeds": 5,
    "drawn_from": "seeds",
    "reason": None,
    "core_minutes": 6.2,
    "command": "instar reproduce gla --claim gate",
}


JUDGED = [CLAIM, Judgement(**{**CLAIM, "claim": "other"})]


class Reader(HTMLParser):
    """Collects tags, attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, module_shelf: None) -> str:
    folder = store(tmp_path_factory.mktemp("records"), full())
    return report([folder], folder / "page.html", judgements=JUDGED).read_text("utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Reader:
    return Reader(text)


def test_every_method_and_metric_is_on_the_page(page: Reader) -> None:
    for address in ("softmax", "gla", "aaren", "gla:no_gate", "worse", HOSTILE):
        assert address in page.text
    for metric in METRICS:
        assert metric.id in page.text
    for part in (
        "Score card",
        "Quality against cost",
        "Cost against length",
        "What failed",
        "What was tuned",
        "How to redo it",
        "Claims",
    ):
        assert part in page.text


def test_failures_stand_with_their_reasons(page: Reader) -> None:
    assert f"seed 0: diverged: loss is nan at step 12 {HOSTILE}" in page.text
    assert "missing: all 2 runs failed (diverged)" in page.text
    assert "at the edge of its range" in page.text


def test_what_is_needed_to_redo_it(page: Reader) -> None:
    assert "instar compare prose --data prose.txt --methods softmax,gla --seeds 5 --budget 60steps" in page.text
    for part in ("ab" * 32, "@article{gla", "A <fast> CPU", "2.13.0", "No dropout <img", "0.3 … 1.4"):
        assert part in page.text


def test_claims_are_shown_with_interval_and_command(page: Reader) -> None:
    for part in (
        f"The gate matters. {HOSTILE}",
        "0.02100 … 0.04100",
        "instar reproduce gla --claim gate",
        "15.4 against 16.6",
        "holds",
    ):
        assert part in page.text


def test_nothing_from_records_becomes_markup(page: Reader) -> None:
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 1
    assert not {"img", "iframe", "object", "embed", "link", "base", "form"} & set(names)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)


def test_nothing_is_loaded_from_outside(text: str, page: Reader) -> None:
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            if key in ("src", "srcset", "data", "action", "poster", "xlink:href") or (key == "href" and tag != "a"):
                assert (value or "").startswith(("#", "data:")), (tag, key, value)
            if key == "href":
                assert (value or "").startswith(("#", "data:", "https://arxiv.org/abs/"))
    assert not re.search(r"url\(\s*['\"]?(?!#|data:)", text)
    assert "@import" not in text


def test_the_policy_allows_this_script_and_no_other(text: str, page: Reader) -> None:
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy


def test_downloads_open(page: Reader) -> None:
    files: dict[str, bytes] = {}
    for tag, attributes in page.tags:
        if tag == "a" and "download" in attributes:
            files[str(attributes["download"])] = base64.b64decode(str(attributes["href"]).partition("base64,")[2])
    assert {
        "instar-prose.csv",
        "instar-prose.json",
        "instar-prose.md",
        "instar-prose.tex",
        "c1-paired.svg",
        "c1-paired.png",
    } <= set(files)
    assert files["instar-prose.bib"].decode().count("@article{gla,") == 1  # gla and gla:no_gate are one paper
    rows = list(csv.DictReader(io.StringIO(files["instar-prose.csv"].decode())))
    assert {row["method"] for row in rows} >= {"softmax", "gla", HOSTILE}


def test_identifiers_are_unique_and_links_lead_somewhere(page: Reader) -> None:
    found = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(found) == len(set(found))
    for tag, attributes in page.tags:
        target = attributes.get("href") or ""
        if tag == "a" and target.startswith("#"):
            assert target[1:] in found


def test_the_same_records_give_the_same_bytes(text: str, tmp_path: Path) -> None:
    again = [store(tmp_path / "b", full()[::-1]), store(tmp_path / "a", full()[:3])]
    found = report(again, tmp_path / "page.html", judgements=JUDGED)
    assert hashlib.sha256(found.read_bytes()).hexdigest() == hashlib.sha256(text.encode()).hexdigest()


def test_the_page_stays_small(text: str) -> None:
    assert len(text.encode()) < 3_000_000


def test_two_comparisons_on_one_page(tmp_path: Path) -> None:
    short = [run(a, s) for a in ("softmax", "gla") for s in range(3)]
    long = [run(a, s, budget="5m") for a in ("softmax", "gla") for s in range(3)]
    page = Reader(report([store(tmp_path, short + long)], tmp_path / "page.html").read_text("utf-8"))
    assert [a.get("id") for t, a in page.tags if t == "section"] == ["c1", "c2"]
    found = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    "records",
    [
        [run("softmax", 0)],
        [run("gla", 0)],
        [timing(["softmax", "gla"])],
        [run("softmax", 0, noise=0.0), run("unknown_method", 0)],
        [run("softmax", 0, curve=[], metrics={}, costs={})],
        [{**timing(["softmax", "gla"]), "status": "error", "reason": "no memory", "times": {}}, run("softmax", 0)],
    ],
    ids=["baseline alone", "no baseline", "times alone", "method of the user's own", "empty run", "timing failed"],
)
def test_thin_records_still_make_a_page(records: list[dict[str, Any]], tmp_path: Path) -> None:
    page = Reader(report([store(tmp_path, records)], tmp_path / "page.html").read_text("utf-8"))
    assert "How to redo it" in page.text
    if records[0]["status"] == "error":
        assert "no memory" in page.text


def test_errors_name_the_place(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no records"):
        report([tmp_path], tmp_path / "page.html")
    folder = store(tmp_path / "records", [run("softmax", 0)])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        report([folder], tmp_path / "file" / "page.html")
    next((folder / "runs").iterdir()).write_text('{"schema": 1')
    with pytest.raises(RecordError, match="no complete record"):
        report([folder], tmp_path / "page.html")


def test_no_torch_is_imported(tmp_path: Path) -> None:
    folder = store(tmp_path, [run(a, s) for a in ("softmax", "gla") for s in range(3)])
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import made_records
import pytest
made_records.shelve(pytest.MonkeyPatch())
from instar.report import report
report([Path({str(folder)!r})], Path({str(tmp_path / "page.html")!r}))
assert "torch" not in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
