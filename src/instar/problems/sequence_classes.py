"""What the problems that sort sequences into classes share: the sequences, the model around a mixer, training and scoring."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.bench.fit import Precision, fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import Data, Items, Mixer, Monitor, Problem
from instar.mixers.positions import count_positions, sinusoid
from instar.models.decoder import Block
from instar.problems.kept import digest
from instar.problems.language import device_of, evaluating

_EVALUATION_TOKENS = 16384  # tokens of a batch in evaluation; bounds memory whatever the lengths
_POOLED = 16  # batches of training that are cut from sequences sorted by length, so that little of them is padding

Batch = tuple[Tensor, Tensor | None, Tensor]
"""What `Sequences.batch` gives."""


@dataclass(frozen=True)
class Sequences:
    """Rows of tokens, uint8 [T], or of frames, float32 [T, C], each with its class."""

    rows: Sequence[NDArray[Any]]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens or frames of each."""
        return np.array([len(row) for row in self.rows])

    def batch(self, chosen: Sequence[int]) -> Batch:
        """Tokens [B, T] or frames [B, T, C], which are real (None where all are), and classes [B]; padding is on the right."""
        rows = [self.rows[i] for i in chosen]
        length = max(map(len, rows))
        kind = torch.float32 if rows[0].dtype.kind == "f" else torch.int64
        tokens = torch.zeros(len(rows), length, *rows[0].shape[1:], dtype=kind)
        for target, row in zip(tokens, rows, strict=True):
            target[: len(row)] = torch.tensor(row)
        real = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
        return tokens, None if bool(real.all()) else real, torch.from_numpy(self.labels[list(chosen)])


