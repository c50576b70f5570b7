"""One head, what its gradient is worth, and what it keeps in memory between the passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instar.adapters.limits import gradients
from instar.errors import DivergedError
from instar.interfaces import AttentionHead


@dataclass(frozen=True)
class Adapted:
    """A head whose queries come from an adapted map: inputs x, queries and keys of largest entry 1, values, all [L, d]; the
    gradient that comes from above; and B [d, r] of the adapter.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    up: Tensor
    b: Tensor


def draw(tokens: int, width: int, rank: int, generator: torch.Generator) -> Adapted:
    """All normal, float64."""
    x, q, k, v, up = (torch.randn(tokens, width, generator=generator, dtype=torch.float64) for _ in range(5))
    b = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    return Adapted(x, q / q.abs().max(), k / k.abs().max(), v, up, b)


def error(head: AttentionHead, given: Adapted, size: float) -> float:
    """‖∂A found − ∂A‖ / ‖∂A‖ with queries and keys of largest entry `size`; 1, that of no gradient, where weights diverge."""
    q, k, v, up = (part[None] for part in (size * given.q, size * given.k, given.v, given.up))
    want = _of_adapter(gradients.dense(q, k, v, up, 1.0, False)[0], given)
    leaf = q.clone().requires_grad_()
    try:
        with torch.enable_grad():
            (found,) = torch.autograd.grad(head(leaf, k, v), leaf, up)
    except DivergedError:
        return 1.0
    return float((_of_adapter(found, given) - want).norm() / want.norm())


def _of_adapter(dq: Tensor, given: Adapted) -> Tensor:
    return given.b.T @ dq[0].T @ given.x


def kept_bytes(call: Callable[[], Tensor]) -> int:
    """Bytes of all different tensors that autograd keeps for the gradient of `call`."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = call()
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del out
    return found
