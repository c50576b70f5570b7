"""Latent semantic analysis: TF-IDF of words, and the directions of largest variance among the documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instar import extras
from instar.doors.settings import optional, setting, whole
from instar.encoders import base, folders
from instar.errors import DataError, ModelError
from instar.interfaces import Floats

_KIND = "instar-lsa"
_WORDS = r"(?u)\b\w\w+\b"


@dataclass(frozen=True)
class Settings:
    """Of fitting; a fitted encoder keeps its own."""

    dims: int = setting(256, whole(1, 4096), "dimensions kept (default 256)")
    seed: int = setting(0, whole(0, 2**32 - 1), "of the randomised decomposition (default 0)")
    min_count: int = setting(2, whole(1), "leave out words that fewer documents have (default 2)")
    words: int | None = setting(50_000, optional(whole(1)), "the most frequent so many words (default 50000); none: all")


class Lsa(base.CheckedEncoder):
    """vector(text) = unit(C · x), x = unit((1 + log tf) · idf) over the words known, C [dims, words] the first right singular
    vectors of the documents' matrix.

    A text without any known word has the mean vector of the documents: it is as near to all of them. Fitting costs
    O(non-zeros · dims) with the randomised decomposition of scikit-learn (extra `text`). Source: Deerwester et al. 1990; the
    weights are those of Dumais 1991.

    Args:
        folder: what `save` wrote.

    Raises ModelError for a damaged folder.
    """

    def __init__(self, folder: str | Path) -> None:
        tables, facts = folders.read(Path(folder), _KIND, ("components", "idf", "mean"))
        words = facts.get("words") or []
        idf, components, mean = tables["idf"], tables["components"], tables["mean"]
        fits = isinstance(words, list) and len(set(map(str, words))) == len(words) == len(idf)
        if not fits or components.shape != (len(mean), len(idf)) or not len(idf):
            raise ModelError(f"{folder} does not hold one weight and one column for each word.")
        self._begin(words, idf, components, mean, f"lsa:{folder}")

    @classmethod
    def fit(cls, texts: Sequence[str], settings: Mapping[str, Any] | None = None) -> Lsa:
        """Learn from documents. Raises DataError for too few of them, ShapeError and UnknownNameError for settings."""
        asked = base.chosen(Settings, settings, "lsa")
        documents = base.checked(texts)
        if not documents:
            raise DataError("lsa has to be fitted on the texts of documents, and none are known.")
        vectoriser = _vectoriser(min_df=min(asked.min_count, len(documents)), max_features=asked.words)
        try:
            matrix = vectoriser.fit_transform(documents)
        except ValueError as error:
            raise DataError(f"LSA found no word that {asked.min_count} of {len(documents)} documents have.") from error
        if min(matrix.shape) <= asked.dims:
            raise DataError(
                f"LSA with {asked.dims} dimensions needs more than that of documents and of words; there are {matrix.shape[0]} "
                f"documents and {matrix.shape[1]} words. Set dims lower."
            )
        decomposition = extras.require("sklearn.decomposition", "text").TruncatedSVD(asked.dims, random_state=asked.seed)
        placed = decomposition.fit_transform(matrix)
        lengths = np.linalg.norm(placed, axis=1, keepdims=True)
        mean = (placed / np.where(lengths > 0, lengths, 1)).mean(0)  # of those that have a known word
        made = cls.__new__(cls)
        words = vectoriser.get_feature_names_out().tolist()
        idf, components = (np.asarray(a, np.float32) for a in (vectoriser.idf_, decomposition.components_))
        made._begin(words, idf, components, mean, base.called("lsa", settings))
        return made

    def _begin(self, words: list[str], idf: Floats, components: Floats, mean: Floats, name: str) -> None:
        self._words, self._idf, self._components, self._mean = words, idf, components, mean
        self._vectoriser = _vectoriser(vocabulary=words)
        self._vectoriser.idf_ = idf
        self.name, self.dim = name, len(mean)
        total = hashlib.sha256(json.dumps(words).encode())
        for table in (idf, components, mean):
            total.update(np.ascontiguousarray(table, "<f4").tobytes())
        self.fingerprint = base.fingerprint(total.hexdigest(), kind=_KIND)

    def save(self, folder: Path) -> None:
        """Write it, so that `Lsa(folder)` gives the same vectors. Raises OutputError."""
        tables = {"idf": self._idf, "components": self._components, "mean": self._mean}
        folders.write(Path(folder), _KIND, tables, {"words": self._words})

    def vectors(self, texts: Sequence[str], kind: base.Kind, progress: base.Progress | None) -> Floats:
        """See `CheckedEncoder.vectors`."""
        found = np.asarray(self._vectoriser.transform(texts) @ self._components.T, np.float32)
        found[~found.any(1)] = self._mean
        if progress is not None:
            progress(len(texts), len(texts))
        return found


def _vectoriser(**choices: Any) -> Any:
    text = extras.require("sklearn.feature_extraction.text", "text")
    return text.TfidfVectorizer(sublinear_tf=True, lowercase=True, token_pattern=_WORDS, dtype=np.float32, **choices)
