"""From texts to what an index whose encoder changes needs: vectors of its new rows, and queries for every generation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from instar.errors import GenerationError, ShapeError
from instar.interfaces import CompatibleHead, Encoder, Floats, Fusion, Generation, Index
from instar.retrieval.calibrating import FromRows

if TYPE_CHECKING:
    from instar.compat.saved import Saved


class Bridge:
    """The new encoder, and what reaches the rows that are still old: a head, the old encoder, or nothing.

    Generations are told apart by their fingerprints, so that a head's numbers need not be those of the store.

    Args:
        encoder: the new one. saved: a head with the fingerprints it was fitted for. old: encodes queries of old rows itself.

    Raises GenerationError for a head of another encoder, ShapeError for a head that reads other widths.
    """

    def __init__(self, encoder: Encoder, saved: Saved | None = None, old: Encoder | None = None) -> None:
        self.encoder, self.old = encoder, old
        self.head = None if saved is None else saved.head
        self._calibration = None if saved is None else saved.calibration
        self._known = {} if saved is None else {g.encoder: g.number for g in saved.generations}
        if self.head is None or saved is None:
            self.fingerprint, self.dim = encoder.fingerprint, encoder.dim
            return
        newest = saved.generations[-1]
        if (received := stamp(encoder.fingerprint, self.head)) != newest.encoder:
            raise GenerationError(
                f"The head was fitted for {newest.name or 'an encoder'} ({newest.encoder[:12]}); with {encoder.name} it gives "
                f"other vectors ({received[:12]}). Give the encoder that it was fitted for, with the same settings."
            )
        if self.head.input_dim != encoder.dim:
            raise ShapeError(f"The head reads vectors of {self.head.input_dim}; {encoder.name} gives {encoder.dim}.")
        self.fingerprint, self.dim = newest.encoder, self.head.full_dim

    def generation(self, index: Index) -> Generation:
        """The generation of the new rows: the newest of the index where that is ours, otherwise the next."""
        newest = index.generations()[-1]
        if newest.encoder == self.fingerprint:
            return newest
        return Generation(newest.number + 1, self.fingerprint, self.dim, self.encoder.name)

    def documents(self, texts: Sequence[str]) -> Floats:
        """[N, dim], what rows of the new generation store."""
        return self._full(self.encoder.encode(texts, "document"))

    def queries(
        self, texts: Sequence[str], index: Index, progress: Callable[[int, int], None] | None = None
    ) -> dict[int, Floats]:
        """Generation -> the texts as its queries, for every one that holds rows, and for ours.

        Raises GenerationError where rows stand in a generation that neither encoder nor head reaches.
        """
        found: dict[int, Floats] = {}
        counts = index.counts()
        new = self.encoder.encode(texts, "query", progress)
        for stored in index.generations():
            if stored.encoder == self.fingerprint:
                found[stored.number] = self._full(new)
            elif self.head is not None and stored.encoder in self._known:
                found[stored.number] = _unit(self.head.project(as_read(self.head, new), self._known[stored.encoder]))
            elif self.old is not None and stored.encoder == self.old.fingerprint:
                found[stored.number] = self.old.encode(texts, "query")
            elif counts.get(stored.number):
                raise GenerationError(self._unreached(stored, counts[stored.number]))
        return found

    def fusion(self, how: str, index: Index) -> Fusion:
        """How scores become one list: cosine, rank, or calibrated by the head's own scores, else by those of the rows.

        Raises ShapeError for another word.
        """
        if how == "rank":
            return "rank"
        if how == "cosine":
            return "cosine"
        if how != "calibrated":
            raise ShapeError(f"Scores are merged by cosine, rank or calibrated; received '{how}'.")
        calibration, stored = self._calibration, index.generations()
        if len(stored) == 1:
            return "cosine"
        numbers = {g.number: self._known[g.encoder] for g in stored if g.encoder in self._known}
        if calibration is None or not all(numbers.get(g.number) in calibration.quantiles for g in stored):
            return FromRows(index)
        return lambda number, scores: calibration(numbers[number], scores)

    def _full(self, vectors: Floats) -> Floats:
        return vectors if self.head is None else _unit(self.head.full(as_read(self.head, vectors)))

    def _unreached(self, stored: Generation, rows: int) -> str:
        have = f"{self.encoder.name} ({self.fingerprint[:12]})"
        if self.old is not None:
            have += f" and {self.old.name} ({self.old.fingerprint[:12]})"
        return (
            f"{rows} rows stand in generation {stored.number}, made by {stored.name or 'an encoder'} ({stored.encoder[:12]}); "
            f"received {have}. Give a head that was fitted for both, or that encoder itself, with the same settings."
        )


def stamp(encoder: str, head: CompatibleHead) -> str:
    """Fingerprint of what a head's full vectors are: the encoder's own where the head leaves its vectors as they are.

    encoder: fingerprint of the encoder. Otherwise SHA-256 over it, the method and the head's tensors.
    """
    if _leaves_alone(head):
        return encoder
    found = hashlib.sha256(f"{encoder}\0{type(head).__name__}\0".encode())
    for name, value in sorted(head.state_dict().items()):
        found.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def _leaves_alone(head: CompatibleHead) -> bool:
    """Whether `full` is the identity up to length; a few directions decide, since nothing but the identity fixes them all."""
    if not head.input_dim == head.new_dim == head.full_dim:
        return False
    x = torch.randn(8, head.new_dim, generator=torch.Generator().manual_seed(0))
    found = torch.from_numpy(_unit(head.full(as_read(head, x.numpy()))))
    return bool(torch.allclose(found, torch.nn.functional.normalize(x, dim=1), atol=1e-5))


def as_read(head: CompatibleHead, vectors: Floats) -> Tensor:
    """Vectors [N, input_dim] in the precision of a head (float32 or float64), and where it is."""
    found = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    return found.to(next((own for own in head.state_dict().values() if own.is_floating_point()), found))


def _unit(vectors: Tensor) -> Floats:
    return torch.nn.functional.normalize(vectors.detach().float().cpu(), dim=1).numpy()
