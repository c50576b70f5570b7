"""Magnitude pruning: the smallest weights of each layer become zero, and only the others are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from instar.anatomy.linear import is_linear
from instar.compression import compressor
from instar.compression.compressor import Compressor, Work
from instar.errors import ShapeError, TransformError


@dataclass(frozen=True)
class Sparse:
    """A bit for each weight, and the weights that are kept, float32: 1 + 32 · density bits a weight."""

    kind: ClassVar[Any] = "sparse"
    density: float

    def kept(self, shape: tuple[int, ...]) -> int:
        """How many weights are kept."""
        return int(self.density * shape[0] * shape[1])

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        flat = weight.detach().float().reshape(-1)
        if not bool(torch.isfinite(flat).all()):
            raise TransformError("NaN or infinity has no place in an order by size.")
        kept = _largest(flat.abs(), self.kept(tuple(weight.shape)))
        bits = torch.nn.functional.pad(kept.to(torch.uint8), (0, -len(kept) % 8)).view(-1, 8)
        mask = (bits << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)
        return {"mask": mask, "values": flat[kept]}

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        mask = parts["mask"]
        bits = mask[:, None] >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
        kept = bits.bool().view(-1)[: shape[0] * shape[1]]
        return torch.zeros(len(kept), device=mask.device).masked_scatter_(kept, parts["values"]).view(shape)

    def lookup(self, parts: Mapping[str, Tensor], shape: tuple[int, ...], ids: Tensor) -> Tensor:
        return self.decode(parts, shape)[ids]

    def blank(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {
            "mask": torch.empty(-(-shape[0] * shape[1] // 8), dtype=torch.uint8, device="meta"),
            "values": torch.empty(self.kept(shape), device="meta"),
        }

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


class MagnitudePruning(Compressor):
    """ŵ = w where |w| is among the `density` · N largest of its linear layer, else 0; no training afterwards.

    Args:
        density: fraction of weights kept, above 0 and at most 1.
        keep: regular expressions over names of layers that stay as they are.

    Smaller on disk below a density of 31/32, not faster: the weight is spread out when it is used. O(N log N).
    """

    method: ClassVar[str] = "magnitude_pruning"

    def __init__(self, *, density: float = 0.5, keep: Sequence[str] = ()) -> None:
        if not 0 < density <= 1:
            raise ShapeError(f"density expects a fraction above 0 and at most 1; received {density}.")
        self.density = density
        self.keep = compressor.checked_keep(keep)

    def takes(self, module: nn.Module) -> bool:
        return is_linear(module)

    def replacement(self, name: str, module: nn.Module, work: Work) -> nn.Module:
        return compressor.stored(name, module, Sparse(self.density), work)


def _largest(size: Tensor, count: int) -> Tensor:
    """Where the `count` largest of size [N] are, bool; of equal ones the first. O(N), and a copy: to sort takes 5 copies."""
    kept = torch.zeros(len(size), dtype=torch.bool, device=size.device)
    if count:
        place = len(size) - count
        least = float(np.partition(size.cpu().numpy(), place)[place])
        torch.gt(size, least, out=kept)
        kept[(size == least).nonzero()[: count - int(kept.sum()), 0]] = True
    return kept
