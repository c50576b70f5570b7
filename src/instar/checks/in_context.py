"""The contract of `InContextLearner`: what holds of every one, trained or not."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from instar.checks.arguments import constructed
from instar.checks.subject import Check, Subject
from instar.errors import ContractError, ShapeError
from instar.interfaces import InContextLearner

GIVEN: dict[str, Any] = {"width": 4, "examples": 8, "noise": 0.1, "prior": 1.0}
"""What a constructor may ask for, as the contract has it."""


def check_arguments(subject: Subject) -> None:
    """Presets and the ends of knobs construct."""
    for what, _, made in constructed(subject, lambda values: _made(subject, values)):
        if not isinstance(made, InContextLearner):
            raise ContractError(f"{what}: {subject.cls.__name__} is no instar.interfaces.InContextLearner: derive from it.")


def check_shapes(subject: Subject) -> None:
    """[B, Q] in the inputs' dtype for any number of examples and queries, none included; the inputs stay as they are."""
    learner = _made(subject)
    for examples in (0, 1, 3, GIVEN["examples"] - 1):
        for queries in (1, 3):
            xs, ys, x_query = _tasks(2, examples, queries, subject)
            before = [t.clone() for t in (xs, ys, x_query)]
            with torch.no_grad():
                found = learner.predict(xs, ys, x_query)
            if found.shape != (2, queries) or found.dtype != xs.dtype:
                raise ContractError(
                    f"{examples} examples, {queries} queries: expected {xs.dtype} [2, {queries}], received {found.dtype} "
                    f"{list(found.shape)}."
                )
            if not bool(found.isfinite().all()):
                raise ContractError(f"{examples} examples: a prediction is not finite.")
            if any(not torch.equal(a, b) for a, b in zip(before, (xs, ys, x_query), strict=True)):
                raise ContractError("The inputs were changed.")


def check_refuses(subject: Subject) -> None:
    """Shapes that do not fit raise ShapeError."""
    learner = _made(subject)
    xs, ys, x_query = _tasks(2, 5, 1, subject)
    for what, wrong in {
        "a label too few": (xs, ys[:, :-1], x_query),
        "queries of another width": (xs, ys, x_query[..., :-1]),
        "queries of another number of tasks": (xs, ys, x_query[:1]),
        "queries without an axis": (xs, ys, x_query[:, 0]),
    }.items():
        try:
            learner.predict(*wrong)
        except ShapeError:
            continue
        raise ContractError(f"Expected ShapeError for {what}.")


def check_alone(subject: Subject) -> None:
    """Tasks and queries are answered alone: what else stands in the batch, or is asked, changes nothing."""
    learner = _made(subject)
    xs, ys, x_query = _tasks(3, 6, 2, subject)
    with torch.no_grad():
        whole = learner.predict(xs, ys, x_query)
        for b in range(3):
            _same(whole[b : b + 1], learner.predict(xs[b : b + 1], ys[b : b + 1], x_query[b : b + 1]), subject, "a task alone")
        for q in range(2):
            _same(whole[:, q : q + 1], learner.predict(xs, ys, x_query[:, q : q + 1]), subject, "a query alone")


def check_prefixes(subject: Subject) -> None:
    """`prefixes` is `predict` after each prefix; later pairs, and the label that is asked for, reach nothing before them."""
    learner = _made(subject)
    xs, ys, _ = _tasks(2, 6, 1, subject)
    with torch.no_grad():
        found = learner.prefixes(xs, ys)
        if found.shape != ys.shape:
            raise ContractError(f"prefixes: expected [2, 6], received {list(found.shape)}.")
        for i in range(6):
            _same(found[:, i : i + 1], learner.predict(xs[:, :i], ys[:, :i], xs[:, i : i + 1]), subject, f"after {i} pairs")
        later = ys.clone()
        later[:, 3:] += 7
        moved = xs.clone()
        moved[:, 4:] -= 5
        _same(found[:, :4], learner.prefixes(moved, later)[:, :4], subject, "with other pairs later on")


def check_order(subject: Subject) -> None:
    """The order of the examples changes nothing, unless the card says so."""
    learner = _made(subject)
    xs, ys, x_query = _tasks(3, 6, 2, subject)
    with torch.no_grad():
        one = learner.predict(xs, ys, x_query)
        _same(one, learner.predict(xs.flip(1), ys.flip(1), x_query), subject, "with the examples in another order")


def check_degenerate(subject: Subject) -> None:
    """The same input again and again, an input that is always zero, labels that are all zero: finite answers."""
    learner = _made(subject)
    xs, ys, x_query = _tasks(2, 6, 1, subject)
    constant = xs.clone()
    constant[..., 0] = 0.0
    for what, case in {
        "one input six times": (xs[:, :1].expand_as(xs), ys),
        "a feature without variance": (constant, ys),
        "inputs of zero": (torch.zeros_like(xs), ys),
        "labels of zero": (xs, torch.zeros_like(ys)),
    }.items():
        with torch.no_grad():
            if not bool(learner.predict(*case, x_query).isfinite().all()):
                raise ContractError(f"Not finite for {what}.")


def check_keeps(subject: Subject) -> None:
    """Weights stay as they are while it answers, and the same question has the same answer."""
    learner = _made(subject)
    xs, ys, x_query = _tasks(2, 6, 1, subject)
    before = [t.clone() for t in learner.state_dict().values()] if isinstance(learner, nn.Module) else []
    with torch.no_grad():
        first = learner.predict(xs, ys, x_query)
        learner.predict(-xs, ys + 1, x_query)
        again = learner.predict(xs, ys, x_query)
    if not torch.equal(first, again):
        raise ContractError("The same question was answered differently after another one.")
    after = learner.state_dict().values() if isinstance(learner, nn.Module) else []
    if any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        raise ContractError("Answering changed the weights.")


def _made(subject: Subject, arguments: dict[str, Any] | None = None) -> Any:
    asked = {name: value for name, value in GIVEN.items() if name in inspect.signature(subject.cls).parameters}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        learner = subject.cls(**{**asked, **(subject.arguments if arguments is None else arguments)})
    return learner.to(subject.dtype).eval() if isinstance(learner, nn.Module) else learner


def _tasks(batch: int, examples: int, queries: int, subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """Linear tasks."""
    x = torch.randn(batch, examples + queries, GIVEN["width"], dtype=subject.dtype)
    y = (x @ torch.randn(batch, GIVEN["width"], 1, dtype=subject.dtype)).squeeze(-1)
    return x[:, :examples], y[:, :examples], x[:, examples:]


def _same(a: Tensor, b: Tensor, subject: Subject, what: str) -> None:
    tolerance = 1e-7 if subject.dtype == torch.float64 else 5e-4
    gap = float((a - b).abs().max() / a.abs().max().clamp_min(1.0))
    if not gap <= tolerance:
        raise ContractError(f"The answers differ by {gap:.3g} {what}.")


CONTRACT = (
    Check("arguments", check_arguments),
    Check("shapes", check_shapes),
    Check("refuses", check_refuses),
    Check("alone", check_alone),
    Check("prefixes", check_prefixes),
    Check("order", check_order, unless="ordered"),
    Check("degenerate", check_degenerate),
    Check("keeps", check_keeps),
)
