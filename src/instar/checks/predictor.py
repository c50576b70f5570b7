"""The contract of `Predictor`: what holds of every method that iterates before it answers."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor

from instar.checks.arguments import constructed
from instar.checks.subject import Check, Subject
from instar.errors import ContractError, ShapeError
from instar.interfaces import Predictor, Trace

_BATCH = 3


def check_arguments(subject: Subject) -> None:
    """Every argument has a default; knobs and presets are arguments, and construct."""
    known = inspect.signature(subject.cls).parameters
    if bare := [name for name, p in known.items() if p.default is inspect.Parameter.empty]:
        raise ContractError(f"Arguments without a default: {', '.join(bare)}. A predictor is built without any.")
    for _ in constructed(subject):
        pass
    if subject.card.capability("reads") is None:
        raise ContractError("The card's tags must say what is read: reads=tokens, reads=vectors or reads=images.")


def check_shapes(subject: Subject) -> None:
    """Any number of steps gives finite answers of one shape, and a trace that fits them."""
    predictor, x, _ = _made(subject)
    shape = None
    for steps in (0, 1, predictor.steps, predictor.steps + 3):
        y, trace = predictor.predict(x, steps=steps, generator=_generator())
        shape = y.shape if shape is None else shape
        if y.shape != shape or y.shape[0] != _BATCH:
            raise ContractError(f"After {steps} steps y is {tuple(y.shape)}; before it was {tuple(shape)}, of {_BATCH} rows.")
        if not bool(y.isfinite().all()):
            raise ContractError(f"y after {steps} steps is not finite.")
        _check_trace(trace, steps)


def _check_trace(trace: Trace, steps: int) -> None:
    taken = trace.steps
    if taken.shape[0] != _BATCH or taken.is_floating_point() or int(taken.min()) < 0 or int(taken.max()) > steps:
        raise ContractError(f"trace.steps must hold whole numbers from 0 to {steps} by sample; received {taken.dtype} {taken}.")
    for name, wanted in (("energies", steps + 1), ("changes", steps)):
        found = getattr(trace, name)
        if found is None:
            continue
        if found.shape != (found.shape[0], *taken.shape) or found.shape[0] > wanted:
            raise ContractError(f"trace.{name} must be [≤ {wanted}, *{list(taken.shape)}]; received {list(found.shape)}.")
        if not bool(found.isfinite().all()):
            raise ContractError(f"trace.{name} is not finite.")


def check_negative(subject: Subject) -> None:
    """A negative number of steps is refused by ShapeError."""
    predictor, x, _ = _made(subject)
    try:
        predictor.predict(x, steps=-1, generator=_generator())
    except ShapeError:
        return
    raise ContractError("predict(x, steps=-1) must raise ShapeError.")


def check_seeded(subject: Subject) -> None:
    """The same generator gives the same bits, and the global one is left alone."""
    predictor, x, _ = _made(subject)
    before = torch.get_rng_state()
    found = [predictor.predict(x, steps=3, generator=_generator())[0] for _ in range(2)]
    if not torch.equal(*found):
        raise ContractError("Two predictions with equal generators differ.")
    if not torch.equal(before, torch.get_rng_state()):
        raise ContractError("predict draws from the global generator although it was given one.")


def check_rows(subject: Subject) -> None:
    """What other rows of a batch hold does not reach a row's answer, energies or steps."""
    predictor, x, _ = _made(subject)
    other = predictor.example(_BATCH, generator=_generator(7))[0]
    changed = torch.cat([x[:1], _like(other, x)[1:]])
    with torch.no_grad():
        one, first = predictor.predict(x, steps=3, generator=_generator())
        two, second = predictor.predict(changed, steps=3, generator=_generator())
    _same(subject, one[0], two[0], "The answer of a row changes with the other rows of its batch.")
    if not torch.equal(first.steps[0], second.steps[0]):
        raise ContractError("The number of steps of a row depends on the other rows of its batch.")
    if first.energies is not None and second.energies is not None:
        _same(subject, first.energies[:, 0], second.energies[:, 0], "The energies of a row depend on the other rows.")


def check_causality(subject: Subject) -> None:
    """Answers at earlier positions do not know later inputs."""
    predictor, x, _ = _made(subject)
    other = _like(predictor.example(_BATCH, generator=_generator(7))[0], x)
    at = x.shape[1] // 2
    changed = torch.cat([x[:, :at], other[:, at:]], 1)
    one = predictor.predict(x, steps=3, generator=_generator())[0]
    two = predictor.predict(changed, steps=3, generator=_generator())[0]
    _same(subject, one[:, :at], two[:, :at], "Answers before a position change with the inputs from it on.")
    if torch.equal(one[:, at:], two[:, at:]):
        raise ContractError("Answers do not depend on the inputs at all.")


