"""Labels that are no classes: named, left out where labels are not needed, refused by the heads themselves."""

from __future__ import annotations

import pytest
import torch

from instar.compat import labelled
from instar.compat import pairs as pairing
from instar.compat.bct import BCT
from instar.compat.bt2 import BT2
from instar.compat.ract import RACT
from instar.errors import DataError
from instar.interfaces import Pairs

N = 60
KINDS = {
    "one for each": (torch.arange(N), "no two items share a label"),
    "one for all": (torch.zeros(N, dtype=torch.int64), "the same label"),
    "nearly one for each": (torch.arange(N).clamp(min=20), "only 21 of 60"),
    "too many": (torch.arange(N) // 2 + labelled.MOST, "more than the 2,048"),
}


def given(labels: torch.Tensor | None) -> Pairs:
    draw = torch.Generator().manual_seed(0)
    made = pairing.of(torch.randn(N, 5, generator=draw), torch.randn(N, 7, generator=draw))
    return Pairs(made.old, made.new, labels)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("head", [BCT, RACT, BT2])
def test_heads_refuse_them_before_anything_is_built(kind: str, head: type) -> None:
    labels, why = KINDS[kind]
    made = head(7, 5)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(DataError, match=why):
        made.fit(given(labels), steps=2)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_a_head_that_leaves_labels_aside_does_not_mind() -> None:
    BT2(7, 5, labels=False).fit(given(KINDS["one for each"][0]), steps=1)


@pytest.mark.parametrize("kind", list(KINDS))
def test_pairs_go_on_without_them_and_say_why(kind: str) -> None:
    labels, why = KINDS[kind]
    found, reason = labelled.usable(given(labels))
    assert found.labels is None
    assert why in reason


def test_classes_stay() -> None:
    for labels in (None, torch.arange(N) % 7, torch.arange(N) // 2, torch.arange(N).clamp(min=30)):
        found, reason = labelled.usable(given(labels))
        assert found.labels is labels
        assert not reason
