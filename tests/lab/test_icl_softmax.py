"""Softmax regression: derivatives against autograd, the moves as identities, bounds that hold, and one layer beside one step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instar import catalogue
from instar.bench import plan
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl.closeness import closeness, documents, sensitivity
from instar.lab.icl.softmax_regression import SoftmaxRegression, certificate, moved_document
from instar.lab.icl_softmax import InContextSoftmax
from instar.lab.majority_label import MajorityLabel
from instar.lab.nearest_neighbours import NearestNeighbours
from instar.lab.softmax_step import SoftmaxStep
from instar.problems.in_context_softmax import InContextSoftmaxProblem


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_derivatives(weight: float) -> None:
    A, x, v = normal(9, 4), normal(4, seed=1), normal(4, seed=2)
    problem = SoftmaxRegression(A, normal(9, seed=3).softmax(0), weight)
    torch.testing.assert_close(problem.gradient(x), torch.func.grad(problem.loss)(x), atol=1e-12, rtol=0)
    H = problem.hessian(x)
    torch.testing.assert_close(H, torch.func.hessian(problem.loss)(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(H, H.T)
    torch.testing.assert_close(problem.product(x, v), H @ v)


def test_invariances() -> None:
    A, x = normal(9, 4), normal(4, seed=1)
    f = SoftmaxRegression(A, torch.zeros(9).double()).probabilities(x)
    shifted = SoftmaxRegression(A + normal(4, seed=5), torch.zeros(9).double())
    torch.testing.assert_close(shifted.probabilities(x), f)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SoftmaxRegression(A[order], torch.zeros(9).double()).probabilities(x), f[order])
    assert bool(SoftmaxRegression(1e6 * A, torch.zeros(9).double()).probabilities(x).isfinite().all())
    one = SoftmaxRegression(normal(1, 4), torch.tensor([0.25]).double())
    assert float(one.loss(x)) == pytest.approx(0.5 * 0.75**2)
    assert float(one.gradient(x).abs().max()) == 0.0


@pytest.mark.parametrize("size", [2.0, 4.0])
def test_newton_finds_what_made_the_labels(size: float) -> None:
    A = normal(40, 5)
    A *= size / torch.linalg.matrix_norm(A, 2)
    x = normal(5, seed=1)
    b = (A @ x).softmax(0)
    found = SoftmaxRegression(A, b).solve()
    assert found.gradient < 1e-12
    assert found.steps < 40
    torch.testing.assert_close(found.x, x, atol=1e-6, rtol=0)
    assert float(SoftmaxRegression(A, b).gradient(x).abs().max()) < 1e-15


def test_moves_are_identities() -> None:
    A, x, b = normal(9, 4), normal(4, seed=1), normal(9, seed=3).softmax(0)
    problem = SoftmaxRegression(A, b)
    after = problem.step(x, 5.0)
    labels = problem.moved_labels(x, after)
    torch.testing.assert_close(SoftmaxRegression(A, labels).loss(x), problem.loss(after))
    assert float(labels.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(moved_document(A, x, after) @ x, A @ after)
    with pytest.raises(ShapeError, match="x = 0"):
        moved_document(A, torch.zeros(4).double(), x)


def test_the_bounds_hold() -> None:
    for seed in range(300):
        n = 3 + seed % 20
        A, x = normal(n, 3, seed=seed) * (0.2 + seed % 4), normal(3, seed=seed + 1)
        for move in (certificate(A, x, x2=x + normal(3, seed=seed + 2)), certificate(A, x, A2=A + normal(n, 3, seed=seed + 3))):
            assert move.measured <= move.tight * (1 + 1e-12)
    small = certificate(A, x, x2=x + 1e-5)
    assert small.applies
    assert small.measured <= small.tight <= small.paper
    with pytest.raises(ShapeError, match="one move"):
        certificate(A, x)


def test_the_step_from_zero_is_autograds() -> None:
    A, b = normal(12, 4), normal(12, seed=1).softmax(0)
    x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    SoftmaxRegression(A, b).loss(x).backward()
    assert x.grad is not None
    rate = 30.0
    wanted = 12 * (A @ (-rate * x.grad)).softmax(0)
    said = SoftmaxStep(rate=rate / 12 / 1).predict(A[None], 12 * b[None], A[None])[0]
    torch.testing.assert_close(said, wanted)


def test_a_trained_layer_comes_close_to_the_step() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = InContextSoftmax(4, lr=1e-2)

    def tasks(index: int) -> tuple[Tensor, Tensor]:
        A, y = documents(64, 25, 4, torch.Generator().manual_seed(index))
        return A.float(), y.float()

    A, y = documents(200, 25, 4, torch.Generator().manual_seed(9999))
    training = documents(200, 25, 4, torch.Generator().manual_seed(7))
    step = SoftmaxStep.tuned(*training, *training)
    assert float((step.predict(A, y, A) - y).square().mean()) < 0.3 * float((y - 1).square().mean())
    before = closeness(layer, step, A, y, A)
    layer.fit(tasks, lambda a, b: (a - b).square().mean(), steps=300)
    after = closeness(layer, step, A, y, A)
    assert after.predictions < before.predictions
    assert after.cosine > 0.7 > before.cosine
    same = closeness(step, step, A, y, A)
    assert same.predictions == 0.0
    assert same.cosine == pytest.approx(1.0)


@pytest.mark.parametrize("learner", [MajorityLabel(), NearestNeighbours(k=2), InContextSoftmax(4, normalise=False)])
def test_who_does_not_look_at_the_query_has_no_sensitivity(learner: InContextLearner) -> None:
    """Saying 1, the measure of all errors here, among them."""
    problem = InContextSoftmaxProblem(width=4, tokens=8, test_tasks=10)
    data = problem.load(0)
    if isinstance(learner, InContextSoftmax):
        with torch.no_grad():
            learner.query.zero_()  # a graph to the weights, and one of zeros to the query
    slope = sensitivity(learner, *data.test, data.test[0])[1]
    assert slope.shape == data.test[0].shape
    assert float(slope.abs().max()) == 0.0
    found = problem.evaluate(learner, data.test)
    assert found["cosine"].value == 0.0
    if isinstance(learner, MajorityLabel):
        assert found["error"].value == pytest.approx(1.0)


def test_the_step_of_a_comparison_is_tuned() -> None:
    """The engine gives defaults too: a step without a rate of its own is the reference, at no distance from it."""
    planned, problem, data = plan.prepare(
        plan.Request("in_context_softmax", ("softmax_step",), settings={"test_tasks": 40}, least=1)
    )
    entry = planned.entries[[e.slug for e in planned.entries].index("softmax_step")]
    build = Build(catalogue.method("softmax_step"), SoftmaxStep, entry.arguments)
    assert isinstance(problem, InContextSoftmaxProblem)
    said = problem.evaluate(problem.learner(build, data, 0), data.test)
    assert max(said["distance"].totals) == 0.0
    assert sum(said["error"].totals) < 0.3 * sum(said["error"].weights)
    own = problem.learner(Build(build.card, SoftmaxStep, {"rate": 2.0}), data, 0)
    assert isinstance(own, SoftmaxStep)
    assert own.rate == 2.0
