"""Linear attention: the layer against normalised attention weights, the recurrence, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.mixers.linear_attention import LinearAttention

B, T, D, H = 3, 41, 16, 4
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/linear_attention.toml", cards.Card)


def make(**knobs: Any) -> tuple[LinearAttention, Tensor]:
    torch.manual_seed(0)
    layer = LinearAttention(D, heads=H, **knobs).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer, torch.randn(B, T, D, dtype=torch.float64)


def close(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    for one, other in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("knobs", [{}, {"bias": True}, {"chunk": 8}], ids=str)
@pytest.mark.parametrize("flags", [False, True])
def test_forward_equals_reference_in_values_states_and_gradients(knobs: dict[str, Any], flags: bool) -> None:
    layer, x = make(**knobs)
    mask, reset = (torch.rand(B, T - 6) > 0.3, torch.rand(B, T - 6) < 0.1) if flags else (None, None)
    found = []
    for function in (layer.forward, layer.reference):
        z = x.clone().requires_grad_()
        _, state = layer(z[:, :6])
        y, state = function(z[:, 6:], state, mask=mask, reset=reset)
        y = y if mask is None else y[mask]
        loss = y.sin().sum() + state.S.sum() + state.z.sum()
        found.append((y, state, torch.autograd.grad(loss, [z, *layer.parameters()])))
    close(found[0], found[1])


def test_is_attention_with_weights_of_the_feature_map() -> None:
    """A_ij = φ(q_i)ᵀφ(k_j) / Σ_{l≤i} φ(q_i)ᵀφ(k_l): positive weights that sum to one."""
    layer, x = make()
    q, k, v = (p(x).unflatten(-1, (H, -1)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    A = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    A = A / A.sum(-1, keepdim=True)
    close(layer(x)[0], layer.o_proj((A @ v).transpose(1, 2).flatten(2)), 1e-5)  # ε in the normaliser


def test_equal_values_come_out_as_they_are() -> None:
    """An average of equal values is that value, whatever the weights; tokens at padding do not count."""
    layer, x = make(bias=True)
    with torch.no_grad():
        layer.v_proj.weight.zero_()
    mask = torch.rand(B, T) > 0.3
    y, _ = layer(x, mask=mask)
    close(y[mask], layer.o_proj(layer.v_proj.bias).expand_as(y)[mask], 1e-5)


def test_tokens_before_any_real_one_are_finite_with_finite_gradients() -> None:
    layer, x = make()
    x.requires_grad_()
    y, state = layer(x, mask=torch.zeros(B, T, dtype=torch.bool))
    y.sum().backward()
    assert x.grad is not None
    assert y.isfinite().all()
    assert not x.grad.any()
    assert not any(leaf.any() for leaf in states.leaves(state))


def test_the_order_of_the_past_does_not_matter() -> None:
    layer, x = make()
    order = torch.cat([torch.randperm(T - 1), torch.tensor([T - 1])])
    close(layer(x[:, order])[0][:, -1], layer(x)[0][:, -1])


def test_prefix_then_steps_is_the_whole_at_constant_size() -> None:
    layer, x = make()
    assert CARD.cost is not None
    whole, end = layer(x)
    parts, state = layer(x[:, :13])
    for i in range(13, T):
        y, state = layer(x[:, i : i + 1], state)
        parts = torch.cat([parts, y], dim=1)
        assert states.nbytes(state) == 2 * B * formula.evaluate(CARD.cost.state, {"T": i, "D": D, "H": H})  # float64
    close((parts, state), (whole, end))


def test_flops_follow_the_card() -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        LinearAttention(128)(torch.randn(1, 256, 128))
    expected = formula.evaluate(CARD.cost.flops, {"T": 256, "D": 128, "H": 4, "chunk": 64})
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"heads": 0}, {"chunk": 48}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        LinearAttention(D, **wrong)
