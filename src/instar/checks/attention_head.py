"""The contract of `AttentionHead`: what holds of every one, exact or not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instar import catalogue, formula
from instar.adapters.limits import gradients
from instar.checks.arguments import constructed, keeps, refused
from instar.checks.subject import Check, Subject
from instar.errors import CardError, ContractError, ShapeError
from instar.interfaces import AttentionHead
from instar.lab.limits.measuring import kept_bytes

_SIZES = {"L": 40, "M": 56, "D": 3, "E": 5}


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct."""
    for what, values, made in constructed(subject):
        keeps(subject, what, values, made, "records say what was run")
        if not isinstance(made, AttentionHead):
            raise ContractError(f"{what}: {subject.cls.__name__} is no instar.interfaces.AttentionHead: derive from it.")


def check_shapes(subject: Subject) -> None:
    """[N, L, E] in the inputs' dtype; one query, one key; the inputs stay as they are; twice the same."""
    head = subject.cls(**subject.arguments)
    for L, M in ((1, 1), (1, 7), (7, 1), (40, 56)):
        for dtype in (torch.float32, torch.float64):
            q, k, v, _ = _drawn(subject, L, M, dtype)
            before = [t.clone() for t in (q, k, v)]
            found = head(q, k, v)
            if found.shape != (2, L, _SIZES["E"]) or found.dtype != dtype:
                said = f"expected {dtype} [2, {L}, 5], received {found.dtype} {list(found.shape)}"
                raise ContractError(f"{L} queries, {M} keys: {said}.")
            if not torch.equal(found, head(q, k, v)):
                raise ContractError("The same inputs gave other numbers the second time.")
            if any(not torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True)):
                raise ContractError("It changed its inputs.")


def check_weights(subject: Subject) -> None:
    """Weights add up to 1, also of large scores: equal values come back. The order of the keys does not matter."""
    head = subject.cls(**subject.arguments)
    for size in (0.1, 1.0):
        q, k, v, _ = _drawn(subject, 40, 56, subject.dtype, size)
        _near(head(q, k, torch.full_like(v, 2.5)), torch.full((2, 40, 5), 2.5), subject, "with equal values from those values")
        order = torch.randperm(56)
        _near(head(q, k[:, order], v[:, order]), head(q, k, v), subject, "with keys and values in another order")


def check_gradients(subject: Subject) -> None:
    """Of every input, finite, of its shape and dtype; rows alone: a head's gradient knows nothing of another head."""
    head = subject.cls(**subject.arguments)
    q, k, v, up = _drawn(subject, 40, 56, subject.dtype, 0.5)
    whole = _gradients(head, q, k, v, up)
    for name, given, found in zip("qkv", (q, k, v), whole, strict=True):
        if found is None or found.shape != given.shape or found.dtype != given.dtype or not bool(found.isfinite().all()):
            raise ContractError(f"The gradient of {name} is missing, of another shape or dtype, or not finite.")
    for name, found, alone in zip("qkv", whole, _gradients(head, q[:1], k[:1], v[:1], up[:1]), strict=True):
        _near(found[:1], alone, subject, f"in the gradient of {name} when the head is alone")


def check_exact(subject: Subject) -> None:
    """Output and gradients are those of the formula, at small and at large scores."""
    head = subject.cls(**subject.arguments)
    for size in (0.3, 6.0):
        q, k, v, up = _drawn(subject, 40, 56, subject.dtype, size)
        _near(head(q, k, v), torch.softmax(q @ k.mT, -1) @ v, subject, "from softmax(Q Kᵀ) V")
        for name, found, want in zip("qkv", _gradients(head, q, k, v, up), gradients.dense(q, k, v, up, 1.0, False), strict=True):
            _near(found, want, subject, f"in the gradient of {name} from the formula's")


