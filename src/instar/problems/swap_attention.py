"""Attention of a trained language model replaced by a mixer: what that costs, before and after a short distillation."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.catalogue import Build
from instar.data import datasets, pretrained
from instar.doors import swap_report
from instar.doors.replacing import Trained, mixer_for, place, trained
from instar.errors import DataError, ShapeError
from instar.interfaces import Data, Items, Mixer, Monitor, Problem
from instar.problems.kept import digest, kept

_ROUNDING = 1e-4
"""A mixer that misses its attention by less has nothing to learn: steps of Adam on rounding errors would only harm it."""


@dataclass
class Subject:
    """The trained model, which is left as it is, and the mixers that are to stand in some of its layers.

    No module itself: torch's tracker of memory would copy the whole model, of which nothing is trained.
    """

    model: nn.Module
    chosen: Sequence[Trained]
    name: str
    mixers: Mapping[str, Mixer]
    untrained: Mapping[str, Mixer] = field(init=False)

    def __post_init__(self) -> None:
        self.untrained = copy.deepcopy(dict(self.mixers))


class SwapAttentionProblem(Problem):
    """Nats a token of WikiText-2 under a model of which some attention layers were replaced, their projections kept.

    Args:
        model: a causal language model, as `data.pretrained` takes it. every: one layer in so many is replaced: 8, 16, ….
        windows: of the test split, and again of validation; train_windows: of the distillation. length: tokens of each.
        lr: of AdamW without decay. A step is one window: the mixers learn ‖ŷ − y‖² / ‖y‖² of what attention gave there.

    Windows do not overlap; those of the distillation come from WikiText-2's validation file, all others from its test file. A
    window is the item of the bootstrap.
    Raises DataError, ShapeError, and what `replace_attention` raises.
    """

    accepts: ClassVar = {Mixer: "subject"}

    def __init__(
        self,
        *,
        model: str = "SmolLM2-135M-Instruct",
        every: int = 8,
        windows: int = 20,
        train_windows: int = 60,
        length: int = 256,
        lr: float = 1e-3,
    ) -> None:
        if min(windows, train_windows, every) < 1 or length < 2 or not 0 < lr < 1:
            raise ShapeError(
                "swap_attention expects 1 window or more of 2 tokens or more, every ≥ 1 and 0 < lr < 1; received "
                f"windows={windows}, train_windows={train_windows}, length={length}, every={every}, lr={lr}."
            )
        self.model, self.every, self.windows, self.train_windows = model, every, windows, train_windows
        self.length, self.lr = length, lr
        self.tokens_per_step = length

    def load(self, seed: int) -> Data:
        """Windows [N, length] of token ids; the seed only draws their order in training."""
        texts = {part: next(p for p in datasets.locate("wikitext2") if part in p.name) for part in ("valid", "test")}
        said = [digest([path.read_text("utf-8")]) for path in texts.values()]
        mark = pretrained.fingerprint(pretrained.folder(self.model))
        recipe = ["swap_attention", 1, mark, self.windows, self.train_windows, self.length, *said]
        found = kept(recipe, lambda: self._tokens(texts["valid"], texts["test"]))
        train, test = (torch.from_numpy(np.array(found[part])) for part in ("train", "test"))
        facts = {
            "name": "wikitext2",
            "item": "window",
            "train_items": self.train_windows,
            "valid_items": self.windows,
            "test_items": self.windows,
            "model": self.model,
        }
        sha256 = digest([self.model, train.numpy(), test.numpy()])
        return Data(train, test[self.windows :], test[: self.windows], sha256, facts)

    def subject(self, build: Build, data: Data, seed: int) -> Subject:
        """The model beside mixers that hold its projections. Raises ModelError for a mixer without such projections."""
        model, _ = pretrained.load(self.model, "causal")
        chosen = trained(model.eval())[self.every - 1 :: self.every]
        if not chosen:
            raise ShapeError(f"every={self.every} leaves no layer to replace: {self.model} has fewer.")
        known = inspect.signature(
            build.cls
        ).parameters  # a plan names every default, and those that the model decides are not asked
        asked = {name: value for name, value in build.arguments.items() if value != known[name].default}
        mixers = {one.path: mixer_for(one, build.card.slug, asked) for one in chosen}
        return Subject(model, chosen, build.card.slug, mixers)

    def fit(
        self,
        subject: Subject,
        train: Tensor,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Distil; mixers that miss by no more than rounding stay as they are. Stopped, it begins again: it takes a minute."""
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        batches = [{"input_ids": train[i][None]} for i in order.tolist()]
        missed = swap_report.errors(subject.model, subject.chosen, subject.mixers, batches[:1])
        learning = [one for one in subject.chosen if missed[one.path] > _ROUNDING]
        if not learning:
            for step in sorted({max(1, steps - 1), steps}):
                if monitor is not None:
                    monitor(step, 0.0)
            return
        for one in learning:
            subject.mixers[one.path].train()
        swap_report.distil(subject.model, learning, subject.mixers, batches, steps, self.lr, monitor)
        for one in learning:
            subject.mixers[one.path].eval()

    def evaluate(self, subject: Subject, split: Tensor) -> dict[str, Items]:
        """nats@swapped, nats@before (without distillation) and nats@model (nothing replaced); relative errors of the layers."""
        batches = [{"input_ids": window[None]} for window in split]
        found = {"nats@model": _nats(subject.model, batches)}
        for name, mixers in (("nats@before", subject.untrained), ("nats@swapped", subject.mixers)):
            with place(subject.model, {k: m.eval() for k, m in mixers.items()}, name=subject.name, knobs={}):
                found[name] = _nats(subject.model, batches)
        for name, mixers in (("error@before", subject.untrained), ("error@swapped", subject.mixers)):
            means = [list(swap_report.errors(subject.model, subject.chosen, mixers, [batch]).values()) for batch in batches]
            found[name] = Items([sum(one) / len(one) for one in means], [1.0] * len(means))
        return found

    def costs(self, subject: Subject) -> dict[str, float]:
        """Parameters of the mixers."""
        return {"mixer_parameters": float(sum(p.numel() for mixer in subject.mixers.values() for p in mixer.parameters()))}

    def _tokens(self, train: Path, test: Path) -> dict[str, NDArray[Any]]:
        _, tokenizer = pretrained.load(self.model, "causal")
        return {
            "train": self._windows(tokenizer, train, self.train_windows),
            "test": self._windows(tokenizer, test, 2 * self.windows),
        }

    def _windows(self, tokenizer: Any, path: Path, count: int) -> NDArray[Any]:
        wanted = count * self.length
        ids = tokenizer(path.read_text("utf-8")[: 12 * wanted], return_tensors="np").input_ids[0, :wanted]
        if len(ids) < wanted:
            raise DataError(f"{path.name} gives {len(ids)} tokens; {count} windows of {self.length} need {wanted}.")
        return np.asarray(ids).reshape(count, self.length)


@torch.no_grad()
def _nats(model: nn.Module, batches: Sequence[swap_report.Batch]) -> Items:
    """−log p of the last T − 1 tokens of each window."""
    totals, weights = [], []
    for batch in batches:
        window = batch["input_ids"]
        said = swap_report.logits(model, batch)[0, :-1].float()
        totals.append(float(F.cross_entropy(said, window[0, 1:], reduction="sum")))
        weights.append(float(window.shape[1] - 1))
    return Items(totals, weights)
