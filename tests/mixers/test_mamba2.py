"""Mamba-2: the layer against `transformers`' with the same weights, whole and decoding, its parts, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.mixers.mamba2 import Mamba2

B, T, D, H = 2, 41, 16, 4
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/mamba2.toml", cards.Card)


def make(**knobs: Any) -> tuple[Mamba2, Tensor]:
    torch.manual_seed(0)
    layer = Mamba2(D, heads=H, **{"state_size": 8, **knobs}).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer, torch.randn(B, T, D, dtype=torch.float64)


def close(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    for one, other in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("knobs", [{}, {"groups": 2, "conv_size": 1}, {"expand": 1.0, "chunk": 8}], ids=str)
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
        loss = y.sin().sum() + state.h.sum() + state.past.sum()
        found.append((y, state, torch.autograd.grad(loss, [z, *layer.parameters()])))
    close(found[0], found[1])


@pytest.mark.parametrize("groups", [1, 2])
def test_is_the_layer_of_transformers(groups: int) -> None:
    """Its state dict loads as it stands: output, gradients and the final state, in float32."""
    module = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    config = module.Mamba2Config(
        hidden_size=D,
        num_heads=H,
        head_dim=2 * D // H,
        state_size=8,
        n_groups=groups,
        num_hidden_layers=1,
        chunk_size=32,
        time_step_limit=(0.0, float("inf")),
    )
    torch.manual_seed(0)
    theirs, ours = module.Mamba2Mixer(config, 0), Mamba2(D, heads=H, state_size=8, groups=groups)
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(B, 100, D)
    found = []
    for layer, way in ((ours, lambda z: ours(z)[0]), (theirs, theirs)):
        z = x.clone().requires_grad_()
        y = way(z)
        parameters = dict(layer.named_parameters())
        wanted = [z, *(parameters[name] for name in sorted(parameters))]
        found.append((y.detach(), *torch.autograd.grad(y.sin().sum(), wanted)))
    close(found[0], found[1], 5e-4)


def test_is_its_own_parts() -> None:
    """A layer whose steps are zero writes and forgets nothing: what is left is D x, gated and normed."""
    layer, x = make()
    with torch.no_grad():
        layer.in_proj.weight[-H:].zero_()
        layer.dt_bias.fill_(-800.0)
    y, state = layer(x)
    assert not state.h.any()
    z, xBC, step, _ = layer._project(x)
    assert not step.any()
    window = torch.cat([xBC.new_zeros(B, 3, xBC.shape[-1]), xBC], dim=1)
    values = nn.functional.silu(layer.conv1d(window.mT).mT)[..., : 2 * D].unflatten(-1, (H, -1))
    gated = (values * layer.D.unsqueeze(-1)).flatten(2) * nn.functional.silu(z)
    normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    close(y, layer.out_proj(normed))


def test_a_token_that_closes_the_gate_starts_anew() -> None:
    layer, x = make(conv_size=1)
    with torch.no_grad():
        layer.A_log.fill_(8.0)
        layer.dt_bias.fill_(50.0)
    y, state = layer(x)
    close(y[:, -1:], layer(x[:, -1:])[0])
    close(state, layer(x[:, -1:])[1])


def test_initial_steps_and_rates() -> None:
    torch.manual_seed(0)
    layer = Mamba2(64, heads=64, state_size=4)
    step = nn.functional.softplus(layer.dt_bias.detach())
    rate = layer.A_log.detach().exp()
    assert 0.001 * 0.999 <= float(step.min()) < 0.003 < 0.04 < float(step.max()) <= 0.1001
    assert 1.0 <= float(rate.min()) < 3 < 14 < float(rate.max()) <= 16
    assert bool((layer.D == 1).all())


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_follow_the_card(groups: int) -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        Mamba2(128, heads=4, groups=groups)(torch.randn(1, 512, 128))
    variables = {"T": 512, "D": 128, "H": 4, "expand": 2.0, "groups": groups, "state_size": 128, "chunk": 64}
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(CARD.cost.flops, variables), rel=0.01)


def test_bfloat16_keeps_a_float32_state() -> None:
    torch.manual_seed(0)
    layer, x = Mamba2(D, state_size=8), torch.randn(B, T, D)
    want = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x)
    assert {leaf.dtype for leaf in states.leaves(state)} == {torch.float32}
    torch.testing.assert_close(y.float(), want, rtol=0, atol=3e-2)
    y, state = layer.bfloat16()(x.bfloat16())
    assert (y.dtype, state.h.dtype, state.past.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(y.float(), want, rtol=0, atol=5e-2)


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"heads": 0}, {"groups": 3}, {"state_size": 0}, {"conv_size": 0}, {"chunk": 48}], ids=str
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Mamba2(D, **wrong)
