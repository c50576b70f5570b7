"""From what a user names to an encoder."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instar.encoders import files
from instar.errors import DataError, ModelError
from instar.interfaces import Encoder

KINDS = (
    "a model of transformers (a packaged name, a folder, a hub id in the local cache), st:MODEL (run by sentence-transformers), "
    "lsa or bow (fitted on the documents), lsa:FOLDER or bow:FOLDER (fitted before), wordllama, http(s)://…/v1#model, "
    "file.py:function or package.module:function"
)

Texts = Sequence[str] | None
Opener = Callable[[str, Mapping[str, Any], Texts], Encoder]


def open_encoder(source: str, settings: Mapping[str, Any] | None = None, *, texts: Texts = None) -> Encoder:
    """The encoder behind a name.

    Args:
        source: see KINDS. `lsa:FOLDER` of a folder that does not exist yet is fitted on `texts` and kept there.
        settings: `name=value` of this encoder; each kind has its own.
        texts: the documents, for what is fitted on them.

    Raises UnknownNameError, ShapeError, ModelError, DataError (nothing to fit on), MissingExtraError.
    """
    given = dict(settings or {})
    kind, _, rest = source.partition(":")
    if source.startswith(("http://", "https://")):
        from instar.encoders.endpoint import Endpoint

        return Endpoint(source, given)
    if kind == "st" and rest:
        from instar.encoders.sentence import Sentence

        return Sentence(rest, given)
    if kind in ("lsa", "bow"):
        return _fitted(kind, rest, given, texts)
    if source == "wordllama":
        from instar.encoders.static import Static

        return Static.packaged(source, given)
    if rest and not os.path.exists(Path(source).expanduser()):  # noqa: PTH110 - a text too long for a name is no file
        from instar.encoders.function import Function

        return Function(source, given)
    if os.path.isfile(Path(source).expanduser()):  # noqa: PTH113 - a text too long for a name is no file
        raise DataError(
            f"{source} is a file, and no encoder. Files of vectors, where they are taken, end in {', '.join(files.KINDS)}. "
            f"An encoder is {KINDS}."
        )
    from instar.encoders.transformer import Transformer

    return Transformer(source, given)


def of(subject: Any, tokenizer: Any = None, *, name: str = "", settings: Mapping[str, Any] | None = None) -> Encoder:
    """An encoder from what is at hand: a SentenceTransformer, a model of transformers with its tokenizer, a function.

    Raises ModelError for anything else, and what the encoder raises.
    """
    from torch import nn

    if tokenizer is not None and isinstance(subject, nn.Module):
        from instar.encoders.transformer import Transformer

        return Transformer.of(subject, tokenizer, name, settings)
    if any(one.__name__ == "SentenceTransformer" for one in type(subject).__mro__):
        from instar.encoders.sentence import Sentence

        return Sentence.of(subject, name, settings)
    if isinstance(subject, nn.Module) or not callable(subject) or inspect.isclass(subject):
        raise ModelError(
            f"An encoder is made of a function, a SentenceTransformer, or a model of transformers with its tokenizer; received "
            f"{type(subject).__name__}{'' if not isinstance(subject, nn.Module) else ' without a tokenizer'}."
        )
    from instar.encoders.function import Function

    return Function.of(subject, name, settings)


def _fitted(kind: str, folder: str, settings: Mapping[str, Any], texts: Texts) -> Encoder:
    from instar.encoders.lsa import Lsa
    from instar.encoders.static import Static

    known = Lsa if kind == "lsa" else Static
    path = Path(folder).expanduser() if folder else None
    if path is not None and path.is_dir():
        if settings:
            raise DataError(f"{kind}:{folder} is fitted already, so it takes no settings; received {', '.join(settings)}.")
        return known(path)
    made = known.fit(texts or (), settings)
    if path is not None:
        made.save(path)
        return known(path)
    return made
