"""Which learner is it: the references, the measures, compiled learners, and networks of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from instar import catalogue
from instar.bench import plan
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.lab.averaging import Averaging
from instar.lab.bayes_linear import BayesLinear
from instar.lab.compiled_learner import CompiledLearner
from instar.lab.gradient_descent import GradientDescent
from instar.lab.icl import measures
from instar.lab.icl.construction import ConstructedLayer, Slots
from instar.lab.icl.tasks import FAMILIES, Drawn, TaskSampler
from instar.lab.icl_linear import InContextDecoder
from instar.lab.least_squares import LeastSquares
from instar.lab.nearest_neighbours import NearestNeighbours
from instar.problems.in_context import InContextProblem


def drawn(width: int = 4, examples: int = 7, tasks: int = 20, noise: float = 0.0, seed: int = 0) -> Drawn:
    return TaskSampler(width, noise=noise).draw(tasks, examples, torch.Generator().manual_seed(seed), torch.float64)


@pytest.mark.parametrize("examples", [2, 4, 9])
def test_least_squares_is_numpys(examples: int) -> None:
    d = drawn(examples=examples, noise=0.3)
    wanted = [np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0] for x, y in zip(d.xs, d.ys, strict=True)]
    np.testing.assert_allclose(LeastSquares().weights(d.xs, d.ys), wanted, atol=1e-9)
    np.testing.assert_allclose(LeastSquares(ridge=1e-11).weights(d.xs, d.ys), wanted, atol=1e-3)


def test_iterations_end_at_ridge_regression() -> None:
    d = drawn(noise=0.3)
    wanted = LeastSquares(ridge=0.5).weights(d.xs, d.ys)
    torch.testing.assert_close(GradientDescent(lr=0.01, steps=3000, ridge=0.5).weights(d.xs, d.ys), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(GradientDescent(rule="newton", steps=25, ridge=0.5).weights(d.xs, d.ys), wanted)
    one = GradientDescent(lr=1 / 14, steps=1)
    torch.testing.assert_close(one.predict(d.xs, d.ys, d.xs), Averaging().predict(d.xs, d.ys, d.xs))


def test_nothing_is_better_than_bayes() -> None:
    d = drawn(examples=8, tasks=3000, noise=0.5)

    def risk(learner: object) -> float:
        return float((learner.prefixes(d.xs, d.ys) - d.truth).square().mean())  # type: ignore[attr-defined]

    best = risk(BayesLinear(noise=0.5))
    others = [LeastSquares(), LeastSquares(ridge=1.0), LeastSquares(ridge=0.05), GradientDescent(), NearestNeighbours()]
    assert best < min(map(risk, others))


def test_neighbours() -> None:
    xs = torch.tensor([[[0.0], [1.0], [3.0]]])
    ys = torch.tensor([[1.0, 2.0, 6.0]])
    query = torch.tensor([[[0.2], [3.0]]])
    assert NearestNeighbours(k=1).predict(xs, ys, query).tolist() == [[1.0, 6.0]]
    assert NearestNeighbours(k=9).predict(xs, ys, query).tolist() == [[3.0, 3.0]]
    weighted = NearestNeighbours(k=2, weigh="distance").predict(xs, ys, query)
    assert weighted.flatten().tolist() == pytest.approx([(1 / 0.2 + 2 / 0.8) / (1 / 0.2 + 1 / 0.8), 6.0])


def test_measures_of_linear_learners() -> None:
    d, probes = drawn(), torch.randn(20, 12, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ols, ridge = LeastSquares(), LeastSquares(ridge=1.0)
    assert float(measures.spd(ols, ols, d.xs, d.ys).max()) == 0.0
    torch.testing.assert_close(measures.spd(ols, ridge, d.xs, d.ys), measures.spd(ridge, ols, d.xs, d.ys))
    gap = (ols.weights(d.xs, d.ys) - ridge.weights(d.xs, d.ys)).square().sum(1).mean()
    assert measures.ilwd(ols, ridge, d.xs, d.ys, probes) == pytest.approx(float(gap))
    torch.testing.assert_close(measures.implied(ols, d.xs, d.ys, probes).linearity, torch.ones(20, dtype=torch.float64))
    assert float(measures.implied(NearestNeighbours(), d.xs, d.ys, probes).linearity.mean()) < 0.9
    found = measures.compare(ridge, {"ols": ols, "near": LeastSquares(ridge=0.9)}, d.xs, d.ys, probes)
    assert [one.name for one in found] == ["near", "ols"]
    assert "near" in measures.table(found)
    with pytest.raises(ShapeError, match="probe inputs"):
        measures.implied(ols, d.xs, d.ys, probes[:, :4])


@pytest.mark.parametrize("ridge", [0.1, 2.0])
def test_compiled_learners_are_their_formulas(ridge: float) -> None:
    d = drawn(width=3, examples=6, noise=0.4)
    with torch.no_grad():
        made = CompiledLearner(3, examples=5, ridge=ridge).prefixes(d.xs, d.ys)
        torch.testing.assert_close(made, LeastSquares(ridge=ridge).prefixes(d.xs, d.ys), atol=1e-4, rtol=1e-5)
        made = CompiledLearner(3, examples=5, algorithm="gradient_descent", lr=0.05, ridge=ridge).prefixes(d.xs, d.ys)
        wanted = GradientDescent(lr=0.05, ridge=ridge, rule="one_pass").prefixes(d.xs, d.ys)
    torch.testing.assert_close(made, wanted, atol=1e-6, rtol=1e-6)


def test_primitives_of_the_construction() -> None:
    slots = Slots(["a", "b", "sum", "product", "copy"])
    at, angle = slots.at, 0.3
    h = torch.zeros(1, 4, len(slots), dtype=torch.float64)
    h[0, :, at["pad+"]], h[0, :, at["pad-"]] = 1e6, -1e6
    turn = angle * torch.arange(4)
    h[0, :, at["cos"]], h[0, :, at["sin"]] = turn.cos().double(), turn.sin().double()
    a, b = torch.tensor([0.5, -1.0, 2.0, 3.0]).double(), torch.tensor([1.5, 2.0, -0.25, 1.0]).double()
    h[0, :, at["a"]], h[0, :, at["b"]] = a, b
    layer = ConstructedLayer(slots, angle, own={"sum": {"a": 2.0, "b": -1.0}}, past={"copy": {"a": 1.0}}, back=2,
                             products=[("product", "a", "b")])  # fmt: skip
    with torch.no_grad():
        out = layer(h)[0]
        torch.testing.assert_close(out[:, at["sum"]], 2 * a - b, atol=1e-8, rtol=0)
        torch.testing.assert_close(out[2:, at["copy"]], a[:2], atol=1e-8, rtol=0)
        torch.testing.assert_close(out[:, at["product"]], a * b, atol=1e-5, rtol=0)
        for c in (4.0, -4.0):  # LayerNorm divides by the size of c, and knows no sign
            h[0, :, at["pad+"]], h[0, :, at["pad-"]] = 1e6 * c, -1e6 * c
            quotient = ConstructedLayer(slots, angle, copies={"copy": "a"})(h)[0, :, at["copy"]]
            torch.testing.assert_close(quotient, a / 4, atol=1e-8, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_samplers(family: str) -> None:
    sampler = TaskSampler(5, family, noise=0.5)  # type: ignore[arg-type]
    d = sampler.draw(400, 20, torch.Generator().manual_seed(0), torch.float64)
    assert float((d.ys - d.truth).std()) == pytest.approx(0.5, rel=0.05)
    again = sampler.draw(400, 20, torch.Generator().manual_seed(0), torch.float64)
    assert torch.equal(d.ys, again.ys)
    if d.weights is not None:
        torch.testing.assert_close(torch.einsum("bnd,bd->bn", d.xs, d.weights), d.truth)
    if family == "sparse_linear":
        assert (d.weights != 0).sum(1).tolist() == [3] * 400
    if family == "decision_tree":
        assert all(len(set(row)) <= 16 for row in d.truth.tolist())
        torch.testing.assert_close(sampler.functions(400, torch.Generator().manual_seed(1))[0](d.xs),
                                   sampler.functions(400, torch.Generator().manual_seed(1))[0](d.xs * 7))  # fmt: skip


def test_a_short_training_learns_what_all_tasks_share() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = InContextDecoder(2, examples=6, model_width=32, depth=1, heads=2, lr=1e-2)
    sampler = TaskSampler(2, fixed=True)

    def tasks(index: int) -> tuple[Tensor, Tensor]:
        d = sampler.draw(32, 6, torch.Generator().manual_seed(index))
        return d.xs, d.ys

    losses: list[float] = []
    learner.fit(tasks, lambda a, b: (a - b).square().mean(), steps=60, monitor=lambda _, loss: losses.append(loss))
    assert sum(losses[-15:]) < 0.5 * sum(losses[:15])


def test_bad_learners() -> None:
    with pytest.raises(ShapeError, match="at most 3"):
        InContextDecoder(2, examples=3)(torch.zeros(1, 4, 2), torch.zeros(1, 4))
    with pytest.raises(ShapeError, match="both sides"):
        InContextDecoder(2, examples=3, mixer="bidirectional_hopfield")
    with pytest.raises(ShapeError, match="ridge"):
        CompiledLearner(2, examples=4, ridge=0.0)
    with pytest.raises(ShapeError, match="family"):
        TaskSampler(2, "quadratic")  # type: ignore[arg-type]


def test_a_comparison_tells_the_bayes_predictor_its_noise() -> None:
    planned, problem, data = plan.prepare(
        plan.Request("in_context", ("bayes_linear",), settings={"noise": 0.5, "prior": 2.0, "test_tasks": 20})
    )
    entry = next(e for e in planned.entries if e.slug == "bayes_linear")
    assert isinstance(problem, InContextProblem)
    learner = problem.learner(Build(catalogue.method("bayes_linear"), BayesLinear, entry.arguments), data, 0)
    assert isinstance(learner, BayesLinear)
    assert (learner.noise, learner.prior) == (0.5, 2.0)
