"""The contract of `CompatibleHead`: what holds before anything is asked of quality."""

from __future__ import annotations

import copy
import inspect
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from instar import catalogue, formula
from instar.checks import heads_learning as learning
from instar.checks.arguments import constructed, keeps, refused
from instar.checks.heads import SIZES, STEPS, bits, build, differ, fitted, generations, pairs, queries, unit, updated
from instar.checks.subject import Check, Subject
from instar.compat import chain, saved
from instar.errors import CardError, ContractError, DataError


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct."""
    known = inspect.signature(subject.cls).parameters
    if list(known)[:3] != ["new_dim", "old_dim", "input_dim"]:
        raise ContractError(f"The constructor must read Head(new_dim, old_dim, *, input_dim=None, …); it has {', '.join(known)}.")
    widths = {"new_dim": 24, "old_dim": 16}
    for what, values, head in constructed(subject, lambda values: subject.cls(**{**widths, **values})):
        keeps(subject, what, {**widths, **values}, head, "a saved head is rebuilt from it")


def check_shapes(subject: Subject) -> None:
    """Widths are as declared, at any number of rows; rows of the newest generation have one length; projections have length 1."""
    for new_dim, old_dim in SIZES:
        head = fitted(subject, new_dim, old_dim)
        if (head.new_dim, head.old_dim, head.newest) != (new_dim, old_dim, 1):
            raise ContractError(
                f"Built as {new_dim} to {old_dim}, it says {head.new_dim} to {head.old_dim}, newest {head.newest}."
            )
        for items in (0, 1, 7):
            x = queries(head, items)
            full = head.full(x)
            parts = {"compatible": (head.compatible(x), old_dim), "full": (full, head.full_dim)}
            parts |= {"lower to 0": (head.lower(full, 0), old_dim), "lower to 1": (head.lower(full, 1), head.full_dim)}
            parts |= {f"project to {g}": (head.project(x, g), width) for g, width in ((0, old_dim), (1, head.full_dim))}
            for what, (found, width) in parts.items():
                if found.shape != (items, width) or found.dtype != x.dtype:
                    raise ContractError(
                        f"{what}: expected {x.dtype} {[items, width]}, received {found.dtype} {list(found.shape)}."
                    )
                if what.startswith("project"):
                    unit(found, what)
            lengths = full.detach().norm(dim=1)
            if items > 1 and float(lengths.std() / lengths.mean()) > 1e-4:
                raise ContractError("Full vectors must be of one length: the inner product then ranks rows as the cosine does.")
            if not torch.allclose(F.normalize(head.lower(full, 0), dim=1), head.project(x, 0), atol=1e-5):
                raise ContractError("lower(full(x), 0) must point where project(x, 0) does.")


def check_refusals(subject: Subject) -> None:
    """What cannot be right is an InstarError, and a fit that was refused changes nothing."""
    head = fitted(subject)
    x = queries(head)
    refused("a projection of other widths", lambda: head.project(x[:, :-1], 0))
    refused("a projection of whole numbers", lambda: head.project(x.long(), 0))
    refused("a projection of one vector without an axis of items", lambda: head.project(x[0], 0))
    for number in (-1, head.newest + 1):
        refused(f"generation {number}", partial(head.project, x, number))
        refused(f"lower to generation {number}", partial(head.lower, head.full(x), number))
    broken = x.clone()
    broken[1, 0] = torch.nan
    refused("a NaN among queries", lambda: head.project(broken, 0))
    refused("widths of 0", lambda: subject.cls(0, 16, **subject.arguments))
    before = bits(head)
    good = pairs(subject)
    for what, change in (
        ("a fit on pairs of other widths", pairs(subject, 16, 16)),
        ("a fit on one pair", type(good)(good.old[:1], good.new[:1], good.labels[:1] if good.labels is not None else None)),
        ("a fit on NaN", type(good)(good.old, good.new.clone().fill_(torch.nan), good.labels)),
        ("a fit on zero rows", type(good)(torch.zeros_like(good.old), good.new, good.labels)),
    ):
        refused(what, partial(head.fit, change, steps=STEPS))
        if differ(before, bits(head)):
            raise ContractError(f"After {what} was refused, the head is another one; it must stay as it was.")
    if subject.cls.supervised:
        refused("a fit without labels", lambda: head.fit(type(good)(good.old, good.new), steps=STEPS))


def check_deterministic(subject: Subject) -> None:
    """The same pairs, steps and seed give the same bits, whatever was drawn or learnt before; arguments stay as they are."""
    given = pairs(subject)
    copies = [part.clone() for part in (given.old, given.new)]
    first, second = build(subject), build(subject)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first.fit(given, steps=STEPS, seed=3)
    if not torch.equal(state, torch.get_rng_state()):
        raise ContractError("fit draws from the global generator; draw from instar.bench.seeds.stream(seed, name).")
    torch.manual_seed(2)
    second.fit(given, steps=STEPS, seed=4)
    second.fit(given, steps=STEPS, seed=3)
    if names := differ(bits(first), bits(second)):
        raise ContractError(
            f"Two fits with the same pairs, steps and seed differ in {names[0]}; the second had been fitted before."
        )
    if not torch.equal(given.old, copies[0]) or not torch.equal(given.new, copies[1]):
        raise ContractError("fit changed the pairs that it was given.")


def check_extremes(subject: Subject) -> None:
    """Very long, very short and very lopsided vectors are projected to finite unit vectors."""
    head = fitted(subject)
    x = queries(head)
    lopsided = torch.zeros_like(x)
    lopsided[:, 0] = 1
    for what, value in (("long", 1e12 * x), ("short", 1e-6 * x), ("lopsided", lopsided), ("negative", -lopsided)):
        for generation in range(head.newest + 1):
            where = f"The projection of {what} vectors to generation {generation}"
            try:
                unit(head.project(value, generation), where)
            except DataError as error:
                raise ContractError(f"{where} must be finite and of length 1: {error}") from error


def check_rows(subject: Subject) -> None:
    """Each row is projected as it is alone."""
    head = fitted(subject).to(subject.dtype)
    x = queries(head)
    for generation in range(head.newest + 1):
        whole = head.project(x, generation)
        alone = torch.cat([head.project(row[None], generation) for row in x])
        if (worst := float((whole - alone).detach().abs().max())) > subject.tolerance:
            raise ContractError(f"At generation {generation} a batch differs from its rows alone by {worst:.1e}.")


def check_saved(subject: Subject) -> None:
    """A saved head, and a deep copy, have the same bits and give the same bits; so has a chain of two updates."""
    for head in (fitted(subject), updated(subject)):
        with tempfile.TemporaryDirectory() as folder, catalogue.holding(subject.card, subject.cls):
            saved.save(head, Path(folder), generations=generations(head))
            loaded = saved.load(Path(folder)).head
        for what, other in (("saved and loaded", loaded), ("deep copy", copy.deepcopy(head))):
            if names := differ(bits(head), bits(other)):
                raise ContractError(
                    f"The {what} differs in {names[0]}: keep what was learnt in parameters and persistent buffers."
                )
            x = queries(head)
            for generation in range(head.newest + 1):
                if not torch.equal(head.project(x, generation), other.project(x, generation)):
                    raise ContractError(
                        f"The {what} projects to generation {generation} otherwise: something learnt is not kept."
                    )


def check_nested(subject: Subject) -> None:
    """Of a nested head the compatible part is the prefix of the full vector, and a padded old row scores as the row itself."""
    if not subject.cls.nested:
        return
    head = fitted(subject).to(torch.float64)
    x = queries(head)
    full, compatible = head.full(x), head.compatible(x)
    if not torch.equal(full[:, : head.old_dim], compatible):
        raise ContractError("compatible(x) must be full(x)[:, :old_dim], bit for bit: one index serves both only then.")
    stored = F.normalize(torch.randn(len(x), head.old_dim, dtype=torch.float64), dim=1)
    padded = F.pad(stored, (0, head.full_dim - head.old_dim))
    if not torch.equal((full * padded).cumsum(1)[:, -1], (compatible * stored).cumsum(1)[:, -1]):
        raise ContractError("The score of a padded old row differs from that of the row itself.")


def check_chain(subject: Subject) -> None:
    """A head after another one queries all three generations, and leaves the one before as it was."""
    alone, head = fitted(subject), updated(subject)
    if head.previous is None or head.newest != 2:
        raise ContractError(
            f"After `head.previous = …`, newest must be 2; received {head.newest}. Call super().__init__() first."
        )
    if names := differ(bits(alone), bits(head.previous)):
        raise ContractError(f"Fitting a head changed the one before it ({names[0]}), which serves stored vectors.")
    x = queries(head)
    for generation, width in enumerate(one.dim for one in generations(head)):
        found = head.project(x, generation)
        if found.shape != (len(x), width):
            raise ContractError(f"Projected to generation {generation}: expected width {width}, received {list(found.shape)}.")
        unit(found, f"The projection to generation {generation}")
        if not torch.allclose(F.normalize(head.lower(head.full(x), generation), dim=1), found, atol=1e-5):
            raise ContractError(f"lower(full(x), {generation}) must point where project(x, {generation}) does.")


def check_costs(subject: Subject) -> None:
    """Bytes that are kept and FLOPs of bringing one vector to the old generation are those of the card's formulas."""
    if subject.card.cost is None:
        raise CardError(f"The card of {subject.card.slug} states no costs, so there is nothing to hold it to.")
    for new_dim, old_dim in SIZES:
        head = fitted(subject, new_dim, old_dim)
        values = catalogue.variables(subject.cls, subject.arguments, D=new_dim, O=old_dim, I=head.input_dim)
        with FlopCounterMode(display=False) as counter:
            head.compatible(queries(head, 1))
        for what, measured, text in (
            ("state", chain.nbytes(head), subject.card.cost.state),
            ("flops", counter.get_total_flops(), subject.card.cost.flops),
        ):
            if measured != (promised := formula.evaluate(text, values)):
                raise ContractError(
                    f"At D={new_dim}, O={old_dim}, {what} is {measured}; the card's formula '{text}' gives {promised:g}."
                )


CONTRACT = (
    Check("arguments", check_arguments),
    Check("shapes", check_shapes),
    Check("refusals", check_refusals),
    Check("deterministic", check_deterministic),
    Check("monitor", learning.check_monitor),
    Check("extremes", check_extremes),
    Check("rows", check_rows),
    Check("saved", check_saved),
    Check("nested", check_nested),
    Check("chain", check_chain),
    Check("orthonormal", learning.check_orthonormal, needs="orthonormal"),
    Check("rotation", learning.check_rotation, needs="rotation"),
    Check("costs", check_costs, costs=True),
)
"""`nested` asks nothing of a class that does not say it is."""
