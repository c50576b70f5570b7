"""What turns texts into vectors, stores them, and lets vectors of different encoders be compared."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    pass
from instar.interfaces.problem import Monitor

Floats = NDArray[np.float32]

Id = int | str
"""What a store calls a row."""


@dataclass(frozen=True)
class Pairs:
    """The same items under both encoders: what a head is fitted on. Rows are made unit vectors by `compat.pairs.of`."""

    old: Tensor
    """[N, O], what is stored: the targets."""
    new: Tensor
    """[N, D], the new encoder's vectors."""
    labels: Tensor | None = None
    """[N] int64, classes; None where nobody knows them."""
    inputs: Tensor | None = None
    """[N, I], what a trained head reads, where that is not `new` itself (features before the last layers, another modality)."""

    @property
    def x(self) -> Tensor:
        """What a trained head reads."""
        return self.new if self.inputs is None else self.inputs


class CompatibleHead(nn.Module, abc.ABC):
    """Lets vectors of a new encoder be compared, by cosine, with those that an older one stored.

    `Head(new_dim, old_dim, *, input_dim=None, **knobs)`. Generations are counted from 0, the oldest that is still stored; this
    head's own new one is `newest`. Between two encoders that is 1; a head with a `previous` one goes on counting.
    """

    new_dim: int
    old_dim: int
    input_dim: int
    """Width of x: `new_dim`, unless the head reads something else than the new vectors."""
    full_dim: int
    """Width of what a row of the newest generation stores."""
    previous: CompatibleHead | None
    """The head of the update before this one; its full vectors are this one's old ones. None at the start; assign it."""
    nested: ClassVar[bool] = False
    """Whether `compatible(x)` is the prefix of `full(x)`, so that padded old rows and new rows can share one index."""
    supervised: ClassVar[bool] = False
    """Whether `fit` needs labels."""
    closed_form: ClassVar[bool] = False
    """Whether `fit` is a formula; otherwise it trains for `steps`."""

    def __init__(self) -> None:
        super().__init__()
        self.previous = None  # an attribute of the class would hide the module that is assigned later

    @abc.abstractmethod
    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None:
        """Learn in place from items under both encoders.

        steps: of training; None takes what suits the number of pairs; closed forms ignore it. The result is a function of
        pairs, steps and seed alone. Raises DataError for too few pairs, DivergedError, ShapeError for other widths.
        """

    @abc.abstractmethod
    def compatible(self, x: Tensor) -> Tensor:
        """x [N, input_dim] -> [N, old_dim], comparable with stored old vectors by cosine."""

    @abc.abstractmethod
    def full(self, x: Tensor) -> Tensor:
        """x [N, input_dim] -> [N, full_dim]: what rows and queries of the newest generation are."""

    @abc.abstractmethod
    def lower(self, full: Tensor, generation: int) -> Tensor:
        """Full vectors [N, full_dim] -> comparable with those of an older `generation`."""

    @property
    def newest(self) -> int:
        """The number of the newest generation."""
        return 1 if self.previous is None else self.previous.newest + 1

    def project(self, x: Tensor, generation: int) -> Tensor:
        """Unit vectors that query rows of `generation`; serves an untouched index of that generation.

        Raises ShapeError for a generation that this head does not know.
        """
        from instar.compat import projecting

        return projecting.project(self, x, generation)


@dataclass(frozen=True)
class Generation:
    """The vectors of one encoder among those that an index stores."""

    number: int
    """0 is the oldest."""
    encoder: str
    """Fingerprint of what made them: encoder, settings, head. Vectors of another one are refused."""
    dim: int
    name: str = ""
    """How a person calls the encoder."""


Fusion = Literal["cosine", "rank"] | Callable[[int, Floats], Floats]
"""How scores of several generations become one list: as they are; by the place in the list of its own generation; or by a
function (generation, scores) -> scores that can be compared, such as a `retrieval.fusion.Calibration`."""


