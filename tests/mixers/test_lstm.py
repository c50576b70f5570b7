"""The LSTM: torch's layer on plain rows, its fused unit over packed segments against the equations, and the gates."""

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
from instar.mixers.lstm import LSTM, LSTMState

B, T, D = 4, 17, 12
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/lstm.toml", cards.Card)


def make() -> tuple[LSTM, Tensor]:
    torch.manual_seed(0)
    return LSTM(D).double(), torch.randn(B, T, D, dtype=torch.float64)


def equal(a: Any, b: Any) -> None:
    for one, other in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_is_torchs_layer() -> None:
    layer, x = make()
    peer = nn.LSTM(D, D, batch_first=True).double()
    peer.load_state_dict({f"{name}_l0": value for name, value in layer.cell.state_dict().items()})
    want, (hidden, cell) = peer(x)
    equal(layer(x), (want, (hidden[0], cell[0])))
    equal(layer.reference(x), (want, (hidden[0], cell[0])))


def test_packed_segments_with_empty_rows_equal_the_equations() -> None:
    """Outputs, both states and gradients, with a row of padding only and one whose last sequence is empty."""
    layer, x = make()
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.2
    mask[1] = False
    mask[2, 9:] = False
    reset[2, 12] = True
    start = LSTMState(*torch.randn(2, B, D, dtype=torch.float64).unbind())
    found = []
    for function in (layer.forward, layer.reference):
        z = x.clone().requires_grad_()
        y, state = function(z, start, mask=mask, reset=reset)
        loss = y[mask].sin().sum() + state.hidden.square().sum() + state.cell.sin().sum()
        found.append((y[mask], state, torch.autograd.grad(loss, [z, *layer.parameters()])))
    equal(found[0], found[1])
    assert not found[0][1].cell[2].any()


def test_gates_hold_and_write_the_cell() -> None:
    layer, x = make()
    with torch.no_grad():
        layer.cell.bias_ih[D : 2 * D] = 1e4  # forget nothing
        layer.cell.bias_ih[:D] = -1e4  # write nothing
    cell = torch.randn(B, D, dtype=torch.float64)
    equal(layer(x, LSTMState(torch.zeros_like(cell), cell))[1].cell, cell)


def test_costs_follow_the_card() -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        _, state = LSTM(D).reference(torch.randn(1, T, D))
    sizes = {"T": T, "D": D, "H": 1}
    assert counter.get_total_flops() == formula.evaluate(CARD.cost.flops, sizes)
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, sizes)


def test_impossible_widths_are_refused() -> None:
    with pytest.raises(ShapeError, match="width=0"):
        LSTM(0)
