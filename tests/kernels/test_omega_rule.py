"""A memory that learns: chunks against the token loop, hand gradients, its special cases, what it can store, Newton–Schulz."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instar import state as states
from instar.errors import ShapeError
from instar.kernels.delta_rule import gated_delta_rule
from instar.kernels.gated_linear import gated_linear_attention
from instar.kernels.memory_network import MemoryNetwork, gelu
from instar.kernels.newton_schulz import newton_schulz
from instar.kernels.omega_rule import MemoryState, OmegaRule
from instar.kernels.omega_rule_reference import recurrent
from instar.kernels.polynomial_features import PolynomialFeatures

B, H, K = 2, 2, 4
RULES: dict[str, tuple[OmegaRule, int]] = {
    "linear": (OmegaRule(MemoryNetwork(1), chunk=4), 1),
    "deep, window beyond a chunk": (OmegaRule(MemoryNetwork(2), window=6, chunk=4), 2),
    "gated, norm, bound, momentum": (OmegaRule(MemoryNetwork(3, norm=True, largest=1.0), window=3, chunk=8, momentum=True), 1),
    "Hebbian, norm, lagged": (
        OmegaRule(MemoryNetwork(1, norm=True, hebbian=True), window=2, chunk=4, momentum=True, lagged=True),
        2,
    ),
    "Muon": (OmegaRule(MemoryNetwork(2, norm=True), window=2, chunk=4, momentum=True, newton_schulz=3), 1),
    "lagged Muon": (OmegaRule(MemoryNetwork(2), window=2, chunk=4, momentum=True, newton_schulz=3, lagged=True), 2),
}
Inputs = dict[str, Any]
"""By name; log_theta is None without momentum."""


def draw(rule: OmegaRule, degree: int, T: int, width: int = K) -> tuple[list[Tensor], PolynomialFeatures, Inputs]:
    torch.manual_seed(0)
    kind = torch.float64
    features = PolynomialFeatures(width, degree).double()
    initial = [0.5 * torch.randn(H, *s, dtype=kind) for s in rule.network.shapes(features.size, width, 2)]
    momentum = F.logsigmoid(torch.randn(B, T, H, dtype=kind)) if rule.momentum else None
    inputs: Inputs = {
        "q": F.normalize(torch.randn(B, T, H, width, dtype=kind), dim=-1),
        "k": F.normalize(torch.randn(B, T, H, width, dtype=kind), dim=-1),
        "v": torch.randn(B, T, H, width, dtype=kind),
        "log_alpha": F.logsigmoid(torch.randn(B, T, H, dtype=kind) + 2),
        "log_theta": momentum,
        "eta": 0.2 * torch.rand(B, T, H, dtype=kind),
        "gamma": torch.rand(B, T, H, rule.window, dtype=kind),
    }
    return initial, features, inputs


def close(a: Any, b: Any, tolerance: float = 1e-8) -> None:
    for one, other in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def part(inputs: Inputs, begin: int, end: int) -> Inputs:
    return {n: None if x is None else x[:, begin:end] for n, x in inputs.items()}


@pytest.mark.parametrize("name", RULES)
def test_chunks_equal_the_token_loop_in_values_states_and_gradients(name: str) -> None:
    """From a state inside a chunk, with padding and resets."""
    rule, degree = RULES[name]
    initial, features, inputs = draw(rule, degree, 22)
    mask, reset = torch.rand(B, 16) > 0.3, torch.rand(B, 16) < 0.15
    mask[0] = True
    found = []
    ways: list[Any] = [rule, functools.partial(recurrent, rule)]
    for way in ways:
        weights = [w.clone().requires_grad_() for w in initial]
        taken = {n: None if x is None else x.clone().requires_grad_() for n, x in inputs.items()}
        first, state = way(weights, features, **part(taken, 0, 6))
        o, state = way(weights, features, **part(taken, 6, 22), state=state, mask=mask, reset=reset)
        o = o[mask]
        loss = first.sin().sum() + o.sin().sum() + sum((w.square().sum() for w in state.weights), start=state.pending.sum())
        wanted = [*weights, *(x for x in taken.values() if x is not None), *features.parameters()]
        found.append((o, state, torch.autograd.grad(loss, wanted, materialize_grads=True, allow_unused=True)))
    close(found[0], found[1])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5, 6, 7), (4, 8), (3, 5, 11)])
def test_any_split_gives_the_whole(name: str, cuts: tuple[int, ...]) -> None:
    rule, degree = RULES[name]
    initial, features, inputs = draw(rule, degree, 17)
    whole, last = rule(initial, features, **inputs)
    state: MemoryState | None = None
    outputs = []
    for begin, end in zip([0, *cuts], [*cuts, 17], strict=True):
        o, state = rule(initial, features, **part(inputs, begin, end), state=state)
        outputs.append(o)
    close((torch.cat(outputs, 1), state), (whole, last))


def test_many_chunks_are_read_in_groups() -> None:
    """More tokens than are worked on at once."""
    rule = OmegaRule(MemoryNetwork(1), chunk=8)
    initial, features, inputs = draw(rule, 1, 1100)
    close(rule(initial, features, **inputs), recurrent_linear(rule, initial, inputs))


def recurrent_linear(rule: OmegaRule, initial: list[Tensor], inputs: Inputs) -> tuple[Tensor, MemoryState]:
    """W_t = α W - η (A k - v) kᵀ, written out."""
    q, k, v, log_alpha, _, eta, gamma = inputs.values()
    W = A = initial[0].expand(B, -1, -1, -1)
    outputs = []
    for t in range(q.shape[1]):
        error = torch.einsum("bhvk,bhk->bhv", A, k[:, t]) - v[:, t]
        step = (eta[:, t, :, None] * gamma[:, t]).unsqueeze(-1) * error.unsqueeze(-1) * k[:, t].unsqueeze(-2)
        W = log_alpha[:, t, :, None, None].exp() * W - step
        A = W if (t + 1) % rule.chunk == 0 else A
        outputs.append(torch.einsum("bhvk,bhk->bhv", W, q[:, t]))
    state = rule.start(initial, B, K, K)
    return torch.stack(outputs, 1), state._replace(anchor=[A], weights=[W], seen=torch.full((B,), q.shape[1]))


def test_with_a_matrix_one_token_and_chunks_of_one_it_is_the_gated_delta_rule() -> None:
    """W_t = W_{t-1} (α - η k kᵀ) + η v kᵀ, which is the rule with β = η / α and values α v."""
    rule = OmegaRule(MemoryNetwork(1), chunk=1)
    initial, features, x = draw(rule, 1, 30)
    o, state = rule(initial, features, **{**x, "gamma": None})
    q, k, v, log_alpha, _, eta, _ = x.values()
    alpha = log_alpha.exp()
    start = initial[0].mT.expand(B, -1, -1, -1)
    want, S = gated_delta_rule(q, k, alpha.unsqueeze(-1) * v, eta / alpha, log_alpha, scale=1.0, state=start)
    close((o, state.weights[0].mT), (want, S))


def test_a_hebbian_matrix_is_gated_linear_attention() -> None:
    """For chunks of any length: its gradient does not depend on the weights."""
    rule = OmegaRule(MemoryNetwork(1, hebbian=True), chunk=8)
    initial, features, x = draw(rule, 1, 30)
    o, _ = rule([0 * initial[0]], features, **{**x, "gamma": None})
    q, k, v, log_alpha, _, eta, _ = x.values()
    want, _ = gated_linear_attention(q, k, eta.unsqueeze(-1) * v, log_alpha.unsqueeze(-1), scale=1.0)
    close(o, want)


def test_a_hebbian_matrix_of_all_monomials_is_attention_without_its_denominator() -> None:
    """Σ_{i≤t} v_i exp(q_t · k_i), up to the degree: the error falls as the next term of exp."""
    T, width, errors = 20, 2, []
    rule = OmegaRule(MemoryNetwork(1, hebbian=True), chunk=4)
    for degree in (2, 4, 8):
        initial, features, x = draw(rule, degree, T, width)
        q, k, v = (x[n] for n in "qkv")
        flat = {"log_alpha": torch.zeros(B, T, H).double(), "eta": torch.ones(B, T, H).double(), "gamma": None}
        with torch.no_grad():
            o, _ = rule([0 * initial[0]], features, **{**x, **flat})
        scale = sum(1 / math.factorial(i) for i in range(degree + 1))
        weights = torch.einsum("bthk,bihk->bhti", q, k).exp().tril()
        errors.append(float((scale * o - torch.einsum("bhti,bihv->bthv", weights, v)).abs().max()))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-3


@pytest.mark.parametrize("matrices", [1, 2, 3])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("hebbian", [False, True])
def test_gradients_by_hand_are_those_of_autograd(matrices: int, norm: bool, hebbian: bool) -> None:
    torch.manual_seed(0)
    network = MemoryNetwork(matrices, norm=norm, hebbian=hebbian)
    weights = [torch.randn(3, *s, dtype=torch.float64, requires_grad=True) for s in network.shapes(7, K, 2)]
    z, phi, v = (torch.randn(3, 5, n, dtype=torch.float64) for n in (K, 7, K))
    answer = network.answer(lambda i, x: x @ weights[i].mT if weights[i].dim() == 3 else x * weights[i].unsqueeze(-2), z, phi)
    loss = -(answer * v).sum() if hebbian else 0.5 * (answer - v).square().sum()
    found = network.gradients(weights, z, phi, v)
    laid_out = [left.sum(-2) if right is None else left.mT @ right for left, right in found]
    close(laid_out, list(torch.autograd.grad(loss, weights)))


def test_bounded_gradients_keep_their_direction_and_stay_below_the_bound() -> None:
    torch.manual_seed(0)
    W, z, v = torch.randn(1, K, K).double(), torch.randn(1, 50, K).double(), 10 * torch.randn(1, 50, K).double()
    (free, right), (held, _) = (MemoryNetwork(1, largest=n).gradients([W], z, z, v)[0] for n in (0.0, 2.0))
    assert right is not None
    norm = held.norm(dim=-1) * right.norm(dim=-1)
    assert float(norm.max()) < 2.0
    assert float(F.cosine_similarity(free, held, dim=-1).min()) > 1 - 1e-12


def test_slope_of_gelu_and_its_gradient() -> None:
    z = torch.linspace(-5, 5, 41, dtype=torch.float64, requires_grad=True)
    value, slope = gelu(z)
    close(value, F.gelu(z))
    close(slope, torch.autograd.grad(F.gelu(z).sum(), z)[0])
    assert torch.autograd.gradcheck(gelu, (z,))


def test_many_small_steps_on_all_tokens_solve_least_squares_and_too_long_ones_diverge() -> None:
    """The limit is V K⁺; the border is 2 over the largest eigenvalue of the window's Gram matrix."""
    torch.manual_seed(0)
    n, repeats = 3, 120
    keys, values = F.normalize(torch.randn(n, K, dtype=torch.float64), dim=-1), torch.randn(n, K, dtype=torch.float64)
    border = 2 / float(torch.linalg.eigvalsh(keys @ keys.T)[-1])
    k, v = (x.repeat(repeats, 1).view(1, -1, 1, K) for x in (keys, values))
    flat = torch.ones(1, n * repeats, 1, dtype=torch.float64)
    rule = OmegaRule(MemoryNetwork(1), window=n, chunk=1)

    def learnt(eta: float) -> Tensor:
        gamma = torch.ones(1, n * repeats, 1, n, dtype=torch.float64)
        start = [torch.zeros(1, K, K, dtype=torch.float64)]
        return rule(start, lambda x: x, k, k, v, 0 * flat, None, eta * flat, gamma)[1].weights[0][0, 0]

    close(learnt(0.9 * border), values.T @ torch.linalg.pinv(keys.T), 1e-6)
    assert float(learnt(1.1 * border).abs().max()) > 1e6


