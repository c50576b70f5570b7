"""The contract of `Editor`: what holds before anything is asked of quality."""

from __future__ import annotations

import copy
import inspect
import tempfile
from dataclasses import replace

import torch
from torch import Tensor, nn

from instar import catalogue, extras, formula
from instar.anatomy import anatomy
from instar.checks.arguments import constructed, keeps
from instar.checks.editor_world import ELSEWHERE, FACTS, World, worlds
from instar.checks.subject import Check, Subject
from instar.checks.witness import contents, picture, require, same
from instar.editing.evaluation import evaluate
from instar.errors import ContractError, EditError
from instar.receipt import Receipt, fingerprint


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct."""
    for what, values, editor in constructed(subject):
        keeps(subject, what, values, editor, "a receipt says how it was")


def check_empty(subject: Subject) -> None:
    """No facts: nothing changes, and the receipt says so."""
    for world in worlds(subject):
        model = world.model()
        before = picture(model)
        receipt = world.edit(model, ())
        require(model, before, f"{world}: after an edit of no facts")
        if receipt.changes:
            raise ContractError(f"{world}: the receipt of an edit of no facts lists {receipt.changes[0].name}.")


def check_declared(subject: Subject) -> None:
    """The tensors that changed are those that the receipt lists, weights of blocks; modes, hooks and modules are as before."""
    for world in worlds(subject):
        model = world.model().train()
        plain = [entry for entry in picture(model) if not entry[0].startswith("bits of")]
        before = contents(model)
        receipt = world.edit(model)
        after = contents(model)
        if [entry for entry in picture(model) if not entry[0].startswith("bits of")] != plain:
            raise ContractError(f"{world}: an edit left hooks, modes or modules other than it found them.")
        differ = {name for name in after if not same(before.get(name), after[name])}
        listed = {change.name for change in receipt.changes}
        blocks = {part.parameter_name for block in anatomy(model).blocks for part in block.linears}
        if differ != listed or not listed or not listed <= blocks:
            raise ContractError(f"{world}: changed {sorted(differ)}, the receipt lists {sorted(listed)}; expected linear layers.")
        if any(p.grad is not None for p in model.parameters()):
            raise ContractError(f"{world}: an edit left a gradient: use torch.autograd.grad, or clear it.")


def check_says(subject: Subject) -> None:
    """A target is likelier after the edit than before."""
    for world in worlds(subject):
        model = world.model()
        before = evaluate(model, world.tokenizer, FACTS[:1]).said[0].wanted
        world.edit(model, FACTS[:1], **({"steps": 12} if "steps" in inspect.signature(subject.cls).parameters else {}))
        after = evaluate(model, world.tokenizer, FACTS[:1]).said[0].wanted
        if not after > before:
            raise ContractError(
                f"{world}: the target's log-probability went from {before:.3f} to {after:.3f}: nothing was written."
            )


def check_undo(subject: Subject) -> None:
    """Undo restores everything to the bit, a temporary edit leaves no trace, and edits in sequence come off one by one."""
    for world in worlds(subject):
        model = world.model()
        before = picture(model)
        world.edit(model).undo()
        require(model, before, f"{world}: after undo")
        with world.edit(model):
            pass
        require(model, before, f"{world}: after a temporary edit")
        first = world.edit(model, FACTS[:1])
        middle = picture(model)
        second = world.edit(model, FACTS[1:])
        second.undo()
        require(model, middle, f"{world}: after undo of the second of two edits")
        first.undo()
        require(model, before, f"{world}: after undo of both edits")


def check_order(subject: Subject) -> None:
    """Facts in another order, and another time, give the same bits; the global generator is left alone."""
    for world in worlds(subject):
        first, second, third = world.model(), world.model(), world.model()
        torch.manual_seed(1)
        state = torch.get_rng_state()
        world.edit(first)
        if not torch.equal(state, torch.get_rng_state()):
            raise ContractError(
                f"{world}: edit draws from the global generator; draw from instar.bench.seeds.stream(seed, name)."
            )
        torch.manual_seed(2)
        world.edit(second)
        world.edit(third, tuple(reversed(FACTS)))
        for what, other in (("a second time", second), ("with the facts in another order", third)):
            if fingerprint(first) != fingerprint(other):
                raise ContractError(f"{world}: edited {what}, the weights are others.")


def check_modes(subject: Subject) -> None:
    """A model in training mode, one that takes no gradients, and a caller's `no_grad` change no bit of an edit."""
    for world in worlds(subject):
        usual = world.model()
        world.edit(usual)
        training, frozen, inside = world.model().train(), world.model().requires_grad_(False), world.model()
        world.edit(training)
        world.edit(frozen)
        with torch.no_grad():
            world.edit(inside)
        for what, other in (("in training mode", training), ("that takes no gradients", frozen), ("under no_grad", inside)):
            if fingerprint(other) != fingerprint(usual):
                raise ContractError(f"{world}: of a model {what} the edit makes other weights.")


