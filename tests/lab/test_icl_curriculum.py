"""Curricula: sizes that grow, tasks whose labels fit what is left of their inputs, problems that train with them."""

from __future__ import annotations

import pytest
import torch

from instar import catalogue
from instar.bench.seeds import stream
from instar.errors import ShapeError
from instar.lab.icl.curriculum import Curriculum
from instar.lab.icl.tasks import TaskSampler
from instar.problems.in_context import InContextProblem
from instar.problems.in_context_boolean import InContextBooleanProblem
from instar.problems.loop_regression import LoopRegressionProblem


def test_sizes() -> None:
    paper = Curriculum(20, 41, 5000)
    assert paper.sizes(0) == paper.sizes(4999) == (5, 11)
    assert paper.sizes(5000) == (6, 13)
    assert paper.sizes(15 * 5000) == paper.sizes(10**9) == (20, 41)
    sizes = [paper.sizes(step) for step in range(0, 100_000, 5000)]
    assert sizes == sorted(sizes)
    assert Curriculum(20, 41).sizes(0) == (20, 41)
    assert Curriculum(3, 1, 5).sizes(0) == (1, 1)
    with pytest.raises(ShapeError):
        Curriculum(3, 3, -1)


def test_labels_are_those_of_the_features_that_are_left() -> None:
    drawn = TaskSampler(6).draw(10, 8, torch.Generator().manual_seed(0), torch.float64, features=2)
    assert drawn.weights is not None
    assert not bool(drawn.xs[..., 2:].any())
    torch.testing.assert_close(drawn.ys, torch.einsum("bnd,bd->bn", drawn.xs[..., :2], drawn.weights[:, :2]))


@pytest.mark.parametrize(
    ("problem", "method"),
    [
        (InContextProblem(width=4, examples=8, batch=4, curriculum=2, test_tasks=8), "icl_linear"),
        (InContextBooleanProblem(width=4, examples=8, batch=4, curriculum=2, test_tasks=8), "icl_linear"),
        (LoopRegressionProblem(examples=8, batch=4, width=16, curriculum=2), "looped:algoformer"),
    ],
)
def test_problems_train_on_tasks_that_grow(problem: object, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    sizes = Curriculum.sizes

    def spied(self: Curriculum, step: int) -> tuple[int, int]:
        seen.append(step)
        return sizes(self, step)

    monkeypatch.setattr(Curriculum, "sizes", spied)
    found = catalogue.parse(method)
    build = catalogue.Build(found.card, catalogue.load(found.card), found.arguments)
    data = problem.load(0)  # type: ignore[attr-defined]
    make = problem.learner if hasattr(problem, "learner") else problem.subject  # type: ignore[attr-defined]
    subject = make(build, data, 0)
    problem.fit(subject, data.train, steps=8, seed=0)  # type: ignore[attr-defined]
    assert seen == list(range(8))
    assert problem.evaluate(subject, data.test)  # type: ignore[attr-defined]


def test_a_curriculum_and_teaching_exclude_each_other() -> None:
    with pytest.raises(ShapeError, match="teaching"):
        InContextBooleanProblem(curriculum=10, teaching=0.5)


def test_other_functions_in_the_test() -> None:
    usual, other = (InContextBooleanProblem(test_tasks=50, test_family=family) for family in (None, "disjunction"))
    assert usual.load(0).sha256 != other.load(0).sha256
    assert float((other.load(0).test[1] > 0).double().mean()) > float((usual.load(0).test[1] > 0).double().mean())
    assert InContextBooleanProblem(test_tasks=50, test_positives=0.9).load(0).sha256 != usual.load(0).sha256


@pytest.mark.parametrize(("teaching", "taught"), [(0.0, False), (0.5, False), (0.5, True), (0.0, True)])
def test_a_mixture_is_tested_on_the_functions_that_it_is_trained_on(teaching: float, taught: bool) -> None:
    """Whether terms of a DNF have negations, in training and in both kinds of tests."""
    problem = InContextBooleanProblem(family="dnf", width=8, examples=40, teaching=teaching, taught=taught, test_tasks=20)
    drawn = [one.functions(40, stream(0, "dnf")).weights for one in (problem.sampler, problem.test_sampler)]
    assert {bool((weights < 0).any()) for weights in drawn} == {not (teaching or taught)}
    plain = InContextBooleanProblem(family="dnf", width=8, examples=40, test_tasks=20)
    assert (problem.load(0).sha256 == plain.load(0).sha256) == (not (teaching or taught))
