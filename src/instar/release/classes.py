"""The task of a classifier: sentences, and what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.seeds import stream
from instar.data import pretrained
from instar.data.sentences import Labelled, sentences
from instar.errors import DataError, ModelError
from instar.gate.predictions import Cases
from instar.interfaces import Versions

_TESTED = 1000
"""Held-out sentences that are scored and that the gate asks, at most."""
_EXAMPLES = 2000
"""Training sentences from which a model without a head learns its classes."""
_SCORED = 64


class Classes:
    """See `adapting.Task`. A model without a head for these classes gets one, which is trained with the adapter.

    Raises DataError for fewer sentences than a step takes, and what `pretrained.classifier` raises.
    """

    head_lr = 1e-3
    unrelated = "encoder"

    def __init__(self, source: Path, data: str, batch: int, length: int, dtype: str) -> None:
        found = sentences(data)
        self.name, self.size, self.length = found.name, batch, length
        self.train, self.test = found.train, _some(found.test, _TESTED)
        self.items = len(self.train)
        if self.items < batch:
            raise DataError(
                f"{data} has {self.items} sentences to train on; a step takes {batch}. Give --batch a smaller number."
            )
        self.model, self.tokenizer, new = pretrained.classifier(source, found.classes, dtype)
        self.places: dict[str, int] = self.model.config.label2id
        self.headless = bool(new)
        inside = f"{self.model.base_model_prefix}."
        own = [name for name, module in self.model.named_modules() if _holds(module) and not name.startswith(inside)]
        poolers = [name for name, module in self.model.named_modules() if _holds(module) and ".pooler." in f".{name}."]
        self.heads: Sequence[str] = sorted({*own, *poolers})

    @property
    def body(self) -> Any:
        """The encoder under the head."""
        return self.model.base_model

    def batch(self, index: int, seed: int) -> tuple[Any, Tensor]:
        epoch, place = divmod(index, self.items // self.size)
        order = torch.randperm(self.items, generator=stream(seed, f"epoch/{epoch}"))
        chosen = order[place * self.size : (place + 1) * self.size].tolist()
        labels = torch.tensor([self.places[self.train.labels[i]] for i in chosen])
        return self._tokens([self.train.texts[i] for i in chosen]), labels

    def loss(self, model: nn.Module, rows: tuple[Any, Tensor]) -> Tensor:
        """Cross-entropy."""
        tokens, labels = rows
        return F.cross_entropy(model(**tokens).logits.float(), labels)

    @torch.no_grad()
    def untrained(self) -> dict[str, float]:
        """A model that had no head is scored by the nearest centroid of each class, among the mean vectors of its states."""
        if not self.headless:
            return self.score()
        some = _some(self.train, _EXAMPLES)
        known, asked = (self._vectors(part.texts) for part in (some, self.test))
        labels = torch.tensor([self.places[label] for label in some.labels])
        centroids = torch.stack([known[labels == place].mean(0) for place in range(len(self.places))])
        answers = (asked @ F.normalize(centroids.nan_to_num(), dim=1).T).argmax(1)
        return {"accuracy": self._right(answers)}

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """`accuracy`."""
        return {
            "accuracy": self._right(torch.cat([self.model(**part).logits.argmax(1) for part in self._parts(self.test.texts)]))
        }

    def cases(self) -> Cases:
        """The held-out sentences; training sentences teach their classes to a version without a head."""
        some = _some(self.train, _EXAMPLES)
        return Cases(
            name=f"{self.name}, held-out sentences",
            ids=[str(place) for place in range(len(self.test))],
            inputs=list(self.test.texts),
            labels=list(self.test.labels),
            examples=list(zip(some.texts, some.labels, strict=True)),
        )

    def versions(self, old: str | Path) -> Versions:
        raise ModelError(f"What {old} says is kept by comparing the next words of language models; {self.name} has classes.")

    def tasks(self) -> Cases:
        return self.cases()

    def _right(self, answers: Tensor) -> float:
        labels = torch.tensor([self.places[label] for label in self.test.labels])
        return float((answers.cpu() == labels).float().mean())

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        found = []
        for tokens in self._parts(texts):
            states, mask = self.body(**tokens).last_hidden_state.float(), tokens["attention_mask"][..., None]
            found.append(F.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1), dim=1))
        return torch.cat(found)

    def _parts(self, texts: Sequence[str]) -> list[Any]:
        return [self._tokens(texts[i : i + _SCORED]) for i in range(0, len(texts), _SCORED)]

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt")


def _some(rows: Labelled, most: int) -> Labelled:
    """At most so many, always the same, in their order."""
    places = torch.randperm(len(rows), generator=stream(0, "some"))[:most].sort().values.tolist()
    return Labelled([rows.texts[i] for i in places], [rows.labels[i] for i in places])


def _holds(module: nn.Module) -> bool:
    """Whether a module has weights of its own."""
    return bool(module._parameters)
