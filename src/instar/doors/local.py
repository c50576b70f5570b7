"""What the doors of local models share: their settings, the subject that answers, its answers, and how items become batches."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.doors.settings import number, one_of, optional, setting, template, texts, truth, whole
from instar.errors import ModelError
from instar.gate.predictions import Cases, Json, Predictions

_DAY = 86400.0


@dataclass(frozen=True)
class Settings:
    """All settings of local models; a door may leave some out."""

    dtype: str = setting(
        "float32", one_of("float32", "bfloat16", "float16"), "of the weights: float32 (default), bfloat16 or float16"
    )
    quantize: str = setting(
        "none",
        one_of("none", "int8"),
        "int8: linear layers in 8 bits, activations scaled batch by batch (so answers depend a little on the batch)",
    )
    layers: int | None = setting(None, optional(whole(1)), "use only the first so many layers")
    device: str = setting("cpu", str, "where it runs: cpu (default), cuda, cuda:1, mps")
    threads: int | None = setting(None, optional(whole(1, 1024)), "of the CPU; default: torch's choice")
    seed: int = setting(
        0, whole(0, 2**63 - 1), "of torch; answers are greedy and do not depend on it unless the model draws (default 0)"
    )
    timeout: float = setting(_DAY, number(1e-3), "seconds after which the run is stopped; default: a day")
    batch: int = setting(16, whole(1), "items (in multiple choice: answers) at a time (default 16)")
    max_length: int | None = setting(None, optional(whole(1)), "most tokens of an input; default: what the model takes")
    prompt: str = setting(
        "{input}", template, "what is asked, with {input} for the item's text; @file.txt reads it from a file (default {input})"
    )
    max_new_tokens: int = setting(64, whole(1), "most tokens of a generated answer (default 64)")
    stop: tuple[str, ...] = setting(
        (), texts, "text that ends a generated answer and is cut off, or a JSON list of such texts; \\n is a line break"
    )
    normalize: str = setting(
        "none",
        one_of("none", "characters", "tokens", true="characters", false="none"),
        "multiple choice: divide the log-likelihood of an answer by its characters (also: true) or tokens; default none",
    )
    chat: bool = setting(False, truth, "true: ask in the model's chat template")
    document_prompt: str = setting("{input}", template, "retrieval: as `prompt`, for the documents")
    k: int = setting(100, whole(1), "retrieval: how many documents are returned (default 100)")

    def facts(self, names: Iterable[str]) -> dict[str, Any]:
        """The resolved values of the named settings."""
        return {name: getattr(self, name) for name in names}


LOADING = ("dtype", "quantize", "layers", "device", "threads", "seed", "timeout")
"""Settings that say how a model is loaded, and where."""

Tell = Callable[[int], None]
"""Called with the number of items that are answered."""


@dataclass
class Answers:
    """Of all cases, in their order; `errors` is by place."""

    outputs: list[Json]
    seconds: NDArray[np.float64]
    """Wall time of the batch in which each was answered: what an item waits for its answer."""
    errors: dict[int, str] = field(default_factory=dict)
    embeddings: NDArray[np.float32] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def blank(cls, n: int) -> Answers:
        return cls([None] * n, np.full(n, np.nan))

    def predictions(self, name: str, cases: Cases, costs: dict[str, float], facts: dict[str, Any]) -> Predictions:
        """These answers beside what the cases say."""
        return Predictions(
            name,
            list(cases.ids),
            self.outputs,
            labels=cases.labels,
            embeddings=self.embeddings,
            inputs=list(cases.inputs),
            seconds=self.seconds,
            errors={cases.ids[place]: reason for place, reason in self.errors.items()},
            columns=cases.columns,
            costs=costs,
            facts={**facts, **self.facts},
        )


class Subject(abc.ABC):
    """A loaded model that answers cases. `model` is what is measured."""

    model: Any
    """A torch module of any library."""

    @abc.abstractmethod
    def answer(self, cases: Cases, task: str, settings: Settings, tell: Tell) -> Answers:
        """Answers of a task; ModelError where this kind of model has none."""

    def refuse(self, task: str, why: str) -> ModelError:
        """The error for a task that this model cannot do."""
        return ModelError(f"{type(self.model).__name__} cannot answer the task {task}: {why}")


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places in batches, the longest first: little padding, and too little memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for first in range(0, len(order), size):
        yield order[first : first + size]
