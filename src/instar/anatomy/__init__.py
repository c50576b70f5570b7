"""The parts of a transformer of any architecture: blocks, projections of attention, layers of the FFN, embedding and head.

>>> from instar.anatomy import anatomy
>>> parts = anatomy(model)                                                # doctest: +SKIP
>>> parts.blocks[3].ffn_out.name, parts.blocks[3].ffn_out.weight.shape    # doctest: +SKIP
('model.layers.3.mlp.down_proj', torch.Size([576, 1536]))
"""

from __future__ import annotations

from instar.anatomy.find import anatomy
from instar.anatomy.linear import Linear, linears
from instar.anatomy.parts import Anatomy, Block

__all__ = ["Anatomy", "Block", "Linear", "anatomy", "linears"]
