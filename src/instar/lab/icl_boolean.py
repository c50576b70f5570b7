"""Boolean functions in context: classes of functions, inputs that suit them, and sequences that teach them.

Bhattamishra, Patel, Blunsom, Kanade, "Understanding In-Context Learning in Transformers and LLMs by Learning to Learn Discrete
Functions", ICLR 2024 (arXiv 2310.03016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from instar.errors import ShapeError

Family = Literal[
    "conjunction",
    "disjunction",
    "sparse_disjunction",
    "monotone_conjunction",
    "dnf",
    "cnf",
    "majority",
    "threshold",
    "halfspace",
    "parity",
    "sparse_parity",
    "nearest_neighbour",
]
FAMILIES: tuple[Family, ...] = get_args(Family)
TAUGHT = ("monotone_conjunction", "conjunction", "dnf")
"""Families with teaching sequences."""
_SATISFIED: tuple[Family, ...] = ("conjunction", "monotone_conjunction", "dnf")
_FALSIFIED: tuple[Family, ...] = ("disjunction", "sparse_disjunction", "cnf")
"""Families whose labels would be almost constant, and what becomes of a term in some of their inputs."""
SPARSE_LITERALS, SPARSE_BITS, START = 4, 2, 10
"""Literals of a sparse disjunction, bits of a sparse parity, random labels that begin a task of nearest neighbours."""


@dataclass(frozen=True)
class Functions:
    """One function for each of B tasks. Terms are 1, or 3 for DNF and CNF."""

    family: Family
    weights: Tensor
    """[B, terms, D]: literals in {−1, 0, 1}, or integer weights, or the chosen bits."""
    threshold: Tensor
    """[B], of `threshold`."""

    def labels(self, xs: Tensor) -> Tensor:
        """xs [B, N, D] in {−1, 1} -> [B, N] in {−1, 1}. Not of `nearest_neighbour`, whose labels are its sequence."""
        w, size = self.weights, self.weights.abs().sum(-1).unsqueeze(1)
        sums = torch.einsum("bnd,btd->bnt", xs, w)
        if self.family in ("conjunction", "monotone_conjunction", "dnf"):
            return _sign(sums - (size - 1)).amax(-1)  # an empty term is always true
        if self.family in ("disjunction", "sparse_disjunction", "cnf"):
            return _sign(sums + (size - 1)).amin(-1)
        if self.family in ("parity", "sparse_parity"):
            ones = torch.einsum("bnd,btd->bnt", (xs + 1) / 2, w)[..., 0]
            return 2 * ones.remainder(2) - 1
        if self.family == "nearest_neighbour":
            raise ShapeError("Labels of nearest_neighbour depend on the sequence: draw it.")
        return _sign(sums[..., 0] - self.threshold.unsqueeze(1))


@dataclass(frozen=True)
class Drawn:
    """Tasks: xs [B, N, D] and ys [B, N] in {−1, 1}."""

    xs: Tensor
    ys: Tensor
    functions: Functions
    taught: Tensor
    """[B], length of the teaching sequence of each task's function, whether it was shown or not; 0 where there is none."""


