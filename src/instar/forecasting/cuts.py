"""Where patches begin in the windows of a training: found once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Origins = NDArray[np.int64]


class Cuts:
    """bool [W, N, L] for W windows of a training, kept from when they are first asked for: a frozen model cuts them alike.

    They are found in the blocks of the first epoch whenever that is, so that a training which was interrupted sees the same
    bits. N · L / 8 bytes a window.

    Args:
        find: the cuts of a block of windows, [W, N, L]. blocks: all windows, by their origins, as the first epoch takes them.
    """

    def __init__(self, find: Callable[[Origins], Tensor], blocks: Sequence[Origins]) -> None:
        self.find, self.blocks = find, blocks
        self.place = {origin: number for number, block in enumerate(blocks) for origin in block.tolist()}
        self.kept: dict[int, NDArray[np.uint8]] = {}
        self.length = 0

    def __call__(self, origins: Origins) -> Tensor:
        for number in dict.fromkeys(self.place[origin] for origin in origins.tolist() if origin not in self.kept):
            found = self.find(self.blocks[number]).cpu().numpy()
            self.length = found.shape[-1]
            self.kept |= zip(self.blocks[number].tolist(), np.packbits(found, axis=-1), strict=True)
        bits = np.stack([self.kept[origin] for origin in origins.tolist()])
        return torch.from_numpy(np.unpackbits(bits, axis=-1, count=self.length).astype(np.bool_))
