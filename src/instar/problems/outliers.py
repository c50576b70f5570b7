"""Do outliers emerge in training, and does a remedy keep them away: norms, kurtosis, sinks, and the loss in eight bits."""

from __future__ import annotations

import itertools
import pydoc_data.topics
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.fit import fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.compression import observing
from instar.compression.outliers import kurtosis
from instar.compression.static_ranges import calibrate, quantised
from instar.data import blocks, datasets
from instar.data.backcopy import Backcopy, backcopy
from instar.errors import ShapeError
from instar.interfaces import Data, Items, Mixer, Monitor, Problem
from instar.mixers.softmax import Softmax
from instar.problems.kept import digest
from instar.problems.language import Subject, device_of, evaluating

CALIBRATION = 16
"""Batches that the static ranges are found on, drawn apart from training and test."""


class OutliersProblem(Problem):
    """A small decoder learns to continue a Markov chain, and to copy behind triggers: elsewhere attention has nothing to do.

    Items are test rows. max_norm is max |x| of a row in the tensor where its mean over rows is largest, kurtosis the mean over
    tensors, both over outputs of linear layers and norms and over residual sums; sink_mass the attention on the first token, of
    queries in the second half that need nothing, by the head that attends to it most. nats@… is the loss, with weights and
    activations as they are or in 8 or 6 bits (`compression.static_ranges`): static scales for each tensor, or a scale for each
    token found when it comes. gap@… is what the bits add.

    Args:
        data: a text file or a data set of the catalogue, whose bytes make the chain; None for the text that ships in Python.
        triggers: how many of the most frequent bytes ask for a copy.
        length: tokens in a row behind BOS. batch: rows a step. width, depth, heads: of the decoder. lr: peak learning rate.
        test_rows: in the validation and in the test split.

    One block and one head show the effect soonest: with more, other blocks do the work of the gate. Raises DataError, ShapeError.
    """

    accepts: ClassVar = {Mixer: "decoder"}

    def __init__(
        self,
        *,
        data: str | None = None,
        triggers: int = 4,
        length: int = 64,
        batch: int = 32,
        width: int = 64,
        depth: int = 1,
        heads: int = 1,
        lr: float = 3e-3,
        test_rows: int = 256,
    ) -> None:
        if min(triggers, batch, width, depth, heads, test_rows) < 1 or length < 4:
            raise ShapeError(
                "outliers expects positive sizes and length ≥ 4; received "
                f"triggers={triggers}, length={length}, batch={batch}, width={width}, depth={depth}, heads={heads}, "
                f"test_rows={test_rows}."
            )
        self.data, self.triggers, self.length, self.batch = data, triggers, length, batch
        self.width, self.depth, self.heads, self.lr, self.test_rows = width, depth, heads, lr, test_rows
        self.tokens_per_step = batch * length
        self._chain: Backcopy | None = None

    def load(self, seed: int) -> Data:
        """The same rows for every seed, so that seeds pair over items; training rows are made as they are needed."""
        chain = self.chain()
        valid, test = (chain.rows(self.test_rows, self.length, stream(0, name)) for name in ("valid", "test"))
        facts = {
            **{"name": f"bigram backcopy over {self.data or 'pydoc_data.topics'}", "item": "row", "train_items": None},
            **{"valid_items": self.test_rows, "test_items": self.test_rows, "vocabulary": chain.bos + 1},
            "least_nats": float(chain.nats(test).mean()),
        }
        recipe = digest([chain.following.numpy(), f"{self.triggers}/{self.length}/{self.test_rows}"])
        return Data(chain, valid, test, recipe, facts)

    def chain(self) -> Backcopy:
        """What makes the rows."""
        if self._chain is None:
            if self.data is None:
                text = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
                sources = [np.frombuffer(text.encode(), dtype=np.uint8)]
            elif self.data in datasets.names():
                sources = [blocks.open_text(path) for path in datasets.locate(self.data)]
            else:
                sources = [blocks.open_text(Path(self.data))]
            self._chain = backcopy(sources, self.triggers)
        return self._chain

    def decoder(self, build: Build, data: Data, seed: int) -> Subject:
        """The mixer in a small decoder."""
        return Subject(build, vocabulary=self.chain().bos + 1, width=self.width, depth=self.depth, heads=self.heads)

    def fit(
        self,
        subject: Subject,
        train: Backcopy,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Fresh rows at every step; loss in nats per token."""

        def batch(index: int) -> Tensor:
            return train.rows(self.batch, self.length, stream(seed, f"data/{index}"))

        def loss(model: nn.Module, rows: Tensor) -> Tensor:
            return _nats(model, rows.to(device_of(model))).mean()

        fit(subject, batch, loss, steps=steps, lr=self.lr, seed=seed, monitor=monitor, checkpoint=checkpoint)

    def evaluate(self, subject: Subject, split: Tensor) -> dict[str, Items]:
        """All metrics, item by item; sink_mass where the mixer tells its attention."""
        rows = split.to(device_of(subject))
        calibration = [
            self.chain().rows(self.batch, self.length, stream(0, f"calibration/{index}"))[:, :-1].to(rows.device)
            for index in range(CALIBRATION)
        ]
        ranges = calibrate(subject, calibration)
        with evaluating(subject):
            plain = _nats(subject, rows).double().sum(1)
            found = {**_shape(subject, rows[:, :-1]), **self._sinks(subject, rows[:, :-1])}
            found["nats@float"] = self._items(plain)
            for bits, (name, given) in itertools.product((8, 6), (("static", ranges), ("token", None))):
                with quantised(subject, given, weight_bits=bits, activation_bits=bits):
                    coarse = _nats(subject, rows).double().sum(1)
                found |= {f"nats@{name}_{bits}": self._items(coarse), f"gap@{name}_{bits}": self._items(coarse - plain)}
        return found

    def costs(self, subject: Subject) -> dict[str, float]:
        """Parameters of the mixer, and closed forms."""
        figures = {"mixer_parameters": float(sum(p.numel() for p in subject.mixer.parameters()))}
        forward = subject.forward_flops(self.length)
        return figures if forward is None else {**figures, "train_flops_per_token": 3 * forward / self.length}

    def _items(self, totals: Tensor) -> Items:
        return Items(totals.tolist(), [float(self.length)] * len(totals))

    def _sinks(self, subject: Subject, tokens: Tensor) -> dict[str, Items]:
        """Attention on the first token by the head whose mean is largest."""
        heads: list[Tensor] = []

        def look(mixer: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(mixer, Softmax)
            heads.extend(mixer.attention(given[0])[:, :, :, 0].double().unbind(1))

        if not isinstance(subject.mixer, Softmax):
            return {}
        idle = tokens >= self.triggers
        idle[:, : self.length // 2] = False
        hooks = [block.mixer.register_forward_pre_hook(look) for block in subject.blocks]  # type: ignore[union-attr]
        try:
            subject(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        totals = max(((mass * idle).sum(1) for mass in heads), key=lambda total: float(total.sum()))
        return {"sink_mass": Items(totals.tolist(), idle.sum(1).double().tolist())}


def _nats(model: nn.Module, rows: Tensor) -> Tensor:
    """−log p of each token behind BOS [B, T]."""
    logits, _ = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1)


def _shape(model: nn.Module, tokens: Tensor) -> dict[str, Items]:
    """max_norm and kurtosis of each row."""
    norms: dict[str, Tensor] = {}
    peaks: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> Tensor:
        if not name.startswith("embedding") and (name.endswith(".output") or "norm" in name):
            norms[name], peaks[name] = x.abs().amax((1, 2)).double(), torch.tensor([kurtosis(row) for row in x])
        return x

    with observing.between(model, see):
        model(tokens)
    worst = max(norms.values(), key=lambda norm: float(norm.mean()))
    one = [1.0] * len(tokens)
    mean = torch.stack(list(peaks.values())).mean(0)
    return {"max_norm": Items(worst.tolist(), one), "kurtosis": Items(mean.tolist(), one)}
