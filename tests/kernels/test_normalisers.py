"""Clipped softmax, softmax-plus-one and sinks: their closed forms, where they are exactly 0, and SDPA with one more column."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instar.kernels.eager_attention import eager_attention, scores
from instar.kernels.normalisers import clipped_softmax, sink_softmax, softmax1
from instar.kernels.sink_attention import sink_attention


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_no_stretch_is_softmax() -> None:
    x = draw(4, 9)
    assert torch.equal(clipped_softmax(x, 0.0, 1.0), x.softmax(-1))


@settings(max_examples=50, deadline=None)
@given(st.floats(-0.3, 0), st.floats(1, 1.2), st.integers(0, 1000))
def test_clipping_is_monotone_bounded_and_exact_at_its_thresholds(gamma: float, zeta: float, seed: int) -> None:
    x = 3 * draw(12, seed=seed).sort().values
    p, w = x.softmax(-1), clipped_softmax(x, gamma, zeta)
    assert (w.diff() >= 0).all()
    assert ((w >= 0) & (w <= 1)).all()
    assert (w[p < -gamma / (zeta - gamma) - 1e-12] == 0).all()
    assert (w[p > (1 - gamma) / (zeta - gamma) + 1e-12] == 1).all()
    if zeta == 1:
        assert w.sum() <= 1 + 1e-12
    inside = (w > 0) & (w < 1)
    close(w[inside], ((zeta - gamma) * p + gamma)[inside])


def test_clipped_entries_have_no_gradient_and_the_others_that_of_their_formula() -> None:
    x = torch.tensor([5.0, 4.0, -3.0, -4.0], dtype=torch.float64, requires_grad=True)
    weights = clipped_softmax(x, -0.05)
    assert weights[2:].tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(weights[2:].sum(), x, retain_graph=True)
    assert gradient.abs().max() == 0
    assert torch.autograd.gradcheck(lambda z: clipped_softmax(z, -0.05), (x,))


def test_masked_keys_get_exactly_nothing() -> None:
    x = draw(3, 6)
    x[:, 4:] = -torch.inf
    for weights in (clipped_softmax(x, -0.02), softmax1(x), sink_softmax(x, torch.tensor(0.7))):
        assert (weights[:, 4:] == 0).all()
        assert weights.isfinite().all()


def test_softmax1_is_a_softmax_with_one_more_score_of_zero() -> None:
    x = draw(5, 7)
    close(softmax1(x), F.pad(x, (0, 1)).softmax(-1)[:, :-1])
    close(sink_softmax(x, x.new_tensor(1.3)), F.pad(x, (0, 1), value=1.3).softmax(-1)[:, :-1])
    close(sink_softmax(x, x.new_tensor(3.0).log()), F.pad(x, (0, 3)).softmax(-1)[:, :-3])  # several zero scores are one sink
    assert torch.autograd.gradcheck(softmax1, (x.requires_grad_(),))


def test_softmax1_is_stable_and_may_give_nothing() -> None:
    x = torch.tensor([[1e4, 0.0], [-1e4, -1e4], [800.0, 800.0]])
    close(softmax1(x), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]), 1e-6)


def test_a_sink_far_below_is_softmax() -> None:
    x = draw(5, 7)
    assert torch.equal(sink_softmax(x, torch.tensor(-1e4)), sink_softmax(x, torch.tensor(-2e4)))
    close(sink_softmax(x, torch.tensor(-1e4)), x.softmax(-1))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", ["causal", "mask", "all"])
def test_sdpa_with_a_sink_equals_the_weights_written_out(kv_heads: int, learned: bool, kind: str) -> None:
    T = C = 9
    q, keys, values = (draw(2, h, T, 8, seed=i).requires_grad_() for i, h in enumerate((4, kv_heads, kv_heads)))
    sink = draw(4, seed=9).requires_grad_() if learned else None
    attend = torch.rand(2, 1, T, C, generator=torch.Generator().manual_seed(1)) > 0.5 if kind == "mask" else None
    level = torch.zeros(4, dtype=torch.float64) if sink is None else sink
    found = sink_attention(q, keys, values, sink, attend=attend, causal=kind == "causal", scale=0.3)
    want = eager_attention(
        q,
        keys,
        values,
        lambda x: sink_softmax(x, level.view(-1, 1, 1)),
        attend=attend,
        causal=kind == "causal",
        scale=0.3,
    )
    close(found, want)
    wanted = [q, keys, values] + ([sink] if sink is not None else [])
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), wanted) for y in (found, want)), strict=True):
        close(a, b, 1e-10)


def test_eager_attention_with_softmax_is_sdpa() -> None:
    q, keys, values = draw(2, 4, 5, 8), draw(2, 2, 5, 8, seed=1), draw(2, 2, 5, 8, seed=2)
    found = eager_attention(q, keys, values, lambda x: x.softmax(-1), causal=True)
    close(found, F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=True))
    assert scores(q.bfloat16(), keys.bfloat16()).dtype == torch.float32
