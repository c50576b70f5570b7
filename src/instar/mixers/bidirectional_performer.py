"""Performer over whole sequences: every token reads both sides through two sums.

Choromanski et al. 2020, "Rethinking Attention with Performers" (arXiv 2009.14794).
"""

from __future__ import annotations

import torch
from torch import Tensor

from instar.kernels.random_features import exponents, softmax_features
from instar.mixers.performer import Kernel, RandomFeatures
from instar.mixers.whole_sequence import WholeSequence


class BidirectionalPerformer(RandomFeatures, WholeSequence):
    r"""O = φ(Q) (φ(K)ᵀ V) / (φ(Q) φ(K)ᵀ 1), with the features of `Performer`; c of the keys is their largest exponent.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        features: m; 0 means ⌈K ln K⌉. kernel: "softmax", or "relu" or "elu", which estimate no softmax. seed: of
            the random directions, None for one of torch's generator; see `redraw`. bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; no state. Raises ShapeError. O(T (D² + m D)) time, O(m (T H + D)) memory.
    Differs from the paper: directions are redrawn only on request.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        features: int = 0,
        kernel: Kernel = "softmax",
        seed: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads, features, kernel, seed, bias)

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        q, k, v = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            dtype, seen = torch.promote_types(x.dtype, torch.float32), real[:, None, :, None]
            q, k, v = (part.to(dtype) for part in (q, k, v))
            if self.kernel != "softmax":
                keys = self.simple(k)
            else:
                a = exponents(k, self.w.to(k))
                top = a.masked_fill(~seen, torch.finfo(dtype).min).amax((-2, -1), keepdim=True)
                keys = softmax_features(a.masked_fill(~seen, torch.finfo(dtype).min), top)
            keys, queries = keys * seen, self.query_features(q)
            norm = queries @ keys.sum(2).unsqueeze(-1) + self.floor
            y = queries @ (keys.mT @ v) / norm.masked_fill(norm == 0, 1.0)
        return self.leave(y.to(x.dtype))

    def alone(self, x: Tensor) -> Tensor:
        q, k, v = (part[0] for part in self.project(x.unsqueeze(0)))
        if self.kernel != "softmax":
            keys = self.simple(k)
        else:
            a = exponents(k, self.w.to(k))
            keys = softmax_features(a, a.amax((1, 2), keepdim=True))
        A = self.query_features(q) @ keys.mT
        return self.leave((A / (A.sum(-1, keepdim=True) + self.floor) @ v).unsqueeze(0))[0]
