"""DeltaNet: the layer against one written from the paper, the official names, what it stores, and its card."""

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
from instar.mixers.delta_net import DeltaNet

B, T, D, H = 2, 41, 16, 4
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/delta_net.toml", cards.Card)
KNOBS: list[dict[str, Any]] = [
    {},
    {"conv_size": 1, "output_gate": True},
    {"conv_size": 0, "expand_k": 0.5, "expand_v": 2.0},
    {"negative_eigenvalues": True, "chunk": 8},
]


def make(**knobs: Any) -> tuple[DeltaNet, Tensor]:
    torch.manual_seed(0)
    layer = DeltaNet(D, heads=H, **knobs).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer, torch.randn(B, T, D, dtype=torch.float64)


def close(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    for one, other in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
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
        loss = y.sin().sum() + state.S.sum() + state.past.sum()
        found.append((y, state, torch.autograd.grad(loss, [z, *layer.parameters()])))
    close(found[0], found[1])


def test_is_the_layer_of_the_paper() -> None:
    """Linear, convolution of torch, SiLU, L2 norm, product of I - β k kᵀ written out, RMS norm, linear."""
    layer, x = make()
    flat = []
    for name in "qkv":
        u = getattr(layer, f"{name}_proj")(x).mT
        weight = getattr(layer, f"{name}_conv1d").weight
        flat.append(F.silu(F.conv1d(F.pad(u, (3, 0)), weight, groups=D)).mT.unflatten(-1, (H, -1)))
    q, k, v = flat
    q, k = (u / (u.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt() for u in (q, k))
    beta = torch.sigmoid(x @ layer.b_proj.weight.T)
    S, outputs = torch.zeros(B, H, D // H, D // H, dtype=torch.float64), []
    for t in range(T):
        householder = torch.eye(D // H) - beta[:, t, :, None, None] * k[:, t, :, :, None] * k[:, t, :, None, :]
        S = householder @ S + beta[:, t, :, None, None] * k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None, :] @ S).squeeze(-2) / (D // H) ** 0.5)
    o = F.rms_norm(torch.stack(outputs, 1), (D // H,), layer.o_norm.weight, 1e-5).flatten(2)
    close(layer(x)[0], layer.o_proj(o), 1e-9)


def test_weights_under_the_official_names_load() -> None:
    """Names and shapes of the authors' layer: hidden 32, 4 heads, convolutions of 4, output gate."""
    official = {f"{name}_proj.weight": (32, 32) for name in "qkvgo"} | {"b_proj.weight": (4, 32), "o_norm.weight": (8,)}
    official |= {f"{name}_conv1d.weight": (32, 1, 4) for name in "qkv"}
    layer = DeltaNet(32, heads=4, output_gate=True)
    layer.load_state_dict({name: torch.randn(shape) for name, shape in official.items()})
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == official


def test_a_value_shown_again_under_its_key_replaces_the_old_one() -> None:
    """With β = 1 the state answers to a token's key with that token's value, whatever came before."""
    layer, x = make(conv_size=0)
    layer._strength = lambda x: torch.ones(*x.shape[:2], H, dtype=x.dtype)  # type: ignore[method-assign]
    _, state = layer(x)
    _, k, v = layer._heads(layer._project(x[:, -1:]))
    torch.testing.assert_close(torch.einsum("bhk,bhkv->bhv", k[:, 0], state.S), v[:, 0], rtol=0, atol=1e-3)  # ε in the norm


def test_strengths_lie_between_nothing_and_their_limit() -> None:
    for knobs, limit in (({}, 1.0), ({"negative_eigenvalues": True}, 2.0)):
        layer, x = make(**knobs)
        beta = layer._strength(30 * x)
        assert 0 <= beta.min() < 0.01 * limit
        assert 0.99 * limit < beta.max() <= limit


def test_initial_weights() -> None:
    torch.manual_seed(0)
    layer = DeltaNet(256)
    for name in "qkvo":
        assert float(getattr(layer, f"{name}_proj").weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 256**2 + 4 * 256 + 3 * 4 * 256 + 64


@pytest.mark.parametrize("tokens", [64, 512])
def test_flops_follow_the_card(tokens: int) -> None:
    """The counter does not see the triangular inverse."""
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        DeltaNet(128, heads=4)(torch.randn(1, tokens, 128))
    variables = {"T": tokens, "D": 128, "H": 4, "expand_k": 1.0, "expand_v": 1.0, "chunk": 64}
    inverse = tokens * 4 * 64**2 / 3
    assert counter.get_total_flops() + inverse == pytest.approx(formula.evaluate(CARD.cost.flops, variables), rel=0.01)


def test_bfloat16_keeps_a_float32_state() -> None:
    torch.manual_seed(0)
    layer, x = DeltaNet(D), torch.randn(B, T, D)
    want = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x)
    assert {leaf.dtype for leaf in states.leaves(state)} == {torch.float32}
    torch.testing.assert_close(y.float(), want, rtol=0, atol=3e-2)
    y, state = layer.bfloat16()(x.bfloat16())
    assert (y.dtype, state.S.dtype, state.past.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(y.float(), want, rtol=0, atol=5e-2)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"heads": 0}, {"expand_k": 0.0}, {"conv_size": -1}, {"chunk": 48}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        DeltaNet(D, **wrong)
