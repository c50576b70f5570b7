"""What a swap of attention costs: the error of each layer and the loss of the model, before and after a short distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.doors.replacing import Trained, mixer_for, place, trained
from instar.doors.swapped import real_tokens
from instar.errors import DataError, DivergedError, ShapeError
from instar.interfaces import Mixer, Monitor
from instar.models.decoder import Decoder
from instar.models.modes import evaluating
from instar.models.refitting import refitting
from instar.receipt import Receipt

Batch = Mapping[str, Tensor]
"""`input_ids` [B, T], and `attention_mask` [B, T] where there is padding."""


@dataclass(frozen=True)
class LayerError:
    """How far a mixer is from the attention that it stands for: ‖ŷ − y‖ / ‖y‖ over real tokens, for the same inputs."""

    path: str
    before: float
    after: float
    """Of the distillation."""


@dataclass(frozen=True)
class SwapReport:
    """What became of a model whose attention was replaced; all on batches that were not trained on."""

    mixer: str
    steps: int
    layers: tuple[LayerError, ...]
    loss: float
    """Nats a token, of the model as it was."""
    loss_before: float
    """Of the swapped model without distillation."""
    loss_after: float
    """With it."""
    mixers: Mapping[str, Mixer] = field(repr=False)
    """The distilled mixers, by the path of what they replace."""
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def place(self, model: nn.Module) -> Receipt:
        """Put the distilled mixers into the model of the report."""
        return place(model, self.mixers, name=self.mixer, knobs=self.knobs)

    def __str__(self) -> str:
        lines = [f"{one.path}: relative error {one.before:.3g} -> {one.after:.3g}" for one in self.layers]
        lines.append(f"loss {self.loss:.4f}; with {self.mixer} {self.loss_before:.4f} -> {self.loss_after:.4f} nats a token")
        return "\n".join(lines)


def swap_report(
    model: nn.Module,
    name: str,
    batches: Sequence[Batch],
    *,
    steps: int = 100,
    lr: float = 1e-3,
    layers: Sequence[int] | None = None,
    **knobs: Any,
) -> SwapReport:
    """Try a swap out: the model itself is left as it was, to the bit.

    Each mixer learns, by AdamW without decay, to give what its attention gives for the inputs that it has in the trained model:
    the sum over layers of ‖ŷ − y‖² / ‖y‖². The last quarter of the batches, at least one, is held out and gives all figures.

    Args:
        model, name, layers, knobs: as of `replace_attention`. batches: at least two, see `Batch`.
        steps: of distillation, a batch each, in order and over again. lr: of AdamW.

    Raises DataError for too few batches, ShapeError, DivergedError, and what `replace_attention` raises. One forward pass of the
    model and one training step of the mixers a step, in the precision of the model.
    """
    if len(batches) < 2:
        raise DataError(
            f"A swap report needs two batches or more, of which the last quarter is held out; received {len(batches)}."
        )
    if steps < 0 or lr <= 0:
        raise ShapeError(f"steps ≥ 0 and lr > 0 expected; received {steps} and {lr}.")
    chosen = trained(model, layers)
    cut = len(batches) - max(1, len(batches) // 4)
    fit, held = batches[:cut], batches[cut:]
    with evaluating(model):
        mixers = {one.path: mixer_for(one, name, knobs) for one in chosen}
        loss, before = loss_of(model, held), errors(model, chosen, mixers, held)
        with place(model, mixers, name=name, knobs=knobs):
            loss_before = loss_of(model, held)
        distil(model, chosen, mixers, fit, steps, lr)
        after = errors(model, chosen, mixers, held)
        with place(model, mixers, name=name, knobs=knobs):
            loss_after = loss_of(model, held)
    told = tuple(LayerError(path, before[path], after[path]) for path in mixers)
    for one in chosen:
        mixers[one.path].train(one.module.training)
    return SwapReport(name, steps, told, loss, loss_before, loss_after, mixers, knobs)


def distil(
    model: nn.Module,
    chosen: Sequence[Trained],
    mixers: Mapping[str, Mixer],
    batches: Sequence[Batch],
    steps: int,
    lr: float,
    monitor: Monitor | None = None,
) -> None:
    """Train the mixers of the chosen layers, which stand outside of the model, on what its attention does."""
    learning = [p for one in chosen for p in mixers[one.path].parameters()]
    optimiser = torch.optim.AdamW(learning, lr=lr, weight_decay=0.0)
    for step in range(steps):
        seen = observe(model, chosen, batches[step % len(batches)])
        with torch.enable_grad(), refitting(nn.ModuleList(mixers[one.path] for one in chosen), step):
            total = torch.stack([_missed(mixers[path], *one) for path, one in seen.items()]).sum()
        if not bool(total.isfinite()):
            raise DivergedError(f"The distillation diverged at step {step}: try a smaller lr than {lr}.")
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        if monitor is not None and monitor(step + 1, float(total.detach())):
            return


@torch.no_grad()
def errors(
    model: nn.Module, chosen: Sequence[Trained], mixers: Mapping[str, Mixer], batches: Sequence[Batch]
) -> dict[str, float]:
    """Path -> ‖ŷ − y‖ / ‖y‖ over all batches."""
    missed = dict.fromkeys(mixers, 0.0)
    size = dict.fromkeys(mixers, 0.0)
    for batch in batches:
        for path, (x, mask, y) in observe(model, chosen, batch).items():
            told = mixers[path](x, mask=mask)[0]
            missed[path] += float(_real((told - y).double(), mask).square().sum())
            size[path] += float(_real(y.double(), mask).square().sum())
    return {path: (missed[path] / max(size[path], 1e-30)) ** 0.5 for path in mixers}


@torch.no_grad()
def observe(model: nn.Module, chosen: Sequence[Trained], batch: Batch) -> dict[str, tuple[Tensor, Tensor | None, Tensor]]:
    """Path -> what the attention there reads [B, T, D], which tokens are real, and what it gives [B, T, D]."""
    seen: dict[str, tuple[Tensor, Tensor | None, Tensor]] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: Any, given: dict[str, Any], output: Any) -> None:
            x = given["hidden_states"] if "hidden_states" in given else args[0]
            mask = given["mask"] if "mask" in given else real_tokens(given.get("attention_mask"), x.shape[1])
            seen[path] = x, mask, output[0]

        return hook

    hooks = [one.module.register_forward_hook(watch(one.path), with_kwargs=True) for one in chosen]
    try:
        logits(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@torch.no_grad()
def loss_of(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Cross-entropy of the next token in nats, over real tokens after real ones. Raises DataError where there is none."""
    total, count = 0.0, 0
    for batch in batches:
        tokens, mask = batch["input_ids"], batch.get("attention_mask")
        wanted = tokens[:, 1:]
        if mask is not None:
            wanted = wanted.masked_fill(~(mask[:, 1:].bool() & mask[:, :-1].bool()), -100)
        said = logits(model, batch)[:, :-1].float()
        total += float(F.cross_entropy(said.flatten(0, 1), wanted.flatten(), reduction="sum"))
        count += int((wanted != -100).sum())
    if not count:
        raise DataError("The held-out batches have no real token after another one.")
    return total / count


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """[B, T, vocabulary], of either kind of model."""
    mask = batch.get("attention_mask")
    if isinstance(model, Decoder):
        found: Tensor = model(batch["input_ids"], mask=None if mask is None else mask.bool())[0]
        return found
    found = model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).logits
    return found


def _missed(mixer: Mixer, x: Tensor, mask: Tensor | None, y: Tensor) -> Tensor:
    told = mixer(x, mask=mask)[0]
    return _real((told - y).float(), mask).square().sum() / _real(y.float(), mask).square().sum().clamp_min(1e-30)


def _real(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x[mask]
