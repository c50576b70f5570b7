"""Batch normalisation over real tokens: torch's own where all are real, and what padding must not change."""

from __future__ import annotations

import torch
from torch import nn

from instar.mixers.batch_norm import BatchNorm

B, T, D = 3, 11, 4


def norms() -> tuple[BatchNorm, nn.BatchNorm1d]:
    torch.manual_seed(0)
    own, torchs = BatchNorm(D).double(), nn.BatchNorm1d(D).double()
    for p in own.parameters():
        nn.init.normal_(p)
    torchs.load_state_dict(own.state_dict())
    return own, torchs


def test_padding_changes_nothing_in_training_and_running_statistics() -> None:
    own, torchs = norms()
    x, mask = 3 + 2 * torch.randn(B, T, D, dtype=torch.float64), torch.rand(B, T) > 0.3
    y = own(x.masked_fill(~mask.unsqueeze(-1), 1e4), mask)
    torch.testing.assert_close(y[mask], torchs(x[mask]))
    torch.testing.assert_close(own.running_mean, torchs.running_mean)
    torch.testing.assert_close(own.running_var, torchs.running_var)
    own.eval(), torchs.eval()
    torch.testing.assert_close(own(x, mask)[mask], torchs(x[mask]))


def test_a_mask_of_real_tokens_alone_is_no_mask() -> None:
    one, _ = norms()
    other, _ = norms()
    x = torch.randn(B, T, D, dtype=torch.float64)
    torch.testing.assert_close(one(x), other(x, torch.ones(B, T, dtype=torch.bool)))
    torch.testing.assert_close(one.running_var, other.running_var)


def test_one_token_and_none() -> None:
    own, _ = norms()
    one = torch.randn(1, 1, D, dtype=torch.float64)
    torch.testing.assert_close(own(one), own.bias.expand(1, 1, D))
    assert own(one[:, :0]).shape == (1, 0, D)
    before = own.running_mean.clone()  # type: ignore[union-attr]
    assert own(one, torch.zeros(1, 1, dtype=torch.bool)).isfinite().all()
    assert torch.equal(before, own.running_mean)  # type: ignore[arg-type]


def test_sums_in_half_precision_do_not_overflow() -> None:
    """128 rows of 64 tokens around 10: their sum is beyond float16, and so is their square."""
    torch.manual_seed(0)
    x = (10 + 3 * torch.randn(128, 64, 4)).half()
    norm, exact = BatchNorm(4).half(), BatchNorm(4)
    mask = torch.ones(128, 64, dtype=torch.bool)
    y, want = norm(x, mask), exact(x.float(), mask)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), want, atol=5e-3, rtol=0)
    torch.testing.assert_close(norm.running_var.float(), exact.running_var, rtol=2e-3, atol=0)
