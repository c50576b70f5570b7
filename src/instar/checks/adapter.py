"""The contract of `Adapter`: what holds of every method, on `nn.Linear` and on `transformers` Conv1D."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from instar import catalogue, formula
from instar.adapters import flops
from instar.adapters.attached import own_layers, parameters
from instar.anatomy import Linear
from instar.checks import adapter_ways as ways
from instar.checks.adapter_worlds import output, trained_bytes, worlds
from instar.checks.arguments import constructed, keeps, refused
from instar.checks.subject import Check, Subject
from instar.checks.witness import picture, require
from instar.errors import AdapterError, CardError, ContractError

_TOKENS = 512


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name, and is what JSON can keep; presets and ends of knobs construct."""
    for what, values, adapter in constructed(subject):
        keeps(subject, what, values, adapter, "a saved adapter is rebuilt from it")
        for name in inspect.signature(subject.cls).parameters:
            if json.loads(json.dumps(given := getattr(adapter, name))) != given:
                raise ContractError(f"{what}: keep the argument {name} ({given!r}) of plain JSON: a saved adapter is rebuilt.")
        if not 0 < getattr(adapter, "lr", 0) < 1:
            raise ContractError(f"{what}: lr must say the rate that suits it; received {getattr(adapter, 'lr', None)!r}.")


def check_birth(subject: Subject) -> None:
    """At birth the adapted model computes what its base does: to the bit with the tag exact_at_birth, else to rounding."""
    exact = bool(subject.card.capability("exact_at_birth"))
    for world in worlds(subject):
        model, x = world.model(), world.x()
        plain = output(model, x)
        world.attach(model)
        found = output(model, x)
        worst = float((found - plain).abs().max())
        if (exact and not torch.equal(found, plain)) or not worst <= 1e-6 * max(1.0, float(plain.abs().max())):
            raise ContractError(f"{world}: at birth outputs differ by {worst:.1e} from those of the base.")


def check_frozen(subject: Subject) -> None:
    """Training moves what `parameters` gives, all of it reaches the outputs, and no bit of the base changes."""
    for world in worlds(subject):
        model, x = world.learnt(), world.x()
        before = {name: value.clone() for name, value in world.model().state_dict().items()}
        trained = parameters(model)
        if {id(p) for p in trained} != {id(p) for p in model.parameters() if p.requires_grad} or not trained:
            raise ContractError(f"{world}: exactly what the adapter trains must take gradients.")
        model(x).square().sum().backward()
        if idle := [tuple(p.shape) for p in trained if p.grad is None or not bool(p.grad.abs().sum() > 0)]:
            raise ContractError(f"{world}: a tensor of shape {idle[0]} gets no gradient, so that it learns nothing.")
        if [1 for p in model.parameters() if not p.requires_grad and p.grad is not None]:
            raise ContractError(f"{world}: a tensor of the base got a gradient.")
        torch.optim.SGD(trained, lr=0.1).step()
        model.train()
        model(x)
        model.eval()
        ways.detach(model, "default")
        if changed := [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]:
            raise ContractError(f"{world}: training changed {changed[0]} of the base.")


def check_where(subject: Subject) -> None:
    """Layers that are not there, a name that is taken, and odd names are refused, and nothing changes."""
    for world in worlds(subject):
        model, attach = world.model(), world.adapter().attach
        _refused(model, partial(attach, where="nowhere"), "where='nowhere'")
        _refused(model, partial(attach, where="*"), "where='*', which is no regular expression")
        _refused(model, partial(attach, where=[]), "where=[]")
        _refused(model, partial(attach, where=world.where(), name="a.b"), "name='a.b'")
        world.attach(model)
        _refused(model, world.attach, "a name that is taken")
        part = world.where()[-1]
        model = world.model()
        world.adapter().attach(model, f".*{part[1:]}", modules_to_save=["head"])
        if sorted(own_layers(model, "default")) != sorted(["head", part]):
            raise ContractError(f"{world}: attach must adapt exactly the layers that where= and modules_to_save name.")


def check_types(subject: Subject) -> None:
    """On a base of bfloat16 outputs are bfloat16 and finite; merged, so are the weights."""
    for world in worlds(subject):
        model = world.learnt(torch.bfloat16)
        x = world.x(torch.bfloat16)
        found = output(model, x)
        if found.dtype != torch.bfloat16 or not bool(torch.isfinite(found).all()):
            raise ContractError(f"{world}: on a bfloat16 base outputs are {found.dtype}, or not finite.")
        ways.merge_and_unload(model)
        if kinds := {p.dtype for p in model.parameters()} - {torch.bfloat16}:
            raise ContractError(f"{world}: merged into a bfloat16 base the weights are {kinds}.")


def check_gradients(subject: Subject) -> None:
    """float64 gradients with respect to the inputs and to all that is trained are those of finite differences."""
    for world in worlds(subject):
        model = world.learnt(torch.float64)
        x = world.x(torch.float64)[:1, :2].requires_grad_()
        trained = parameters(model)
        body = nn.Sequential(model.query, model.norm, model.value)

        def call(x: Tensor, *_: Tensor, body: nn.Module = body) -> Tensor:
            found: Tensor = body(x)
            return found

        reached = [p for p in trained if any(p is q for q in body.parameters())]
        torch.autograd.gradcheck(call, (x, *reached), fast_mode=True)


def check_costs(subject: Subject) -> None:
    """Bytes that are trained, and FLOPs beside the base's, are those of the card's formulas; asked of numeric settings."""
    if subject.card.cost is None:
        raise CardError(f"The card of {subject.card.slug} states no costs, so there is nothing to hold it to.")
    if any(isinstance(value, (str, bool)) for value in subject.arguments.values()):
        return  # another form; the formulas are of the default one
    for world in worlds(subject):
        model = world.model()
        world.attach(model)
        for path, found in trained_bytes(model).items():
            layer = own_layers(model, "default")[path]
            if path == "norm":
                continue
            linear = Linear("", layer.base_layer)
            sizes = {"I": linear.inputs, "O": linear.outputs, "T": _TOKENS}
            values = catalogue.variables(subject.cls, subject.arguments, **sizes)
            x = torch.randn(_TOKENS, linear.inputs)
            beside = flops.forward(layer, x) - flops.forward(layer.base_layer, x)
            for what, measured, text in (
                ("state", found, subject.card.cost.state),
                ("flops", beside, subject.card.cost.flops),
            ):
                if measured != (promised := formula.evaluate(text, values)):
                    raise ContractError(
                        f"{world}: at I={linear.inputs}, O={linear.outputs}, T={_TOKENS}, {what} is {measured}; the card's "
                        f"formula '{text}' gives {promised:g}."
                    )


def _refused(model: nn.Module, action: Callable[[nn.Module], object], what: str) -> None:
    before = picture(model)
    refused(what, partial(action, model), AdapterError)
    require(model, before, f"After {what} was refused")


CONTRACT = (
    Check("arguments", check_arguments),
    Check("birth", check_birth),
    Check("frozen", check_frozen),
    Check("where", check_where),
    Check("types", check_types),
    Check("gradients", check_gradients, unless="surrogate_grad"),
    Check("costs", check_costs, costs=True),
    Check("merge", ways.check_merge),
    Check("unload", ways.check_unload),
    Check("not finite", ways.check_not_finite),
    Check("receipts", ways.check_receipts),
    Check("detach", ways.check_detach),
    Check("several", ways.check_several),
    Check("saved", ways.check_saved),
    Check("copy", ways.check_copy),
)
"""A method tagged `surrogate_grad` has a gradient that is meant to be another; its own test holds it to its formula."""
