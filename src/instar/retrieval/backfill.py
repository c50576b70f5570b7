"""Re-encode the rows of an index while it is in use.

    bridge = Bridge(open_encoder("all-MiniLM-L6-v2"))
    with open_index("exact:store") as index:
        outcome = Backfill(index, bridge.generation(index), bridge.documents, texts).run()

Nothing but the index knows how far a change has come: what is left are the rows that stand in an older generation. A backfill
that was killed is therefore begun again, and goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from instar.errors import DataError, ModelError, ShapeError
from instar.interfaces import Floats, Generation, Id, Index
from instar.retrieval import order as ordering
from instar.retrieval.probe import Probe
from instar.retrieval.realised import Log
from instar.retrieval.throttle import Throttle
from instar.retrieval.verify import Verification

Encode = Callable[[Sequence[str]], Floats]
"""Texts -> unit vectors [N, dim] of the new generation."""
_PLAIN = "The quick brown fox jumps over the lazy dog."
_PAGE = 10_000


@dataclass
class Outcome:
    """What a backfill did, and what it could not do. Rows that are named here are as they were, and searchable."""

    moved: int = 0
    left: int = 0
    """Rows that still stand in an older generation."""
    rows: int = 0
    """In the index, at the end."""
    lost: int = 0
    """Rows fewer than at the beginning, beyond those that another program was seen to remove."""
    lacking: list[Id] = field(default_factory=list)
    """There is no text for them."""
    failed: dict[Id, str] = field(default_factory=dict)
    """The encoder failed on their texts, and how."""
    unfound: list[Id] = field(default_factory=list)
    """Written, but not found by their own vectors."""
    checked: int = 0
    stopped: bool = False
    """Whether it was asked to stop before its end."""
    seconds: float = 0.0
    encode_seconds: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(share of re-encoded rows, recall of the probe)."""

    @property
    def clean(self) -> bool:
        """Whether every row that should have moved has moved and is found."""
        return not (self.lost or self.lacking or self.failed or self.unfound)


