"""Parts of a transformer taken out: which there are, switched off for a trial, and cut away for good.

From what is said to what is done, each file knows only those above it:

| file | what it is |
|---|---|
| `removed` | which parts are out, and its JSON |
| `layout` | the parts of a model that can be taken out, and what each costs |
| `hard_attention` | attention to the K largest probabilities, in models of `transformers` |
| `absent` | what stands where a part was |
| `masking` | parts switched off by hooks, and by zeros in the weights |
| `cutting` | parts cut out of the tensors |
| `scoring` | the losses of labelled batches, resumed in the middle of a model |
| `importance` | how much the loss depends on each part, by gradients |
| `greedy` | the greedy search of AxFormer |
| `removal` | what the baselines share: parts in some order, until the model is small enough |

>>> from instar.compression.pruning import Removed, cut, masked, zeroed
>>> with masked(model, removed): loss = evaluate(model)                   # doctest: +SKIP
>>> plain = zeroed(model, removed)        # a state dict that plain transformers loads    # doctest: +SKIP
>>> receipt = cut(model, removed); receipt.undo()                         # doctest: +SKIP
"""

from __future__ import annotations

from instar.compression.pruning.cutting import cut
from instar.compression.pruning.greedy import Plan, Rules, search
from instar.compression.pruning.masking import masked, zeroed
from instar.compression.pruning.removed import Element, Removed
from instar.compression.pruning.scoring import Validation

__all__ = ["Element", "Plan", "Removed", "Rules", "Validation", "cut", "masked", "search", "zeroed"]
