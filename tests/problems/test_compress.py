"""The problem of compressed encoders: every query is scored, the reference is the model as it was, sizes are those of a file."""

from __future__ import annotations

import pytest

from instar import catalogue
from instar.catalogue import Build
from instar.compression.int8 import Int8
from instar.errors import InstarError, ShapeError
from instar.problems.compress import CompressProblem


def test_queries_are_fixed_galleries_drawn_and_everything_is_scored() -> None:
    pytest.importorskip("transformers")
    problem = CompressProblem(intents=5, gallery=2, queries=2)
    try:
        first, second = problem.load(0), problem.load(1)
    except InstarError as error:
        pytest.skip(str(error))
    assert first.sha256 == second.sha256
    assert first.test.queries == second.test.queries
    assert first.test.gallery != second.test.gallery
    assert (len(first.test.queries), len(first.test.gallery), first.facts["test_items"]) == (10, 10, 10)
    card = catalogue.method("int8")
    subject = problem.subject(Build(card, Int8, {}), first, 0)
    found = problem.evaluate(subject, first.test)
    assert set(found) == {m.id for m in catalogue.problem("compress").metrics if m.kind == "quality"}
    assert all(len(items.totals) == 10 for items in found.values())
    assert found["cosine"].value > 0.998
    assert found["accuracy@fp32"].totals == [float(right) for right in first.test.answers]
    costs = problem.costs(subject)
    assert set(costs) == {m.id for m in catalogue.problem("compress").metrics if m.kind == "cost"}
    assert 1.4 < costs["ratio"] < 1.7  # the table of embeddings, half of the model, stays in float32


def test_sizes_that_make_no_sense() -> None:
    for wrong in ({"intents": 1}, {"intents": 151}, {"gallery": 0}, {"queries": 21}):
        with pytest.raises(ShapeError, match="compress expects"):
            CompressProblem(**wrong)
