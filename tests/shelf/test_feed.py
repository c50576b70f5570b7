"""The feed: valid XML whatever a title holds, the same bytes of the same records, and new ids for what is new."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import datetime
from pathlib import Path
from typing import Any

from hostile_cards import Hostile, hostile
from made_judgements import judgement

from instar import catalogue
from instar.bench.claims import folder_name
from instar.shelf import feed

ATOM = "{http://www.w3.org/2005/Atom}"


def record(results: Path, method: str, claim: str, **changes: Any) -> None:
    """A record of a run that a claim reads, as far as the feed looks at it."""
    card = catalogue.method(method)
    folder = results / folder_name(next(c for c in card.claims if c.id == claim)) / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    made = {"schema": 1, "id": f"r{len(list(folder.iterdir()))}", "kind": "run", "status": "ok", "address": method,
            "spec": {"problem": {"slug": "text", "settings": {}}, "seed": 0},
            "finished": "2026-03-04T05:06:07+02:00"} | changes  # fmt: skip
    (folder / f"{made['id']}.json").write_text(json.dumps(made))


def parsed(text: str) -> list[ET.Element]:
    root = ET.fromstring(text.encode("utf-8"))
    assert root.tag == f"{ATOM}feed"
    for name in ("id", "title", "updated", "author"):
        assert root.find(f"{ATOM}{name}") is not None
    found = root.findall(f"{ATOM}entry")
    for entry in found:
        for name in ("id", "title", "updated", "content"):
            assert entry.find(f"{ATOM}{name}") is not None
        datetime.fromisoformat(str(entry.findtext(f"{ATOM}updated")))
    ids = [entry.findtext(f"{ATOM}id") for entry in found]
    assert len(set(ids)) == len(ids)
    times = [datetime.fromisoformat(str(entry.findtext(f"{ATOM}updated"))) for entry in found]
    assert times == sorted(times, reverse=True)
    return found


def ids(text: str) -> set[str]:
    return {str(entry.findtext(f"{ATOM}id")) for entry in parsed(text)}


def test_every_method_and_every_verdict_is_an_entry(tmp_path: Path) -> None:
    judged = [judgement(), judgement("aaren", verdict="not run"), judgement("softmax1", verdict="does not hold here")]
    text = feed.atom(judged, tmp_path)
    assert text == feed.atom(judged, tmp_path)
    categories = [entry.find(f"{ATOM}category").get("term") for entry in parsed(text)]  # type: ignore[union-attr]
    assert categories.count("method") == len(catalogue.methods())
    assert categories.count("verdict") == 2


def test_a_verdict_that_changes_is_new_and_its_time_is_that_of_its_last_run(tmp_path: Path) -> None:
    mine = judgement()
    record(tmp_path, "gla", mine.claim)
    record(tmp_path, "gla", mine.claim, finished="2026-03-05T00:00:00+00:00")
    before, after = feed.atom([mine], tmp_path), feed.atom([judgement(verdict="undecided")], tmp_path)
    assert len(ids(after) - ids(before)) == len(ids(before) - ids(after)) == 1
    times = {e.findtext(f"{ATOM}title"): e.findtext(f"{ATOM}updated") for e in parsed(before)}
    assert times[f"gla: holds: {mine.text}"] == "2026-03-05T00:00:00Z"
    assert times[f"New method: {catalogue.method('gla').title}"] == "2026-03-04T03:06:07Z"


def test_records_without_a_time_or_with_none_that_is_one_do_no_harm(tmp_path: Path) -> None:
    mine = judgement()
    record(tmp_path, "gla", mine.claim, finished="yesterday")
    record(tmp_path, "gla", mine.claim, finished="")
    (tmp_path / "gate").mkdir()
    (tmp_path / "README.md").write_text("not a folder")
    parsed(feed.atom([mine], tmp_path))


def test_hostile_titles_stay_text(tmp_path: Path) -> None:
    with catalogue.holding(hostile(), Hostile):
        found = parsed(feed.atom([judgement(text="</title><script>\x00\ud800 & ]]>")], tmp_path))
    titles = [str(entry.findtext(f"{ATOM}title")) for entry in found]
    assert any("<script>alert(1)</script>" in title for title in titles)
    assert any("</title><script>??" in title for title in titles)
    assert not [e for entry in found for e in entry.iter() if e.tag.endswith("script")]


def test_no_records_at_all(tmp_path: Path) -> None:
    assert len(parsed(feed.atom([], tmp_path / "nowhere"))) == len(catalogue.methods())
