"""ROME: rank-one model editing.

Meng, Bau, Andonian, Belinkov, "Locating and Editing Factual Associations in GPT", NeurIPS 2022 (arXiv 2202.05262).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from instar.editing import prefixes as contexts
from instar.editing import targets, writing
from instar.editing.layout import Layer, Layers, Layout, Parts
from instar.editing.located import Located
from instar.editing.running import resting
from instar.editing.targets import Objective
from instar.interfaces import Fact, Monitor


class ROME(Located):
    r"""Inserts one fact at a time, by a rank-one change of one FFN matrix that gives the subject's key a new value exactly.

    With W the FFN's last matrix and b its bias, k* what it reads at the subject (half of the bare prompt, half the mean after
    prefixes), v* = m₀ + δ its output that minimises `Objective`:
        W ← W + (v* − W k* − b) uᵀ / (uᵀ k*),   u = C⁻¹ k*.

    Several facts are written one after another, in the order of their prompts, each from the model that the one before left; C is
    that of the model before the first. Many facts in one matrix undo each other: that is what MEMIT is for.

    Args:
        layers: one number, or "auto" (the last of MEMIT's) or "traced".
        prefixes, lr, steps, clamp, kl, decay, seed, texts, parts: as of `PMET`.

    Shapes: v* [D], k*, u [F]. Cost: as of `PMET` with one layer, without a batch.
    """

    slug: ClassVar = "rome"

    def __init__(
        self,
        *,
        layers: Layers = "auto",
        prefixes: int = 5,
        lr: float = 0.5,
        steps: int = 20,
        clamp: float = 4.0,
        kl: float = 0.0625,
        decay: float = 0.5,
        seed: int = 0,
        texts: Sequence[str] | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.layers, self.prefixes, self.lr, self.steps, self.clamp = layers, prefixes, lr, steps, clamp
        self.kl, self.decay, self.seed, self.texts, self.parts = kl, decay, seed, texts, parts
        self.objective = Objective(["ffn"], lr, steps, clamp, kl, decay)

    def chosen(self, model: nn.Module, tokenizer: Any, where: Layout, facts: Sequence[Fact]) -> list[Layer]:
        return super().chosen(model, tokenizer, where, facts)[-1:]

    def carry_out(
        self,
        model: nn.Module,
        tokenizer: Any,
        where: Layout,
        chosen: Sequence[Layer],
        facts: Sequence[Fact],
        monitor: Monitor | None,
    ) -> None:
        layer = chosen[0]
        moments = self.moments or self.gathered(model, tokenizer, chosen, self.texts)
        with resting(model):
            before = contexts.sample(model, tokenizer, self.prefixes, self.seed)
        for fact in facts:
            found = targets.find(model, where, tokenizer, [fact], before, layer.index, self.objective, monitor=monitor)
            value = (found.before["ffn"] + found.shift["ffn"])[0].double()
            subjects = writing.Subjects(model, where, tokenizer, [fact], before, layer.index)
            (key,), _ = subjects.read([layer.ffn], layer, [])
            C = moments[layer.index, "ffn"].to(key.device)  # from disk it comes to the CPU
            writing.add(layer.ffn, rank_one(layer.ffn.weight, layer.ffn.bias, C, key[:, 0], value))


def rank_one(W: Tensor, b: Tensor | None, C: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Δ [out, in] of rank one, for which (W + Δ) key + b = value and tr(Δ C Δᵀ) is least; float64."""
    u = torch.linalg.solve(C, key)
    missing = value - W.detach().double() @ key - (0 if b is None else b.detach().double())
    return torch.outer(missing, u) / (u @ key)
