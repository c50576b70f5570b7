"""A copy of a module that follows it slowly, without gradients: the key encoder of contrastive learning, a steady guide.

He, Fan, Wu, Xie, Girshick 2020, "Momentum Contrast for Unsupervised Visual Representation Learning" (arXiv 1911.05722).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from instar.errors import ShapeError


class MomentumCopy(nn.Module):
    """θ_m ← μ θ_m + (1 - μ) θ after each change of the parameters and buffers θ of `source`; θ_m starts as θ.

    The copy is always in eval mode, takes no gradient, and its tensors are buffers, so that no optimiser finds them and
    checkpoints keep them. Whoever owns both calls `follow` before the copy is used in training.

    Args:
        source: what is copied; it is not kept. momentum: μ, between 0 (always equal) and 1 (never moved).
    """

    def __init__(self, source: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ShapeError(f"momentum must lie between 0 and 1; received {momentum}.")
        self.momentum = momentum
        self.copy = copy.deepcopy(source).eval()
        for module in self.copy.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach().clone())
        self._seen: list[Tensor] | None = None

    @torch.no_grad()
    def follow(self, source: nn.Module) -> None:
        """Move towards `source` if its parameters are others than at the last call: once a step of an optimiser, however many
        forward passes it takes. In a compiled graph, at every call.
        """
        if not torch.compiler.is_compiling():
            # Values, not tensors' version counters: torch's fused optimisers write parameters without counting it.
            now = [parameter.detach() for parameter in source.parameters()]
            if self._seen is not None and all(map(_same, now, self._seen)):
                return
            self._seen = [tensor.clone() for tensor in now]
        # Parameters that two modules share have two names, and are two buffers of the copy.
        theirs = dict(source.named_parameters(remove_duplicate=False)) | dict(source.named_buffers(remove_duplicate=False))
        for name, mine in self.copy.named_buffers():
            if mine.is_floating_point():
                mine.lerp_(theirs[name].to(mine.dtype), 1 - self.momentum)
            else:
                mine.copy_(theirs[name])

    @torch.no_grad()
    def forward(self, *given: Any, **options: Any) -> Any:
        return self.copy(*given, **options)

    def train(self, mode: bool = True) -> MomentumCopy:
        """The copy stays in eval mode."""
        super().train(mode)
        self.copy.eval()
        return self


def _same(now: Tensor, seen: Tensor) -> bool:
    """A module may have been moved or cast since."""
    return now.device == seen.device and now.dtype == seen.dtype and torch.equal(now, seen)
