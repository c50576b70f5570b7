"""The network of a Transformer Program: a stream of named variables, to which every part adds one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.lab.programs.heads import CategoricalHeads, NumericalHeads
from instar.lab.programs.lookups import Lookups
from instar.lab.programs.sampling import How, sample

GRAIN = 1000
"""Weights of the classifier in a program are whole thousandths: sums are then exact, and ties are ties everywhere."""


@dataclass(frozen=True)
class Shape:
    """Everything that a network is built from."""

    tokens: int
    classes: int
    length: int
    k: int
    layers: int
    cat_heads: int
    num_heads: int
    cat_mlps: int
    num_mlps: int
    reads: int
    hidden: int
    embedded: int
    """Learnt variables of a token; 0 for one variable that is the token itself."""
    causal: bool
    pooled: bool

    def __post_init__(self) -> None:
        if min(self.tokens, self.length, self.k, self.layers, self.reads, self.hidden) < 1 or self.classes < 2:
            raise ShapeError(f"A program needs positive sizes and two labels; received {self}.")
        if min(self.cat_heads, self.num_heads, self.cat_mlps, self.num_mlps, self.embedded) < 0:
            raise ShapeError(f"Numbers of heads, tables and learnt variables are 0 or more; received {self}.")
        if not self.embedded and self.tokens > self.k:
            raise ShapeError(
                f"There are {self.tokens} tokens, but a variable has k = {self.k} values: give k of {self.tokens} or more, or "
                "learn variables of tokens (embedded=4), which any vocabulary fits."
            )
        if self.length > self.k:
            raise ShapeError(
                f"The longest sequence has {self.length} tokens, but a variable has k = {self.k} values, which must number its "
                f"places: give k of {self.length} or more, or shorter sequences."
            )


class ProgramNetwork(nn.Module):
    r"""logits = W [x_cat; x_num], where x_cat and x_num hold the variables that were read from the input or put out by a part.

    Nothing is ever added to a variable: there is no residual sum and no norm. A layer's heads read the stream before it; both
    kinds of its tables read the stream with the heads' outputs. Width of the stream after layer l: k (m + 1) + (l + 1) k (H_cat +
    M_cat + M_num) and 1 + (l + 1) H_num numbers.

    Shapes: ids int64 [B, N], mask bool [B, N] (True where real; padding is on the right) -> logits [B, N, classes], or
    [B, classes] where sequences are classified. Cost of a layer: O(N² H + N H k²).
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        k, m = shape.k, max(1, shape.embedded)
        if shape.embedded:
            self.embedding = nn.Parameter(torch.randn(shape.tokens, m, k) / k**0.5)
        categorical, numerical = m + 1, 1
        self.blocks = nn.ModuleList()
        for _ in range(shape.layers):
            parts = nn.ModuleDict()
            parts["attn"] = CategoricalHeads(shape.cat_heads, categorical, k, shape.length)
            parts["num_attn"] = NumericalHeads(shape.num_heads, categorical, numerical, k)
            categorical, numerical = categorical + shape.cat_heads, numerical + shape.num_heads
            sizes = {"reads": shape.reads, "hidden": shape.hidden}
            parts["mlp"] = Lookups(shape.cat_mlps, categorical, k, numerical=False, **sizes)
            parts["num_mlp"] = Lookups(shape.num_mlps, numerical, k, numerical=True, **sizes)
            categorical += shape.cat_mlps + shape.num_mlps
            self.blocks.append(parts)
        self.categorical, self.numerical = categorical, numerical
        self.classifier = nn.Parameter(torch.randn(shape.classes, categorical * k + numerical) / shape.classes**0.5)

    def forward(self, ids: Tensor, mask: Tensor, tau: float = 1.0, how: How = "gumbel") -> Tensor:
        """`how="argmax"` is the program: float64, every choice made, logits in whole thousandths."""
        variables, numbers = self.stream(ids, mask, tau, how)
        return self.read_out(variables, numbers, mask, how)

    def stream(self, ids: Tensor, mask: Tensor, tau: float, how: How) -> tuple[Tensor, Tensor]:
        """All variables [B, N, V, k] and all numbers [B, N, U] after the last layer."""
        kind = torch.float64 if how == "argmax" else self.classifier.dtype
        shape, (B, N) = self.shape, ids.shape
        if shape.embedded:
            tokens = sample(self.embedding, tau, how).to(kind)[ids]
        else:
            tokens = F.one_hot(ids, shape.k).to(kind)[:, :, None]
        places = F.one_hot(torch.arange(N, device=ids.device), shape.k).to(kind)
        variables = torch.cat([tokens, places[None, :, None].expand(B, N, 1, shape.k)], 2)
        numbers = torch.ones(B, N, 1, dtype=kind, device=ids.device)
        seen = mask[:, None, :].expand(B, N, N)
        if shape.causal:
            seen = seen & torch.ones(N, N, dtype=torch.bool, device=ids.device).tril()
        for parts in self.blocks:
            new = parts["attn"](variables, seen, tau, how)  # type: ignore[index]
            counts = parts["num_attn"](variables, numbers, seen, tau, how)  # type: ignore[index]
            variables, numbers = torch.cat([variables, new], 2), torch.cat([numbers, counts], 2)
            tables = parts["mlp"](variables, tau, how), parts["num_mlp"](numbers, tau, how)  # type: ignore[index]
            variables = torch.cat([variables, *tables], 2)
        return variables, numbers

    def weights(self) -> Tensor:
        """The classifier as a program has it, whole thousandths, float64; each column less its mean, which decides nothing."""
        exact = self.classifier.detach().double()
        return ((exact - exact.mean(0)) * GRAIN).round()

    def read_out(self, variables: Tensor, numbers: Tensor, mask: Tensor, how: How) -> Tensor:
        """Logits of the stream. Of a pooled program they are a sum over tokens where choices are made, a mean in training."""
        weights = self.weights() if how == "argmax" else self.classifier
        stream = torch.cat([variables.flatten(2), numbers], -1)
        if self.shape.pooled:
            stream = stream.masked_fill(~mask[..., None], 0.0).sum(1)
            if how != "argmax":
                stream = stream / mask.sum(1, keepdim=True)
        return stream @ weights.T
