"""The training loop: plain, device-agnostic, and resumable to the bit."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instar import files
from instar.bench.parallel import Group, Parallel
from instar.bench.seeds import derive
from instar.errors import CheckpointError, DivergedError, ShapeError
from instar.interfaces import Monitor, Optimizer
from instar.models import checkpoint as tensors_file
from instar.models.packing import pack, unpack
from instar.models.refitting import refitting

Schedule = Literal["cosine", "constant"]
Precision = Literal["float32", "bf16"]
FILE = "training.safetensors"
_PREFIX = "optimiser/"


def fit(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int,
    lr: float,
    schedule: Schedule = "cosine",
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    groups: list[dict[str, Any]] | None = None,
    precision: Precision = "float32",
    accumulate: int = 1,
    seed: int = 0,
    monitor: Monitor | None = None,
    checkpoint: Path | None = None,
    checkpoint_every_seconds: float = 60.0,
    parallel: Parallel = "none",
) -> None:
    """Train `model` in place by `descend` with AdamW.

    Args:
        lr, weight_decay, betas: of AdamW; norms and biases do not decay. groups: parameter groups, each with its own peak rate
            `lr` and `weight_decay`, where one for all does not suit; not with `fsdp`, whose parameters are made here.
        parallel: "ddp" or "fsdp" train one model by the processes of torchrun, see `instar.bench.parallel`; step s then uses the
            micro-batches of all of them, and only rank 0 calls the monitor and writes. All others: as of `descend`.
    """
    if not lr > 0:
        raise ShapeError(f"fit expects lr > 0; received {lr}.")
    if parallel == "fsdp" and groups is not None:
        raise ShapeError("fit expects no groups with parallel='fsdp': their parameters are replaced by shards.")
    together = Group(parallel)
    together.prepare(model)
    descend(
        model,
        adamw(model, lr=lr, weight_decay=weight_decay, betas=betas, groups=groups),
        batch,
        loss,
        steps=steps,
        schedule=schedule,
        clip=clip,
        precision=precision,
        accumulate=accumulate,
        seed=seed,
        monitor=monitor,
        checkpoint=checkpoint,
        checkpoint_every_seconds=checkpoint_every_seconds,
        together=together,
    )


def descend(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int,
    schedule: Schedule = "cosine",
    clip: float = 1.0,
    precision: Precision = "float32",
    accumulate: int = 1,
    seed: int = 0,
    monitor: Monitor | None = None,
    checkpoint: Path | None = None,
    checkpoint_every_seconds: float = 60.0,
    together: Group | None = None,
) -> None:
    """Train `model` in place for `steps` steps of any optimiser, with warm-up, cosine decay to a tenth, and gradient clipping.

    What a module learns otherwise, such as hash functions, is fitted when it is due: see `instar.models.refitting`. An
    `instar.interfaces.Optimizer` is told the loss of each step.

    Args:
        optimiser: of the model's parameters; the rates of its groups are the peaks.
        batch: the data of micro-batch n; a pure function of n, so that a resumed run sees what an uninterrupted one sees.
            Step s uses the micro-batches s · accumulate … (s + 1) · accumulate - 1.
        loss: the mean loss of a micro-batch. clip: the largest norm of all gradients together.
        precision: "bf16" runs forward and loss under autocast; weights and optimiser stay as they are.
        seed: of dropout and its like: each step draws from a stream of its own.
        monitor: called with (steps done, loss) after each step; True stops training (and saves).
        checkpoint: a folder; progress is saved there every `checkpoint_every_seconds` and at the end, and found there again.
            Exact for parameters and buffers of `state_dict`, on the same build, threads and CPU.
        together: processes that train this model, which `Group.prepare` has made one.

    Raises DivergedError for a loss that is not finite, CheckpointError for a checkpoint of another model or other settings.
    """
    if steps < 0 or accumulate < 1 or precision not in ("float32", "bf16"):
        raise ShapeError(
            "Training expects steps ≥ 0, accumulate ≥ 1 and precision float32 or bf16; received "
            f"{steps}, {accumulate}, {precision}."
        )
    together = together or Group("none")
    peaks = [group["lr"] for group in optimiser.param_groups]
    parts = accumulate * together.world
    settings = {
        **{"steps": steps, "schedule": schedule, "clip": clip, "precision": precision, "accumulate": parts, "seed": seed},
        **{"optimiser": type(optimiser).__name__, "groups": [_plain(group) for group in optimiser.param_groups]},
    }
    path = files.folder(checkpoint) / FILE if checkpoint is not None else None
    first = _resume(path, model, optimiser, settings, together) if path is not None and path.exists() else 0
    device = next(model.parameters()).device
    training, saved = model.training, time.monotonic()
    model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for step in range(first, steps):
                _seed(derive(seed, f"step/{step}"), device)
                for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                    group["lr"] = peak * rate(step, steps, schedule)
                value = 0.0
                for part in range(together.rank, parts, together.world):
                    if part:
                        _seed(derive(seed, f"step/{step}/{part}"), device)
                    half = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
                    with half, refitting(model, step) if part == 0 else contextlib.nullcontext():
                        term = loss(model, batch(step * parts + part)) / accumulate
                    term.backward()
                    value += float(term.detach())
                value = together.mean(value, device)
                if not math.isfinite(value):
                    raise DivergedError(
                        f"The loss is {value} at step {step + 1} of {steps}; smaller rates than {peaks} may help."
                    )
                together.average_gradients(model.parameters())
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
                if isinstance(optimiser, Optimizer):
                    optimiser.observe(value)
                optimiser.zero_grad()
                stop = together.agreed(together.rank == 0 and monitor is not None and bool(monitor(step + 1, value)), device)
                due = together.agreed(time.monotonic() - saved > checkpoint_every_seconds, device)
                if path is not None and (stop or due or step + 1 == steps):
                    _save(path, model, optimiser, step + 1, settings, together)
                    saved = time.monotonic()
                if stop:
                    return
    finally:
        model.train(training)


def rate(step: int, steps: int, schedule: Schedule) -> float:
    """The learning rate at `step` over its peak: linear warm-up (a tenth of the steps, at most 100), then the schedule."""
    warm = min(100, max(1, steps // 10))
    rise = min(1.0, (step + 1) / warm)
    if schedule == "constant":
        return rise
    done = max(0.0, (step + 1 - warm) / max(1, steps - warm))
    return rise * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    groups: list[dict[str, Any]] | None = None,
) -> torch.optim.AdamW:
    """AdamW whose decay spares norms, biases and everything else of fewer than two axes; or of the given groups.

    torch's fused kernel: three to five times as fast on a processor as its other forms, which complex numbers are left with.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    made = groups or [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    made = [group for group in made if group["params"]]
    real = all(p.is_floating_point() for group in made for p in group["params"])
    return torch.optim.AdamW(made, lr=lr, weight_decay=0.0, betas=betas, fused=real)


