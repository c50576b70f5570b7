"""DSS: its kernel written out, S4D's system with other numbers, its start, and its card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.mixers.dss import DSS
from instar.mixers.s4d import S4D

B, T, D, N = 2, 50, 3, 5
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/dss.toml", cards.Card)


def make() -> tuple[DSS, torch.Tensor]:
    torch.manual_seed(0)
    return DSS(D, states=N, dt_min=0.05, dt_max=0.2).double(), torch.randn(B, T, D, dtype=torch.float64)


def test_is_the_convolution_with_its_kernel() -> None:
    """K_l = Re Σ_n w_n (e^{Δλ_n} - 1) / λ_n e^{lΔλ_n}, and a linear map without a gate behind it."""
    layer, x = make()
    with torch.no_grad():
        rate = torch.complex(-layer.log_A_real.exp(), layer.A_imag).numpy()
        w, step = torch.view_as_complex(layer.C).numpy(), layer.log_dt.exp().numpy()
        y = np.empty((T, D))
        for d in range(D):
            scaled = w[d] * (np.exp(step[d] * rate) - 1) / rate
            K = (scaled * np.exp(np.arange(T)[:, None] * step[d] * rate)).sum(1).real
            y[:, d] = np.convolve(x[0, :, d].numpy(), K)[:T] + layer.D[d].item() * x[0, :, d].numpy()
        want = F.gelu(torch.from_numpy(y)) @ layer.output_linear.weight.mT + layer.output_linear.bias
        torch.testing.assert_close(layer(x)[0][0], want, rtol=1e-9, atol=1e-9)


def test_is_the_system_of_s4d_with_half_the_weights() -> None:
    layer, x = make()
    other = S4D(D, state_size=2 * N, init="legs").double()
    with torch.no_grad():
        for name in ("log_A_real", "A_imag", "log_dt", "D"):
            getattr(other, name).copy_(getattr(layer, name))
        other.C.copy_(layer.C / 2)
        other.output_linear.weight.copy_(torch.cat([layer.output_linear.weight, torch.zeros(D, D)]))
        other.output_linear.bias.copy_(torch.cat([layer.output_linear.bias, torch.full((D,), 1e3)]))  # a gate that is open
        torch.testing.assert_close(layer(x)[0], other(x)[0])
        torch.testing.assert_close(layer(x)[1].x, other(x)[1].x)


def test_forward_equals_reference_with_padding_and_packing() -> None:
    layer, x = make()
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.1
    found = []
    for function in (layer.forward, layer.reference):
        y, state = function(x, mask=mask, reset=reset)
        loss = y[mask].sin().sum() + state.x.square().sum()
        found.append((y[mask], state.x, *torch.autograd.grad(loss, list(layer.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_starts_from_hippo() -> None:
    torch.manual_seed(0)
    layer = DSS(400, states=8)
    n = np.arange(16)
    A = -np.sqrt(np.outer(2 * n + 1, 2 * n + 1)) * (n[:, None] > n) - np.diag(n + 1.0)  # HiPPO-LegS
    P = np.sqrt(n + 0.5)
    wanted = np.linalg.eigvals(A + np.outer(P, P))
    np.testing.assert_allclose(layer.A_imag.detach().numpy(), np.sort(wanted.imag)[8:], rtol=1e-5)
    np.testing.assert_allclose(-layer.log_A_real.exp().detach().numpy(), -0.5, rtol=1e-5)
    assert float(layer.C.detach().square().mean()) == pytest.approx(1.0, rel=0.1)


def test_costs_follow_the_card() -> None:
    assert CARD.cost is not None
    tokens, width, size = 512, 64, 16
    with FlopCounterMode(display=False) as counter:  # which does not see the transforms
        _, state = DSS(width, states=size)(torch.randn(1, tokens, width))
    variables = {"T": tokens, "D": width, "states": size}
    transforms = 3 * width * 2.5 * (2 * tokens) * np.log2(2 * tokens)
    assert counter.get_total_flops() + transforms == pytest.approx(formula.evaluate(CARD.cost.flops, variables), rel=0.01)
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, variables)


def test_no_states_are_refused() -> None:
    with pytest.raises(ShapeError, match="states"):
        DSS(D, states=0)
