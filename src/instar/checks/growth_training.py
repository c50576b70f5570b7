"""The contract of `Growth` where models are trained: what an optimiser keeps, the way back, interrupts, resumption."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from instar.checks.growth_models import OPTIMISERS, build, built, loss, plans, same_state, train
from instar.checks.subject import Subject
from instar.checks.witness import Interrupt, picture, require
from instar.errors import ContractError

_INTERRUPTS = 6


def check_larger(subject: Subject) -> None:
    """There are more parameters, in the type of the others, and three steps of training reach every row and column of each."""
    growth = build(subject)
    for plan in plans(growth):
        model = built(growth)
        before = sum(p.numel() for p in model.parameters())
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, foreach=True)
        train(model, optimiser, 2)
        growth.grow(model, plan, optimizer=optimiser)
        after = sum(p.numel() for p in model.parameters())
        if growth.grows != (after > before):
            raise ContractError(f"{plan}: {before} parameters before, {after} after.")
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, optimiser, 3)
        for name, parameter in model.named_parameters():
            moved = parameter != start[name]
            everywhere = all(bool(moved.movedim(dim, 0).reshape(size, -1).any(1).all()) for dim, size in enumerate(moved.shape))
            if parameter.dtype != torch.float64 or not everywhere:
                raise ContractError(
                    f"{plan}: after growth and three steps, a part of {name} has not moved: no gradient reaches it."
                )


def check_learns(subject: Subject) -> None:
    """Thirty steps on one batch after growth lower its loss."""
    growth = build(subject)
    model = built(growth)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, foreach=True)
    train(model, optimiser, 5)
    growth.grow(model, plans(growth)[-1], optimizer=optimiser)
    losses = train(model, optimiser, 30)
    if not losses[-1] < losses[0]:
        raise ContractError(f"The loss was {losses[0]:.4g} and is {losses[-1]:.4g} after 30 steps on one batch.")


def check_optimisers(subject: Subject) -> None:
    """Every optimiser trains each parameter once; what it keeps has the parameters' shapes; groups keep their settings, and
    schedulers that were made before growth rule them after it."""
    growth = build(subject)
    for name, make in OPTIMISERS.items():
        model = built(growth)
        optimiser = make(model)
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.0)
        train(model, optimiser, 2)
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimiser.param_groups]
        growth.grow(model, plans(growth)[-1], optimizer=optimiser)
        trained = [id(p) for group in optimiser.param_groups for p in group["params"]]
        if sorted(trained) != sorted(id(p) for p in model.parameters()):
            raise ContractError(f"{name} does not train each parameter of the grown model once.")
        if groups != [{key: value for key, value in group.items() if key != "params"} for group in optimiser.param_groups]:
            raise ContractError(f"{name}: the settings of a group are not what they were.")
        for parameter, state in optimiser.state.items():
            if any(isinstance(t, Tensor) and t.dim() and t.shape != parameter.shape for t in state.values()):
                raise ContractError(f"{name}: a state has not the shape {tuple(parameter.shape)} of its parameter.")
        train(model, optimiser, 2)
        schedule.step()
        before = [p.detach().clone() for p in model.parameters()]
        train(model, optimiser, 1)
        if any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)):
            raise ContractError(f"{name}: a scheduler that was made before growth does not set all rates after it.")


def check_moments(subject: Subject) -> None:
    """What an optimiser averaged of gradients becomes what it would have averaged of the grown model's."""
    growth = build(subject)
    if growth.preserves == "nothing":
        return
    for plan in plans(growth):
        model = built(growth)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        train(model, optimiser, 1)
        growth.grow(model, plan, optimizer=optimiser)
        optimiser.zero_grad()
        loss(model).backward()
        kept = 0
        for name, parameter in model.named_parameters():
            momentum = optimiser.state.get(parameter, {}).get("momentum_buffer")
            if momentum is None:
                continue
            assert parameter.grad is not None
            known = momentum != 0
            kept += int(known.sum())
            if not torch.allclose(momentum[known], parameter.grad[known], rtol=1e-7, atol=1e-12):
                raise ContractError(f"{plan}: the momentum of {name} is not the gradient of the grown model.")
        if not kept:
            raise ContractError(f"{plan}: nothing is left of the optimiser's state.")


def check_undo(subject: Subject) -> None:
    """Undo brings back model and optimiser; training goes on as if nothing had been."""
    growth = build(subject)
    plain, model = built(growth), built(growth)
    one, two = (torch.optim.AdamW(m.parameters(), lr=1e-3, foreach=True) for m in (plain, model))
    train(plain, one, 3)
    train(model, two, 3)
    before, state = picture(model), (dict(two.state), [list(g["params"]) for g in two.param_groups])
    growth.grow(model, plans(growth)[-1], optimizer=two).undo()
    require(model, before, "After growth and undo")
    if not same_state(two, state):
        raise ContractError("After undo the optimiser is not what it was.")
    train(plain, one, 2)
    train(model, two, 2)
    if any(not torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True)):
        raise ContractError("After undo, training does not go on as if nothing had been.")


def check_interrupted(subject: Subject) -> None:
    """An interrupt at any operation leaves model and optimiser as they were."""
    growth = build(subject)
    plan = plans(growth)[-1]

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = built(growth)
        optimiser = torch.optim.AdamW(model.parameters(), foreach=True)
        train(model, optimiser, 1)
        return model, optimiser

    model, optimiser = made()
    counter = Interrupt(-1)
    with counter:
        growth.grow(model, plan, optimizer=optimiser)
    for number in range(_INTERRUPTS):
        at = counter.seen * number // _INTERRUPTS
        model, optimiser = made()
        before, state = picture(model), (dict(optimiser.state), [list(g["params"]) for g in optimiser.param_groups])
        try:
            with Interrupt(at):
                growth.grow(model, plan, optimizer=optimiser)
        except KeyboardInterrupt:
            require(model, before, f"After an interrupt at operation {at} of {counter.seen}")
            if not same_state(optimiser, state):
                raise ContractError(f"After an interrupt at operation {at}, the optimiser is not what it was.") from None


def check_resumes(subject: Subject) -> None:
    """State through a file, into a model and an optimiser that grew in the same way: the bits of an uninterrupted run."""
    growth = build(subject)
    plan = plans(growth)[-1]

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = built(growth)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)

    whole, through = made()
    train(whole, through, 2)
    growth.grow(whole, plan, optimizer=through)
    train(whole, through, 2)
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimiser": through.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh, again = made()
    growth.grow(fresh, plan, optimizer=again)
    fresh.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimiser"])
    train(whole, through, 3)
    train(fresh, again, 3)
    if any(not torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True)):
        raise ContractError("A run that was resumed after growth does not end in the bits of the one that went through.")
