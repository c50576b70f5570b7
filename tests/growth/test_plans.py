"""Plans: numbers and multiples, files and texts, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from instar.errors import PlanError, TransformError
from instar.growth import plan


def test_numbers_and_multiples() -> None:
    assert plan.target("n", 96, "2x") == 192
    assert plan.target("n", 96, "1.5x") == 144
    assert plan.target("n", 96, 100) == 100
    assert plan.target("n", 96, "100") == 100
    assert plan.target("n", 10, "1.1x") == 11  # not 11.000000000000002


@pytest.mark.parametrize(
    ("wanted", "words"),
    [(95, "shrink"), ("0.5x", "shrink"), ("1.3x", "whole number"), ("twice", "multiple"), (True, "number"), (-4, "number")],
)
def test_targets_that_cannot_be(wanted: int | str, words: str) -> None:
    with pytest.raises(TransformError, match=words):
        plan.target("n", 96, wanted)


def test_files_and_texts_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text('n = "2x"\n"blocks.0.feed" = 512\n')
    (tmp_path / "plan.json").write_text('{"n": "2x", "blocks.0.feed": 512}')
    wanted = {"n": "2x", "blocks.0.feed": 512}
    assert plan.read(tmp_path / "plan.toml") == plan.read(tmp_path / "plan.json") == wanted
    assert plan.parse(["n=2x", "blocks.0.feed=512"]) == wanted


@pytest.mark.parametrize("text", ["", "n = 1.5", "n = [1]", "n", "[n]\nm = 1"])
def test_files_that_hold_no_plan(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(PlanError):
        plan.read(tmp_path / "plan.toml")
    with pytest.raises(PlanError, match=r"n=2x"):
        plan.parse(["n"])
    with pytest.raises(PlanError):
        plan.read(tmp_path / "nowhere.json")
