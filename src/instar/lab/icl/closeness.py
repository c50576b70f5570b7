"""How close two learners are in what they say and in what they are sensitive to: the protocol of von Oswald et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instar.errors import DataError
from instar.interfaces import InContextLearner
from instar.lab.icl.contexts import answering


@dataclass(frozen=True)
class Closeness:
    """Means over tasks."""

    predictions: float
    """Preds Diff, ‖ŷ - ŷ'‖ over the queries."""
    sensitivities: float
    """Model Diff, ‖∂ŷ/∂x_q - ∂ŷ'/∂x_q‖."""
    cosine: float
    """Model Cos, of these sensitivities."""


def closeness(one: InContextLearner, other: InContextLearner, xs: Tensor, ys: Tensor, x_query: Tensor) -> Closeness:
    """Both learners after the same contexts, at the same queries."""
    (a, da), (b, db) = (sensitivity(learner, xs, ys, x_query) for learner in (one, other))
    cosine = torch.nn.functional.cosine_similarity(da.flatten(0, 1), db.flatten(0, 1), dim=-1)
    return Closeness(float((a - b).norm(dim=1).mean()), float((da - db).norm(dim=-1).mean()), float(cosine.mean()))


def sensitivity(learner: InContextLearner, xs: Tensor, ys: Tensor, x_query: Tensor) -> tuple[Tensor, Tensor]:
    """ŷ [B, Q] and ∂ŷ/∂x_q [B, Q, D]: each query is answered alone, so the gradient of their sum is that of each.

    It is 0 where the answer is the same whatever is asked, or changes by jumps alone (a vote, a class).
    """
    query = x_query.detach().clone().requires_grad_()
    with answering(learner):
        said = learner.predict(xs, ys, query)
    if not said.requires_grad:
        return said, torch.zeros_like(query)
    (slope,) = torch.autograd.grad(said.sum(), query, allow_unused=True)
    return said.detach(), torch.zeros_like(query) if slope is None else slope


def documents(
    tasks: int, tokens: int, width: int, generator: torch.Generator, *, norm: float = 1.0, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Documents A [B, n, d] with entries N(0, 1/d), or rows of data, and labels softmax(A x*), times n so that their mean is 1.

    norm: of x*: the larger, the more of a choice the label is. Raises DataError for fewer rows than tokens.
    """
    if rows is not None and tokens > len(rows):
        raise DataError(f"A document of {tokens} tokens needs as many rows; there are {len(rows)}.")
    if rows is None:
        A = torch.randn(tasks, tokens, width, generator=generator, dtype=torch.float64) / width**0.5
    else:
        order = torch.rand(tasks, len(rows), generator=generator).argsort(1)[:, :tokens]
        A = rows.double()[order]
    x = torch.randn(tasks, A.shape[-1], generator=generator, dtype=torch.float64)
    x = norm * x / x.norm(dim=1, keepdim=True)
    return A, tokens * torch.einsum("bnd,bd->bn", A, x).softmax(1)
