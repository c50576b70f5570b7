"""What first-order optimisers share: groups, the bytes of a state, and steps that are skipped whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from instar.errors import CheckpointError, ShapeError
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


def gradients(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Those that there are."""
    return [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]


def dense_and_finite(optimiser: torch.optim.Optimizer, *, sparse: bool = False) -> bool:
    """Whether no gradient is infinite or not a number; nor sparse, but for optimisers that step with such ones (`sparse`)."""
    grads = gradients(optimiser)
    if any(g.is_sparse for g in grads):
        if not sparse:
            return False
        grads = [g._values() if g.is_sparse else g for g in grads]
    norms = [n.float().cpu() for n in torch._foreach_norm(grads)] if grads else []
    return all(bool(n.isfinite()) for n in norms)


def refuse_copy(optimiser: torch.optim.Optimizer, why: str) -> NoReturn:
    """Raise CheckpointError, for a copy that would not work."""
    raise CheckpointError(
        f"{type(optimiser).__name__} cannot be copied or pickled: {why}. Make a new one for the copied model, and give its "
        "load_state_dict the state_dict() of this one."
    )


class Whole(Optimizer):
    """Steps that are made whole or not at all."""

    _said = False

    @property
    def sparse(self) -> bool:
        """Whether it has a step for sparse gradients."""
        return False

    def ready(self) -> bool:
        """Whether the gradients allow a step; says once that sparse ones never will."""
        if dense_and_finite(self, sparse=self.sparse):
            return True
        if not self._said and not self.sparse and any(g.is_sparse for g in gradients(self)):
            self._said = True
            text = (
                f"A gradient is sparse: {type(self).__name__} skips such steps whole. Make the embedding with sparse=False, or "
                "take SGD without weight decay."
            )
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        return False


class FirstOrder(Whole):
    """What torch's optimisers get besides: a step that is skipped whole, and the bytes of the state."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; nothing changes where a gradient is not finite. With a closure, the loss is its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.ready():
            # Of the optimiser of torch that the class derives from as well. Where one of that class has been made, torch has put
            # the calls of hooks around its step, and they are around this one already.
            step: Any = super().step
            plain = step.__func__
            (plain.__wrapped__ if getattr(plain, "hooked", False) else plain)(self)
        return loss

    def state_bytes(self) -> int:
        return tensor_bytes(self.state.values())
