"""Layer dropping: the last layers of a transformer go, whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from instar.compression.pruning.layout import Layout
from instar.compression.pruning.removal import Removal
from instar.compression.pruning.removed import Element


class LayerDropping(Removal):
    """From the last layer on, its FFN, then its attention, until the model is small enough; norms stay.

    Args:
        flops: fraction of the FLOPs of the blocks' linear layers to end at. group_size: of no effect on what is dropped.

    The published method takes out whole layers; here the last one may keep its attention, so that sizes are comparable.
    """

    method: ClassVar[str] = "layer_dropping"

    def order(self, model: nn.Module, parts: Layout, data: Any) -> Iterable[Element]:
        for layer in reversed(range(parts.depth)):
            yield Element("ffn", layer)
            yield Element("attention", layer)
