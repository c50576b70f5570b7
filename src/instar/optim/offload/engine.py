"""Steps over residents and streamed subgroups, and what else touches their state: commits, exports, loading."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from instar.errors import CheckpointError, ShapeError, StoreError
from instar.optim.offload import exporting
from instar.optim.offload.exporting import MOMENTS
from instar.optim.offload.layout import checked
from instar.optim.offload.memory import HOST, MemoryBudget
from instar.optim.offload.schedule import Division
from instar.optim.offload.staging import Staging
from instar.optim.offload.store import Store, StoreSpec
from instar.optim.offload.update import adamw

Interval = int | Literal["auto"]


class Engine:
    """The state of one list of parameters under one division.

    Args:
        groups: of the optimiser. division: of the parameters. spec: of the store.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], division: Division, spec: StoreSpec) -> None:
        self.params = checked(groups)
        device = device_of(self.params, spec)
        self.division, self.layout = division, division.layout
        self.steps = [0] * len(self.params)
        self._turn = 0
        self._begun = False
        self._broken = ""
        self.memory = MemoryBudget(division.bytes, device)
        self.store = Store(spec, self.layout, [tuple(p.shape) for p in self.params], device)
        self._workspace = self.memory.take(division.workspace, "The workspace of an update")
        self.residents = [self.memory.take(self.layout.extent, f"Resident subgroup {n}") for n in range(division.residents)]
        self._changed: set[int] = set()
        self.staging = Staging(self.store, self.memory, division.buffers, background=division.schedule != "sequential")

    def prefetch(self, k: Interval, alternate: bool) -> None:
        """Begin to read what the next step updates first; once a step."""
        if not self._begun and not self._broken and self.staging.background:
            self._begun = True
            self.staging.ahead(self._streamed(k, alternate, self._turn))

    def step(self, groups: Sequence[dict[str, Any]], k: Interval, alternate: bool) -> bool:
        """Update every parameter that has a gradient; whether there was one. Raises StoreError."""
        if self._broken:
            raise StoreError(self._broken)
        self.store.require_sure()
        self._begun = False
        moving = [p.grad is not None for p in self.params]
        if not any(moving):
            return False
        order = [x for x in self._order(k, alternate, self._turn) if self._moves(x, moving)]
        streamed = [x for x in order if x >= self.division.residents]
        kept = set(self._streamed(k, alternate, self._turn + 1)[: len(self.staging)]) if alternate else set()
        self._broken = (
            "A transfer failed in the middle of a step, and the parameters are between two steps. Make a new optimiser: on a "
            "store with a name it goes back to the last commit; otherwise go on from a checkpoint."
        )
        self.staging.drop(set(streamed))
        for x in order:
            if x < self.division.residents:
                self._update(x, self.residents[x], groups, moving)
                self._changed.add(x)
            else:
                self._update(x, self.staging.take(x), groups, moving)
                self.staging.done(x, self._turn + 1, keep=x in kept)
                streamed.remove(x)
            if self.staging.background:
                self.staging.ahead(streamed)
        self.steps = [step + moved for step, moved in zip(self.steps, moving, strict=True)]
        self._turn += 1
        self._broken = ""
        return True

    def commit(self, facts: dict[str, Any], step: int) -> None:
        """Residents, what waits in buffers, parameters and counts of steps: durable together. Raises StoreError."""
        if self._broken:
            raise StoreError(self._broken)
        self.staging.settle()
        for x in sorted(self._changed):
            self.store.write(x, self.residents[x], step)
        buffer = self.staging.scratch()[: self.layout.weights_extent]
        facts = {**facts, "steps": self.steps, "turn": self._turn}
        with self.store.committing(buffer, facts, step) as put:
            for x, subgroup in enumerate(self.layout.subgroups):
                place = self.layout.weights(buffer, x)
                for piece in subgroup.pieces:
                    place[piece.offset : piece.offset + piece.length] = self._flat(piece.index)[piece.start : piece.stop]
                put(x)
        self._changed.clear()

    @torch.no_grad()
    def restore(self) -> dict[str, Any] | None:
        """Go back to the store's last commit, and say what it says; None where there is none. Parameters change last."""
        facts = self.store.facts
        if facts is None:
            return None
        buffer = self.staging.scratch()
        for x in range(self.division.residents):
            if self.store.written(x):
                self.store.read(x, self.residents[x])
        for x in range(self.division.residents, self.division.count):
            if self.store.written(x):
                self.store.read(x, buffer)  # nothing is kept of it: it is there and whole
        small = buffer[: self.layout.weights_extent]
        for check in (True, False):
            for x, subgroup in enumerate(self.layout.subgroups):
                self.store.read_weights(x, small, facts["made"])
                for piece in () if check else subgroup.pieces:
                    source = self.layout.weights(small, x)[piece.offset : piece.offset + piece.length]
                    self._flat(piece.index)[piece.start : piece.stop] = source
        self.steps, self._turn = list(facts["steps"]), facts["turn"]
        return facts

    def export(self, path: Path, groups: list[dict[str, Any]]) -> None:
        """Write the state as safetensors. Raises OutputError, StoreError."""
        self.staging.settle()

        def extent(x: int) -> Tensor:
            if x < self.division.residents:
                return self.residents[x]
            return self._fetched(x)

        exporting.export(path, self.layout, self.params, self.steps, groups, extent)

    def exported(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """The state as a dictionary that is mapped from a file without a name, beside the store."""
        with tempfile.TemporaryDirectory(prefix="optimiser-state-", dir=self.store.spec.folder) as folder:
            path = Path(folder) / "state.safetensors"
            self.export(path, groups)
            return exporting.read(path, shared=True)

    @torch.no_grad()
    def load(self, state: dict[int, dict[str, Any]]) -> list[int]:
        """Take moments and counts of steps by the number of the parameter; the rest begins anew. Raises CheckpointError."""
        for n, entry in state.items():
            shape = tuple(self.params[n].shape)
            found = {name: tuple(entry[name].shape) for name in MOMENTS if name in entry}
            if "step" not in entry or any(found.get(name) != shape for name in MOMENTS):
                raise CheckpointError(
                    f"Parameter {n} of shape {shape} needs step and moments of its shape; the state has {found}."
                )
        self.staging.settle()
        self.staging.invalidate()
        self._broken = "Loading a state failed in the middle, and the moments are of no step. Make a new optimiser."
        self.steps = [int(state[n]["step"]) if n in state else 0 for n in range(len(self.params))]
        for x, subgroup in enumerate(self.layout.subgroups):
            if x >= self.division.residents and not any(piece.index in state for piece in subgroup.pieces):
                self.store.forget(x)
                continue
            buffer = self.residents[x] if x < self.division.residents else self.staging.scratch()
            for name, plane in zip(MOMENTS, self.layout.moments(buffer, x), strict=True):
                for piece in subgroup.pieces:
                    place = plane[piece.offset : piece.offset + piece.length]
                    if piece.index in state:
                        place.copy_(state[piece.index][name].detach().reshape(-1)[piece.start : piece.stop])
                    else:
                        place.zero_()
            if x < self.division.residents:
                self._changed.add(x)
            else:
                self.store.medium.handed_on()
                self.store.write(x, buffer, self._turn)
        self._turn = max(self.steps, default=0)
        self._broken = ""
        return self.steps

    def close(self) -> None:
        """End the threads, release store and memory."""
        self.staging.close()
        self.store.close()
        self.residents = []

    def _fetched(self, x: int) -> Tensor:
        buffer = self.staging.scratch()
        if self.store.written(x):
            self.store.read(x, buffer)
        else:
            buffer.zero_()
        return buffer

    def _order(self, k: Interval, alternate: bool, turn: int) -> tuple[int, ...]:
        return self.division.order(k, backwards=alternate and turn % 2 == 1)

    def _streamed(self, k: Interval, alternate: bool, turn: int) -> list[int]:
        return [x for x in self._order(k, alternate, turn) if x >= self.division.residents]

    def _moves(self, x: int, moving: Sequence[bool]) -> bool:
        return any(moving[piece.index] for piece in self.layout.subgroups[x].pieces)

    def _flat(self, index: int) -> Tensor:
        return self.params[index].detach().view(-1)

    def _update(self, x: int, buffer: Tensor, groups: Sequence[dict[str, Any]], moving: Sequence[bool]) -> None:
        subgroup = self.layout.subgroups[x]
        first, second = self.layout.moments(buffer, x)
        workspace = self._workspace.view(subgroup.dtype)
        for piece in subgroup.pieces:
            grad = self.params[piece.index].grad
            if grad is None:
                continue
            here, there = slice(piece.start, piece.stop), slice(piece.offset, piece.offset + piece.length)
            adamw(
                self._flat(piece.index)[here], grad.reshape(-1)[here], first[there], second[there],
                self.steps[piece.index] + 1, groups[subgroup.group], workspace,
            )  # fmt: skip


def device_of(params: Sequence[Tensor], spec: StoreSpec) -> torch.device:
    """Where parameters, residents and buffers are. Raises ShapeError where the store is not for such parameters."""
    found = {p.device for p in params}
    if len(found) > 1:
        raise ShapeError(f"All parameters of an offloaded optimiser are on one device; received {sorted(map(str, found))}.")
    device = found.pop() if found else HOST
    if device.type != "cpu" and spec.mode != "pinned":
        raise ShapeError(
            f"A parameter is on {device}; a store of the mode '{spec.mode}' is for parameters in main memory. For a CUDA device "
            "there is StoreSpec(mode='pinned'), which has never been run."
        )
    return device
