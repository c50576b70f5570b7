"""Where patches begin: where the next value is uncertain, or by rules that uncertainty has to beat."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.forecasting.entropy_model import EntropyModel, Quantiser

Rule = Literal["quantile", "quantile_rise", "threshold", "threshold_rise", "static", "random"]
RULES = get_args(Rule)
_PATTERNS = 64


class EntropyPatcher(nn.Module):
    r"""Cuts windows into patches of unequal length; a new one begins at t + 1 where position t triggers, and at 0.

    Rules, H_t the entropy of the value that follows t, and Δ_t = H_t − H_{t−1}:
        quantile: H_t > the quantile `level` of H_1 … H_L of the window (January 2026 code, the default)
        quantile_rise: Δ_t > the quantile `level` of Δ_2 … Δ_L; position 0 triggers
        threshold: H_t > `level` and Δ_t > `rise` (the paper's, "global and relative")
        threshold_rise: Δ_t > `level` (the paper's scripts)
        static: every `longest` values. random: as many patches as static has, begun at random places (one of 64 drawn patterns,
            chosen by the window's tokens, so that a window is always cut alike)
    Patches longer than `longest` are split into pieces of that length; random ones are not.
    A quantile reads the whole window: a boundary may depend on later values of it. Thresholds do not.

    Args:
        model: the entropy model, frozen here and always in eval mode. quantiser: makes tokens. rule, level, rise, longest: see
            above. seed: of the random patterns.

    Raises ShapeError. Source: EntroPE (arXiv 2509.26157) and its code.
    """

    patterns: Tensor

    def __init__(
        self,
        model: EntropyModel,
        quantiser: Quantiser,
        *,
        rule: Rule = "quantile",
        level: float = 0.9,
        rise: float = 0.0,
        longest: int = 24,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rule not in RULES or longest < 1 or (rule.startswith("quantile") and not 0 <= level <= 1):
            raise ShapeError(
                f"Patches follow one of {', '.join(RULES)}, have a longest of at least 1, and quantiles lie between 0 and 1; "
                f"received {rule!r}, level={level}, longest={longest}."
            )
        self.rule, self.level, self.rise, self.longest = rule, level, rise, longest
        self.quantiser, self.model = quantiser, model.requires_grad_(False).eval()
        length, count = model.context, self.most(model.context)
        drawn = torch.rand(_PATTERNS, length - 1, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        patterns = torch.zeros(_PATTERNS, length, dtype=torch.bool)
        if rule == "random":
            patterns[:, 1:].scatter_(1, drawn.topk(count - 1, dim=1).indices.to(patterns.device), True)
        self.register_buffer("patterns", patterns, persistent=False)

    def most(self, length: int) -> int:
        """The most patches that a window can have."""
        if self.rule in ("static", "random"):
            return -(-length // self.longest)
        if not self.rule.startswith("quantile"):
            return length
        return min(length, 2 + math.ceil((1 - self.level) * (length - 1)) + length // self.longest)

    def train(self, mode: bool = True) -> EntropyPatcher:
        """The entropy model stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T] -> tokens int64, the patch of each value int64 from 0, and H, all [B, T]."""
        tokens = self.quantiser(x)
        entropy = self.model.entropies(tokens) if self.rule not in ("static", "random") else x.new_zeros(x.shape)
        return tokens, (self.starts(entropy, tokens).cumsum(1) - 1), entropy

    def starts(self, entropy: Tensor, tokens: Tensor) -> Tensor:
        """bool [B, T], True where a patch begins."""
        B, T = entropy.shape
        place = torch.arange(T, device=entropy.device)
        if self.rule == "static":
            return (place % self.longest == 0).expand(B, T)
        if self.rule == "random":
            found = self.patterns[tokens.sum(1) % _PATTERNS, :T].clone()
            found[:, 0] = True
            return found
        found = torch.ones(B, T, dtype=torch.bool, device=entropy.device)
        found[:, 1:] = self._triggers(entropy)[:, :-1]
        begun = torch.where(found, place, 0).cummax(1).values
        return found | ((place - begun) % self.longest == 0)

    def lengths(self, starts: Tensor) -> Tensor:
        """Lengths [B, P] of the patches, 0 behind a window's last, which also holds the value to come: their sum is T + 1."""
        patch = starts.cumsum(1) - 1
        found = torch.zeros(len(starts), int(patch.max()) + 1, dtype=torch.int64, device=starts.device)
        found.scatter_add_(1, patch, torch.ones_like(patch))
        return found.scatter_add_(1, patch[:, -1:], torch.ones_like(patch[:, -1:]))

    def _triggers(self, entropy: Tensor) -> Tensor:
        rises = entropy.diff(dim=1, prepend=entropy[:, :1])
        if self.rule == "quantile":
            return entropy > entropy.quantile(self.level, dim=1, keepdim=True)
        if self.rule == "threshold":
            return (entropy > self.level) & (rises > self.rise)
        if self.rule == "threshold_rise":
            return rises > self.level
        found = rises > rises[:, 1:].quantile(self.level, dim=1, keepdim=True)
        found[:, 0] = True
        return found
