"""PMET: precise model editing in a transformer.

Li, Li, Song, Yang, Ma, Yu, "PMET: Precise Model Editing in a Transformer", AAAI 2024 (arXiv 2308.08742).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from instar.editing.layout import Layers, Part, Parts
from instar.editing.located import Spreading
from instar.editing.spread import Spread
from instar.editing.targets import Objective
from instar.errors import ShapeError

_PARTS: dict[str, tuple[Part, ...]] = {"attention+ffn": ("attention", "ffn"), "attention": ("attention",), "ffn": ("ffn",)}


class PMET(Spreading):
    r"""Optimises what attention and the FFN put out at the subject, together; writes only the FFN's share.

    With a, m the outputs of attention and FFN in the last edited layer, and k what the FFN's last matrix W reads:
    (δ_a, δ_m) minimise `Objective`, with both clamped; then for the layers l_1 < … < l_n, i = 0 … n − 1,
        Δ_i = R_i Kᵀ (λ C + K Kᵀ)⁻¹,   R_i = (m₀ + δ_m − m) / √(n − i),
    where K and m are read again after each layer, K is half of the bare prompt and half the mean after prefixes, C = E[k kᵀ].

    Args:
        layers: numbers, ascending; "auto" takes those of the authors for GPT-J (3-8), NeoX-20B (6-10), GPT2-XL (13-17) and
            Llama-2-7B (4-8), else five that end at 30 % of the depth; "traced" asks causal tracing, which needs facts whose `old`
            answer is known.
        optimised: what gets a free vector. write: whose shift is kept in weights; the authors' choice is "ffn".
        spread: how the shift is shared over layers.
        penalty: λ; None takes 6000 / 16384 times F, which is the authors' for GPT-J: kᵀ C⁻¹ k, against which it stands, grows
            with F.
        prefixes: texts before the prompt, written by the model itself with `seed`.
        lr, steps, clamp, kl, decay: of the search for δ. The authors: lr 0.2, clamp 0.75, 30 steps for GPT-J.
        texts: what C is taken from; by default English inside Python. batch: facts that are searched for at a time.
        parts: for models that `instar.anatomy` does not know.

    Shapes: δ [N, D], K [F, N], C [F, F], Δ [D, F] for N facts, D width of the model, F of the FFN. float64 from K on.
    Cost: N (2 + prefixes) steps passes forward and backward through the layers from the last edited one up, and a Cholesky of C
    a layer, n F³ / 3.
    Differs from the paper: nothing in the defaults but the layers of models that it did not study; C is of thousands of tokens.
    """

    slug: ClassVar = "pmet"
    ratio: ClassVar = 6000 / 16384

    def __init__(
        self,
        *,
        layers: Layers = "auto",
        optimised: Literal["attention+ffn", "ffn"] = "attention+ffn",
        write: Literal["ffn", "attention", "attention+ffn"] = "ffn",
        spread: Spread = "sqrt",
        penalty: float | None = None,
        prefixes: int = 5,
        lr: float = 0.2,
        steps: int = 30,
        clamp: float = 0.75,
        kl: float = 1.0,
        decay: float = 0.5,
        seed: int = 0,
        texts: Sequence[str] | None = None,
        batch: int = 64,
        parts: Parts | None = None,
    ) -> None:
        if optimised not in _PARTS or write not in _PARTS or not set(_PARTS[write]) <= set(_PARTS[optimised]):
            raise ShapeError(f"What is written must be optimised; received optimised={optimised!r}, write={write!r}.")
        self.layers, self.optimised, self.write, self.spread, self.penalty = layers, optimised, write, spread, penalty
        self.prefixes, self.lr, self.steps, self.clamp = prefixes, lr, steps, clamp
        self.kl, self.decay, self.seed, self.texts, self.batch, self.parts = kl, decay, seed, texts, batch, parts
        self.objective = Objective(_PARTS[optimised], lr, steps, clamp, kl, decay, easing=True)
        self.into = {part: part for part in _PARTS[write]}
