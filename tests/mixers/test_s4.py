"""S4: the HiPPO matrix and its normal form, scipy's discretised system, length and split, parts of the layer, and its card."""

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
from instar.mixers import hippo
from instar.mixers.s4 import S4
from instar.mixers.s4d import S4D
from instar.mixers.state_space import StateSpaceState

B, T, D = 2, 60, 3
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/s4.toml", cards.Card)


def make(**knobs: Any) -> tuple[S4, Tensor]:
    torch.manual_seed(0)
    return S4(D, **{"state_size": 8, **knobs}).double(), torch.randn(B, T, D, dtype=torch.float64)


def before_mixing(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """GELU(y_t): what the gated output reads."""
    found: list[Tensor] = []
    hook = layer.output_linear.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))  # type: ignore[union-attr]
    layer(x)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("size", [2, 8, 64])
def test_hippo_is_a_normal_matrix_less_a_rank_of_one(size: int) -> None:
    A, start = hippo.legs(size)
    n = np.arange(size)
    assert np.allclose(np.sort(np.linalg.eigvals(A[: min(size, 16), : min(size, 16)])), -np.sort(n[:16] + 1.0)[::-1], atol=1e-4)
    P = start / 2**0.5
    skew = A + torch.outer(P, P) + torch.eye(size, dtype=A.dtype) / 2
    torch.testing.assert_close(skew, -skew.mT, rtol=0, atol=1e-12)
    rate, low_rank, vectors = hippo.normal_plus_low_rank(size)
    assert bool((rate.real < 0).all())
    both = torch.cat([vectors, vectors.conj()], dim=1)
    torch.testing.assert_close(both.conj().mT @ both, torch.eye(size, dtype=both.dtype), rtol=0, atol=1e-10)
    P = torch.cat([low_rank, low_rank.conj()])
    again = both @ (torch.diag(torch.cat([rate, rate.conj()])) - torch.outer(P, P.conj())) @ both.conj().mT
    torch.testing.assert_close(again, A.to(again), rtol=0, atol=1e-9)
    torch.testing.assert_close(vectors.conj().mT @ start.to(both), 2**0.5 * low_rank, rtol=0, atol=1e-10)


def test_is_scipys_bilinear_system_of_the_hippo_matrix() -> None:
    """The real system of N states that the layer starts from, its output read as C V* does, and its state."""
    layer, x = make(dt_min=0.05, dt_max=0.2)
    with torch.no_grad():
        y, state = before_mixing(layer, x), torch.view_as_complex(layer(x)[1].x)
    A, start = (part.numpy() for part in hippo.legs(8))
    rate, low_rank, vectors = (part.numpy() for part in hippo.normal_plus_low_rank(8))
    layer, x = make(dt_min=0.05, dt_max=0.2)
    with torch.no_grad():  # the parameters lost digits in float32
        layer.A_imag.copy_(torch.from_numpy(rate.imag).expand(D, -1))
        layer.log_A_real.fill_(float(np.log(0.5)))
        layer.P[..., 0].copy_(torch.from_numpy(low_rank.real).expand(D, -1))
        layer.B[..., 0].copy_(torch.from_numpy(2**0.5 * low_rank.real).expand(D, -1))
        y, state = before_mixing(layer, x), torch.view_as_complex(layer(x)[1].x)
        c, steps, skip = torch.view_as_complex(layer.C).numpy(), layer.log_dt.exp().numpy(), layer.D.numpy()
    for d in range(D):
        outputs = 2 * (c[d] @ vectors.conj().T).real[None]
        Ad, Bd, _, _, _ = signal.cont2discrete((A, start[:, None], outputs, np.zeros((1, 1))), steps[d], method="bilinear")
        h = np.zeros(8)
        for t in range(T):
            h = Ad @ h + Bd[:, 0] * x[0, t, d].item()
            want = torch.tensor((outputs @ h)[0] + skip[d] * x[0, t, d].item(), dtype=torch.float64)
            torch.testing.assert_close(y[0, t, d], F.gelu(want), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(state[0, d].numpy(), vectors.conj().T @ h, rtol=1e-8, atol=1e-8)


def test_without_the_rank_it_is_bilinear_s4d() -> None:
    layer, x = make()
    other = S4D(D, state_size=8, init="legs", discretisation="bilinear").double()
    with torch.no_grad():
        layer.P.zero_()
        layer.B.copy_(torch.tensor([1.0, 0.0]).expand(D, 4, 2))  # S4D's inputs are 1
    names = {name for name, _ in other.named_parameters()}
    other.load_state_dict({name: part for name, part in layer.state_dict().items() if name in names})
    torch.testing.assert_close(layer(x)[0], other(x)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", ["krylov", "cauchy"])
def test_forward_equals_reference_with_a_state_and_padding(kernel: str) -> None:
    layer, x = make(kernel=kernel)
    mask = torch.rand(B, T) > 0.3
    start = StateSpaceState(torch.randn(B, D, 4, 2, dtype=torch.float64))
    found = []
    for function in (layer.forward, layer.reference):
        y, state = function(x, start, mask=mask)
        loss = y[mask].sin().sum() + state.x.square().sum()
        found.append((y[mask], state.x, *torch.autograd.grad(loss, list(layer.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_longer_sequence_begins_as_a_shorter_one() -> None:
    """C itself is learnt, so that the kernel does not depend on the length."""
    for kernel in ("krylov", "cauchy"):
        layer, x = make(kernel=kernel)
        torch.testing.assert_close(layer(x)[0][:, :37], layer(x[:, :37])[0], rtol=0, atol=1e-10)


def test_nan_reaches_no_earlier_token() -> None:
    layer, x = make()
    want = layer(x)[0]
    x[0, 30, 1] = torch.nan
    y = layer(x)[0]
    torch.testing.assert_close(y[0, :30], want[0, :30])
    torch.testing.assert_close(y[1], want[1])
    assert y[0, 30:].isnan().all()


def test_float32_over_many_tokens() -> None:
    torch.manual_seed(0)
    layer, x = S4(4, state_size=64), torch.randn(1, 4000, 4)
    want = layer.double()(x.double())[0]
    assert float((layer.float()(x)[0].double() - want).detach().abs().max()) < 1e-3


def test_costs_follow_the_card() -> None:
    assert CARD.cost is not None
    tokens, width, size = 512, 64, 32
    with FlopCounterMode(display=False) as counter:  # which does not see the transforms
        _, state = S4(width, state_size=size)(torch.randn(1, tokens, width))
    variables = {"T": tokens, "D": width, "state_size": size}
    transforms = 3 * width * 2.5 * (2 * tokens) * np.log2(2 * tokens)  # of the input, of the kernel, and back
    counted = counter.get_total_flops() + transforms
    assert counted == pytest.approx(formula.evaluate(CARD.cost.flops, variables), rel=0.02)
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, variables)


@pytest.mark.parametrize(
    "wrong", [{"state_size": 7}, {"state_size": 0}, {"heads": 0}, {"kernel": "fast"}, {"dt_min": 0.2}, {"dt_min": 0.0}], ids=str
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        S4(D, **wrong)
