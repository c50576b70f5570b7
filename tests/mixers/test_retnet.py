"""Retention: the paper's parallel form in complex numbers, its relatives, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.mixers.retnet import RetNet

B, T, D, H = 3, 41, 16, 2
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/retnet.toml", cards.Card)


def make(**knobs: Any) -> tuple[RetNet, Tensor]:
    torch.manual_seed(0)
    return RetNet(D, heads=H, **knobs).double(), torch.randn(B, T, D, dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def decays() -> Tensor:
    return (1 - 2.0 ** (-5.0 - torch.arange(H))).float().double()


def test_is_the_parallel_form_with_a_complex_exponential() -> None:
    """o = (Q Kᵀ ∘ D) V with q_t e^{itθ} and the conjugate for keys; D_ti = γ^(t−i)."""
    layer, x = make()
    K = D // H
    q, k = (p(x).unflatten(-1, (H, 2, K // 2)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj))
    v = layer.v_proj(x).unflatten(-1, (H, -1)).transpose(1, 2)
    step = torch.arange(T, dtype=torch.float64)
    turn = torch.exp(1j * step.unsqueeze(1) * 10000.0 ** (-torch.arange(K // 2) / (K // 2)))
    q, k = (torch.complex(part[..., 0, :], part[..., 1, :]) * turn for part in (q, k))
    age = step.unsqueeze(1) - step
    D_ = torch.where(age >= 0, decays().view(H, 1, 1) ** age, 0.0)
    o = ((q @ k.mH).real * K**-0.5 * D_) @ v
    y = F.group_norm(o.transpose(1, 2).flatten(2).flatten(0, 1), H).view(B, T, -1) * F.silu(layer.g_proj(x))
    close(layer(x)[0], layer.o_proj(y), 1e-6)  # decays are rounded to float32


def test_scale_of_values_does_not_matter() -> None:
    """What the group norm is for (but for its ε)."""
    layer, x = make()
    before = layer(x)[0]
    with torch.no_grad():
        layer.q_proj.weight.mul_(100.0)
        layer.k_proj.weight.mul_(100.0)
        large = layer(x)[0]
        layer.v_proj.weight.mul_(7.0)
    close(layer(x)[0], large, 1e-5)
    assert not torch.allclose(before, large, atol=1e-4)  # at first ε is not small beside them


def test_the_past_fades_by_the_decay_of_its_head() -> None:
    """A first token that alone has a value leaves γ^t of it in the state after t more."""
    layer, x = make()
    x = F.pad(x[:, :1], (0, 0, 0, 20))
    _, first = layer(x[:, :1])
    _, last = layer(x)
    close(last.S, first.S * decays().view(H, 1, 1) ** 20, 1e-6)


def test_shifted_in_time_it_gives_the_same() -> None:
    """A token that writes nothing moves positions and decays, and changes no later output."""
    layer, x = make()
    shifted = F.pad(x, (0, 0, 5, 0))
    close(layer(shifted)[0][:, 5:], layer(x)[0])


def test_costs_follow_the_card() -> None:
    assert CARD.cost is not None
    layer = RetNet(128)
    with FlopCounterMode(display=False) as counter:
        _, state = layer(torch.randn(1, 256, 128))
    sizes = {"T": 256, "D": 128, "H": 4, "chunk": 64, "expand_v": 2.0}
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(CARD.cost.flops, sizes), rel=0.02)
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, sizes)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"heads": 16}, {"expand_v": 0.01}, {"chunk": 48}, {"rope_base": -1.0}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        RetNet(D, **{"heads": H, **wrong})


@pytest.mark.parametrize("position", [10**6, 10**9])
def test_a_stream_of_any_length_reads_alike(position: int) -> None:
    """Only distances count: from an empty state the position at which a stream stands changes nothing."""
    torch.manual_seed(0)
    mixer, x = RetNet(32, heads=2), torch.randn(1, 40, 32)
    fresh = mixer.init_state(1)
    later = fresh._replace(position=fresh.position + position)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, later)[0], mixer(x, fresh)[0], atol=1e-5, rtol=1e-5)
