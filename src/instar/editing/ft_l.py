"""Fine-tuning of one layer inside a small ball.

Zhu, Rawat, Zaheer, Bhojanapalli, Li, Yu, Kumar, "Modifying Memories in Transformer Models" (arXiv 2012.00363).
"""

from __future__ import annotations

from typing import ClassVar

from instar.editing.layout import Layers, Parts
from instar.editing.tuning import Tuning
from instar.errors import ShapeError


class ConstrainedFineTune(Tuning):
    r"""W ← W + Δ with max |Δ| ≤ bound: `FineTune`, whose change is clipped after each step.

    Args:
        bound: of each number of Δ; Meng et al. 2022 take 5e-5 to 5e-4.
        layers, lr, steps, enough, parts: as of `FineTune`.

    Shapes and cost: as of `FineTune`.
    """

    slug: ClassVar = "ft_l"

    def __init__(
        self,
        *,
        layers: Layers = "auto",
        bound: float = 5e-4,
        lr: float = 5e-4,
        steps: int = 25,
        enough: float = 1e-2,
        parts: Parts | None = None,
    ) -> None:
        if not bound > 0:
            raise ShapeError(f"bound expects a number above 0; received {bound}.")
        self._set(layers, lr, steps, enough, parts)
        self.bound = bound
