"""What MKOR and K-FAC do whichever way a layer is stored, called, frozen, copied and cast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from instar.optim.kfac import KFAC
from instar.optim.mkor import MKOR

MAKERS: list[Any] = [
    lambda model: MKOR(model, "sgd", lr=0.05, f=1, factor_dtype="float32"),
    lambda model: KFAC(model, lr=0.05, f=1),
]
either = pytest.mark.parametrize("make", MAKERS, ids=["mkor", "kfac"])


def images(memory_format: torch.memory_format, make: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=memory_format)
    optimiser = make(model)
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.randn(16, 3, 8, 8)).square().mean().backward()
        optimiser.step()
    return model


@either
def test_channels_last_is_preconditioned_as_well(make: Any) -> None:
    plain, last = images(torch.contiguous_format, make), images(torch.channels_last, make)
    for p, q in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-6)
