"""Informer's parts: what is drawn, who attends, and where it is full attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from instar.data.panel import of_array
from instar.errors import ShapeError
from instar.forecasting import windows
from instar.forecasting.informer import Informer
from instar.forecasting.layers import Attention
from instar.forecasting.prob_sparse import Distilling, ProbSparseAttention, asked


def written_out(module: ProbSparseAttention, x: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """The paper's steps, a row and a head at a time."""
    B, T, D = x.shape
    K, u = D // module.heads, drawn.shape[1]
    q, k, v = (part(x).view(B, T, module.heads, K) for part in (module.query, module.key, module.value))
    y = torch.empty(B, T, module.heads, K, dtype=x.dtype)
    for b in range(B):
        for h in range(module.heads):
            scores = q[b, :, h] @ k[b, :, h].mT
            measure = torch.stack([scores[t, drawn[t]].max() - scores[t, drawn[t]].sum() / T for t in range(T)])
            attending = measure.argsort(descending=True)[:u].tolist()
            for t in range(T):
                read = t + 1 if module.causal else T
                if t in attending:
                    y[b, t, h] = (scores[t, :read] / math.sqrt(K)).softmax(0) @ v[b, :read, h]
                else:
                    y[b, t, h] = v[b, :read, h].sum(0) if module.causal else v[b, :, h].mean(0)
    return module.out(y.flatten(2))


@pytest.mark.parametrize("causal", [False, True])
def test_only_the_queries_with_uneven_scores_attend_values_and_gradients(causal: bool) -> None:
    torch.manual_seed(0)
    module = ProbSparseAttention(8, 2, causal=causal, factor=1.5).double().eval()
    x = torch.randn(2, 20, 8, dtype=torch.float64, requires_grad=True)
    drawn = module._drawn(20, asked(20, 1.5), x.device)
    assert drawn.shape == (20, 4)
    fast, slow = module(x), written_out(module, x, drawn)
    torch.testing.assert_close(fast, slow)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), x) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("causal", [False, True])
def test_where_all_queries_attend_it_is_full_attention(causal: bool) -> None:
    torch.manual_seed(0)
    sparse = ProbSparseAttention(8, 2, causal=causal, factor=50.0).double()
    full = Attention(8, 2, causal=causal).double()
    full.load_state_dict(sparse.state_dict())
    x = torch.randn(3, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), full(x))


def test_a_forecast_draws_nothing_and_training_does() -> None:
    module = ProbSparseAttention(8, 2, factor=0.5)
    x = torch.randn(2, 64, 8)
    state = torch.get_rng_state()
    assert torch.equal(module.eval()(x), module(x))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    one, again = module.train()(x), module(x)
    assert not torch.equal(one, again)


def test_counts_of_queries() -> None:
    assert [asked(1, 5.0), asked(16, 5.0), asked(96, 5.0), asked(2, 5.0), asked(96, 0.1)] == [1, 15, 25, 2, 1]
    with pytest.raises(ShapeError, match="positive"):
        ProbSparseAttention(8, 2, factor=0.0)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_distilling_halves_upwards_and_shifts_with_its_input(length: int) -> None:
    torch.manual_seed(0)
    module = Distilling(4).eval()
    x = torch.randn(2, length, 4)
    assert module(x).shape == (2, math.ceil(length / 2), 4)
    steady = module(torch.ones(1, 8, 4))
    torch.testing.assert_close(steady, steady[:, :1].expand_as(steady))


@pytest.mark.parametrize("distil", [True, False])
def test_it_learns_waves(distil: bool) -> None:
    t = np.arange(260)
    waves = np.stack([np.sin(2 * np.pi * t / 8), np.cos(2 * np.pi * t / 12)], axis=1)
    forecaster = Informer(6, context=24, width=16, heads=2, hidden=32, factor=2.0, distil=distil, dropout=0.0, lr=1e-2)
    forecaster.fit(waves[:200], steps=150)
    origins = np.arange(200, 254)
    error = windows.after(waves, origins, 6).numpy() - forecaster.forecast(of_array(waves), origins.tolist())
    assert float((error**2).mean()) < 0.2  # the waves' variance is 0.5
