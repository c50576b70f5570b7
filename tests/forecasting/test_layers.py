"""The layers of forecasters: cheap coins and short rows change nothing but time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from instar.forecasting import layers
from instar.forecasting.dropout import Dropout, dropped
from instar.forecasting.layers import Attention


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(200_001,), (7, 11, 2603)])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape, requires_grad=True)
    y = Dropout(p)(x)
    assert y.shape == x.shape
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=1e-4)
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]


def test_coins_are_independent_of_their_neighbours() -> None:
    torch.manual_seed(1)
    coins = (dropped(torch.ones(400_000), 0.3) > 0).double()
    coins = (coins - coins.mean()) / coins.std()
    for lag in range(1, 9):
        assert abs(float((coins[:-lag] * coins[lag:]).mean())) < 4 / 400_000**0.5
    assert all(abs(float(coins[place::4].mean())) < 4 / 100_000**0.5 for place in range(4))  # of each of a word's parts


def test_dropout_is_seeded_and_does_nothing_without_training() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    module = Dropout(0.4)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(module(x))
    assert torch.equal(*found)
    assert found[0].dtype == x.dtype
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
    assert dropped(x[:0], 0.5).shape == (0, 5)
    with pytest.raises(ValueError, match="dropout probability"):
        Dropout(1.5)


@pytest.mark.parametrize("length", [1, 7, 15, 16, 40])
@pytest.mark.parametrize(("masked", "causal"), [(False, False), (True, False), (False, True)])
def test_written_out_attention_is_the_fused_one(length: int, masked: bool, causal: bool) -> None:
    torch.manual_seed(length)
    attention = Attention(12, 3, dropout=0.5, causal=causal).double().eval()
    x = torch.randn(2, length, 12, dtype=torch.float64, requires_grad=True)
    present = torch.rand(2, length) < 0.6 if masked else None
    fused = attention(x, present=present)
    written, weights = attention.weighed(x, present=present)
    torch.testing.assert_close(written, fused)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, length, dtype=torch.float64))
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), x, retain_graph=True) for y in (fused, written)), strict=True):
        torch.testing.assert_close(one, other)


def test_training_drops_weights_and_their_mean_is_the_attention_without() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, dropout=0.3)
    x = torch.randn(1, 6, 8)
    with torch.no_grad():
        wanted = attention.eval()(x)
        drawn = attention.train()(x.expand(40_000, -1, -1))
    assert float(drawn.std(0).min()) > 0
    error = (drawn.mean(0) - wanted[0]) / (drawn.std(0) / 200)
    assert float(error.abs().max()) < 5


def test_short_rows_take_the_other_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(2, 3, 5, 11).masked_fill(torch.rand(11) < 0.3, -torch.inf)
    found = layers._softmax(scores)
    torch.testing.assert_close(found, F.softmax(scores, -1))
    assert found.is_contiguous()
    monkeypatch.setattr(layers, "_FEW", 0)
    assert torch.equal(layers._softmax(scores), F.softmax(scores, -1))
