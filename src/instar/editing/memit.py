"""MEMIT: mass-editing memory in a transformer.

Meng, Sen Sharma, Andonian, Belinkov, Bau, "Mass-Editing Memory in a Transformer", ICLR 2023 (arXiv 2210.07229).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from instar.editing.layout import Layers, Parts
from instar.editing.located import Spreading
from instar.editing.spread import Spread
from instar.editing.targets import Objective


class MEMIT(Spreading):
    r"""Optimises what the last edited block puts out at the subject, and writes the shift into the FFNs of all edited layers.

    With h the output of the block: δ minimises `Objective`; then for the layers l_1 < … < l_n, i = 0 … n − 1,
        Δ_i = R_i Kᵀ (λ C + K Kᵀ)⁻¹,   R_i = (h₀ + δ − h) / (n − i),
    where K and h are read again after each layer.

    Args: as of `PMET`; the authors' settings for GPT-J: λ = 15000 / 16384 times F, lr 0.5, KL counts 1/16, 25 steps.
    Shapes and cost: as of `PMET`.
    """

    slug: ClassVar = "memit"
    ratio: ClassVar = 15000 / 16384

    def __init__(
        self,
        *,
        layers: Layers = "auto",
        spread: Spread = "linear",
        penalty: float | None = None,
        prefixes: int = 5,
        lr: float = 0.5,
        steps: int = 25,
        clamp: float = 0.75,
        kl: float = 0.0625,
        decay: float = 0.5,
        seed: int = 0,
        texts: Sequence[str] | None = None,
        batch: int = 64,
        parts: Parts | None = None,
    ) -> None:
        self.layers, self.spread, self.penalty, self.prefixes = layers, spread, penalty, prefixes
        self.lr, self.steps, self.clamp, self.kl, self.decay = lr, steps, clamp, kl, decay
        self.seed, self.texts, self.batch, self.parts = seed, texts, batch, parts
        self.objective = Objective(["block"], lr, steps, clamp, kl, decay)
        self.into = {"block": "ffn"}
