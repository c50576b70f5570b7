"""The page by domain: from records alone, best first, nothing told from too few seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from instar.cards import ProblemCard
from instar.site import domains

sys.path.append(str(Path(__file__).parents[1] / "report"))
from made_records import EFFECTS, HOSTILE, problem, run, shelve, store


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> dict[str, ProblemCard]:
    return shelve(monkeypatch)


def test_best_first_and_bold(shelf: dict[str, ProblemCard], tmp_path: Path) -> None:
    store(tmp_path / "prose", [run(slug, seed, EFFECTS[slug]) for slug in EFFECTS for seed in range(3)])
    (group,) = domains.compared(tmp_path)
    wanted = sorted(EFFECTS, key=lambda slug: EFFECTS[slug])
    assert [row.address for row, _ in domains.ranked(group)] == wanted
    page = domains.page([], tmp_path)
    rows = [line for line in page.splitlines() if line.startswith("| [") or line.startswith("| <code>")]
    assert [slug for line in rows for slug in wanted if f">{slug}<" in line] == wanted
    assert ["**" in line for line in rows] == [True] + [False] * (len(wanted) - 1)
    assert [line.split(" | ")[-1].strip(" |") for line in rows][wanted.index("softmax")] == "baseline"


def test_the_direction_turns_the_order(shelf: dict[str, ProblemCard], tmp_path: Path) -> None:
    store(tmp_path / "prose", [run(slug, seed, EFFECTS[slug]) for slug in EFFECTS for seed in range(3)])
    lower = [row.address for row, _ in domains.ranked(domains.compared(tmp_path)[0])]
    shelf["prose"] = problem(primary="accuracy")
    (group,) = domains.compared(tmp_path)
    values = [cell.value.value for _, cell in domains.ranked(group)]
    assert values == sorted(values, reverse=True)
    assert sorted(lower) == sorted(row.address for row, _ in domains.ranked(group))


def test_few_seeds_and_one_method_are_no_comparison(shelf: dict[str, ProblemCard], tmp_path: Path) -> None:
    store(tmp_path / "few", [run(slug, seed, EFFECTS[slug]) for slug in EFFECTS for seed in range(2)])
    store(tmp_path / "one", [run("softmax", seed) for seed in range(3)])
    assert domains.compared(tmp_path) == []
    assert "No comparison by quality" in domains.page([], tmp_path)


def test_hostile_addresses_are_shown(shelf: dict[str, ProblemCard], tmp_path: Path) -> None:
    store(
        tmp_path / "bad", [{**run(slug, seed), "address": f"{HOSTILE}{slug}|"} for slug in ("gla", "worse") for seed in range(3)]
    )
    assert "<script>" not in domains.page([], tmp_path)
