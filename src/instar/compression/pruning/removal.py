"""What the baselines of pruning share: parts go in some order, until the model is as small as was asked."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from instar.compression.pruning.cutting import cutting
from instar.compression.pruning.layout import Layout, layout
from instar.compression.pruning.removed import Element, Removed
from instar.errors import ShapeError, TransformError
from instar.interfaces import Monitor, Transform
from instar.receipt import Receipt, updating


class Removal(Transform):
    """Cuts parts out in an order that a subclass gives, the first until the linear layers need `flops` of their FLOPs or less.

    A subclass names itself (`method`) and keeps its constructor's arguments as attributes of the same names.
    """

    method: ClassVar[str]

    def __init__(self, *, flops: float = 0.7, group_size: int = 256) -> None:
        if not 0 < flops < 1 or group_size < 1:
            raise ShapeError(
                f"flops expects a fraction between 0 and 1 and group_size 1 or more; received {flops} and {group_size}."
            )
        self.flops, self.group_size = flops, group_size

    @abc.abstractmethod
    def order(self, model: nn.Module, parts: Layout, data: Any) -> Iterable[Element]:
        """The elements, the first to go first."""

    def plan(self, model: nn.Module, data: Any = None) -> Removed:
        """What would be cut out. Raises TransformError where all of it is not enough."""
        parts = layout(model, self.group_size)
        removed = Removed(group_size=self.group_size)
        for element in self.order(model, parts, data):
            if parts.share(removed) <= self.flops:
                break
            removed = removed.plus(element)
        if parts.share(removed) > self.flops:
            raise TransformError(
                f"With all that can be taken out of this {type(model).__name__}, its blocks need {parts.share(removed):.2f} of "
                f"their FLOPs; asked was {self.flops}."
            )
        return removed

    def apply(self, model: nn.Module, data: Any = None, *, monitor: Monitor | None = None) -> Receipt:
        """Cut, in one update. Nothing is searched, so that `monitor` has nothing to hear."""
        removed = self.plan(model, data)
        settings = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        with updating(model, method=self.method, settings={**settings, "removed": removed.json()}, changes=()) as update:
            cutting(model, layout(model, self.group_size), removed)
        return update.receipt
