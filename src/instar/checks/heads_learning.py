"""The contract of `CompatibleHead`: what it learns."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from instar import catalogue
from instar.checks.heads import CLASSES, STEPS, bits, build, differ, fitted, generations, pairs, rotated
from instar.checks.subject import Subject
from instar.compat import saved
from instar.errors import ContractError
from instar.interfaces import CompatibleHead, Pairs

_LONG = 150
"""Steps that teach a trained head a rotation of clusters."""


def check_monitor(subject: Subject) -> None:
    """A trained head tells every step, stops when asked to, and survives an interrupt as it was; a closed form ignores steps."""
    told: list[int] = []

    def watch(step: int, loss: float) -> bool:
        told.append(step)
        return step == 3

    head = build(subject)
    head.fit(pairs(subject), steps=STEPS, monitor=watch)
    wanted = [] if head.closed_form else [1, 2, 3]
    if told != wanted:
        raise ContractError(f"The monitor, which stops at step 3, must be told of steps {wanted}; it was told of {told}.")

    def interrupt(step: int, loss: float) -> bool:
        raise KeyboardInterrupt

    before = bits(head)
    with contextlib.suppress(KeyboardInterrupt):
        head.fit(pairs(subject), steps=STEPS, seed=1, monitor=interrupt)
        before = bits(head)  # a closed form tells nobody, and has done its work
    if names := differ(before, bits(head)):
        raise ContractError(f"Training that was interrupted left {names[0]} changed; a head changes when training is done.")


def check_orthonormal(subject: Subject) -> None:
    """What `bases()` gives is orthonormal to 1e-5 in float32, after training and after loading."""
    head = fitted(subject, steps=_LONG)
    with tempfile.TemporaryDirectory() as folder, catalogue.holding(subject.card, subject.cls):
        saved.save(head, Path(folder), generations=generations(head))
        loaded = saved.load(Path(folder)).head
    for when, one in (("after fit", head), ("after loading", loaded)):
        bases: list[Tensor] | None = one.bases() if hasattr(one, "bases") else None  # type: ignore[operator]
        if not bases:
            raise ContractError("A head tagged 'orthonormal' must give those matrices: bases() -> list of [rows, columns].")
        for base in bases:
            short = base.detach().double() if base.shape[0] <= base.shape[1] else base.detach().double().T
            worst = float((short @ short.T - torch.eye(len(short), dtype=torch.float64)).abs().max())
            if not worst <= 1e-5:
                raise ContractError(
                    f"{when.capitalize()} a matrix {list(base.shape)} is off orthonormality by {worst:.1e}; 1e-5 is allowed."
                )


def check_rotation(subject: Subject) -> None:
    """Old vectors that are a rotation of the new ones are found again: exactly, or their class far beyond chance."""
    known = rotated(subject)
    assert known.labels is not None  # `rotated` gives them
    half = len(known.old) // 2
    head = build(subject, 16, 16)
    head.fit(Pairs(known.old[:half], known.new[:half], known.labels[:half]), steps=_LONG, seed=subject.seed)
    found = _project(head.eval(), known.new[half:])
    nearest = (found @ known.old[half:].T).argmax(1)
    if subject.card.capability("rotation") == "exact":
        worst = float((found - known.old[half:]).abs().max())
        if worst > 1e-3 or not torch.equal(nearest, torch.arange(half)):
            raise ContractError(f"A rotation must be found exactly; projections are off by {worst:.1e}. Tag it rotation=learnt.")
        return
    right = float((known.labels[half:][nearest] == known.labels[half:]).double().mean())
    if right < 0.5:
        raise ContractError(
            f"The nearest old vector of a query is of its class in {right:.0%} of cases; chance is {1 / CLASSES:.0%}."
        )


@torch.no_grad()
def _project(head: CompatibleHead, x: Tensor) -> Tensor:
    return head.project(x, 0)
