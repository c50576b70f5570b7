"""What every encoder does alike: texts are checked before, vectors after, and settings become a fingerprint."""

from __future__ import annotations

import abc
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from instar.doors import settings as reading
from instar.errors import DataError, ModelError, ShapeError, UnknownNameError
from instar.interfaces import Encoder, Floats

Kind = Literal["query", "document"]
Progress = Callable[[int, int], None]
Chosen = TypeVar("Chosen")

PROBE = "The quick brown fox jumps over the lazy dog."
"""What an encoder without weights is asked, to learn its width and a sketch of what it is."""
_LONGEST = 1_000_000
"""Characters of one text. No encoder reads so many; cutting a text into passages is the user's choice, not ours."""


class CheckedEncoder(Encoder):
    """An encoder whose texts and vectors are checked here; how vectors are made is `vectors`."""

    longest_input: int | None = None
    """Tokens after which a text is cut; None where it is not, or nobody knows."""

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens documents would be, if they were not cut; of encoders that have a `longest_input`."""
        raise ModelError(f"{self.name} does not count tokens.")

    @abc.abstractmethod
    def vectors(self, texts: Sequence[str], kind: Kind, progress: Progress | None) -> Floats:
        """Vectors [N, dim] of any length, in the order of the texts."""

    def encode(self, texts: Sequence[str], kind: Kind = "document", progress: Progress | None = None) -> Floats:
        """See `Encoder.encode`."""
        if kind not in ("query", "document"):
            raise UnknownNameError.among("kind of text", kind, ("query", "document"))
        given = checked(texts)
        if not given:
            return np.empty((0, self.dim), np.float32)
        found = np.asarray(self.vectors(given, kind, progress))
        if found.shape != (len(given), self.dim) or found.dtype.kind not in "fiu":
            raise ModelError(
                f"{self.name} gave {list(found.shape)} of {found.dtype} for {len(given)} texts; expected numbers "
                f"[{len(given)}, {self.dim}]."
            )
        return unit(found, self.name, given)


def checked(texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises DataError for what is no text, is blank, or is a book."""
    if isinstance(texts, str):
        raise DataError("An encoder expects a list of texts, received one text. Put it into a list.")
    found = list(texts)
    wrong = [i for i, text in enumerate(found) if not isinstance(text, str)]
    if wrong:
        raise DataError(f"Text {_places(wrong)} is no text but {type(found[wrong[0]]).__name__}.")
    if blank := [i for i, text in enumerate(found) if not text or text.isspace()]:
        raise DataError(f"Text {_places(blank)} is empty, so it has no vector. Leave it out.")
    if broken := [i for i, text in enumerate(found) if not text.isascii() and re.search("[\ud800-\udfff]", text)]:
        raise DataError(f"Text {_places(broken)} holds half a character (a lone surrogate), which no encoder reads. Mend it.")
    if long := [i for i, text in enumerate(found) if len(text) > _LONGEST]:
        raise DataError(
            f"Text {_places(long)} has {len(found[long[0]]):,} characters; at most {_LONGEST:,} are taken. Cut it into passages."
        )
    return found


def unit(vectors: Any, name: str, texts: Sequence[str]) -> Floats:
    """Rows of length 1, float32. Raises ModelError for rows that are not finite or zero, with the first such text."""
    found = np.asarray(vectors, dtype=np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", found, found, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        what = "zero" if lengths[bad[0]] == 0 else "NaN or infinite"
        raise ModelError(
            f"{name} gives {len(bad)} of {len(found)} texts a vector without direction; the first is {what}, for text "
            f"{bad[0] + 1}: {texts[bad[0]][:80]!r}."
        )
    return (found / lengths[:, None]).astype(np.float32)


def width(full: int, dims: int | None, name: str) -> int:
    """How many columns are kept: the first ones (Matryoshka), made unit vectors again. Raises ShapeError."""
    if dims is not None and dims > full:
        raise ShapeError(f"{name} has {full} dimensions; the setting dims expects at most that, received {dims}.")
    return full if dims is None else dims


def chosen(kind: type[Chosen], given: Mapping[str, Any] | None, source: str) -> Chosen:
    """The settings of an encoder. Raises UnknownNameError, ShapeError."""
    known = reading.meanings(kind)
    for name in given or {}:
        if name not in known:
            raise UnknownNameError.among(f"setting of {source}", name, known)
    return reading.read(kind, given or {})


def fingerprint(weights: str, **settings: Any) -> str:
    """SHA-256 over the hash of the weights and the settings that decide vectors; one that is None is as if it did not exist."""
    kept = {name: value for name, value in settings.items() if value is not None}
    return hashlib.sha256(json.dumps([weights, kept], sort_keys=True, ensure_ascii=False).encode(errors="replace")).hexdigest()


def sketch(vector: Floats) -> str:
    """32 bits of a vector: on which side of 32 fixed planes it lies.

    Part of the fingerprint where no weights can be hashed. It is weak: a fine-tune of the same model is noticed by some 19 in 20,
    and of servers whose vectors differ from call to call by an angle of 0.001, one call in 100 is taken for another model.
    """
    bits = np.frombuffer(hashlib.shake_256(b"instar planes").digest(4 * len(vector)), np.uint8)
    planes = np.unpackbits(bits).reshape(len(vector), 32) * 2.0 - 1.0
    return np.packbits(vector.astype(np.float64) @ planes > 0).tobytes().hex()


def called(source: str, settings: Mapping[str, Any] | None) -> str:
    """The source with its settings, as a person would write it."""
    told = ", ".join(f"{name}={' '.join(str(value).split())[:40]}" for name, value in (settings or {}).items())
    return f"{source} ({told})" if told else source


def _places(at: Sequence[int]) -> str:
    more = f" (and {len(at) - 1} more)" if len(at) > 1 else ""
    return f"{at[0] + 1} of the list{more}"
