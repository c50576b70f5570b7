"""Selective S4: S4 over the informative tokens of a sequence, chosen with a slowly moving copy of itself as the guide.

Wang, Zhu, Wang, Yu, Liu, Omar, Hamid 2023, "Selective Structured State-Spaces for Long-Form Video Understanding" (arXiv
2303.14526), called S5 there; it is neither the simplified state space S5 nor Mamba. Its pre-training is `models.long_short`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.mixers.s4 import S4
from instar.mixers.selective_tokens import FixedTokens, SelectiveTokens
from instar.mixers.whole_sequence import WholeSequence
from instar.models.momentum import MomentumCopy

Guide = Literal["momentum", "tokens", "random", "stride"]


class SelectiveS4(WholeSequence):
    r"""The k tokens of largest keep probability go through S4 in their order; the others give 0 (a residual carries them on).

        f = S4_m(x) without gradient,  π = W_3 ReLU(W_2 [z^{left}; mean z^{right}]),  z = ReLU(W_1 LN(f)),
        y_kept = S4(x_kept),  θ_m ← μ θ_m + (1 - μ) θ

    See `SelectiveTokens` for the choice and its straight-through gradient. θ_m follows at the first training pass after each
    step of the optimiser.

    Args:
        width: D, at least 4. heads: part of every mixer's signature; it changes nothing.
        keep: the share of tokens that stays; at 1 the layer is S4 and chooses nothing.
        guide: what the choice is read from: "momentum", S4_m(x), or "tokens", x itself; "random" and "stride" are the controls
            that read nothing (`FixedTokens`). momentum: μ. temperature: τ.
        state_size, dt_min, dt_max: of S4.

    Shapes: x [B, T, D] -> [B, T, D]; no state, since later tokens decide whether an earlier one is among the k. Raises
    ShapeError. O(T (D² + D N)) time for the guide, which keeps nothing for the backward pass, and keep times as much for S4.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 1,
        keep: float = 0.5,
        guide: Guide = "momentum",
        momentum: float = 0.99,
        temperature: float = 1.0,
        state_size: int = 64,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__()
        if guide not in get_args(Guide):
            raise ShapeError(f"guide is one of {', '.join(get_args(Guide))}; received '{guide}'.")
        self.width, self.heads, self.guide, self.state_size = width, heads, guide, state_size
        self.s4 = S4(width, heads=heads, state_size=state_size, dt_min=dt_min, dt_max=dt_max)
        self.select: SelectiveTokens | FixedTokens
        if guide == "random" or guide == "stride":
            self.select = FixedTokens(keep=keep, rule=guide)
        else:
            self.select = SelectiveTokens(width, keep=keep, temperature=temperature)
        self.momentum_s4 = MomentumCopy(self.s4, momentum) if guide == "momentum" else None

    @property
    def keep(self) -> float:
        """The share of tokens that stays."""
        return self.select.keep

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        mask = None if not torch.compiler.is_compiling() and bool(real.all()) else real
        if self.training and self.momentum_s4 is not None:
            self.momentum_s4.follow(self.s4)  # in pre-training, which chooses nothing, too
        if self.keep == 1:
            return self.s4(x, mask=mask)[0]
        with torch.autocast(x.device.type, enabled=False):  # in half precision other tokens would be chosen
            exact = x.to(self.s4.log_dt.dtype)
            chosen = self.select(exact, self._features(exact, mask), real)
        y, _ = self.s4(chosen.tokens.to(x.dtype), mask=None if mask is None else chosen.kept)
        y = y.masked_fill(~chosen.kept.unsqueeze(-1), 0.0)
        return torch.zeros_like(x, dtype=y.dtype).scatter(1, chosen.places.unsqueeze(-1).expand_as(y), y)

    def _features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.momentum_s4 is None:
            return x
        return self.momentum_s4(x, mask=mask)[0]

    def alone(self, x: Tensor) -> Tensor:
        if self.keep == 1:
            return self.s4.reference(x.unsqueeze(0))[0][0]
        features, own = x, self.select
        if isinstance(own, FixedTokens):
            scores = own.scores(torch.arange(len(x))[None], torch.tensor([[len(x)]]))[0].tolist()
            return self._given(x, sorted(sorted(range(len(x)), key=lambda i: -scores[i])[: own.count(len(x))]))
        if self.momentum_s4 is not None:
            with torch.no_grad():
                features = self.momentum_s4.copy.reference(x.unsqueeze(0))[0][0]  # type: ignore[operator]
        z = F.relu(own.inner(F.layer_norm(features, x.shape[1:], own.norm.weight, own.norm.bias)))
        half = z.shape[1] // 2
        logits = [own.logits(F.relu(own.hidden(torch.cat([row[:half], z[:, half:].mean(0)])))) for row in z]
        p = torch.stack([torch.softmax(row / own.temperature, dim=0)[1] for row in logits])
        scores = own.perturbed(p.log()).tolist()
        chosen = sorted(sorted(range(len(x)), key=lambda i: -scores[i])[: own.count(len(x))])
        return self._given(x * (1 + p - p.detach()).unsqueeze(1), chosen)

    def _given(self, x: Tensor, chosen: list[int]) -> Tensor:
        """S4 over the chosen tokens, zeros elsewhere."""
        y = self.s4.reference(x[chosen].unsqueeze(0))[0][0]
        return torch.zeros_like(x).index_put((torch.tensor(chosen, device=x.device),), y)


@contextlib.contextmanager
def choosing_nothing(model: nn.Module) -> Iterator[None]:
    """All tokens are kept by every selective layer of a model: for pre-training, where tokens are left out at random instead."""
    layers = [module for module in model.modules() if isinstance(module, (SelectiveTokens, FixedTokens))]
    shares = [layer.keep for layer in layers]
    for layer in layers:
        layer.keep = 1.0
    try:
        yield
    finally:
        for layer, share in zip(layers, shares, strict=True):
            layer.keep = share
