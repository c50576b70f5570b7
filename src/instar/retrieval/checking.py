"""What every index asks of ids, vectors and generations before it takes them."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError, GenerationError, ShapeError
from instar.interfaces import Floats, Generation, Id

LENGTH = 1e-3
"""How far from 1 the length of a unit vector may lie: float16 and bfloat16 on the way still pass, cut vectors do not."""
_BLOCK = 65536
_MOST = 100_000_000
"""Results of one search: about 2 GB of scores, ids and generations."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """A value for a message: what is long is cut in its middle."""
    return _SHORT.repr(value)


def vectors(values: Any, dim: int, what: str = "vectors", count: int | None = None) -> Floats:
    """float32 [N, dim] of length 1, contiguous; the same array where it is that already.

    count: how many rows there have to be. Raises ShapeError for another type, width or number of rows, DataError for rows that
    are not finite, zero, or not of length 1.
    """
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        received = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ShapeError(f"The {what} expect a numpy array of float32, received {received}; convert with .astype(numpy.float32).")
    if values.ndim != 2 or values.shape[1] != dim:
        raise ShapeError(f"The {what} expect [N, {dim}], received {list(values.shape)}.")
    if count is not None and len(values) != count:
        raise ShapeError(f"The {what} expect one row for each of the {count} ids, received {len(values)}.")
    found = np.ascontiguousarray(values)
    lengths(found, what)
    return found


def lengths(rows: Floats, what: str, tolerance: float = LENGTH) -> None:
    """Raises DataError unless every row of [N, D] is finite and of length 1."""
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        squares = np.einsum("nd,nd->n", block, block)
        good = np.abs(np.sqrt(squares) - 1) <= tolerance  # False for NaN
        if good.all():
            continue
        place = int(np.flatnonzero(~good)[0])
        bad = f"{int((~good).sum())} of {len(block)} {what} (the first is row {start + place})"
        if not np.isfinite(block[place]).all():
            raise DataError(f"{bad} hold NaN or infinity; encode those items again or leave them out.")
        if squares[place] == 0:
            raise DataError(f"{bad} are zero, so they have no direction; encode those items again or leave them out.")
        raise DataError(
            f"{bad} are not unit vectors: length {squares[place] ** 0.5:.4g}. Divide each row by its length; if it was cut to "
            "fewer dimensions, that has to happen after the cut."
        )


def ids(values: Sequence[Any], what: str = "ids") -> list[Id]:
    """Integers (64 bit) and texts as plain Python, each once. Raises DataError."""
    if isinstance(values, str | bytes):
        raise DataError(f"The {what} expect a list, received the single text {shown(values)}.")
    found: list[Id] = values.tolist() if isinstance(values, np.ndarray) else [_plain(value) for value in values]
    for one in found:
        if isinstance(one, bool) or not isinstance(one, int | str):
            raise DataError(f"The {what} expect integers or texts, received {shown(one)} of type {type(one).__name__}.")
        if isinstance(one, int) and not -(2**63) <= one < 2**63:
            raise DataError(f"The {what} expect integers of 64 bits, received {one}.")
    if len(set(found)) != len(found):
        seen: set[Id] = set()
        twice = next(one for one in found if one in seen or seen.add(one))  # type: ignore[func-returns-value]
        raise DataError(f"{len(found) - len(set(found))} {what} appear twice, the first is {shown(twice)}; give each row once.")
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def some(names: Sequence[Id]) -> str:
    """A few ids for a message."""
    return ", ".join(map(shown, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def meant(known: dict[int, str], found: Generation, where: str) -> None:
    """Raises GenerationError for a generation that is of another encoder than when this process first met it.

    known: generation -> encoder, of what this process has met; vectors of the first one would now be strangers.
    """
    if known.setdefault(found.number, found.encoder) != found.encoder:
        raise GenerationError(
            f"Generation {found.number} of {where} is of the encoder {found.encoder[:16]} now: another process has opened it "
            f"anew since this one did, for {known[found.number][:16]}. Call begin again with the right encoder."
        )


def among(generations: Sequence[Generation], number: int) -> Generation:
    """The generation of that number. Raises GenerationError."""
    for one in generations:
        if one.number == number:
            return one
    held = ", ".join(f"{g.number} ({g.name or g.encoder[:12]})" for g in generations) or "none"
    raise GenerationError(f"The index holds no generation {number!r}, only {held}.")


def opens(generations: Sequence[Generation], new: Generation) -> bool:
    """Whether `begin(new)` has something to do; not when that generation is open. Raises GenerationError, ShapeError."""
    described(new)
    newest = generations[-1]
    if new.number == newest.number:
        if (new.encoder, new.dim) == (newest.encoder, newest.dim):
            return False
        raise GenerationError(
            f"Generation {new.number} is open for the encoder {newest.encoder[:16]} of dimension {newest.dim}; received "
            f"{new.encoder[:16]} of dimension {new.dim}. Take the open one back with rollback, or go on with its encoder."
        )
    if new.number != newest.number + 1:
        raise GenerationError(f"The next generation is {newest.number + 1}, received {new.number}.")
    if new.encoder in {g.encoder for g in generations}:
        raise GenerationError(f"The encoder {new.encoder[:16]} has made an older generation already; a new one needs another.")
    return True


def described(generation: Generation) -> None:
    """Raises GenerationError, ShapeError for a generation that cannot be one."""
    if not generation.encoder:
        raise GenerationError(
            f"Generation {generation.number} has no fingerprint of its encoder; without it strangers cannot be told."
        )
    if generation.number < 0 or generation.dim < 1:
        raise ShapeError(f"A generation expects a number from 0 and a dimension from 1, received {generation}.")


def adopted(generation: Generation | None) -> Generation:
    """The generation as which an index is stamped. Raises GenerationError, ShapeError."""
    if generation is None:
        raise GenerationError("Adopting expects the generation, with the fingerprint of the encoder that made the vectors.")
    described(generation)
    return generation


def asked(generation: Generation, queries: Any, k: int) -> Floats:
    """Queries [Q, dim] of a generation, Q ≥ 0. Raises ShapeError, DataError."""
    results(k)
    found = vectors(queries, generation.dim, f"queries of generation {generation.number}")
    if len(found) * int(k) > _MOST:
        raise ShapeError(f"{len(found)} queries with k = {k} are more than {_MOST} results; ask for fewer at a time.")
    return found


def results(k: Any) -> None:
    """Raises ShapeError for what is no number of results."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= _MOST:
        raise ShapeError(f"k expects a whole number from 1 to {_MOST}, received {k!r}.")


def empty(queries: int, k: int) -> tuple[Floats, NDArray[np.object_], NDArray[np.int64]]:
    """Scores, ids and generations [Q, k] of a search that found nothing."""
    return (
        np.full((queries, k), -np.inf, np.float32),
        np.full((queries, k), None, dtype=object),
        np.full((queries, k), -1, np.int64),
    )
