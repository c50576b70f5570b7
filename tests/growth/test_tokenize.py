"""Trained linear layers as pairs of keys and values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from instar.errors import ShapeError, TransformError
from instar.growth import tokenize_linear


def linear(d_in: int, d_out: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(d_in, d_out, bias=bias)


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("d_out", [7, 12, 30])
@pytest.mark.parametrize("mode", ["linear", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_converted_layer_computes_the_same_and_can_grow(d_out: int, mode: str, bias: bool) -> None:
    layer = linear(12, d_out, bias)
    found = tokenize_linear(layer, mode=mode)
    assert found.n == min(12, d_out) * (2 if mode == "gelu" else 1)
    y = found(X)
    assert torch.allclose(y, layer(X), atol=1e-6)
    found.grow(5)
    assert torch.equal(found(X), y)


def test_the_weight_itself_with_as_many_pairs_as_outputs() -> None:
    """What comes out is the same to the bit wherever products of other sizes round alike, which not all processors do."""
    layer = linear(12, 7, bias=False)
    for found in (tokenize_linear(layer), tokenize_linear(layer, 20)):
        assert torch.equal(found.value.T @ found.key, layer.weight)
        torch.testing.assert_close(found(X), layer(X), rtol=1e-6, atol=1e-6)


def test_a_weight_of_low_rank_needs_as_many_pairs_as_its_rank() -> None:
    layer = linear(12, 9)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(9, 3) @ torch.randn(3, 12))
    assert torch.allclose(tokenize_linear(layer, 3)(X), layer(X), atol=1e-5)
    assert torch.allclose(tokenize_linear(layer, 6, mode="gelu")(X), layer(X), atol=1e-5)
    with pytest.raises(TransformError, match="more than 2 pairs"):
        tokenize_linear(layer, 2)


def test_the_best_approximation_where_that_is_asked_for() -> None:
    layer = linear(12, 9, bias=False)
    size = torch.linalg.svdvals(layer.weight.detach())
    for n in (1, 4, 8):
        found = tokenize_linear(layer, n, lossy=True)
        lost = (found.value.T @ found.key - layer.weight).norm()
        assert float(lost) == pytest.approx(float(size[n:].norm()), rel=1e-4)


def test_modes_with_a_norm_are_refused() -> None:
    with pytest.raises(ShapeError, match="linear twin"):
        tokenize_linear(linear(12, 7), mode="l2_norm_gelu")
    with pytest.raises(TransformError, match="both signs"):
        tokenize_linear(linear(12, 7), 15, mode="gelu")
    with pytest.raises(ShapeError, match="at least one"):
        tokenize_linear(linear(12, 7), 0)