def check_below(subject: Subject) -> None:
    """What lies below the first edited layer computes to the bit what it did, with and without the subject."""
    for world in worlds(subject):
        model = world.model()
        texts = [ELSEWHERE, FACTS[0].prompt]
        before = [_states(model, world, text) for text in texts]
        lowest = _lowest(model, world.edit(model))
        for text, old in zip(texts, before, strict=True):
            new = _states(model, world, text)
            for i in range(lowest + 1):  # state i is what block i receives
                if not torch.equal(old[i], new[i]):
                    raise ContractError(f"{world}: layer {lowest} is the first edited one, but state {i} of {text!r} changed.")


def check_refusals(subject: Subject) -> None:
    """Facts that cannot be written are an EditError, and leave the model as it was."""
    fact = FACTS[0]
    for what, facts in (
        ("a subject that is not in its prompt", [replace(fact, subject="The Louvre")]),
        ("an empty target", [replace(fact, target=" ")]),
        ("an empty subject", [replace(fact, subject="")]),
        ("the same fact twice", [fact, fact]),
        ("two targets of one prompt", [fact, replace(fact, target="Berlin")]),
        ("a subject that a token joins with what follows", [replace(fact, subject="The Eiffel Tow")]),
    ):
        for world in worlds(subject):
            model = world.model()
            before = picture(model)
            try:
                world.edit(model, [*facts, FACTS[1]])
            except EditError:
                require(model, before, f"{world}: after {what} was refused")
            except Exception as error:
                raise ContractError(f"{world}: {what} must be an EditError; received {type(error).__name__}: {error}") from error
            else:
                raise ContractError(f"{world}: {what} must be refused; it went through.")


def check_reload(subject: Subject) -> None:
    """An edited model that is saved loads in plain `transformers` and computes the same; its receipt edits a fresh copy."""
    transformers = extras.require("transformers", "models")
    for world in worlds(subject):
        model = world.model()
        receipt = world.edit(model)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)  # type: ignore[operator]
            loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        for text in (ELSEWHERE, FACTS[0].prompt):
            if not torch.equal(_states(model, world, text)[-1], _states(loaded, world, text)[-1]):
                raise ContractError(f"{world}: saved and loaded, the edited model computes something else.")
        if fingerprint(copy.deepcopy(model)) != receipt.facts.after:
            raise ContractError(f"{world}: the receipt does not speak of the model as it stands.")


def check_costs(subject: Subject) -> None:
    """Bytes that are written in a layer, which is what undo keeps of it, are those of the card's formula."""
    assert subject.card.cost is not None
    for world in worlds(subject):
        model = world.model()
        receipt = world.edit(model)
        known = {part.parameter_name: part for block in anatomy(model).blocks for part in block.linears}
        layers = {name.split(".")[2] for name in (change.name for change in receipt.changes)}
        first = anatomy(model).blocks[0].ffn_out
        sizes = {"I": first.inputs, "O": first.outputs, "N": len(FACTS)}
        expected = formula.evaluate(subject.card.cost.state, catalogue.variables(subject.cls, subject.arguments, **sizes)) * len(
            layers
        )
        if all(known[change.name].inputs == first.inputs for change in receipt.changes) and receipt.nbytes != expected:
            raise ContractError(f"{world}: state is {receipt.nbytes} bytes; the card's formula gives {expected:g}.")


def _states(model: nn.Module, world: World, text: str) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = model(**world.tokenizer(text, return_tensors="pt", return_token_type_ids=False), output_hidden_states=True)
    states: tuple[Tensor, ...] = found.hidden_states
    return (*states, found.logits)


def _lowest(model: nn.Module, receipt: Receipt) -> int:
    changed = {change.name for change in receipt.changes}
    return min(b.index for b in anatomy(model).blocks if any(part.parameter_name in changed for part in b.linears))


CONTRACT: tuple[Check, ...] = (
    Check("arguments", check_arguments),
    Check("empty", check_empty),
    Check("declared", check_declared),
    Check("says", check_says),
    Check("undo", check_undo),
    Check("order", check_order),
    Check("modes", check_modes),
    Check("below", check_below),
    Check("refusals", check_refusals),
    Check("reload", check_reload),
    Check("costs", check_costs, costs=True),
)
