"""The list of papers keeps to the catalogue, and what runs is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hostile_cards import Hostile, hostile

from instar import catalogue
from instar.cards import typed
from instar.errors import CardError
from instar.shelf import listed, views
from instar.shelf.entries import entries


def test_every_paper_is_there_once_newest_first() -> None:
    papers = listed.papers()
    assert len(papers) == 47
    assert len({paper.arxiv for paper in papers}) == 47
    assert [p.published for p in papers] == sorted((p.published for p in papers), reverse=True)
    for paper in papers:
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv)
        year, month = paper.published.split("-")
        assert paper.arxiv.startswith(year[2:] + month)
        assert paper.clock in {clock.id for clock in listed.clocks()}
        assert set(paper.domains) <= {domain.id for domain in listed.domains()}
        assert paper.needs
        assert paper.tasks
        assert (paper.kind == "system") or not paper.methods or paper.kind in ("survey", "dataset")


def test_words_of_cards_have_a_place() -> None:
    """A domain that no table lists would be shown as outside all of them, a family without a clock under its own name."""
    known = {word for domain in listed.domains() for word in domain.words}
    families = {family for clock in listed.clocks() for family in clock.families}
    for card in catalogue.methods().values():
        assert set(card.domains) <= known, card.slug
        assert card.family in families, card.slug
    for problem in catalogue.problems().values():
        assert set(problem.domains) <= known, problem.slug


def test_every_method_stands_somewhere_and_every_entry_once() -> None:
    found = entries()
    names = [entry.id for entry in found]
    assert len(names) == len(set(names))
    assert {card.slug for entry in found for card in entry.methods} == set(catalogue.methods())
    assert sum(entry.listed for entry in found) == 47


def test_a_paper_runs_when_its_card_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status follows the cards: without them nothing runs, with one its paper does."""
    gla = catalogue.method("gla")
    monkeypatch.setattr(catalogue, "methods", lambda: {})
    monkeypatch.setattr(catalogue, "problems", lambda: {})
    assert not any(entry.runs for entry in entries())
    gaps = views.gaps(views.by_clock(entries()))
    assert len(gaps) == len(listed.clocks())
    monkeypatch.setattr(catalogue, "methods", lambda: {"gla": gla})
    assert {entry.id for entry in entries() if entry.runs} == {"gla", "survey_efficient:2311.12351"}
    survey = next(entry for entry in entries() if entry.id == "survey_efficient:2311.12351")
    assert "softmax" in survey.absent


def test_gaps_are_said() -> None:
    domains = views.by_domain(entries(), [])
    for group in domains:
        assert group.problems or group.title == "any domain" or any("No problem here" in gap for gap in group.gaps)
        assert group.papers or group.others or "Nothing of it runs here." in group.gaps


def test_a_survey_stands_where_something_of_it_runs() -> None:
    """It speaks of all domains, and of tasks that nothing here does."""
    survey = next(entry for entry in entries() if entry.id == "survey_applications")
    for domain, group in zip(listed.domains(), views.by_domain(entries(), []), strict=True):
        if domain.id in survey.domains:
            there = any(domain.id in listed.domains_of(problem.domains) for problem in survey.problems)
            assert (survey in group.papers) == there


def test_a_card_of_another_package_has_a_place() -> None:
    with catalogue.holding(hostile(), Hostile):
        entry = next(entry for entry in entries() if entry.id == "hostile")
        assert entry.domains == ["other"]
        assert [group for group in views.by_clock(entries()) if entry in group.others]


@pytest.mark.parametrize("text", ["[[paper]]\nslug = 1", "[[paper]]\nslug = 'x'", "paper = 3", "[[papers]]", "\x00"])
def test_a_damaged_list_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "papers.toml"
    path.write_text(text)
    with pytest.raises(CardError, match=re.escape("papers.toml")):
        typed(path, listed._Papers)
