"""What reads sets of instances that have no order."""

from __future__ import annotations

import abc

from torch import Tensor, nn


class Pooling(nn.Module, abc.ABC):
    """One vector of a bag: `Pooling(width, **knobs)`. Constructor arguments are the configuration, each kept by its name.

    B bags · N instances in the largest of them · D width of an instance · E = `out_width` of what is said of a bag.
    """

    width: int
    out_width: int

    @abc.abstractmethod
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """x [B, N, D] -> [B, E] in its type.

        mask: bool [B, N], True where an instance is real; None for all. What others hold, NaN among it, does not matter. Nor does
        the order of the instances, nor do the other bags. N may be 0, and so may be the instances of one bag: all empty bags give
        the same finite vector. Raises ShapeError.
        """

    @abc.abstractmethod
    def reference(self, instances: Tensor) -> Tensor:
        """One bag, [N, D] -> [E], written to be read beside the paper: the oracle of `forward`, values and gradients."""
