"""Head importance: what the loss depends on least, by gradients, goes first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from instar.compression.pruning.importance import importance
from instar.compression.pruning.layout import Layout
from instar.compression.pruning.removal import Removal
from instar.compression.pruning.removed import Element, Removed
from instar.compression.pruning.scoring import Validation


class HeadImportance(Removal):
    """Heads and groups of neurons by I_e = mean over x of |∂ℓ(x) / ∂ξ_e| for each FLOP that they need, the least first.

    Args:
        flops: fraction of the FLOPs of the blocks' linear layers to end at. group_size: consecutive neurons that go together.
        normalise: divide the importances of a layer's heads, and of its groups, by their Euclidean norm, as the paper does.

    Published for heads; groups of neurons are added, so that as much can be taken out. O(N · forward and backward).
    """

    method: ClassVar[str] = "head_importance"

    def __init__(self, *, flops: float = 0.7, group_size: int = 256, normalise: bool = True) -> None:
        super().__init__(flops=flops, group_size=group_size)
        self.normalise = normalise

    def order(self, model: nn.Module, parts: Layout, data: Any) -> Iterable[Element]:
        found = importance(model, parts, Validation.of(data, "loss"))
        norms: dict[tuple[str, int], float] = {}
        for element, value in found.items():
            norms[element[:2]] = math.hypot(norms.get(element[:2], 0.0), value)
        whole = parts.flops(Removed(group_size=parts.group_size))

        def worth(element: Element) -> float:
            value = found[element] / (norms[element[:2]] or 1.0) if self.normalise else found[element]
            return value / (whole - parts.flops(Removed((element,), group_size=parts.group_size)))

        return sorted(found, key=worth)
