"""Fine-tuning of one layer: the plainest way to teach facts."""

from __future__ import annotations

from typing import ClassVar

from instar.editing.layout import Layers, Parts
from instar.editing.tuning import Tuning


class FineTune(Tuning):
    r"""W ← W + Δ for the FFN's last matrix of one layer: Adam on − mean log p(target | prompt), from Δ = 0.

    Args:
        layers: one number, or "auto" (the last of MEMIT's).
        lr, steps, enough: of Adam; it stops below this loss.
        parts: for models that `instar.anatomy` does not know.

    Shapes: Δ [D, F]. Cost: N · steps passes through the layers from this one up. All facts are in each step, since they share the
    change. The settings are those of Meng et al. 2022, who train one fact at a time.
    """

    slug: ClassVar = "ft"

    def __init__(
        self, *, layers: Layers = "auto", lr: float = 5e-4, steps: int = 25, enough: float = 1e-2, parts: Parts | None = None
    ) -> None:
        self._set(layers, lr, steps, enough, parts)
