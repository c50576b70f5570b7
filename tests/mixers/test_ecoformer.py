"""EcoFormer: whole-number weights, the linear form, causal against both sides, its fit in training, and counted operations."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.bench.fit import fit
from instar.errors import ShapeError
from instar.mixers.bidirectional_ecoformer import BidirectionalEcoformer
from instar.mixers.ecoformer import Ecoformer
from instar.mixers.operations import Operations, of_ecoformer, of_softmax
from instar.models.refitting import refitting

B, T, D, H = 2, 45, 16, 2
BOTH = [Ecoformer, BidirectionalEcoformer]


def make(kind: type, **knobs: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    layer = kind(D, heads=H, iterations=20, seed=0, **knobs).double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    layer.refit(x)
    return layer, x


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def coded(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z, v = layer.project(x)
    return layer.codes(z, torch.ones(x.shape[:2], dtype=torch.bool)), v


def test_both_forms_are_explicit_weights_that_are_whole_numbers_and_sum_to_one() -> None:
    for kind in BOTH:
        layer, x = make(kind)
        b, v = coded(layer, x)
        w = b @ b.mT + layer.beta
        assert torch.equal(w, w.round())
        assert (int(w.min()) >= 1, int(w.max())) == (True, 2 * layer.bits + 1)
        w = w.tril() if kind is Ecoformer else w
        close(layer(x)[0], layer.leave(w / w.sum(-1, keepdim=True) @ v, x))
        # Products of codes are counts of unequal bits: c − 2 Ham.
        unequal = ((b > 0).unsqueeze(-2) ^ (b > 0).unsqueeze(-3)).sum(-1)
        assert torch.equal(b @ b.mT, (layer.bits - 2 * unequal).double())


def test_the_last_token_of_the_causal_form_reads_as_both_sides_do() -> None:
    """With one σ for all, the last token sees the whole sequence either way."""
    layer, x = make(Ecoformer)
    other = BidirectionalEcoformer(D, heads=H, own_sigma=False).double()
    other.load_state_dict(layer.state_dict())
    close(layer(x)[0][:, -1], other(x)[0][:, -1])


def test_order_size_and_equal_codes() -> None:
    layer, x = make(BidirectionalEcoformer)
    order = torch.randperm(T)
    close(layer(x[:, order])[0], layer(x)[0][:, order])
    z, _ = layer.project(x)
    longer, _ = layer.project(7.0 * x)
    close(z, longer)  # codes know directions alone
    layer.hashes.zero_()  # every bit +1
    mean = layer.v_proj(x).mean(1, keepdim=True).expand_as(x)
    close(layer(x)[0], layer.o_proj(mean))
    layer, _ = make(BidirectionalEcoformer)
    layer.beta = 1e9
    close(layer(x)[0], layer.o_proj(mean), 1e-6)


def test_the_released_numerator_is_the_other_one_without_its_mean() -> None:
    layer, x = make(BidirectionalEcoformer)
    released = copy.deepcopy(layer)
    released.released_numerator = True
    b, v = coded(layer, x)
    norm = (b @ b.mT + layer.beta).sum(-1, keepdim=True)
    missing = layer.beta * (v.sum(2, keepdim=True) - v) / norm
    close(layer(x)[0] - released(x)[0], layer.leave(missing, x))
    close(released(x)[0], released.reference(x)[0])


@pytest.mark.parametrize("kind", BOTH)
def test_a_fit_is_a_function_of_its_inputs_and_is_saved(kind: type) -> None:
    layer, x = make(kind)
    again = copy.deepcopy(layer)
    again.hashes.copy_(kind(D, heads=H, seed=0).hashes)
    before = torch.get_rng_state()
    again.refit(x)
    assert torch.equal(torch.get_rng_state(), before)
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, again.get_buffer(name)), name
    assert all(p.grad is None for p in again.parameters())
    fresh = kind(D, heads=H).double()
    assert not torch.equal(fresh.anchors, layer.anchors)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", BOTH)
def test_a_fit_does_not_look_at_padding_and_knows_sequences(kind: type) -> None:
    layer, x = make(kind)
    wide, packed = copy.deepcopy(layer), copy.deepcopy(layer)
    for one in (layer, wide, packed):
        one.hashes.copy_(kind(D, heads=H, seed=0).hashes)
    layer.refit(x)
    filled = torch.cat([x, torch.full((B, 3, D), torch.nan, dtype=torch.float64)], 1)
    mask = torch.arange(T + 3).expand(B, -1) < T
    wide.refit(filled, mask=mask)
    reset = torch.zeros(1, B * T, dtype=torch.bool)
    reset[0, T] = True
    packed.refit(x.reshape(1, B * T, D), reset=reset)
    for name, buffer in layer.named_buffers():
        close(wide.get_buffer(name), buffer)
        close(packed.get_buffer(name), buffer)


def test_activations_have_variance_one_and_mean_features_are_zero() -> None:
    layer, x = make(Ecoformer)
    features = layer.features(layer.project(x)[0], torch.ones(B, T, dtype=torch.bool))
    close(features.mean((0, 2)), torch.zeros(H, 25, dtype=torch.float64), 1e-6)  # buffers of `centre` are doubles here
    close((features @ layer.hashes.mT).square().mean((0, 2)), torch.ones(H, 16, dtype=torch.float64), 1e-6)


def test_too_few_tokens_for_the_anchors_are_refused() -> None:
    layer = Ecoformer(D, heads=H, support=25)
    with pytest.raises(ShapeError, match="received 24"):
        layer.refit(torch.randn(3, 8, D))
    layer.refit(torch.randn(4, 8, D))  # anchors of several sequences, where one is too short
    with pytest.raises(ShapeError, match="received 0"):
        layer.refit(torch.randn(30, 1, D))


class Stack(nn.Module):
    def __init__(self, **knobs: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Ecoformer(D, heads=H, bits=4, iterations=3, **knobs) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)[0]
        return x


def test_training_fits_before_its_first_step_and_then_when_due() -> None:
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))

    def changes(steps: int, **knobs: Any) -> list[int]:
        """Steps before which the anchors of the upper layer changed."""
        model, seen, found = Stack(**knobs), [], []
        seen.append(model.layers[1].anchors.clone())

        def watch(step: int, loss: float) -> None:
            now = model.layers[1].anchors.clone()
            if not torch.equal(now, seen[-1]):
                found.append(step - 1)
            seen.append(now)

        fit(model, lambda n: x, lambda m, rows: m(rows).square().mean(), steps=steps, lr=1e-2, monitor=watch)
        return found

    assert changes(5) == [0]
    assert changes(5, refit_every=2) == [0, 2, 4]


def test_refitting_goes_from_below_to_above_and_ends_with_its_block() -> None:
    model, x = Stack(), torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))
    by_hand = copy.deepcopy(model)
    with refitting(model):
        model(x)
        kept = [layer.anchors.clone() for layer in model.layers]
        model(2 * x.flip(1))  # the first call only
    with torch.no_grad():
        y = x
        for layer in by_hand.layers:
            layer.refit(y)
            y = y + layer(y)[0]
    for layer, other, anchors in zip(model.layers, by_hand.layers, kept, strict=True):
        assert torch.equal(layer.anchors, anchors)
        for name, buffer in layer.named_buffers():
            assert torch.equal(other.get_buffer(name), buffer)
    with refitting(model, step=3):
        model(2 * x.flip(1))
    assert torch.equal(model.layers[0].anchors, kept[0])


def test_counts_are_the_papers() -> None:
    """PVTv2-B0 at 224 × 224, softmax in the last stage of both; shares of one layer of 64 channels and 2 heads."""
    stages = list(zip((3136, 784, 196, 49), (32, 64, 160, 256), (1, 2, 5, 8), strict=True))
    softmax = eco = Operations(0, 0)
    for i, (tokens, width, heads) in enumerate(stages):
        for _ in range(2):
            softmax += of_softmax(tokens, width, heads)
            eco += of_softmax(tokens, width, heads) if i == 3 else of_ecoformer(tokens, width, heads, complete=False)
    assert (softmax.multiplications, softmax.additions) == (1_465_762_480, 1_443_212_288)
    assert (eco.multiplications, eco.additions) == (8_169_672, 37_563_008)
    assert eco.counted_picojoules == pytest.approx(0.064e9, rel=0.01)
    assert softmax.counted_picojoules == pytest.approx(6.72e9, rel=0.01)
    for tokens, share in ((49, 0.32), (196, 0.079), (784, 0.020), (3136, 0.005)):
        ratio = of_ecoformer(tokens, 64, 2, complete=False).counted_picojoules / of_softmax(tokens, 64, 2).counted_picojoules
        assert ratio == pytest.approx(share, rel=0.05)
    whole, told = of_ecoformer(196, 64, 2), of_ecoformer(196, 64, 2, complete=False)
    assert whole.multiplications - told.multiplications == 196 * 25 * 64
    with pytest.raises(ShapeError, match="width=63"):
        of_softmax(8, 63, 2)


@pytest.mark.parametrize("kind", BOTH)
def test_costs_follow_the_card(kind: type) -> None:
    name = {Ecoformer: "ecoformer"}.get(kind, "bidirectional_ecoformer")
    cost = cards.read(Path(__file__).parents[2] / f"src/instar/mixers/{name}.toml", cards.Card).cost
    assert cost is not None
    with FlopCounterMode(display=False) as counter:
        _, state = kind(128)(torch.randn(1, 256, 128))
    sizes = {"T": 256, "D": 128, "H": 4, "chunk": 64, "bits": 16, "support": 25}
    assert counter.get_total_flops() == pytest.approx(formula.evaluate(cost.flops, sizes), rel=0.03)
    assert states.nbytes(state) == formula.evaluate(cost.state, sizes)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"bits": 0}, {"step": 0.0}, {"iterations": -1}, {"chunk": 48}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        Ecoformer(D, **{"heads": H, **wrong})


@pytest.mark.parametrize("kind", BOTH)
def test_each_layer_starts_from_hashes_of_its_own_and_saves_what_a_fit_draws_by(kind: type) -> None:
    torch.manual_seed(0)
    one, other = kind(D, heads=H), kind(D, heads=H)
    assert not torch.equal(one.hashes, other.hashes)
    other.load_state_dict(one.state_dict())
    x = torch.randn(B, T, D)
    one.refit(x)
    other.refit(x)
    assert torch.equal(one.anchors, other.anchors)
