"""Hyena: numpy's convolutions, the formula of its filters, what a filter of zero leaves, shifts, damage, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import ShapeError
from instar.kernels.long_convolution import long_convolution
from instar.mixers.hyena import Hyena, HyenaState, ImplicitFilter

B, T, D = 2, 23, 4
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/hyena.toml", cards.Card)


def make(**knobs: Any) -> tuple[Hyena, Tensor]:
    torch.manual_seed(0)
    return Hyena(D, **{"horizon": 16, "filter_width": 8, **knobs}).double(), torch.randn(B, T, D, dtype=torch.float64)


@pytest.mark.parametrize("order", [2, 3])
def test_is_its_equations(order: int) -> None:
    """By numpy, channel by channel: v ← h^i * (x^i v) + b^i x^i v, the last gate first."""
    layer, x = make(order=order)
    with torch.no_grad():
        u = layer.in_proj(x)[0].numpy()
        taps = layer.filter(T).numpy().reshape(T, order - 1, D)
        weight, bias = layer.short.weight[:, 0].numpy(), layer.short.bias
        assert bias is not None
        short = np.stack([np.convolve(u[:, c], weight[c, ::-1])[:T] for c in range(len(weight))], axis=1) + bias.numpy()
        parts = np.split(short, order + 1, axis=1)
        v = parts[order]
        for n in range(order - 1):
            v = parts[order - 1 - n] * v
            v = np.stack([np.convolve(v[:, d], taps[:, n, d])[:T] for d in range(D)], axis=1) + layer.skip[n].numpy() * v
        want = layer.out_proj(torch.from_numpy(parts[0] * v))
        torch.testing.assert_close(layer(x)[0][0], want)


def test_filters_follow_their_formula_at_every_length() -> None:
    torch.manual_seed(1)
    made = ImplicitFilter(3, 10, 2, 5).double()
    with torch.no_grad():
        made.frequency.uniform_(0.5, 2.0)
        found = made(25)
        for place in (0, 1, 9, 24):
            features = [place / 9]
            features += [np.cos(2 * np.pi * f * place / 10) for f in (1e-4, 1.0)]
            features += [-np.sin(2 * np.pi * f * place / 10) for f in (1e-4, 1.0)]
            h = torch.tensor(features, dtype=torch.float64)
            for layer in (made.enter, *made.inner):
                h = (made.frequency * layer(h)).sin()
            fastest, slowest = np.log(100) / 0.3, np.log(100) / 1.5
            window = np.exp(-place / 9 * np.array([slowest, (slowest + fastest) / 2, fastest]))
            torch.testing.assert_close(found[place], torch.from_numpy(window) * made.leave(h))
        torch.testing.assert_close(made(7), found[:7])  # a tap is a function of its distance alone


def test_without_taps_a_product_of_gates_is_left() -> None:
    """And with one at distance k, the same product k tokens earlier meets the last gate."""
    layer, x = make()
    with torch.no_grad():
        layer.filter.leave.weight.zero_()
        u = torch.nn.functional.pad(layer.in_proj(x), (0, 0, 2, 0)).mT
        x0, x1, v = layer.short(u).mT.chunk(3, dim=-1)
        torch.testing.assert_close(layer(x)[0], layer.out_proj(x0 * layer.skip[0] * x1 * v))
    past = torch.randn(B, 5, D, dtype=torch.float64)
    taps = torch.zeros(5 + T, D, dtype=torch.float64)
    taps[3] = 1.0
    y, inputs = long_convolution(x, taps, past)
    torch.testing.assert_close(y, torch.cat([past[:, 2:], x], dim=1)[:, :T])
    assert torch.equal(inputs, torch.cat([past, x], dim=1))


def test_depends_on_distances_alone() -> None:
    layer, x = make(order=3)
    lead = torch.ones(B, T + 6, dtype=torch.bool)
    lead[:, :6] = False
    shifted = layer(torch.cat([torch.full_like(x[:, :6], torch.nan), x], dim=1), mask=lead)[0]
    torch.testing.assert_close(shifted[:, 6:], layer(x)[0])


@pytest.mark.parametrize("order", [2, 3])
def test_forward_equals_reference_with_a_state_padding_and_packing(order: int) -> None:
    layer, x = make(order=order)
    mask, reset = torch.rand(B, T) > 0.3, torch.rand(B, T) < 0.15
    past = torch.randn(B, 2, (order + 1) * D, dtype=torch.float64)
    start = HyenaState(past, torch.randn(B, 7, order - 1, D, dtype=torch.float64))
    found = []
    for function in (layer.forward, layer.reference):
        z = x.clone().requires_grad_()
        y, state = function(z, start, mask=mask, reset=reset)
        loss = y[mask].sin().sum() + state.inputs.square().sum()
        found.append((y[mask], *state, *torch.autograd.grad(loss, [z, *layer.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_what_is_not_finite_stays_behind_its_token() -> None:
    layer, x = make()
    broken = x.clone()
    broken[0, 10] = torch.inf
    y, state = layer(broken)
    want = layer(x)[0]
    torch.testing.assert_close(y[0, :10], want[0, :10])
    torch.testing.assert_close(y[1], want[1])
    assert not y[0, 10:].isfinite().any()
    assert not layer(x[:, :4], state)[0][0].isfinite().any()  # nor does a state forget it


def test_costs_follow_the_card() -> None:
    assert CARD.cost is not None
    tokens, width, order, inner = 256, 32, 3, 16
    with FlopCounterMode(display=False) as counter:  # which does not see the transforms
        _, state = Hyena(width, order=order, filter_width=inner)(torch.randn(1, tokens, width))
    variables = {"T": tokens, "D": width, "order": order, "filter_width": inner, "bands": 4}
    transforms = (order - 1) * 3 * width * 2.5 * (2 * tokens) * np.log2(2 * tokens)
    assert counter.get_total_flops() + transforms == pytest.approx(formula.evaluate(CARD.cost.flops, variables), rel=0.01)
    assert states.nbytes(state) == formula.evaluate(CARD.cost.state, variables)


@pytest.mark.parametrize("wrong", [{"order": 1}, {"horizon": 1}, {"bands": 0}, {"heads": 0}, {"filter_width": 0}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Hyena(D, **wrong)


def test_taps_that_are_too_few_are_refused() -> None:
    with pytest.raises(ShapeError, match="taps"):
        long_convolution(torch.zeros(1, 4, D), torch.zeros(5, D), torch.zeros(1, 2, D))
