"""Linformer: full attention where its matrices are identities, its bounds, and its card."""

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
from instar.mixers.linformer import Linformer

B, T, D, H = 3, 24, 16, 2
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/linformer.toml", cards.Card)


def make(**knobs: Any) -> tuple[Linformer, Tensor]:
    torch.manual_seed(0)
    return Linformer(D, heads=H, **knobs).double(), torch.randn(B, T, D, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sharing", ["none", "headwise", "key_value"])
def test_with_identities_it_is_full_attention(sharing: Any) -> None:
    layer, x = make(rank=T, max_len=T, sharing=sharing)
    with torch.no_grad():
        for matrix in layer._matrices():
            matrix.copy_(torch.eye(T))
    want = layer.leave(F.scaled_dot_product_attention(*layer.project(x)))
    close(layer(x)[0], want)


def test_mixtures_are_invariant_to_a_rotation_of_their_order() -> None:
    """Attention does not know the order of its keys: permuted rows of E and F change nothing."""
    layer, x = make(rank=7, max_len=40)
    before = layer(x)[0]
    order = torch.randperm(7)
    with torch.no_grad():
        layer.E.copy_(layer.E[:, order])
        layer.F.copy_(layer.F[:, order])
    close(layer(x)[0], before)


def test_matrices_start_with_variance_one_over_k() -> None:
    layer, _ = make(rank=50, max_len=400, sharing="none")
    assert abs(float(layer.E.detach().var()) * 50 - 1) < 0.05
    assert abs(float(layer.F.detach().mean())) < 0.01


def test_padding_is_kept_out_of_the_mixtures() -> None:
    """Even where a bias makes keys of padding, and whatever stands in it."""
    layer, x = make(rank=7, max_len=40, bias=True)
    padded = F.pad(x, (0, 0, 0, 9), value=float("nan"))
    mask = (torch.arange(T + 9) < T).expand(B, -1)
    y, _ = layer(padded, mask=mask)
    assert bool(y.isfinite().all())
    close(y[:, :T], layer(x)[0])


def test_more_tokens_than_it_was_made_for_are_refused_with_both_numbers() -> None:
    layer, x = make(max_len=T)
    layer(x)
    reset = torch.zeros(B, 2 * T, dtype=torch.bool)
    reset[:, T] = True
    layer(x.repeat(1, 2, 1), reset=reset)  # two sequences in a row are not one
    with pytest.raises(ShapeError, match=f"{T} tokens; received {T + 1}"):
        layer(torch.zeros(1, T + 1, D, dtype=torch.float64))


def test_flops_follow_the_card() -> None:
    assert CARD.cost is not None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Linformer(128)(torch.randn(1, 256, 128))
    assert counter.get_total_flops() == formula.evaluate(CARD.cost.flops, {"T": 256, "D": 128, "H": 4, "rank": 64})


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"rank": 0}, {"max_len": 0}, {"sharing": "layerwise"}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Linformer(D, **{"heads": H, **wrong})
