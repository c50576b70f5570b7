"""`HopfieldPooling` pools a bag with learned states, `HopfieldLayer` looks up a memory of its own.

Ramsauer et al. 2020, "Hopfield Networks is All You Need" (arXiv 2008.02217). Arguments, parameters and defaults are those of the
authors' layers (https://github.com/ml-jku/hopfield-layers), whose checkpoints load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.mixers.association import INITIAL_STD
from instar.mixers.hopfield_association import Hopfield

__all__ = ["Hopfield", "HopfieldLayer", "HopfieldPooling"]


class HopfieldPooling(nn.Module):
    """A bag [B, N, d] -> [B, quantity · output_size]: `quantity` learned states, the same for every bag, read it.

    Args: those of `Hopfield` by keyword; trainable: whether the states, `pooling_weights` [1, quantity, d], learn.
    Input: one tensor, or (stored patterns, pattern projections). An empty bag, all of it padding, reads as zeros do.
    """

    def __init__(self, input_size: int, *, quantity: int = 1, trainable: bool = True, **association: Any) -> None:
        super().__init__()
        self.hopfield, self.quantity = Hopfield(input_size, **association), quantity
        core = self.hopfield.association_core
        self.pooling_weights = _learned(
            quantity, core.width if core.static_state and not core.bare else input_size, self.hopfield, trainable
        )

    def forward(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """What the bag says; masks as those of `Hopfield`."""
        y = self.hopfield(self._three(input), stored_pattern_padding_mask, association_mask)
        return y.flatten(1) if self.hopfield.batch_first else y.transpose(0, 1).flatten(1)

    def get_association_matrix(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """The weights [B, H, quantity, N] of the instances."""
        return self.hopfield.get_association_matrix(self._three(input), stored_pattern_padding_mask, association_mask)

    def _three(self, input: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        stored, projection = input if isinstance(input, tuple) else (input, input)
        return stored, _repeated(self.pooling_weights, stored, self.hopfield), projection


class HopfieldLayer(nn.Module):
    """States [B, S, d] look up `quantity` stored patterns that belong to the layer -> [B, S, output_size].

    Args: those of `Hopfield` by keyword; trainable: whether the stored patterns, `lookup_weights` [1, quantity, d], learn;
    lookup_weights_as_separated: what is read are `target_weights`, else the stored patterns; lookup_targets_as_trainable: whether
    these learn. `remember` fills them, for a classifier by likeness: training inputs stored, one-hot labels read.
    """

    def __init__(
        self,
        input_size: int,
        *,
        quantity: int = 1,
        trainable: bool = True,
        lookup_weights_as_separated: bool = False,
        lookup_targets_as_trainable: bool = True,
        **association: Any,
    ) -> None:
        super().__init__()
        self.hopfield, self.quantity = Hopfield(input_size, **association), quantity
        core = self.hopfield.association_core
        size = core.width if core.static_stored and not core.bare else self.hopfield.stored_pattern_size or input_size
        self.lookup_weights = _learned(quantity, size, self.hopfield, trainable)
        self.target_weights: nn.Parameter | None = None
        if lookup_weights_as_separated:
            target = association.get("pattern_projection_size") or size
            self.target_weights = _learned(quantity, target, self.hopfield, lookup_targets_as_trainable)

    @torch.no_grad()
    def remember(self, patterns: Tensor, targets: Tensor | None = None) -> None:
        """Store patterns [quantity, d] and, where they are separate, what is read for each, [quantity, t]. Raises ShapeError."""
        for name, parameter, given in (("patterns", self.lookup_weights, patterns), ("targets", self.target_weights, targets)):
            if (parameter is None) != (given is None):
                raise ShapeError("Targets are for a layer with lookup_weights_as_separated=True, which needs them.")
            if parameter is not None and given is not None:
                if given.shape != parameter.squeeze(0 if self.hopfield.batch_first else 1).shape:
                    raise ShapeError(f"The layer stores {name} of shape {list(parameter.shape)}; received {list(given.shape)}.")
                parameter.copy_(given.unsqueeze(0 if self.hopfield.batch_first else 1))

    def forward(
        self, input: Tensor, stored_pattern_padding_mask: Tensor | None = None, association_mask: Tensor | None = None
    ) -> Tensor:
        """What the states find; masks as those of `Hopfield`."""
        if stored_pattern_padding_mask is None and association_mask is None:
            # A state knows nothing of the others: all samples are one, and the memory is projected once.
            first = self.hopfield.batch_first
            flat = input.flatten(0, 1).unsqueeze(0 if first else 1)
            return self.hopfield(self._three(flat)).squeeze(0 if first else 1).unflatten(0, input.shape[:2])
        return self.hopfield(self._three(input), stored_pattern_padding_mask, association_mask)

    def get_association_matrix(
        self, input: Tensor, stored_pattern_padding_mask: Tensor | None = None, association_mask: Tensor | None = None
    ) -> Tensor:
        """The weights [B, H, S, quantity] of the stored patterns."""
        return self.hopfield.get_association_matrix(self._three(input), stored_pattern_padding_mask, association_mask)

    def _three(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stored = _repeated(self.lookup_weights, input, self.hopfield)
        return stored, input, stored if self.target_weights is None else _repeated(self.target_weights, input, self.hopfield)


def _learned(quantity: int, size: int, hopfield: Hopfield, trainable: bool) -> nn.Parameter:
    """Patterns N(0, 0.02²), [1, quantity, size], or [quantity, 1, size] where batches come second."""
    if quantity < 1:
        raise ShapeError(f"quantity must be positive; received {quantity}.")
    patterns = torch.empty((1, quantity, size) if hopfield.batch_first else (quantity, 1, size))
    return nn.Parameter(nn.init.normal_(patterns, std=INITIAL_STD), trainable)


def _repeated(patterns: Tensor, like: Tensor, hopfield: Hopfield) -> Tensor:
    """For every sample of `like`."""
    if hopfield.batch_first:
        return patterns.expand(like.shape[0], -1, -1)
    return patterns.expand(-1, like.shape[1], -1)
