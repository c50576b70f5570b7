"""The contract of each interface, for the catalogue's methods and for anybody's.

>>> from instar.checks import check
>>> [o.name for o in check("gla") if o.status == "failed"]                  # doctest: +SKIP
>>> check("my_package.mixers:MyMixer"), check("heads.py:MyHead")             # doctest: +SKIP

A check is a function of a `Subject` that returns None or raises ContractError; it can be called alone. Capability tags on
the card decide which are asked: one that takes a check away puts the opposite one in its place.

What every in-place update owes (undo to the bit, all or nothing, honest receipts) is asked by `checks.receipt.check_receipts`.
"""

from __future__ import annotations

import inspect
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from instar.cards import Card
from instar.checks import (
    adapter,
    attention_head,
    compatible_head,
    editor,
    forecaster,
    growth,
    in_context,
    mixer,
    optimizer,
    pooling,
    predictor,
    program,
    transform,
    updater,
)
from instar.checks.subject import Check, Subject, find
from instar.errors import CardError, ContractError

__all__ = ["Check", "Outcome", "Subject", "check", "contract", "find", "run"]


@dataclass(frozen=True)
class Outcome:
    """What one check found."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    message: str
    seconds: float


def contract(interface: str | None) -> tuple[Check, ...]:
    """The checks of an interface, in the order they run. Raises CardError for an interface without a contract."""
    known = {
        "Mixer": mixer.CONTRACT,
        "CompatibleHead": compatible_head.CONTRACT,
        "Adapter": adapter.CONTRACT,
        "Editor": editor.CONTRACT,
        "Transform": transform.CONTRACT,
        "Updater": updater.CONTRACT,
        "Optimizer": optimizer.CONTRACT,
        "InContextLearner": in_context.CONTRACT,
        "AttentionHead": attention_head.CONTRACT,
        "Pooling": pooling.CONTRACT,
        "Growth": growth.CONTRACT,
        "Forecaster": forecaster.CONTRACT,
        "Labeller": program.CONTRACT,
        "Predictor": predictor.CONTRACT,
    }
    if interface not in known:
        raise CardError(f"There is no contract for the interface {interface}; known are {', '.join(known)}.")
    return known[interface]


def check(target: str | Card | type | Subject, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Outcome]:
    """Run the whole contract.

    Args:
        target: `gla`, `gla:no_gate`, `package.module:Class`, `file.py:Class`, a Card, a class, or a Subject.
        seed: of weights, inputs and masks.
        dtype: in which equivalences are judged: float64 is the sharpest; float32 is for code that holds to it inside.

    A crash inside a check is a failed outcome that names the exception. Raises UnknownNameError, CardError for the target.
    """
    subject = target if isinstance(target, Subject) else find(target, seed=seed, dtype=dtype)
    return [run(one, subject) for one in contract(subject.card.interface)]


def run(one: Check, subject: Subject) -> Outcome:
    """Run one check, with its own random numbers, and report."""
    reason = one.not_asked(subject.card)
    if reason:
        return Outcome(one.name, "skipped", reason, 0.0)
    start = time.perf_counter()
    message = ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        try:
            one.function(subject)
        except ContractError as error:
            message = str(error)
        except Exception as error:  # whatever a stranger's code raises is a finding
            message = _crash(error, subject)
    return Outcome(one.name, "failed" if message else "passed", message, time.perf_counter() - start)


def _crash(error: Exception, subject: Subject) -> str:
    """An exception in one line, with the last place in the subject's own file that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = inspect.getfile(subject.cls)
    at = next((f for f in reversed(frames) if f.filename == own), frames[-1])
    first = (str(error).strip().splitlines() or [""])[0]
    return f"raised {type(error).__name__}: {first[:300]} ({Path(at.filename).name}, line {at.lineno})"
