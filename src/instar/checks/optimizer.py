"""The contract of `Optimizer`: what holds of every optimiser, whatever it does with gradients."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar import catalogue, formula
from instar.bench.seeds import initialising
from instar.checks.subject import Check, Subject
from instar.errors import ContractError
from instar.interfaces import Optimizer

_LAYERS = (6, 9, 7, 4)
_COUNTERS = 8
"""Bytes of counts of steps that a tensor may bring."""


def check_arguments(subject: Subject) -> None:
    """Presets and the ends of knobs construct; a rate can be given."""
    known = inspect.signature(subject.cls).parameters
    if "lr" not in known:
        raise ContractError(f"{subject.cls.__name__} has no argument lr.")
    settings = {"the default": {}, **{f"preset {name}": values for name, values in subject.card.presets.items()}}
    for name, knob in subject.card.knobs.items():
        for value in knob.choices or knob.range or ():
            settings[f"knob {name} = {value}"] = {**subject.arguments, name: int(value) if knob.integer else value}
    for what, values in settings.items():
        if unknown := values.keys() - known.keys():
            raise ContractError(f"{what}: {subject.cls.__name__} has no argument {', '.join(unknown)}, only {', '.join(known)}.")
        if not isinstance(subject.cls(_model(subject), **values), Optimizer):
            raise ContractError(f"{what}: {subject.cls.__name__} is no instar.interfaces.Optimizer: derive the class from it.")


def check_learns(subject: Subject) -> None:
    """Thirty steps on one batch lower its loss."""
    model, optimiser = _made(subject)
    losses = _train(model, optimiser, 30)
    if not losses[-1] < losses[0]:
        raise ContractError(f"The loss was {losses[0]:.4g} and is {losses[-1]:.4g} after 30 steps on one batch.")


def check_repeats(subject: Subject) -> None:
    """The same steps give the same bits."""
    found = [_train(*_made(subject), 8) for _ in range(2)]
    if found[0] != found[1]:
        raise ContractError("Two runs from the same start differ.")


def check_resumes(subject: Subject) -> None:
    """State through a file, into a fresh optimiser of a fresh model: the bits of an uninterrupted run, wherever it was cut."""
    whole, through = _made(subject)
    _train(whole, through, 14, first=0)
    for cut in (1, 7):
        model, optimiser = _made(subject)
        _train(model, optimiser, cut, first=0)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        fresh, again = _made(subject, seed=1)
        fresh.load_state_dict(saved["model"])
        again.load_state_dict(saved["optimiser"])
        _train(fresh, again, 14 - cut, first=cut)
        if any(not torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True)):
            raise ContractError(f"Resumed after {cut} steps, the parameters are not those of the run that went through.")


def check_rates(subject: Subject) -> None:
    """Groups rule: with every rate at 0 nothing moves, and a scheduler halves what it is told to."""
    model, optimiser = _made(subject)
    _train(model, optimiser, 2)
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.5)
    _train(model, optimiser, 1)
    schedule.step()
    if any(not math.isclose(g["lr"], r / 2) for g, r in zip(optimiser.param_groups, rates, strict=True)):
        raise ContractError("A scheduler's rates do not reach the parameter groups.")
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(model.state_dict())
    _train(model, optimiser, 2)
    if any(not torch.equal(t, before[k]) for k, t in model.state_dict().items()):
        raise ContractError("With all rates at 0 the parameters still change.")


def check_closures(subject: Subject) -> None:
    """A closure is called once and its value returned; the step is that without one."""
    plain, one = _made(subject)
    given, two = _made(subject)
    calls: list[Tensor] = []

    def closure() -> Tensor:
        two.zero_grad()
        calls.append(_loss(given, len(calls)))
        calls[-1].backward()
        return calls[-1]

    for step in range(4):
        _train(plain, one, 1, first=step)
        value = two.step(closure)
        if len(calls) != step + 1 or value is not calls[-1]:
            raise ContractError("A step calls its closure once and returns its value.")
    if any(not torch.equal(a, b) for a, b in zip(plain.parameters(), given.parameters(), strict=True)):
        raise ContractError("A step with a closure is not the step without it.")


def check_gradients_that_are_missing(subject: Subject) -> None:
    """A parameter without a gradient keeps its bits; the others move."""
    model, optimiser = _made(subject)
    still = next(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        _loss(model, 0).backward()
        still.grad = None
        optimiser.step()
        optimiser.zero_grad()
    after = list(model.parameters())
    if not torch.equal(before[0], after[0]) or all(torch.equal(a, b) for a, b in zip(before[1:], after[1:], strict=True)):
        raise ContractError("A parameter without a gradient must stay as it is, and the others must move.")


def check_gradients_that_are_not_finite(subject: Subject) -> None:
    """A step with a NaN or an infinity changes no parameter and no state that later steps read."""
    clean, one = _made(subject)
    hit, two = _made(subject)
    _train(clean, one, 3)
    _train(hit, two, 3)
    for wrong in (math.nan, math.inf):
        _loss(hit, 3).backward()
        next(hit.parameters()).grad[0, 0] = wrong  # type: ignore[index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            two.step()
        two.zero_grad()
    _train(clean, one, 5, first=3)
    _train(hit, two, 5, first=3)
    if any(not torch.equal(a, b) for a, b in zip(clean.parameters(), hit.parameters(), strict=True)):
        raise ContractError("Steps with gradients that are not finite must leave everything as it was.")


def check_foreign_states(subject: Subject) -> None:
    """The state of an optimiser of another model is refused, and changes nothing."""
    model, optimiser = _made(subject)
    _train(model, optimiser, 2)
    with initialising(0):
        other = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4))
    foreign = subject.cls(other, **subject.arguments)
    for _ in range(2):
        other(_batch(0)[0]).square().mean().backward()
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
    model, optimiser = _made(subject)
    _train(model, optimiser, 2)
    counted = sum(t.numel() * t.element_size() for t in _tensors(optimiser.state_dict()))
    if optimiser.state_bytes() != counted:
        raise ContractError(f"state_bytes() is {optimiser.state_bytes()}, the tensors of state_dict() have {counted} bytes.")
    if subject.card.cost is None:
        return
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


def _model(subject: Subject, seed: int = 0) -> nn.Sequential:
    with initialising(subject.seed + seed):
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise(_LAYERS):
            layers += [nn.Linear(i, o), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _made(subject: Subject, seed: int = 0) -> tuple[nn.Module, Any]:
    model = _model(subject, seed)
    return model, subject.cls(model, **subject.arguments)


def _batch(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(16, _LAYERS[0], generator=generator), torch.randn(16, _LAYERS[-1], generator=generator)


def _loss(model: nn.Module, index: int) -> Tensor:
    x, y = _batch(index)
    return F.mse_loss(model(x), y)


def _train(model: nn.Module, optimiser: Any, steps: int, first: int | None = None) -> list[float]:
    """Steps on batches of their own from `first` on, or all on one."""
    losses = []
    for step in range(steps):
        loss = _loss(model, 0 if first is None else first + step)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        optimiser.observe(losses[-1])
        optimiser.zero_grad()
    return losses


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
    Check("rates", check_rates),
    Check("closures", check_closures),
    Check("missing_gradients", check_gradients_that_are_missing),
    Check("gradients_not_finite", check_gradients_that_are_not_finite),
    Check("foreign_states", check_foreign_states),
    Check("bytes", check_bytes),
)
