"""The network's theory as properties: energy, limits of β, fixed points, contraction, retrieval bounds, capacity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.mixers.hopfield_network import HopfieldNetwork, capacity_bound, largest_entries, regime


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def on_sphere(count: int, width: int, radius: float, seed: int = 0) -> Tensor:
    x = torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return radius * x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("beta", [0.05, 0.5, 2.0, 20.0])
def test_energy_never_rises_is_bounded_and_its_slope_is_the_update(beta: float) -> None:
    torch.manual_seed(0)
    network = HopfieldNetwork(torch.randn(12, 6, dtype=torch.float64), beta)
    state = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(network.energy(state).sum(), state)
    close(slope, (state - network.update(state)).detach())
    ceiling = 2 * float(network.patterns.norm(dim=-1).max()) ** 2
    energy = network.energy(state).detach()
    state = state.detach()
    for _ in range(30):
        new = network.update(state)
        now = network.energy(new)
        # a step lowers the energy by half its squared length or more, as |ξ|²/2 is 1-strongly convex
        assert bool((now <= energy - (new - state).square().sum(-1) / 2 + 1e-12).all())
        assert bool(((now >= -1e-12) & (now <= ceiling)).all())  # after an update the state is in the convex hull
        state, energy = new, now


def test_small_beta_averages_large_beta_finds_the_pattern_of_largest_product() -> None:
    X = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    close(HopfieldNetwork(X, 1e-9).update(state), X.mean(0).expand(20, 5), 1e-7)
    close(HopfieldNetwork(X, 1e5).update(state), X[(state @ X.T).argmax(-1)], 1e-6)
    close(HopfieldNetwork(X[:1], 0.3).update(state), X[:1].expand(20, 5))


def test_a_cluster_is_a_metastable_state_and_small_beta_leaves_one_mean() -> None:
    centres = on_sphere(4, 20, 5.0)
    X = (centres.unsqueeze(1) + 0.05 * on_sphere(12, 20, 1.0, 1).view(4, 3, 20)).flatten(0, 1)
    X = 5.0 * X / X.norm(dim=-1, keepdim=True)
    found = HopfieldNetwork(X, 1.0).fixed_points()
    assert found.kinds == ("metastable",) * 4
    assert found.basin.tolist() == [c for c in range(4) for _ in range(3)]
    close(found.points, X.view(4, 3, 20).mean(1), 0.02)
    apart = HopfieldNetwork(X, 1e5).fixed_points()  # so sharp that the members of a cluster are told apart
    assert apart.kinds == ("pattern",) * 12
    flat = HopfieldNetwork(X - X.mean(0), 0.01)
    assert flat.contraction() < 1
    found = flat.fixed_points()
    assert found.kinds == ("average",)
    close(found.points, torch.zeros(1, 20, dtype=torch.float64), 0.1)


def test_a_contraction_sends_all_states_to_one_point() -> None:
    X = torch.randn(15, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = HopfieldNetwork(X, 1.0)
    network.beta = 0.9 / network.contraction()
    assert network.contraction() == pytest.approx(0.9)
    settled = network(10 * torch.randn(30, 6, dtype=torch.float64))
    close(settled, settled[:1].expand_as(settled), 2e-3)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_retrieval_error_is_below_its_bound(beta: float) -> None:
    """Theorem 4, on random patterns on a sphere; the bounds are far below M, or they would say nothing."""
    for seed in range(5):
        X = on_sphere(50, 64, math.sqrt(63), seed)
        network = HopfieldNetwork(X, beta)
        noise = 0.3 * on_sphere(50, 64, 1.0, seed + 100)
        settled, _ = network.retrieve(X, eps=1e-12)
        distance = torch.maximum((settled - X).norm(dim=-1), noise.norm(dim=-1))
        bound = network.error_bound(distance)
        assert float(bound.median()) < 0.1 * math.sqrt(63)
        assert bool(((network.update(X + noise) - X).norm(dim=-1) <= bound).all())
        near = 2 * math.e * 49 * math.sqrt(63) * torch.exp(-beta * network.separation())
        assert bool(((settled - X).norm(dim=-1) <= near + 1e-11).all())


def test_the_phase_transition_of_random_patterns() -> None:
    """d = 64, 200 patterns of length √63, noise of length 0.5: all flow to the mean up to β = 0.1, one is found from 0.3 on."""
    X = on_sphere(200, 64, math.sqrt(63))
    start = X[:40] + 0.5 * on_sphere(40, 64, 1.0, 7)
    lost, _ = HopfieldNetwork(X, 0.1).retrieve(start, eps=1e-6)
    assert float((lost - X[:40]).norm(dim=-1).min()) > 7
    close(lost, lost[:1].expand_as(lost), 1e-2)
    found, updates = HopfieldNetwork(X, 0.3).retrieve(start, eps=1e-6)
    assert float((found - X[:40]).norm(dim=-1).max()) < 0.01
    assert int(updates.max()) <= 5


def test_more_patterns_are_stored_than_a_classical_network_holds_by_orders() -> None:
    """A binary network of d = 32 units holds about 0.14 d = 4 patterns; here 2000 come back after one update."""
    X = on_sphere(2000, 32, 2 * math.sqrt(31))
    noisy = X + 0.5 * on_sphere(2000, 32, 1.0, 1)
    once = HopfieldNetwork(X, 1.0).update(noisy)
    assert float(((once - X).norm(dim=-1) < 0.1).double().mean()) > 0.99


def test_capacity_reproduces_the_papers_examples_and_grows_exponentially() -> None:
    assert capacity_bound(20, 3.0, 1.0, 0.001).base == pytest.approx(3.1546, abs=1e-4)
    assert capacity_bound(75, 1.0, 1.0, 0.001).base == pytest.approx(1.3718, abs=1e-4)
    assert capacity_bound(20, 3.0, 1.0, 0.001).valid
    assert capacity_bound(75, 1.0, 1.0, 0.001).valid
    assert not capacity_bound(3, 1.0, 0.1, 0.001).valid
    counts = [capacity_bound(d, 2.0, 1.0, 0.001).patterns for d in (50, 100, 200)]
    assert counts[2] / counts[1] > (counts[1] / counts[0]) ** 1.5
    with pytest.raises(ShapeError, match="received"):
        capacity_bound(1, 1.0, 1.0, 0.5)


def test_the_classes_of_attention() -> None:
    assert regime(torch.full((10, 64), 1 / 64)) == "average"
    assert regime(torch.eye(64)) == "pattern"
    for size, name in ((20, "large cluster"), (6, "small cluster"), (2, "pattern")):
        rows = torch.zeros(10, 64)
        rows[:, :size] = 1 / size
        assert regime(rows) == name
    assert largest_entries(torch.tensor([0.5, 0.35, 0.1, 0.05])).item() == 3


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf])
def test_impossible_networks_are_refused(beta: float) -> None:
    with pytest.raises(ShapeError, match="received"):
        HopfieldNetwork(torch.randn(3, 2), beta)
    with pytest.raises(ShapeError, match="received"):
        HopfieldNetwork(torch.randn(0, 2))
    with pytest.raises(ShapeError, match="received"):
        HopfieldNetwork(torch.randn(3, 2)).retrieve(torch.randn(2), steps=-2)
    for other in (torch.randn(()), torch.randn(4), torch.randn(3, 4)):  # of as many numbers as two states, among them
        with pytest.raises(ShapeError, match="received"):
            HopfieldNetwork(torch.randn(3, 2)).retrieve(other)
