"""What one layer costs at each length, without training: seconds, bytes saved for the backward pass, bytes of state.

Every (method, length) is a process of its own, so that one that runs out of memory or time is a record with a reason and harms
no other; nothing else runs beside it. A method that failed at a length is not tried at longer ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instar import catalogue, files, state
from instar.bench import environment, record, run, statistics
from instar.bench.compare import Listener, Silence
from instar.bench.executor import Executor, Job, LocalExecutor, Outcome
from instar.bench.record import Record, Store
from instar.bench.seeds import initialising
from instar.cards import Metric
from instar.errors import PlanError

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
FIGURES = {
    metric.id: metric
    for metric in (
        Metric("forward_seconds", "seconds of a forward pass", "s", "lower", "time", over="sequence length"),
        Metric("train_seconds", "seconds of a forward and backward pass", "s", "lower", "time", over="sequence length"),
        Metric("decode_seconds", "seconds of one more token", "s", "lower", "time", over="context length"),
        Metric("saved_bytes", "bytes saved for the backward pass", "B", "lower", "cost", over="sequence length"),
        Metric("state_bytes", "bytes of state", "B", "lower", "cost", over="context length"),
        Metric("working_bytes", "bytes that a forward pass adds to the process", "B", "lower", "cost", over="sequence length"),
    )
}
"""What a point holds; a bidirectional layer has no state and no next token."""
_ROUNDS = 5
_SECONDS = 2.0  # of rounds beyond the third
_WARM = 64  # tokens that load the kernels before memory is looked at


@dataclass(frozen=True)
class Layer:
    """The size of the one layer that is measured, for one sequence on one thread."""

    width: int = 128
    heads: int = 4


@dataclass(frozen=True)
class Curve:
    """One method: its figures by length, and why it ends where it ends."""

    address: str
    points: dict[int, dict[str, float]]
    ended: str = ""

    def line(self, figure: str) -> list[tuple[float, float]]:
        """(length, value), by rising length."""
        return [(float(n), found[figure]) for n, found in sorted(self.points.items()) if figure in found]


def measure(
    addresses: Sequence[str],
    out: Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    layer: Layer | None = None,
    seconds: float = 60.0,
    listener: Listener | None = None,
    executor: Executor | None = None,
) -> list[Curve]:
    """Measure what has no record in `out` yet, alone on the machine, the shortest lengths first.

    seconds: the time limit of a point. Lengths are interleaved over methods, so that a machine that changes its pace changes it
    for all. Raises PlanError for lengths that are no rising positive numbers, UnknownNameError.
    """
    lengths, layer = list(lengths), layer or Layer()
    if not lengths or min(lengths) < 1 or sorted(set(lengths)) != lengths:
        raise PlanError(f"Lengths must be positive, rising numbers; received {', '.join(map(str, lengths)) or 'none'}.")
    store, listener = Store(out), listener or Silence()
    executor = executor or LocalExecutor(1)
    found = {str(catalogue.parse(a)): Curve(str(catalogue.parse(a)), {}) for a in dict.fromkeys(addresses)}
    if not found:
        raise PlanError("Name a mixer to measure.")
    for address in found:
        _require_mixer(address)
    files.folder(out)
    listener.begin("measuring costs", float(len(found) * len(lengths)))
    for length in lengths:
        for address, curve in found.items():
            if not curve.ended:
                known = _record(store, address, length, layer, seconds, executor)
                found[address] = _extended(curve, length, known)
                if found[address].ended:
                    listener.note(f"{address} ends at {length} tokens: {known['reason']}")
            listener.progress(f"{address}/{length}", 1.0, f"{address} at {length} tokens")
    return list(found.values())


def load(records: Sequence[Record], layer: Layer) -> list[Curve]:
    """The curves of a layer of this size among records, by method in the order of their first record.

    A point that was measured with more time counts, whatever ended an earlier try.
    """
    found: dict[str, Curve] = {}
    here = [r for r in records if r["kind"] == "curve" and r["spec"]["layer"] == asdict(layer)]
    done = {(r["address"], int(r["spec"]["length"])) for r in here if r["status"] == "ok"}
    for one in sorted(here, key=lambda r: int(r["spec"]["length"])):
        address, length = one["address"], int(one["spec"]["length"])
        if one["status"] == "ok" or (address, length) not in done:
            found[address] = _extended(found.get(address, Curve(address, {})), length, one)
    return list(found.values())


def _extended(curve: Curve, length: int, one: Record) -> Curve:
    if one["status"] != "ok":
        return Curve(curve.address, curve.points, f"{length} tokens: {one['status']}: {one['reason']}")
    return Curve(curve.address, {**curve.points, length: one["figures"]}, curve.ended)


def _require_mixer(address: str) -> None:
    card = catalogue.parse(address).card
    if card.interface != "Mixer":
        raise PlanError(f"{address} is a {card.interface or card.kind}; costs by length are measured of mixers.")


def _record(store: Store, address: str, length: int, layer: Layer, seconds: float, executor: Executor) -> Record:
    """The record of a point, made where it is not there."""
    parsed = catalogue.parse(address)
    spec = {
        "kind": "curve",
        "method": {"slug": parsed.slug, "arguments": parsed.arguments},
        "layer": asdict(layer),
        "length": length,
        "threads": 1,
        "seconds": seconds,
    }
    name = record.identity(spec)
    if store.has(name):
        return store.get(name)
    outcomes: list[Outcome] = []
    before = environment.load()
    executor.run([Job(name, point, (address, length, layer), seconds)], outcomes.append, lambda *_: None)
    (outcome,) = outcomes
    store.put(
        {
            "schema": record.SCHEMA,
            "id": name,
            "kind": "curve",
            "status": outcome.status,
            "reason": outcome.reason,
            "spec": spec,
            "address": address,
            "figures": outcome.value["figures"] if outcome.value else {},
            "rounds": outcome.value["rounds"] if outcome.value else {},
            "resources": {"threads": 1, "load_before": before, "load_after": environment.load()},
            "environment": environment.describe(),
            "command": f"instar costs {address} --lengths {length} --width {layer.width} --heads {layer.heads}",
            "finished": run.now(),
        }
    )
    return store.get(name)


def point(address: str, length: int, layer: Layer, progress: Callable[[int, float], None]) -> dict[str, Any]:
    """One method at one length, in a process of its own: each figure, of times the shortest round, and all rounds."""
    torch.set_num_threads(1)
    parsed = catalogue.parse(address)
    build = catalogue.Build(parsed.card, catalogue.load(parsed.card), parsed.arguments)
    sizes = {"max_len": length} if parsed.card.capability("max_len") else {}
    with initialising(0):
        mixer = build(layer.width, heads=layer.heads, **sizes)
    x = torch.randn(1, length, layer.width, generator=torch.Generator().manual_seed(0))
    figures: dict[str, float] = {}
    rounds: dict[str, list[float]] = {}
    with torch.no_grad():
        mixer(x[:, :_WARM])
        before = run.peak_rss()
        _, after = mixer(x)
        figures["working_bytes"] = float(max(0, run.peak_rss() - before))
        rounds["forward_seconds"] = _timed(lambda: mixer(x))
        if parsed.card.capability("streaming"):
            figures["state_bytes"] = float(state.nbytes(after))
            rounds["decode_seconds"] = _timed(_next_token(mixer, x[:, :1], after))
    figures["saved_bytes"] = float(saved_bytes(mixer, x))
    rounds["train_seconds"] = _timed(lambda: _train(mixer, x))
    progress(1, 0.0)
    return {"figures": figures | {name: min(found) for name, found in rounds.items()}, "rounds": rounds}


def saved_bytes(mixer: nn.Module, x: Tensor) -> int:
    """Bytes of the storages that autograd keeps between the passes, parameters apart and each storage once."""
    own = {p.untyped_storage().data_ptr() for p in mixer.parameters()}
    kept: dict[int, int] = {}
    alive = []  # a storage that is freed would give its address to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = mixer(x.detach().requires_grad_())
    del y
    return sum(kept.values())


def _next_token(mixer: nn.Module, x: Tensor, start: Any) -> Callable[[], object]:
    """One more token a call. The state moves on, as in generation: from an older handle a cache would be copied each time."""
    now = start

    def call() -> None:
        nonlocal now
        _, now = mixer(x, now)

    return call


def _train(mixer: nn.Module, x: Tensor) -> None:
    mixer.zero_grad(set_to_none=True)
    mixer(x.detach().requires_grad_())[0].sum().backward()


def _timed(call: Callable[[], object]) -> list[float]:
    """Seconds of at least three calls after one apart."""
    call()
    found, start = [], time.perf_counter()
    for number in range(_ROUNDS):
        if number >= 3 and time.perf_counter() - start > _SECONDS:
            break
        before = time.perf_counter()
        call()
        found.append(time.perf_counter() - before)
    return found


def slope(curve: Curve, figure: str) -> float | None:
    """d log value / d log length, one straight line through all points; None for fewer than two."""
    line = [(x, y) for x, y in curve.line(figure) if y > 0]
    return None if len(line) < 2 else statistics.slope([x for x, _ in line], [[y for _, y in line]]).value
