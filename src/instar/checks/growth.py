"""The contract of `Growth`: what is kept of the function, receipts, files, refusals; `growth_training` has the rest."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instar import catalogue, formula
from instar.checks import growth_training as training
from instar.checks.arguments import constructed, keeps, refused
from instar.checks.growth_models import build, built, logits, plans, same_state, tokens, train
from instar.checks.subject import Check, Subject
from instar.checks.witness import picture, require
from instar.errors import ContractError
from instar.receipt import fingerprint

_ROUNDING = 1e-9
"""Relative to the largest logit, in float64."""


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct and say what they preserve."""
    for what, values, made in constructed(subject, lambda values: build(Subject(subject.cls, subject.card, values))):
        keeps(subject, what, values, made, "receipts say what was done")
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


def check_receipts(subject: Subject) -> None:
    """Every promise of a receipt holds: undo and redo to the bit, only what is listed changes, an interrupt leaves nothing."""
    from instar.checks import receipt

    growth = build(subject)
    for outcome in receipt.check_receipts(lambda: built(growth), lambda model: growth.grow(model, plans(growth)[-1]).receipt):
        if outcome.status == "failed":
            raise ContractError(f"{outcome.name}: {outcome.message}")


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
        refused(what, lambda plan=plan: growth.grow(model, plan, optimizer=optimiser))  # type: ignore[misc]
        require(model, before, f"After {what} was refused")
        if not same_state(optimiser, state):
            raise ContractError(f"After {what} was refused, the optimiser is not what it was.")
    refused("A model of another kind", lambda: growth.grow(nn.Linear(4, 4), {size: "2x"}))
    foreign = torch.optim.AdamW(built(growth).parameters())
    refused("An optimiser of another model", lambda: growth.grow(model, {size: "2x"}, optimizer=foreign))
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


CONTRACT = (
    Check("arguments", check_arguments),
    Check("preserved", check_preserved),
    Check("filled_caches", check_filled_caches),
    Check("larger", training.check_larger),
    Check("learns", training.check_learns),
    Check("optimisers", training.check_optimisers),
    Check("moments", training.check_moments),
    Check("undo", training.check_undo),
    Check("receipts", check_receipts),
    Check("interrupted", training.check_interrupted),
    Check("resumes", training.check_resumes),
    Check("deterministic", check_deterministic),
    Check("saved", check_saved),
    Check("refusals", check_refusals),
    Check("bytes", check_bytes, costs=True),
)