def _seed(seed: int, device: torch.device) -> None:
    """Of torch's generators. Where only the processor's is drawn from, without a trace of the stack for a GPU's that may come."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """What decides the steps of a group: its numbers and names."""
    return {key: value for key, value in group.items() if key not in ("params", "initial_lr")}


def _save(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, settings: dict[str, Any], together: Group
) -> None:
    """One file, replaced at once: model, optimiser, and (as its metadata) the step and the settings."""
    tensors, tree = pack(together.whole(optimiser.state_dict()), _PREFIX)
    tensors |= {f"model/{name}": together.whole(tensor) for name, tensor in model.state_dict().items()}
    facts = {"step": str(step), "settings": json.dumps(settings, sort_keys=True), "optimiser": tree}
    if together.rank == 0:
        tensors_file.write(path, tensors, facts)
    together.clear()


def _resume(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, settings: dict[str, Any], together: Group) -> int:
    """Load a checkpoint into model and optimiser, and return the steps done."""
    tensors, metadata = tensors_file.read(path)
    asked, found = json.dumps(settings, sort_keys=True), metadata.get("settings", "none")
    if found != asked:
        raise CheckpointError(f"{path} was made with other settings: {found}, asked were {asked}. Delete it to start again.")
    step = metadata.get("step", "")
    if not step.isdecimal() or not 0 < int(step) <= settings["steps"]:
        raise CheckpointError(f"{path} says that {step!r} of {settings['steps']} steps are done. Delete it to start again.")
    weights = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    tensors_file.compare(path, weights, model.state_dict())
    state = unpack(metadata.get("optimiser", "null"), tensors)
    _fits(path, state, optimiser)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for index, entry in state.get("state", {}).items():
        entry.update({k: together.part(t, parameters[index]) for k, t in entry.items() if isinstance(t, Tensor)})
    try:
        optimiser.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the optimiser's state does not fit ({error}). Delete it to start again.") from error
    now = model.state_dict()
    model.load_state_dict({name: together.part(tensor, now[name]) for name, tensor in weights.items()})
    return int(step)


def _fits(path: Path, state: Any, optimiser: torch.optim.Optimizer) -> None:
    """Raise CheckpointError where a tensor that belongs to a parameter has neither its shape nor none."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    entries = state.get("state", {}) if isinstance(state, dict) else None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} holds no state of an optimiser. Delete it to start again.")
    for index, found in entries.items():
        known = isinstance(index, int) and 0 <= index < len(parameters) and isinstance(found, dict)
        if not known or any(isinstance(t, Tensor) and t.dim() and t.shape != parameters[index].shape for t in found.values()):
            raise CheckpointError(f"{path}: the entry {index!r} does not fit this model's optimiser. Delete it to start again.")
