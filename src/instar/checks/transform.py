"""The contract of a transform: undo to the bit, all or nothing, the bytes it promises, and a file that needs no original."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instar import catalogue, formula
from instar.anatomy import linears
from instar.checks.arguments import constructed, keeps, refused
from instar.checks.subject import Check, Subject
from instar.checks.transform_models import answers, encoder, labelled, models, structured_models
from instar.checks.witness import picture, require
from instar.errors import CardError, ContractError
from instar.interfaces import Transform
from instar.receipt import Receipt, fingerprint
from instar.receipts.fingerprint import named

_CLOSE = 0.7
"""Least cosine of the logits before and after: a transposed or shuffled weight is far below."""
_BUDGET = 0.01
_WIDTH, _HIDDEN, _VOCABULARY = 512, 1024, 2048
"""Large enough that the header of a file weighs nothing."""


def build(subject: Subject) -> Transform:
    """The transform with the subject's arguments."""
    made = subject.cls(**subject.arguments)
    if not isinstance(made, Transform):
        raise ContractError(f"{subject.cls.__name__} is no instar.interfaces.Transform: derive the class from it.")
    return made


def applied(subject: Subject, model: nn.Module) -> Receipt:
    """The receipt of the transform on a model, with labelled batches where it chooses by them."""
    receipt = build(subject).apply(model, labelled() if subject.card.capability("labelled") else None)
    if not isinstance(receipt, Receipt):
        raise ContractError(f"apply returned {type(receipt).__name__}; it must return the receipt of `updating`.")
    return receipt