@pytest.mark.parametrize("name", ["deep, window beyond a chunk", "Muon"])
def test_a_token_of_weight_zero_is_not_learnt(name: str) -> None:
    rule, degree = RULES[name]
    initial, features, x = draw(rule, degree, 20)
    gamma = x["gamma"]
    for j in range(rule.window):
        gamma[:, 7 + j, :, j] = 0.0
    before = rule(initial, features, **x)
    for n in "kv":
        x[n] = x[n].index_fill(1, torch.tensor([7]), 3.0)
    close(rule(initial, features, **x)[0], before[0])


def recalled(pairs: int, degree: int, window: int) -> float:
    """Random pairs in R¹⁶, read once; how many keys the nearest stored value answers rightly. Mean of 5 draws."""
    found, width = [], 16
    features = PolynomialFeatures(width, degree).double()
    rule = OmegaRule(MemoryNetwork(1), window=window, chunk=1)
    for seed in range(5):
        torch.manual_seed(seed)
        k, v = (F.normalize(torch.randn(pairs, width, dtype=torch.float64), dim=-1) for _ in range(2))
        phi = features(k).detach()
        steps = [1 / float(torch.linalg.matrix_norm(phi[max(0, t + 1 - window) : t + 1], 2)) ** 2 for t in range(pairs)]
        eta = torch.tensor(steps, dtype=torch.float64).view(1, -1, 1)
        gamma = torch.ones(1, pairs, 1, window, dtype=torch.float64)
        k, v = (x.view(1, pairs, 1, width) for x in (k, v))
        start = [torch.zeros(1, width, features.size, dtype=torch.float64)]
        W = rule(start, features, k, k, v, 0 * eta, None, eta, gamma)[1].weights[0][0, 0]
        answers = phi @ W.detach().T
        found.append(float((torch.cdist(answers, v[0, :, 0]).argmin(1) == torch.arange(pairs)).double().mean()))
    return sum(found) / len(found)


