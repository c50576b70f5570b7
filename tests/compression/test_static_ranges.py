"""Simulated quantisation with one scale for each tensor: the quantiser's own laws, and a model that gets its bits back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from instar.compression.static_ranges import affine, bounds, calibrate, quantised
from instar.errors import DataError, ShapeError
from instar.models.decoder import Decoder
from instar.receipt import fingerprint


@settings(max_examples=50, deadline=None)
@given(st.floats(-50, 5), st.floats(0.1, 60), st.integers(2, 10), st.integers(0, 1000))
def test_the_grid(low: float, width: float, bits: int, seed: int) -> None:
    x = low + width * torch.rand(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[0] = 0.0
    high = low + width
    y = affine(x, low, high, bits)
    step = (max(high, 0.0) - min(low, 0.0)) / (2**bits - 1)
    assert (y - x).abs().max() <= step / 2 + 1e-9 * width + (
        step / 2 if low < 0 < high else 0
    )  # the rounded zero shifts the grid
    assert y[0] == 0
    assert len(y.unique()) <= 2**bits
    torch.testing.assert_close(affine(y, low, high, bits), y, rtol=0, atol=1e-9)
    beyond = affine(torch.tensor([100.0, -100.0], dtype=torch.float64), low, high, bits)
    assert beyond.max() <= max(high, 0) + step
    assert beyond.min() >= min(low, 0) - step


def test_bounds() -> None:
    x = torch.arange(-50.0, 51.0)[torch.randperm(101, generator=torch.Generator().manual_seed(0))].view(1, -1)
    assert bounds(x) == (-50.0, 50.0)
    assert bounds(x, 99.0) == (-49.0, 49.0)
    with pytest.raises(DataError, match="NaN"):
        bounds(torch.tensor([torch.nan]))


def decoder() -> tuple[Decoder, torch.Tensor]:
    torch.manual_seed(0)
    return Decoder(40, 32, 2, "softmax", heads=2), torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(1))


def test_a_range_of_one_batch_is_that_batch_and_more_batches_run() -> None:
    model, tokens = decoder()
    seen: list[torch.Tensor] = []
    hook = model.get_submodule("blocks.1.feed.down").register_forward_hook(lambda m, given, found: seen.append(found))
    ranges = calibrate(model, [tokens])
    assert ranges["blocks.1.feed.down.output"] == bounds(seen[0])
    running = calibrate(model, [tokens, tokens.flip(0)[:2] * 0 + 3], momentum=0.75)
    hook.remove()
    low, high = (0.75 * a + 0.25 * b for a, b in zip(bounds(seen[1]), bounds(seen[2]), strict=True))
    assert running["blocks.1.feed.down.output"] == pytest.approx((low, high))
    assert {"embedding.output", "norm.input", "norm.output", "blocks.0.mixer.o_proj.input"} <= set(ranges)


@pytest.mark.parametrize("static", [True, False])
def test_more_bits_come_closer_and_the_model_is_left_as_it_was(static: bool) -> None:
    model, tokens = decoder()
    model.train()
    before, plain = fingerprint(model), model(tokens)[0]
    ranges = calibrate(model, [tokens]) if static else None
    errors = []
    for bits in (4, 6, 8, 12):
        with quantised(model, ranges, weight_bits=bits, activation_bits=bits):
            assert not model.training
            errors.append(float((model(tokens)[0] - plain).abs().mean().detach()))
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < 0.02 * errors[0]
    assert fingerprint(model) == before
    assert model.training
    assert torch.equal(model(tokens)[0], plain)


def test_one_outlier_costs_a_tensor_its_scale_and_a_token_only_its_own() -> None:
    layer = nn.Linear(16, 16, bias=False)
    model = nn.Sequential(nn.Identity(), layer)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(16))
    x = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    x[0, 0, 3] = 500.0
    lost = []
    for ranges in (calibrate(model, [x]), None):
        with quantised(model, ranges):
            lost.append(float((model(x) - x)[0, 1:].square().mean().detach()))
    assert lost[0] > 1000 * lost[1]


def test_errors_leave_the_weights_alone() -> None:
    model, tokens = decoder()
    before = fingerprint(model)
    with pytest.raises(DataError, match="has no range"), quantised(model, {}):
        model(tokens)
    assert fingerprint(model) == before
    with pytest.raises(DataError, match="at least one batch"):
        calibrate(model, [])
    with pytest.raises(ShapeError, match="received 40"):
        calibrate(model, [tokens], percentile=40)
