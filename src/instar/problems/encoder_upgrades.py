"""Pairs of an old and a new encoder of texts, and the vectors of a collection under both."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from instar import encoders
from instar.bench.fit import fit
from instar.bench.seeds import stream
from instar.data import pretrained
from instar.data.collection import Collection, Vectors
from instar.data.squad import squad
from instar.doors import hf_encoder
from instar.encoders import base
from instar.errors import DataError
from instar.interfaces import Encoder, Floats
from instar.problems.kept import digest, kept

MINILM = "all-MiniLM-L6-v2"
_VERSION = 1
"""Of how vectors are made here: another one makes those in the cache anew."""
_PINS = (Path(pretrained.__file__).with_name("packaged.toml"), Path(base.__file__).with_name("tables.toml"))
"""They hold the hashes of all weights that are used here."""


@dataclass(frozen=True)
class Tuning:
    """How much of a fine-tune: contrastive (InfoNCE over the batch) on pairs of question and sentence of `squad:dev`."""

    steps: int = 100
    batch: int = 32
    lr: float = 2e-5
    temperature: float = 0.05
    longest: int = 64
    """Tokens of a text."""


@dataclass(frozen=True)
class Source:
    """An encoder by its name, with settings, and fine-tuned where that is asked."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None

    @property
    def fitted(self) -> bool:
        """Whether it is fitted on the documents."""
        return self.name in ("lsa", "bow")

    def open(self, texts: Sequence[str]) -> Encoder:
        """The encoder; `texts` are for what is fitted."""
        if self.tuning is None:
            return encoders.open_encoder(self.name, self.settings, texts=texts)
        model, tokenizer = pretrained.load(self.name, "encoder")
        weights = kept(["fine-tune", *self.recipe([])], lambda: tuned(self.name, self.tuning or Tuning()))
        model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
        return encoders.of(model, tokenizer, name=f"{self.name}, fine-tuned")

    def recipe(self, texts: Sequence[str]) -> list[Any]:
        """What decides its vectors."""
        pins = hashlib.sha256(b"".join(path.read_bytes() for path in _PINS)).hexdigest()
        tuning = self.tuning and [*dataclasses.astuple(self.tuning)]
        return [_VERSION, pins, self.name, dict(self.settings), tuning, digest(texts) if self.fitted else ""]


@dataclass(frozen=True)
class Upgrade:
    """From one encoder to another."""

    old: Source
    new: Source


UPGRADES: Mapping[str, Upgrade] = {
    "fine_tune": Upgrade(Source(MINILM), Source(MINILM, tuning=Tuning())),
    "family": Upgrade(Source(MINILM, {"layer": 3}), Source(MINILM)),
    "bow": Upgrade(Source("bow"), Source(MINILM)),
    "lsa": Upgrade(Source("lsa", {"dims": 128}), Source(MINILM)),
    "decoder": Upgrade(Source("SmolLM2-135M-Instruct"), Source(MINILM)),
}
"""Of the same model: a fine-tune, an earlier layer, its token vectors without any layer. Unrelated: TF-IDF with SVD, and the
mean-pooled states of a language model, which was never made for search."""


def vectors(source: Source, collection: Collection) -> Vectors:
    """A collection with texts under an encoder, from the cache where it has them. Raises DataError, what encoding raises."""
    if collection.texts is None or (collection.query_ids and collection.queries is None):
        raise DataError(f"{collection.name} has no texts to encode. Give documents (and queries) with texts.")
    texts, queries = collection.texts, collection.queries or []
    recipe = source.recipe(texts)

    def make() -> dict[str, Floats]:
        encoder = source.open(texts)
        found = {"documents": encoder.encode(texts, "document")}
        return found | ({"queries": encoder.encode(queries, "query")} if queries else {})

    found = kept(["vectors", *recipe, digest(texts), digest(queries)], make)
    return Vectors(source.name, digest([str(recipe)]), found["documents"], found.get("queries"))


def tuned(name: str, tuning: Tuning) -> dict[str, Floats]:
    """The weights of a model after its fine-tune: a question finds its sentence among those of the batch, and the reverse."""
    data = squad("dev")
    assert data.queries is not None
    assert data.texts is not None
    assert data.relevant is not None
    first = {int(places[0]): query for query, places in zip(data.queries, data.relevant, strict=True)}
    pairs = [(query, data.texts[place]) for place, query in sorted(first.items())]  # a sentence once: others are wrong answers
    model, tokenizer = pretrained.load(name, "encoder")
    order = torch.randperm(len(pairs), generator=stream(0, "fine-tune")).tolist()

    def batch(index: int) -> list[tuple[str, str]]:
        chosen = [order[i % len(order)] for i in range(index * tuning.batch, (index + 1) * tuning.batch)]
        return [pairs[i] for i in chosen]

    def loss(module: Any, chosen: list[tuple[str, str]]) -> torch.Tensor:
        sides = []
        for texts in zip(*chosen, strict=True):
            rows = tokenizer(list(texts), padding=True, truncation=True, max_length=tuning.longest, return_tensors="pt")
            sides.append(hf_encoder.pool(module(**rows).last_hidden_state, rows["attention_mask"], "mean_tokens"))
        scores = sides[0] @ sides[1].T / tuning.temperature
        right = torch.arange(len(scores))
        both = [torch.nn.functional.cross_entropy(found, right) for found in (scores, scores.T)]
        return (both[0] + both[1]) / 2

    for parameter in model.pooler.parameters() if getattr(model, "pooler", None) is not None else ():
        parameter.requires_grad_(False)  # mean pooling does not see it
    fit(model, batch, loss, steps=tuning.steps, lr=tuning.lr, seed=0)
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}
