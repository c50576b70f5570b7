"""Adapters: small trainable changes of a model, attached, switched, merged, saved, and taken back to the bit.

>>> from instar.adapters import HUT, merge_and_unload, parameters, save, switch
>>> receipt = HUT(r=8).attach(model, name="questions")                # query and value of every block, all else frozen
>>> optimiser = torch.optim.AdamW(parameters(model), lr=5e-3, weight_decay=0.0)                     # doctest: +SKIP
>>> save(model, "questions", "questions")                             # its own tensors only, in the layout of peft
>>> switch(model, None)                                               # the base again, until it is switched on
>>> merge_and_unload(model, "questions").undo()                       # plain modules, no added latency; and back

A method is a class in one file beside its card: `HUT`, `LoRA`, `DoRA`, `HiRA`, `IA3`, `BitFit`, and for comparison `Full` and
`HeadOnly`. What can be done with one that is attached is the same for all, on `nn.Linear` and `transformers` Conv1D:

| call | what it does |
|---|---|
| `Adapter.attach(model, where, name=)` | puts it in, freezes everything else |
| `parameters(model, name)` | what an optimiser gets |
| `switch(model, name)`, `off(model)` | one of several, or none; `off` is a context |
| `merge`, `unmerge`, `merge_and_unload` | into the weights; back to the bit; into plain modules |
| `detach(model, name)` | takes it out |
| `save(model, folder, name)`, `load(model, folder)` | in the layout of `peft`; another base is refused |
"""

from __future__ import annotations

from instar.adapters.attached import active, names, off, parameters, switch
from instar.adapters.attaching import detach
from instar.adapters.bitfit import BitFit
from instar.adapters.dora import DoRA
from instar.adapters.full import Full
from instar.adapters.head_only import HeadOnly
from instar.adapters.hira import HiRA
from instar.adapters.hut import HUT
from instar.adapters.ia3 import IA3
from instar.adapters.lora import LoRA
from instar.adapters.merging import merge, merge_and_unload, unmerge
from instar.adapters.saved import load, save

__all__ = [
    "HUT",
    "IA3",
    "BitFit",
    "DoRA",
    "Full",
    "HeadOnly",
    "HiRA",
    "LoRA",
    "active",
    "detach",
    "load",
    "merge",
    "merge_and_unload",
    "names",
    "off",
    "parameters",
    "save",
    "switch",
    "unmerge",
]
