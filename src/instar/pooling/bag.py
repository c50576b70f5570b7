"""What every pooling asks of its input."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.errors import ShapeError


def positive(**sizes: int) -> None:
    """Raise ShapeError for a size that is no positive whole number."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ShapeError(f"{name} must be a positive whole number; received {size!r}.")


def real(x: Tensor, mask: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
    """The instances, zeros where they are padding (whose NaN outlives a product with 0), and bool [B, N]. Raises ShapeError."""
    if x.dim() != 3 or x.shape[2] != width or not x.is_floating_point():
        raise ShapeError(f"A bag is floats [B, N, {width}]; received {x.dtype} {list(x.shape)}.")
    if mask is None:
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
        raise ShapeError(f"mask is bool {list(x.shape[:2])}; received {mask.dtype} {list(mask.shape)}.")
    return x.masked_fill(~mask.unsqueeze(-1), 0.0), mask
