"""Encoders that are Python functions."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instar.doors import settings as reading
from instar.encoders import base
from instar.errors import InstarError, ModelError, UnknownNameError
from instar.interfaces import Floats
from instar.locate import file_of, locate

_BATCH = 256


class Function(base.CheckedEncoder):
    """A function `f(texts) -> vectors`, given at most `batch` texts at a time.

    Vectors are an array or tensor [N, D], or a list of lists; they are made unit vectors here. A parameter named `kind` is given
    "query" or "document"; further parameters are settings. The fingerprint is over the bytes of the function's file, the
    settings, and the vector of one sentence: what the function reads elsewhere is seen through that sentence alone.

    Args:
        source: `path/to/file.py:name` or `package.module:name`. settings: `batch` (256), and parameters of the function.

    Raises what `locate` raises, ModelError when it is nothing to call or fails, UnknownNameError, ShapeError.
    """

    def __init__(self, source: str, settings: Mapping[str, Any] | None = None) -> None:
        function = locate(source)
        in_file = source.rpartition(":")[0].endswith(".py")
        self._begin(function, source, settings, file_of(source).read_bytes() if in_file else _file(function))

    @classmethod
    def of(cls, function: Callable[..., Any], name: str = "", settings: Mapping[str, Any] | None = None) -> Function:
        """An encoder from a function, or any object to call, that is at hand."""
        made = cls.__new__(cls)
        called = name or getattr(function, "__qualname__", type(function).__qualname__)
        made._begin(function, called, settings, _file(function))
        return made

    def _begin(self, function: Any, source: str, settings: Mapping[str, Any] | None, code: bytes) -> None:
        if not callable(function) or inspect.isclass(function):
            raise ModelError(f"{source} is {type(function).__name__}; name a function that is given texts and returns vectors.")
        defaults, open_ended = _parameters(function)
        given = dict(settings or {})
        for name in given:
            if name != "batch" and name not in defaults and not open_ended:
                raise UnknownNameError.among(f"setting of {source}", name, ["batch", *defaults])
        self._batch = reading.value_of("batch", given.pop("batch", _BATCH), reading.whole(1, 2**20))
        self._function, self._wants_kind = function, "kind" in defaults and "kind" not in given
        self._fixed = {name: reading.value_of(name, value, reading.like(defaults.get(name))) for name, value in given.items()}
        self.name = base.called(source, given)
        probe = base.unit(self._call([base.PROBE], "document"), self.name, [base.PROBE])
        self.dim = probe.shape[1]
        settled = {name: repr(value) for name, value in self._fixed.items()}
        self.fingerprint = base.fingerprint(
            hashlib.sha256(code).hexdigest(), kind="function", settings=settled, probe=base.sketch(probe[0])
        )

    def vectors(self, texts: Sequence[str], kind: base.Kind, progress: base.Progress | None) -> Floats:
        """See `CheckedEncoder.vectors`."""
        found = []
        for start in range(0, len(texts), self._batch):
            found.append(self._call(texts[start : start + self._batch], kind))
            if progress is not None:
                progress(min(start + self._batch, len(texts)), len(texts))
        if any(part.shape[1] != self.dim for part in found):
            raise ModelError(
                f"{self.name} gives vectors of {sorted({p.shape[1] for p in found})} dimensions, not {self.dim} each."
            )
        return np.concatenate(found)

    def _call(self, texts: Sequence[str], kind: base.Kind) -> Floats:
        extra = {"kind": kind} if self._wants_kind else {}
        try:
            found = self._function(list(texts), **extra, **self._fixed)
            found = found.detach().float().cpu().numpy() if hasattr(found, "detach") else found
            matrix = np.asarray(found)
            with np.errstate(over="ignore"):  # what becomes infinite is refused with its text
                matrix = matrix.astype(np.float32) if matrix.dtype.kind in "fiu" else matrix
        except InstarError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{self.name} failed: {type(error).__name__}: {str(error)[:300]}") from error
        if matrix.dtype != np.float32 or matrix.ndim != 2 or len(matrix) != len(texts) or not matrix.shape[1]:
            raise ModelError(
                f"{self.name} returned {list(matrix.shape)} of {matrix.dtype} for {len(texts)} texts; it must return numbers "
                f"[{len(texts)}, width], a row for each text."
            )
        return matrix


def _file(function: Any) -> bytes:
    """The file that defines a function; nothing where there is none, as for functions typed into a shell."""
    try:
        return Path(inspect.getsourcefile(function) or "").read_bytes()
    except (OSError, TypeError):
        return b""


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Name -> default of all parameters but the first, and whether any other name is taken too."""
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C do not tell
        return {}, False
    named = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: p.default for p in named[1:]}, any(p.kind is p.VAR_KEYWORD for p in found)
