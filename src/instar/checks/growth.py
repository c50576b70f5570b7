"""The contract of `Growth`: what is kept of the function and of the optimiser, the way back, chains, resumption, refusals."""

from __future__ import annotations

import inspect
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar import catalogue, formula
from instar.checks.growth_models import OPTIMISERS, built, plans, same_state, tokens, train
from instar.checks.subject import Check, Subject
from instar.checks.witness import Interrupt, picture, require
from instar.errors import ContractError, InstarError
from instar.interfaces import Growth
from instar.receipt import fingerprint

_ROUNDING = 1e-9
"""Relative to the largest logit, in float64."""
_INTERRUPTS = 6


def build(subject: Subject) -> Growth:
    """The growth with the subject's arguments."""
    made = subject.cls(**subject.arguments)
    if not isinstance(made, Growth):
        raise ContractError(f"{subject.cls.__name__} is no instar.interfaces.Growth: derive the class from it.")
    return made


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct and say what they preserve."""
    known = inspect.signature(subject.cls).parameters
    settings = {"the default": {}, **{f"preset {name}": values for name, values in subject.card.presets.items()}}
    for name, knob in subject.card.knobs.items():
        for value in knob.choices or knob.range or ():
            settings[f"knob {name} = {value}"] = {**subject.arguments, name: int(value) if knob.integer else value}
    for what, values in settings.items():
        if unknown := values.keys() - known.keys():
            raise ContractError(f"{what}: {subject.cls.__name__} has no argument {', '.join(unknown)}, only {', '.join(known)}.")
        made = build(Subject(subject.cls, subject.card, values))
        if wrong := [name for name, value in values.items() if getattr(made, name, None) != value]:
            raise ContractError(f"{what}: keep the argument {wrong[0]} as an attribute: receipts say what was done.")
        if made.preserves not in ("bits", "rounding", "nothing") or not made.sizes:
            raise ContractError(f"{what}: preserves is {made.preserves!r} and sizes {made.sizes!r}.")


def check_preserved(subject: Subject) -> None:
    """Outputs stay: to the bit in float32, or but for rounding in float64; also when growth follows on growth."""
    growth = build(subject)
    for plan in plans(growth):
        exact = growth.preserves == "bits"
        model = built(growth, dtype=torch.float32 if exact else torch.float64)
        expected = logits(model)
        for number in range(2):
            growth.grow(model, plan, seed=number)
            found = logits(model)
            if not bool(found.isfinite().all()):
                raise ContractError(f"After growth {number + 1} by {plan}, outputs are not finite.")
            apart = float((found - expected).abs().max())
            allowed = {"bits": 0.0, "rounding": _ROUNDING * max(1.0, float(expected.abs().max()))}.get(growth.preserves)
            if allowed is not None and not apart <= allowed:
                raise ContractError(
                    f"After growth {number + 1} by {plan}, logits differ by {apart:.3g}; allowed is {allowed:.3g}."
                )


def check_filled_caches(subject: Subject) -> None:
    """What was read before a growth that leaves the heads and the depth as they are can be read on after it."""
    growth = build(subject)
    if growth.preserves == "nothing":
        return
    for plan in plans(growth):
        model = built(growth)
        ids = tokens()
        with torch.no_grad():
            whole, _ = model(ids)
            _, state = model(ids[:, :7])
            heads, depth = model.blocks[0].mixer.heads, model.depth
            growth.grow(model, plan)
            if (model.blocks[0].mixer.heads, model.depth) != (heads, depth):
                continue  # the state is of fewer heads, or of fewer blocks
            rest, _ = model(ids[:, 7:], state)
        if not torch.allclose(rest, whole[:, 7:], rtol=0, atol=_ROUNDING):
            raise ContractError(f"After growth by {plan}, what was read before it cannot be read on: logits differ.")


def check_larger(subject: Subject) -> None:
    """There are more parameters, all of them on their device and in their type, and further training reaches every one."""
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
        if still := [name for name, p in model.named_parameters() if torch.equal(p, start[name]) or p.dtype != torch.float64]:
            raise ContractError(f"{plan}: after growth and three steps, {still[0]} has not moved: no gradient reaches it.")


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
    """Every optimiser trains each parameter once; what it keeps has the parameters' shapes; groups keep their settings."""
    growth = build(subject)
    for name, make in OPTIMISERS.items():
        model = built(growth)
        optimiser = make(model)
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


def check_receipts(subject: Subject) -> None:
    """Every promise of a receipt holds: undo and redo to the bit, only what is listed changes, an interrupt leaves nothing."""
    from instar.checks import receipt

    growth = build(subject)
    for outcome in receipt.check_receipts(lambda: built(growth), lambda model: growth.grow(model, plans(growth)[-1]).receipt):
        if outcome.status == "failed":
            raise ContractError(f"{outcome.name}: {outcome.message}")


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