@dataclass(frozen=True)
class BooleanSampler:
    """Functions of one family, inputs, labels, and teaching sequences.

    Constants are those of the authors' code (see the source below), but for inputs after a teaching sequence, which are drawn
    like all others, and 40 % positive there. Inputs are uniform; for classes whose labels would be almost constant, some are
    changed so that they satisfy (conjunctions, DNF) or falsify (disjunctions, CNF) a term.

    Args:
        width: D. family: of `FAMILIES`. noise: chance that a label is flipped, targets included. teaching: chance that a task
            begins with the teaching sequence of its function. With it, terms of a DNF have no negations. positives: chance that
            an input is changed so; None is that of the authors, 0.3, or 0.35 for DNF. monotone: terms of a DNF have no negations
            without teaching either, as where the same functions are asked for untaught.

    Raises ShapeError; also where a teaching sequence is longer than the task.
    """

    width: int
    family: Family = "conjunction"
    noise: float = 0.0
    teaching: float = 0.0
    positives: float | None = None
    monotone: bool = False

    def __post_init__(self) -> None:
        if self.family not in FAMILIES or self.width < SPARSE_LITERALS or not 0 <= self.noise <= 1 or not 0 <= self.teaching <= 1:
            raise ShapeError(
                f"Boolean tasks expect width ≥ {SPARSE_LITERALS}, a known family, and chances in [0, 1]; received {self.width}, "
                f"{self.family}, {self.noise} and {self.teaching}. Known: {', '.join(FAMILIES)}."
            )
        if self.positives is not None and (self.family not in _SATISFIED + _FALSIFIED or not 0 <= self.positives <= 1):
            raise ShapeError(
                f"Inputs are changed, with a chance in [0, 1], for {', '.join(_SATISFIED + _FALSIFIED)}; received "
                f"{self.positives} for {self.family}."
            )
        if self.teaching and self.family not in TAUGHT:
            raise ShapeError(f"There are teaching sequences of {', '.join(TAUGHT)}; not of {self.family}.")

    def functions(self, tasks: int, generator: torch.Generator) -> Functions:
        """A function for each task."""
        D, family = self.width, self.family

        def chance(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        threshold = torch.full((tasks,), 0.5)
        if family in ("conjunction", "disjunction", "dnf", "cnf", "threshold"):
            several = family in ("dnf", "cnf")
            monotone = family == "dnf" and (self.monotone or self.teaching > 0)
            zero = 0.8 if several else 0.7
            drawn = chance(tasks, 3 if several else 1, D)
            w = (drawn > zero).float() * (1 if monotone else torch.where(chance(*drawn.shape) < 0.5, 1.0, -1.0))
            if family == "threshold":
                threshold = torch.randint(-3, 3, (tasks,), generator=generator) + 0.5
        elif family in ("monotone_conjunction", "majority"):
            w = (chance(tasks, 1, D) > 0.7).float()
        elif family in ("sparse_disjunction", "sparse_parity"):
            k = SPARSE_LITERALS if family == "sparse_disjunction" else SPARSE_BITS
            w = (chance(tasks, 1, D).argsort(-1).argsort(-1) < k).float()
        elif family == "halfspace":
            w = torch.randint(-3, 4, (tasks, 1, D), generator=generator).float()
        else:
            w = (chance(tasks, 1, D) < 0.5).float()
        return Functions(family, w, threshold)

    def inputs(self, functions: Functions, examples: int, generator: torch.Generator) -> Tensor:
        """xs [B, examples, D] for these functions."""
        B, K, D = functions.weights.shape
        xs = torch.where(torch.rand(B, examples, D, generator=generator) < 0.5, 1.0, -1.0)
        if self.family not in _SATISFIED + _FALSIFIED:
            return xs
        usual = 0.35 if self.family == "dnf" else 0.3
        term = torch.randint(K, (B,), generator=generator)  # one of a sequence's terms
        w = functions.weights[torch.arange(B), term].unsqueeze(1).expand_as(xs)
        wanted = w if self.family in _SATISFIED else -w
        chosen = torch.rand(B, examples, 1, generator=generator) < (usual if self.positives is None else self.positives)
        return torch.where(chosen & (w != 0), wanted, xs)

    def draw(self, tasks: int, examples: int, generator: torch.Generator) -> Drawn:
        """Tasks of `examples` pairs."""
        functions = self.functions(tasks, generator)
        xs = self.inputs(functions, examples, generator)
        lengths = torch.zeros(tasks, dtype=torch.int64)
        shown = torch.rand(tasks, generator=generator) < self.teaching
        if self.family in TAUGHT:
            for b in range(tasks):
                lesson = teaching(self.family, functions.weights[b])
                lengths[b] = len(lesson)
                if shown[b]:
                    if len(lesson) > examples:
                        raise ShapeError(f"A teaching sequence has {len(lesson)} examples; tasks of {examples} cannot show it.")
                    xs[b, : len(lesson)] = lesson
        ys = _nearest(xs, generator) if self.family == "nearest_neighbour" else functions.labels(xs)
        flipped = torch.rand(ys.shape, generator=generator) < self.noise
        return Drawn(xs, torch.where(flipped, -ys, ys), functions, lengths)


def teaching(family: Family, weights: Tensor) -> Tensor:
    """Inputs [k, D] after which one function of the family is left. weights: [terms, D]. Raises ShapeError.

    Monotone terms: the relevant bits 1 and all others −1, then the same with each relevant bit flipped. Terms with negations: all
    literals true with the others −1, again with the others 1, then each literal flipped. DNF: its terms one after another.
    """
    if family not in TAUGHT:
        raise ShapeError(f"There are teaching sequences of {', '.join(TAUGHT)}; not of {family}.")
    rows = []
    for w in weights:
        first = torch.where(w == 0, -torch.ones_like(w), w)
        rows.append(first)
        if family == "conjunction":
            rows.append(torch.where(w == 0, torch.ones_like(w), w))
        for i in w.nonzero().flatten().tolist():
            flipped = first.clone()
            flipped[i] *= -1
            rows.append(flipped)
    return torch.stack(rows)


def _sign(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1.0, -1.0)


def _nearest(xs: Tensor, generator: torch.Generator) -> Tensor:
    """Random labels for the first `START`, then that of the nearest earlier point; a point that was seen keeps its label."""
    B, N, _ = xs.shape
    ys = torch.where(torch.rand(B, N, generator=generator) < 0.5, 1.0, -1.0)
    likeness = xs @ xs.mT
    for i in range(1, N):
        best, at = likeness[:, i, :i].max(1)  # the first of equals
        seen = best == xs.shape[-1]
        copied = ys.gather(1, at.unsqueeze(1)).squeeze(1)
        ys[:, i] = torch.where(seen | (i >= START), copied, ys[:, i])
    return ys
