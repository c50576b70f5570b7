"""What is checked: a class, its card, the arguments of a preset, and the sizes and random inputs that checks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instar import catalogue
from instar.cards import Card
from instar.errors import ContractError
from instar.interfaces import Mixer
from instar.state import State

WARM = 6
"""Tokens that make a state worth carrying."""
PROBE = 5
"""Tokens that show what is in a state, by continuing from it."""

SETTLE = 50
"""Batches after which running statistics are those of the data."""


@dataclass(frozen=True)
class Subject:
    """A class under test. What follows below its fields is for mixers; `checks.heads` has what heads need."""

    cls: Any
    card: Card
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: torch.dtype = torch.float64
    width: int = 32

    @property
    def streaming(self) -> bool:
        """Whether states may be carried from call to call."""
        return bool(self.card.capability("streaming"))

    @property
    def tolerance(self) -> float:
        """Allowed difference between two ways of computing the same, relative to the largest value (at least 1)."""
        return 1e-9 if self.dtype == torch.float64 else 5e-4

    def tokens(self, wanted: int) -> int:
        """A sequence length that leaves room for WARM and PROBE tokens under `max_len`."""
        longest = self.card.capability("max_len")
        return min(wanted, longest - WARM - PROBE) if longest else wanted

    def variables(self, tokens: int) -> dict[str, float]:
        """What the card's formulas may use, as this subject has it."""
        return catalogue.variables(self.cls, self.arguments, T=tokens, D=self.width)

    def build(self, dtype: torch.dtype | None = None, seed: int | None = None) -> Mixer:
        """A module in training mode (eval mode if it is stochastic, or reads statistics of the batch in training).

        Parameters are moved off their start values, among which zeros and ones hide mistakes; so are running statistics.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed if seed is None else seed)
            mixer = self.cls(self.width, **self.arguments)
            if not isinstance(mixer, Mixer):
                raise ContractError(f"{self.cls.__name__} is no instar.interfaces.Mixer: derive the class from it.")
            with torch.no_grad():
                for parameter in mixer.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            mixer.to(dtype or self.dtype)
            if self.card.capability("batch_statistics"):
                with torch.no_grad():
                    for _ in range(SETTLE):
                        mixer(self.x(2, WARM, dtype))
        return mixer.train(not self.card.capability("stochastic") and not self.card.capability("batch_statistics"))

    def x(self, batch: int, tokens: int, dtype: torch.dtype | None = None) -> Tensor:
        """Random tokens [B, T, D]."""
        return torch.randn(batch, tokens, self.width, dtype=dtype or self.dtype)

    def warm(self, mixer: Mixer, batch: int, dtype: torch.dtype | None = None) -> State:
        """A state with something in it, or None where states are not carried."""
        if not self.streaming:
            return None
        with torch.no_grad():
            return mixer(self.x(batch, WARM, dtype))[1]


@dataclass(frozen=True)
class Check:
    """A check and the capability tags that ask for it."""

    name: str
    function: Callable[[Subject], None]
    needs: str = ""
    """Asked only of cards with this tag."""
    unless: str = ""
    """Not asked of cards with this tag."""
    costs: bool = False
    """Asked only of cards that state their costs."""

    def not_asked(self, card: Card) -> str:
        """Why the card's tags do not ask for this check; empty when they do."""
        if self.needs and not card.capability(self.needs):
            return f"asked of methods tagged '{self.needs}'"
        if self.costs and card.cost is None:
            return "asked of cards with a table [cost]"
        if self.unless and card.capability(self.unless):
            return f"not asked of methods tagged '{self.unless}'"
        return ""


def find(target: str | Card | type, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Subject:
    """The subject behind an address of the catalogue, `package.module:Class`, `file.py:Class`, a card, or a class itself.

    Raises UnknownNameError, CardError.
    """
    if isinstance(target, Card):
        return Subject(catalogue.load(target), target, {}, seed, dtype)
    if isinstance(target, type):
        return Subject(target, catalogue.minimal(target, Path(f"{target.__name__.lower()}.toml")), {}, seed, dtype)
    head = target.partition(":")[0]
    if head not in catalogue.methods() and ("." in head or "/" in head):
        card = catalogue.add(target)
        return Subject(catalogue.load(card), card, {}, seed, dtype)
    address = catalogue.parse(target)
    return Subject(catalogue.load(address.card), address.card, address.arguments, seed, dtype)
