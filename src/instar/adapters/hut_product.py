"""The product of HUT, y = x (A^r ⊙ W0 ⊙ B^r) + b, in weight space and in activation space.

I inputs · O outputs · T rows of x · r rank. W0 [O, I] as `nn.Linear` has it · A [I, r] · B [r, O] · x [T, I]. Output j lies in
group a(j), input i in group b(i), r groups of each, and W_new[j, i] = A[i, a(j)] · W0[j, i] · B[b(i), j].
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Layout = Literal["block", "tile"]
ELEMENTWISE = 64.0
"""What an operation on one element is worth in FLOPs of a matrix product, in time: it waits for memory, a product does not.

With it the estimate changes sides where `benchmarks/adapters.py` does: between 16 and 64 tokens at width 384, between 64 and
256 at 1024 (rank 8, one thread).
"""


def groups(size: int, r: int, layout: Layout, device: torch.device | None = None) -> Tensor:
    """The group of each of `size` places: blocks of ⌈size / r⌉ (the last ones may be short or empty), or in turn."""
    places = torch.arange(size, device=device)
    return places % r if layout == "tile" else places // -(-size // r)


def formed(weight: Tensor, A: Tensor, B: Tensor, layout: Layout) -> Tensor:
    """W_new [O, I], as the equation says: the reference, for any sizes. 2 I O multiplications."""
    outputs, inputs = weight.shape
    a, b = (groups(size, A.shape[1], layout, weight.device) for size in (outputs, inputs))
    return weight * A.T[a] * B.T[:, b]


def divides(weight: Tensor, r: int) -> bool:
    """Whether the groups are all of one size, which the fast forms need."""
    return weight.shape[0] % r == 0 and weight.shape[1] % r == 0


def cheaper_weight(T: int, inputs: int, outputs: int, r: int, *, training: bool) -> bool:
    """Whether weight space takes less time, by counted operations, those on elements at their price.

    Weight space forms W_new: 2 I O; its backward forms it again, makes the dense gradient, a matrix product of 2 T I O, and 5 I O
    operations more. Activation space makes T r (I + 2 O) operations on elements, and 5 T r (I + O) in a step.
    """
    if training:
        return 2 * T * inputs * outputs + 9 * ELEMENTWISE * inputs * outputs <= ELEMENTWISE * 5 * T * r * (inputs + outputs)
    return 2 * inputs * outputs <= T * r * (inputs + 2 * outputs)


def in_weight_space(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, layout: Layout) -> Tensor:
    """One matrix product with W_new, which is formed again for the gradient instead of being kept."""
    if not divides(weight, A.shape[1]) or weight.requires_grad:
        return F.linear(x, formed(weight, A, B, layout).to(x.dtype), _like(bias, x))
    found: Tensor = _WeightSpace.apply(x, weight, _like(bias, x), A, B, layout)
    return found


def in_activation_space(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, layout: Layout) -> Tensor:
    """r² products of blocks, as many FLOPs as one of the whole; no gradient of a weight is ever formed.

    y_a = Σ_b ((x_b ⊙ A[b, a]) W0[b, a]) ⊙ B[b, a]. Keeps T r O numbers for the gradient. r must divide I and O.
    """
    r = A.shape[1]
    rows = cut(x.reshape(-1, x.shape[-1]), 1, r, layout).transpose(0, 1)  # [b, T, i]
    blocks = _blocks(weight, r, layout).permute(0, 2, 3, 1)  # [a, b, i, o]
    scaled = (rows * _left(A, layout)[:, :, None]).to(x.dtype)  # [a, b, T, i]
    parts = (scaled @ blocks.to(x.dtype)) * _right(B, layout).transpose(1, 2)[:, :, None]  # [a, b, T, o]
    y = glue(parts.sum(1).transpose(0, 1), 1, layout).to(x.dtype)
    return (y if bias is None else y + bias.to(x.dtype)).reshape(*x.shape[:-1], weight.shape[0])


def cut(tensor: Tensor, dim: int, r: int, layout: Layout) -> Tensor:
    """An axis as two: group and place in it. A view."""
    size = tensor.shape[dim] // r
    if layout == "block":
        return tensor.unflatten(dim, (r, size))
    return tensor.unflatten(dim, (size, r)).transpose(dim, dim + 1)


def glue(tensor: Tensor, dim: int, layout: Layout) -> Tensor:
    """The inverse of `cut`."""
    return (tensor if layout == "block" else tensor.transpose(dim, dim + 1)).flatten(dim, dim + 1)


def _blocks(weight: Tensor, r: int, layout: Layout) -> Tensor:
    """W0 as [a, o, b, i]."""
    return cut(cut(weight, 1, r, layout), 0, r, layout)


def _left(A: Tensor, layout: Layout) -> Tensor:
    """A as [a, b, i]."""
    return cut(A.T, 1, A.shape[1], layout)


def _right(B: Tensor, layout: Layout) -> Tensor:
    """B as [a, o, b]."""
    return cut(B.T, 0, B.shape[0], layout)


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


class _WeightSpace(torch.autograd.Function):
    """x W_newᵀ + b that keeps x, W0, A and B alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(x, weight, A, B)
        ctx.layout = layout
        return F.linear(x, _formed_of(weight, A, B, layout).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B = ctx.saved_tensors
        layout: Layout = ctx.layout
        need_x, _, need_bias, need_a, need_b, _ = ctx.needs_input_grad
        dx = dbias = dA = dB = None
        rows = dy.reshape(-1, dy.shape[-1])
        if need_x:
            dx = (dy @ _formed_of(weight, A, B, layout).to(dy.dtype)).to(x.dtype)
        if need_bias:
            dbias = rows.sum(0)
        if need_a or need_b:
            dense = rows.T @ x.reshape(-1, x.shape[-1]).to(dy.dtype)
            gradient = _blocks(dense.to(A.dtype), A.shape[1], layout) * _blocks(weight, A.shape[1], layout)
            if need_a:
                dA = glue((gradient * _right(B, layout)[..., None]).sum(1), 1, layout).T
            if need_b:
                dB = glue((gradient * _left(A, layout)[:, None]).sum(3), 0, layout).T
        return dx, None, dbias, dA, dB, None


def _formed_of(weight: Tensor, A: Tensor, B: Tensor, layout: Layout) -> Tensor:
    """`formed` through views, without gradients."""
    product = _blocks(weight, A.shape[1], layout) * _left(A, layout)[:, None]
    product *= _right(B, layout)[..., None]
    return glue(glue(product, 2, layout), 0, layout)
