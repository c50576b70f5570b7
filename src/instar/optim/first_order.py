"""What first-order optimisers share: groups, the bytes of a state, and steps that are skipped whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Optimizer


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those that are trained. Raises ShapeError for a model without any."""
    found = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise ShapeError(f"{type(model).__name__} has no parameter to train.")
    return found


def decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: what has two axes or more decays, norms and biases do not."""
    every = parameters(model)
    both = [
        {"params": [p for p in every if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in every if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in both if group["params"]]


def tensor_bytes(states: Iterable[dict[str, Any]]) -> int:
    """Bytes of all tensors among the entries of an optimiser's state."""
    return sum(v.numel() * v.element_size() for entries in states for v in entries.values() if isinstance(v, Tensor))


def dense_and_finite(optimiser: torch.optim.Optimizer) -> bool:
    """Whether no gradient is sparse, infinite or not a number."""
    grads = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    if any(g.is_sparse for g in grads):
        return False
    norms = [n.float().cpu() for n in torch._foreach_norm(grads)] if grads else []
    return all(bool(n.isfinite()) for n in norms)


class FirstOrder(Optimizer):
    """What they share: a step that is skipped whole, and the bytes of the state."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; nothing changes where a gradient is not finite. With a closure, the loss is its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if dense_and_finite(self):
            super().step()  # of the optimiser of torch that the class derives from as well
        return loss

    def state_bytes(self) -> int:
        return tensor_bytes(self.state.values())
