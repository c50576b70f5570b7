"""Diagonal plus rank one: the bilinear rule against a dense solve, every form against the recurrence, both kernels, NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels import dplr_state_space as kernels
from instar.kernels.diagonal_state_space import diagonal_state_space
from instar.kernels.dplr_state_space import cauchy_kernel, dense, discretise, dplr_state_space, krylov_kernel, powers_of

B, D, N = 2, 3, 4
CONTINUOUS = ("rate", "p", "b", "step")
Inputs = dict[str, Tensor]


def draw(T: int, seed: int = 0) -> Inputs:
    torch.manual_seed(seed)
    names = {"p": (D, N), "b": (D, N), "c": (D, N), "state": (B, D, N)}
    inputs = {name: torch.randn(*shape, dtype=torch.complex128) for name, shape in names.items()}
    inputs["rate"] = torch.complex(-0.1 - torch.rand(D, N, dtype=torch.float64), 3 * torch.randn(D, N, dtype=torch.float64))
    inputs["step"] = 0.01 + 0.3 * torch.rand(D, dtype=torch.float64)
    return {**inputs, "u": torch.randn(B, T, D, dtype=torch.float64)}


def respond(inputs: Inputs, **options: Any) -> tuple[Tensor, Tensor]:
    rest = {name: x for name, x in inputs.items() if name not in CONTINUOUS}
    return dplr_state_space(system=discretise(*(inputs[name] for name in CONTINUOUS)), **rest, **options)


def observe(inputs: Inputs, mask: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """Output at real tokens, final state, and the gradients of a loss that uses both."""
    taken = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, x = respond(taken, mask=mask, **options)
    y = y if mask is None else y[mask]
    loss = y.sin().sum() + (x * torch.linspace(-1, 1, N)).abs().square().sum()
    gradients = torch.autograd.grad(loss, list(taken.values()))
    return {"y": y.detach(), "x": x.detach(), **{f"d{name}": d for name, d in zip(taken, gradients, strict=True)}}


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_woodbury_is_the_dense_solve() -> None:
    """(I - Δ/2 A)^{-1} (I + Δ/2 A) and (I - Δ/2 A)^{-1} Δ B of the real matrix, whose norm shows a stable recurrence."""
    inputs = draw(1)
    A_bar, b_bar = dense(discretise(*(inputs[name] for name in CONTINUOUS)))
    for d in range(D):
        rate, p, b = (inputs[name][d] for name in ("rate", "p", "b"))
        half, one = inputs["step"][d] / 2, torch.eye(2 * N, dtype=torch.complex128)
        P = torch.cat([p, p.conj()])
        A = torch.diag(torch.cat([rate, rate.conj()])) - torch.outer(P, P.conj())
        turn = torch.cat([torch.cat([one[:N, :N], 1j * one[:N, :N]], 1), torch.cat([one[:N, :N], -1j * one[:N, :N]], 1)])
        inverse = torch.linalg.inv(one - half * A)
        want = torch.linalg.inv(turn) @ inverse @ (one + half * A) @ turn
        torch.testing.assert_close(A_bar[d].to(want), want, rtol=0, atol=1e-12)
        want = torch.linalg.inv(turn) @ inverse @ (2 * half * torch.cat([b, b.conj()]))
        torch.testing.assert_close(b_bar[d].to(want), want, rtol=0, atol=1e-12)
        assert float(torch.linalg.matrix_norm(A_bar[d], 2)) < 1


@pytest.mark.parametrize("form", ["cauchy", "krylov", "blocks"])
@pytest.mark.parametrize("T", [1, 2, 3, 7, 64, 150])
def test_forms_equal_the_recurrence(form: str, T: int) -> None:
    inputs = draw(T)
    close(observe(inputs, form=form), observe(inputs, form="recurrent"))


@given(seed=st.integers(0, 10_000), T=st.integers(1, 40), size=st.sampled_from([1, 4, 16]), reals=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_padding_and_restarts_anywhere(seed: int, T: int, size: int, reals: float) -> None:
    inputs = draw(T, seed)
    mask, reset = torch.rand(B, T) <= reals, torch.rand(B, T) < 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", size)
        close(observe(inputs, mask, reset=reset), observe(inputs, mask, reset=reset, form="recurrent"))
        close(observe(inputs, mask), observe(inputs, mask, form="recurrent"))
        close(observe(inputs, mask, form="cauchy"), observe(inputs, mask, form="recurrent"))


def test_without_the_rank_it_is_the_diagonal_system() -> None:
    inputs = draw(90)
    inputs["p"] = torch.zeros_like(inputs["p"])
    half = inputs["step"].unsqueeze(1) / 2
    log_z = ((1 + half * inputs["rate"]) / (1 - half * inputs["rate"])).log()
    b = 2 * half / (1 - half * inputs["rate"]) * inputs["b"]
    want = diagonal_state_space(inputs["u"], log_z, b, inputs["c"], state=inputs["state"])
    for one, other in zip(respond(inputs), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_both_kernels_are_the_response_to_an_impulse() -> None:
    inputs, T = draw(150), 150
    system = discretise(*(inputs[name] for name in CONTINUOUS))
    powers = powers_of(system, inputs["c"], 64)
    inputs["u"] = torch.zeros(B, T, D, dtype=torch.float64)
    inputs["u"][:, 0] = 1.0
    inputs["state"] = torch.zeros_like(inputs["state"])
    want = respond(inputs, form="recurrent")[0][0].mT
    torch.testing.assert_close(krylov_kernel(powers, T), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(cauchy_kernel(system, inputs["c"], powers, T), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_nothing_before_it_and_no_other_sequence(value: float) -> None:
    inputs, T, spoilt = draw(80), 80, 50
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[1, 60] = True
    clean, _ = respond(inputs)
    packed, _ = respond(inputs, reset=reset)
    inputs["u"][:, spoilt, 1] = value
    y, x = respond(inputs, form="recurrent")
    for form in ("cauchy", "krylov", "blocks"):
        got, last = respond(inputs, form=form)
        assert torch.equal(got.isnan(), ~y.isfinite())
        assert torch.equal(last.isnan(), ~x.isfinite())
        torch.testing.assert_close(got[:, :spoilt], clean[:, :spoilt], rtol=1e-9, atol=1e-9)
    got, last = respond(inputs, reset=reset)
    assert got[1, spoilt:60, 1].isnan().all()
    torch.testing.assert_close(got[1, 60:], packed[1, 60:], rtol=1e-9, atol=1e-9)
    assert last[1].isfinite().all()


def test_bad_input_is_refused() -> None:
    inputs, reset = draw(5), torch.ones(B, 5, dtype=torch.bool)
    for form in ("cauchy", "krylov"):
        with pytest.raises(ShapeError, match="reads across resets"):
            respond(inputs, reset=reset, form=form)
    with pytest.raises(ShapeError, match="received 'fast'"):
        respond(inputs, form="fast")
    with pytest.raises(ShapeError, match="of 3 channels"):
        respond({**inputs, "c": inputs["c"][:2]})
    with pytest.raises(ShapeError, match="state"):
        respond({**inputs, "state": inputs["state"][:1]})