def taken(subject: Subject) -> dict[str, Any]:
    """Models that the transform takes: name -> what builds one."""
    return structured_models() if subject.card.capability("structured") else models()


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct."""
    for what, values, made in constructed(subject):
        keeps(subject, what, values, made, "receipts say what was done")


def check_receipts(subject: Subject) -> None:
    """Every promise of a receipt holds: undo and redo to the bit, only what is listed changes, an interrupt leaves nothing."""
    from instar.checks import receipt

    for name, make in taken(subject).items():
        for outcome in receipt.check_receipts(make, lambda model: applied(subject, model)):
            if outcome.status == "failed":
                raise ContractError(f"On layers of {name}, {outcome.name}: {outcome.message}")


def check_function(subject: Subject) -> None:
    """The model still computes nearly the same, on `nn.Linear` and on Conv1D."""
    for name, make in taken(subject).items():
        model = make()
        before = answers(model).flatten()
        applied(subject, model)
        after = answers(model).flatten()
        cosine = float(torch.cosine_similarity(before, after, 0))
        if not cosine > _CLOSE:  # NaN is not
            raise ContractError(f"On layers of {name}, the cosine of logits before and after is {cosine:.3f}; expected {_CLOSE}.")


def check_deterministic(subject: Subject) -> None:
    """The result is a function of the model and the arguments; the global generator is not touched."""
    make = next(iter(taken(subject).values()))
    first, second = make(), make()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    applied(subject, first)
    if not torch.equal(state, torch.get_rng_state()):
        raise ContractError("apply draws from the global generator; draw from instar.bench.seeds.stream(seed, name).")
    torch.manual_seed(2)
    applied(subject, second)
    if fingerprint(first) != fingerprint(second):
        raise ContractError("Two runs on the same model give other bits.")


def check_refusals(subject: Subject) -> None:
    """NaN in a weight, a model without layers, and a second run of a compression are refused, and nothing is changed."""
    for what, value in (("NaN", torch.nan), ("infinity", torch.inf)):
        model = next(iter(taken(subject).values()))()
        with torch.no_grad():
            next(part for part in linears(model)).parameter[1, 2] = value
        before = picture(model)
        refused(f"A weight with {what}", partial(applied, subject, model))
        require(model, before, f"After a weight with {what} was refused")
    refused("A model without layers", lambda: applied(subject, nn.Sequential(nn.ReLU())))
    for name, make in taken(subject).items():
        model = make()
        applied(subject, model)
        before = picture(model)
        refused(f"A second run on layers of {name}", partial(applied, subject, model))
        require(model, before, f"On layers of {name}, after a second run was refused")


def check_data(subject: Subject) -> None:
    """Without labelled batches, and with batches whose labels are all equal, nothing is done, and it is said what is needed."""
    for name, make in taken(subject).items():
        model = make()
        before = picture(model)
        equal = [{**batch, "labels": torch.zeros_like(batch["labels"])} for batch in labelled()]
        for what, data in (("No data", None), ("No batches", []), ("Labels that are all equal", equal)):
            refused(what, partial(build(subject).apply, model, data))
            require(model, before, f"On layers of {name}, after '{what}' was refused")


def check_saved(subject: Subject) -> None:
    """A saved model loads without its original weights, to the bit, and answers the same."""
    from instar.compression import saved

    for name, make in taken(subject).items():
        model = make()
        receipt = applied(subject, model)
        expected = answers(model)
        with tempfile.TemporaryDirectory() as folder:
            path = saved.save(model, Path(folder) / "model", steps=[receipt])
            loaded = saved.load(path, encoder if name == "torch.nn.Linear" else None)
        if fingerprint(loaded) != fingerprint(model):
            raise ContractError(f"On layers of {name}, the loaded model has other bits.")
        if not torch.equal(answers(loaded), expected):
            raise ContractError(f"On layers of {name}, the loaded model answers otherwise: something is not kept in the file.")


def check_bytes(subject: Subject) -> None:
    """The file is as large as the card's formula says, within 1 %."""
    from instar.compression import saved

    if subject.card.cost is None:
        raise CardError(f"The card of {subject.card.slug} states no costs, so there is nothing to hold it to.")

    def make() -> nn.Module:
        return encoder(width=_WIDTH, hidden=_HIDDEN, vocabulary=_VOCABULARY)

    model, old = make(), dict(make().named_modules())
    transform = build(subject)
    receipt = transform.apply(model)
    promised = 0.0
    replaced = [name for name in receipt.facts.modules if hasattr(old.get(name), "weight")]
    holding = {name.rpartition(".")[0] for name in named(model)}
    for name in replaced:
        shape = tuple(old[name].weight.shape)
        if len(shape) != 2 or name not in holding:
            continue  # a norm, which weighs nothing; a weight that is stored under another layer's name
        promised += formula.evaluate(subject.card.cost.state, sizes(subject, transform, *shape))
    unchanged = [tensor for name, (tensor, _) in named(model).items() if name in named(make())]
    promised += sum(tensor.numel() * tensor.element_size() for tensor in unchanged)
    with tempfile.TemporaryDirectory() as folder:
        found = saved.nbytes(saved.save(model, Path(folder) / "model"))
    if abs(found / promised - 1) > _BUDGET:
        raise ContractError(f"The file has {found} bytes; the card's formula '{subject.card.cost.state}' gives {promised:.0f}.")


def check_smaller(subject: Subject) -> None:
    """The file is smaller by the bytes that the receipt says are gone."""
    from instar.compression import saved

    for name, make in taken(subject).items():
        whole, model = make(), make()
        receipt = applied(subject, model)
        gone = sum((c.before.nbytes if c.before else 0) - (c.after.nbytes if c.after else 0) for c in receipt.changes)
        with tempfile.TemporaryDirectory() as folder:
            before, after = (saved.nbytes(saved.save(m, Path(folder) / str(i))) for i, m in enumerate((whole, model)))
        if abs(before - after - gone) > _BUDGET * before:
            raise ContractError(
                f"On layers of {name}, the file has {before - after} bytes fewer than before; the receipt says {gone}."
            )


def sizes(subject: Subject, transform: Transform, outputs: int, inputs: int) -> dict[str, float]:
    """What the formulas of a transform's card may use: O, I, and the numbers among arguments and attributes."""
    numbers = {n: float(v) for n, v in vars(transform).items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return catalogue.variables(subject.cls, {**subject.arguments, **numbers}, O=outputs, I=inputs)


CONTRACT = (
    Check("arguments", check_arguments),
    Check("receipts", check_receipts),
    Check("function", check_function, unless="labelled"),
    Check("deterministic", check_deterministic),
    Check("refusals", check_refusals),
    Check("data", check_data, needs="labelled"),
    Check("saved", check_saved),
    Check("bytes", check_bytes, unless="structured", costs=True),
    Check("smaller", check_smaller, needs="structured"),
)
