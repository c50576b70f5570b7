"""The mixers against attention with the same weights, and their cards; the layers against torch's attention and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instar import cards, formula
from instar import state as states
from instar.errors import CheckpointError, ShapeError
from instar.mixers.bidirectional_hopfield import BidirectionalHopfield
from instar.mixers.hopfield import CausalHopfield
from instar.mixers.hopfield_layers import Hopfield, HopfieldLayer, HopfieldPooling
from instar.mixers.hopfield_network import HopfieldNetwork
from instar.mixers.softmax import Softmax

B, T, D, H = 2, 9, 16, 4
MIXERS: dict[str, Any] = {"hopfield": CausalHopfield, "bidirectional_hopfield": BidirectionalHopfield}
CARDS = {name: cards.read(Path(__file__).parents[2] / f"src/instar/mixers/{name}.toml", cards.Card) for name in MIXERS}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def stir(layer: nn.Module) -> Any:
    """float64, with weights away from their small starts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer.double().eval()


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_without_norms_and_updates_the_mixer_is_softmax_attention() -> None:
    own, plain = stir(CausalHopfield(D, heads=H, normalize=False, bias=False)), Softmax(D, heads=H, rope=False).double()
    plain.load_state_dict(own.state_dict())
    assert torch.equal(own(x(B, T, D))[0], plain(x(B, T, D))[0])


def test_the_weights_shown_are_those_after_the_updates() -> None:
    layer = stir(CausalHopfield(D, heads=H, steps=3, beta=2.0))
    values = layer.v_proj(layer.norms.projection(x(B, T, D))).unflatten(-1, (H, -1)).transpose(1, 2)
    read = (layer.attention(x(B, T, D)) @ values).transpose(1, 2).flatten(2)
    close(layer.o_proj(read), layer(x(B, T, D))[0])


def test_the_last_token_reads_the_same_with_and_without_causality() -> None:
    causal = stir(CausalHopfield(D, heads=H, steps=2))
    both = BidirectionalHopfield(D, heads=H, steps=2).double()
    both.load_state_dict(causal.state_dict())
    close(causal(x(B, T, D))[0][:, -1], both(x(B, T, D))[0][:, -1])


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_costs_follow_the_card(name: str, steps: int) -> None:
    cost, layer = CARDS[name].cost, MIXERS[name](128, steps=steps, eps=1e-30)
    assert cost is not None
    # The counter knows nothing of the fused attention of a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        _, state = layer(torch.randn(1, 256, 128))
    sizes = {"T": 256, "D": 128, "H": 4, "steps": steps}
    assert counter.get_total_flops() == formula.evaluate(cost.flops, sizes)
    assert states.nbytes(state) == formula.evaluate(cost.state, sizes)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"steps": -2}, {"eps": 0.0}, {"beta": -1.0}], ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_impossible_settings_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="received"):
        MIXERS[name](D, **wrong)


OFF = {f"normalize_{name}": False for name in ("stored_pattern", "state_pattern", "pattern_projection")}


