"""Whether the card keeps its word: state bytes, knobs and presets."""

from __future__ import annotations

import inspect

import torch

from instar import formula
from instar.checks.arguments import constructed
from instar.checks.subject import Subject
from instar.errors import CardError, ContractError
from instar.state import nbytes


def check_state_bytes(subject: Subject) -> None:
    """The state of one float32 sequence has exactly the bytes of the card's formula, at several lengths."""
    if subject.card.cost is None:
        raise CardError(f"The card of {subject.card.slug} states no costs, so there is nothing to hold its state to.")
    mixer = subject.build(torch.float32)
    for T in sorted({subject.tokens(n) for n in (1, 24, 200)}):
        with torch.no_grad():
            measured = nbytes(mixer(subject.x(1, T, torch.float32))[1])
        promised = formula.evaluate(subject.card.cost.state, subject.variables(T))
        if measured != promised:
            raise ContractError(
                f"After {T} tokens (D={subject.width}) the state has {measured} bytes; the card's formula "
                f"'{subject.card.cost.state}' gives {promised:g}. Correct the formula, or what the state keeps."
            )


def check_arguments(subject: Subject) -> None:
    """Knobs and presets are arguments of the constructor; every preset and every end of a knob's range constructs."""
    known = inspect.signature(subject.cls).parameters
    if "width" not in known or "heads" not in known:
        raise ContractError(f"The constructor must read Mixer(width, *, heads=…); it has {', '.join(known)}.")
    for _ in constructed(subject, lambda values: subject.cls(subject.width, **values)):
        pass
