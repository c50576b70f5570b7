"""Seeds of what a mixer draws once and keeps: hashes, directions, blocks."""

from __future__ import annotations

import torch


def drawn_seed(seed: int | None) -> int:
    """The seed, or where it is None one from torch's generator: then each layer and each run has draws of its own."""
    return int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
