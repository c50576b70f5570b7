"""Poolings: what is known of them in closed form, and planted defects that their contract must catch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from instar.cards import Card, Cost
from instar.checks import Outcome, Subject, contract, run
from instar.errors import ShapeError
from instar.interfaces import Pooling
from instar.mixers import hopfield_layers
from instar.pooling import bag
from instar.pooling.attention_pooling import AttentionPooling
from instar.pooling.hopfield_pooling import HopfieldPooling
from instar.pooling.max_pooling import MaxPooling
from instar.pooling.mean_pooling import MeanPooling


@pytest.fixture
def bags() -> tuple[Tensor, Tensor]:
    """Three bags of 9, 4 and 1 instances of width 12."""
    torch.manual_seed(0)
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    return torch.randn(3, 9, 12, dtype=torch.float64), mask


@pytest.mark.parametrize("gated", [False, True])
def test_attention_without_a_look_is_the_mean_and_with_a_sharp_one_reads_one_instance(
    bags: tuple[Tensor, Tensor], gated: bool
) -> None:
    x, mask = bags
    pooling = AttentionPooling(12, hidden=1, gated=gated).double()
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.zero_()
        torch.testing.assert_close(pooling(x, mask=mask), MeanPooling(12)(x, mask=mask))
        pooling.look.weight[0, 3], pooling.score.weight[0, 0] = 1e-3, 1e9  # tanh is a line: the largest fourth feature wins
        first = x[..., 3].masked_fill(~mask, -torch.inf).argmax(1)
        torch.testing.assert_close(pooling(x, mask=mask), x[torch.arange(3), first])


def test_weights_say_who_decided(bags: tuple[Tensor, Tensor]) -> None:
    x, mask = bags
    attention, hopfield = AttentionPooling(12).double(), HopfieldPooling(12, heads=2, head_width=4, quantity=3).double()
    found = attention.weights(x, mask=mask)
    torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close((found.unsqueeze(1) @ x).squeeze(1), attention(x, mask=mask))
    each = hopfield.weights(x, mask=mask)
    assert each.shape == (3, 2, 3, 9)
    assert not found[~mask].any()
    assert not each.permute(0, 3, 1, 2)[~mask].any()
    assert not attention.weights(x, mask=torch.zeros_like(mask)).any()


def test_a_small_beta_reads_the_mean_and_a_large_one_a_single_instance(bags: tuple[Tensor, Tensor]) -> None:
    x, mask = bags
    flat = HopfieldPooling(12, heads=2, head_width=4, beta=1e-9).double()
    with torch.no_grad():
        for parameter in flat.layer.hopfield.association_core.parameters():
            parameter.copy_(torch.randn_like(parameter))
    steep = HopfieldPooling(12, heads=2, head_width=4, beta=1e6).double()
    steep.layer.load_state_dict(
        {k: v for k, v in flat.layer.state_dict().items() if not k.endswith("_extra_state")}, strict=False
    )
    torch.testing.assert_close(
        flat.weights(x, mask=mask), (mask / mask.sum(1, keepdim=True)).double()[:, None, None].expand(3, 2, 1, 9)
    )
    torch.testing.assert_close(steep.weights(x, mask=mask).amax(-1), torch.ones(3, 2, 1, dtype=torch.float64))


def test_copies_of_an_instance_are_one_for_the_maximum_and_count_for_the_mean(bags: tuple[Tensor, Tensor]) -> None:
    x, _ = bags
    twice = torch.cat([x, x[:, :1]], 1)
    torch.testing.assert_close(MaxPooling(12)(twice), MaxPooling(12)(x))
    torch.testing.assert_close(MeanPooling(12)(twice), (9 * x.mean(1) + x[:, 0]) / 10)
    assert torch.equal(MaxPooling(12)(-1 - x.abs(), mask=torch.ones(3, 9, dtype=torch.bool)), (-1 - x.abs()).amax(1))


def test_hopfield_pooling_takes_the_weights_of_the_authors_layer(bags: tuple[Tensor, Tensor]) -> None:
    x, mask = bags
    theirs = hopfield_layers.HopfieldPooling(12, hidden_size=4, num_heads=2, update_steps_max=3).double()
    ours = HopfieldPooling(12, heads=2, head_width=4, steps=3).double()
    ours.layer.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x, mask=mask), theirs(x, ~mask))


@pytest.mark.parametrize(
    "wrong", [{"heads": 0}, {"head_width": -1}, {"quantity": 0}, {"beta": -1.0}, {"steps": -2}, {"dropout": 1.0}]
)
def test_settings_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ShapeError):
        HopfieldPooling(8, **wrong)


class _Sum(Pooling):
    """Σ_n c h_n, correct and easy to spoil."""

    def __init__(self, width: int, *, scale: float = 0.5) -> None:
        super().__init__()
        bag.positive(width=width)
        self.width, self.out_width, self.scale = width, width, scale
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        x, _ = bag.real(x, mask, self.width)
        return self.scale * self.weight * x.sum(1)

    def reference(self, instances: Tensor) -> Tensor:
        return self.scale * self.weight * instances.sum(0)


class _CountsPadding(_Sum):
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask=mask) + 0 * x.sum(1)


class _ReadsPlaces(_Sum):
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        x, _ = bag.real(x, mask, self.width)
        return self.scale * self.weight * (x * torch.linspace(1, 2, x.shape[1], dtype=x.dtype)[:, None]).sum(1)


class _ReadsNeighbours(_Sum):
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask=mask)
        return y + y.mean(0) - y.mean(0).detach() + (y.mean(0) if len(y) > 3 else 0)


class _ForgetsScale(_Sum):
    def __init__(self, width: int, *, scale: float = 0.5) -> None:
        super().__init__(width)
        self.scale = 0.25


class _NothingIsNaN(_Sum):
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask=mask)
        return y if mask is None else y / mask.any(1, keepdim=True)


class _TakesAnything(_Sum):
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        if mask is not None and mask.dtype != torch.bool:
            mask = mask > 0
        return super().forward(x, mask=mask)


class _Idle(_Sum):
    def __init__(self, width: int, *, scale: float = 0.5) -> None:
        super().__init__(width, scale=scale)
        self.idle = torch.nn.Parameter(torch.ones(1))


class _Widens(_Sum):
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask=mask).to(torch.promote_types(x.dtype, torch.float32))


def _subject(cls: type[Pooling], state: str = "4 * D") -> Subject:
    card = Card(
        slug=cls.__name__.strip("_").lower(),
        family="pooling",
        title=cls.__name__,
        idea="planted",
        when_not="never",
        kind="system",
        domains=[],
        tasks=[],
        path=Path("planted.toml"),
        entry=f"{cls.__module__}:{cls.__qualname__}",
        interface="Pooling",
        cost=Cost("0", state),
    )
    return Subject(cls, card)


@pytest.mark.parametrize(
    ("planted", "name", "words", "others"),
    [
        (_subject(_CountsPadding), "padding", "padding holds inf", ""),
        (_subject(_ReadsPlaces), "order", "another order", "padding reference half"),
        (_subject(_ReadsNeighbours), "padding", "padding holds 0.0", "reference half"),
        (_subject(_ForgetsScale), "arguments", "keep the argument scale", ""),
        (_subject(_NothingIsNaN), "empty", "bag of padding alone", ""),
        (_subject(_TakesAnything), "refusals", "a mask of numbers must be refused", ""),
        (_subject(_Idle, "4 * D + 4"), "reference", "no gradient of idle", ""),
        (_subject(_Widens), "half", "it gives torch.float32", ""),
        (_subject(_Sum, "8 * D"), "costs", "state is 128", ""),
    ],
    ids=lambda value: value.cls.__name__ if isinstance(value, Subject) else None,
)
def test_a_planted_defect_is_caught_by_the_check_that_is_there_for_it(
    planted: Subject, name: str, words: str, others: str
) -> None:
    found: dict[str, Outcome] = {o.name: o for o in (run(c, planted) for c in contract("Pooling")) if o.status == "failed"}
    assert set(found) == {name, *others.split()}
    assert words in found[name].message


def test_what_has_no_defect_passes() -> None:
    assert not [o for o in (run(c, _subject(_Sum)) for c in contract("Pooling")) if o.status == "failed"]
    assert not _Sum(3)(torch.zeros(1, 0, 3)).any()
