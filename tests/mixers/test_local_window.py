"""Local windows: softmax attention where they are wide, dense attention under a band where they are not, and their card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.kernels.window_attention import pairs, window_attention
from instar.mixers.local_window import LocalWindow
from instar.mixers.softmax import Softmax

B, T, D, H = 3, 70, 16, 2
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/local_window.toml", cards.Card)


def make(**knobs: Any) -> tuple[LocalWindow, Tensor]:
    torch.manual_seed(0)
    return LocalWindow(D, heads=H, **knobs).double(), torch.randn(B, T, D, dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (2, 5), (40, 1), (69, 69)])
def test_kernel_is_dense_attention_under_a_band(before: int, after: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, B, H, T, 4, dtype=torch.float64).unbind()
    row = torch.arange(T)
    apart = row - row.unsqueeze(1)
    band = (apart >= -before) & (apart <= after)
    close(
        window_attention(q, k, v, torch.zeros(1, T, dtype=torch.int64), before=before, after=after),
        F.scaled_dot_product_attention(q, k, v, attn_mask=band),
    )


def test_kernel_reads_shared_columns_under_the_same_softmax() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, B, H, T, 4, dtype=torch.float64).unbind()
    more_k, more_v = torch.randn(2, B, H, 5, 4, dtype=torch.float64).unbind()
    seen = torch.rand(B, 5) > 0.4
    row = torch.arange(T)
    band = ((row - row.unsqueeze(1)).abs() <= 6).expand(B, 1, T, T)
    attend = torch.cat([band, seen[:, None, None].expand(-1, 1, T, -1)], dim=-1)
    want = F.scaled_dot_product_attention(q, torch.cat([k, more_k], 2), torch.cat([v, more_v], 2), attn_mask=attend)
    sequence = torch.zeros(1, T, dtype=torch.int64)
    close(window_attention(q, k, v, sequence, before=6, after=6, shared=(more_k, more_v, seen)), want)


@pytest.mark.parametrize("window", [T, T + 30])
def test_a_window_of_the_whole_sequence_is_softmax_attention(window: int) -> None:
    layer, x = make(window=window)
    softmax = Softmax(D, heads=H).double()
    softmax.load_state_dict(layer.state_dict())
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.05
    close(layer(x)[0], softmax(x)[0])
    close(layer(x, mask=mask, reset=reset)[0][mask], softmax(x, mask=mask, reset=reset)[0][mask])


def test_a_token_beyond_the_window_is_not_seen_and_one_inside_is() -> None:
    layer, x = make(window=9)
    changed = x.clone()
    changed[:, 20] += 1.0
    difference = (layer(changed)[0] - layer(x)[0]).abs().amax((0, 2))
    assert not difference[:20].any()
    assert bool((difference[20:29] > 0).all())
    assert not difference[29:].any()


def test_the_state_of_a_long_stream_is_its_window() -> None:
    """Without positions a stream continues as from its last w − 1 tokens alone."""
    layer, x = make(window=9, rope=False)
    _, long = layer(x[:, :50])
    _, short = layer(x[:, 42:50])
    close(layer(x[:, 50:], long)[0], layer(x[:, 50:], short)[0])
    assert CARD.cost is not None
    wanted = formula.evaluate(CARD.cost.state, {"D": D, "H": H, "T": 50, "window": 9})
    assert states.nbytes(layer.float()(x[:1].float())[1]) == wanted


@pytest.mark.parametrize(("tokens", "window"), [(1, 8), (64, 8), (65, 33), (200, 64)])
def test_flops_follow_the_card(tokens: int, window: int) -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        LocalWindow(D, heads=H, window=window)(torch.randn(1, tokens, D))
    expected = formula.evaluate(CARD.cost.flops, {"T": tokens, "D": D, "H": H, "window": window})
    assert counter.get_total_flops() == expected == 8 * tokens * D * D + 4 * D * pairs(tokens, window - 1)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"window": 1}, {"heads": 16}, {"rope_base": 0.0}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        LocalWindow(D, **{"heads": H, **wrong})


@pytest.mark.parametrize("window", [2, 9])
def test_a_stream_without_end_keeps_its_positions(window: int) -> None:
    """Only distances count, and angles of tens of millions would be rounded."""
    torch.manual_seed(0)
    layer = LocalWindow(16, heads=2, window=window)
    x = torch.randn(1, 30, 16)
    _, early = layer(x[:, :12])
    late = early._replace(position=early.position + 20_000_000)
    (near, _), (far, after) = layer(x[:, 12:], early), layer(x[:, 12:], late)
    assert torch.equal(near, far)
    assert int(after.position) == 20_000_030
