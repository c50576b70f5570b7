"""A stored language model with an adapter trained on pairs and merged into it, as the next stored version."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.adapters import merge_and_unload, save
from instar.adapters.attaching import arguments, slug
from instar.bench.seeds import initialising, stream
from instar.data import pretrained
from instar.data.e2e import Asked, prompts
from instar.errors import DataError, ShapeError
from instar.gate.result import Result
from instar.interfaces import Adapter, Monitor
from instar.problems import adapting
from instar.problems.generate_text import IGNORED, Writer
from instar.receipt import updating
from instar.receipts.facts import Facts
from instar.release import cases, gating, writing

_TESTED = 200
"""Held-out prompts that are scored, at most."""
_SCORED = 16


@dataclass(frozen=True)
class Adapted:
    """What was trained, and what it did."""

    folder: Path
    receipt: Facts
    pairs: int
    """That it was trained on."""
    trained: int
    """Numbers that were trained."""
    before: dict[str, float]
    """Of held-out prompts: `nll`, nats a token of what should follow, and its `perplexity`."""
    after: dict[str, float]
    gate: Result | None


def adapt(
    name: str | Path,
    data: str,
    adapter: Adapter,
    out: str | Path,
    *,
    where: str | Sequence[str] | None = None,
    steps: int = 200,
    batch: int = 8,
    length: int = 256,
    seed: int = 0,
    gated: bool = True,
    command: str = "",
    monitor: Monitor | None = None,
    progress: Callable[[str], Any] = lambda name: None,
) -> Adapted:
    """Train an adapter on prompts and what should follow, merge it, and write the result with its receipt and the gate.

    Args:
        name: a causal model, as in `pretrained.folder`; it stays as it is. data: JSONL with prompt and target, or e2e; a tenth of
            the prompts is held out and scored before and after.
        where: layers, as `Adapter.attach`. steps, batch: of training at the rate of the method. length: most tokens of a pair.
        gated: whether both versions are asked how texts go on that have nothing to do with the data (`cases`).

    The adapter alone is kept in OUT/adapter, in the layout of `peft`. Raises DataError, AdapterError, ModelError, OutputError,
    DivergedError; nothing is written then.
    """
    if min(steps, batch) < 1 or length < 8:
        raise ShapeError(
            f"adapt expects steps and batch of 1 or more and length of 8 or more; received {steps}, {batch}, {length}."
        )
    writing.vacant(Path(out))
    found = prompts(data)
    pairs = [(one.prompt, target) for one in found.train for target in one.targets]
    tested = found.test[:_TESTED]
    source = pretrained.folder(name)
    model, tokenizer = pretrained.load(source, "causal")
    writer = Writer(tokenizer, length)
    if len(pairs) < batch:
        raise DataError(f"{data} has {len(pairs)} pairs to train on; a step takes {batch}. Give --batch a smaller number.")
    before = _score(model, writer, tested)
    settings = {**arguments(adapter), "data": found.name, "pairs": len(pairs), "steps": steps, "batch": batch, "seed": seed}
    with tempfile.TemporaryDirectory() as aside:
        with updating(
            model, method=slug(adapter), title=f"{slug(adapter)} on {found.name}", settings=settings, changes=()
        ) as update:
            with initialising(seed):
                adapter.attach(model, where)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            _train(model, writer, pairs, steps, batch, seed, monitor)
            after = _score(model, writer, tested)
            save(model, Path(aside) / writing.ADAPTER)
            merge_and_unload(model)
        with writing.version(out, source) as folder:
            writing.fill(model, folder, source=source, receipts=[update.receipt])
            shutil.copytree(Path(aside) / writing.ADAPTER, folder / writing.ADAPTER)
    del model
    judged = None
    if gated:
        judged = gating.gate(source, Path(out), cases.of(source, 100), command=command, progress=progress)
    return Adapted(Path(out), update.receipt.facts, len(pairs), trained, before, after, judged)


def _train(
    model: nn.Module, writer: Writer, pairs: Sequence[tuple[str, str]], steps: int, size: int, seed: int, monitor: Monitor | None
) -> None:
    def batch(index: int) -> tuple[Tensor, Tensor, Tensor]:
        epoch, place = divmod(index, len(pairs) // size)
        order = torch.randperm(len(pairs), generator=stream(seed, f"epoch/{epoch}"))
        return writer.batch([writer.row(*pairs[i]) for i in order[place * size : (place + 1) * size].tolist()])

    adapting.train(
        model, batch, lambda module, rows: _nats(module, rows).sum() / _count(rows), steps=steps, seed=seed, monitor=monitor
    )


@torch.no_grad()
def _score(model: nn.Module, writer: Writer, asked: Sequence[Asked]) -> dict[str, float]:
    rows = [writer.row(one.prompt, one.targets[0]) for one in asked]
    batches = [writer.batch(rows[i : i + _SCORED]) for i in range(0, len(rows), _SCORED)]
    model.eval()
    nll = sum(float(_nats(model, part).double().sum()) for part in batches) / sum(map(_count, batches))
    return {"nll": nll, "perplexity": math.exp(nll)}


def _nats(model: nn.Module, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """−log p of every target token, 0 elsewhere."""
    ids, mask, targets = rows
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), targets[:, 1:], ignore_index=IGNORED, reduction="none")


def _count(rows: tuple[Tensor, Tensor, Tensor]) -> int:
    return int((rows[2][:, 1:] != IGNORED).sum())
