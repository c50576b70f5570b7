"""8 bits with a scale for each output of a weight and for each token of an activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from instar.compression import compressor
from instar.compression.compressor import Compressor, Work
from instar.compression.int8_linear import WEIGHTS


class PerChannelInt8(Compressor):
    """ŵ_o = s_o · round(w_o / s_o) for each output o, x̂_t = s_t · round(x_t / s_t) for each token t, s = max| · | / 127.

    What `torch.ao.quantization.quantize_dynamic` and torchao's Int8DynamicActivationInt8Weight do to numbers, computed in float:
    for its quality, not its speed (`int8` is the fast form). Embeddings get a scale for each row.

    Args:
        keep: regular expressions over names of layers that stay as they are.
    """

    method: ClassVar[str] = "per_channel_int8"

    def __init__(self, *, keep: Sequence[str] = ()) -> None:
        self.keep = compressor.checked_keep(keep)

    def replacement(self, name: str, module: nn.Module, work: Work) -> nn.Module:
        return compressor.stored(name, module, WEIGHTS, work, WEIGHTS)
