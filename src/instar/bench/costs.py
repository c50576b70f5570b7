"""Deterministic costs: equal on every machine, so they come before any clock.

FLOPs, bytes and time are three separate passes; nothing timed is ever instrumented.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from instar.interfaces import Data, Predictor, Problem

if TYPE_CHECKING:
    from torch.distributed._tools.mem_tracker import MemTracker


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
    model = copy.deepcopy(subject)
    tracker = _tracker(model)
    with tracker:
        problem.fit(model, data.train, steps=1, seed=seed)
    kinds = _peak(tracker)
    peak = kinds.pop("total", sum(kinds.values()))
    return {"peak_train_bytes": peak, **{f"peak_train_bytes.{k}": v for k, v in sorted(kinds.items()) if v}}


def peak_of_steps(make: Callable[[], Callable[[], object]], *models: nn.Module, steps: int = 2) -> float:
    """Bytes of live tensors at the peak of some training steps, of which `make` gives one: for subjects that are no modules.

    Args:
        make: called under the tracker, so that what it makes is counted from its first tensor on: of an optimiser what it holds
            in memory, and not what it has in a file. models: made before and counted as well. steps: two, so that what the first
            step makes is there beside the activations of the second.
    """
    tracker = _tracker(*models)
    with tracker:
        step = make()
        for _ in range(steps):
            step()
            tracker.reset_mod_stats()  # it takes no module twice, else
    kinds = _peak(tracker)
    return kinds.get("total", sum(kinds.values()))


def _tracker(*models: nn.Module) -> MemTracker:
    """One that counts what these models have."""
    # A private module of torch (a test pins what is used of it) that takes seconds to import: every command would wait for it.
    from torch.distributed._tools.mem_tracker import MemTracker

    class Tracker(MemTracker):
        """Of models with frozen parameters too: torch's hooks the gradient of each, and these have none."""

        def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> tuple[int, int]:
            hooked = self._param_to_grad_hook_handles
            frozen = [p for p in module.parameters() if not p.requires_grad and p not in hooked]
            for parameter in frozen:
                hooked[parameter] = ()
            try:
                found: tuple[int, int] = super()._track_module_params_and_buffers(module, install_grad_hooks)
                return found
            finally:
                for parameter in frozen:
                    del hooked[parameter]

    tracker = Tracker()
    tracker.track_external(*models)
    return tracker


def _peak(tracker: MemTracker) -> dict[str, float]:
    """Bytes by kind, over all devices."""
    kinds: dict[str, float] = {}
    for snapshot in tracker.get_tracker_snapshot("peak").values():
        for kind, count in snapshot.items():
            name = str(getattr(kind, "value", kind)).rpartition(".")[2].lower()
            kinds[name] = kinds.get(name, 0.0) + float(count)
    return kinds
