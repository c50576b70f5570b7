"""Longformer: dense attention under its mask, full attention in a wide window, what global tokens carry, and its card."""

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
from instar.errors import ShapeError
from instar.mixers.longformer import Longformer

B, T, D, H = 2, 75, 16, 2
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/longformer.toml", cards.Card)


def make(**knobs: Any) -> tuple[Longformer, Tensor]:
    torch.manual_seed(0)
    return Longformer(D, heads=H, **knobs).double(), torch.randn(B, T, D, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("window", "g"), [(2, 0), (6, 1), (20, 3), (32, 80), (2 * T, 2)])
def test_is_dense_attention_under_its_boolean_mask(window: int, g: int) -> None:
    """At the start the global projections are copies, so that one dense attention says it all."""
    layer, x = make(window=window, global_tokens=g)
    place = torch.arange(T)
    attend = ((place.unsqueeze(1) - place).abs() <= window // 2) | (place < g) | (place < g).unsqueeze(1)
    close(layer(x)[0], layer.leave(F.scaled_dot_product_attention(*layer.project(x), attn_mask=attend)))
    if window == 2 * T:
        assert bool(attend.all())


def test_global_rows_have_projections_of_their_own() -> None:
    layer, x = make(window=4, global_tokens=2)
    before = layer(x)[0]
    with torch.no_grad():
        layer.q_global.weight.mul_(2.0)
    after = layer(x)[0]
    assert not torch.allclose(after[:, :2], before[:, :2])
    close(after[:, 2:], before[:, 2:])


def test_a_far_token_reaches_others_by_a_global_token_in_two_layers_and_not_without() -> None:
    for g, reached in ((1, True), (0, False)):
        layer, x = make(window=4, global_tokens=g)
        changed = x.clone()
        changed[:, -1] += 1.0
        twice = [layer(layer(given)[0])[0][:, 20] for given in (x, changed)]
        assert torch.equal(*twice) is not reached


@pytest.mark.parametrize(("tokens", "window", "g"), [(256, 64, 1), (100, 32, 0), (10, 64, 3)])
def test_flops_follow_the_card(tokens: int, window: int, g: int) -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Longformer(D, heads=H, window=window, global_tokens=g)(torch.randn(1, tokens, D))
    sizes = {"T": tokens, "D": D, "H": H, "window": window, "global_tokens": g}
    assert counter.get_total_flops() == formula.evaluate(CARD.cost.flops, sizes)


def test_memory_does_not_grow_with_the_square_of_the_length() -> None:
    """The largest tensor that is saved for the backward pass."""
    largest = {}
    for tokens in (512, 2048):
        layer, sizes = Longformer(D, heads=H, window=32), []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(torch.randn(1, tokens, D))
        largest[tokens] = max(sizes)
    assert largest[2048] <= 4.2 * largest[512]


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"window": 5}, {"window": 0}, {"global_tokens": -1}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Longformer(D, **{"heads": H, **wrong})
