"""No map: queries of the new encoder against vectors of the old one, as they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from instar.compat import fitting
from instar.compat.mapping import Map
from instar.interfaces import Monitor, Pairs


class NoMap(Map):
    """g(x) = x; zeros are added where old vectors are wider, the last coordinates dropped where they are narrower.

    Between a model and its own fine-tune, or between two prefixes of one Matryoshka model, this alone may beat the old search;
    between unrelated encoders it is chance. Nothing is learnt and nothing is saved.
    """

    closed_form = True

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None:
        """Learns nothing; the pairs are only checked."""
        fitting.check(self, pairs)

    def bring(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.old_dim - self.new_dim))  # a negative number of zeros cuts
