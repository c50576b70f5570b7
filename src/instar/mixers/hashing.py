"""What both EcoFormers share: one projection for queries and keys, hash functions with their anchors, and the fit of these."""

from __future__ import annotations

import abc
import itertools
import math

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels import kernel_hashing
from instar.mixers.drawn_seed import drawn_seed

FIT_SEQUENCES, FIT_TOKENS = 8, 128
"""Most of a batch that a fit looks at; it holds H matrices of FIT_TOKENS² for each sequence."""


class Hashing(Mixer):
    r"""Codes b_r(z) = sign(Σ_j (κ_j(z) − μ_j) a_rj), r = 1 … c, with κ_j(z) = exp(−|z − s_j|² / 2σ) and z = W_qk x / |W_qk x|.

    Anchors s_j, means μ, widths σ and hash functions a are buffers; `refit` learns them. Until then anchors are random unit
    vectors and hash functions random. Arguments as of `BidirectionalEcoformer`. Raises ShapeError.
    """

    anchors: Tensor
    centre: Tensor
    sigma: Tensor
    hashes: Tensor
    seed: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        bits: int,
        support: int,
        pairs: int,
        iterations: int,
        step: float,
        spectral: bool,
        refit_every: int,
        seed: int | None,
        bias: bool,
    ) -> None:
        super().__init__()
        if heads < 1 or width < heads or width % heads:
            raise ShapeError(f"width must be a positive multiple of heads; received width={width}, heads={heads}.")
        if min(bits, support, pairs) < 1 or min(iterations, refit_every) < 0 or not 0 < step < math.inf:
            raise ShapeError(
                "bits, support, pairs and step must be positive, iterations and refit_every 0 or more; received "
                f"bits={bits}, support={support}, pairs={pairs}, step={step}, iterations={iterations}, refit_every={refit_every}."
            )
        self.width, self.heads, self.head_width = width, heads, width // heads
        self.bits, self.support, self.pairs, self.iterations, self.step = bits, support, pairs, iterations, step
        self.spectral, self.refit_every, self.beta = spectral, refit_every, float(bits + 1)
        self.qk_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=bias) for _ in range(3))
        seed = drawn_seed(seed)
        self.register_buffer("seed", torch.tensor(seed))
        generator = torch.Generator().manual_seed(seed)
        anchors = kernel_hashing.unit(torch.randn(heads, support, self.head_width, generator=generator))
        self.register_buffer("hashes", torch.randn(heads, bits, support, generator=generator))
        self.register_buffer("anchors", anchors)
        self.register_buffer("sigma", torch.full((heads,), 2.0))  # two random unit vectors are √2 apart
        self.register_buffer("centre", torch.full((heads, support), math.exp(-0.5)))  # κ at that distance

    @abc.abstractmethod
    def spread(self, squared: Tensor, real: Tensor) -> Tensor:
        """σ [S or 1, H, 1, 1] for squared distances [S, H, N, m] of real tokens [S, N]."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z of length 1 and values, [B, H, T, K] each. In float32 or better: in half precision tokens would get other codes."""
        x = x.to(self.qk_proj.weight.dtype)
        z, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.qk_proj(x), self.v_proj(x)))
        kind = torch.promote_types(z.dtype, torch.float32)
        return kernel_hashing.unit(z.to(kind)), v.to(kind)

    def features(self, z: Tensor, real: Tensor) -> Tensor:
        """κ(z) − μ, [S, H, N, K] -> [S, H, N, m]."""
        squared = kernel_hashing.distances(z, self.anchors.to(z))
        return kernel_hashing.gaussian(squared, self.spread(squared, real)) - self.centre.to(z).unsqueeze(-2)

    def codes(self, z: Tensor, real: Tensor) -> Tensor:
        """Codes of ±1, [S, H, N, K] -> [S, H, N, c]; their gradient passes where a sum before the sign is inside (−1, 1)."""
        return kernel_hashing.codes(self.features(z, real) @ self.hashes.to(z).mT)

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        """Head outputs [B, H, T, K] -> [B, T, D] in the type of x, through W_o."""
        return self.o_proj(y.to(self.o_proj.weight.dtype).transpose(1, 2).flatten(2)).to(x.dtype)

    @torch.no_grad()
    def refit(self, x: Tensor, *, mask: Tensor | None = None, reset: Tensor | None = None) -> None:
        """Learn the hash functions from inputs [B, T, D]: anchors from their tokens, means, widths, then `kernel_hashing.learn`.

        Looks at the first FIT_SEQUENCES sequences of two tokens or more, and at FIT_TOKENS of each, drawn by the seed: a function
        of the inputs alone. Anchors come from the first sequence, or from all where it is shorter than their number. Sums before
        the sign are scaled to variance 1, or few of their gradients would pass. Weights and their gradients are left alone.
        Raises ShapeError for fewer tokens than anchors.
        """
        generator = torch.Generator().manual_seed(int(self.seed))
        with torch.autocast(x.device.type, enabled=False):
            z, _ = self.project(x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0))
        rows = []
        for b, tokens in itertools.islice(_sequences(x, mask, reset), FIT_SEQUENCES):
            chosen = torch.randperm(len(tokens), generator=generator)[:FIT_TOKENS].to(x.device)
            rows.append(z[b, :, tokens[chosen]])
        count = sum(row.shape[1] for row in rows)
        if count < self.support:
            raise ShapeError(f"Hash functions with {self.support} anchors need as many tokens to be fitted to; received {count}.")
        pool = rows[0] if rows[0].shape[1] >= self.support else torch.cat(rows, 1)
        drawn = [torch.randperm(pool.shape[1], generator=generator)[: self.support] for _ in range(self.heads)]
        self.anchors.copy_(torch.stack([pool[h, own.to(x.device)] for h, own in enumerate(drawn)]))
        z = nn.utils.rnn.pad_sequence([row.transpose(0, 1) for row in rows], batch_first=True).transpose(1, 2)
        length = torch.tensor([row.shape[1] for row in rows], device=x.device)
        real = torch.arange(z.shape[2], device=x.device) < length.unsqueeze(1)
        self.sigma.copy_(kernel_hashing.spread(kernel_hashing.distances(z, self.anchors.to(z)), real).mean((0, 2, 3)))
        self.centre.zero_()
        kappa = self.features(z, real) * real[:, None, :, None]
        self.centre.copy_(kappa.sum((0, 2)) / real.sum())
        features = self.features(z, real)
        learned = kernel_hashing.learn(
            features,
            kernel_hashing.similarity(z, real, self.pairs),
            real,
            self.hashes.to(z),
            iterations=self.iterations,
            step=self.step,
            spectral=self.spectral,
        )
        size = ((features @ learned.mT).square() * real[:, None, :, None]).sum((0, 2)) / real.sum()
        self.hashes.copy_(learned / size.clamp(min=1e-12).sqrt().unsqueeze(-1))


def _sequences(x: Tensor, mask: Tensor | None, reset: Tensor | None) -> list[tuple[int, Tensor]]:
    """Row and tokens of every sequence that has two or more."""
    B, T, _ = x.shape
    found = []
    for b in range(B):
        starts = [] if reset is None else reset[b].nonzero().flatten().tolist()
        for begin, end in itertools.pairwise([0, *starts, T]):
            tokens = torch.arange(begin, end, device=x.device)
            tokens = tokens if mask is None else tokens[mask[b, begin:end]]
            if len(tokens) > 1:
                found.append((b, tokens))
    return found
