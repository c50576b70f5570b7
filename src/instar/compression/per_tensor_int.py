"""Layer-wise quantisation: one scale for a whole weight and one for a whole activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from instar.compression import compressor
from instar.compression.blocks import BlockFormat, Scale
from instar.compression.compressor import Compressor, Work


class PerTensorInt(Compressor):
    """x̂ = s · round(x / s), s = max|x| / (2^(b−1) − 1) over the whole tensor; activations anew at each call, a batch at a time.

    Args:
        bits: of weights. activation_bits: of the inputs of linear layers; 0 leaves them in float. scale: see `BlockFormat`.
        keep: regular expressions over names of layers that stay as they are.

    What blockwise formats are compared with: a single large value coarsens everything else.
    """

    method: ClassVar[str] = "per_tensor_int"

    def __init__(self, *, bits: int = 8, activation_bits: int = 8, scale: Scale = "float32", keep: Sequence[str] = ()) -> None:
        self.bits, self.activation_bits, self.scale = bits, activation_bits, scale
        self.weights = BlockFormat(bits, 0, 0, scale)
        self.inputs = BlockFormat(activation_bits, 0, 0, scale) if activation_bits else None
        self.scale_bytes = {"float16": 2, "float32": 4}.get(scale, 1)
        self.keep = compressor.checked_keep(keep)

    def replacement(self, name: str, module: nn.Module, work: Work) -> nn.Module:
        return compressor.stored(name, module, self.weights, work, self.inputs)
