"""Nyströmformer: the pseudo-inverse, full attention where every token is a landmark, landmarks as means, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar.errors import ShapeError
from instar.kernels.pseudo_inverse import pseudo_inverse
from instar.mixers.nystromformer import Nystromformer

B, T, D, H = 2, 40, 16, 2
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/nystromformer.toml", cards.Card)


def make(**knobs: Any) -> tuple[Nystromformer, Tensor]:
    torch.manual_seed(0)
    layer = Nystromformer(D, heads=H, **knobs).double()
    with torch.no_grad():
        layer.q_proj.weight.mul_(3.0)  # weights that differ, so that their matrix has an inverse worth the name
        layer.k_proj.weight.mul_(3.0)
    return layer, torch.randn(B, T, D, dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_pseudo_inverse_converges_to_the_inverse_and_to_that_of_lower_rank() -> None:
    torch.manual_seed(0)
    A = torch.softmax(3 * torch.randn(5, 12, 12, dtype=torch.float64), dim=-1)
    close(pseudo_inverse(A, 40), torch.linalg.inv(A), 1e-6)
    low = torch.rand(4, 9, 3, dtype=torch.float64) @ torch.rand(4, 3, 9, dtype=torch.float64)
    close(pseudo_inverse(low, 15), torch.linalg.pinv(low, rtol=1e-10), 1e-6)
    apart = torch.stack([pseudo_inverse(a, 4) for a in A])
    close(pseudo_inverse(A, 4), apart)


@pytest.mark.parametrize("landmarks", [T, T + 20])
def test_with_every_token_a_landmark_it_is_full_attention(landmarks: int) -> None:
    """S S⁺ S = S, once the iteration has converged."""
    layer, x = make(landmarks=landmarks, iterations=60, conv_size=0)
    close(layer(x)[0], layer.leave(F.scaled_dot_product_attention(*layer.project(x))), 1e-6)


def test_tokens_that_are_equal_within_their_segments_are_attended_to_exactly() -> None:
    """Then landmarks are tokens, and S is made of rows and columns of A: the rank is at most m."""
    layer, x = make(landmarks=5, iterations=60, conv_size=0)
    x = x[:, :5].repeat_interleave(T // 5, dim=1)
    close(layer(x)[0], layer.leave(F.scaled_dot_product_attention(*layer.project(x))), 1e-7)


def test_the_convolution_stands_beside_it() -> None:
    layer, x = make(landmarks=8)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.weight[:, :, 33 // 2] = 1.0  # hands each value through
    plain, _ = make(landmarks=8, conv_size=0)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if not name.startswith("conv")})
    close(layer(x)[0], plain(x)[0] + layer.o_proj(layer.v_proj(x)))


def test_rows_of_a_batch_do_not_set_the_scale_of_each_other() -> None:
    layer, x = make(landmarks=8, iterations=2)
    extreme = torch.cat([x[:1], 50 * x[1:]])
    close(layer(extreme)[0][:1], layer(x[:1])[0])


@pytest.mark.parametrize("tokens", [256, 40])
def test_flops_follow_the_card(tokens: int) -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter:
        Nystromformer(128)(torch.randn(1, tokens, 128))
    sizes = {"T": tokens, "D": 128, "H": 4, "landmarks": 64, "iterations": 6, "conv_size": 33}
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(CARD.cost.flops, sizes), rel=0.01)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"landmarks": 0}, {"iterations": 0}, {"conv_size": 4}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Nystromformer(D, **{"heads": H, **wrong})


@pytest.mark.parametrize("tokens", [1, 2, 11, 23, 40])
def test_one_head_learns_from_rows_shorter_than_its_kernel(tokens: int) -> None:
    """oneDNN's gradient of a single channel's weights wrote beyond its memory there: the process ended."""
    torch.manual_seed(0)
    layer, x, found = Nystromformer(12, heads=1, landmarks=4), torch.randn(3, tokens, 12), []
    for form in (layer, layer.reference):
        layer.zero_grad()
        form(x)[0].square().sum().backward()
        assert layer.conv.weight.grad is not None
        found.append(layer.conv.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
