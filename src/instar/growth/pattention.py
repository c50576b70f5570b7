"""Attention from tokens to learnable parameter tokens: a linear layer whose size is a number of pairs, and can change.

Wang et al. 2024, TokenFormer (arXiv 2410.23168).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.growth.norm_gelu import factor_of, norm_gelu

Mode = Literal["l2_norm_gelu", "gelu_l2_norm", "softmax", "gelu", "l2_norm", "gelu_layer_norm", "linear"]
MODES = get_args(Mode)
TEMPERED = ("l2_norm_gelu", "gelu_l2_norm", "softmax", "l2_norm")
"""Modes in which τ has a part."""
COUNTING = ("softmax", "gelu_layer_norm")
"""Modes in which a pair whose key is zero still counts, so that none can be appended without changing the output."""
Keys = Literal["zero", "normal"]
Tau = Literal["fixed", "grow", "anneal"]
STD = 0.02


class Pattention(nn.Module):
    r"""y = S V with S_ij = f(τ A_ij / √Σ_k A_ik²), A = x Kᵀ over n pairs of keys and values; in place of `nn.Linear`.

    Modes, with N(a) = τ a / (‖a‖₂ + eps) over the pairs: l2_norm_gelu GELU(N(A)), gelu_l2_norm N(GELU(A)), l2_norm N(A),
    softmax τ² softmax(A), gelu GELU(A), gelu_layer_norm LayerNorm(GELU(A)) without learnt scale, linear A (then y = x Kᵀ V).
    GELU is the exact one, there is no 1/√d, and norms are of float32 at least.

    Args:
        d_in, d_out: widths of x and y. n: pairs, or a list of how many at each growth.
        mode: see above. tau: τ; None is √n. It is kept as its square, the buffer `tau2`, and does not follow n by itself.
        scale: multiplies y. eps: added to the norm, so that a row of zeros gives zeros.
        value_std: of the values' normal start; keys have 0.02. bias: whether a vector is added to y.

    Shapes: x [..., d_in] -> [..., d_out]. O(n (d_in + d_out)) a token. Raises ShapeError.
    Each growth is a parameter of its own (`keys.1`, `values.1`), so that what was there keeps its bits, its sums and its state in
    an optimiser, and the new rows count their own steps there. Differs from the paper: eps (as the JAX code has it, the PyTorch
    code has none), τ that stays when n grows, mode linear, biases.
    """

    tau2: Tensor
    tau2_range: Tensor

    def __init__(
        self,
        d_in: int,
        d_out: int,
        n: int | Sequence[int],
        *,
        mode: Mode = "l2_norm_gelu",
        tau: float | None = None,
        scale: float = 1.0,
        eps: float = 1e-5,
        value_std: float = STD,
        bias: bool = False,
    ) -> None:
        super().__init__()
        counts = [n] if isinstance(n, int) else list(n)
        if min(d_in, d_out, len(counts), *counts) < 1:
            raise ShapeError(f"Pattention expects d_in, d_out and n of at least 1; received {d_in}, {d_out} and {n}.")
        if mode not in MODES:
            raise ShapeError(f"mode must be one of {', '.join(map(repr, MODES))}; received {mode!r}.")
        if (tau is not None and not tau > 0) or eps < 0 or value_std < 0:
            raise ShapeError(
                f"Pattention expects tau above 0, eps and value_std of at least 0; received {tau}, {eps} and {value_std}."
            )
        self.d_in, self.d_out, self.mode, self.scale, self.eps, self.value_std = d_in, d_out, mode, scale, eps, value_std
        self.keys = nn.ParameterList(nn.Parameter(torch.empty(count, d_in).normal_(std=STD)) for count in counts)
        self.values = nn.ParameterList(nn.Parameter(torch.empty(count, d_out).normal_(std=value_std)) for count in counts)
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None
        square = float(sum(counts)) if tau is None else tau**2
        self.register_buffer("tau2", torch.tensor(square))
        self.register_buffer("tau2_range", torch.tensor([square, square]))

    @property
    def counts(self) -> list[int]:
        """Pairs by growth."""
        return [len(key) for key in self.keys]

    @property
    def n(self) -> int:
        """Pairs."""
        return sum(self.counts)

    @property
    def key(self) -> Tensor:
        """All keys [n, d_in]."""
        return torch.cat(list(self.keys))

    @property
    def value(self) -> Tensor:
        """All values [n, d_out]."""
        return torch.cat(list(self.values))

    @property
    def weight(self) -> Tensor:
        """The first keys, for who asks a layer for its type and device."""
        return self.keys[0]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """y [..., d_out] of x [..., d_in]. mask: bool, broadcast to [..., n], the pairs that a token may use."""
        masks = [None] * len(self.keys) if mask is None else mask.split(self.counts, -1)
        scores = [F.linear(x, key) for key in self.keys]
        weights = self._weights(scores, masks)
        y = weights[0] @ self.values[0]
        for part, value in zip(weights[1:], list(self.values)[1:], strict=True):
            y = y + part @ value
        y = y if self.scale == 1.0 else self.scale * y
        return y if self.bias is None else y + self.bias

    def _weights(self, scores: list[Tensor], masks: Sequence[Tensor | None]) -> list[Tensor]:
        """S by growth. What is added later is added last, here and in `forward`, so that zeros change no bit."""
        if self.mode in COUNTING:
            whole = torch.cat(scores, -1)
            if self.mode == "softmax":
                mask = None if masks[0] is None else torch.cat([m for m in masks if m is not None], -1)
                return list(self._softmax(whole, mask).split(self.counts, -1))
            whole = F.gelu(_only(whole, None if masks[0] is None else torch.cat([m for m in masks if m is not None], -1)))
            return list(F.layer_norm(whole, whole.shape[-1:], eps=self.eps).split(self.counts, -1))
        scores = [_only(part, mask) for part, mask in zip(scores, masks, strict=True)]
        if self.mode == "linear":
            return scores
        if self.mode in ("gelu", "gelu_l2_norm"):
            scores = [F.gelu(part) for part in scores]
            if self.mode == "gelu":
                return scores
        tau = self.tau2.sqrt()
        if self.mode == "l2_norm_gelu":
            return norm_gelu(scores, tau, self.eps)
        factor = factor_of(tuple(scores), tau, self.eps)[0].to(scores[0].dtype)
        return [part * factor for part in scores]

    def _softmax(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.promote_types(scores.dtype, torch.float32)
        if mask is None:
            return (torch.softmax(scores, -1, dtype=dtype) * self.tau2).to(scores.dtype)
        low = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # finite, so that a row without pairs gives zeros
        return (torch.softmax(low, -1, dtype=dtype) * self.tau2).masked_fill(~mask, 0.0).to(scores.dtype)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The same, written to be read beside the paper: the oracle of `forward`, values and gradients."""

        def gelu(a: Tensor) -> Tensor:
            return a * 0.5 * (1 + torch.erf(a / math.sqrt(2)))

        def norm(a: Tensor) -> Tensor:
            return self.tau2.sqrt() * a / (a.square().sum(-1, keepdim=True).sqrt() + self.eps)

        A = x @ self.key.T
        if mask is not None:
            A = A.masked_fill(~mask, -torch.inf) if self.mode == "softmax" else A * mask
        if self.mode == "l2_norm_gelu":
            S = gelu(norm(A))
        elif self.mode == "gelu_l2_norm":
            S = norm(gelu(A))
        elif self.mode == "softmax":
            e = torch.exp(A - A.amax(-1, keepdim=True))
            S = self.tau2 * e / e.sum(-1, keepdim=True)
        elif self.mode == "gelu_layer_norm":
            g = gelu(A)
            S = (g - g.mean(-1, keepdim=True)) / (g.var(-1, correction=0, keepdim=True) + self.eps).sqrt()
        else:
            S = {"gelu": gelu, "l2_norm": norm, "linear": lambda a: a}[self.mode](A)
        y = self.scale * (S @ self.value)
        return y if self.bias is None else y + self.bias

    def grow(
        self,
        m: int,
        *,
        keys: Keys = "zero",
        values: Keys = "normal",
        tau: Tau = "fixed",
        generator: torch.Generator | None = None,
    ) -> tuple[nn.Parameter, nn.Parameter]:
        """Append m pairs, in place, and return the new parameters (keys [m, d_in], values [m, d_out]) for an optimiser.

        keys: zero leaves every output as it was, bit by bit, where τ is fixed and the mode is not one of `COUNTING`. values:
        normal, so that a gradient reaches keys of zero; `zero` is for normal keys. tau: fixed; grow with √n; or anneal, from one
        to the other by `anneal`. Raises ShapeError, also for zeros on both sides, which nothing would ever move.
        """
        if m < 1:
            raise ShapeError(f"grow appends pairs: it expects m of at least 1, received {m}. Fewer pairs: shrink.")
        if {keys, values} - set(get_args(Keys)) or tau not in get_args(Tau):
            raise ShapeError(
                f"grow expects keys and values 'zero' or 'normal' and tau one of {', '.join(get_args(Tau))}; received "
                f"{keys!r}, {values!r} and {tau!r}."
            )
        if keys == values == "zero":
            raise ShapeError("Keys and values of zero have no gradient and never learn: draw one of them (values='normal').")
        like = self.keys[0]
        new = []
        for width, how, std in ((self.d_in, keys, STD), (self.d_out, values, self.value_std)):
            drawn = torch.zeros(m, width)
            if how == "normal":
                drawn.normal_(std=std, generator=generator)
            new.append(nn.Parameter(drawn.to(like.device, like.dtype)))
        goal = self.tau2 * ((self.n + m) / self.n)
        self.keys.append(new[0])
        self.values.append(new[1])
        if tau == "fixed":
            self.hold()
        else:
            start = goal if tau == "grow" else self.tau2
            self.tau2_range = torch.stack([start, goal])
            self.tau2 = start.clone()
        return new[0], new[1]

    @torch.no_grad()
    def anneal(self, fraction: float) -> None:
        """Set τ² a fraction of the way that `grow(…, tau="anneal")` opened, linearly; 1 is its end, and nothing moves it then."""
        start, goal = self.tau2_range
        self.tau2.copy_(goal if fraction >= 1 else start + max(fraction, 0.0) * (goal - start))
        if fraction >= 1:  # or a later warm-up, which is not of this growth, would bring τ back to its start
            self.tau2_range.copy_(self.tau2)

    def hold(self) -> None:
        """End the way of τ² where it stands."""
        self.tau2_range = self.tau2.expand(2).clone()

    def shrink(self, idx: Tensor | Sequence[int]) -> list[tuple[nn.Parameter, nn.Parameter | None, Tensor]]:
        """Take the pairs `idx` out, in place; τ stays. What changed: (old parameter, new one or None, rows kept of it).

        The output changes, but for pairs of which no token makes use. Raises ShapeError for pairs that are not there, for a mask,
        and where none would be left.
        """
        given = torch.as_tensor(idx).reshape(-1).cpu()
        if given.dtype == torch.bool:
            raise ShapeError(f"shrink expects numbers of pairs; received a mask of {len(given)}. Give mask.nonzero().")
        gone = given.to(torch.int64)
        if len(gone) and (int(gone.min()) < 0 or int(gone.max()) >= self.n):
            raise ShapeError(f"shrink expects numbers of pairs from 0 to {self.n - 1}; received {gone.tolist()[:8]}.")
        stays = torch.ones(self.n, dtype=torch.bool)
        stays[gone] = False
        if not bool(stays.any()):
            raise ShapeError(f"shrink must leave a pair; all {self.n} were named.")
        changed: list[tuple[nn.Parameter, nn.Parameter | None, Tensor]] = []
        parts = stays.split(self.counts)
        for name in ("keys", "values"):
            kept: list[nn.Parameter] = []
            for old, part in zip(getattr(self, name), parts, strict=True):
                if bool(part.all()):
                    kept.append(old)
                    continue
                rows = part.nonzero()[:, 0].to(old.device)
                new = nn.Parameter(old.detach()[rows].clone(), requires_grad=old.requires_grad) if len(rows) else None
                changed.append((old, new, rows))
                kept += [new] if new is not None else []
            setattr(self, name, nn.ParameterList(kept))
        return changed

    def merge(self) -> list[tuple[list[nn.Parameter], nn.Parameter]]:
        """One parameter for all keys and one for all values, in place: (old parameters, the new one) of both, if there were more.

        A step is faster, and outputs are as before but for rounding. Raises ShapeError where only some of them are trained.
        """
        if len(self.keys) == 1:
            return []
        changed = []
        for name in ("keys", "values"):
            old = list(getattr(self, name))
            if len({part.requires_grad for part in old}) > 1:
                raise ShapeError("Pairs of which some are frozen cannot become one parameter: train all of them, or none.")
            new = nn.Parameter(torch.cat([part.detach() for part in old]), requires_grad=old[0].requires_grad)
            changed.append((old, new))
        for name, (_, new) in zip(("keys", "values"), changed, strict=True):
            setattr(self, name, nn.ParameterList([new]))
        return changed

    def freeze_old(self) -> None:
        """Only the pairs of the last growth are trained; nothing happens to a layer that never grew."""
        if len(self.keys) > 1:
            for part in [*list(self.keys)[:-1], *list(self.values)[:-1]]:
                part.requires_grad_(False)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.d_in}, {self.d_out}, n={'+'.join(map(str, self.counts))}, mode={self.mode}"


def _only(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores, zero at pairs that may not be used."""
    return scores if mask is None else scores * mask
