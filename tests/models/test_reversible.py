"""Reversible residuals: the inverse, gradients equal to those of the plain sums, and memory that does not grow with the depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.mixers.reformer import Reformer
from instar.models.decoder import SwiGLU
from instar.models.reversible import Reversible

B, T, D = 2, 24, 16


class Normed(nn.Module):
    """A layer after a norm, as in Reformer; of a mixer the state comes along."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(D), layer

    def forward(self, x: Tensor) -> object:
        return self.layer(self.norm(x))


def make(depth: int = 3, dropout: float = 0.0) -> Reversible:
    torch.manual_seed(0)
    pairs = [
        (
            Normed(Reformer(D, heads=2, chunk=8, seed=layer)),
            nn.Sequential(Normed(SwiGLU(D, 32)), nn.Dropout(dropout)),
        )
        for layer in range(depth)
    ]
    return Reversible(pairs).double()


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x1, x2 = torch.randn(2, B, T, D, dtype=torch.float64).unbind()
    return x1.requires_grad_(), x2.requires_grad_()


def trace(model: Reversible, way: str) -> tuple[Tensor, ...]:
    x = inputs()
    torch.manual_seed(2)
    y = getattr(model, way)(*x)
    loss = y[0].sin().sum() + (y[1] * y[0].cos()).sum()
    return (*y, *torch.autograd.grad(loss, [*x, *model.parameters()]), torch.rand(3))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_values_gradients_and_random_numbers_are_those_of_the_plain_sums(dropout: float) -> None:
    model = make(dropout=dropout)
    for got, want in zip(trace(model, "forward"), trace(model, "plain"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_autocast_is_that_of_the_forward_pass() -> None:
    model = make().float()
    found = []
    for way in ("forward", "plain"):
        x = [part.detach().float() for part in inputs()]
        with torch.autocast("cpu", torch.bfloat16):
            y = getattr(model, way)(*x)
        found.append(torch.autograd.grad((y[0] * y[1]).sum(), list(model.parameters())))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-3 * float(want.abs().max()))


def test_the_inverse_gives_the_inputs_back() -> None:
    model, x = make(depth=6), inputs()
    with torch.no_grad():
        for got, want in zip(model.inverse(*model(*x)), x, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
        single = make(depth=6).float()
        for got, want in zip(single.inverse(*single(*(part.float() for part in x))), x, strict=True):
            torch.testing.assert_close(got, want.float(), rtol=0, atol=1e-5)


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_depth() -> None:
    kept: dict[tuple[str, int], int] = {}
    for way in ("forward", "plain"):
        for depth in (2, 6):
            sizes: list[int] = []

            def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
                sizes.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                getattr(make(depth), way)(*inputs())
            kept[way, depth] = sum(sizes)
    assert kept["forward", 6] == kept["forward", 2] == 2 * B * T * D
    assert kept["plain", 6] > 2.5 * kept["plain", 2]


def test_frozen_and_shared_parameters() -> None:
    """A module that stands in two blocks gets the sum of both; a frozen one stays without a gradient."""
    torch.manual_seed(0)
    shared, frozen = nn.Linear(D, D).double(), nn.Linear(D, D).double().requires_grad_(False)
    model = Reversible([(shared, frozen), (nn.Linear(D, D).double(), shared)])
    found = []
    for way in ("forward", "plain"):
        model.zero_grad(set_to_none=True)
        y = getattr(model, way)(*inputs())
        (y[0] * y[1]).sum().backward()
        assert frozen.weight.grad is None
        found.append(shared.weight.grad)
    torch.testing.assert_close(found[0], found[1])


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ShapeError, match="none"):
        Reversible([])
