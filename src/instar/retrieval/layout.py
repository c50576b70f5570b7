"""How the generations of an index lie in spaces of vectors: each in its own (`Apart`); `retrieval.padded` knows another way."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence

from instar.interfaces import Floats, Fusion, Generation, Hits, Index
from instar.retrieval import fusion
from instar.retrieval.approximate import Mask
from instar.retrieval.spaces import Slots, Space

Nearest = Callable[[Floats, int], Hits]
"""(queries, k) -> the nearest in a space over all its rows."""


class Layout(abc.ABC):
    """What an index asks."""

    @abc.abstractmethod
    def key(self, generation: int) -> int:
        """Which space holds a generation."""

    @abc.abstractmethod
    def base(self, space: Space) -> Space:
        """The space that the base is searched in."""

    @abc.abstractmethod
    def allow(self, held: Sequence[Generation], new: Generation) -> None:
        """Raises GenerationError, ShapeError for a generation that finds no place."""

    @abc.abstractmethod
    def stored(self, generation: int, vectors: Floats) -> Floats:
        """Unit vectors as the space holds them."""

    @abc.abstractmethod
    def taken(self, generation: int, held: Floats) -> Floats:
        """The unit vectors of what a space holds."""

    @abc.abstractmethod
    def nearest(
        self, space: Space, generation: int, queries: Floats, k: int, standing: Callable[[], Mask]
    ) -> tuple[Floats, Slots]:
        """Cosines and slots of the nearest among the rows of a generation. standing: gives the slots of its rows."""

    @abc.abstractmethod
    def search(self, index: Index, queries: Mapping[int, Floats], k: int, how: Fusion, shared: Nearest) -> Hits:
        """The best rows over all generations. shared: searches the space that holds the newest."""


class Apart(Layout):
    """A space for each generation; what it holds are the unit vectors themselves."""

    def key(self, generation: int) -> int:
        return generation

    def base(self, space: Space) -> Space:
        return space

    def allow(self, held: Sequence[Generation], new: Generation) -> None:
        """There is always room for one more."""

    def stored(self, generation: int, vectors: Floats) -> Floats:
        return vectors

    def taken(self, generation: int, held: Floats) -> Floats:
        return held

    def nearest(
        self, space: Space, generation: int, queries: Floats, k: int, standing: Callable[[], Mask]
    ) -> tuple[Floats, Slots]:
        return space.search(queries, k)

    def search(self, index: Index, queries: Mapping[int, Floats], k: int, how: Fusion, shared: Nearest) -> Hits:
        return fusion.search(index, queries, k, how)
