"""What a compressed encoder keeps: intents of real sentences by the nearest neighbour, and the vectors themselves."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from instar.catalogue import Build
from instar.compression import saved
from instar.data import pretrained
from instar.data.intents import clinc150_cases
from instar.doors.hf_encoder import Encoder
from instar.doors.local import Settings
from instar.errors import ShapeError
from instar.interfaces import Data, Floats, Items, Monitor, Problem, Transform, Workload
from instar.problems.kept import digest, kept

_TIMED = 64


@dataclass(frozen=True)
class Sentences:
    """Sentences to be found, those among which they are, and what the model in float32 makes of the former."""

    queries: list[str]
    asked: list[str]
    gallery: list[str]
    known: list[str]
    vectors: Floats
    """[queries, D] of the model as it was."""
    answers: list[bool]
    """Whether the nearest neighbour was right then."""


class Subject:
    """A model under its transform. The model is loaded when it is needed first, and changed once."""

    def __init__(self, model: Any, tokenizer: Any, transform: Transform) -> None:
        self.model, self.tokenizer = model, tokenizer
        transform.apply(model)


class CompressProblem(Problem):
    """Intent of a sentence of CLINC150 by the intent of its nearest neighbour (cosine), and cosine to the vector in float32.

    Args:
        model: an encoder, as `data.pretrained` takes it. Its weights must be true floats: formats compared on weights that came
            from a 4-bit file prove nothing.
        intents: so many of the 150, always the same. gallery: sentences of each that may be found, drawn by the seed from the
            train split. queries: sentences of each that are asked for, always the same.

    `accuracy@fp32` is that of the model as it was, on the same draw. Nothing is trained.
    """

    accepts: ClassVar = {Transform: "subject"}
    tokens_per_step = 1

    def __init__(self, *, model: str = "all-MiniLM-L6-v2", intents: int = 50, gallery: int = 6, queries: int = 4) -> None:
        if not 2 <= intents <= 150 or not 1 <= gallery <= 100 or not 1 <= queries <= 20:
            raise ShapeError(
                "compress expects 2 to 150 intents, 1 to 100 sentences of each in the gallery, 1 to 20 queries of each; received "
                f"{intents}, {gallery}, {queries}."
            )
        self.model, self.intents, self.gallery, self.queries = model, intents, gallery, queries

    def load(self, seed: int) -> Data:
        """The same queries for every seed; it draws the gallery."""
        valid, test = self._sentences("val", seed), self._sentences("test", seed)
        facts = {
            "name": f"clinc150, {self.intents} intents",
            "item": "sentence",
            "train_items": 0,
            "valid_items": len(valid.queries),
            "test_items": len(test.queries),
            "model": self.model,
        }
        return Data(None, valid, test, digest([self.model, *test.queries, *valid.queries]), facts)

    def subject(self, build: Build, data: Data, seed: int) -> Subject:
        """The model, transformed."""
        transform = build.cls(**build.arguments)
        assert isinstance(transform, Transform)
        return Subject(*pretrained.load(self.model, "encoder"), transform)

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

    def evaluate(self, subject: Subject, split: Sentences) -> dict[str, Items]:
        """accuracy@compressed, accuracy@fp32, and the cosine of each query's vector to what it was."""
        vectors = encode(subject.model, subject.tokenizer, split.queries)
        right = nearest(vectors, encode(subject.model, subject.tokenizer, split.gallery), split.asked, split.known)
        ones = [1.0] * len(right)
        return {
            "accuracy@compressed": Items([float(r) for r in right], ones),
            "accuracy@fp32": Items([float(r) for r in split.answers], ones),
            "cosine": Items((vectors.astype(np.float64) * split.vectors).sum(1).tolist(), ones),
        }

    def costs(self, subject: Subject) -> dict[str, float]:
        """Bytes of the weights on disk, measured, and how many times fewer they are than in float32."""
        return sizes(subject.model, pretrained.folder(self.model))

    def workloads(self) -> Iterator[Workload]:
        """Encoding of sentences."""
        yield Workload("encode_seconds", _encoding, units=_TIMED)

    def _sentences(self, split: str, seed: int) -> Sentences:
        asked = clinc150_cases(split, per_class=self.queries, examples_per_class=0, seed=0)
        shown = clinc150_cases(split, per_class=self.queries, examples_per_class=self.gallery, seed=seed)
        chosen = set(random.Random(0).sample(sorted({str(label) for label in asked.labels or ()}), self.intents))
        queries = [(t, str(c)) for t, c in zip(asked.inputs, asked.labels or (), strict=True) if str(c) in chosen]
        gallery = [(t, str(c)) for t, c in shown.examples if str(c) in chosen]
        texts = [t for t, _ in queries], [t for t, _ in gallery]
        mark = pretrained.fingerprint(pretrained.folder(self.model))
        made = kept(["compress", 1, mark, texts], lambda: self._plain(*texts))
        intents = [c for _, c in queries], [c for _, c in gallery]
        right = nearest(made["queries"], made["gallery"], *intents)
        return Sentences(texts[0], intents[0], texts[1], intents[1], made["queries"], right)

    def _plain(self, queries: list[str], gallery: list[str]) -> dict[str, Floats]:
        model = pretrained.load(self.model, "encoder")
        return {"queries": encode(*model, queries), "gallery": encode(*model, gallery)}


def encode(model: Any, tokenizer: Any, texts: list[str]) -> Floats:
    """Unit vectors [N, D], mean-pooled."""
    return Encoder(model, tokenizer).embed(texts, "{input}", Settings())[0]


def nearest(vectors: Floats, gallery: Floats, asked: list[str], known: list[str]) -> list[bool]:
    """Whether the most similar sentence of the gallery (of equals the first) has the query's intent."""
    found = (vectors @ gallery.T).argmax(1)
    return [known[i] == intent for i, intent in zip(found, asked, strict=True)]


def sizes(model: nn.Module, folder: Path) -> dict[str, float]:
    """file_bytes, ratio to float32, and bits a weight of a compressed model, by writing it."""
    with tempfile.TemporaryDirectory() as place:
        size = saved.nbytes(saved.save(model, Path(place) / "model"))
    plain = sum(path.stat().st_size for path in pretrained.weights(folder))
    return {"file_bytes": float(size), "ratio": plain / size, "bits_per_weight": 32 * size / plain}


def _encoding(subject: Subject) -> Callable[[], object]:
    texts = clinc150_cases("test", per_class=1, examples_per_class=0).inputs[:_TIMED]
    return lambda: encode(subject.model, subject.tokenizer, texts)
