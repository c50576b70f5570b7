"""The contract of `Optimizer` where others reach into it: rates and groups, schedulers, closures, and where its state lies."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from instar.checks.arguments import settings
from instar.checks.optimizer_models import build, loss, made, train
from instar.checks.subject import Subject
from instar.errors import ContractError

_WIDE = (64, 96, 80)
"""Hidden units of a network whose state is worth cutting into parts."""


def check_rates(subject: Subject) -> None:
    """Groups rule: with every rate at 0 nothing moves, and a scheduler halves what it is told to."""
    model, optimiser = made(subject)
    train(model, optimiser, 2)
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.5)
    train(model, optimiser, 1)
    schedule.step()
    if any(not math.isclose(g["lr"], r / 2) for g, r in zip(optimiser.param_groups, rates, strict=True)):
        raise ContractError("A scheduler's rates do not reach the parameter groups.")
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(model.state_dict())
    train(model, optimiser, 2)
    if any(not torch.equal(t, before[k]) for k, t in model.state_dict().items()):
        raise ContractError("With all rates at 0 the parameters still change.")


def check_groups(subject: Subject) -> None:
    """Each parameter is in one group; a rate of 0 holds the parameters of its group alone; a group that is added learns."""
    model, optimiser = made(subject)
    listed = [id(p) for group in optimiser.param_groups for p in group["params"]]
    if sorted(listed) != sorted(id(p) for p in model.parameters()):
        raise ContractError("Every parameter of the model belongs to exactly one group.")
    train(model, optimiser, 2)
    for number, held in enumerate(optimiser.param_groups):
        rate, held["lr"] = held["lr"], 0.0
        before = [[p.detach().clone() for p in group["params"]] for group in optimiser.param_groups]
        train(model, optimiser, 1)
        for other, group in enumerate(optimiser.param_groups):
            moved = any(not torch.equal(p, q) for p, q in zip(group["params"], before[other], strict=True))
            if moved == (other == number):
                raise ContractError(
                    f"With the rate of group {number} at 0, group {other} {'has moved' if moved else 'has not moved'}."
                )
        held["lr"] = rate
    extra = nn.Parameter(torch.ones(3, 4))
    optimiser.add_param_group({"params": [extra]})
    before_all = [p.detach().clone() for p in (extra, *model.parameters())]
    for _ in range(2):
        extra.grad = torch.ones_like(extra)
        train(model, optimiser, 1)
    if any(torch.equal(p, q) for p, q in zip((extra, *model.parameters()), before_all, strict=True)):
        raise ContractError("After a group was added, its parameter and all others must go on learning.")


def check_closures(subject: Subject) -> None:
    """A closure is called once and its value returned; the step is that without one."""
    plain, one = made(subject)
    given, two = made(subject)
    calls: list[Tensor] = []

    def closure() -> Tensor:
        two.zero_grad()
        calls.append(loss(given, len(calls)))
        calls[-1].backward()
        return calls[-1]

    for step in range(4):
        train(plain, one, 1, first=step)
        value = two.step(closure)
        if len(calls) != step + 1 or value is not calls[-1]:
            raise ContractError("A step calls its closure once and returns its value.")
    if any(not torch.equal(a, b) for a, b in zip(plain.parameters(), given.parameters(), strict=True)):
        raise ContractError("A step with a closure is not the step without it.")


def check_placement(subject: Subject) -> None:
    """Wherever presets and knobs put the state, the numbers are the same to the bit, also on the way through its file."""
    plain = build(subject, hidden=_WIDE)
    first = subject.cls(plain, **subject.arguments)
    train(plain, first, 9, first=0)
    for what, values in settings(subject).items():
        if what.startswith("knob lr ="):
            continue
        model = build(subject, hidden=_WIDE)
        optimiser = subject.cls(model, **{**subject.arguments, **values})
        train(model, optimiser, 5, first=0)
        again = subject.cls(model, **subject.arguments)
        again.load_state_dict(optimiser.state_dict())  # as it was kept there, it goes on here
        train(model, again, 4, first=5)
        if any(not torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True)):
            raise ContractError(f"{what}: other numbers than by default. Where a state lies must not change what is learnt.")
