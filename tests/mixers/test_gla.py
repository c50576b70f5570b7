"""GLA: the layer against its parallel form, closed forms, the official names, and its card."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.kernels.short_convolution import short_convolution
from instar.mixers.gla import GLA

B, T, D, H = 3, 41, 16, 4
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/gla.toml", cards.Card)
KNOBS: list[dict[str, Any]] = [
    {},
    {"conv_size": 4},
    {"conv_size": 1},
    {"kv_heads": 2, "conv_size": 3, "feature_map": "elu"},
    {"gate": "scalar", "kv_heads": 1, "feature_map": "relu"},
    {"gate_floor": -0.03, "output_gate": False, "expand_k": 1.0, "expand_v": 2.0},
    {"gate_temperature": 0.1, "chunk": 8},
    *CARD.presets.values(),
]


def make(seed: int = 0, **knobs: Any) -> tuple[GLA, Tensor]:
    torch.manual_seed(seed)
    layer = GLA(D, heads=H, **knobs).double()
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
        loss = y.sin().sum() + state.S.sum() + sum(c.sum() for c in state.convolutions)
        found.append((y, state, torch.autograd.grad(loss, [z, *layer.parameters()], materialize_grads=True)))
    close(found[0], found[1])


def test_is_the_papers_parallel_form() -> None:
    """O = tril((Q ∘ Λ)(K / Λ)ᵀ) V with Λ the cumulative products of the gates; norm, output gate, projection."""
    layer, x = make(gate_temperature=4.0)
    q, k, v = (p(x).unflatten(-1, (H, -1)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    alpha = torch.sigmoid(layer.gk_proj(x)) ** (1 / 4.0)
    cumulative = alpha.unflatten(-1, (H, -1)).transpose(1, 2).cumprod(2)
    o = ((q * cumulative) @ (k / cumulative).mT).tril() / math.sqrt(D / 2 / H) @ v
    normed = F.rms_norm(o, (D // H,), layer.g_norm.weight, 1e-5).transpose(1, 2).flatten(2)
    close(layer(x)[0], layer.o_proj(normed * F.silu(layer.g_proj(x))), 1e-9)


def test_the_decay_of_retnet() -> None:
    layer, _ = make(gate="fixed")
    expected = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(H)], dtype=torch.float64)
    torch.testing.assert_close(layer.decay.squeeze(1).exp(), expected, rtol=0, atol=1e-7)


def test_gates_stay_above_their_floor() -> None:
    layer, x = make(gate_floor=-0.01, gate_temperature=1.0)
    g = layer._log_gate(x)
    assert g is not None
    assert g.min() == -0.01
    assert g.max() <= 0


def test_initial_weights() -> None:
    torch.manual_seed(0)
    layer = GLA(256, heads=4)
    bound = 2**-2.5 * math.sqrt(6 / (256 + 128))
    for projection in (layer.q_proj, layer.k_proj):
        assert 0.95 * bound < projection.weight.abs().max() <= bound
    for projection in (layer.v_proj, layer.g_proj, layer.o_proj):
        assert float(projection.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not layer.gk_proj[1].bias.any()
    g = layer._log_gate(torch.zeros(1, 1, 256))
    assert g is not None
    torch.testing.assert_close(g.exp(), torch.full_like(g, 0.5 ** (1 / 16)))


def test_weights_under_the_official_names_load() -> None:
    """Names and shapes of the authors' layer: hidden 32, 4 heads, 2 key heads, convolutions of 4, fused norm and gate."""
    official = {
        "q_proj.weight": (16, 32),
        "k_proj.weight": (8, 32),
        "v_proj.weight": (16, 32),
        "g_proj.weight": (32, 32),
        "gk_proj.0.weight": (16, 32),
        "gk_proj.1.weight": (8, 16),
        "gk_proj.1.bias": (8,),
        "q_conv1d.weight": (16, 1, 4),
        "k_conv1d.weight": (8, 1, 4),
        "v_conv1d.weight": (16, 1, 4),
        "g_norm_swish_gate.weight": (8,),
        "o_proj.weight": (32, 32),
    }
    weights = {name: torch.randn(shape) for name, shape in official.items()}
    names = list(weights)
    layer = GLA(32, heads=4, kv_heads=2, conv_size=4)
    layer.load_state_dict(weights)
    assert list(weights) == names
    assert torch.equal(layer.g_norm.weight, weights["g_norm_swish_gate.weight"])
    assert {n.replace("g_norm.", "g_norm_swish_gate.") for n in layer.state_dict()} == set(official)
    again = GLA(32, heads=4, kv_heads=2, conv_size=4)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(1, 5, 32)
    assert torch.equal(again(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    "knobs", [{}, {"conv_size": 4}, {"conv_size": 4, "kv_heads": 2}, {"gate": "none", "gate_rank": 0}], ids=str
)
def test_prefix_then_steps_is_the_whole_at_constant_size(knobs: dict[str, Any]) -> None:
    layer, x = make(**knobs)
    assert CARD.cost is not None
    settings_ = {"T": 0, "D": D, "H": H, "expand_k": 0.5, "expand_v": 1.0, "conv_size": 0, "kv_heads": 0, "gate_rank": 16} | knobs
    settings_.pop("gate", None)
    whole, end = layer(x)
    parts, state = layer(x[:, :13])
    for i in range(13, T):
        y, state = layer(x[:, i : i + 1], state)
        parts = torch.cat([parts, y], dim=1)
        assert states.nbytes(state) == 2 * B * formula.evaluate(CARD.cost.state, settings_)  # float64
    close((parts, state), (whole, end))


def test_only_a_gate_of_the_data_forgets_by_the_data() -> None:
    """Without a gate the past is a sum, whatever its order; with one, it is not."""
    order = torch.cat([torch.randperm(T - 1), torch.tensor([T - 1])])
    for knobs, same in (({"gate": "none", "gate_rank": 0}, True), ({"gate": "fixed", "gate_rank": 0}, False), ({}, False)):
        layer, x = make(**knobs)
        difference = (layer(x[:, order])[0][:, -1] - layer(x)[0][:, -1]).abs().max()
        assert (difference < 1e-10) == same


def test_a_token_that_closes_the_gate_starts_anew() -> None:
    layer, x = make(gate_temperature=1e-3)
    with torch.no_grad():
        layer.gk_proj[1].bias.fill_(-50.0)
    y, state = layer(x)
    close(y[:, -1:], layer(x[:, -1:])[0])
    close(state, layer(x[:, -1:])[1])


@settings(max_examples=30, deadline=None)
@given(cuts=st.sets(st.integers(1, 19), max_size=4), W=st.integers(1, 5), seed=st.integers(0, 99))
def test_short_convolution_is_that_of_torch_on_each_sequence(cuts: set[int], W: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(1, 20, 3, dtype=torch.float64), torch.randn(3, 1, W, dtype=torch.float64)
    mask, reset = torch.rand(1, 20) > 0.3, torch.zeros(1, 20, dtype=torch.bool)
    edges = [0, *sorted(cuts), 20]
    reset[0, edges[1:-1]] = True
    first = torch.randn(1, W - 1, 3, dtype=torch.float64)
    y, state = short_convolution(x, weight, first, mask=mask, reset=reset)
    for begin, end in pairwise(edges):
        past = first if begin == 0 else torch.zeros_like(first)
        real = mask[0, begin:end]
        inputs = torch.cat([past, x[:, begin:end][:, real]], dim=1)
        expected = F.conv1d(inputs.mT, weight, groups=3).mT if real.any() else inputs[:, :0]
        torch.testing.assert_close(y[:, begin:end][:, real], expected)
    torch.testing.assert_close(state, inputs[:, inputs.shape[1] - (W - 1) :])


@pytest.mark.parametrize("tokens", [64, 512])
def test_flops_follow_the_card(tokens: int) -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        GLA(128, heads=4)(torch.randn(1, tokens, 128))
    variables = {"T": tokens, "D": 128, "H": 4, "expand_k": 0.5, "expand_v": 1.0, "kv_heads": 0, "gate_rank": 16, "chunk": 64}
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(CARD.cost.flops, variables), rel=0.02)


def test_it_has_the_parameters_of_softmax_attention() -> None:
    """4 D², but for the gate."""
    count = {name: sum(p.numel() for p in GLA(128, **CARD.presets[name]).parameters()) for name in ("no_gate", "fixed_decay")}
    assert count == {"no_gate": 4 * 128**2 + 32, "fixed_decay": 4 * 128**2 + 32}
    assert sum(p.numel() for p in GLA(128).parameters()) == 4 * 128**2 + 32 + 16 * (128 + 64) + 64


@pytest.mark.parametrize("knobs", [{}, {"conv_size": 4, "gate": "scalar"}], ids=str)
def test_compiles_in_one_graph_with_the_same_result(knobs: dict[str, Any]) -> None:
    layer, x = make(**knobs)
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.1
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
    state = layer(x)[1]
    close(compiled(x, state, mask=mask, reset=reset), layer(x, state, mask=mask, reset=reset))


def test_bfloat16_keeps_a_float32_state() -> None:
    torch.manual_seed(0)
    layer, x = GLA(D, conv_size=4), torch.randn(B, T, D)
    want = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x)
    assert {leaf.dtype for leaf in states.leaves(state)} == {torch.float32}
    torch.testing.assert_close(y.float(), want, rtol=0, atol=3e-2)
    y, state = layer.bfloat16()(x.bfloat16())
    assert (y.dtype, state.S.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.float(), want, rtol=0, atol=5e-2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 3},
        {"heads": 0},
        {"kv_heads": 3},
        {"gate": "matrix"},
        {"gate_rank": 0},
        {"gate_temperature": 0.0},
        {"gate_floor": 0.5},
        {"feature_map": "softmax"},
        {"norm": "batch"},
        {"conv_size": -1},
        {"chunk": 48},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        GLA(D, **wrong)
