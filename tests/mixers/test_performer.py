"""Random features: no bias over draws, error ~ m^(−1/2); both Performers against dense weights; what the stabiliser is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.kernels.random_features import exponents, orthogonal_gaussian, running_maximum, softmax_features
from instar.mixers.bidirectional_performer import BidirectionalPerformer
from instar.mixers.linear_attention import LinearAttention
from instar.mixers.performer import Performer

B, T, D, H = 2, 41, 16, 2
CARDS = {
    name: cards.read(Path(__file__).parents[2] / f"src/instar/mixers/{name}.toml", cards.Card)
    for name in ("performer", "bidirectional_performer")
}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def draws(rows: int, count: int, width: int = 8) -> list[Tensor]:
    return [orthogonal_gaussian(rows, width, torch.Generator().manual_seed(s)).double() for s in range(count)]


def test_directions_are_orthogonal_in_blocks_and_gaussian_in_length() -> None:
    w = orthogonal_gaussian(20, 8, torch.Generator().manual_seed(0)).double()
    for block in w.split(8):
        products = block @ block.mT
        close(products, torch.diag(products.diag()), 1e-5)
    lengths = orthogonal_gaussian(4000, 8, torch.Generator().manual_seed(0)).square().sum(1)
    assert abs(float(lengths.mean()) - 8) < 0.3  # χ² of 8 degrees: mean 8, variance 16
    assert abs(float(lengths.var()) - 16) < 1.6


def test_the_kernel_is_estimated_without_bias() -> None:
    """The mean over many draws is exp(q·k / √K), within four standard errors."""
    torch.manual_seed(0)
    q, k = (0.5 * torch.randn(2, 30, 8, dtype=torch.float64)).unbind()  # the variance grows as exp(|q + k|²)
    exact = (q * k).sum(-1).div(8**0.5).exp()
    found = torch.stack([(exponents(q, w) + exponents(k, w)).exp().mean(-1) for w in draws(64, 400)])
    error, spread = found.mean(0) - exact, found.std(0) / 400**0.5
    assert bool((error.abs() < 4 * spread).all())
    assert bool((spread < 0.2 * exact).all())  # or the bound would mean nothing


def test_the_error_of_attention_falls_with_the_root_of_the_features() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 200, 8, dtype=torch.float64).unbind()
    q, k = 0.5 * q, 0.5 * k
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = {}
    for m in (32, 512):
        found = []
        for w in draws(m, 12):
            a, b = exponents(q, w), exponents(k, w)
            A = softmax_features(a, a.amax(-1, keepdim=True)) @ softmax_features(b, b.amax((-2, -1), keepdim=True)).mT
            found.append((A / A.sum(-1, keepdim=True) @ v - exact).square().mean().sqrt())
        errors[m] = float(torch.stack(found).mean())
    assert 2.5 < errors[32] / errors[512] < 6  # 16 times the features: 4


@pytest.mark.parametrize("kernel", ["softmax", "relu"])
def test_causal_form_is_dense_attention_with_fading_features(kernel: Any) -> None:
    """A_ij = φ(q_i)ᵀφ(k_j) e^{c_j − c_i}, c the largest exponent up to a token; rows sum to one."""
    torch.manual_seed(0)
    layer, x = Performer(D, heads=H, kernel=kernel, chunk=8).double(), 3 * torch.randn(B, T, D, dtype=torch.float64)
    q, k, v = layer.project(x)
    if kernel == "relu":
        A = layer.query_features(q) @ layer.query_features(k).mT
    else:
        b = exponents(k, layer.w)
        c = b.amax(-1).cummax(-1).values
        A = layer.query_features(q) @ softmax_features(b, c.unsqueeze(-1)).mT * (c.unsqueeze(-2) - c.unsqueeze(-1)).exp()
    A = A.tril()
    want = layer.leave(A / A.sum(-1, keepdim=True) @ v)
    close(layer(x)[0], want)
    close(layer.reference(x)[0], want)


def test_both_sides_estimate_attention_and_large_scores_do_not_overflow() -> None:
    torch.manual_seed(0)
    layer, x = BidirectionalPerformer(D, heads=H, features=4096).double(), torch.randn(B, T, D, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = layer.project(0.5 * x)
        exact = layer.leave(F.scaled_dot_product_attention(q, k, v))
        error = layer(0.5 * x)[0] - exact
    assert float(error.square().mean()) < 0.03**2 * float(exact.square().mean())
    for single in (BidirectionalPerformer(D, heads=H), Performer(D, heads=H)):
        assert bool(single(1e4 * x.float())[0].isfinite().all())


def test_equal_values_come_out_as_they_are() -> None:
    """An average of equal values is that value, whatever the weights; tokens at padding do not count."""
    torch.manual_seed(0)
    x, mask = torch.randn(B, T, D, dtype=torch.float64), torch.rand(B, T) > 0.3
    for layer in (Performer(D, heads=H, bias=True).double(), BidirectionalPerformer(D, heads=H, bias=True).double()):
        torch.nn.init.zeros_(layer.v_proj.weight)
        y = layer(x, mask=mask)[0][mask]
        close(y, layer.o_proj(layer.v_proj.bias).expand_as(y))


def test_other_directions_are_another_estimate_and_are_saved() -> None:
    torch.manual_seed(0)
    layer, other, x = Performer(D, heads=H), Performer(D, heads=H), torch.randn(B, T, D)
    layer.redraw(7)
    assert not torch.equal(layer.w, other.w)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x)[0], other(x)[0])


def test_running_maximum_starts_anew_at_a_reset() -> None:
    torch.manual_seed(0)
    a, before, reset = torch.randn(B, 37, H), torch.randn(B, H), torch.rand(B, 37) < 0.2
    best, found = before, []
    for t in range(37):
        best = torch.maximum(best.masked_fill(reset[:, t, None], -torch.inf), a[:, t])
        found.append(best)
    assert torch.equal(running_maximum(a, before, reset), torch.stack(found, dim=1))
    assert torch.equal(running_maximum(a, before, None), running_maximum(a, before, torch.zeros_like(reset)))


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("features", [0, 64])
def test_costs_follow_the_card(name: str, features: int) -> None:
    cost, layer = CARDS[name].cost, {"performer": Performer}.get(name, BidirectionalPerformer)(128, features=features)
    assert cost is not None
    with FlopCounterMode(display=False) as counter:
        _, state = layer(torch.randn(1, 256, 128))
    sizes = {"T": 256, "D": 128, "H": 4, "chunk": 64, "features": features}
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(cost.flops, sizes), rel=0.03)
    assert states.nbytes(state) == formula.evaluate(cost.state, sizes)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"features": -1}, {"kernel": "exp"}, {"chunk": 48}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Performer(D, **{"heads": H, **wrong})


def test_one_plus_elu_is_linear_attention() -> None:
    """Along the axes; random directions turn what W_q and W_k learn anyway, so that only the feature map differs."""
    torch.manual_seed(0)
    layer, plain = Performer(D, heads=H, kernel="elu", features=D // H).double(), LinearAttention(D, heads=H).double()
    layer.w.copy_((D // H) ** 0.25 * torch.eye(D // H))
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "w"})
    x = torch.randn(B, T, D, dtype=torch.float64)
    close(layer(x)[0], plain(x)[0], 1e-5)  # linear attention adds an epsilon to its normaliser
    other = BidirectionalPerformer(D, heads=H, kernel="elu").double()
    close(other(x)[0], other.reference(x)[0])


@pytest.mark.parametrize("kind", [Performer, BidirectionalPerformer])
def test_each_layer_and_run_draws_its_own_directions(kind: type[Performer]) -> None:
    torch.manual_seed(0)
    one, other = kind(D, heads=H), kind(D, heads=H)
    torch.manual_seed(0)
    again = kind(D, heads=H)
    assert not torch.equal(one.w, other.w)
    assert torch.equal(one.w, again.w)
    assert torch.equal(kind(D, heads=H, seed=3).w, kind(D, heads=H, seed=3).w)


@pytest.mark.parametrize("kind", [Performer, BidirectionalPerformer])
def test_padding_behind_very_long_keys_leaves_gradients_finite(kind: type[Performer]) -> None:
    torch.manual_seed(0)
    layer = kind(64, heads=4)
    with torch.no_grad():
        layer.k_proj.weight.copy_(torch.eye(64))
    x = (10 * torch.randn(1, 12, 64)).requires_grad_()
    mask = torch.arange(12)[None] < 10
    y, _ = layer(x, mask=mask)
    y[mask].square().sum().backward()
    assert bool(x.grad.isfinite().all())  # type: ignore[union-attr]
    assert bool(layer.k_proj.weight.grad.isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize("cls", [Performer, BidirectionalPerformer])
def test_features_that_underflow_together_leave_finite_gradients(cls: Any) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        mixer = cls(16, heads=4, features=2, kernel="elu", seed=seed)
        x = (100 * torch.randn(2, 30, 16)).requires_grad_()
        mixer(x)[0].square().sum().backward()
        assert bool(x.grad.isfinite().all())
