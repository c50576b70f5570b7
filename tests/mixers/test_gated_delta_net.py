"""Gated DeltaNet: the layer against `transformers`' (Qwen3-Next), its gate, the official names, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.mixers.delta_net import DeltaNet
from instar.mixers.gated_delta_net import GatedDeltaNet

B, T, D, H = 2, 41, 16, 4
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/gated_delta_net.toml", cards.Card)


def make(**knobs: Any) -> tuple[GatedDeltaNet, Tensor]:
    torch.manual_seed(0)
    layer = GatedDeltaNet(D, heads=H, **knobs).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer, torch.randn(B, T, D, dtype=torch.float64)


def close(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    for one, other in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("knobs", [{}, {"decay": False}, {"conv_size": 0, "output_gate": False, "chunk": 8}], ids=str)
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


def test_is_the_layer_of_transformers() -> None:
    """Qwen3-Next's layer with the same weights: output, and the gradients of input and gate, in float32."""
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    config = module.Qwen3NextConfig(
        hidden_size=D,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=H,
        linear_num_value_heads=H,
        linear_key_head_dim=3,
        linear_value_head_dim=6,
        rms_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    theirs, ours = module.Qwen3NextGatedDeltaNet(config, 0), GatedDeltaNet(D, heads=H)
    for p in ours.parameters():
        nn.init.normal_(p, std=0.5)
    rows = [getattr(ours, f"{name}_proj").weight.unflatten(0, (H, -1)) for name in "qkvg"]  # theirs stand head by head
    gates = [getattr(ours, f"{name}_proj").weight.unflatten(0, (H, -1)) for name in "ba"]
    theirs.load_state_dict(
        {
            "in_proj_qkvz.weight": torch.cat(rows, 1).flatten(0, 1),
            "in_proj_ba.weight": torch.cat(gates, 1).flatten(0, 1),
            "conv1d.weight": ours._taps(),
            "A_log": ours.A_log,
            "dt_bias": ours.dt_bias,
            "norm.weight": ours.o_norm.weight,
            "out_proj.weight": ours.o_proj.weight,
        }
    )
    x = torch.randn(B, 100, D)
    found = []
    for layer in (lambda z: ours(z)[0], theirs):
        z = x.clone().requires_grad_()
        y = layer(z)
        module_parameters = [ours.A_log, ours.dt_bias] if layer is not theirs else [theirs.A_log, theirs.dt_bias]
        found.append((y.detach(), *torch.autograd.grad(y.sin().sum(), [z, *module_parameters])))
    close(found[0], found[1], 2e-4)


def test_without_decay_it_is_the_delta_rule() -> None:
    layer, x = make(decay=False)
    plain = DeltaNet(D, heads=H, expand_k=0.75, expand_v=1.5, output_gate=True).double()
    plain.load_state_dict(layer.state_dict())
    close(layer(x), plain(x), 0.0)


def test_a_token_that_closes_the_gate_starts_anew() -> None:
    layer, x = make(conv_size=0)
    with torch.no_grad():
        layer.A_log.fill_(8.0)
        layer.dt_bias.fill_(50.0)
    close(layer(x)[0][:, -1:], layer(x[:, -1:])[0])
    close(layer(x)[1], layer(x[:, -1:])[1])


def test_gates_of_a_new_layer_forget_slowly() -> None:
    """Δ in [0.001, 0.1] and A in [0.01, 16] where x is zero."""
    torch.manual_seed(0)
    layer = GatedDeltaNet(256, heads=64)
    g = layer._log_gate(torch.zeros(1, 1, 256))
    assert g is not None
    rate = layer.A_log.detach().exp()
    step = -g.detach()[0, 0] / rate
    assert 0.01 <= float(rate.min()) < 2 < 14 < float(rate.max()) <= 16
    assert 0.001 * 0.999 <= float(step.min()) < 0.003 < 0.04 < float(step.max()) <= 0.1001


def test_weights_under_the_official_names_load() -> None:
    """Names and shapes of the authors' layer: hidden 32, 4 heads of width 6, values twice as wide, gates, convolutions of 4."""
    official: dict[str, tuple[int, ...]] = {f"{name}_proj.weight": (24, 32) for name in "qk"}
    official |= {f"{name}_proj.weight": (48, 32) for name in "vg"} | {f"{name}_proj.weight": (4, 32) for name in "ab"}
    official |= {"q_conv1d.weight": (24, 1, 4), "k_conv1d.weight": (24, 1, 4), "v_conv1d.weight": (48, 1, 4)}
    official |= {"A_log": (4,), "dt_bias": (4,), "o_norm.weight": (12,), "o_proj.weight": (32, 48)}
    layer = GatedDeltaNet(32, heads=4)
    layer.load_state_dict({name: torch.randn(shape) for name, shape in official.items()})
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == official


def test_flops_follow_the_card() -> None:
    """The counter does not see the triangular inverse."""
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        GatedDeltaNet(128, heads=4)(torch.randn(1, 512, 128))
    variables = {"T": 512, "D": 128, "H": 4, "expand_k": 0.75, "expand_v": 1.5, "chunk": 64}
    inverse = 512 * 4 * 64**2 / 3
    assert counter.get_total_flops() + inverse == pytest.approx(formula.evaluate(CARD.cost.flops, variables), rel=0.01)
