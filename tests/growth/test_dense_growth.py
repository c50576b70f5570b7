"""Plain decoders: which new weights are whose, what is preserved, and what an optimiser keeps of copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import TransformError
from instar.growth import grow
from instar.growth.axes import Axis, lengthened, lengthened_state, repeated, shares
from instar.growth.bert2bert import Bert2Bert
from instar.growth.from_scratch import FromScratch
from instar.growth.lemon import Lemon
from instar.growth.net2net import Net2Net
from instar.growth.tokenformer_decoder import TokenFormer
from instar.growth.zero_ffn import ZeroFFN
from instar.interfaces import Growth
from instar.models.decoder import Decoder
from instar.optim.mkor import MKOR
from instar.optim.muon import Muon
from instar.optim.offloaded_adamw import OffloadedAdamW

V = 31


def made(**given: Any) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(V, 32, 2, "softmax", **{"heads": 4, "hidden": 48, **given}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens() -> Tensor:
    return torch.randint(V, (2, 17), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: Decoder) -> Tensor:
    found: Tensor = model(tokens())[0]
    return found


VARIANTS: list[dict[str, Any]] = [
    {},
    {"tied": False},
    {"mixer_arguments": {"kv_heads": 2}},
    {"mixer_arguments": {"bias": True}},
    {"mixer_arguments": {"kv_heads": 1, "rope_base": 500.0}, "tied": False},
]


@pytest.mark.parametrize("given", VARIANTS, ids=["plain", "untied", "grouped", "biases", "one_key_head"])
@pytest.mark.parametrize(
    ("growth", "plan"),
    [
        (Lemon(), {"width": 64}),
        (Lemon(), {"width": 96, "hidden": 50, "depth": 5}),
        (Net2Net(noise=0.0), {"width": "3x", "hidden": 77}),
        (Bert2Bert(expansion="fpi"), {"width": "2x", "hidden": "2x"}),
        (ZeroFFN(), {"hidden": 49}),
    ],
    ids=["lemon_width", "lemon_all", "net2net", "fpi", "zero_ffn"],
)
def test_what_preserves_the_function_does_so_in_every_variant(given: dict[str, Any], growth: Growth, plan: Any) -> None:
    model = made(**given)
    before = logits(model)
    growth.grow(model, plan)
    growth.grow(model, {"hidden": "2x"})
    assert torch.allclose(logits(model), before, rtol=0, atol=1e-10)
    saved = Decoder(**model.config).double().eval()  # type: ignore[arg-type]
    saved.load_state_dict(model.state_dict())
    assert torch.allclose(logits(saved), before, rtol=0, atol=1e-10)


def test_lemon_takes_a_width_that_is_no_multiple_and_whole_heads_only() -> None:
    model = made()
    before = logits(model)
    grow(model, plan={"width": 40})
    assert model.mixer.heads == 5
    assert torch.allclose(logits(model), before, rtol=0, atol=1e-10)
    with pytest.raises(TransformError, match="heads are 8 wide"):
        grow(model, plan={"width": 42})
    with pytest.raises(TransformError, match="equally many copies"):
        Net2Net().grow(model, {"width": 48})


def test_copies_without_noise_stay_copies_and_noise_parts_them() -> None:
    for noise in (0.0, 0.01):
        model = made()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        Net2Net(noise=noise).grow(model, {"width": "2x"}, optimizer=optimiser)
        train(model, optimiser, 3)
        up: Any = model.blocks[0].mixer.q_proj.weight  # type: ignore[union-attr]
        assert torch.allclose(up[:32], up[32:], atol=1e-9) == (noise == 0)


def train(model: Decoder, optimiser: torch.optim.Optimizer, steps: int) -> None:
    ids = tokens()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimiser.step()


def test_aki_takes_the_new_rows_from_the_block_above_and_fpi_from_the_own() -> None:
    aki, fpi = made(), made()
    Bert2Bert().grow(aki, {"width": "2x"})
    Bert2Bert(expansion="fpi").grow(fpi, {"width": "2x"})
    for name in ("mixer.q_proj", "mixer.o_proj"):
        mixed, own, above = (model.blocks[i].get_submodule(name).weight for model, i in ((aki, 0), (fpi, 0), (fpi, 1)))
        assert torch.equal(mixed[:32], own[:32])
        assert torch.equal(mixed[32:], above[32:])
        assert torch.equal(aki.blocks[1].get_submodule(name).weight, above)
    assert torch.equal(aki.embedding.weight, fpi.embedding.weight)


def test_stacking_repeats_the_blocks_and_new_blocks_are_their_own() -> None:
    model = made()
    before = [block.mixer.q_proj.weight.clone() for block in model.blocks]  # type: ignore[union-attr,operator]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimiser, 1)
    before = [block.mixer.q_proj.weight.detach().clone() for block in model.blocks]  # type: ignore[union-attr,operator]
    Bert2Bert().grow(model, {"depth": 5}, optimizer=optimiser)
    found = [block.mixer.q_proj.weight for block in model.blocks]  # type: ignore[union-attr]
    assert all(torch.equal(found[i], before[i % 2]) for i in range(5))  # type: ignore[arg-type]
    assert len({id(weight) for weight in found}) == 5
    assert found[2] not in optimiser.state
    train(model, optimiser, 1)


def test_new_blocks_of_lemon_stand_above_those_that_they_copy() -> None:
    model = made()
    old = list(model.blocks)
    grow(model, plan={"depth": 4})
    assert model.blocks[0] is old[0]
    assert model.blocks[2] is old[1]
    assert not bool(model.blocks[1].feed.down.weight.any())  # type: ignore[union-attr,operator]
    assert torch.equal(model.blocks[3].feed.up.weight, old[1].feed.up.weight)  # type: ignore[union-attr,arg-type]


def test_squares_of_gradients_are_divided_by_squares() -> None:
    """Adam's second moment of a copy is that of its gradient: a run that grew keeps the step that it would have made."""
    model = made()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.0, 0.0))
    train(model, optimiser, 1)
    Net2Net(noise=0.0).grow(model, {"width": "2x", "hidden": 100}, optimizer=optimiser)
    optimiser.zero_grad()
    ids = tokens()
    F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.allclose(optimiser.state[parameter]["exp_avg"], parameter.grad, rtol=1e-7, atol=1e-12)
        assert torch.allclose(optimiser.state[parameter]["exp_avg_sq"], parameter.grad.square(), rtol=1e-7, atol=1e-20)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.optim.Adafactor, "Adafactor keeps 'row_var'"),
        (torch.optim.ASGD, "ASGD keeps 'ax'"),  # the average of a new weight is not 0
        (torch.optim.Rprop, "Rprop keeps 'step_size'"),  # with a step of 0 a new weight would hardly move
    ],
)
def test_an_optimiser_whose_state_cannot_grow_is_refused_whole(kind: Any, words: str) -> None:
    model = made()
    optimiser = kind(model.parameters(), lr=1e-3)
    train(model, optimiser, 1)
    before, state = logits(model), dict(optimiser.state)
    with pytest.raises(TransformError, match=words):
        grow(model, optimiser, {"hidden": "2x"})
    assert torch.equal(logits(model), before)
    assert all(optimiser.state[p] is entries for p, entries in state.items())
    train(model, optimiser, 1)


