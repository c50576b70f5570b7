"""Growth: models that become larger in place and keep what they have learnt, with their optimisers.

>>> from instar.growth import Pattention, TokenFormer, grow, shrink, freeze_old, tokenize_linear
>>> model = TokenFormer(257, 96, 3, heads=4)
>>> optimiser = torch.optim.AdamW(model.parameters())                                               # doctest: +SKIP
>>> grown = grow(model, optimiser, {"n": "2x"})                 # every output is as it was, bit by bit
>>> grown.receipt.facts.method, model.blocks[0].feed.n
('tokenformer', 768)
>>> grown.undo()                                                # model and optimiser, to the bit

A method is a class in one file beside its card: `tokenformer` for TokenFormers; `zero_ffn`, `net2net`, `bert2bert` and `lemon`
for plain decoders with softmax attention; `continued_base` and `from_scratch` are controls.
"""

from __future__ import annotations

import torch
from torch import nn

from instar.growth.growing import Grown
from instar.growth.lemon import Lemon
from instar.growth.pattention import Pattention
from instar.growth.shrinking import freeze_old, merge, shrink, weakest
from instar.growth.tokenformer import TokenFormerGrowth
from instar.growth.tokenformer_decoder import TokenFormer
from instar.growth.tokenize import tokenize_linear
from instar.interfaces import Growth, Plan

__all__ = [
    "Grown",
    "Pattention",
    "TokenFormer",
    "freeze_old",
    "grow",
    "merge",
    "shrink",
    "tokenize_linear",
    "weakest",
]


def grow(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    plan: Plan | None = None,
    *,
    method: Growth | None = None,
    seed: int = 0,
) -> Grown:
    """Make a model larger in place: a TokenFormer by pairs, a plain decoder by `lemon`; all or nothing.

    Args:
        optimizer: of torch, which goes on with its averages of gradients. plan: name of a size -> the size, as in {"n": "2x"} or
            {"width": 256}; None doubles n, or hidden. method: another one of the family. seed: of what is drawn.

    Raises TransformError for a model or plan that does not fit; then nothing is changed.
    """
    if method is None:
        method = TokenFormerGrowth() if isinstance(model, TokenFormer) else Lemon()
    if plan is None:
        plan = {"n" if method.architecture == "tokenformer" else "hidden": "2x"}
    return method.grow(model, plan, optimizer=optimizer, seed=seed)
