"""What the checks of a compatible head share: heads, pairs of known relation, and comparisons."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.checks.subject import Subject
from instar.compat import chain
from instar.compat import pairs as pairing
from instar.errors import ContractError
from instar.interfaces import CompatibleHead, Generation, Pairs

STEPS = 12
"""Of training, where it does not matter what was learnt."""
CLASSES = 8
SIZES = ((24, 16), (16, 24), (16, 16))
"""Widths of new and old vectors."""


def build(subject: Subject, new_dim: int = 24, old_dim: int = 16, **knobs: Any) -> CompatibleHead:
    """A head that is not fitted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        head = subject.cls(new_dim, old_dim, **{**subject.arguments, **knobs})
    if not isinstance(head, CompatibleHead):
        raise ContractError(f"{subject.cls.__name__} is no instar.interfaces.CompatibleHead: derive the class from it.")
    return head


def pairs(subject: Subject, new_dim: int = 24, old_dim: int = 16, items: int = 160) -> Pairs:
    """Vectors in clusters; the old ones are a noisy linear image of the new ones."""
    new, labels = clusters(subject, new_dim, items)
    draw = torch.Generator().manual_seed(subject.seed + 1)
    old = new @ torch.randn(new_dim, old_dim, generator=draw) / new_dim**0.5
    return pairing.of(old + 0.05 * torch.randn(old.shape, generator=draw), new, labels)


def rotated(subject: Subject, width: int = 16, items: int = 480) -> Pairs:
    """Old vectors that are a rotation of the new ones, exactly."""
    new, labels = clusters(subject, width, items)
    draw = torch.Generator().manual_seed(subject.seed + 2)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64)).Q
    return pairing.of(F.normalize(new.double(), dim=1) @ rotation, new, labels)


def clusters(subject: Subject, width: int, items: int) -> tuple[Tensor, Tensor]:
    """Vectors [N, width] about the centres of their classes [N]."""
    draw = torch.Generator().manual_seed(subject.seed)
    labels = torch.arange(items) % CLASSES
    centres = torch.randn(CLASSES, width, generator=draw)
    return centres[labels] + 0.5 * torch.randn(items, width, generator=draw), labels


def fitted(subject: Subject, new_dim: int = 24, old_dim: int = 16, *, steps: int = STEPS) -> CompatibleHead:
    """A head that was fitted on `pairs`, in eval mode."""
    head = build(subject, new_dim, old_dim)
    head.fit(pairs(subject, new_dim, old_dim), steps=steps, seed=subject.seed)
    return head.eval()


def updated(subject: Subject) -> CompatibleHead:
    """The second of two updates: 24 → 16, then 20 → what the first one stores."""
    older = fitted(subject)
    head = build(subject, 20, older.full_dim)
    head.previous = older
    base = pairs(subject)
    with torch.no_grad():
        stored = older.full(base.x)
    new, _ = clusters(subject, 20, len(stored))
    head.fit(pairing.of(stored, new, base.labels), steps=STEPS, seed=subject.seed)
    return head.eval()


def generations(head: CompatibleHead) -> list[Generation]:
    """Stamps of all that the head can query."""
    links = chain.of(head)
    widths = [links[0].old_dim, *(one.full_dim for one in links)]
    return [Generation(number, f"encoder {number}", width) for number, width in enumerate(widths)]


def queries(head: CompatibleHead, items: int = 7) -> Tensor:
    """Random vectors that the head reads, of its own precision."""
    like = next(iter(head.state_dict().values()), torch.empty(0))
    return torch.randn(items, head.input_dim, dtype=like.dtype if like.is_floating_point() else torch.float32)


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the tensors whose bits are not the same."""
    return [
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or not torch.equal(first[name], second[name])
    ]


def bits(head: CompatibleHead) -> dict[str, Tensor]:
    """Copies of everything that the head keeps."""
    return {name: value.detach().clone() for name, value in head.state_dict().items()}


def unit(found: Tensor, what: str) -> None:
    """Raise ContractError unless all rows are finite and of length 1."""
    lengths = found.detach().norm(dim=1)
    if not bool(torch.isfinite(found).all()) or (len(lengths) and float((lengths - 1).abs().max()) > 1e-5):
        raise ContractError(f"{what} must be finite and of length 1; received lengths {lengths.tolist()[:4]}.")
