"""S4D: scipy's discretised systems, limits of the step, starting values, parts of the layer, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import signal
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.mixers.s4d import S4D, eigenvalues
from instar.mixers.state_space import StateSpaceState

B, T, D = 2, 60, 3
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/s4d.toml", cards.Card)


def make(**knobs: Any) -> tuple[S4D, Tensor]:
    torch.manual_seed(0)
    return S4D(D, **{"state_size": 8, **knobs}).double(), torch.randn(B, T, D, dtype=torch.float64)


def before_mixing(layer: S4D, x: Tensor) -> Tensor:
    """GELU(y_t): what the gated output reads."""
    found: list[Tensor] = []
    hook = layer.output_linear.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    layer(x)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("init", ["lin", "inv", "legs", "real"])
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_is_the_discretised_system_of_scipy(init: str, method: str) -> None:
    """The real system of N states: blocks [[Re λ, -Im λ], [Im λ, Re λ]], read by 2 Re C and -2 Im C; its state too."""
    layer, x = make(init=init, discretisation=method, dt_min=0.05, dt_max=0.2)
    with torch.no_grad():
        y, state = before_mixing(layer, x), layer(x)[1]
        rate = torch.complex(-layer.log_A_real.exp(), layer.A_imag).numpy()
        c, steps, skip = torch.view_as_complex(layer.C).numpy(), layer.log_dt.exp().numpy(), layer.D.numpy()
    for d in range(D):
        n = rate.shape[1]
        A = np.zeros((2 * n, 2 * n))
        for i, value in enumerate(rate[d]):
            A[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[value.real, -value.imag], [value.imag, value.real]]
        inputs = np.tile([[1.0], [0.0]], (n, 1))
        outputs = np.stack([2 * c[d].real, -2 * c[d].imag], axis=1).reshape(1, -1)
        Ad, Bd, _, _, _ = signal.cont2discrete((A, inputs, outputs, np.zeros((1, 1))), steps[d], method=method)
        h = np.zeros(2 * n)
        for t in range(T):
            h = Ad @ h + Bd[:, 0] * x[0, t, d].item()
            want = torch.tensor((outputs @ h)[0] + skip[d] * x[0, t, d].item(), dtype=torch.float64)
            torch.testing.assert_close(y[0, t, d], F.gelu(want), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(state.x[0, d].flatten().numpy(), h, rtol=1e-9, atol=1e-9)


def test_small_steps_reach_the_differential_equation() -> None:
    """As Δ goes to 0 the response to a constant input goes to (e^{λt} - 1) / λ: exactly by zero-order hold, the error of the
    bilinear rule falling with Δ."""
    errors = []
    for tokens in (100, 200, 400):
        for method in ("zoh", "bilinear"):
            layer, _ = make(discretisation=method, init="inv")
            with torch.no_grad():
                layer.log_dt.fill_(float(np.log(1.0 / tokens)))
            x = layer(torch.ones(1, tokens, D, dtype=torch.float64))[1].x.detach()
            rate = torch.complex(-layer.log_A_real.exp(), layer.A_imag).detach()
            error = float((torch.view_as_complex(x[0]) - ((rate).exp() - 1) / rate).abs().max())
            if method == "zoh":
                assert error < 1e-10
            else:
                errors.append(error)
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_a_vanishing_step_leaves_the_skip() -> None:
    layer, x = make()
    with torch.no_grad():
        layer.log_dt.fill_(-60.0)
    torch.testing.assert_close(before_mixing(layer, x), F.gelu(layer.D * x), rtol=0, atol=1e-12)


def test_the_two_rules_agree_on_small_steps_and_keep_a_stable_system_stable() -> None:
    for step, near in ((-12.0, True), (4.0, False)):
        found = []
        for method in ("zoh", "bilinear"):
            layer, _ = make(discretisation=method)
            with torch.no_grad():
                layer.log_dt.fill_(step)
            log_z, b = (part.detach() for part in layer.discretise())
            assert float(log_z.real.max()) < 0
            found.append((log_z, b))
        apart = max(float((one - other).abs().max() / one.abs().max()) for one, other in zip(*found, strict=True))
        assert (apart < 1e-4) is near


def test_starting_values() -> None:
    n = np.arange(16)
    assert np.allclose(eigenvalues("lin", 16).numpy(), -0.5 + 1j * np.pi * n)
    assert np.allclose(eigenvalues("inv", 16).numpy(), -0.5 + 1j * 32 / np.pi * (32 / (2 * n + 1) - 1))
    assert np.allclose(eigenvalues("real", 16).numpy(), -(n + 1.0))
    size = np.arange(32)
    A = -np.sqrt(np.outer(2 * size + 1, 2 * size + 1)) * (size[:, None] > size) - np.diag(size + 1.0)  # HiPPO-LegS
    P = np.sqrt(size + 0.5)
    want = np.linalg.eigvals(A + np.outer(P, P))
    assert np.allclose(want.real, -0.5)
    assert np.allclose(eigenvalues("legs", 16).imag.numpy(), np.sort(want.imag)[16:])
    torch.manual_seed(0)
    step = S4D(4096, state_size=2).log_dt.detach().exp()
    assert 0.001 * 0.999 <= float(step.min()) < 0.0012 < 0.08 < float(step.max()) <= 0.1001
    assert float(step.log().median().exp()) == pytest.approx(0.01, rel=0.2)


def test_output_is_gated_by_its_second_half() -> None:
    layer, x = make()
    y = before_mixing(layer, x)
    left, right = (y @ layer.output_linear.weight.mT + layer.output_linear.bias).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x)[0], left * torch.sigmoid(right))


def test_channels_meet_only_in_the_output() -> None:
    layer, x = make()
    moved = x.clone()
    moved[..., 1] += 1.0
    same = before_mixing(layer, moved) == before_mixing(layer, x)
    assert same[..., [0, 2]].all()
    assert not same[..., 1].all()


def test_forward_equals_reference_with_a_state_padding_and_packing() -> None:
    layer, x = make()
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.1
    start = StateSpaceState(torch.randn(B, D, 4, 2, dtype=torch.float64))
    found = []
    for function in (layer.forward, layer.reference):
        y, state = function(x, start, mask=mask, reset=reset)
        loss = y[mask].sin().sum() + state.x.square().sum()
        found.append((y[mask], state.x, *torch.autograd.grad(loss, list(layer.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_costs_follow_the_card() -> None:
    assert CARD.cost is not None
    tokens, width, size = 512, 64, 32
    with FlopCounterMode(display=False) as counter:  # which does not see the transforms
        _, state = S4D(width, state_size=size)(torch.randn(1, tokens, width))
    variables = {"T": tokens, "D": width, "state_size": size}
    transforms = 3 * width * 2.5 * (2 * tokens) * np.log2(2 * tokens)  # of the input, of the kernel, and back
    counted = counter.get_total_flops() + transforms
    assert counted == pytest.approx(formula.evaluate(CARD.cost.flops, variables), rel=0.01)
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, variables)


def test_bfloat16_keeps_a_float32_state() -> None:
    torch.manual_seed(0)
    layer, x = S4D(D, state_size=8), torch.randn(B, T, D)
    want = layer(x)[0]
    y, state = layer.bfloat16()(x.bfloat16())
    assert (y.dtype, state.x.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.float(), want, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"state_size": 7},
        {"state_size": 0},
        {"heads": 0},
        {"init": "fout"},
        {"discretisation": "euler"},
        {"dt_min": 0.2},
        {"dt_min": 0.0},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        S4D(D, **wrong)
