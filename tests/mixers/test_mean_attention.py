"""Mean attention: the closed form, softmax of equal scores, and its card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.mixers.mean_attention import MeanAttention
from instar.mixers.softmax import Softmax

B, T, D = 3, 41, 16
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/mean_attention.toml", cards.Card)


def test_is_the_mean_of_the_values_so_far() -> None:
    torch.manual_seed(0)
    layer, x = MeanAttention(D, bias=True).double(), torch.randn(B, T, D, dtype=torch.float64)
    mean = layer.v_proj(x).cumsum(1) / torch.arange(1, T + 1).unsqueeze(1)
    torch.testing.assert_close(layer(x)[0], layer.o_proj(mean), rtol=0, atol=1e-12)


def test_is_softmax_attention_whose_queries_are_zero() -> None:
    torch.manual_seed(0)
    layer, softmax = MeanAttention(D).double(), Softmax(D, heads=4).double()
    torch.nn.init.zeros_(softmax.q_proj.weight)
    softmax.load_state_dict(layer.state_dict(), strict=False)
    x, mask, reset = torch.randn(B, T, D, dtype=torch.float64), torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.1
    y, want = (mixer(x, mask=mask, reset=reset)[0][mask] for mixer in (layer, softmax))
    torch.testing.assert_close(y, want, rtol=0, atol=1e-12)


def test_costs_follow_the_card() -> None:
    assert CARD.cost is not None
    layer = MeanAttention(128)
    with FlopCounterMode(display=False) as counter:
        _, state = layer(torch.randn(1, 256, 128))
    sizes = {"T": 256, "D": 128, "H": 1, "block": 32}
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(CARD.cost.flops, sizes), rel=0.02)
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, sizes)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ShapeError, match="received"):
        MeanAttention(0)
    with pytest.raises(ShapeError, match="received"):
        MeanAttention(8, block=1)
