"""Deterministic costs: equal on every machine, so they come before any clock.

FLOPs, bytes and time are three separate passes; nothing timed is ever instrumented.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from instar.interfaces import Data, Predictor, Problem


def measure(problem: Problem, subject: Any, data: Data, seed: int) -> dict[str, float]:
    """The problem's own costs, and the parameters and peak training bytes of any module.

    Predictors have no peak bytes: the tracker hooks modules, and torch forbids that where a forward pass takes gradients itself.
    """
    figures = dict(problem.costs(subject))
    if isinstance(subject, nn.Module):
        figures.setdefault("parameters", float(sum(p.numel() for p in subject.parameters())))
        if not isinstance(subject, Predictor):
            figures.update(peak_bytes(problem, subject, data, seed))
    return figures


def peak_bytes(problem: Problem, subject: nn.Module, data: Data, seed: int) -> dict[str, float]:
    """Bytes of live tensors at the peak of one training step, by kind (a copy is trained; the subject stays as it is)."""
    # A private module of torch (a test pins what is used of it) that takes seconds to import: every command would wait for it.
    from torch.distributed._tools.mem_tracker import MemTracker

    model = copy.deepcopy(subject)
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        problem.fit(model, data.train, steps=1, seed=seed)
    kinds: dict[str, float] = {}
    for snapshot in tracker.get_tracker_snapshot("peak").values():
        for kind, count in snapshot.items():
            name = str(getattr(kind, "value", kind)).rpartition(".")[2].lower()
            kinds[name] = kinds.get(name, 0.0) + float(count)
    peak = kinds.pop("total", sum(kinds.values()))
    return {"peak_train_bytes": peak, **{f"peak_train_bytes.{k}": v for k, v in sorted(kinds.items()) if v}}
