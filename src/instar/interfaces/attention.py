"""Attention of single heads whose gradient is the method's own."""

from __future__ import annotations

import abc

from torch import Tensor


class AttentionHead(abc.ABC):
    """softmax(Q Kᵀ) V, exactly or nearly, and its gradient. Constructor arguments are the configuration, each kept by its name.

    N heads · L queries · M keys · D width of both · E width of values. Scores are not scaled: the caller scales queries.
    """

    @abc.abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, L, D], k [N, M, D], v [N, M, E] -> [N, L, E] in their dtype, differentiable once; the same numbers each time.

        Raises ShapeError for what does not fit; DivergedError where an approximation's weights add up to nothing positive.
        """
