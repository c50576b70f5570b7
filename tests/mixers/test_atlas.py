"""ATLAS, OmegaNet and Titans: DeltaNet as their special case, what they store, starting values, and their cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, catalogue, formula
from instar import state as states
from instar.errors import ShapeError
from instar.kernels.memory_network import Layer
from instar.mixers.atlas import Atlas
from instar.mixers.delta_net import DeltaNet
from instar.mixers.omeganet import OmegaNet
from instar.mixers.titans import Titans

B, T, D, H = 2, 21, 16, 4
FOLDER = Path(__file__).parents[2] / "src/instar/mixers"
METHODS = [Atlas, OmegaNet, Titans]


@pytest.mark.parametrize("cls", [OmegaNet, Titans])
def test_with_a_matrix_one_token_no_gate_and_chunks_of_one_it_is_delta_net(cls: Any) -> None:
    """The whole layer, its state and its gradients."""
    torch.manual_seed(0)
    special = {"window": 1, "degree": 1} if cls is OmegaNet else {"momentum": False}
    ours = cls(D, heads=H, matrices=1, chunk=1, largest_step=1.0, largest_gradient=0.0, **special).double()
    theirs = DeltaNet(D, heads=H, output_gate=True).double()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.5)
    shared = {name: p for name, p in theirs.state_dict().items() if not name.startswith("b_proj")}
    ours.load_state_dict(shared, strict=False)
    gates = ours.gate_proj
    with torch.no_grad():
        ours.initial[0].zero_()
        gates.weight.unflatten(0, (H, 2))[:, 0].zero_()
        gates.bias.unflatten(0, (H, 2)).copy_(torch.tensor([60.0, 0.0]))  # α = 1, and η = β
        gates.weight.unflatten(0, (H, 2))[:, 1].copy_(theirs.b_proj.weight)
    ours.o_norm.eps *= D // H  # DeltaNet divides what it reads by √K
    found = []
    for layer in (ours, theirs):
        x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        y, state = layer(x)
        S = state.memory.weights[0].mT if layer is ours else state.S
        found.append((y, S, torch.autograd.grad(y.sin().sum() + S.sin().sum(), x)[0]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cls", METHODS)
def test_costs_follow_the_card(cls: Any) -> None:
    card = cards.read(FOLDER / f"{cls.__name__.lower()}.toml", cards.Card)
    assert card.cost is not None
    tokens, width = 64, 64
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, state = cls(width, heads=4)(torch.randn(1, tokens, width))
    variables = catalogue.variables(cls, {"heads": 4}, T=tokens, D=width)
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(card.cost.flops, variables), rel=0.01)
    assert states.nbytes(state) == formula.evaluate(card.cost.state, variables)


def reader(weights: list[Tensor]) -> Layer:
    """One set of weights for each head."""
    return lambda i, x: (weights[i] @ x.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("cls", METHODS)
def test_a_pair_that_is_shown_again_and_again_is_learnt(cls: Any) -> None:
    """What is read under its key comes nearer to its value, in the mean of the heads."""
    torch.manual_seed(0)
    layer = cls(D, heads=H, chunk=1).double()
    errors = []
    with torch.no_grad():
        for name in "kv":
            nn.init.normal_(getattr(layer, f"{name}_proj").weight, std=0.5)
        layer.gate_proj.bias.unflatten(0, (H, -1))[:, 0] = 20.0  # nothing is forgotten
        x = torch.randn(1, 1, D, dtype=torch.float64).expand(1, 128, D)
        _, k, v = (part[:, -1] for part in layer._heads(layer._project(x) * layer._taps().sum(-1).T))  # convolutions full
        for tokens in (4, 128):
            weights = layer(x[:, :tokens])[1].memory.weights
            answer = layer.rule.network.answer(reader(weights), k, layer.features(k))
            errors.append(float((answer - v).norm() / v.norm()))
    assert errors[1] < 0.7 * errors[0]


def test_starting_values() -> None:
    torch.manual_seed(0)
    layer = Atlas(64, heads=4, window=3)
    with torch.no_grad():
        log_alpha, log_theta, eta, gamma = layer._gate_values(torch.zeros(1, 1, 64))
    assert log_theta is not None
    assert gamma is not None
    assert float(log_alpha[0, 0, 0].exp()) == pytest.approx(0.99, abs=0.001)
    assert float(log_theta[0, 0, 0].exp()) == pytest.approx(0.7, abs=0.01)
    assert float(eta[0, 0, 0]) == pytest.approx(0.1 / 8, rel=0.02)
    assert gamma.shape == (1, 1, 4, 3)
    assert float(gamma[0, 0, 0, 0]) == pytest.approx(0.9 / 3, abs=0.001)
    first, second = layer.initial
    assert first.shape == (4, 16, 64)
    assert second.shape == (4, 64, 153)
    assert float(first.detach().abs().max()) == pytest.approx((6 / 80) ** 0.5, rel=0.01)


def test_another_chunk_is_another_function() -> None:
    torch.manual_seed(0)
    layer, x = OmegaNet(D, heads=H, largest_step=4.0), torch.randn(1, 64, D)
    other = OmegaNet(D, heads=H, largest_step=4.0, chunk=4)
    other.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer(x)[0], other(x)[0], atol=1e-4)


def test_a_lagged_read_sees_whole_chunks_alone() -> None:
    """Beyond the convolution, tokens of an unfinished chunk see nothing of each other; the one that completes it sees all."""
    torch.manual_seed(0)
    layer = Titans(D, heads=H, chunk=8, lagged=True, conv_size=1).double()
    x = torch.randn(1, 16, D, dtype=torch.float64)
    moved = x.clone()
    moved[:, 9] += 1.0
    apart = (layer(moved)[0] - layer(x)[0]).abs().amax((0, 2)) > 1e-12
    assert apart.nonzero().flatten().tolist() == [9, 15]


def test_bfloat16_keeps_a_float32_state() -> None:
    torch.manual_seed(0)
    layer, x = Titans(D), torch.randn(B, T, D)
    want = layer(x)[0]
    y, state = layer.bfloat16()(x.bfloat16())
    assert {leaf.dtype for leaf in states.leaves(state) if leaf.is_floating_point()} == {torch.float32}
    torch.testing.assert_close(y.float(), want, rtol=0, atol=5e-2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 3},
        {"heads": 0},
        {"expansion": 0},
        {"chunk": 0},
        {"window": 0},
        {"degree": 0},
        {"conv_size": 0},
        {"matrices": 4},
        {"largest_step": 0.0},
        {"newton_schulz": -1},
        {"largest_gradient": -1.0},
        {"features": "cubic"},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Atlas(D, **wrong)
