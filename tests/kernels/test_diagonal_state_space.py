"""The diagonal state space: every form against the recurrence, its kernel as an impulse response, restarts, long sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels import diagonal_state_space as kernels
from instar.kernels.diagonal_state_space import diagonal_state_space, kernel

B, D, N = 2, 3, 4
Inputs = dict[str, Tensor]


def draw(T: int, seed: int = 0, fade: float = 0.1) -> Inputs:
    torch.manual_seed(seed)

    def complex_(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.complex128)

    log_z = torch.complex(-fade * torch.rand(D, N, dtype=torch.float64), 3 * torch.randn(D, N, dtype=torch.float64))
    u = torch.randn(B, T, D, dtype=torch.float64)
    return {"u": u, "log_z": log_z, "b": complex_(D, N), "c": complex_(D, N), "state": complex_(B, D, N)}


def observe(inputs: Inputs, mask: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """Output at real tokens, final state, and the gradients of a loss that uses both."""
    taken = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, x = diagonal_state_space(**taken, mask=mask, **options)
    y = y if mask is None else y[mask]
    loss = y.sin().sum() + (x * torch.linspace(-1, 1, N)).abs().square().sum()
    gradients = torch.autograd.grad(loss, list(taken.values()))
    return {"y": y.detach(), "x": x.detach(), **{f"d{name}": d for name, d in zip(taken, gradients, strict=True)}}


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("form", ["convolution", "blocks"])
@pytest.mark.parametrize("T", [1, 2, 3, 7, 64, 150])
def test_forms_equal_the_recurrence(form: str, T: int) -> None:
    inputs = draw(T)
    close(observe(inputs, form=form), observe(inputs, form="recurrent"))


@given(seed=st.integers(0, 10_000), T=st.integers(1, 40), size=st.sampled_from([1, 4, 16]), reals=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_padding_and_restarts_anywhere(seed: int, T: int, size: int, reals: float) -> None:
    inputs = draw(T, seed)
    mask, reset = torch.rand(B, T) <= reals, torch.rand(B, T) < 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", size)
        close(observe(inputs, mask, reset=reset), observe(inputs, mask, reset=reset, form="recurrent"))
    close(observe(inputs, mask), observe(inputs, mask, form="recurrent"))


def test_a_state_is_carried_from_part_to_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PART", 32)
    inputs = draw(150)
    close(observe(inputs, form="convolution"), observe(inputs, form="recurrent"))


def test_kernel_is_the_response_to_an_impulse() -> None:
    inputs = draw(50)
    K = kernel(inputs["log_z"], inputs["b"], inputs["c"], 50)
    inputs["u"] = torch.zeros(B, 50, D, dtype=torch.float64)
    inputs["u"][:, 0] = 1.0
    inputs["state"] = torch.zeros_like(inputs["state"])
    for form in ("recurrent", "convolution", "blocks"):
        torch.testing.assert_close(diagonal_state_space(**inputs, form=form)[0], K.mT.expand(B, -1, -1))


def test_nothing_wraps_round_to_the_beginning() -> None:
    """A last token reaches no earlier output, at lengths where a transform of T numbers would."""
    for T in (64, 65):
        inputs = draw(T)
        y = diagonal_state_space(**inputs, form="convolution")[0]
        inputs["u"][:, -1] += 1e6
        torch.testing.assert_close(diagonal_state_space(**inputs, form="convolution")[0][:, :-1], y[:, :-1], rtol=0, atol=1e-7)


def test_an_earlier_sequence_reaches_nothing_behind_a_restart() -> None:
    """Not even by rounding: enormous inputs, overflow or NaN before the reset leave every later bit as it was."""
    inputs, reset = draw(40), torch.zeros(B, 40, dtype=torch.bool)
    reset[:, 21] = True
    y, x = diagonal_state_space(**inputs, reset=reset)
    for value in (1e200, 1e308, float("nan")):
        inputs["u"][:, :21] = value
        other, after = diagonal_state_space(**inputs, reset=reset)
        assert torch.equal(y[:, 21:], other[:, 21:])
        assert torch.equal(x, after)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_nothing_before_it(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the recurrence, and by transforms, across their parts, and in blocks."""
    monkeypatch.setattr(kernels, "PART", 32)
    inputs, spoilt = draw(80), 50
    clean, _ = diagonal_state_space(**inputs)
    inputs["u"][:, spoilt, 1] = value
    y, x = diagonal_state_space(**inputs, form="recurrent")
    for form in ("convolution", "blocks"):
        got, last = diagonal_state_space(**inputs, form=form)
        assert torch.equal(got.isnan(), ~y.isfinite())
        assert torch.equal(last.isnan(), ~x.isfinite())
        torch.testing.assert_close(got[:, :spoilt], clean[:, :spoilt], rtol=1e-9, atol=1e-9)


def test_float32_stays_near_float64_over_many_tokens() -> None:
    inputs = draw(5000, fade=0.01)
    want = diagonal_state_space(**inputs, form="recurrent")[0]
    single = {name: x.to(torch.complex64 if x.is_complex() else torch.float32) for name, x in inputs.items()}
    for form in ("convolution", "blocks"):
        got = diagonal_state_space(**single, form=form)[0].double()
        assert float((got - want).abs().max() / want.abs().max()) < 1e-4


def test_bad_input_is_refused() -> None:
    inputs, reset = draw(5), torch.ones(B, 5, dtype=torch.bool)
    with pytest.raises(ShapeError, match="reads across resets"):
        diagonal_state_space(**inputs, reset=reset, form="convolution")
    with pytest.raises(ShapeError, match="received 'fast'"):
        diagonal_state_space(**inputs, form="fast")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="of 3 channels"):
        diagonal_state_space(**{**inputs, "c": inputs["c"][:2]})
    with pytest.raises(ShapeError, match="state"):
        diagonal_state_space(**{**inputs, "state": inputs["state"][:1]})