class SequenceClassifier(nn.Module):
    r"""logits = W · mean over real tokens of RMSNorm(block_L(… block_1(E(tokens) + positions))) + b.

    Blocks and positions are the decoder's. The mean is read for every mixer: whether it reads one side or both, each real token
    counts, and padding does not. A mixer that is a whole network (its card says `whole_network`) stands once in place of blocks
    and norm.

    Args:
        build: makes the mixer. embedding: E, what makes D numbers of each token (a table) or frame (a linear map); its weight is
            drawn here. classes: what is told apart. width: D. depth: blocks. heads: of the mixer.

    Shapes: tokens int64 [B, T], frames [B, T, C] or what else E takes, mask bool [B, T] (True where real; every row has one) ->
    logits [B, classes].
    """

    def __init__(self, build: Build, *, embedding: nn.Module, classes: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        whole = bool(build.card.capability("whole_network"))
        self.build, self.width, self.depth, self.heads = build, width, 1 if whole else depth, heads
        hidden = -(-8 * width // (3 * 64)) * 64
        self.embedding = embedding
        mixers = [build(width, heads=heads) for _ in range(self.depth)]
        self.blocks = nn.ModuleList(mixers if whole else [Block(mixer, width, hidden) for mixer in mixers])
        self.norm = nn.Identity() if whole else nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        hosted = build.card.capability("positions") == "host"
        self.amplitude = nn.Parameter(torch.tensor(0.02 * 2**0.5)) if hosted else None
        for layer in (self.embedding, self.head, *self._feeds()):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.bias)
        if type(embedding) is nn.Linear:  # without a bias the norms would leave nothing of a single channel but its sign
            nn.init.normal_(embedding.bias, std=0.02)

    def _feeds(self) -> list[nn.Module]:
        """Linear layers of the blocks' mixers of channels."""
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return [layer for block in blocks for layer in block.feed.children()]

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.pooled(tokens, mask))

    def pooled(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the head reads, [B, D]."""
        x = self.embedding(tokens)
        if self.amplitude is not None:
            start = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
            where, _ = count_positions(start, tokens.shape[1], mask, None)
            x = x + self.amplitude * sinusoid(where, self.width).to(x.dtype)
        for block in self.blocks:
            x, _ = block(x, None, mask=mask, reset=None)
        x = self.norm(x)
        if mask is None:
            return x.mean(1)
        return x.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1) / mask.sum(1, keepdim=True)

    def layer_cost(self, tokens: int) -> tuple[float, float] | None:
        """Forward FLOPs and state bytes of one mixer layer over one sequence."""
        return self.build.cost(tokens, self.width, heads=self.heads)

    def forward_flops(self, tokens: int) -> float | None:
        """FLOPs of one forward pass over one sequence: matrix products outside the mixers, and the mixers by their cards."""
        mixer = self.layer_cost(tokens)
        if mixer is None:
            return None
        matrices = sum(p.numel() for layer in self._feeds() for p in layer.parameters())
        if isinstance(self.embedding, nn.Linear):
            matrices += self.embedding.weight.numel()
        return 2.0 * self.head.weight.numel() + 2.0 * tokens * matrices + self.depth * mixer[0]


class SequenceClassesProblem(Problem):
    """accuracy = the share of sequences whose class is found, by a stack of mixers, the mean over tokens and a linear head.

    Args:
        classes: of the data. length: tokens of the longest sequence. batch: sequences a step.
        width, depth, heads: of the classifier. lr: peak learning rate. precision: float32 or bf16.

    Takes mixers that read one side and mixers that read both. Raises ShapeError.
    """

    accepts: ClassVar = {Mixer: "classifier"}

    def __init__(
        self,
        *,
        classes: int,
        length: int,
        batch: int,
        width: int,
        depth: int,
        heads: int,
        lr: float,
        precision: Precision,
    ) -> None:
        if min(length, batch, width, depth, heads) < 1:
            raise ShapeError(
                "Sequences are classified with positive sizes; received "
                f"length={length}, batch={batch}, width={width}, depth={depth}, heads={heads}."
            )
        self.classes, self.length, self.batch = classes, length, batch
        self.width, self.depth, self.heads, self.lr, self.precision = width, depth, heads, lr, precision
        self.tokens_per_step = batch * length

    @abc.abstractmethod
    def embedding(self) -> nn.Module:
        """What makes a token, or a frame, `width` numbers."""

    def splits(self, name: str, item: str, train: Sequences, valid: Sequences, test: Sequences) -> Data:
        """The splits with their facts: among them the floor, the share of test items in the class that training has most of."""
        most = int(np.bincount(train.labels, minlength=self.classes).argmax())
        self.length = max(int(part.lengths.max()) for part in (train, valid, test))
        self.tokens_per_step = round(self.batch * float(train.lengths.mean()))
        facts = {
            **{"name": name, "item": item, "train_items": len(train), "valid_items": len(valid), "test_items": len(test)},
            **{"classes": self.classes, "mean_tokens": round(float(train.lengths.mean()), 1), "most_tokens": self.length},
            "accuracy_of_the_majority_class": round(float((test.labels == most).mean()), 4),
        }
        parts: list[NDArray[Any]] = []
        for part in (train, valid, test):
            parts += [*part.rows, part.labels]
        return Data(train, valid, test, digest(parts), facts)

    def classifier(self, build: Build, data: Data, seed: int) -> SequenceClassifier:
        """The mixer in a small classifier."""
        return SequenceClassifier(
            build, embedding=self.embedding(), classes=self.classes, width=self.width, depth=self.depth, heads=self.heads
        )

    def fit(
        self,
        subject: SequenceClassifier,
        train: Sequences,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Every sequence once an epoch (but for a rest smaller than a batch), those of a batch of about one length."""
        size = min(self.batch, len(train))
        lengths = train.lengths
        order: dict[int, Tensor] = {}

        def batch(index: int) -> Batch:
            epoch, place = divmod(index, len(train) // size)
            if epoch not in order:
                order.clear()
                order[epoch] = _epoch(lengths, size, stream(seed, f"epoch/{epoch}"))
            return self.seen(train.batch(order[epoch][place].tolist()), stream(seed, f"seen/{index}"))

        def loss(model: nn.Module, given: Batch) -> Tensor:
            logits, labels = _ask(model, given)
            return F.cross_entropy(logits.float(), labels)

        fit(
            subject,
            batch,
            loss,
            steps=steps,
            lr=self.lr,
            precision=self.precision,
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def seen(self, given: Batch, generator: torch.Generator) -> Batch:
        """What training sees of a batch: all of it, unless a problem varies its data."""
        return given

    def evaluate(self, subject: SequenceClassifier, split: Sequences) -> dict[str, Items]:
        """Right or wrong, sequence by sequence."""
        right = torch.zeros(len(split), dtype=torch.float64)
        by_length = np.argsort(split.lengths, kind="stable")
        rows = max(1, _EVALUATION_TOKENS // int(split.lengths.max()))
        with evaluating(subject):
            for start in range(0, len(split), rows):
                chosen = by_length[start : start + rows].tolist()
                logits, labels = _ask(subject, split.batch(chosen))
                right[chosen] = (logits.argmax(1) == labels).double().cpu()
        return {"accuracy": Items(right.tolist(), [1.0] * len(split))}

    def costs(self, subject: SequenceClassifier) -> dict[str, float]:
        """Closed forms at the longest sequence: training is counted as three forward passes."""
        forward, cost = subject.forward_flops(self.length), subject.layer_cost(self.length)
        if forward is None or cost is None:
            return {}
        return {"train_flops_per_token": 3 * forward / self.length, "state_bytes": subject.depth * cost[1]}


def _ask(model: nn.Module, given: Batch) -> tuple[Tensor, Tensor]:
    """Logits and classes, where the model is."""
    tokens, mask, labels = (None if part is None else part.to(device_of(model)) for part in given)
    assert labels is not None
    return model(tokens, mask), labels


def _epoch(lengths: NDArray[np.int64], size: int, generator: torch.Generator) -> Tensor:
    """[batches, size]: a random order, of which each stretch of some batches is sorted by length and cut; then shuffled."""
    order = torch.randperm(len(lengths), generator=generator)
    length = torch.from_numpy(lengths)
    order = torch.cat([part[length[part].argsort(stable=True)] for part in order.split(_POOLED * size)])
    batches = order[: len(order) // size * size].view(-1, size)
    return batches[torch.randperm(len(batches), generator=generator)]
