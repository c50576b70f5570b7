"""Batch normalisation of the channels of a sequence, over real tokens alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """y = (x - mean) / √(variance + ε) ⊙ weight + bias, channel by channel, on [B, T, D].

    In training mean and variance are over all real tokens of the batch, and the running ones follow them; in eval mode they are
    the running ones, so that a token needs no other. Of a single real token the output is the bias. Ioffe, Szegedy 2015 (arXiv
    1502.03167).
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, D], mask bool [B, T], True where real."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training or x.shape[0] * x.shape[1] == 0:
            return self._scaled(x, self.running_mean, self.running_var)
        if mask is None and x.shape[0] * x.shape[1] > 1:
            return super().forward(x.flatten(0, 1)).view(x.shape)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))  # sums over a batch overflow in half precision
        real = torch.ones_like(exact[..., :1]) if mask is None else mask.unsqueeze(-1).to(exact.dtype)
        count = real.sum()
        mean = (exact * real).sum((0, 1)) / count.clamp(min=1)
        variance = ((exact - mean).square() * real).sum((0, 1)) / count.clamp(min=1)
        with torch.no_grad():
            rate = (self.momentum or 0.0) * (count > 0)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate.to(self.running_mean.dtype))
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate.to(self.running_var.dtype))
        return self._scaled(exact, mean, variance).to(x.dtype)

    def _scaled(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (x - mean) * (self.weight * torch.rsqrt(variance + self.eps)) + self.bias
