"""EntroPE: tokens, entropies and boundaries are what they are said to be, and each part of the network is its definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from instar.checks.forecaster_world import panel
from instar.data.panel import of_array
from instar.errors import ShapeError
from instar.forecasting import windows
from instar.forecasting.entrope import EntroPE
from instar.forecasting.entrope_network import EntroPENetwork, pooled, turned
from instar.forecasting.entropy_model import EntropyModel, Quantiser
from instar.forecasting.entropy_patches import RULES, EntropyPatcher
from instar.mixers.positions import rotate

L = 40


def patcher(rule: str, **knobs: object) -> EntropyPatcher:
    torch.manual_seed(0)
    model = EntropyModel(64, L, width=16, depth=1, heads=2).eval()
    with torch.no_grad():  # away from its birth, at which all entropies are alike
        for parameter in model.parameters():
            parameter.mul_(8)
    return EntropyPatcher(model, Quantiser(64), rule=rule, **{"longest": 10, "level": 0.8, **knobs}).eval()  # type: ignore[arg-type]


def waves(count: int = 6) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, L).cumsum(1)


def test_tokens_are_bins_and_come_back_within_half_a_bin() -> None:
    quantiser = Quantiser(256)
    quantiser.set_range(-1.5, 2.5)
    x = torch.linspace(-1.5, 2.5, 500)[None] * 3
    scale = quantiser.scale(x)
    inside = torch.linspace(-1.5, 2.5, 500)[None] * scale
    tokens = quantiser(inside, scale)
    assert int(tokens.min()) == 5
    assert int(tokens.max()) == 255
    assert float((quantiser.values(tokens, scale) - inside).abs().max()) <= float(scale) * 4 / 250 / 2 * 1.001
    assert quantiser(torch.tensor([[-1e9, 1e9]]), torch.ones(1, 1)).tolist() == [[5, 255]]
    torch.testing.assert_close(quantiser(7 * x), quantiser(x))
    assert quantiser(torch.zeros(1, 5)).unique().numel() == 1
    with pytest.raises(ShapeError, match="low and a high"):
        quantiser.set_range(1.0, 1.0)


def test_entropies_lie_between_nothing_and_log_v_and_read_no_later_value() -> None:
    model = EntropyModel(64, L).eval()
    tokens = torch.randint(5, 64, (3, L))
    found = model.entropies(tokens)
    assert bool((found <= math.log(64) + 1e-5).all())
    later = tokens.clone()
    later[:, 20:] = 7
    torch.testing.assert_close(model.entropies(later)[:, :20], found[:, :20])
    with torch.no_grad():
        model.norm.weight.zero_()
    torch.testing.assert_close(model.entropies(tokens), torch.full((3, L), math.log(64)))
    assert 35_000 < sum(p.numel() for p in EntropyModel().parameters()) < 37_000
    with pytest.raises(ShapeError, match="at most 40 values"):
        model(torch.zeros(1, L + 1, dtype=torch.int64))


@pytest.mark.parametrize("rule", RULES)
def test_patches_cover_the_window_in_order_and_none_is_too_long(rule: str) -> None:
    cut = patcher(rule, level=0.05 if "threshold" in rule else 0.8)
    tokens, patch, entropy = cut(waves())
    assert bool((patch[:, 0] == 0).all())
    assert set(patch.diff(dim=1).unique().tolist()) <= {0, 1}
    assert int(patch.max()) < cut.most(L)
    starts = cut.starts(entropy, tokens)
    lengths = cut.lengths(starts)
    assert lengths.sum(1).tolist() == [L + 1] * len(tokens)
    if rule != "random":
        assert int(patch.unique(return_counts=True)[1].max()) <= 10 * len(tokens)
        runs = [row.unique(return_counts=True)[1].max() for row in patch]
        assert int(torch.stack(runs).max()) <= 10
    torch.testing.assert_close(cut(waves()[2:3])[1], patch[2:3])


def test_each_rule_is_its_definition() -> None:
    entropy = torch.rand(3, L)
    rises = torch.cat([torch.zeros(3, 1), entropy[:, 1:] - entropy[:, :-1]], dim=1)
    tokens = torch.zeros(3, L, dtype=torch.int64)
    expected = {
        "quantile": entropy > entropy.quantile(0.8, 1, keepdim=True),
        "threshold": (entropy > 0.8) & (rises > 0.1),
        "threshold_rise": rises > 0.8,
    }
    for rule, triggers in expected.items():
        found = patcher(rule, rise=0.1, longest=L).starts(entropy, tokens)
        assert torch.equal(found[:, 1:], triggers[:, :-1]), rule
    rising = patcher("quantile_rise", longest=L).starts(entropy, tokens)
    assert bool(rising[:, 1].all())  # position 0 triggers, so that the first patch has one value
    assert torch.equal(patcher("static").starts(entropy, tokens)[0].nonzero()[:, 0], torch.arange(0, L, 10))
    assert patcher("threshold", level=-1.0, rise=-9.0).starts(entropy, tokens).all()
    assert int(patcher("quantile", level=1.0, longest=L).starts(entropy, tokens).sum()) == 3
    assert patcher("random").starts(entropy, tokens).sum(1).tolist() == [4, 4, 4]


def test_long_patches_are_split_from_their_own_beginning() -> None:
    entropy = torch.zeros(1, L)
    entropy[0, 12] = 1.0
    found = patcher("quantile", level=0.99).starts(entropy, torch.zeros(1, L, dtype=torch.int64))
    assert found[0].nonzero()[:, 0].tolist() == [0, 10, 13, 23, 33]


def test_boundaries_by_thresholds_read_no_later_value() -> None:
    cut, x = patcher("threshold_rise", level=0.02), waves()
    tokens = cut.quantiser(x)
    later = tokens.clone()
    later[:, 25:] = 9
    before, after = (cut.starts(cut.model.entropies(t), t) for t in (tokens, later))
    assert torch.equal(before[:, :26], after[:, :26])
    assert not torch.equal(before, after)


def test_pooling_is_the_maximum_of_each_patch() -> None:
    z, patch = torch.randn(2, 6, 3), torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    found = pooled(z, patch, 4)
    for b in range(2):
        for p in range(4):
            members = z[b, patch[b] == p]
            torch.testing.assert_close(found[b, p], members.amax(0) if len(members) else torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_neighbours_turn_as_halves_do(dtype: torch.dtype) -> None:
    q = torch.randn(2, L, 3, 6).to(dtype).requires_grad_()
    apart = [0, 2, 4, 1, 3, 5]
    wanted = rotate((q[..., apart].transpose(1, 2),), torch.arange(L)[None], 1e4)[0].transpose(1, 2)
    (found,) = turned(q)
    assert found.dtype == dtype
    torch.testing.assert_close(found[..., apart], wanted)
    weights = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((y * w).sum(), q)[0] for y, w in ((found, weights), (wanted, weights[..., apart])))
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_patches_ask_what_they_may_read_and_places_behind_the_last_change_nothing() -> None:
    torch.manual_seed(0)
    for own in (False, True):
        module = EntroPENetwork(patcher("quantile"), L, 4, width=8, heads=2, dropout=0.0, own=own).eval()
        z, patch = torch.randn(2, L, 8), module.patcher(waves(2))[1]
        found = module.patches(z, patch)
        for b in range(2):
            for p in range(int(patch[b, -1]) + 1):
                reads = patch[b] == p if own else patch[b] <= p
                alone = pooled(z[b : b + 1], patch[b : b + 1], module.count)[:, p : p + 1]
                mask = torch.ones(1, 1, int(reads.sum()), dtype=torch.bool)
                torch.testing.assert_close(found[b, p], (alone + module.asking(alone, z[b : b + 1, reads], mask))[0, 0])
        x, before = waves(3).mT[None], module(waves(3).mT[None])
        module.count += 5
        torch.testing.assert_close(module(x), before)


def test_a_window_that_is_shifted_and_stretched_is_cut_and_forecast_alike() -> None:
    module = EntroPENetwork(patcher("quantile"), L, 4, width=8, heads=2, dropout=0.0).eval()
    x = 100 * waves(2).mT[None]
    torch.testing.assert_close(module(2 * x + 500), 2 * module(x) + 500, rtol=1e-3, atol=0.5)


def test_the_entropy_model_learns_first_and_is_frozen() -> None:
    forecaster = EntroPE(4, context=16, longest=8)
    forecaster.prepare(panel())
    model = forecaster.patcher.model
    born = {name: value.clone() for name, value in model.state_dict().items()}
    losses: list[float] = []
    forecaster.learn(panel(), steps=8, monitor=lambda step, loss: losses.append(loss))
    assert len(losses) == 8
    assert losses[0] == pytest.approx(math.log(256), abs=0.3)  # an entropy in nats, at its birth
    assert any(not torch.equal(value, born[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())
    forecaster.train()
    assert forecaster.network is not None
    assert forecaster.network.training
    assert not model.training
    taught = {name: value.clone() for name, value in model.state_dict().items()}
    forecaster.teaching = 0.0
    forecaster.learn(panel(), steps=2)
    assert all(torch.equal(value, taught[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rule", ["quantile", "threshold_rise", "static", "random"])
def test_known_cuts_change_nothing(rule: str) -> None:
    module = EntroPENetwork(patcher(rule, level=0.05 if rule == "threshold_rise" else 0.8), L, 4, width=8, heads=2).eval()
    x = waves(6).view(2, 3, L).mT
    starts = module.cuts(x)
    assert starts.shape == (2, 3, L)
    assert bool(starts[..., 0].all())
    assert torch.equal(module(x, starts=starts), module(x))


def test_each_window_is_cut_once_in_all_epochs_and_an_interrupted_training_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, cut = panel(), list[int]()
    entropies = EntropyModel.entropies

    def counted(model: EntropyModel, tokens: torch.Tensor) -> torch.Tensor:
        cut.append(len(tokens))
        return entropies(model, tokens)

    monkeypatch.setattr(EntropyModel, "entropies", counted)

    def learnt(stop: int = 0, folder: Path | None = None) -> EntroPE:
        torch.manual_seed(0)
        forecaster = EntroPE(4, context=16, longest=8, batch=8, teaching=0.0, lr=1e-2)
        forecaster.prepare(given)
        forecaster.learn(given, steps=20, monitor=lambda step, loss: step == stop, checkpoint=folder)
        return forecaster

    whole = learnt()
    count = len(windows.origins_of(given, 16, 4))
    assert 2 * count < 20 * 8  # several epochs
    assert sum(cut) == count * len(given.ids)
    learnt(stop=count // 8 + 2, folder=tmp_path)
    for one, other in zip(whole.state_dict().values(), learnt(folder=tmp_path).state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_taught_model_is_less_surprised_by_a_wave_than_by_noise() -> None:
    t = np.arange(400)
    draw = np.random.default_rng(0)
    both = np.stack([np.sin(2 * np.pi * t / 8), draw.normal(size=400)], axis=1)
    forecaster = EntroPE(4, context=32, vocabulary=32, longest=16, teaching=0.9, batch=16).fit(both, steps=70)
    assert isinstance(forecaster, EntroPE)
    x = torch.from_numpy(both[300:332].T).float()
    _, _, entropy = forecaster.patcher((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))
    assert float(entropy[0, 16:].mean()) < 0.95 * float(entropy[1, 16:].mean())


def test_it_learns_a_wave() -> None:
    wave = np.sin(2 * np.pi * np.arange(300) / 8)[:, None]
    forecaster = EntroPE(6, context=24, longest=8, dropout=0.0, batch=16, lr=1e-2).fit(wave[:240], steps=60)
    origins = np.arange(240, 290)
    error = windows.after(wave, origins, 6).numpy() - forecaster.forecast(of_array(wave), origins.tolist())
    assert float((error**2).mean()) < 0.2  # its variance is 0.5


def test_what_it_refuses() -> None:
    for knobs in ({"rule": "often"}, {"level": 1.5}, {"longest": 0}, {"heads": 3}, {"vocabulary": 5}, {"teaching": 1.0}):
        with pytest.raises(ShapeError):
            EntroPE(4, **knobs)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="no network"):
        EntroPE(4).patcher  # noqa: B018 - reading it is what is refused