def test_window_and_products_together_store_what_neither_stores_alone() -> None:
    """32 pairs under 16 key channels, the experiment of the paper's ablation in small."""
    online, window, products, both = (recalled(32, degree, c) for degree, c in ((1, 1), (1, 8), (2, 1), (2, 8)))
    assert both > max(window, products) + 0.15
    assert window > online
    assert recalled(32, 2, 32) > both - 0.02


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_features_have_the_kernel_that_they_stand_for(degree: int) -> None:
    torch.manual_seed(0)
    x, y = (F.normalize(torch.randn(9, 5, dtype=torch.float64), dim=-1) for _ in range(2))
    features = PolynomialFeatures(5, degree).double()
    s = (x * y).sum(-1)
    terms = [s**i / math.factorial(i) for i in range(degree + 1)]
    want = s if degree == 1 else sum(terms) / sum(1 / math.factorial(i) for i in range(degree + 1))
    close((features(x) * features(y)).sum(-1), want)
    assert features(x).shape[-1] == features.size == (5 if degree == 1 else math.comb(5 + degree, degree))


@pytest.mark.parametrize("kind", ["elementwise", "sketch"])
def test_short_features_have_length_one(kind: Any) -> None:
    features = PolynomialFeatures(6, 2, kind).double()
    phi = features(F.normalize(torch.randn(9, 6, dtype=torch.float64), dim=-1))
    assert features.size == phi.shape[-1] == 6
    torch.testing.assert_close(phi.norm(dim=-1), torch.ones(9).double(), rtol=0, atol=1e-3)


