"""What a compressed language model keeps: the likelihood of text that it was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.catalogue import Build
from instar.data import datasets, pretrained
from instar.errors import DataError, ShapeError
from instar.interfaces import Data, Items, Monitor, Problem, Transform
from instar.problems.compress import Subject, sizes
from instar.problems.kept import digest, kept


@dataclass(frozen=True)
class Windows:
    """Tokens [N, T], and the nats of each window's T − 1 predictions under the model as it was."""

    tokens: Tensor
    nats: list[float]


class CompressLmProblem(Problem):
    """Nats a token of WikiText-2 (test) under a causal language model, in windows that do not overlap.

    Args:
        model: as `data.pretrained` takes it. windows: how many, from the start of the text; validation takes the next ones.
        length: tokens of each.

    The default model's weights come from a file in Q4_1 with blocks of 32: any 4-bit format with blocks of 32 along the inputs
    and a minimum reproduces them almost exactly, so that 4-bit results on it prove nothing. Compare 8 bits here, or symmetric
    formats, and weight formats on `compress`. Nothing is random: one seed says all.
    """

    accepts: ClassVar = {Transform: "subject"}
    tokens_per_step = 1

    def __init__(self, *, model: str = "SmolLM2-135M-Instruct", windows: int = 20, length: int = 256) -> None:
        if windows < 1 or length < 2:
            raise ShapeError(f"compress_lm expects 1 window or more of 2 tokens or more; received {windows} of {length}.")
        self.model, self.windows, self.length = model, windows, length

    def load(self, seed: int) -> Data:
        """The windows, and the nats of the model as it was (kept in the cache)."""
        text = next(p for p in datasets.locate("wikitext2") if "test" in p.name).read_text("utf-8")
        mark = pretrained.fingerprint(pretrained.folder(self.model))
        found = kept(["compress_lm", 1, mark, self.windows, self.length, digest([text])], lambda: self._plain(text))
        tokens, nats = torch.from_numpy(np.array(found["tokens"])), found["nats"].tolist()
        half = self.windows
        test, valid = Windows(tokens[:half], nats[:half]), Windows(tokens[half:], nats[half:])
        facts = {"name": "wikitext2, test", "item": "window", "train_items": 0, "valid_items": half, "test_items": half}
        return Data(None, valid, test, digest([self.model, found["tokens"]]), {**facts, "model": self.model})

    def subject(self, build: Build, data: Data, seed: int) -> Subject:
        """The model, transformed."""
        transform = build.cls(**build.arguments)
        assert isinstance(transform, Transform)
        return Subject(*pretrained.load(self.model, "causal"), transform)

    def fit(
        self,
        subject: Subject,
        train: None,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Nothing: the transform has no training."""
        for step in sorted({max(1, steps - 1), steps}):
            if monitor is not None:
                monitor(step, 0.0)

    def evaluate(self, subject: Subject, split: Windows) -> dict[str, Items]:
        """nats@compressed and nats@fp32."""
        weights = [float(self.length - 1)] * len(split.tokens)
        return {
            "nats@compressed": Items(nats(subject.model, split.tokens), weights),
            "nats@fp32": Items(split.nats, weights),
        }

    def costs(self, subject: Subject) -> dict[str, float]:
        """As of `compress`."""
        return sizes(subject.model, pretrained.folder(self.model))

    def _plain(self, text: str) -> dict[str, Any]:
        model, tokenizer = pretrained.load(self.model, "causal")
        wanted = 2 * self.windows * self.length
        ids = tokenizer(text[: 12 * wanted], return_tensors="pt").input_ids[0, :wanted]
        if len(ids) < wanted:
            raise DataError(
                f"WikiText-2 gives {len(ids)} tokens here; {2 * self.windows} windows of {self.length} need {wanted}."
            )
        tokens = ids.view(2 * self.windows, self.length)
        return {"tokens": tokens.numpy(), "nats": np.array(nats(model, tokens))}


@torch.no_grad()
def nats(model: Any, tokens: Tensor) -> list[float]:
    """−log p of the last T − 1 tokens of each window [N, T]."""
    found = []
    for window in tokens:
        logits = model(window[None]).logits[0, :-1].float()
        found.append(float(F.cross_entropy(logits, window[1:], reduction="sum")))
    return found
