"""The Legendre memory: forms against the recurrence, scipy's discretisation, what the window decodes to, restarts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal, special
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels import legendre_memory as kernels
from instar.kernels.legendre_memory import RULES, Rule, continuous, decoder, discretise, legendre_memory, system

B, H, ORDER, THETA = 2, 3, 8, 32.0
SCIPY = {"zoh": "zoh", "forward": "euler", "backward": "backward_diff", "bilinear": "bilinear"}


def draw(T: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(B, T, H, dtype=torch.float64), torch.randn(B, H, ORDER, dtype=torch.float64)


def observe(u: Tensor, state: Tensor | None, mask: Tensor | None = None, **options: Any) -> list[Tensor]:
    """Memories at real tokens, final state, and the gradients of a loss that uses both."""
    taken = [x.clone().requires_grad_() for x in (u, state) if x is not None]
    m, after = legendre_memory(
        taken[0], system(ORDER, THETA, "zoh"), state=taken[-1] if state is not None else None, mask=mask, **options
    )
    m = m if mask is None else m[mask]
    loss = (m * torch.linspace(-1, 1, ORDER)).sin().sum() + after.square().sum()
    return [m.detach(), after.detach(), *torch.autograd.grad(loss, taken)]


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("T", [1, 2, 3, 31, 64, 150])
def test_forms_equal_the_recurrence(T: int) -> None:
    u, state = draw(T)
    close(observe(u, None, form="fourier"), observe(u, None, form="recurrent"))
    close(observe(u, state, form="blocks"), observe(u, state, form="recurrent"))


def test_whole_blocks_of_inputs_that_lie_time_first() -> None:
    """As those of spiking neurons do; where blocks are whole nothing is padded, and so nothing is copied."""
    u, state = draw(128)
    other = u.transpose(0, 1).contiguous().transpose(0, 1)
    close(observe(other, state, form="blocks"), observe(u, state, form="recurrent"))


@given(seed=st.integers(0, 10_000), T=st.integers(1, 40), size=st.sampled_from([1, 4, 16]), reals=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_padding_and_restarts_anywhere(seed: int, T: int, size: int, reals: float) -> None:
    u, state = draw(T, seed)
    mask, reset = torch.rand(B, T) <= reals, torch.rand(B, T) < 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", size)
        for flags in ({"mask": mask, "reset": reset}, {"mask": mask}, {"reset": reset}):
            close(observe(u, state, form="blocks", **flags), observe(u, state, form="recurrent", **flags))
    close(observe(u, None, mask, form="fourier"), observe(u, None, mask, form="recurrent"))


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_those_of_scipy(rule: Rule) -> None:
    A, inputs = continuous(ORDER, 400.0)
    want = signal.cont2discrete(
        (A.numpy(), inputs.numpy()[:, None], np.eye(ORDER), np.zeros((ORDER, 1))), 1.0, method=SCIPY[rule]
    )
    A_bar, B_bar = discretise(A, inputs, rule)
    np.testing.assert_allclose(A_bar.numpy(), want[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(B_bar.numpy(), want[1][:, 0], rtol=1e-10, atol=1e-12)


def test_rules_meet_as_the_window_grows() -> None:
    """The distance of Ā from that of the zero-order hold falls as 1/θ², under the bilinear rule as 1/θ³."""
    for rule, power in (("forward", 2), ("backward", 2), ("bilinear", 3)):
        apart = []
        for theta in (4e3, 8e3):
            exact, other = (discretise(*continuous(ORDER, theta), method)[0] for method in ("zoh", rule))
            apart.append(float((exact - other).abs().max()))
        assert math.log2(apart[0] / apart[1]) == pytest.approx(power, abs=0.2)


@pytest.mark.parametrize(("order", "theta", "radius"), [(8, 32.0, 0.864), (64, 128.0, 0.914)])
def test_spectral_radius(order: int, theta: float, radius: float) -> None:
    assert float(torch.linalg.eigvals(system(order, theta, "zoh").squares[0]).abs().max()) == pytest.approx(radius, abs=5e-4)


def test_decoder_is_of_legendre_polynomials() -> None:
    r = torch.linspace(0, 1, 11, dtype=torch.float64)
    want = np.stack([special.eval_legendre(n, 2 * r.numpy() - 1) for n in range(6)], axis=1)
    np.testing.assert_allclose(decoder(6, r).numpy(), want, atol=1e-12)
    assert decoder(1, r).shape == (11, 1)


def decoded_error(order: int, theta: float, rule: Rule, delay: float, stretch: float = 1.0) -> float:
    """Root mean square error of u(t - delay θ), after the first window, for two sines."""
    t = torch.arange(int(6 * theta), dtype=torch.float64)
    u = (torch.sin(2 * math.pi * t / (120 * stretch)) + 0.5 * torch.sin(2 * math.pi * t / (77 * stretch))).view(1, -1, 1)
    m, _ = legendre_memory(u, system(order, theta, rule))
    got = m[0, :, 0] @ decoder(order, torch.tensor([delay]))[0]
    lag = round(delay * theta)
    begin = int(2 * theta)
    return float((got[begin:] - u[0, begin - lag : len(t) - lag, 0]).square().mean().sqrt())


@pytest.mark.parametrize("rule", RULES)
def test_memory_is_a_delay_line(rule: Rule) -> None:
    """What the window held a quarter, a half and a whole θ ago comes out again, the better the more coefficients there are."""
    theta = 400.0 if rule in ("forward", "backward") else 100.0
    for delay in (0.25, 0.5, 1.0):
        few, more = (decoded_error(order, theta, rule, delay, theta / 100) for order in (3, 8))
        assert more < 0.12
        assert more < few / 3


def test_error_in_the_middle_of_the_window() -> None:
    """The figure known for order 12 and θ 100; stretched in time with its window, a signal decodes as it did."""
    error = decoded_error(12, 100.0, "zoh", 0.5)
    assert 0.01 < error < 0.03
    assert decoded_error(12, 200.0, "zoh", 0.5, stretch=2.0) == pytest.approx(error / 2, rel=0.2)  # the hold lags half a token


def test_memory_is_linear_and_fades() -> None:
    u, state = draw(100)
    memory = system(ORDER, THETA, "zoh")
    other = torch.randn_like(u)
    sum_of, first, second = (legendre_memory(x, memory)[0] for x in (2 * u + other, u, other))
    torch.testing.assert_close(sum_of, 2 * first + second)
    faded = legendre_memory(torch.zeros(B, 400, H, dtype=torch.float64), memory, state=state)[1]
    assert float(faded.abs().max()) < 1e-10 * float(state.abs().max())


def test_an_earlier_sequence_reaches_nothing_behind_a_restart() -> None:
    """Not even by rounding: enormous inputs, overflow or NaN before the reset leave every later bit as it was."""
    u, state = draw(90)
    reset = torch.zeros(B, 90, dtype=torch.bool)
    reset[:, 70] = True
    memory = system(ORDER, THETA, "zoh")
    m, after = legendre_memory(u, memory, state=state, reset=reset)
    for value in (1e200, 1e308, float("nan")):
        u[:, :70] = value
        other, after_other = legendre_memory(u, memory, state=state, reset=reset)
        assert torch.equal(m[:, 70:], other[:, 70:])
        assert torch.equal(after, after_other)


def test_float32_keeps_hundreds_of_coefficients() -> None:
    """Powers are taken in float64: of order 256 the blocks in float32 stay near the recurrence in float64."""
    memory = system(256, 128.0, "zoh")
    torch.manual_seed(0)
    u = torch.randn(1, 300, 1)
    want = legendre_memory(u.double(), memory, form="recurrent")[0]
    for form in ("blocks", "fourier"):
        got = legendre_memory(u, memory, form=form)[0].double()
        assert float((got - want).abs().max() / want.abs().max()) < 1e-5


def test_bad_input_is_refused() -> None:
    u, state = draw(5)
    memory = system(ORDER, THETA, "zoh")
    with pytest.raises(ShapeError, match="received 'fast'"):
        legendre_memory(u, memory, form="fast")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="starts from a state of zero"):
        legendre_memory(u, memory, state=state, form="fourier")
    with pytest.raises(ShapeError, match="state"):
        legendre_memory(u, memory, state=state[:, :1])
    with pytest.raises(ShapeError, match="grows without end"):
        system(64, 128.0, "forward")
    for order, theta, rule in ((0, 8.0, "zoh"), (4, 0.0, "zoh"), (4, 8.0, "tustin")):
        with pytest.raises(ShapeError, match="received"):
            system(order, theta, rule)  # type: ignore[arg-type]
