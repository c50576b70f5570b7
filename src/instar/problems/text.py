"""Byte-level language modelling of any text: bits per byte at and beyond the training length, and what it costs."""

from __future__ import annotations

import math
import pydoc_data.topics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.fit import Precision, fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.data import blocks, datasets
from instar.data.blocks import Blocks
from instar.errors import DataError, ShapeError
from instar.interfaces import Data, Items, Mixer, Monitor, Problem, Workload
from instar.problems.language import Subject, device_of, evaluating

BOS = 256
"""Begins every window; bytes are 0 to 255."""
VOCABULARY = 257
IGNORED = -100
_LAYER_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
_PREFILL_LENGTHS = (256, 1024, 4096)
_CONTEXTS = (256, 1024, 4096, 16384)
_EVALUATION_TOKENS = 8192  # tokens of a batch in evaluation; bounds memory whatever the window length


class TextProblem(Problem):
    """bits per byte = −(1/n) Σ log2 p(byte | earlier bytes of its window).

    Args:
        data: files, or the name of a data set of the catalogue (`tinyshakespeare`), or None for the English text that ships
            inside Python (`pydoc_data.topics`; it differs between Python releases).
        length: T, bytes in a training window. batch: windows a step.
        width, depth, heads: of the decoder. lr: peak learning rate. precision: float32 or bf16.
        test_blocks: most blocks of 4 KiB in the validation and in the test split.

    Text is cut into blocks of at most 4 KiB that end behind a line and are split by SHA-256 mod 10 (0 test, 1 validation).
    Windows never cross blocks. In evaluation each block is cut into windows of T (2T, 4T) bytes, so every byte is scored once;
    a block is the item of the bootstrap. Raises DataError, ShapeError.
    """

    accepts: ClassVar = {Mixer: "decoder"}

    def __init__(
        self,
        *,
        data: str | list[str] | None = None,
        length: int = 256,
        batch: int = 8,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        lr: float = 2e-3,
        precision: Precision = "float32",
        test_blocks: int = 64,
    ) -> None:
        if min(length, batch, width, depth, heads, test_blocks) < 1 or 4 * length > blocks.SIZE:
            raise ShapeError(
                f"text expects positive sizes and 4 · length ≤ {blocks.SIZE} (windows of 4T must fit into a block); received "
                f"length={length}, batch={batch}, width={width}, depth={depth}, heads={heads}, test_blocks={test_blocks}."
            )
        self.data, self.length, self.batch, self.width, self.depth, self.heads = data, length, batch, width, depth, heads
        self.lr, self.precision, self.test_blocks = lr, precision, test_blocks
        self.tokens_per_step = batch * length

    def load(self, seed: int) -> Data:
        """The same split for every seed."""
        if self.data is None:
            name = "pydoc_data.topics"
            text = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
            sources = [np.frombuffer(text.encode(), dtype=np.uint8)]
        else:
            given = [self.data] if isinstance(self.data, str) else list(self.data)
            paths = datasets.locate(given[0]) if len(given) == 1 and given[0] in datasets.names() else [Path(p) for p in given]
            name = ", ".join(Path(g).name for g in given)
            sources = [blocks.open_text(path) for path in paths]
        split = blocks.split(sources, self.test_blocks)
        if min(len(split.train), len(split.valid), len(split.test)) == 0:
            raise DataError(
                f"The text is too small: its {sum(map(len, sources))} bytes are {sum(split.found.values())} blocks of 4 KiB, and "
                f"train, valid and test get {len(split.train)}, {len(split.valid)} and {len(split.test)} of them. About 100 kB "
                "are the least; a comparison that shows anything needs a few MB."
            )
        facts = {
            "name": name,
            "item": "block of at most 4 KiB",
            "train_items": len(split.train),
            "valid_items": len(split.valid),
            "test_items": len(split.test),
            "train_bytes": split.train.bytes,
            "test_bytes": split.test.bytes,
            "test_items_before_the_cap": split.found["test"],
        }
        return Data(split.train, split.valid, split.test, split.sha256, facts)

    def decoder(self, build: Build, data: Data, seed: int) -> Subject:
        """The mixer in a small decoder."""
        return Subject(build, vocabulary=VOCABULARY, width=self.width, depth=self.depth, heads=self.heads)

    def fit(
        self,
        subject: Subject,
        train: Blocks,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Windows at random places of random blocks, a block in proportion to its length; loss in nats per byte."""
        fit(
            subject,
            self.windows(train, seed),
            self.loss,
            steps=steps,
            lr=self.lr,
            precision=self.precision,
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def windows(self, train: Blocks, seed: int) -> Callable[[int], Tensor]:
        """The targets [B, T] of each step, a function of (seed, step) alone."""
        ends = np.cumsum(train.length)

        def batch(index: int) -> Tensor:
            draw = torch.rand(2, self.batch, generator=stream(seed, f"data/{index}"), dtype=torch.float64).numpy()
            rows = []
            for block, place in zip(np.searchsorted(ends, draw[0] * ends[-1], side="right"), draw[1], strict=True):
                text = train[int(block)]
                start = int(place * (max(len(text) - self.length, 0) + 1))
                rows.append(text[start : start + self.length])
            return _pad(rows, self.length)

        return batch

    def loss(self, model: nn.Module, targets: Tensor) -> Tensor:
        """Nats per byte, mean over a batch."""
        return _cross_entropy(model, targets.to(device_of(model)), "mean")

    def bits(self, subject: Subject, split: Blocks, length: int) -> Items:
        """Bits of every block in windows of `length` bytes."""
        return self._bits_at(subject, split, length, [slice(None)])[0]

    def evaluate(self, subject: Subject, split: Blocks) -> dict[str, Items]:
        """Bits of every block at windows of T, 2T and 4T; of the last, also those of bytes at places T/2 … T and T … 4T.

        Bits by window length alone flatter the longer ones: fewer of their bytes stand at a beginning.
        """
        T = self.length
        found = {f"bits_per_byte@{name}": self.bits(subject, split, factor * T) for name, factor in (("T", 1), ("2T", 2))}
        whole, early, late = self._bits_at(subject, split, 4 * T, [slice(None), slice(T // 2, T), slice(T, None)])
        found["bits_per_byte@4T"] = whole
        there = [place for place, count in enumerate(late.weights) if count]
        if there:  # blocks that are no longer than T have no late bytes
            for name, part in (("early", early), ("late", late)):
                found[f"position_bits@{name}"] = Items(*([values[i] for i in there] for values in (part.totals, part.weights)))
        return found

    def _bits_at(self, subject: Subject, split: Blocks, length: int, places: Sequence[slice]) -> list[Items]:
        with evaluating(subject):
            bits, counts = _bits(subject, split, length, places)
        return [Items(some.tolist(), weights.tolist()) for some, weights in zip(bits, counts, strict=True)]

    def costs(self, subject: Subject) -> dict[str, float]:
        """Closed forms: training is counted as three forward passes."""
        figures = {"mixer_parameters": float(sum(p.numel() for p in subject.mixer.parameters()))}
        forward = subject.forward_flops(self.length)
        if forward is not None:
            figures["train_flops_per_token"] = 3 * forward / self.length
        for context in _CONTEXTS:
            cost = subject.layer_cost(context)
            if cost is not None:
                figures[f"state_bytes@{context}"] = self.depth * cost[1]
        return figures

    def workloads(self) -> Iterator[Workload]:
        """Training steps, prefill, decoding by context, and one mixer layer by length (forward and backward, batch 1)."""
        yield Workload("train_tokens_per_second", self._step, units=self.tokens_per_step)
        for length in _LAYER_LENGTHS:
            yield Workload(f"layer_seconds@{length}", lambda s, n=length: _layer(s, n))  # type: ignore[misc]
        for length in _PREFILL_LENGTHS:
            yield Workload(f"prefill_seconds@{length}", lambda s, n=length: _prefill(s, n))  # type: ignore[misc]
        for context in _CONTEXTS:
            yield Workload(f"decode_seconds@{context}", lambda s, n=context: _decode(s, n))  # type: ignore[misc]

    def _step(self, subject: Subject) -> Callable[[], object]:
        targets = _random_bytes(self.batch, self.length, subject)

        def call() -> None:
            subject.zero_grad(set_to_none=True)
            _cross_entropy(subject, targets, "mean").backward()

        return call


def _pad(rows: list[np.ndarray], length: int) -> Tensor:
    """Targets [B, length]; what a short row lacks is ignored."""
    targets = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
    for target, row in zip(targets, rows, strict=True):
        target[: len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
    return targets


def preceding(targets: Tensor) -> Tensor:
    """What stands before each target: BOS, then the bytes before it in its row; BOS again in padding."""
    inputs = torch.cat([torch.full_like(targets[:, :1], BOS), targets[:, :-1]], dim=1)
    return inputs.masked_fill_(inputs == IGNORED, BOS)


def _cross_entropy(model: nn.Module, targets: Tensor, reduction: str) -> Tensor:
    """Nats of each byte given BOS and the bytes before it in its row."""
    logits, _ = model(preceding(targets))  # padding is on the right, where a causal model needs no mask
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction=reduction)


def _bits(model: Subject, split: Blocks, length: int, places: Sequence[slice]) -> np.ndarray:
    """Bits and bytes of each block, cut into windows of `length`, at some places of the windows: [2, places, blocks]."""
    found = np.zeros((2, len(places), len(split)))
    for chosen, targets in evaluation_windows(split, length):
        targets = targets.to(device_of(model))
        nats = _cross_entropy(model, targets, "none").view(targets.shape).double().cpu().numpy()
        real = (targets != IGNORED).cpu().numpy()
        for number, place in enumerate(places):
            np.add.at(found[0, number], chosen, nats[:, place].sum(1) / math.log(2))
            np.add.at(found[1, number], chosen, real[:, place].sum(1))
    return found


def evaluation_windows(split: Blocks, length: int) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of windows that hold every byte once: the block of each, and targets [B, length]."""
    windows = [(i, at) for i in range(len(split)) for at in range(0, int(split.length[i]), length)]
    rows = max(1, _EVALUATION_TOKENS // length)
    for first in range(0, len(windows), rows):
        chosen = windows[first : first + rows]
        yield [i for i, _ in chosen], _pad([split[i][at : at + length] for i, at in chosen], length)


def _random_bytes(rows: int, length: int, model: Subject) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (rows, length), generator=generator).to(device_of(model))


def _layer(model: Subject, length: int) -> Callable[[], object]:
    mixer = model.mixer
    x = torch.randn(1, length, model.width, generator=torch.Generator().manual_seed(0)).to(device_of(model))
    x.requires_grad_()

    def call() -> None:
        mixer.zero_grad(set_to_none=True)
        x.grad = None
        mixer(x)[0].sum().backward()

    return call


def _prefill(model: Subject, length: int) -> Callable[[], object]:
    tokens = _random_bytes(1, length, model)

    @torch.no_grad()
    def call() -> None:
        model(tokens)

    return call


def _decode(model: Subject, context: int) -> Callable[[], object]:
    """One more token after `context` of them. The state moves on from call to call, as in generation, and goes back before the
    context has grown by an eighth."""
    tokens = _random_bytes(1, context, model)
    with torch.no_grad():
        start = model(tokens)[1]
    calls, most = 0, max(16, context // 8)
    state = start

    @torch.no_grad()
    def call() -> None:
        nonlocal calls, state
        if calls % most == 0:
            state = start
        calls += 1
        _, state = model(tokens[:, :1], state)

    return call
