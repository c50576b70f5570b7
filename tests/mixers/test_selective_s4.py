"""Selective S4: which tokens stay, what reaches no output, gradients through the choice, the copy that follows, and its card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, catalogue, formula
from instar.errors import ShapeError
from instar.mixers.selective_s4 import SelectiveS4, choosing_nothing
from instar.mixers.selective_tokens import FixedTokens, SelectiveTokens
from instar.models.momentum import MomentumCopy

B, T, D = 3, 20, 8
CARD = cards.read(Path(__file__).parents[2] / "src/instar/mixers/selective_s4.toml", cards.Card)


def make(**knobs: Any) -> tuple[SelectiveS4, Tensor]:
    torch.manual_seed(0)
    layer = SelectiveS4(D, **{"state_size": 4, **knobs}).double().eval()
    return layer, torch.randn(B, T, D, dtype=torch.float64)


def choose(layer: SelectiveTokens, x: Tensor, real: Tensor | None = None) -> Any:
    return layer(x, x, torch.ones(x.shape[:2], dtype=torch.bool) if real is None else real)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 1.0])
def test_exactly_k_of_the_real_tokens_stay_in_their_order(keep: float, training: bool) -> None:
    torch.manual_seed(0)
    layer = SelectiveTokens(D, keep=keep).train(training)
    lengths = torch.tensor([20, 13, 1, 0])
    real = torch.arange(20) < lengths.unsqueeze(1)
    x = torch.randn(4, 20, D)
    found = choose(layer, x, real)
    for row, n in enumerate(lengths.tolist()):
        kept = found.places[row][found.kept[row]]
        assert len(kept) == math.ceil(keep * n - 1e-9)
        assert bool((kept.diff() > 0).all())
        assert bool((kept < n).all())
        torch.testing.assert_close(found.tokens[row][found.kept[row]], x[row, kept], rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rule", ["random", "stride"])
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 1.0])
def test_controls_keep_as_many_and_look_at_nothing(keep: float, rule: Any, training: bool) -> None:
    torch.manual_seed(0)
    controls = FixedTokens(keep=keep, rule=rule).train(training)
    x, real = torch.randn(300, 17, 4), torch.ones(300, 17, dtype=torch.bool)
    real[0, :8] = real[1, 12:] = False
    found = controls(x, x, real)
    for row in range(300):
        own = found.places[row][found.kept[row]].tolist()
        assert own == sorted(set(own))
        assert len(own) == math.ceil(keep * int(real[row].sum()) - 1e-9)
        assert bool(real[row, own].all())
        assert torch.equal(found.tokens[row, : len(own)], x[row, own])
    places = found.places[2:]
    if rule == "stride" or not training:
        assert torch.equal(places, places[:1].expand_as(places))
        assert torch.equal(controls(2 * x, x, real).places, found.places)
    elif keep < 1:
        assert len(places.unique(dim=0)) > 10
        share = torch.zeros(17).index_add(0, places.flatten(), torch.ones(places.numel())) / 298
        assert float((share - len(places[0]) / 17).abs().max()) < 0.12
    if rule == "stride" and keep < 1:
        gaps = places[0].diff()
        assert int(gaps.max() - gaps.min()) <= 1 if len(gaps) else True


@pytest.mark.parametrize("guide", ["random", "stride"])
def test_controls_stand_where_the_choice_does(guide: Any) -> None:
    torch.manual_seed(0)
    layer = SelectiveS4(8, guide=guide, state_size=4).eval()
    assert not any("select" in name or "momentum" in name for name, _ in layer.named_parameters())
    x = torch.randn(2, 11, 8)
    torch.testing.assert_close(layer(x)[0], layer.reference(x)[0], rtol=1e-4, atol=1e-5)
    left = F.pad(x, (0, 0, 3, 0))
    mask = torch.arange(14).expand(2, -1) >= 3
    torch.testing.assert_close(layer(left, mask=mask)[0][:, 3:], layer(x)[0], rtol=1e-4, atol=1e-5)


def test_the_most_probable_stay_and_noise_is_gumbels() -> None:
    """Without noise the largest; with it token i is the one that stays as often as softmax(log p) says."""
    torch.manual_seed(0)
    layer = SelectiveTokens(D, keep=0.2).eval()
    x = torch.randn(1, 5, D)
    found = choose(layer, x)
    assert found.places.item() == found.probability.argmax().item()
    with torch.no_grad():
        layer.logits.weight.mul_(30.0)
    wanted = torch.softmax(choose(layer, x).probability.log(), dim=1)[0]
    draws = choose(layer.train(), x.expand(20_000, -1, -1)).places.flatten().bincount(minlength=5) / 20_000
    torch.testing.assert_close(draws, wanted, rtol=0, atol=0.015)


def test_the_gradient_is_that_of_tokens_weighted_by_p() -> None:
    torch.manual_seed(0)
    layer = SelectiveTokens(D, keep=0.5).double().eval()
    x, weight = torch.randn(1, 10, D, dtype=torch.float64), torch.randn(5, D, dtype=torch.float64)
    found = choose(layer, x)
    hard = torch.autograd.grad((found.tokens[0] * weight).sum(), list(layer.parameters()))
    p = choose(layer, x).probability[0, found.places[0]]
    soft = torch.autograd.grad((x[0, found.places[0]] * p.unsqueeze(1) * weight).sum(), list(layer.parameters()))
    for one, other in zip(hard, soft, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert max(float(g.abs().max()) for g in hard) > 0


def test_a_token_left_out_reaches_no_output_and_gives_none() -> None:
    """Moved so that the choice stays, it changes no bit; all kept, the layer is S4."""
    layer, x = make(guide="tokens", keep=0.5)
    y = layer(x)[0]
    given = (y != 0).any(-1)
    assert given.sum(1).tolist() == [10] * B
    moved = x + 1e-6 * (~given).unsqueeze(-1) * torch.randn_like(x)
    again = layer(moved)[0]
    assert torch.equal((again != 0).any(-1), given)
    assert torch.equal(again, y)
    layer, x = make(keep=1.0)
    torch.testing.assert_close(layer(x)[0], layer.s4(x)[0], rtol=0, atol=0)


def test_kept_tokens_are_neighbours_for_s4() -> None:
    layer, x = make(keep=0.25)
    y = layer(x)[0]
    for row in range(B):
        place = (y[row] != 0).any(-1).nonzero().flatten()
        torch.testing.assert_close(y[row, place], layer.s4.reference(x[row : row + 1, place])[0][0], rtol=1e-9, atol=1e-9)


def test_the_same_generator_gives_the_same_output() -> None:
    layer, x = make()
    layer.train()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(layer(x)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("fused", [False, True])  # torch's fused optimisers do not count what they write
def test_the_copy_follows_once_a_step_and_no_gradient_reaches_it(fused: bool) -> None:
    """θ_m ← μ θ_m + (1 - μ) θ, at the first training pass after the weights changed."""
    layer, x = make(momentum=0.9)
    assert layer.momentum_s4 is not None
    layer.train()
    start = {name: b.clone() for name, b in layer.momentum_s4.copy.named_buffers()}
    assert start.keys() == {name for name, _ in layer.s4.named_parameters()}
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, fused=fused)
    layer(x)[0].square().sum().backward()
    assert all(torch.equal(b, start[name]) for name, b in layer.momentum_s4.copy.named_buffers())
    grads = [p.grad for p in layer.select.parameters()]
    assert all(g is not None and float(g.abs().max()) > 0 for g in grads)
    assert not any(b.requires_grad for b in layer.buffers())
    optimiser.step()
    for _ in range(3):  # further passes of the same step move nothing more
        layer(x)
    layer.eval()(x)
    for name, parameter in layer.s4.named_parameters():
        want = 0.9 * start[name] + 0.1 * parameter.detach()
        torch.testing.assert_close(layer.momentum_s4.copy.get_buffer(name), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_of_momentum(momentum: float) -> None:
    """0 copies, 1 freezes; whole numbers are copied, and the copy stays in eval mode."""
    source = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    twin = MomentumCopy(source, momentum).train()
    start = [b.clone() for b in twin.copy.buffers() if b.is_floating_point()]
    source(torch.randn(4, 2))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    twin.follow(source)
    theirs = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    for name, b in twin.copy.named_buffers():
        if not b.is_floating_point() or momentum == 0:
            assert torch.equal(b, theirs[name])
    if momentum == 1:
        assert all(map(torch.equal, start, [b for b in twin.copy.buffers() if b.is_floating_point()]))
    x = torch.randn(4, 2)
    assert torch.equal(twin(x), twin(x))
    assert not list(twin.parameters())


def test_pre_training_chooses_nothing() -> None:
    layer, x = make(keep=0.25)
    whole = layer.s4(x)[0]
    with choosing_nothing(nn.ModuleList([layer])):
        assert torch.equal(layer(x)[0], whole)
    assert layer.keep == 0.25


@pytest.mark.parametrize("guide", ["momentum", "tokens", "random"])
def test_costs_follow_the_card(guide: str) -> None:
    assert CARD.cost is not None
    tokens, width, size = 512, 64, 16
    knobs = {"state_size": size, "keep": 0.5, "guide": guide}
    layer = SelectiveS4(width, **knobs).eval()  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter:  # which does not see the transforms
        layer(torch.randn(1, tokens, width))
    variables = catalogue.variables(SelectiveS4, knobs, T=tokens, D=width)
    lengths = (tokens, tokens // 2) if guide == "momentum" else (tokens // 2,)
    transforms = sum(3 * width * 2.5 * (2 * n) * math.log2(2 * n) for n in lengths)
    assert counter.get_total_flops() + transforms == pytest.approx(formula.evaluate(CARD.cost.flops, variables), rel=0.02)


@pytest.mark.parametrize(
    "wrong", [{"keep": 0.0}, {"keep": 1.5}, {"guide": "nobody"}, {"momentum": 1.1}, {"temperature": 0.0}, {"width": 3}], ids=str
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        SelectiveS4(wrong.pop("width", D), **wrong)


def test_the_guide_is_pre_trained_with_its_source() -> None:
    """What chooses nothing in pre-training chooses afterwards, from what was learnt in it."""
    layer, x = make(momentum=0.5, keep=0.25)
    assert layer.momentum_s4 is not None
    layer.train()
    optimiser = torch.optim.SGD(layer.s4.parameters(), lr=0.1)
    born = {name: b.clone() for name, b in layer.momentum_s4.copy.named_buffers()}
    with choosing_nothing(nn.ModuleList([layer])):
        for _ in range(6):
            optimiser.zero_grad()
            layer(x)[0].square().sum().backward()
            optimiser.step()
        layer(x)
    for name, parameter in layer.s4.named_parameters():
        moved = (parameter - born[name]).detach().abs().max()
        assert float((layer.momentum_s4.copy.get_buffer(name) - born[name]).abs().max()) > 0.5 * float(moved)


def test_chance_is_another_one_in_each_layer() -> None:
    torch.manual_seed(0)
    chosen = []
    for _ in range(40):
        layer = FixedTokens(keep=0.5).eval()
        chosen.append(choose(layer, torch.zeros(1, 64, D)).places[0])  # type: ignore[arg-type]
    kept = torch.zeros(40, 64).scatter(1, torch.stack(chosen), 1.0)
    assert bool((kept.sum(1) == 32).all())
    share = kept.mean(0)  # of layers that keep a place: a binomial
    assert float(share.min()) > 0.1
    assert float(share.max()) < 0.9
    both = (kept[:20] * kept[20:]).mean()
    assert 0.2 < float(both) < 0.3  # independent, not the same half twice
