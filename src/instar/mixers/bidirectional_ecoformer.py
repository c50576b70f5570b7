"""EcoFormer: linear attention between short binary codes, which learned hash functions give.

Liu, Pan, He, Cai, Zhuang 2022, "EcoFormer: Energy-Saving Attention with Linear Complexity" (arXiv 2209.09004).
"""

from __future__ import annotations

import torch
from torch import Tensor

from instar.kernels import kernel_hashing
from instar.mixers.hashing import Hashing
from instar.mixers.whole_sequence import WholeSequence


class BidirectionalEcoformer(Hashing, WholeSequence):
    r"""o_i = Σ_j w_ij v_j / Σ_j w_ij with w_ij = b_i·b_j + β, β = c + 1, and codes b ∈ {−1, 1}^c of `Hashing`: in two sums,

        o_i = (b_iᵀ Σ_j b_j v_jᵀ + β Σ_j v_j) / (b_iᵀ Σ_j b_j + N β)

    Weights before the division are whole numbers in 1 … 2c + 1: a head cannot look sharply.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        bits: c. support: m anchors. pairs: of each token that a fit calls alike, and as many unlike.
        iterations: of a fit, for each bit; 0 leaves hash functions random. step: its step size; the authors' 5e-4
            leaves them almost random. spectral: a fit starts from eigenvectors and not from the present hash functions.
        refit_every: steps of training from fit to fit, 0 for one before the first; see `instar.models.refitting`. Each fit draws
            new anchors, so that all codes change.
        own_sigma: σ of each sequence; otherwise that of the last fit, so that a token's code depends on the token alone.
        released_numerator: as the authors' code has it, β v_i in place of β Σ_j v_j; then weights do not sum to 1.
        seed: of the random start and of what a fit draws, None for one of torch's generator.
        bias: biases of the three projections.

    Shapes: x [B, T, D] -> [B, T, D]; no state. Raises ShapeError. O(T (D² + m D + H m c + c D)) time, O(T H (m + c)) memory.
    Differs from the paper: a head takes a new hash function by its own loss; a fit looks at part of a batch.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        bits: int = 16,
        support: int = 25,
        pairs: int = 10,
        iterations: int = 100,
        step: float = 10.0,
        spectral: bool = False,
        refit_every: int = 0,
        own_sigma: bool = True,
        released_numerator: bool = False,
        seed: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads, bits, support, pairs, iterations, step, spectral, refit_every, seed, bias)
        self.own_sigma, self.released_numerator = own_sigma, released_numerator

    def spread(self, squared: Tensor, real: Tensor) -> Tensor:
        return kernel_hashing.spread(squared, real) if self.own_sigma else self.sigma.to(squared).view(1, -1, 1, 1)

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            z, v = self.project(x)
            seen = real[:, None, :, None]
            b, v = self.codes(z, real), v * seen
            keys, count = b * seen, real.sum(1).view(-1, 1, 1, 1)
            mean = v if self.released_numerator else v.sum(2, keepdim=True)
            norm = b @ keys.sum(2).unsqueeze(-1) + count * self.beta
            y = (b @ (keys.mT @ v) + self.beta * mean) / norm.masked_fill(norm == 0, 1.0)
            return self.leave(y, x)

    def alone(self, x: Tensor) -> Tensor:
        z, v = self.project(x.unsqueeze(0))
        b = self.codes(z, torch.ones(1, len(x), dtype=torch.bool, device=x.device))
        w = b @ b.mT + self.beta
        read = b @ b.mT @ v + self.beta * v if self.released_numerator else w @ v
        return self.leave(read / w.sum(-1, keepdim=True), x)[0]
