"""What of this machine and this installation stands in the way, each finding with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from instar.doctor import builds, machine, packages
from instar.doctor.finding import Finding

__all__ = ["EXAMINATIONS", "Finding", "examine"]

EXAMINATIONS: tuple[Callable[[], Iterable[Finding]], ...] = (
    packages.core,
    builds.torch,
    builds.torchvision,
    builds.kernels,
    machine.cores,
    machine.waiting,
    machine.memory,
    machine.cache,
    machine.data,
    packages.extras,
)


def examine() -> list[Finding]:
    """Every finding. Imports no torch here: what may crash is tried in processes of its own."""
    return [finding for examination in EXAMINATIONS for finding in examination()]