def check_limit(subject: Subject) -> None:
    """As scores go to 0, so does the distance from softmax attention."""
    head = subject.cls(**subject.arguments)
    apart = []
    for size in (0.3, 0.03):
        q, k, v, _ = _drawn(subject, 40, 56, torch.float64, size)
        want = torch.softmax(q @ k.mT, -1) @ v
        apart.append(float((head(q, k, v) - want).norm() / want.norm()))
    if not apart[1] <= max(apart[0], 1e-12) or not apart[1] < 0.05:
        raise ContractError(f"Relative errors at scores of 0.1 and 0.001: {apart[0]:.2g} and {apart[1]:.2g}.")


def check_refusals(subject: Subject) -> None:
    """Widths that differ, other numbers of keys than of values, other dtypes, no keys."""
    head = subject.cls(**subject.arguments)
    q, k, v, _ = _drawn(subject, 40, 56, subject.dtype)
    cases: dict[str, tuple[Tensor, Tensor, Tensor]] = {
        "queries of another width": (q[..., :-1], k, v),
        "fewer values than keys": (q, k, v[:, :-1]),
        "keys of another dtype": (q, k.half(), v),
        "no keys": (q, k[:, :0], v[:, :0]),
        "whole numbers": (q.long(), k.long(), v.long()),
    }
    for what, case in cases.items():
        refused(what, lambda case=case: head(*case), ShapeError)  # type: ignore[misc]


def check_costs(subject: Subject) -> None:
    """Products of matrices, and bytes that are kept for the gradient, are those of the card's formulas (float32)."""
    if subject.card.cost is None:
        raise CardError(f"The card of {subject.card.slug} states no costs, so there is nothing to hold it to.")
    head = subject.cls(**subject.arguments)
    values = catalogue.variables(subject.cls, subject.arguments, **_SIZES, F=_monomials(head))
    q, k, v, _ = (t[:1].clone() for t in _drawn(subject, _SIZES["L"], _SIZES["M"], torch.float32, 0.5))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    with FlopCounterMode(display=False) as counter:
        kept = kept_bytes(lambda: head(*leaves))
    cost = subject.card.cost
    for what, measured, text in (("state", kept, cost.state), ("flops", counter.get_total_flops(), cost.flops)):
        if measured != (promised := formula.evaluate(text, values)):
            raise ContractError(f"{what} is {measured} at {_SIZES}; the card's formula '{text}' gives {promised:g}.")


def _monomials(head: Any) -> int:
    """Those of a polynomial's degree in D variables: binom(D + g, g)."""
    degree = getattr(head, "degree", 0)
    return math.comb(_SIZES["D"] + degree, degree)


def _drawn(subject: Subject, L: int, M: int, dtype: torch.dtype, size: float = 0.5) -> list[Tensor]:
    """Two heads: queries and keys of norm `size` at most, values, and a gradient from above."""
    g = torch.Generator().manual_seed(subject.seed)
    D, E = _SIZES["D"], _SIZES["E"]
    shapes = ((2, L, D), (2, M, D), (2, M, E), (2, L, E))
    q, k, v, up = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes)
    return [t.to(dtype) for t in (size * q / q.norm(dim=-1).max(), size * k / k.norm(dim=-1).max(), v, up)]


def _gradients(head: Any, q: Tensor, k: Tensor, v: Tensor, up: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    return torch.autograd.grad(head(*leaves), leaves, up, allow_unused=True)


def _near(found: Tensor, want: Tensor, subject: Subject, what: str) -> None:
    gap = float((found - want).abs().max() / want.abs().max().clamp_min(1.0))
    if not gap <= subject.tolerance:
        raise ContractError(f"Differs by {gap:.1e} {what}.")


CONTRACT = (
    Check("arguments", check_arguments),
    Check("shapes", check_shapes),
    Check("weights", check_weights),
    Check("gradients", check_gradients),
    Check("exact", check_exact, needs="exact"),
    Check("limit", check_limit, unless="exact"),
    Check("refusals", check_refusals),
    Check("costs", check_costs, costs=True),
)
