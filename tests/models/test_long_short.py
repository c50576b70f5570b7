"""Long-short contrastive learning: InfoNCE in closed form, how much is masked, who learns, and what it is for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.models.long_short import LongShort, info_nce, left_in
from instar.models.momentum import MomentumCopy


class Mean(nn.Module):
    """The mean over unmasked tokens, projected."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        self.masks.append(mask)
        return self.linear((x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_of_orthonormal_pairs_in_closed_form(temperature: float) -> None:
    """q_i = k_i orthonormal: log(1 + (B - 1) e^{-1/T}); all keys alike: log B, whatever their length."""
    rows = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0][:5]
    found = info_nce(3 * rows, rows, temperature)
    assert float(found) == pytest.approx(math.log1p(4 * math.exp(-1 / temperature)), rel=1e-5)
    assert float(info_nce(rows, rows[:1].expand(5, -1), temperature)) == pytest.approx(math.log(5), rel=1e-5)


@pytest.mark.parametrize(("share", "kept"), [(0.0, 10), (0.25, 8), (0.5, 5), (0.99, 1)])
def test_a_share_of_each_row_is_masked_anew(share: float, kept: int) -> None:
    torch.manual_seed(0)
    mask = left_in(200, 10, share)
    assert mask.sum(1).tolist() == [kept] * 200
    if kept < 10:
        assert float(mask.double().mean(0).std()) < 0.06
        assert not torch.equal(mask, left_in(200, 10, share))


def test_the_loss_is_symmetric_masks_tokens_and_moves_only_the_query() -> None:
    torch.manual_seed(0)
    encoder = Mean()
    contrast = LongShort(encoder, 8)
    long, short = torch.randn(4, 20, 6), torch.randn(4, 12, 6)
    loss = contrast(long, short)
    assert [(mask.shape[1], mask.sum(1).tolist()) for mask in encoder.masks] == [(20, [10] * 4), (12, [9] * 4)]
    loss.backward()
    assert all(p.grad is not None for p in contrast.parameters())
    assert not any(b.requires_grad for b in contrast.key.buffers())
    plain = LongShort(encoder, 8, long_out=0.0, short_out=0.0)
    torch.testing.assert_close(plain(long, long[:, :12]), plain(long[:, :12], long))


def test_views_of_one_clip_come_to_resemble_each_other() -> None:
    """Clips with a mean of their own each: the loss falls far below log B."""
    torch.manual_seed(0)
    contrast = LongShort(Mean(), 8, momentum=0.9)
    optimiser = torch.optim.Adam(contrast.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        long = torch.randn(16, 1, 6) + 0.3 * torch.randn(16, 20, 6)
        loss = contrast(long, long[:, 5:15])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * math.log(16) < losses[0]


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"long_out": 1.0}, {"short_out": -0.1}, {"momentum": 2.0}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        LongShort(Mean(), 8, **wrong)


def test_a_copy_follows_a_source_whose_parameters_are_shared() -> None:
    source = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    source[1].weight = source[0].weight
    copied = MomentumCopy(source, 0.5)
    before = source[0].weight.detach().clone()
    copied.follow(source)
    with torch.no_grad():
        source[0].weight.add_(1.0)
    copied.follow(source)
    for layer in copied.copy:
        torch.testing.assert_close(layer.weight, before + 0.5)
