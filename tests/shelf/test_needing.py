"""Search by need: what it finds of written questions, that page and command agree, and what it does with strange ones."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hostile_cards import HOSTILE, Hostile, hostile

from instar import catalogue
from instar.shelf import needing
from instar.shelf.entries import Entry, entries

QUESTIONS: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("questions.toml").read_text("utf-8"))["question"]
NODE = shutil.which("node")


@pytest.fixture(scope="module")
def every() -> list[Entry]:
    return entries()


@pytest.fixture(scope="module")
def table(every: list[Entry]) -> needing.Table:
    return needing.table(every)


def recall(questions: list[dict[str, Any]], every: list[Entry], table: needing.Table) -> float:
    hits = [
        any(every[found.entry].id in question["answers"] for found in needing.find(question["ask"], table, 3))
        for question in questions
    ]
    return sum(hits) / len(hits)


def test_recall_of_written_questions(every: list[Entry], table: needing.Table) -> None:
    """Unseen, it was 27 of 30 when they were written. A card that comes may move one or two."""
    known = {entry.id for entry in every}
    answered = [question for question in QUESTIONS if question["answers"]]
    assert len(answered) >= 60
    assert {answer for question in answered for answer in question["answers"]} <= known
    unseen = [question for question in answered if question.get("unseen")]
    assert len(unseen) >= 20
    assert recall(answered, every, table) >= 0.9
    assert recall(unseen, every, table) >= 0.8


def test_it_is_seldom_sure_of_what_is_not_here(table: needing.Table) -> None:
    def sure(question: dict[str, Any]) -> bool:
        return any(found.sure for found in needing.find(question["ask"], table))

    outside = [sure(question) for question in QUESTIONS if not question["answers"]]
    inside = [sure(question) for question in QUESTIONS if question["answers"]]
    assert sum(outside) / len(outside) <= 0.25
    assert sum(inside) / len(inside) >= 0.9


def test_forms_of_a_word_and_the_order_of_words_are_one(table: needing.Table) -> None:
    for forms in (
        ("quantise", "quantised", "quantising", "quantisation", "quantizing", "quantization", "quantizable"),
        ("forecast", "forecasts", "forecasting", "forecasted"),
        ("memory", "memories"),
        ("compress", "compression", "compressed"),
        ("news",),
    ):
        assert len({needing.stem(form, table) for form in forms}) == 1, forms
    assert needing.stem("news", table) != needing.stem("new", table)
    once = needing.find("edit facts in a language model", table)
    assert once == needing.find("Language MODEL, a; in facts -- édit EDIT facts!", table)


def test_a_rare_word_of_a_card_finds_its_card() -> None:
    with catalogue.holding(hostile(), Hostile):
        every = entries()
        found = needing.find("zymurgy", needing.table(every))
        assert [every[one.entry].id for one in found] == ["hostile"]
        assert found[0].sure


@pytest.mark.parametrize("text", ["", "   ", "the of and", "…!?", "日本語", "\x00\ud800"])
def test_a_question_without_words_finds_nothing(text: str, table: needing.Table) -> None:
    assert needing.find(text, table) == []


def test_very_long_questions_are_cut(table: needing.Table) -> None:
    asked = " ".join(f"word{i}" for i in range(10_000))
    assert len(needing.stems(asked, table)) == table["longest"]
    assert needing.find(asked, table) == []


@pytest.mark.skipif(NODE is None, reason="needs node, which runs the page's script")
def test_the_page_finds_the_same_in_the_same_order(table: needing.Table) -> None:
    chance = random.Random(0)
    words = [*table["rare"], *table["alike"], "unheard", "constructor", "toString", "hasOwnProperty", "proto"]
    asked = [question["ask"] for question in QUESTIONS]
    asked += [" ".join(chance.choices(words, k=chance.randint(1, 50))) for _ in range(300)]
    asked += ["", HOSTILE, "ÉNERGIE İstanbul ﬁne-tuning ǅ ß Ω", "__proto__ constructor", "a" * 5000]
    script = resources.files("instar.report").joinpath("templates", "find.js").read_text("utf-8") + (
        'const given = JSON.parse(require("fs").readFileSync(0, "utf8"));'
        "const row = (one) => [one.entry, one.score, one.sure];"
        "console.log(JSON.stringify(given.asked.map((text) => instarFind.find(text, given.table, 8).map(row))));"
    )
    assert NODE is not None
    done = subprocess.run(
        [NODE, "-e", script], input=json.dumps({"table": table, "asked": asked}), capture_output=True, text=True, check=True
    )
    ours = [[[one.entry, one.score, one.sure] for one in needing.find(text, table)] for text in asked]
    assert json.loads(done.stdout) == ours
    assert any(ours)
