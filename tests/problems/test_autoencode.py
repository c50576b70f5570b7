"""The autoencoder: every image is scored, runs repeat, and an optimiser learns it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instar import catalogue
from instar.bench import run
from instar.errors import DivergedError, ShapeError
from instar.problems.autoencode import AutoencodeProblem


def made(slug: str, **arguments: Any) -> tuple[AutoencodeProblem, Any, Any]:
    problem = AutoencodeProblem(hidden=32, code=8)
    data = problem.load(0)
    return problem, data, run.lift(problem, slug, arguments, data, 0)


def test_splits_are_apart_and_every_image_is_scored() -> None:
    problem, data, subject = made("adamw")
    assert len(data.train) + len(data.valid) + len(data.test) == 1797
    assert float(data.train.max()) == 1.0
    found = problem.evaluate(subject, data.test)
    assert len(found["error"].totals) == len(data.test) == data.facts["test_items"]
    with torch.no_grad():
        wanted = (subject.model(data.test) - data.test).square().sum() / len(data.test)
    assert found["error"].value == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("slug", ["sgd", "adamw", "lamb", "muon", "kfac", "mkor", "mkor_h"])
def test_every_optimiser_learns_it_and_repeats_to_the_bit(slug: str) -> None:
    found = []
    for _ in range(2):
        problem, data, subject = made(slug)
        before = problem.evaluate(subject, data.test)["error"].value
        problem.fit(subject, data.train, steps=40, seed=0)
        scored = problem.evaluate(subject, data.test)
        assert scored["error"].value < 0.8 * before
        assert len(scored["train_error"].totals) == len(data.train)
        found.append(scored["error"].totals)
    assert found[0] == found[1]


def test_costs_count_what_is_kept() -> None:
    problem, _, subject = made("sgd")
    costs = problem.costs(subject)
    assert costs["state_bytes"] == 4 * costs["parameters"]
    assert not subject.optimiser.state  # the subject itself has made no step


def test_an_error_beyond_all_bounds_is_said() -> None:
    problem, data, subject = made("sgd", lr=1e6)
    with pytest.raises(DivergedError, match="smaller rate"):
        problem.fit(subject, data.train, steps=20, seed=0)


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"batch": 0}, {"hidden": 3}, {"code": 0}):
        with pytest.raises(ShapeError, match="autoencode expects"):
            AutoencodeProblem(**wrong)


def test_the_catalogue_knows_the_family() -> None:
    assert catalogue.problem("autoencode").baseline == {"Optimizer": "adamw"}
    assert {c.slug for c in catalogue.methods().values() if c.interface == "Optimizer"} >= {
        "sgd",
        "adamw",
        "lamb",
        "kfac",
        "mkor",
    }
