"""Networks, sequences, and the checks that programs and networks agree, for the tests beside this file."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from instar.bench.seeds import initialising
from instar.lab.programs.network import ProgramNetwork, Shape

TOKENS = ("<s>", "a", "b", "c", "d")
LABELS = ("x", "y", "z")

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True, "layers": 3},
    "pooled": {"pooled": True},
    "embedded": {"embedded": 2},
    "one_read": {"reads": 1, "layers": 1},
    "three_reads": {"reads": 3, "layers": 1},
    "categorical": {"num_heads": 0, "num_mlps": 0},
    "numerical": {"cat_heads": 0, "cat_mlps": 0},
    "heads_only": {"cat_mlps": 0, "num_mlps": 0},
}


def network(seed: int = 0, **given: Any) -> ProgramNetwork:
    """A network as it begins, five tokens long at most; every choice in it is by chance."""
    sizes = {"tokens": 5, "classes": 3, "length": 5, "k": 6, "layers": 2, "cat_heads": 2, "num_heads": 2}
    rest = {"cat_mlps": 1, "num_mlps": 2, "reads": 2, "hidden": 16, "embedded": 0, "causal": False, "pooled": False}
    with initialising(seed):
        return ProgramNetwork(Shape(**{**sizes, **rest, **given}))


def sequences(count: int, seed: int = 0) -> list[list[str]]:
    """Random ones of one to five tokens."""
    draw = random.Random(seed)
    return [[draw.choice(TOKENS) for _ in range(draw.randint(1, 5))] for _ in range(count)]


def tensors(rows: list[list[str]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded on the right."""
    ids, mask = torch.zeros(len(rows), 5, dtype=torch.int64), torch.zeros(len(rows), 5, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor([TOKENS.index(token) for token in row])
        mask[i, : len(row)] = True
    return ids, mask


def said(model: ProgramNetwork, rows: list[list[str]]) -> list[list[str]]:
    """What the network says with every choice made."""
    with torch.no_grad():
        chosen = model(*tensors(rows), 1.0, "argmax").argmax(-1)
    if model.shape.pooled:
        return [[LABELS[i]] for i in chosen.tolist()]
    return [[LABELS[i] for i in line[: len(row)]] for row, line in zip(rows, chosen.tolist(), strict=True)]
