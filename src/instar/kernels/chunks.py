"""Sequences as rows of chunks, which every chunked form of a linear recurrence works on.

Axes: tensors are [M, C, X], M = N · B · H, one row for each of N chunks of each head; the rows of one chunk are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError

TOGETHER = 4096
"""Tokens times heads times rows that are worked on at once: enough for the matrix products, and what they leave stays in a cache
of a few MB. A long sequence all at once takes up to twice as long."""


def in_parts(
    step: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor | None], state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """step(*inputs, state) -> (o, state) over parts of a long sequence, one after the other.

    inputs [B, T, H, ·] or None, the first with the most heads; parts are a multiple of `chunk`. Returns o [B, T, H, ·] and the
    last state. (`split` hands gradients back in one piece, where slices would each make a whole zero tensor.)
    """
    first = inputs[0]
    assert first is not None
    size = chunk * max(1, TOGETHER // (first.shape[0] * first.shape[2] * chunk))
    count, outputs = -(-first.shape[1] // size), []
    for part in zip(*((None,) * count if x is None else x.split(size, dim=1) for x in inputs), strict=True):
        o, state = step(*part, state)
        outputs.append(o)
    return torch.cat(outputs, dim=1) if count > 1 else outputs[0], state


def check(chunk: int, log_gate: Tensor | None) -> None:
    """Raise ShapeError for a chunk that is no power of two, and for positive gates where looking is cheap (eager, on the CPU)."""
    if chunk < 1 or chunk & (chunk - 1):
        raise ShapeError(f"chunk must be a power of two; received {chunk}.")
    if log_gate is not None and log_gate.numel() and not torch.compiler.is_compiling() and log_gate.device.type == "cpu":
        most = float(log_gate.detach().max())
        if most > 0:
            raise ShapeError(f"log_gate must not be positive; received {most:g}. It is the logarithm of a factor in [0, 1].")


def split(x: Tensor, N: int, C: int) -> Tensor:
    """[B, T, H, X] to [N · B · H, C, X], with zeros after the last token."""
    B, T, H, X = x.shape
    if T != N * C:
        x = F.pad(x.reshape(B, T, H * X), (0, 0, 0, N * C - T))  # in 3 axes, lest pad keep a channels-last layout
    return x.reshape(B, N, C, H, X).permute(1, 0, 3, 2, 4).reshape(N * B * H, C, X)


def join(x: Tensor, B: int, T: int, H: int) -> Tensor:
    """The inverse of `split`."""
    M, C, X = x.shape
    N = M // (B * H)
    return x.view(N, B, H, C, X).permute(1, 0, 3, 2, 4).reshape(B, N * C, H, X)[:, :T]


def ones(C: int, like: Tensor) -> Tensor:
    """Lower triangle of ones: a cumulative sum as a matrix product, several times faster than `cumsum` over rows."""
    return torch.ones(C, C, dtype=like.dtype, device=like.device).tril_()
