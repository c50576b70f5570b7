"""Trees of tensors as named tensors and a text: round trips, and damage that is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instar.errors import CheckpointError
from instar.models.packing import pack, unpack


def test_a_tree_comes_back_as_it_was() -> None:
    tree: dict[Any, Any] = {
        0: {"a": torch.arange(3), "b": (1, 2.5, None)},
        "groups": [{"lr": 0.1, "on": True, "name": "x"}],
        "empty": {},
    }
    tensors, text = pack(tree, "state/")
    assert list(tensors) == ["state/0"]
    found = unpack(text, tensors)
    assert torch.equal(found[0].pop("a"), tree[0].pop("a"))
    assert found == tree
    assert isinstance(found[0]["b"], tuple)


def test_kinds_of_tuples_and_lists_come_back_plain() -> None:
    class Rows(list[int]):
        pass

    found = unpack(pack({"shape": torch.Size([2, 3]), "rows": Rows([1])}, "")[1], {})
    assert found == {"shape": (2, 3), "rows": [1]}
    assert [type(item) for item in found.values()] == [tuple, list]


def test_what_no_file_can_hold_is_named() -> None:
    with pytest.raises(CheckpointError, match="function"):
        pack({"a": lambda: None}, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"tensor": "state/7"}',
        '{"code": "import os"}',
        '{"dict": [[1]]}',
        '{"list": 3}',
        "{}",
        '{"dict": [[{"list": []}, 1]]}',
    ],
)
def test_damage_is_named(text: str) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        unpack(text, {})