@dataclass(frozen=True)
class Hits:
    """What a search found, the best first."""

    scores: Floats
    """[Q, k], higher is better; −inf where there are fewer rows than k."""
    ids: NDArray[np.object_]
    """[Q, k], None where there are fewer rows than k."""
    generations: NDArray[np.int64]
    """[Q, k], the generation whose vector was compared; −1 where there are fewer rows than k."""


class Index(abc.ABC):
    """Stored vectors of one or several encoders: searchable, whole and right at every moment of a change between them.

    A row has one vector that counts, that of the newest generation it has reached. `begin` opens a new generation, `move` gives
    rows their vectors in it, `rollback` takes it back, `finish` drops what is older. Whatever returns is durable; whatever is
    interrupted has either happened for all of its rows or for none. Readers in other processes see every row, exactly once, at
    every moment. Vectors are float32 [N, dim] of length 1, ids are unique.
    """

    @abc.abstractmethod
    def generations(self) -> list[Generation]:
        """What is stored, the oldest first. Reads what other processes changed."""

    @abc.abstractmethod
    def counts(self) -> dict[int, int]:
        """Generation -> rows whose counting vector is of it."""

    @abc.abstractmethod
    def ids(self, generation: int, *, after: Id | None = None, limit: int = 10_000) -> list[Id]:
        """Ids of rows that stand in a generation, in an order of the store that does not change; page with `after`."""

    @abc.abstractmethod
    def fetch(self, ids: Sequence[Id]) -> tuple[list[Floats], list[int]]:
        """The vector that counts and its generation, for each id. Raises DataError for an id that is not there."""

    @abc.abstractmethod
    def add(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """New rows. Raises DataError for ids that exist, DataError and ShapeError for bad vectors, GenerationError."""

    @abc.abstractmethod
    def remove(self, ids: Sequence[Id]) -> None:
        """Rows go, in every generation. Raises DataError for an id that is not there."""

    @abc.abstractmethod
    def begin(self, generation: Generation) -> None:
        """Open the next generation; nothing happens when it is open already.

        Raises GenerationError for any other number or encoder.
        """

    @abc.abstractmethod
    def move(self, ids: Sequence[Id], vectors: Floats, generation: int) -> None:
        """Existing rows now have these vectors, of the newest generation; rows that are there already are overwritten.

        Raises DataError for an id that is not there, and what `add` raises.
        """

    @abc.abstractmethod
    def nearest(self, generation: int, queries: Floats, k: int) -> Hits:
        """The k rows of largest cosine among those that stand in a generation. queries [Q, dim of the generation]."""

    @abc.abstractmethod
    def rollback(self) -> None:
        """The newest generation is gone and every row is as it was before `begin`. May be interrupted and called again.

        Raises GenerationError when there is no older one, or when rows were added that have no older vector (remove them first).
        """

    @abc.abstractmethod
    def finish(self) -> None:
        """Older generations are gone. Raises GenerationError while rows still stand in one."""

    def close(self) -> None:  # noqa: B027 - most stores hold nothing open
        """Give back files and connections."""

    def search(self, queries: Mapping[int, Floats], k: int, fusion: Fusion = "cosine") -> Hits:
        """The k best rows over all generations.

        queries: generation -> the same queries [Q, dim], as `CompatibleHead.project` or each encoder gives them. Raises
        GenerationError where rows stand in a generation for which there is no query, or that the index does not know.
        """
        from instar.retrieval import fusion as fusing

        return fusing.search(self, queries, k, fusion)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Encoder(abc.ABC):
    """Turns texts into unit vectors."""

    name: str
    """How a person calls it."""
    dim: int
    fingerprint: str
    """SHA-256 over whatever decides the vectors: weights, pooling, prompts, lengths, dimensions kept."""

    @abc.abstractmethod
    def encode(
        self,
        texts: Sequence[str],
        kind: Literal["query", "document"] = "document",
        progress: Callable[[int, int], None] | None = None,
    ) -> Floats:
        """Unit vectors [N, dim], in the order of the texts. Raises ModelError for NaN or zero vectors, DataError for bad texts.

        kind: encoders that were trained with different prompts for queries and documents need to know. progress: called with
        (done, total).
        """
