"""Training a further adapter of the new version, from where its task's adapter stands: what most updaters share."""

from __future__ import annotations

import abc
import contextlib
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from instar.adapters.attached import active, own_layers, parameters, require, require_unmerged
from instar.adapters.attaching import attach_name, place
from instar.bench.fit import fit
from instar.bench.seeds import initialising, stream
from instar.compat.muscle_loss import IGNORED
from instar.compat.teacher import Teacher, logits
from instar.errors import AdapterError, DataError, ModelError, ShapeError
from instar.interfaces import Answering, Monitor, Updater, Versions
from instar.problems.language import device_of

COMPATIBLE = "compatible"
"""What the further adapter is called."""

Of = Literal["old", "new"]
Part = tuple[Tensor, Tensor, Tensor, Sequence[int]]
"""Ids and mask [B, T], targets [B, T − 1], places of the rows."""


class Distilling(Updater):
    """Trains a copy of the task's adapter by `loss`; the rate is the adapter's own unless `lr` says another."""

    teachers: ClassVar[tuple[Of, ...]] = ()
    """Whose logits the loss reads."""
    lr: float | None
    batch: int
    answer_only: bool
    keep: int | None = None

    @abc.abstractmethod
    def loss(self, student: Tensor, teachers: Mapping[Of, Tensor], targets: Tensor) -> Tensor:
        """Of logits [B, T, V], those of each of `teachers`, and targets [B, T]."""

    def update(
        self,
        versions: Versions,
        *,
        steps: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        folder: Path | None = None,
    ) -> Answering:
        """See `interfaces.Updater.update`. Teachers run once over the rows; the old version is not needed afterwards."""
        task = checked(versions)
        rows, model = versions.rows, versions.new
        with contextlib.ExitStack() as stack:
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory())) if folder is None else folder
            who = {"old": versions.old, "new": model}
            read = {of: Teacher(who[of], rows, versions.fill, kept / of, keep=self.keep) for of in self.teachers}

            def loss(module: nn.Module, part: Part) -> Tensor:
                ids, mask, targets, places = part
                found = module(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
                said = {of: one(places, targets.shape[1]).to(found.device) for of, one in read.items()}
                return self.loss(found, said, targets)

            portion = functools.partial(batch, versions, size=self.batch, seed=seed, answer_only=self.answer_only)
            beside(model, task, COMPATIBLE, seed)
            train(model, portion, loss, steps=steps, seed=seed, lr=self.lr, monitor=monitor, folder=folder)
            self.finish(model, task)
        return Answering(lambda ids, mask: logits(model, ids, mask))

    def finish(self, model: nn.Module, task: str) -> None:
        """What happens to the trained adapter at last."""


def settings(lr: float | None, batch: int) -> None:
    """Raise ShapeError unless these can be trained with."""
    if (lr is not None and not 0 < lr < float("inf")) or batch < 1:
        raise ShapeError(
            f"An updater expects lr above 0 (or None: the adapter's own) and batch of 1 or more; received {lr}, {batch}."
        )


def checked(versions: Versions) -> str:
    """The name of the adapter of the task. Raises as `interfaces.Updater.update` says."""
    if not versions.rows:
        raise DataError("There are no rows: an update learns from what the task's adapter was trained on.")
    task = active(versions.new)
    if task is None:
        raise AdapterError("The new version has no active adapter: attach one, train it on the task, then update.")
    require_unmerged(versions.new, "update")
    one = torch.zeros(1, 1, dtype=torch.int64)
    sizes = [logits(model, one, one + 1).shape[-1] for model in (versions.old, versions.new)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"The old version predicts {sizes[0]} tokens, the new one {sizes[1]}: their logits cannot be compared. Both versions "
            "must share a tokenizer and its vocabulary."
        )
    if (largest := max(max((*asked, *answer), default=0) for asked, answer in versions.rows)) >= sizes[0]:
        raise ModelError(f"The rows hold the token {largest}; both versions know {sizes[0]}. Use their tokenizer.")
    return task


def beside(model: nn.Module, task: str, name: str, seed: int, *, fresh: bool = False) -> None:
    """Attach a further adapter of the kind and places of the task's one, with its numbers (or fresh ones), and make it active."""
    named = require(model, task)
    attach_name(model, name)
    with initialising(seed):
        place(named.adapter, model, named.layers, named.saved, name)
    if not fresh:
        for layer in own_layers(model, name).values():
            layer.adapters[name].load_state_dict(layer.adapters[task].state_dict())


def batch(versions: Versions, number: int, *, size: int, seed: int, answer_only: bool = False) -> Part:
    """Batch `number` of rows drawn without replacement in an epoch, padded on the right, where the new version is."""
    rows, device = versions.rows, device_of(versions.new)
    size = min(size, len(rows))
    epoch, part = divmod(number, len(rows) // size)
    places = torch.randperm(len(rows), generator=stream(seed, f"epoch/{epoch}"))[part * size : (part + 1) * size].tolist()
    width = max(len(rows[i][0]) + len(rows[i][1]) for i in places)
    ids = torch.full((size, width), versions.fill)
    mask, targets = torch.zeros_like(ids), torch.full((size, width - 1), IGNORED)
    for b, i in enumerate(places):
        whole = torch.tensor([*rows[i][0], *rows[i][1]])
        first = max(1, len(rows[i][0])) if answer_only else 1
        ids[b, : len(whole)] = whole
        mask[b, : len(whole)] = 1
        targets[b, first - 1 : len(whole) - 1] = whole[first:]
    return ids.to(device), mask.to(device), targets.to(device), places


def train(
    model: nn.Module,
    batch: Callable[[int], Part],
    loss: Callable[[nn.Module, Part], Tensor],
    *,
    steps: int,
    seed: int,
    lr: float | None,
    monitor: Monitor | None,
    folder: Path | None,
) -> None:
    """AdamW without weight decay over the active adapter, as it is trained for a task."""
    name = active(model)
    assert name is not None
    rate = require(model, name).adapter.lr if lr is None else lr
    fit(
        model,
        batch,
        loss,
        steps=steps,
        lr=rate,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        groups=[{"params": parameters(model, name), "lr": rate}],
        seed=seed,
        monitor=monitor,
        checkpoint=folder,
    )


def cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """Of real tokens, the mean."""
    return nn.functional.cross_entropy(student.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def nats(model: nn.Module, part: Part) -> Tensor:
    """Cross-entropy of a batch: what adapters of a task are trained by."""
    ids, mask, targets, _ = part
    return cross_entropy(model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float(), targets)
