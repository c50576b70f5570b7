"""The one place where state and staging buffers are allocated, so that a budget is kept by construction."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.errors import BudgetError

HOST = torch.device("cpu")
PAGE = 4096
"""Alignment of buffers and extents: what O_DIRECT asks for on any common disk."""


def rounded(nbytes: int, to: int = PAGE) -> int:
    """The next multiple."""
    return -(-nbytes // to) * to


class MemoryBudget:
    """Bytes that may be held at once. `take` gives aligned memory or raises; nothing else here allocates state or staging.

    Args:
        limit: bytes. device: whose memory it is.

    Attributes: used, and peak, the most that was held together.
    """

    def __init__(self, limit: int, device: torch.device = HOST) -> None:
        self.limit, self.device = limit, device
        self.used = self.peak = 0

    def take(self, nbytes: int, what: str) -> Tensor:
        """Zeros, uint8 [nbytes], that begin at a multiple of a page. Raises BudgetError where the limit would be passed.

        What is counted is what is allocated: a page more than asked, for the alignment.
        """
        whole = held(nbytes)
        if self.used + whole > self.limit:
            raise BudgetError(
                f"{what} needs {whole} bytes; {self.used} of the budget of {self.limit} are in use. "
                f"The least that works here is {self.used + whole}."
            )
        self.used += whole
        self.peak = max(self.peak, self.used)
        return aligned(nbytes, self.device)

    def give_back(self, buffer: Tensor) -> None:
        """Account for memory that is no longer held; the caller drops its references."""
        self.used -= buffer.untyped_storage().nbytes()


def aligned(nbytes: int, device: torch.device = HOST) -> Tensor:
    """Zeros, uint8 [nbytes], that begin at a multiple of a page."""
    raw = torch.zeros(held(nbytes), dtype=torch.uint8, device=device)
    start = -raw.data_ptr() % PAGE
    return raw[start : start + nbytes]


def held(nbytes: int) -> int:
    """Bytes that `take` accounts for a buffer of this size."""
    return nbytes + PAGE
