"""The LMU layer: its equations, its parts, what the window forgets, and its card."""

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
from instar.kernels.legendre_memory import continuous, discretise
from instar.mixers.lmu import LMU, LMUState

B, T, D, ORDER = 2, 80, 12, 6
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/lmu.toml", cards.Card)


def make(**knobs: Any) -> tuple[LMU, Tensor]:
    torch.manual_seed(0)
    layer = LMU(D, **{"order": ORDER, "theta": 20.0, **knobs}).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer, torch.randn(B, T, D, dtype=torch.float64)


def test_is_its_equations() -> None:
    layer, x = make()
    A, write = discretise(*continuous(ORDER, 20.0), "zoh")
    m, outputs = torch.zeros(B, ORDER, dtype=torch.float64), []
    for t in range(T):
        u = F.relu(layer.u_proj(x[:, t]))
        m = m @ A.mT + u * write
        h = F.relu(torch.cat([m, x[:, t]], dim=-1) @ layer.h_proj.weight.mT + layer.h_proj.bias)
        outputs.append(layer.o_proj(h))
    y, state = layer(x)
    torch.testing.assert_close(y, torch.stack(outputs, dim=1))
    torch.testing.assert_close(state.m[:, 0], m)


@pytest.mark.parametrize("knobs", [{}, {"heads": 3}, {"discretisation": "bilinear"}], ids=str)
def test_forward_equals_reference_with_a_state_padding_and_packing(knobs: dict[str, Any]) -> None:
    layer, x = make(**knobs)
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.1
    start = LMUState(torch.randn(B, layer.heads, ORDER, dtype=torch.float64))
    found = []
    for function in (layer.forward, layer.reference):
        z = x.clone().requires_grad_()
        y, state = function(z, start, mask=mask, reset=reset)
        loss = y[mask].sin().sum() + state.m.square().sum()
        found.append((y[mask], state.m, *torch.autograd.grad(loss, [z, *layer.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_memories_have_inputs_of_their_own() -> None:
    layer, x = make(heads=3)
    want = layer(x)[1].m
    with torch.no_grad():
        layer.u_proj.weight[1] += 1.0
    got = layer(x)[1].m
    assert torch.equal(got[:, [0, 2]], want[:, [0, 2]])
    assert not torch.equal(got[:, 1], want[:, 1])


def test_a_closed_input_leaves_a_layer_of_single_tokens() -> None:
    """With no input above zero the memory stays empty and the order of tokens changes nothing."""
    layer, x = make()
    with torch.no_grad():
        layer.u_proj.bias.fill_(-1e4)
    y, state = layer(x)
    assert not state.m.any()
    order = torch.randperm(T)
    torch.testing.assert_close(layer(x[:, order])[0], y[:, order])


def test_what_left_the_window_is_forgotten() -> None:
    """Tokens further back than a few θ change outputs by nothing that counts."""
    layer, x = make()
    other = x.clone()
    other[:, 0] += 1.0
    apart = (layer(other)[0] - layer(x)[0]).detach().abs().amax(dim=(0, 2))
    assert float(apart[1]) > 1e-3
    assert float(apart[60:].max()) < 1e-4 * float(apart.max())


def test_starting_weights() -> None:
    torch.manual_seed(0)
    layer = LMU(256, heads=4)
    for projection in (layer.u_proj, layer.h_proj):
        assert float(projection.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert not projection.bias.detach().any()


@pytest.mark.parametrize("heads", [1, 4])
def test_costs_follow_the_card(heads: int) -> None:
    assert CARD.cost is not None
    sizes = {"T": 512, "D": 64, "H": heads, "order": 32}
    layer = LMU(64, heads=heads, order=32)
    with FlopCounterMode(display=False) as counter:
        _, state = layer(torch.randn(1, 512, 64))
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(CARD.cost.flops, sizes), rel=0.01)
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, sizes)


def test_bfloat16_keeps_a_float32_memory() -> None:
    """The fixed system is no parameter: it is not rounded with them."""
    torch.manual_seed(0)
    layer, x = LMU(D, order=ORDER, theta=20.0), torch.randn(B, T, D)
    want = layer(x)[0]
    y, state = layer.bfloat16()(x.bfloat16())
    assert (y.dtype, state.m.dtype, layer.memory.squares.dtype) == (torch.bfloat16, torch.float32, torch.float64)
    torch.testing.assert_close(y.float(), want, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "wrong", [{"heads": 0}, {"order": 0}, {"theta": -1.0}, {"discretisation": "euler"}, {"discretisation": "forward"}], ids=str
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError):
        LMU(D, **wrong)
