"""Trend and season taken apart around a network: superposition where it is linear, and the confound beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from instar.checks.forecaster_world import panel
from instar.errors import ShapeError
from instar.forecasting.decomposed import Decomposed, DecomposedNetwork


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x.mT).mT


def test_around_a_linear_map_it_is_a_linear_map() -> None:
    module = DecomposedNetwork(Linear(), "trend", 16, 4, 5).double()
    x, y = torch.randn(2, 16, 3).double(), torch.randn(2, 16, 3).double()
    rest = module(torch.zeros_like(x))
    torch.testing.assert_close(module(2 * x + y) - rest, 2 * (module(x) - rest) + module(y) - rest)


def test_with_a_kernel_of_one_row_the_network_sees_nothing_and_the_trend_everything() -> None:
    module = DecomposedNetwork(Linear(), "trend", 16, 4, 1).double()
    x = torch.randn(2, 16, 3).double()
    assert module.trend is not None
    torch.testing.assert_close(module(x), module.network(torch.zeros_like(x)) + module.trend(x.mT).mT)
    torch.testing.assert_close(module.trend(x.mT) - module.trend.bias, x.mean(1)[..., None].expand(-1, -1, 4))


def test_with_the_norm_in_its_place_a_shifted_and_stretched_window_is_forecast_so() -> None:
    module = DecomposedNetwork(Linear(), "norm", 16, 4, 5).double()
    x = torch.randn(2, 16, 3).double()
    torch.testing.assert_close(module(3 * x + 7), 3 * module(x) + 7, rtol=1e-4, atol=1e-4)


def test_what_the_inner_method_varies_and_reads_it_varies_and_reads_here() -> None:
    forecaster = Decomposed(4, context=16, method="itransformer:fifth")
    assert forecaster.covariates
    assert not forecaster.fixed_series
    assert (forecaster.lr, forecaster.rate) == (0.0, 5e-4)
    forecaster.prepare(panel())
    seen: list[int] = []
    forecaster.network.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[2]))  # type: ignore[union-attr]
    forecaster.learn(panel(), steps=2)
    assert seen == [1, 1]
    trained = sum(p.numel() for p in forecaster.parameters())
    assert trained == sum(p.numel() for p in forecaster.network.parameters())  # type: ignore[union-attr]


def test_what_it_refuses() -> None:
    for knobs in ({"method": "repeat_last"}, {"method": "entrope"}, {"method": "decomposed"}, {"way": "both"}, {"kernel": 4}):
        with pytest.raises(ShapeError):
            Decomposed(4, **knobs)  # type: ignore[arg-type]
