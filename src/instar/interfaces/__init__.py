"""Every interface of Instar, without logic: the page to read first.

Axes. One order everywhere, named by the legend
    B batch · T time · D width of the model · H heads · K key width of a head · V value width of a head
    activations [B, T, D]     per head [B, T, H, K] and [B, T, H, V]     matrix states [B, H, K, V]
A method's constructor arguments are its configuration (there is no second config class), and `issubclass` decides which
interface it has. The interface of a family comes with its first method; the contract of each stands in `instar.checks`.

Vectors. An encoder turns texts into vectors, an index stores them, and a head lets a newer encoder's vectors be compared with an
older one's:
    N items · D width of the new vectors · O width of the old ones · F width of what a new row stores · Q queries · k results
What a store keeps is numpy float32; what learns is torch.

Whatever changes a model in place returns an `instar.receipt.Receipt` (contract: `instar.checks.receipt`). What answers items
for the gate, be it model, endpoint or function, is an `instar.doors.version.Version`; it imports no torch and stands there.
"""

from __future__ import annotations

from instar.interfaces.attention import AttentionHead
from instar.interfaces.learners import Examples, InContextLearner, Labeller, Optimizer
from instar.interfaces.mixer import Mixer
from instar.interfaces.pooling import Pooling
from instar.interfaces.predictors import Forecaster, Predictor, Trace
from instar.interfaces.problem import Data, Monitor, Problem, Workload
from instar.interfaces.retrieval import CompatibleHead, Encoder, Floats, Fusion, Generation, Hits, Id, Index, Pairs
from instar.interfaces.updates import Adapter, Answering, Editor, Fact, Growth, Plan, Preserves, Transform, Updater, Versions
from instar.items import Floor, Items
from instar.state import State

__all__ = [
    "Adapter",
    "Answering",
    "AttentionHead",
    "CompatibleHead",
    "Data",
    "Editor",
    "Encoder",
    "Examples",
    "Fact",
    "Floats",
    "Floor",
    "Forecaster",
    "Fusion",
    "Generation",
    "Growth",
    "Hits",
    "Id",
    "InContextLearner",
    "Index",
    "Items",
    "Labeller",
    "Mixer",
    "Monitor",
    "Optimizer",
    "Pairs",
    "Plan",
    "Pooling",
    "Predictor",
    "Preserves",
    "Problem",
    "State",
    "Trace",
    "Transform",
    "Updater",
    "Versions",
    "Workload",
]
