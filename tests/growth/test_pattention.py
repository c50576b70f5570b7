"""Pattention: closed forms, invariances, and what grows, shrinks and learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.growth.norm_gelu import norm_gelu
from instar.growth.pattention import COUNTING, MODES, Pattention

NORMED = ("l2_norm_gelu", "l2_norm")


def made(mode: str = "l2_norm_gelu", n: int | list[int] = 10, **given: object) -> Pattention:
    torch.manual_seed(0)
    layer = Pattention(6, 5, n, mode=mode, **given).double()  # type: ignore[arg-type]
    for parameter in layer.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return layer


def inputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 7)), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("counts", [[10], [4, 1, 5]])
def test_the_fast_form_is_the_reference(mode: str, masked: bool, counts: list[int]) -> None:
    layer = made(mode, counts, scale=1.5, bias=True)
    x = inputs().requires_grad_()
    mask = torch.rand(4, 7, 10, generator=torch.Generator().manual_seed(2)) < 0.7 if masked else None
    direction = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = [x, *layer.parameters()]
    found, expected = layer(x, mask), layer.reference(x, mask)
    assert close(found, expected)
    for a, b in zip(
        torch.autograd.grad((found * direction).sum(), wanted),
        torch.autograd.grad((expected * direction).sum(), wanted),
        strict=True,
    ):
        assert close(a, b, 1e-10)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.3])
def test_the_backward_pass_is_the_derivative_and_has_one_itself(eps: float) -> None:
    parts = [inputs(3, 2).flatten(1)[:, :n].clone().requires_grad_() for n in (5, 1, 4)]
    tau = torch.tensor(2.0, dtype=torch.float64)

    def run(*scores: Tensor) -> tuple[Tensor, ...]:
        return tuple(norm_gelu(list(scores), tau, eps))

    assert torch.autograd.gradcheck(run, parts)
    assert torch.autograd.gradgradcheck(run, parts)


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_pairs_and_how_they_came_do_not_matter(mode: str) -> None:
    layer, other = made(mode), made(mode, [3, 7])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for whole, parts in ((layer.key, other.keys), (layer.value, other.values)):
            parts[0].copy_(whole[order][:3])
            parts[1].copy_(whole[order][3:])
    assert close(other(inputs()), layer(inputs()))


@pytest.mark.parametrize("mode", NORMED)
def test_the_size_of_all_keys_does_not_matter_and_their_gradient_is_orthogonal(mode: str) -> None:
    layer = made(mode, eps=0.0)
    x = inputs()
    y = layer(x)
    y.square().sum().backward()
    key = layer.keys[0]
    with torch.no_grad():
        assert abs(float((key * key.grad).sum())) < 1e-12 * float(key.norm() * key.grad.norm())
        key.mul_(3.7)
    assert close(layer(x), y)


def test_one_pair_knows_only_a_sign() -> None:
    layer = made(n=1, eps=0.0, tau=1.5)
    x = inputs()
    sign = torch.sign(x @ layer.key.T)
    assert close(layer(x), F.gelu(1.5 * sign) @ layer.value)


def test_linear_is_a_linear_map() -> None:
    layer = made("linear")
    assert close(layer(inputs()), inputs() @ (layer.key.T @ layer.value))


def test_softmax_is_attention_times_n() -> None:
    layer = made("softmax")
    x = inputs()
    heads = [part.unsqueeze(1) for part in (x, layer.key.expand(4, -1, -1), layer.value.expand(4, -1, -1))]
    assert close(layer(x), layer.n * F.scaled_dot_product_attention(*heads, scale=1.0).squeeze(1))


def test_tau_is_the_square_root_of_n_until_it_is_told_otherwise() -> None:
    layer, two = made(n=9), made(n=9, tau=2.0)
    assert float(layer.tau2) == 9
    assert float(two.tau2) == 4
    assert "tau2" in layer.state_dict()


@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_zeros_and_an_empty_batch_are_finite(mode: str) -> None:
    layer = made(mode)
    x = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert bool(y.isfinite().all())
    assert bool(x.grad.isfinite().all())  # type: ignore[union-attr]
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())
    assert layer(x[:0]).shape == (0, 5)


@pytest.mark.parametrize("mode", MODES)
def test_pairs_that_are_masked_out_are_not_there(mode: str) -> None:
    layer, without = made(mode), made(mode)
    mask = torch.ones(10, dtype=torch.bool)
    mask[[2, 5]] = False
    without.shrink([2, 5])
    assert close(layer(inputs(), mask), without(inputs())) == (mode != "gelu_layer_norm")  # whose mean counts zeros
    assert bool(layer(inputs(), torch.zeros(10, dtype=torch.bool)).isfinite().all())


def test_norms_of_half_precision_do_not_overflow() -> None:
    layer = Pattention(64, 8, 128).half()
    with torch.no_grad():
        layer.keys[0].fill_(4.0)
    y = layer(torch.full((2, 64), 16.0, dtype=torch.float16))  # each score is 4096: the sum of squares is 2·10⁹
    assert bool(y.isfinite().all())
    assert bool(y.any())


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in COUNTING])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_growth_changes_no_bit_whatever_the_numbers(mode: str, dtype: torch.dtype) -> None:
    layer = made(mode, 7).to(dtype)
    x = inputs(13).to(dtype)
    y = layer(x)
    for m in (1, 64, 3, 1000):
        layer.grow(m, generator=torch.Generator().manual_seed(m))
        assert torch.equal(layer(x), y)
    assert layer.n == 1075
    assert layer.counts == [7, 1, 64, 3, 1000]


def test_zero_keys_do_count_where_every_pair_counts() -> None:
    for mode in COUNTING:
        layer = made(mode)
        y = layer(inputs())
        layer.grow(4)
        assert not close(layer(inputs()), y, 1e-3)


def test_first_gradients_after_growth() -> None:
    """With zero keys the gradient reaches them through the values; the values get theirs once the keys have moved."""
    layer = made()
    key, value = layer.grow(4)
    layer(inputs()).square().sum().backward()
    assert float(key.grad.abs().min()) > 0  # type: ignore[union-attr]
    assert float(value.grad.abs().max()) == 0  # type: ignore[union-attr]
    other = made()
    y = other(inputs())
    key, value = other.grow(4, keys="normal", values="zero")
    z = other(inputs())
    z.square().sum().backward()
    assert float(key.grad.abs().max()) > 0  # type: ignore[union-attr]  # through the norm
    assert float(value.grad.abs().min()) > 0  # type: ignore[union-attr]
    assert not close(z, y, 1e-3)


def test_tau_stays_grows_or_moves() -> None:
    for tau, now, then in (("fixed", 10, 10), ("grow", 20, 20), ("anneal", 10, 20)):
        layer = made()
        layer.grow(10, tau=tau)  # type: ignore[arg-type]
        assert float(layer.tau2) == now
        layer.anneal(0.5)
        assert float(layer.tau2) == (now + then) / 2
        layer.anneal(7.0)
        assert float(layer.tau2) == then


def test_shrinking_is_the_layer_without_those_pairs() -> None:
    layer = made(n=[4, 6])
    tau = float(layer.tau2)
    changed = layer.shrink(torch.tensor([1, 4, 9]))
    assert layer.counts == [3, 4]
    assert len(changed) == 4
    assert float(layer.tau2) == tau
    keep = [0, 2, 3, 5, 6, 7, 8]
    other = made(n=10)
    whole = made(n=[4, 6])
    expected = Pattention(6, 5, 7, tau=math.sqrt(tau)).double()
    with torch.no_grad():
        expected.keys[0].copy_(whole.key[keep])
        expected.values[0].copy_(whole.value[keep])
    assert close(layer(inputs()), expected(inputs()))
    other.grow(3)
    other.shrink([10, 11, 12])  # the way back
    assert other.counts == [10]
    for mask in (torch.ones(10) > 0, [True, False]):
        with pytest.raises(ShapeError, match="received a mask"):
            other.shrink(mask)


def test_only_the_newest_pairs_are_trained_once_the_old_are_frozen() -> None:
    layer = made()
    layer.freeze_old()
    assert all(p.requires_grad for p in layer.parameters())
    layer.grow(3)
    layer.freeze_old()
    assert [p.requires_grad for p in layer.keys] == [False, True]
    assert [p.requires_grad for p in layer.values] == [False, True]


def test_it_stands_where_a_linear_layer_stood() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), Pattention(8, 3, 16))
    assert net(torch.randn(2, 5, 6)).shape == (2, 5, 3)
    again = nn.Sequential(nn.Linear(6, 8), nn.GELU(), Pattention(8, 3, 16))
    again.load_state_dict(net.state_dict())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n": 0}, "at least 1"),
        ({"n": []}, "at least 1"),
        ({"n": 4, "mode": "l3_norm"}, "l2_norm_gelu"),
        ({"n": 4, "tau": -1.0}, "tau above 0"),
        ({"n": 4, "eps": -1.0}, "eps"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, object], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        Pattention(6, 5, **given)  # type: ignore[arg-type]


def test_growth_that_makes_no_sense() -> None:
    layer = made()
    with pytest.raises(ShapeError, match="shrink"):
        layer.grow(0)
    with pytest.raises(ShapeError, match="never learn"):
        layer.grow(2, keys="zero", values="zero")
    with pytest.raises(ShapeError, match="anneal"):
        layer.grow(2, tau="free")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="from 0 to 9"):
        layer.shrink([10])
    with pytest.raises(ShapeError, match="leave a pair"):
        layer.shrink(range(10))
    assert layer.counts == [10]