def test_an_optimiser_that_holds_layers_is_refused() -> None:
    model = made().float()
    optimiser = MKOR(model, "adamw", lr=1e-3)
    with pytest.raises(TransformError, match="MKOR"):
        grow(model, optimiser, {"hidden": "2x"})


def test_an_optimiser_of_several_parts_grows_in_each() -> None:
    model = made().float()
    optimiser = Muon(model)
    train(model, optimiser, 1)
    up: Any = model.blocks[0].feed.up  # type: ignore[union-attr]
    momentum = optimiser.parts[0].state[up.weight]["momentum_buffer"].clone()
    grown = grow(model, optimiser, {"hidden": "2x"})
    assert torch.equal(optimiser.parts[0].state[up.weight]["momentum_buffer"][:48], momentum)
    grown.undo()
    assert torch.equal(optimiser.parts[0].state[up.weight]["momentum_buffer"], momentum)
    train(model, optimiser, 1)


def test_from_scratch_forgets_everything_and_trains_on() -> None:
    model = made()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimiser, 1)
    before = logits(model)
    FromScratch(architecture="decoder").grow(model, {"width": "2x", "depth": 3}, optimizer=optimiser)
    assert model.mixer.heads == 8
    assert not optimiser.state
    assert not torch.allclose(logits(model), before, atol=0.1)
    train(model, optimiser, 2)


@pytest.mark.parametrize("mixer", ["gla", "retnet", "softmax1"])
def test_other_mixers_are_refused(mixer: str) -> None:
    model = Decoder(V, 32, 1, mixer, heads=2)
    with pytest.raises(TransformError, match="mixer softmax"):
        grow(model, plan={"hidden": "2x"})


def test_axes() -> None:
    old = torch.arange(6.0).view(2, 3)
    copies = Axis.copied(torch.tensor([0, 1, 1]), shares(torch.tensor([0, 1, 1])), 1.0)
    assert torch.equal(lengthened(old, (None, Axis.extended(3, 4)), torch.full((2, 4), 9.0))[:, 3], torch.full((2,), 9.0))
    assert torch.equal(lengthened(old, (copies, None))[1], old[1] / 2)
    assert torch.equal(lengthened_state(old, (copies, None), "gradient")[2], old[1])
    halves = Axis.copied(repeated(3, 6), 1.0, 0.5)
    assert torch.equal(lengthened_state(old, (None, halves), "square"), torch.cat([old, old], 1) / 4)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("given", [{"mixer": "softmax:multi_query"}, {"mixer_arguments": {"kv_heads": 2}}, {}], ids=str)
def test_a_grown_model_and_its_control_are_read_again_and_of_one_size(given: dict[str, Any], heads: int, tmp_path: Path) -> None:
    if heads == 1 and "mixer_arguments" in given:
        given = {"mixer_arguments": {"kv_heads": 1, "heads": 1}}
    growths: list[Growth] = [Lemon(), Net2Net(), Bert2Bert(), FromScratch(architecture="decoder")]
    shapes = []
    for growth in growths:
        model = Decoder(V, 32, 1, **{"mixer": "softmax", "heads": heads, "hidden": 48, **given})
        growth.grow(model, {"width": "2x"})
        model.save_pretrained(tmp_path)
        again = Decoder.from_pretrained(tmp_path)
        assert torch.equal(logits(again), logits(model.eval()))
        shapes.append({name: p.shape for name, p in model.named_parameters()})
    assert all(shape == shapes[0] for shape in shapes)


def test_optimisers_that_keep_their_own_parameters_are_refused_before_anything_changes() -> None:
    model = made().float()
    names = [name for name, _ in model.named_parameters()]
    optimiser = OffloadedAdamW(model, ratio=0.0)
    for plan in ({"hidden": "2x"}, {"depth": 4}):
        with pytest.raises(TransformError, match="OffloadedAdamW keeps"):
            grow(model, optimiser, plan)
    paired = TokenFormer(V, 16, 1, heads=2)
    with pytest.raises(TransformError, match="OffloadedAdamW keeps"):
        grow(paired, OffloadedAdamW(paired, ratio=0.0), {"n": "2x"})
    assert [name for name, _ in model.named_parameters()] == names
    train(model, optimiser, 1)