def test_newton_schulz_orthogonalises() -> None:
    """No scale of its own; transposes and rotations pass through; rank stays; large singular values come near 1."""
    torch.manual_seed(0)
    S = torch.randn(3, 6, 10, dtype=torch.float64)
    U, V = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in (6, 10))
    found = newton_schulz(S)
    close(newton_schulz(1e3 * S), found, 1e-9)
    close(newton_schulz(S.mT), found.mT, 1e-9)
    close(newton_schulz(U @ S @ V.T), U @ found @ V.T, 1e-9)
    singular = torch.linalg.svdvals(found)
    assert 0.65 < float(singular.min()) < float(singular.max()) < 1.25
    assert (torch.linalg.svdvals(newton_schulz(S[:, :, :1] @ S[:, :1]))[:, 1:] < 1e-9).all()
    zero = torch.zeros(2, 3, requires_grad=True)
    newton_schulz(zero).sum().backward()
    assert not newton_schulz(zero).any()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [{"window": 0}, {"chunk": 0}, {"newton_schulz": -1, "momentum": True}, {"newton_schulz": 5}],
    ids=str,
)
def test_impossible_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        OmegaRule(MemoryNetwork(), **wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"k": torch.zeros(B, 5, H, K + 1)},
        {"v": torch.zeros(B, 5, H, K + 1)},
        {"log_theta": torch.zeros(B, 5, H)},
        {"gamma": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_wrong_inputs_are_refused(change: dict[str, Any]) -> None:
    rule = OmegaRule(MemoryNetwork(2), window=3, chunk=4)
    initial, features, x = draw(rule, 1, 5)
    with pytest.raises(ShapeError, match="received"):
        rule(initial, features, **{**x, **change})