def check_deterministic(subject: Subject) -> None:
    """The result is a function of model, plan and seed; the global generator is not touched."""
    growth = build(subject)
    for plan in plans(growth):
        first, second = built(growth), built(growth)
        state = torch.get_rng_state()
        growth.grow(first, plan, seed=3)
        if not torch.equal(state, torch.get_rng_state()):
            raise ContractError("grow draws from the global generator; draw from instar.bench.seeds.stream(seed, name).")
        torch.manual_seed(2)
        growth.grow(second, plan, seed=3)
        if fingerprint(first) != fingerprint(second):
            raise ContractError(f"{plan}: two growths of the same model give other bits.")


def check_saved(subject: Subject) -> None:
    """A grown model is saved and loaded to the bit, and answers the same."""
    growth = build(subject)
    for plan in plans(growth):
        model = built(growth)
        growth.grow(model, plan)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = type(model).from_pretrained(Path(folder))
        if fingerprint(loaded) != fingerprint(model) or not torch.equal(logits(loaded), logits(model)):
            raise ContractError(f"{plan}: the model that was saved and loaded is another one.")


def check_refusals(subject: Subject) -> None:
    """Plans that cannot be, models of another kind and optimisers of another model: nothing happens, and it is said why."""
    growth = build(subject)
    size = growth.sizes[0]
    wrong: dict[str, Any] = {
        "a smaller target": {size: 1},
        "a part of what there is": {size: "0.5x"},
        "a multiple that is no whole number": {size: "1.01x"},
        "no size": {size: "large"},
        "a negative size": {size: -4},
        "no plan": {},
        "an unknown name": {size: "2x", "depht": "2x"},
        "a plan under which nothing grows": {size: "1x"},
        "something else": [size],
    }
    model = built(growth)
    optimiser = torch.optim.AdamW(model.parameters(), foreach=True)
    train(model, optimiser, 1)
    before, state = picture(model), (dict(optimiser.state), [list(g["params"]) for g in optimiser.param_groups])
    for what, plan in wrong.items():
        _refused(what, lambda plan=plan: growth.grow(model, plan, optimizer=optimiser))  # type: ignore[misc]
        require(model, before, f"After {what} was refused")
        if not same_state(optimiser, state):
            raise ContractError(f"After {what} was refused, the optimiser is not what it was.")
    _refused("A model of another kind", lambda: growth.grow(nn.Linear(4, 4), {size: "2x"}))
    foreign = torch.optim.AdamW(built(growth).parameters())
    _refused("An optimiser of another model", lambda: growth.grow(model, {size: "2x"}, optimizer=foreign))
    require(model, before, "After an optimiser of another model was refused")


def check_bytes(subject: Subject) -> None:
    """The feed-forward layers of a grown model have the bytes that the card's formula says."""
    growth = build(subject)
    assert subject.card.cost is not None
    for plan in plans(growth):
        model = built(growth, dtype=torch.float32)
        growth.grow(model, plan)
        feed: Any = model.blocks[0].feed
        units = feed.n if growth.architecture == "tokenformer" else feed.up.weight.shape[0]
        matrices = 2 if growth.architecture == "tokenformer" else 3
        found = sum(p.numel() * p.element_size() for p in feed.parameters())
        wanted = formula.evaluate(
            subject.card.cost.state, catalogue.variables(subject.cls, subject.arguments, D=model.width, N=units, M=matrices)
        )
        if found != wanted:
            raise ContractError(f"{plan}: a feed-forward layer has {found} bytes; the card's formula says {wanted:g}.")


def logits(model: Any) -> Tensor:
    """What a model says of fixed tokens."""
    with torch.no_grad():
        found: Tensor = model(tokens())[0]
    return found


def loss(model: Any) -> Tensor:
    """The loss of the batch that `train` uses."""
    ids = tokens()
    return F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten())


def _refused(what: str, action: Callable[[], object]) -> None:
    try:
        action()
    except InstarError:
        return
    except Exception as error:
        raise ContractError(
            f"{what} must be an InstarError that says what was expected; it was {type(error).__name__}."
        ) from error
    raise ContractError(f"{what} must be refused; it went through.")


CONTRACT = (
    Check("arguments", check_arguments),
    Check("preserved", check_preserved),
    Check("filled_caches", check_filled_caches),
    Check("larger", check_larger),
    Check("learns", check_learns),
    Check("optimisers", check_optimisers),
    Check("moments", check_moments),
    Check("undo", check_undo),
    Check("receipts", check_receipts),
    Check("interrupted", check_interrupted),
    Check("resumes", check_resumes),
    Check("deterministic", check_deterministic),
    Check("saved", check_saved),
    Check("refusals", check_refusals),
    Check("bytes", check_bytes, costs=True),
)