def check_learns(subject: Subject) -> None:
    """The loss is finite and differentiable, and falls on one batch."""
    predictor, x, target = _made(subject, torch.float32)
    predictor.train()
    optimiser = torch.optim.AdamW(predictor.groups(3e-3))
    losses = []
    for step in range(16):
        torch.manual_seed(step % 4)
        loss = predictor.loss(x, target)
        if loss.dim() != 0 or not bool(loss.isfinite()):
            raise ContractError(f"The loss must be one finite number; received {loss}.")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    if not sum(losses[-4:]) < sum(losses[:4]):
        raise ContractError(f"The loss was {losses[0]:.4g} and is {losses[-1]:.4g} after {len(losses)} steps on one batch.")


def check_trains(subject: Subject) -> None:
    """Each parameter is in one group of `groups`, and the loss reaches each that decides answers, or it would never be learnt."""
    predictor, x, target = _made(subject)
    names = {id(parameter): name for name, parameter in predictor.named_parameters() if parameter.requires_grad}
    listed = [id(parameter) for group in predictor.groups(1e-3) for parameter in group["params"]]
    if sorted(listed) != sorted(names):
        odd = [name for key, name in names.items() if listed.count(key) != 1]
        raise ContractError(f"groups(lr) must hold each parameter once; look at {', '.join(odd) or 'those that learn nothing'}.")
    predictor.train()
    for seed in range(4):  # what is drawn may pass over some
        torch.manual_seed(seed)
        predictor.loss(x, target).backward()
    idle = [
        (name, p) for name, p in predictor.named_parameters() if id(p) in names and (p.grad is None or not bool(p.grad.any()))
    ]
    predictor.eval()
    before = predictor.predict(x, steps=predictor.steps, generator=_generator())[0]
    with torch.no_grad():
        for _, parameter in idle:
            parameter.add_(torch.randn_like(parameter))
    if not torch.equal(before, predictor.predict(x, steps=predictor.steps, generator=_generator())[0]):
        raise ContractError(f"The loss has no gradient for {', '.join(name for name, _ in idle)}, which decides answers.")


def check_no_graph(subject: Subject) -> None:
    """predict keeps no graph, leaves no gradients and no other mode behind, with and without `no_grad` around it."""
    predictor, x, _ = _made(subject)
    for mode in (True, False):
        predictor.train(mode)
        plain = predictor.predict(x, steps=2, generator=_generator())[0]
        with torch.no_grad():
            inside = predictor.predict(x, steps=2, generator=_generator())[0]
        if plain.requires_grad or any(p.grad is not None for p in predictor.parameters()):
            raise ContractError("predict must return a tensor without a graph, and leave no gradients on parameters.")
        _same(subject, plain, inside, "predict gives something else under torch.no_grad.")
        if predictor.training is not mode:
            raise ContractError("predict changes the mode of the module.")


def check_copies(subject: Subject) -> None:
    """A deep copy, and a fresh module with the same state dict, predict the same."""
    predictor, x, _ = _made(subject)
    wanted = predictor.predict(x, steps=2, generator=_generator())[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed + 1)
        fresh = subject.cls(**subject.arguments).to(subject.dtype)
    fresh.load_state_dict(predictor.state_dict())
    for what, one in (("A deep copy", copy.deepcopy(predictor)), ("A module with the same state dict", fresh.eval())):
        _same(subject, one.predict(x, steps=2, generator=_generator())[0], wanted, f"{what} predicts something else.")


def _made(subject: Subject, dtype: torch.dtype | None = None) -> tuple[Predictor, Tensor, Tensor]:
    """A predictor in eval mode, moved a little off its start values, and an example."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        predictor = subject.cls(**subject.arguments)
        if not isinstance(predictor, Predictor):
            raise ContractError(f"{subject.cls.__name__} is no instar.interfaces.Predictor: derive the class from it.")
        with torch.no_grad():
            for parameter in predictor.parameters():
                if parameter.dim() >= 2:
                    parameter.add_(0.01 * torch.randn_like(parameter))
    predictor.to(dtype or subject.dtype).eval()
    x, target = predictor.example(_BATCH, generator=_generator())
    return predictor, x, target


def _like(other: Tensor, x: Tensor) -> Tensor:
    if other.shape != x.shape:
        raise ContractError(f"example({_BATCH}) gives {tuple(x.shape)} once and {tuple(other.shape)} another time.")
    return other


def _generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _same(subject: Subject, one: Tensor, two: Tensor, what: str) -> None:
    scale = max(1.0, float(two.abs().max()))
    difference = float((one - two).abs().max())
    if not difference <= 1e-7 * scale:
        raise ContractError(f"{what} The largest difference is {difference:.2g}.")


CONTRACT = (
    Check("arguments", check_arguments),
    Check("shapes", check_shapes),
    Check("negative", check_negative),
    Check("seeded", check_seeded),
    Check("rows", check_rows),
    Check("causality", check_causality, needs="causal"),
    Check("learns", check_learns),
    Check("trains", check_trains),
    Check("no_graph", check_no_graph),
    Check("copies", check_copies),
)
