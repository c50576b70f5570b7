"""The contract of `Optimizer`: what holds of every one, whatever it does with gradients; `optimizer_groups` has the rest."""

from __future__ import annotations

import copy
import inspect
import io
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from instar import catalogue, formula
from instar.bench.seeds import initialising
from instar.checks import optimizer_groups as grouped
from instar.checks.arguments import constructed
from instar.checks.optimizer_models import batch, build, loss, made, train
from instar.checks.subject import Check, Subject
from instar.errors import ContractError
from instar.interfaces import Optimizer

_COUNTERS = 8
"""Bytes of counts of steps that a tensor may bring."""


def check_arguments(subject: Subject) -> None:
    """Presets and the ends of knobs construct; a rate can be given."""
    if "lr" not in inspect.signature(subject.cls).parameters:
        raise ContractError(f"{subject.cls.__name__} has no argument lr.")
    for what, _, optimiser in constructed(subject, lambda values: subject.cls(build(subject), **values)):
        if not isinstance(optimiser, Optimizer):
            raise ContractError(f"{what}: {subject.cls.__name__} is no instar.interfaces.Optimizer: derive the class from it.")


def check_learns(subject: Subject) -> None:
    """Thirty steps on one batch lower its loss."""
    model, optimiser = made(subject)
    losses = train(model, optimiser, 30)
    if not losses[-1] < losses[0]:
        raise ContractError(f"The loss was {losses[0]:.4g} and is {losses[-1]:.4g} after 30 steps on one batch.")


def check_repeats(subject: Subject) -> None:
    """The same steps give the same bits."""
    found = [train(*made(subject), 8) for _ in range(2)]
    if found[0] != found[1]:
        raise ContractError("Two runs from the same start differ.")


def check_resumes(subject: Subject) -> None:
    """State through a file, into a fresh optimiser of a fresh model: the bits of an uninterrupted run, wherever it was cut."""
    whole, through = made(subject)
    train(whole, through, 14, first=0)
    for cut in (1, 7):
        model, optimiser = made(subject)
        train(model, optimiser, cut, first=0)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        fresh, again = made(subject, seed=1)
        fresh.load_state_dict(saved["model"])
        again.load_state_dict(saved["optimiser"])
        train(fresh, again, 14 - cut, first=cut)
        if any(not torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True)):
            raise ContractError(f"Resumed after {cut} steps, the parameters are not those of the run that went through.")


def check_gradients_that_are_missing(subject: Subject) -> None:
    """A parameter without a gradient keeps its bits; the others move."""
    model, optimiser = made(subject)
    still = next(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        loss(model, 0).backward()
        still.grad = None
        optimiser.step()
        optimiser.zero_grad()
    after = list(model.parameters())
    if not torch.equal(before[0], after[0]) or all(torch.equal(a, b) for a, b in zip(before[1:], after[1:], strict=True)):
        raise ContractError("A parameter without a gradient must stay as it is, and the others must move.")


def check_gradients_that_are_not_finite(subject: Subject) -> None:
    """A step with a NaN or an infinity changes no parameter and no state that later steps read."""
    clean, one = made(subject)
    hit, two = made(subject)
    train(clean, one, 3)
    train(hit, two, 3)
    for wrong in (math.nan, math.inf):
        loss(hit, 3).backward()
        next(hit.parameters()).grad[0, 0] = wrong  # type: ignore[index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            two.step()
        two.zero_grad()
    train(clean, one, 5, first=3)
    train(hit, two, 5, first=3)
    if any(not torch.equal(a, b) for a, b in zip(clean.parameters(), hit.parameters(), strict=True)):
        raise ContractError("Steps with gradients that are not finite must leave everything as it was.")


def check_foreign_states(subject: Subject) -> None:
    """The state of an optimiser of another model is refused, and changes nothing."""
    model, optimiser = made(subject)
    train(model, optimiser, 2)
    with initialising(0):
        other = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4))
    foreign = subject.cls(other, **subject.arguments)
    for _ in range(2):
        other(batch(0)[0]).square().mean().backward()
        foreign.step()
    before = _plain(optimiser.state_dict())
    try:
        optimiser.load_state_dict(foreign.state_dict())
    except Exception:  # torch's own optimisers raise ValueError
        if _plain(optimiser.state_dict()) != before:
            raise ContractError("The refused state of another model has changed the optimiser.") from None
        return
    raise ContractError("The state of an optimiser of another model was taken.")


def check_bytes(subject: Subject) -> None:
    """`state_bytes` counts the tensors of `state_dict`, and is what the card's formula says for one layer."""
    model, optimiser = made(subject)
    train(model, optimiser, 2)
    counted = sum(t.numel() * t.element_size() for t in _tensors(optimiser.state_dict()))
    if optimiser.state_bytes() != counted:
        raise ContractError(f"state_bytes() is {optimiser.state_bytes()}, the tensors of state_dict() have {counted} bytes.")
    if subject.card.cost is None or "inner" in subject.arguments:
        return  # the formula is of the optimiser that is inside by default
    sizes = [_kept(subject, pairs) for pairs in ([(24, 16), (16, 10)], [(16, 10)])]  # the last layer is a head to some
    wanted = formula.evaluate(subject.card.cost.state, catalogue.variables(subject.cls, subject.arguments, I=25, O=16))
    if abs(sizes[0] - sizes[1] - wanted) > 2 * _COUNTERS:
        raise ContractError(f"A layer keeps {sizes[0] - sizes[1]} bytes; the card's formula says {wanted:g}.")


def _kept(subject: Subject, pairs: list[tuple[int, int]]) -> int:
    """Bytes after a step of a stack of linear layers."""
    with initialising(0):
        layers = nn.Sequential(*(nn.Linear(i, o) for i, o in pairs))
    optimiser = subject.cls(layers, **subject.arguments)
    layers(torch.ones(5, pairs[0][0])).square().mean().backward()
    optimiser.step()
    return int(optimiser.state_bytes())


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors(value)


def _plain(state: Any) -> Any:
    """A state that can be compared with ==."""
    if isinstance(state, Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return [_plain(value) for value in state] if isinstance(state, (list, tuple)) else copy.copy(state)


CONTRACT = (
    Check("arguments", check_arguments),
    Check("learns", check_learns),
    Check("repeats", check_repeats),
    Check("resumes", check_resumes),
    Check("rates", grouped.check_rates),
    Check("groups", grouped.check_groups),
    Check("closures", grouped.check_closures),
    Check("placement", grouped.check_placement, needs="placement"),
    Check("missing_gradients", check_gradients_that_are_missing),
    Check("gradients_not_finite", check_gradients_that_are_not_finite),
    Check("foreign_states", check_foreign_states),
    Check("bytes", check_bytes),
)
