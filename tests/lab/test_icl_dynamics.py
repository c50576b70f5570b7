"""Linear attention: the layer, the formulas and samples say the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instar.errors import DivergedError, ShapeError
from instar.lab.icl import dynamics, shifts
from instar.lab.icl.tasks import TaskSampler
from instar.lab.icl_dynamics import LinearSelfAttention

N = 20


def basis(spectrum: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 3.0)) -> Tensor:
    """A covariance of that spectrum in a random basis."""
    q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=torch.Generator().manual_seed(1)).double()).Q
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T


def drawn(covariance: Tensor, shown: int, tasks: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d = TaskSampler(len(covariance), covariance=covariance).draw(
        tasks, shown + 1, torch.Generator().manual_seed(seed), torch.float64
    )
    return d.xs[:, :-1], d.ys[:, :-1], d.xs[:, -1:], d.ys[:, -1:]


def test_the_whole_layer_is_the_reduced_formula() -> None:
    layer = LinearSelfAttention(5, examples=N, covariance=basis())
    xs, ys, query, _ = drawn(basis(), 7, 20)
    with torch.no_grad():
        torch.testing.assert_close(layer(xs, ys, query), layer.reduced(xs, ys, query), atol=1e-12, rtol=1e-12)
        whole = layer(xs, ys, query)
        layer.value *= 3.0
        layer.key_query /= 3.0
        torch.testing.assert_close(layer(xs, ys, query), whole)  # only the product is seen
        layer.key_query[-1, :-1] = 0.3
        layer.value[-1, :-1] = 0.2
        E = torch.cat([torch.cat([xs, ys.unsqueeze(-1)], -1), torch.cat([query, torch.zeros(20, 1, 1)], -1)], 1).mT.double()
        by_hand = E + layer.value.double() @ E @ (E.mT @ layer.key_query.double() @ E) / 7
        torch.testing.assert_close(layer(xs, ys, query)[:, 0], by_hand[:, -1, -1], atol=1e-12, rtol=1e-12)


def test_loss_and_gradients() -> None:
    L = basis()
    U, u = dynamics.start(5, 0.4, torch.Generator().manual_seed(0))
    leaf, scalar = U.clone().requires_grad_(), torch.tensor(u, dtype=torch.float64, requires_grad=True)
    dynamics.loss(leaf, scalar, L, N).backward()
    dU, du = dynamics.gradients(U, u, L, N)
    torch.testing.assert_close(leaf.grad, dU)
    assert scalar.grad is not None
    assert float(scalar.grad) == pytest.approx(du)
    xs, ys, query, label = drawn(L, N, 20_000)
    with torch.no_grad():
        layer = LinearSelfAttention.with_weights(U, u, examples=N)
        losses = 0.5 * (layer.reduced(xs, ys, query) - label).square()
    assert abs(float(losses.mean()) - float(dynamics.loss(U, u, L, N))) < 4 * float(losses.std()) / 20_000**0.5


def test_the_optimum() -> None:
    L = basis()
    U, u = dynamics.optimum(L, N)
    dU, du = dynamics.gradients(U, u, L, N)
    assert float(dU.abs().max()) < 1e-12
    assert abs(du) < 1e-12
    G = dynamics.gamma(L, N)
    torch.testing.assert_close(u * U, torch.linalg.inv(G))
    least = 0.5 * (L.trace() - (L @ L @ torch.linalg.inv(G)).trace())
    assert float(dynamics.loss(U, u, L, N)) == pytest.approx(float(least))
    assert u == pytest.approx(1.531, abs=2e-3)  # the figure of the specification for this spectrum
    torch.testing.assert_close(dynamics.gamma(L, 10**9), L, atol=1e-7, rtol=0)
    eye = torch.eye(4, dtype=torch.float64)
    U, u = dynamics.optimum(eye, N)
    torch.testing.assert_close(u * U, eye / (1 + 5 / N))


def test_the_flow_ends_at_the_optimum_and_is_balanced() -> None:
    L = basis()
    start = dynamics.start(5, 0.3, torch.Generator().manual_seed(0))
    assert dynamics.small_enough(0.3, L, N)
    U, u = dynamics.flow(*start, L, N, time=200.0, step=0.03)
    best, scalar = dynamics.optimum(L, N)
    torch.testing.assert_close(U, best, atol=1e-3, rtol=0)
    assert u == pytest.approx(scalar, abs=1e-3)
    assert abs(u**2 - float(U.square().sum())) < 1e-4
    with pytest.raises(DivergedError, match="smaller"):
        dynamics.flow(*start, L, N, time=20.0, step=1.0)


@pytest.mark.parametrize("scale", [1e-3, 0.03, 1.0, 10.0])
def test_the_flow_ends_at_the_optimum_on_any_scale(scale: float) -> None:
    L = scale * basis()
    sigma = 0.3 / max(1.0, scale) ** 0.5
    start = dynamics.start(5, sigma, torch.Generator().manual_seed(0))
    none, least = float(L.trace()) / 2, float(dynamics.loss(*dynamics.optimum(L, N), L, N))
    assert float(dynamics.loss(*dynamics.flow(*start, L, N), L, N)) - least < 2e-3 * (none - least)
    once = dynamics.flow(*start, L, N, time=1e-3, step=1.0)
    assert float(dynamics.loss(*once, L, N)) < float(dynamics.loss(*start, L, N))  # a time below a step is gone all the same


def test_a_flow_that_would_take_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamics, "_MOST", 400)
    start = dynamics.start(5, 0.3, torch.Generator().manual_seed(0))
    with pytest.raises(DivergedError, match="not near the optimum after 400 steps"):
        dynamics.flow(*start, basis((1.0, 0.1, 0.1, 0.1, 0.1)), N)


def test_the_error_of_theorem_4_2_is_that_of_samples() -> None:
    L = basis()
    layer = LinearSelfAttention(5, examples=N, covariance=L)
    totals = []
    for shown in (5, 80):
        xs, ys, query, label = drawn(L, shown, 10_000)
        with torch.no_grad():
            errors = (layer.reduced(xs, ys, query) - label).square()
        totals.append(layer.theory(shown).total)
        assert abs(float(errors.mean()) - totals[-1]) < 4 * float(errors.std()) / 100
    assert totals == pytest.approx([4.45, 0.622], rel=0.02)  # the specification's figures
    one = dynamics.expected(L, N, 7, law=(torch.ones(5).double(), L.trace() * L, 0.25))
    assert one.best == 0.25
    assert one.bias > 0


def test_a_degenerate_law_of_covariances_is_the_fixed_one() -> None:
    diagonal = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    U, u = dynamics.random_covariance_optimum(lambda g: diagonal, N, torch.Generator(), draws=3)
    torch.testing.assert_close(u * U, torch.linalg.inv(dynamics.gamma(torch.diag(diagonal), N)))


def test_exponential_covariances_cost_two_thirds_of_the_truth() -> None:
    def draw(generator: torch.Generator) -> Tensor:
        return torch.empty(3, dtype=torch.float64).exponential_(generator=generator)

    U, u = dynamics.random_covariance_optimum(draw, 10**6, torch.Generator().manual_seed(0), draws=20_000)
    mean = u * U.diagonal()  # times E[l], which is 1
    torch.testing.assert_close(mean, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.03, rtol=0)


def test_which_shifts_it_bears() -> None:
    sampler = TaskSampler(4)
    tests = shifts.shifts(sampler, 200, tasks=300)
    layer = LinearSelfAttention(4, examples=200)
    found = {shift.name: shift for shift in shifts.evaluate(layer, tests)}
    assert found["none"].error < 0.05
    assert found["task: weights × 3"].error == pytest.approx(found["none"].error, rel=0.05)  # linear in the labels
    assert found["query: × 10"].error == pytest.approx(found["none"].error, rel=0.3)
    assert found["covariate: × 3"].error > 10
    few = shifts.shifts(sampler, 2, tasks=50)
    xs, ys, query, _ = few["query: orthogonal"]
    with torch.no_grad():
        scale = float(layer.predict(xs, ys, xs[:, :1]).abs().max())
        assert float(layer.predict(xs, ys, query).abs().max()) < 1e-5 * scale  # Λ = I: nothing is seen off the examples
    assert "covariate: × 3" in shifts.table({"layer": list(found.values())})


def test_training_on_tasks_lowers_the_error() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = LinearSelfAttention(3, examples=10, method="gradient", lr=0.02)
    sampler = TaskSampler(3)

    def tasks(index: int) -> tuple[Tensor, Tensor]:
        d = sampler.draw(64, 11, torch.Generator().manual_seed(index))
        return d.xs, d.ys

    losses: list[float] = []
    layer.fit(tasks, lambda a, b: (a - b).square().mean(), steps=150, monitor=lambda _, loss: losses.append(loss))
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


@pytest.mark.parametrize("wrong", [torch.ones(2, 3), -torch.eye(2), torch.tensor([[1.0, 2.0], [0.0, 1.0]])])
def test_no_covariance(wrong: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"covariance|square"):
        dynamics.gamma(wrong, 5)
