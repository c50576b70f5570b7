"""HUT: the weight itself is transformed, element by element, by two structured matrices of low rank.

Zhang, Zhou, Chen, "HUT: A More Computation Efficient Fine-Tuning Method With Hadamard Updated Transformation", 2024
(arXiv 2409.13501).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from instar.adapters import hut_product as product
from instar.adapters import ranks
from instar.adapters.layer import LinearLayer
from instar.anatomy import Linear
from instar.errors import ShapeError
from instar.interfaces import Adapter

Form = Literal["block", "tile", "lowrank"]
Affine = Literal["pre", "post", "scale", "shift", "none"]
Factors = Literal["both", "a", "b", "none"]
Impl = Literal["auto", "weight", "activation"]


class HUT(Adapter):
    """h = γ ⊙ (x W_new) + β + b0,  W_new = (A ⊗ 1)^r ⊙ W0 ⊙ (1 ⊗ B)^r,  A [in, r] = B [r, out] = γ = 1 and β = 0 at birth.

    Args:
        r: rank. form: how the factors meet W0. "block": A repeats each of its columns for out / r outputs, B each of its rows for
            in / r inputs; "tile": in turn; "lowrank": true products, (A1 A2) ⊙ W0 ⊙ (B1 B2), of twice as many numbers.
        affine: "pre" as above; "post", γ ⊙ (x W_new + b0) + β; "scale" without β; "shift" without γ; "none".
        factors: both, only A ("a"), only B ("b"), or "none" (γ and β alone).
        impl: "weight" forms W_new, 2 in · out multiplications whatever T and r, and its backward needs the dense gradient of
            W_new; "activation" multiplies T r (in + 2 out) elements and needs none; "auto" takes what its count of
            operations says is faster. They agree to rounding; only "weight" leaves every bit as it was at birth.
        dropout: on x, in training. rank_pattern: as of `LoRA`. lr: see `Adapter`; no weight decay, which would pull to 0.

    A layer without a bias gets no β, so that the merged model is of the same kind. Trainable numbers of a layer: r (in + out) +
    2 out. Raises ShapeError; `layer` also for a rank above in or out, and where "activation" is asked for sizes that r does not
    divide. Where r does not divide, blocks of ⌈size / r⌉ are used.
    The paper's full text was not at hand: shapes of the factors and their start are inferred (see the card).
    """

    def __init__(
        self,
        *,
        r: int = 8,
        form: Form = "block",
        affine: Affine = "pre",
        factors: Factors = "both",
        impl: Impl = "auto",
        dropout: float = 0.0,
        rank_pattern: Mapping[str, int] | None = None,
        lr: float = 5e-3,
    ) -> None:
        ranks.require(r, rank_pattern, dropout, lr)
        for name, value, known in (("form", form, Form), ("affine", affine, Affine), ("factors", factors, Factors)):
            if value not in get_args(known):
                raise ShapeError(f"{name} expects one of {', '.join(map(repr, get_args(known)))}; received {value!r}.")
        if impl not in get_args(Impl) or (impl == "activation" and form == "lowrank"):
            raise ShapeError(f"impl expects auto, weight or, for block and tile, activation; received {impl!r} with {form!r}.")
        if factors == "none" and affine == "none":
            raise ShapeError("HUT expects factors, an affine part, or both; received 'none' twice.")
        self.r, self.form, self.affine, self.factors, self.impl = r, form, affine, factors, impl
        self.dropout, self.rank_pattern, self.lr = dropout, rank_pattern, lr

    def layer(self, base: nn.Module, name: str) -> HUTLayer:
        layer = Linear(name, base)
        rank = ranks.rank(self.r, self.rank_pattern, name)
        if rank > min(layer.inputs, layer.outputs):
            raise ShapeError(f"{name} has {layer.inputs} inputs and {layer.outputs} outputs; its rank {rank} may be no larger.")
        if self.impl == "activation" and not product.divides(layer.weight, rank):
            raise ShapeError(
                f"Activation space needs a rank that divides both sizes of {name}, {layer.inputs} and {layer.outputs}; received "
                f"{rank}. Take another rank, or impl='weight'."
            )
        return LowRankLayer(base, rank, self) if self.form == "lowrank" else HUTLayer(base, rank, self)


class HUTLayer(LinearLayer):
    """HUT of one layer, block or tile."""

    def __init__(self, base: nn.Module, r: int, settings: HUT) -> None:
        super().__init__(base, dropout=settings.dropout)
        self.r, self.affine, self.impl = r, settings.affine, settings.impl
        self._factors(settings)
        if self.affine in ("pre", "post", "scale"):
            self.hut_gamma = self.tensor(self.outputs, value=1.0)
        if self.affine in ("pre", "post", "shift") and Linear("", base).bias is not None:
            self.hut_beta = self.tensor(self.outputs)

    def _factors(self, settings: HUT) -> None:
        self.layout: product.Layout = "tile" if settings.form == "tile" else "block"
        if settings.factors in ("both", "a"):
            self.hut_A = self.tensor(self.inputs, self.r, value=1.0)
        if settings.factors in ("both", "b"):
            self.hut_B = self.tensor(self.r, self.outputs, value=1.0)

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        layer = Linear("", base)
        weight, bias = layer.weight, self.shifted(layer.bias)
        left, right = self.scaled()
        x = self.drop(x)
        space = product.in_weight_space if self._in_weight_space(x, weight) else product.in_activation_space
        return space(x, weight, bias, left, right, self.layout)

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return product.formed(weight, *self.scaled(), self.layout), self.shifted(bias)

    def scaled(self) -> tuple[Tensor, Tensor]:
        """A [in, r], and B with γ in it [r, out]: W_new diag(γ) is the product with B ⊙ γ."""
        one = next(self.parameters()).new_ones(())
        left = getattr(self, "hut_A", one.expand(self.inputs, self.r))
        right = getattr(self, "hut_B", one.expand(self.r, self.outputs))
        gamma = getattr(self, "hut_gamma", None)
        return left, right if gamma is None else right * gamma

    def shifted(self, bias: Tensor | None) -> Tensor | None:
        """The bias of the adapted layer."""
        if bias is None:
            return None
        if self.affine == "post":
            bias = bias * self.hut_gamma
        beta = getattr(self, "hut_beta", None)
        return bias if beta is None else bias + beta

    def _in_weight_space(self, x: Tensor, weight: Tensor) -> bool:
        if self.impl != "auto" or not product.divides(weight, self.r):
            return self.impl != "activation"
        T = x.numel() // self.inputs
        training = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        return product.cheaper_weight(T, self.inputs, self.outputs, self.r, training=training)


class LowRankLayer(HUTLayer):
    """W_new = (A1 A2) ⊙ W0 ⊙ (B1 B2): both products are all ones at birth, since the left factors are [1, 0, …]."""

    def _factors(self, settings: HUT) -> None:
        for name, chosen in (("A", "a"), ("B", "b")):
            if settings.factors in ("both", chosen):
                left, right = self.tensor(self.inputs, self.r), self.tensor(self.r, self.outputs)
                left.data[:, 0] = 1.0
                nn.init.normal_(right, std=0.1)
                right.data[0] = 1.0
                self.register_parameter(f"hut_{name}1", left)
                self.register_parameter(f"hut_{name}2", right)

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        return LinearLayer.forward(self, base, x)

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for name in ("A", "B"):
            left, right = getattr(self, f"hut_{name}1", None), getattr(self, f"hut_{name}2", None)
            if left is not None and right is not None:
                weight = weight * (left @ right).T
        gamma = getattr(self, "hut_gamma", None)
        return weight if gamma is None else weight * gamma[:, None], self.shifted(bias)
