"""The problem `programs`: fixed sequences, every item scored, methods judged by their final form."""

from __future__ import annotations

import pytest

from instar import catalogue
from instar.bench.run import lift
from instar.errors import ShapeError, UnknownNameError
from instar.problems.programs import ProgramsProblem


def test_every_item_is_scored_and_seeds_pair() -> None:
    problem = ProgramsProblem(task="hist", vocab=5, length=6, samples=100, batch=16)
    data = problem.load(0)
    assert data.sha256 == problem.load(1).sha256
    assert problem.load(0).facts["test_items"] == 10
    for slug in ("transformer_programs", "plain_encoder", "unigram"):
        subject = lift(problem, slug, {}, data, 0)
        problem.fit(subject, data.train, steps=4, seed=0)
        items = problem.evaluate(subject, data.test)
        asked = [sum(label is not None for label in row) for row in data.test.labels]
        assert list(items["accuracy"].weights) == asked
        assert all(0 <= a <= b for a, b in zip(items["accuracy"].totals, asked, strict=True))
        assert len(items["sequences"].totals) == len(data.test)


@pytest.mark.parametrize("preset", catalogue.problem("programs").presets)
def test_presets_construct(preset: str) -> None:
    ProgramsProblem(**catalogue.problem("programs").presets[preset])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError):
        ProgramsProblem(task="srt").load(0)
    with pytest.raises(ShapeError, match="30 samples"):
        ProgramsProblem(samples=3)
