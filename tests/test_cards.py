"""The schema of cards: strict, and clear about what is wrong."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from instar import catalogue, formula
from instar.cards import Card, ProblemCard, read
from instar.errors import CardError, FormulaError, UnknownNameError

GOOD = """
slug = "foo"
family = "mixers"
title = "Foo"
idea = "An idea."
when_not = "Never."
entry = "package.foo:Foo"
interface = "Mixer"
kind = "system"
domains = ["language"]
tasks = []
tags = ["causal", "positions=host", "lookahead=2"]
[cost]
flops = "2 * T * D"
state = "4 * D"
[knobs.rate]
range = [0.1, 1.0]
scale = "log"
[presets.big]
rate = 0.9
[[claims]]
id = "one"
text = "Better."
source = "Table 1"
kind = "compare"
measure = "text.bits_per_byte@T"
against = "softmax"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "foo.toml"
    path.write_text(text)
    return path


def test_a_good_card(tmp_path: Path) -> None:
    card = read(write(tmp_path, GOOD), Card)
    assert card.capability("causal") is True
    assert card.capability("streaming") is False
    assert card.capability("lookahead") == 2
    assert card.capability("positions") == "host"
    assert card.preset("big") == {"rate": 0.9}
    assert card.preset("default") == {}
    with pytest.raises(UnknownNameError, match="big"):
        card.preset("bigg")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('idea = "An idea."', 'idee = "An idea."', ["foo.toml", "idee", "idea"]),
        ('idea = "An idea."', "", ["missing key 'idea'", "a string"]),
        ('idea = "An idea."', "idea = 3", ["'idea'", "a string", "received 3"]),
        ('kind = "system"', 'kind = "sistem"', ["'kind'", "one of", "'system'"]),
        ("tasks = []", 'tasks = "all"', ["'tasks'", "a list of a string"]),
        ('"causal"', '"casual"', ["tag", "casual", "causal"]),
        ("positions=host", "positions=here", ["positions=none|inside|host"]),
        ("lookahead=2", "lookahead=two", ["lookahead=NUMBER"]),
        ("range = [0.1, 1.0]", "range = [1.0, 0.1]", ["low < high"]),
        ("range = [0.1, 1.0]", "range = [0.0, 1.0]", ["positive"]),
        ("range = [0.1, 1.0]", "", ["either range"]),
        ('state = "4 * D"', 'state = "__import__(1).x"', ["cost.state"]),
        ('state = "4 * D"', "", ["cost.state", "missing"]),
        ('against = "softmax"', "", ["claims.one.against"]),
        ('kind = "compare"', 'kind = "untestable"', ["reason"]),
        ('kind = "compare"', 'kind = "threshold"', ["claims.one.against", "a number"]),
        ('slug = "foo"', 'slug = "bar"', ["file's name 'foo'"]),
        ('entry = "package.foo:Foo"', 'entry = "package.foo.Foo"', ["package.module:Class"]),
        ("[cost]", "[cost", ["is not TOML"]),
        ('id = "one"', 'id = "one"\nextra = 1', ["claims[0].extra"]),
    ],
)
def test_a_malformed_card_says_file_key_and_expectation(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(CardError) as caught:
        read(path, Card)
    for word in ["foo.toml", *words]:
        assert word in str(caught.value)


def test_a_formula_is_arithmetic_and_nothing_else() -> None:
    assert formula.evaluate("2 * max(T, 3) * -D // 4 + ceil(0.5)", {"T": 1, "D": 8}) == -11
    for hostile in (
        "__import__('os')",
        "T.__class__",
        "[1]",
        "'a' * 9",
        "lambda: 1",
        "True",
        "9 ** 9 ** 9",
        "((((((9 ** 8) ** 8) ** 8) ** 8) ** 8) ** 8) ** 8",
        "(0 - T) ** 0.5",
        "x",
        "1 / 0",
        "f(1)",
        "(" * 600,
    ):
        with pytest.raises(FormulaError):
            formula.evaluate(hostile, {"T": 1})


@pytest.mark.parametrize("slug", catalogue.methods())
def test_every_method_card_is_where_it_says(slug: str) -> None:
    card = catalogue.method(slug)
    assert card.path.stem == slug
    if card.path.is_relative_to(Path(catalogue.__file__).parent):
        assert card.family == card.path.parent.name
    assert card.paper is None or card.paper.bibtex.strip().startswith("@")


@pytest.mark.parametrize("slug", catalogue.problems())
def test_every_problem_card_names_a_baseline_that_it_accepts(slug: str) -> None:
    card = catalogue.problem(slug)
    assert isinstance(card, ProblemCard)
    for interface, baseline in card.baseline.items():
        assert catalogue.parse(baseline).card.interface == interface
    named = set(re.findall(r"\b([a-z_]+)=", f"{card.idea} {card.caution}"))
    assert named <= inspect.signature(catalogue.load(card)).parameters.keys(), "the card speaks of settings that there are not"


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="softmax"):
        catalogue.method("softmaxx")
    with pytest.raises(UnknownNameError, match="text"):
        catalogue.problem("txt")
    with pytest.raises(UnknownNameError):
        catalogue.resolve("instar.nowhere:X")
    with pytest.raises(UnknownNameError, match="Softmax"):
        catalogue.resolve("instar.mixers.softmax:Sofmax")
