"""A plain training loop: any module, any batch function, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from instar.errors import CheckpointError, DivergedError, ShapeError
from instar.interfaces import Monitor
from instar.models import checkpoint as files

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)


def fit(
    model: M,
    batch: Callable[[int], B],
    loss: Callable[[M, B], Tensor],
    *,
    steps: int,
    lr: float,
    warmup: int | None = None,
    schedule: Literal["cosine", "constant"] = "cosine",
    final_lr: float = 0.1,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    accumulate: int = 1,
    precision: Literal["float32", "bf16"] = "float32",
    monitor: Monitor | None = None,
    checkpoint: Path | None = None,
    every_seconds: float = 60.0,
) -> int:
    """Train `model` in place with AdamW for `steps` steps; returns the number of steps done (fewer if the monitor stops it).

    Args:
        batch: `batch(i)` gives micro-batch i (step s uses s·accumulate …); a function of i alone, hence exact resumption.
        loss: the mean loss of a micro-batch.
        lr: the peak, reached linearly over `warmup` steps (default: a twentieth, at most 100), then down to final_lr · lr.
        weight_decay: of matrices only; vectors and scalars (norms, biases) have none.
        clip: the largest norm of the gradient; 0 for none.
        precision: "bf16" runs forward and loss under autocast; weights and optimiser stay float32.
        monitor: told (step, loss) after each step, counted from 1; returning True stops.
        checkpoint: a folder; progress is saved there at most every `every_seconds` and taken up again when it exists.

    Raises DivergedError for a loss that is not finite, CheckpointError for another run's checkpoint, ShapeError for bad settings.
    """
    if steps < 0 or accumulate < 1 or lr <= 0:
        raise ShapeError(f"fit expects steps ≥ 0, accumulate ≥ 1 and lr > 0; received {steps}, {accumulate} and {lr}.")
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    # torch's `foreach` form does not depend on where tensors are cut.
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=betas, foreach=True)
    warm = min(100, max(1, steps // 20)) if warmup is None else warmup
    identity = {"steps": steps, "lr": lr, "warmup": warm, "schedule": schedule, "accumulate": accumulate, "precision": precision}
    start = _resume(checkpoint, model, optimiser, trained, identity) if checkpoint is not None else 0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    saved, training = time.monotonic(), model.training
    model.train()
    try:
        for step in range(start, steps):
            rate = lr * _factor(step, steps, warm, schedule, final_lr)
            for group in optimiser.param_groups:
                group["lr"] = rate
            total = 0.0
            for part in range(accumulate):
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                    value = loss(model, batch(step * accumulate + part)) / accumulate
                value.backward()
                total += float(value.detach())
            if not math.isfinite(total):
                raise DivergedError(f"The loss is {total} at step {step + 1} of {steps} (learning rate {rate:.3g}).")
            if clip:
                nn.utils.clip_grad_norm_(trained, clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if checkpoint is not None and time.monotonic() - saved >= every_seconds:
                _save(checkpoint, model, optimiser, trained, {**identity, "step": step + 1})
                saved = time.monotonic()
            if monitor is not None and monitor(step + 1, total):
                return step + 1
        return steps
    finally:
        model.train(training)


def _factor(step: int, steps: int, warmup: int, schedule: str, final: float) -> float:
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def _save(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, trained: Sequence[Tensor], facts: dict[str, Any]
) -> None:
    """Model and optimiser in one file, and the step inside it, so that no two files can disagree."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, parameter in enumerate(trained):
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{index}.{key}"] = torch.as_tensor(value)
    seen: dict[int, str] = {}
    tensors = {n: t.clone() if seen.setdefault(t.data_ptr(), n) != n else t for n, t in tensors.items()}  # tied weights
    tensors["step"] = torch.tensor(facts["step"])
    files.save(folder, facts, tensors)


def _resume(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, trained: Sequence[Tensor], identity: dict[str, Any]
) -> int:
    """The step to go on from: 0 without a checkpoint. Raises CheckpointError for one of another run."""
    if not (folder / files.CONFIG).exists():
        return 0
    config, tensors = files.read(folder)
    different = {key: config.get(key) for key in identity if config.get(key) != identity[key]}
    if different:
        raise CheckpointError(f"{folder} holds another run's progress ({different}); delete it to start anew.")
    own = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    files.load_into(model, own, str(folder))
    for index, parameter in enumerate(trained):
        prefix = f"optimiser.{index}."
        state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for key, value in state.items():
            state[key] = value if key == "step" else value.to(parameter.device)
        if state:
            optimiser.state[parameter] = state
    return int(tensors["step"])
