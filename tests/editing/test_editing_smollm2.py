"""A real fact in a real model: said, other text hardly moved, and taken out again to the bit."""

from __future__ import annotations

import pytest

from instar.data import pretrained
from instar.editing import drift, statistics
from instar.editing.evaluation import evaluate
from instar.editing.layout import layout
from instar.editing.memit import MEMIT
from instar.errors import MissingExtraError
from instar.interfaces import Fact
from instar.receipt import fingerprint

FACT = Fact(
    "The capital of France is",
    "France",
    "Rome",
    "Paris",
    ["France has a capital city, and its name is"],
    ["The most famous tower in the world stands in the city of"],
)


def test_the_capital_of_france() -> None:
    try:
        model, tokenizer = pretrained.load("SmolLM2-135M-Instruct")
    except MissingExtraError as error:
        pytest.skip(str(error))
    base = fingerprint(model)
    before = evaluate(model, tokenizer, [FACT]).figures()
    assert before["efficacy"] == 0
    editor = MEMIT(layers=[5, 6], steps=10, prefixes=1)
    chosen = layout(model).chosen([5, 6])
    editor.moments = statistics.gather(model, tokenizer, chosen, tokens=1600, cache=False)
    with editor.edit(model, tokenizer, [FACT]) as receipt:
        after = evaluate(model, tokenizer, [FACT]).figures()
        assert after["efficacy"] == after["generalisation"] == after["efficacy accuracy"] == 1
        texts = ["Water boils at a hundred degrees, and the kettle whistles. The train leaves at noon from the second platform."]
        assert drift.drift(model, tokenizer, receipt, texts)["drift"] < 0.1
        assert {change.name for change in receipt.changes} == {f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6)}
    assert fingerprint(model) == base