class Backfill:
    """Moves the rows of an index to a new generation, in an order, at a rate, with everything that is written read back.

    Args:
        index: opened for writing. generation: the one to move to; it is begun if it is not open.
        encode: texts -> unit vectors of that generation. texts: id (as text) -> its text.
        order: which rows go first, see `retrieval.order`. seed: of the order.
        batch: rows that are encoded and moved at a time. rate: most rows a second, or a `Throttle`.
        until: share of all rows (0 to 1), or a number of rows (above 1), that are to stand in the new generation.
        verify: what is read back; None for the usual sample. probe: queries with known answers. log: JSON lines, see `Log`.

    O(N log N) for the order, then one `move` a batch; memory holds the ids of all rows that are left.
    """

    def __init__(
        self,
        index: Index,
        generation: Generation,
        encode: Encode,
        texts: Mapping[str, str],
        *,
        order: ordering.Order = ordering.random,
        seed: int = 0,
        batch: int = 256,
        rate: float | Throttle | None = None,
        until: float = 1.0,
        verify: Verification | None = None,
        probe: Probe | None = None,
        log: Path | None = None,
    ) -> None:
        if batch < 1:
            raise ShapeError(f"A batch has 1 row or more; received {batch}.")
        if not math.isfinite(until) or until < 0 or (until > 1 and until != int(until)):
            raise ShapeError(f"`until` is a share from 0 to 1 or a whole number of rows; received {until}.")
        self.index, self.generation, self.encode, self.texts = index, generation, encode, texts
        self.order, self.seed, self.until = order, seed, until
        self.throttle = rate if isinstance(rate, Throttle) else Throttle(rate)
        self.batch = self.throttle.batch(batch)
        self.verify = Verification() if verify is None else verify
        self.probe, self.log = probe, Log(log, generation.encoder)
        self._stop = False

    def stop(self) -> None:
        """Ask it to end after the batch that is under way; may be called from a signal handler or another thread."""
        self._stop = True

    def run(self, progress: Callable[[int, int], None] | None = None) -> Outcome:
        """Work until nothing is left, `until` is reached or `stop` is called.

        progress: called with (rows in the new generation, rows that are to be there). Raises StoreError where the store fails
        or does not hold what was written, ModelError where the encoder fails on every text, GenerationError for a generation
        that does not follow and for a probe that falls too far; whatever was moved until then stays moved.
        """
        started, outcome = time.monotonic(), Outcome()
        self.index.begin(self.generation)
        counts = self.index.counts()
        before, there = sum(counts.values()), counts.get(self.generation.number, 0)
        # The share as it is written: in floating point 0.07 · 100 lies above 7.
        target = math.ceil(Fraction(str(self.until)) * before) if self.until <= 1 else min(int(self.until), before)
        first = self.log.first_recall()
        due = self._measure(outcome, there, before, first, -math.inf)
        gone = 0
        while not self._stop and there < target and (left := self._left(outcome)):
            for start in range(0, len(left), self.batch):
                part = left[start : start + min(self.batch, target - there)]
                if not part:
                    break
                self.throttle.wait(len(part), lambda: self._stop)
                if self._stop:  # perhaps while it waited: this batch has not begun, and it is not yet its time
                    break
                names, vectors = self._vectors(part, outcome)
                moved = self._move(names, vectors)
                gone += len(names) - moved
                there, outcome.moved = there + moved, outcome.moved + moved
                due = self._measure(outcome, there, before, first, due)
                if progress is not None:
                    progress(there, target)
        self._measure(outcome, there, before, first, -math.inf)
        counts = self.index.counts()
        outcome.rows = sum(counts.values())
        outcome.left = outcome.rows - counts.get(self.generation.number, 0)
        outcome.lost = max(0, before - gone - outcome.rows)
        outcome.unfound, outcome.checked = list(self.verify.unfound), self.verify.checked
        outcome.stopped, outcome.seconds = self._stop, time.monotonic() - started
        return outcome

    def _left(self, outcome: Outcome) -> list[Id]:
        """Rows of older generations in their order, without those that failed in this run."""
        passed = {*outcome.lacking, *outcome.failed}
        found: list[Id] = []
        for older in self.index.generations():
            if older.number >= self.generation.number:
                continue
            after = None
            while page := self.index.ids(older.number, after=after, limit=_PAGE):
                found += [name for name in page if name not in passed]
                after = page[-1]
        if len({str(name) for name in found}) < len(found):
            twice = next(name for name in found if isinstance(name, int) and str(name) in found)
            raise DataError(
                f"The index has a row {twice!r} and another one {str(twice)!r}; texts are given by the id as text, so they "
                "cannot be told apart. Remove one of the two."
            )
        return ordering.arrange(self.index, found, self.order, self.seed)

    def _vectors(self, part: Sequence[Id], outcome: Outcome) -> tuple[list[Id], Floats]:
        """Those of a batch that have a text and a vector; the others are noted."""
        texts = {name: self.texts.get(str(name)) for name in part}
        outcome.lacking += [name for name, text in texts.items() if text is None]
        known = {name: text for name, text in texts.items() if text is not None}
        begun = time.monotonic()
        try:
            return list(known), self._encoded(list(known.values()))
        except Exception as error:  # an encoder may be anybody's function
            vectors, failed = self._one_by_one(known, error)
        finally:
            outcome.encode_seconds += time.monotonic() - begun
        outcome.failed.update(failed)
        return list(vectors), np.array(list(vectors.values()), np.float32).reshape(len(vectors), self.generation.dim)

    def _one_by_one(self, known: Mapping[Id, str], error: Exception) -> tuple[dict[Id, Floats], dict[Id, str]]:
        vectors: dict[Id, Floats] = {}
        failed: dict[Id, str] = {}
        self._alive(error)
        for name, text in known.items():
            try:
                vectors[name] = self._encoded([text])[0]
            except Exception as reason:
                failed[name] = f"{type(reason).__name__}: {reason}"
        return vectors, failed

    def _alive(self, error: Exception) -> None:
        """An encoder that fails on a plain sentence too is gone, and the texts are not to blame."""
        try:
            self._encoded([_PLAIN])
        except Exception as again:
            raise ModelError(
                f"The encoder of generation {self.generation.number} fails on a batch ({error}) and on a plain sentence "
                f"({type(again).__name__}: {again}). What was moved stays moved; repair it and call again to go on."
            ) from again

    def _encoded(self, texts: list[str]) -> Floats:
        if not texts:
            return np.empty((0, self.generation.dim), np.float32)
        found = np.asarray(self.encode(texts), np.float32)
        if found.shape != (len(texts), self.generation.dim):
            raise ShapeError(
                f"The encoder gave {list(found.shape)} for {len(texts)} texts; generation {self.generation.number} expects "
                f"[{len(texts)}, {self.generation.dim}]."
            )
        if bad := int((~np.isfinite(found).all(1) | (np.abs(found).max(1) == 0)).sum()):
            raise ModelError(f"The encoder gave {bad} of {len(texts)} texts a vector that is zero or not finite.")
        return found

    def _move(self, names: list[Id], vectors: Floats) -> int:
        """Move and read back; rows that another program has removed meanwhile are left out."""
        if not names:
            return 0
        try:
            self.index.move(names, vectors, self.generation.number)
        except DataError:
            there = [i for i, name in enumerate(names) if self._exists(name)]
            if len(there) == len(names):
                raise
            names, vectors = [names[i] for i in there], vectors[there]
            if names:
                self.index.move(names, vectors, self.generation.number)
        try:
            self.verify.batch(self.index, names, vectors, self.generation.number)
        except DataError:  # some were removed since they moved
            there = [i for i, name in enumerate(names) if self._exists(name)]
            names, vectors = [names[i] for i in there], vectors[there]
            self.verify.batch(self.index, names, vectors, self.generation.number)
        return len(names)

    def _exists(self, name: Id) -> bool:
        try:
            self.index.fetch([name])
        except DataError:
            return False
        return True

    def _measure(self, outcome: Outcome, there: int, total: int, first: float | None, due: float) -> float:
        """Ask the probe if it is time; returns the share of rows at which it is time again."""
        fraction = there / total if total else 1.0
        if self.probe is None or (fraction < due and fraction < 1):
            return due
        if outcome.curve and outcome.curve[-1][0] == fraction:
            return due
        recall = self.probe.recall(self.index)
        outcome.curve.append((fraction, recall))
        start = outcome.curve[0][1] if first is None else first
        expected = self.probe.expected(fraction, start)
        self.log.add(time=round(time.time(), 3), rows=there, fraction=fraction, recall=recall, expected=expected)
        self.probe.judge(fraction, recall, start)
        return (math.floor(fraction / self.probe.every + 1e-9) + 1) * self.probe.every
