"""Which learner another one resembles: squared differences of predictions, distances of implied weights, linearity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl.contexts import answering


def spd(one: InContextLearner, other: InContextLearner, xs: Tensor, ys: Tensor) -> Tensor:
    r"""SPD(A, A')_n = E (A(D_n)(x') - A'(D_n)(x'))² / d for each number n = 0 … N - 1 of examples, [N].

    xs [B, N, D], ys [B, N]; x' is the next input of the same task. Akyürek et al. 2023, equation 13, divided by d.
    """
    with answering(one, other), torch.no_grad():
        return (one.prefixes(xs, ys) - other.prefixes(xs, ys)).square().mean(0) / xs.shape[-1]


def mspd(one: InContextLearner, other: InContextLearner, xs: Tensor, ys: Tensor) -> float:
    """SPD averaged over 0 < n < d, where learners differ: with more examples than unknowns most of them agree."""
    if min(xs.shape[1] - 1, xs.shape[2] - 1) < 1:
        raise ShapeError(f"There is no number of examples between 0 and d for xs {list(xs.shape)}.")
    return float(spd(one, other, xs, ys)[1 : xs.shape[2]].mean())


@dataclass(frozen=True)
class Implied:
    """The linear function nearest to what a learner says after a context."""

    weights: Tensor
    """[B, D]"""
    linearity: Tensor
    """[B], R² of that function on the probe inputs: 1 for a linear learner."""


def implied(learner: InContextLearner, xs: Tensor, ys: Tensor, probes: Tensor) -> Implied:
    """Least squares, without intercept, of the learner's answers at probe inputs [B, Q, D] after the context (xs, ys).

    Raises ShapeError for no more probe inputs than D.
    """
    if probes.shape[1] <= probes.shape[2]:
        raise ShapeError(f"A fit of {probes.shape[2]} weights needs more probe inputs; received {probes.shape[1]}.")
    with answering(learner), torch.no_grad():
        answers = learner.predict(xs, ys, probes)
    weights = torch.linalg.lstsq(probes, answers.unsqueeze(-1)).solution.squeeze(-1)
    rest = (answers - torch.einsum("bqd,bd->bq", probes, weights)).square().sum(1)
    total = answers.square().sum(1)  # about zero, as the fit has no intercept
    return Implied(weights, torch.where(total > 0, 1 - rest / total.clamp_min(1e-30), torch.ones_like(total)))


def ilwd(one: InContextLearner, other: InContextLearner, xs: Tensor, ys: Tensor, probes: Tensor) -> float:
    r"""ILWD = E_D ‖w_A - w_A'‖², the distance of implied weights. Akyürek et al. 2023, equation 15."""
    return float((implied(one, xs, ys, probes).weights - implied(other, xs, ys, probes).weights).square().sum(1).mean())


@dataclass(frozen=True)
class Likeness:
    """How near a learner is to a reference."""

    name: str
    mspd: float
    """Of predictions, with fewer examples than unknowns."""
    spd: float
    """Of predictions, over all numbers of examples."""
    ilwd: float
    """Of implied weights, after all examples but one."""
    error: float
    """Of the reference itself: squared error over that of answering 0, over all numbers of examples."""


def compare(
    learner: InContextLearner, references: Mapping[str, InContextLearner], xs: Tensor, ys: Tensor, probes: Tensor
) -> list[Likeness]:
    """Every reference beside the learner on the same tasks, the nearest (by MSPD) first."""
    found = []
    for name, other in references.items():
        with answering(other), torch.no_grad():
            error = float((other.prefixes(xs, ys) - ys).square().sum() / ys.square().sum())
        all_, few = float(spd(learner, other, xs, ys).mean()), mspd(learner, other, xs, ys)
        found.append(Likeness(name, few, all_, ilwd(learner, other, xs[:, :-1], ys[:, :-1], probes), error))
    return sorted(found, key=lambda likeness: likeness.mspd)


def table(found: list[Likeness]) -> str:
    """The comparison in lines of text."""
    lines = [f"{'reference':24} {'MSPD/d':>10} {'SPD/d':>10} {'ILWD':>10} {'its error':>10}"]
    lines += [f"{one.name:24} {one.mspd:10.4f} {one.spd:10.4f} {one.ilwd:10.4f} {one.error:10.4f}" for one in found]
    return "\n".join(lines)
