"""Orthonormal matrices that are learnt: orthonormal wherever their parameters are, and what they say they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instar.compat.orthogonal import Orthogonal, cayley, exponential, reflections
from instar.errors import ShapeError

KINDS = ("exp", "cayley", "householder")


def _off(matrix: Tensor) -> float:
    wide = matrix.detach().double()
    return float((wide.T @ wide - torch.eye(len(wide), dtype=torch.float64)).abs().max())


def _skew(n: int, scale: float, seed: int = 0) -> Tensor:
    raw = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return raw - raw.T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 33])
@pytest.mark.parametrize("away", [0.0, 0.01, 1.0, 30.0])
def test_orthonormal_wherever_the_parameters_are(kind: str, n: int, away: float) -> None:
    torch.manual_seed(0)
    module = Orthogonal(n, kind)  # type: ignore[arg-type]
    with torch.no_grad():
        module.raw += away * torch.randn(n, n) / n**0.5
    assert _off(module()) <= (1e-5 if away <= 1 else 1e-4)
    assert _off(module.folded().float()) <= 1e-6
    assert torch.allclose(module().double(), module.folded(), atol=1e-5 if away <= 1 else 1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 0.1, 1.0, 5.0])
def test_the_exponential_is_torchs(scale: float) -> None:
    skew = _skew(20, scale)
    assert torch.allclose(exponential(skew), torch.matrix_exp(skew), atol=1e-11)
    assert torch.allclose(exponential(skew.float()), torch.matrix_exp(skew).float(), atol=2e-5)


@pytest.mark.parametrize("scale", [0.01, 0.5, 2.0])
def test_the_gradient_of_the_exponential_is_torchs(scale: float) -> None:
    weights = torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for function in (exponential, torch.matrix_exp):
        raw = torch.randn(9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
        (function(scale * (raw - raw.T)) * weights).sum().backward()
        assert raw.grad is not None
        gradients.append(raw.grad)
    assert torch.allclose(*gradients, atol=1e-10)


def test_a_plane_turns_by_the_angle() -> None:
    angle = torch.tensor(0.7, dtype=torch.float64)
    skew = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64) * angle
    turned = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    assert torch.allclose(exponential(skew), turned, atol=1e-14)
    # Cayley of tan(angle / 2) turns by the angle too, the other way round.
    half = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64) * (angle / 2).tan()
    assert torch.allclose(cayley(half), turned.T, atol=1e-14)


def test_reflections_one_by_one() -> None:
    columns = torch.randn(7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64).tril()
    product = torch.eye(7, dtype=torch.float64)
    for v in columns.T:
        product = product @ (torch.eye(7, dtype=torch.float64) - 2 * torch.outer(v, v) / v.dot(v))
    assert torch.allclose(reflections(columns), product, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    torch.manual_seed(0)
    module = Orthogonal(4, kind).double()  # type: ignore[arg-type]
    start = (module.raw + 0.3 * torch.randn(4, 4, dtype=torch.float64)).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda raw: module._matrix(raw, module.base), (start,))


def test_another_parameterisation_is_refused() -> None:
    with pytest.raises(ShapeError, match="cayley"):
        Orthogonal(3, "givens")  # type: ignore[arg-type]
