"""The closed form of a change against what defines it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instar.editing.rome import rank_one
from instar.editing.spread import direct, share, solve
from instar.errors import EditError, ShapeError

WIDE, OUT = 24, 10


def drawn(items: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """C, K and R."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(200, WIDE, generator=draw, dtype=torch.float64) * torch.linspace(0.1, 2, WIDE)
    return x.T @ x / 200, *(torch.randn(n, items, generator=draw, dtype=torch.float64) for n in (WIDE, OUT))


@pytest.mark.parametrize("items", [1, 5, 24, 60])
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 500.0])
def test_minimises_the_penalised_error(items: int, penalty: float) -> None:
    C, K, R = drawn(items)
    change = solve(C, K, R, penalty).requires_grad_()
    loss = penalty * torch.trace(change @ C @ change.T) + (change @ K - R).square().sum()
    (gradient,) = torch.autograd.grad(loss, [change])
    assert float(gradient.abs().max()) < 1e-9 * max(1.0, float((R @ K.T).abs().max()))


@pytest.mark.parametrize("items", [1, 5, 23])
def test_woodbury_is_the_direct_solution(items: int) -> None:
    C, K, R = drawn(items)
    torch.testing.assert_close(solve(C, K, R, 3.0), direct(C, K, R, 3.0), rtol=1e-9, atol=1e-12)


def test_limits_of_the_penalty() -> None:
    C, K, R = drawn(6)
    torch.testing.assert_close(solve(C, K, R, 1e-10) @ K, R, rtol=1e-6, atol=1e-6)
    assert float(solve(C, K, R, 1e12).abs().max()) < 1e-9


def test_of_one_key_it_becomes_the_rank_one_change() -> None:
    C, K, R = drawn(1)
    W, b = torch.randn(OUT, WIDE, dtype=torch.float64), torch.randn(OUT, dtype=torch.float64)
    value = W @ K[:, 0] + b + R[:, 0]
    found = rank_one(W, b, C, K[:, 0], value)
    torch.testing.assert_close(found, solve(C, K, R, 1e-11), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close((W + found) @ K[:, 0] + b, value)
    assert int(torch.linalg.matrix_rank(found)) == 1


def test_float32_is_solved_in_float64() -> None:
    C, K, R = drawn(5)
    assert solve(C.float(), K.float(), R.float(), 1.0).dtype == torch.float64


@pytest.mark.parametrize("spread", ["sqrt", "linear", "last"])
def test_the_last_layer_writes_what_is_left(spread: str) -> None:
    assert share(spread, 0, 1) == 1  # type: ignore[arg-type]
    assert share(spread, 4, 5) == 1  # type: ignore[arg-type]
    assert share(spread, 0, 4) == {"sqrt": 0.5, "linear": 0.25, "last": 0.0}[spread]  # type: ignore[arg-type]


def test_refusals() -> None:
    C, K, R = drawn(3)
    with pytest.raises(EditError, match="singular"):
        solve(torch.zeros_like(C), K, R, 1.0)
    with pytest.raises(ShapeError, match="above 0"):
        solve(C, K, R, 0.0)
    with pytest.raises(ShapeError, match="sqrt, linear or last"):
        share("cubic", 0, 2)  # type: ignore[arg-type]