def test_without_norms_the_layer_is_torchs_multihead_attention() -> None:
    own, theirs = stir(Hopfield(D, num_heads=H, **OFF)), nn.MultiheadAttention(D, H, batch_first=True).double()
    weights = {name.removeprefix("association_core."): value for name, value in own.state_dict().items()}
    theirs.load_state_dict({name: value for name, value in weights.items() if not name.endswith("_extra_state")})
    stored, state, padding = x(B, 7, D), x(B, 5, D), torch.zeros(B, 7, dtype=torch.bool)
    padding[1, 4:] = True
    mask = torch.rand(B * H, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[:, :, 0] = False
    for flags, torchs in (
        ({}, {}),
        ({"stored_pattern_padding_mask": padding}, {"key_padding_mask": padding}),
        ({"association_mask": mask}, {"attn_mask": mask}),
    ):
        want, average = theirs(state, stored, stored, **torchs)
        close(own((stored, state, stored), **flags), want)
        close(own.get_association_matrix((stored, state, stored), **flags).mean(1), average)


def test_the_pure_network_retrieves_as_the_network_does() -> None:
    patterns, state = x(1, 12, 6), x(1, 20, 6)
    settled, _ = HopfieldNetwork(patterns[0], 1.3).retrieve(state[0], eps=1e-10)
    pure = Hopfield.pure(1.3, update_steps_eps=1e-10)
    assert not list(pure.parameters())
    close(pure((patterns, state, patterns))[0], settled, 1e-8)


def test_a_head_with_its_own_beta_is_a_layer_of_one_head_with_it() -> None:
    betas = (0.2, 1.0, 5.0, 0.7)
    layer = stir(Hopfield(D, num_heads=H, scaling=torch.tensor(betas), update_steps_max=2, disable_out_projection=True))
    whole = layer(x(B, T, D))
    for h, beta in enumerate(betas):
        one = Hopfield(D, D // H, num_heads=1, scaling=beta, update_steps_max=2, disable_out_projection=True).double()
        rows = slice(h * D // H, (h + 1) * D // H)
        given = layer.state_dict()
        for name in ("in_proj_weight", "in_proj_bias"):
            key = f"association_core.{name}"
            given[key] = torch.cat([part[rows] for part in given[key].chunk(3)])
        one.load_state_dict({name: value for name, value in given.items() if not name.endswith("_extra_state")})
        close(one(x(B, T, D)), whole[..., rows], 1e-7)  # β went through float32


def test_one_head_may_update_more_often_than_another() -> None:
    shared = stir(Hopfield(D, num_heads=2, disable_out_projection=True))
    for steps, heads in ((0, 0), (3, 1)):
        alone = Hopfield(D, num_heads=2, disable_out_projection=True, update_steps_max=steps, update_steps_eps=1e-30).double()
        mixed = Hopfield(
            D, num_heads=2, disable_out_projection=True, update_steps_max=torch.tensor([0, 3]), update_steps_eps=1e-30
        ).double()
        weights = {name: value for name, value in shared.state_dict().items() if not name.endswith("_extra_state")}
        for layer in (alone, mixed):
            layer.load_state_dict(weights)
        part = slice(heads * D // 2, (heads + 1) * D // 2)
        close(alone(x(B, T, D))[..., part], mixed(x(B, T, D))[..., part])


def test_state_dict_holds_beta_steps_and_eps_and_does_without_them() -> None:
    trained = stir(Hopfield(D, num_heads=2, scaling=torch.tensor([0.3, 3.0]), update_steps_max=None, learn_scaling=False))
    fresh = Hopfield(D, num_heads=2).double()
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(x(B, T, D)), trained(x(B, T, D)))
    older = {name: value for name, value in trained.state_dict().items() if not name.endswith("_extra_state")}
    fresh.load_state_dict(older)
    assert torch.equal(fresh(x(B, T, D)), trained(x(B, T, D)))
    with pytest.raises(CheckpointError, match="received"):
        fresh.load_state_dict({**older, "association_core._extra_state": torch.zeros(3, 5)})


def test_beta_is_learned() -> None:
    layer = stir(Hopfield(D, num_heads=2, update_steps_max=1, learn_scaling=True))
    layer(x(B, T, D)).square().sum().backward()
    assert bool((layer.association_core.association.log_beta.grad != 0).all())
    fresh = Hopfield(D, num_heads=2, learn_scaling=True).double()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x(B, T, D)), layer(x(B, T, D)))


@pytest.mark.parametrize("n", [0, 2, None])
def test_pooling_does_not_see_order_or_padding_and_an_empty_bag_gives_a_constant(n: int | None) -> None:
    pool = stir(HopfieldPooling(D, quantity=2, num_heads=2, output_size=5, update_steps_max=n))
    bag = x(3, 8, D)
    want = pool(bag)
    assert want.shape == (3, 10)
    close(pool(bag[:, torch.randperm(8)]), want)
    padded = torch.cat([torch.full((3, 4, D), torch.nan, dtype=torch.float64), bag], dim=1)
    mask = torch.arange(12).expand(3, 12) < 4
    close(pool(padded, stored_pattern_padding_mask=mask), want)
    mask = mask.clone()
    mask[1] = True
    empty = pool(padded, stored_pattern_padding_mask=mask)
    close(empty[1], pool.hopfield.association_core.out_proj.bias.repeat(2))
    close(empty[0], want[0])


def test_a_layer_that_remembers_is_a_nearest_neighbour_classifier_for_large_beta() -> None:
    patterns, labels = x(30, 6), torch.eye(3, dtype=torch.float64)[torch.arange(30) % 3]
    layer = HopfieldLayer(
        6,
        quantity=30,
        pattern_projection_size=3,
        hidden_size=6,
        pattern_size=3,
        scaling=1e4,
        lookup_weights_as_separated=True,
        stored_pattern_as_static=True,
        state_pattern_as_static=True,
        pattern_projection_as_static=True,
        disable_out_projection=True,
        **OFF,
    ).double()
    layer.remember(patterns, labels)
    queries = torch.randn(50, 1, 6, dtype=torch.float64)
    close(layer(queries)[:, 0], labels[(queries[:, 0] @ patterns.T).argmax(-1)], 1e-6)
    with pytest.raises(ShapeError, match="received"):
        layer.remember(patterns[:5], labels[:5])
    with pytest.raises(ShapeError, match="separate"):
        layer.remember(patterns)


def test_bias_and_zero_patterns_let_nothing_be_found() -> None:
    layer = stir(Hopfield(D, num_heads=2, concat_bias_pattern=True, add_zero_association=True, update_steps_max=1))
    p = layer.get_association_matrix(x(B, T, D))
    assert p.shape == (B, 2, T, T + 2)
    assert bool((p[..., T:] > 0).all())
    everything = torch.ones(B, T, dtype=torch.bool)
    close(layer.get_association_matrix(x(B, T, D), everything)[..., T:].sum(-1), torch.ones(B, 2, T, dtype=torch.float64))


def test_static_inputs_of_several_heads_keep_samples_apart() -> None:
    layer = stir(Hopfield(D, D, num_heads=3, state_pattern_as_static=True))
    close(layer(x(4, T, D))[:1], layer(x(4, T, D)[:1]))


def test_batches_may_come_second() -> None:
    first, second = (stir(Hopfield(D, num_heads=2, batch_first=flag)) for flag in (True, False))
    second.load_state_dict(first.state_dict())
    close(second(x(B, T, D).transpose(0, 1)).transpose(0, 1), first(x(B, T, D)))


def test_dropout_drops_weights_in_training_only() -> None:
    layer = Hopfield(D, num_heads=2, dropout=0.5)
    rows = torch.randn(B, T, D)
    assert not torch.equal(layer(rows), layer(rows))
    layer.eval()
    assert torch.equal(layer(rows), layer(rows))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"input_size": 5, "num_heads": 2},
        {"input_size": 4, "scaling": torch.ones(3), "num_heads": 2},
        {"input_size": 4, "association_activation": "no_such"},
        {"input_size": 4, "dropout": 1.0},
        {"input_size": 4, "num_heads": 0},
        {"input_size": 4, "pattern_projection_as_connected": True, "pattern_size": 3},
        {"input_size": 4, "concat_bias_pattern": True, "stored_pattern_as_static": True},
    ],
    ids=lambda wrong: ",".join(wrong) or "nothing",
)
def test_impossible_layers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError):
        Hopfield(**wrong)


def test_inputs_that_do_not_fit_are_refused() -> None:
    layer = Hopfield(D)
    rows = torch.randn(B, T, D)
    for call in (
        lambda: layer((rows, rows, rows[:, :3])),
        lambda: layer(rows, stored_pattern_padding_mask=torch.ones(B, 3, dtype=torch.bool)),
        lambda: layer(rows, association_mask=torch.ones(3, 3, dtype=torch.bool)),
        lambda: Hopfield.pure()((rows, rows[..., :3], rows)),
    ):
        with pytest.raises(ShapeError):
            call()


def test_an_inverse_temperature_of_nothing_is_refused() -> None:
    with pytest.raises(ShapeError, match="beta must be positive"):
        Hopfield(D, num_heads=H, scaling=0.0)
