"""Random removal: what any way of choosing has to beat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from instar.bench.seeds import stream
from instar.compression.pruning.layout import Layout
from instar.compression.pruning.removal import Removal
from instar.compression.pruning.removed import Element


class RandomRemoval(Removal):
    """Heads and groups of neurons of all layers in random order, until the model is small enough.

    Args:
        flops: fraction of the FLOPs of the blocks' linear layers to end at. group_size: consecutive neurons that go together.
        seed: of the order.
    """

    method: ClassVar[str] = "random_removal"

    def __init__(self, *, flops: float = 0.7, group_size: int = 256, seed: int = 0) -> None:
        super().__init__(flops=flops, group_size=group_size)
        self.seed = seed

    def order(self, model: nn.Module, parts: Layout, data: Any) -> Iterable[Element]:
        elements = [element for layer in range(parts.depth) for element in parts.fine(layer)]
        return [elements[i] for i in torch.randperm(len(elements), generator=stream(self.seed, "removal")).tolist()]
