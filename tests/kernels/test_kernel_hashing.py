"""Hash functions: signs and their gradients, what is called alike, and a greedy fit that never makes the residual larger."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instar.kernels import kernel_hashing as kernel

S, H, N, K, M, C = 2, 3, 40, 8, 12, 6


def given(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit tokens that form groups, centred features, which tokens are real, and random hash functions."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(1, H, 4, K, generator=g, dtype=torch.float64)
    noise = torch.randn(S, H, N, K, generator=g, dtype=torch.float64)
    z = kernel.unit(centres[:, :, torch.randint(4, (N,), generator=g)] + 0.4 * noise)
    anchors = z[0, :, torch.randperm(N, generator=g)[:M]]
    real = torch.ones(S, N, dtype=torch.bool)
    real[1, 29:] = False
    squared = kernel.distances(z, anchors)
    kappa = kernel.gaussian(squared, kernel.spread(squared, real))
    seen = real[:, None, :, None]
    features = kappa - (kappa * seen).sum((0, 2), keepdim=True) / real.sum()
    return z, features, real, torch.randn(H, C, M, generator=g, dtype=torch.float64)


def test_distances_and_their_mean_are_those_of_the_definition() -> None:
    z, _, real, _ = given()
    anchors = torch.randn(H, M, K, dtype=torch.float64)
    plain = (z.unsqueeze(-2) - anchors.unsqueeze(-3)).square().sum(-1)
    torch.testing.assert_close(kernel.distances(z, anchors), plain)
    for s in range(S):
        mean = plain[s, :, real[s]].mean((1, 2))
        torch.testing.assert_close(kernel.spread(plain, real)[s].flatten(), mean)


def test_signs_pass_gradients_inside_one_and_nowhere_else() -> None:
    x = torch.tensor([-2.0, -1.0, -0.3, 0.0, 0.7, 1.0, 5.0], requires_grad=True)
    b = kernel.codes(x)
    assert b.tolist() == [-1, -1, -1, 1, 1, 1, 1]  # exactly, 0 included
    (gradient,) = torch.autograd.grad(b.sum(), x)
    assert gradient.tolist() == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("pairs", [1, 5, 100])
def test_each_token_has_as_many_alike_as_unlike(pairs: int) -> None:
    z, _, real, _ = given()
    wanted = kernel.similarity(z, real, pairs)
    for s in range(S):
        count = int(real[s].sum())
        marked = min(pairs, count // 2)
        inside = wanted[s][:, real[s]]
        assert bool(((inside == 1).sum(-1) == marked).all())
        assert bool(((inside == -1).sum(-1) == marked).all())
        assert not wanted[s][:, ~real[s]].any()
        assert not wanted[s][..., ~real[s]].any()
        own = wanted[s].diagonal(0, -2, -1)
        assert bool((own[:, real[s]] == 1).all())  # nothing of length 1 is more alike than itself


def test_each_hash_function_taken_lowers_the_residual() -> None:
    """The rows of a fit with r bits are the first r of one with more, so that residuals can be compared bit by bit."""
    z, features, real, start = given()
    wanted = kernel.similarity(z, real, 10)
    before = kernel.residual(features, start, wanted, real)
    learned = kernel.learn(features, wanted, real, start, iterations=60, step=10.0)
    assert bool((kernel.residual(features, learned, wanted, real) < 0.9 * before).all())
    target = C * (wanted + wanted.mT) / 2  # what the greedy search approaches; the other part of `wanted` no code can reach
    for r in range(C):
        one = kernel.learn(features, wanted, real, torch.cat([learned[:, :r], start[:, r:]], 1), iterations=0, step=1.0)
        old, new = (kernel.codes(features @ row[:, r].unsqueeze(-1)) * real[:, None, :, None] for row in (one, learned))
        earlier = [kernel.codes(features @ learned[:, q].unsqueeze(-1)) * real[:, None, :, None] for q in range(r)]
        left = target - sum(y @ y.mT for y in earlier)
        gain = [((left - y @ y.mT).square().sum((0, 2, 3))) for y in (old, new)]
        assert bool((gain[1] <= gain[0] + 1e-9).all())


def test_no_iterations_leave_hash_functions_as_they_are_and_no_gradient_passes() -> None:
    z, features, real, start = given()
    wanted = kernel.similarity(z, real, 5)
    assert torch.equal(kernel.learn(features, wanted, real, start, iterations=0, step=1.0), start)
    start.requires_grad_()
    assert not kernel.learn(features, wanted, real, start, iterations=2, step=1.0).requires_grad


def test_a_spectral_start_is_the_best_direction_without_signs() -> None:
    """yᵀ R y / yᵀ y of the first row, before signs, is above that of any random one; y has variance 1."""
    z, features, real, start = given()
    features = features * real[:, None, :, None]
    wanted = kernel.similarity(z, real, 10)
    a = kernel.learn(features, wanted, real, start, iterations=0, step=1.0, spectral=True)[:, 0]

    def quotient(rows: Tensor) -> Tensor:
        y = torch.einsum("shnm,hm->shn", features, rows)
        return torch.einsum("shn,shnl,shl->h", y, wanted, y) / y.square().sum((0, 2))

    best = quotient(a)
    for row in torch.randn(20, H, M, dtype=torch.float64, generator=torch.Generator().manual_seed(1)):
        assert bool((quotient(row) < best).all())
    y = torch.einsum("shnm,hm->shn", features, a)
    torch.testing.assert_close(y.square().sum((0, 2)) / real.sum(), torch.ones(H, dtype=torch.float64))


def test_learned_codes_follow_attention_more_than_random_ones() -> None:
    """Correlation of b·b with z·z, on tokens that were not fitted to."""
    z, features, real, start = given()
    real = torch.ones_like(real)
    learned = kernel.learn(features[:1], kernel.similarity(z[:1], real[:1], 10), real[:1], start, iterations=100, step=10.0)
    found = []
    for hashes in (start, learned):
        b = kernel.codes(features[1:] @ hashes.mT)
        found.append(float(torch.corrcoef(torch.stack([(b @ b.mT).flatten(), (z[1:] @ z[1:].mT).flatten()]))[0, 1]))
    assert found[1] > found[0] + 0.05
