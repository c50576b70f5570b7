"""Encoders that the library sentence-transformers runs: every module and prompt that such a model may have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instar import extras
from instar.data import pretrained
from instar.doors.settings import optional, setting, template, whole
from instar.encoders import base
from instar.errors import InstarError, ModelError
from instar.interfaces import Floats

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_ENDLESS = 10**7
"""Tokens from which on a longest input is a way to say that there is none."""
_SLICE = 2048
"""Texts between two calls of progress; the library orders them by length within."""


@dataclass(frozen=True)
class Settings:
    """What decides the vectors, and how they are made."""

    prompt: str | None = setting(
        None, optional(template), "what is encoded of a query, with {input} for its text; default: the model's own prompt"
    )
    document_prompt: str | None = setting(None, optional(template), "the same for documents")
    max_length: int | None = setting(None, optional(whole(1)), "most tokens of a text; default: the model's own")
    dims: int | None = setting(None, optional(whole(1)), "keep only the first so many dimensions (Matryoshka)")
    batch: int = setting(32, whole(1), "texts at a time (default 32)")
    device: str = setting("cpu", str, "where it runs: cpu (default), cuda, cuda:1, mps")


class Sentence(base.CheckedEncoder):
    """`encode_query` and `encode_document` of a SentenceTransformer, made unit vectors.

    Loaded from safetensors only, without network and without code of the folder. Needs the extra `sentence-transformers`.

    Args:
        source: a packaged name, a folder, or a hub id in the local cache. settings: see `Settings`.

    Raises what finding the folder raises, ModelError when the library cannot load it, ShapeError, UnknownNameError.
    """

    def __init__(self, source: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        asked = base.chosen(Settings, settings, f"st:{source}")
        library = extras.require("sentence_transformers", "sentence-transformers")
        folder = _folder(source)
        safe = {"local_files_only": True, "trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
        try:
            with pretrained.quiet(extras.require("transformers", "models")):
                model = library.SentenceTransformer(str(folder), device=asked.device, **safe)
        except InstarError:
            raise
        except Exception as error:  # a damaged folder makes the library raise almost anything
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{folder} cannot be loaded by sentence-transformers: {type(error).__name__}: {reason}") from error
        self._begin(model, asked, base.called(f"st:{source}", settings))

    @classmethod
    def of(cls, model: Any, name: str = "", settings: Mapping[str, Any] | None = None) -> Sentence:
        """From a SentenceTransformer at hand; it stays on its device and must not change while the encoder is in use."""
        made = cls.__new__(cls)
        asked = base.chosen(Settings, {"device": str(model.device), **(settings or {})}, name or "a SentenceTransformer")
        made._begin(model, asked, base.called(name or type(model).__name__, settings))
        return made

    def _begin(self, model: Any, asked: Settings, name: str) -> None:
        from instar.receipts import fingerprint

        self.model, self.settings, self.name = model.eval(), asked, name
        probe = self._run([base.PROBE], "document")[0]
        self.dim = base.width(len(probe), asked.dims, name)
        longest = asked.max_length or model.get_max_seq_length()
        if callable(getattr(model, "tokenizer", None)) and longest is not None and longest < _ENDLESS:
            self.longest_input = int(longest)
        prompts = {key: value for key, value in sorted((model.prompts or {}).items()) if value}
        self.fingerprint = base.fingerprint(
            fingerprint.combine(fingerprint.table(model)),
            kind="sentence",
            probe=base.sketch(probe),  # sees pooling and whatever other modules do
            prompts=None if asked.prompt and asked.document_prompt else prompts,
            prompt=asked.prompt,
            document_prompt=asked.document_prompt,
            max_length=longest,
            dims=asked.dims,
        )

    def vectors(self, texts: Sequence[str], kind: base.Kind, progress: base.Progress | None) -> Floats:
        """See `CheckedEncoder.vectors`."""
        found = []
        for start in range(0, len(texts), _SLICE):
            found.append(self._run(texts[start : start + _SLICE], kind))
            if progress is not None:
                progress(min(start + _SLICE, len(texts)), len(texts))
        return np.concatenate(found)[:, : self.dim]

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """See `CheckedEncoder.tokens`. The model's own prompts are not counted."""
        own = self.settings.document_prompt or "{input}"
        asked = [own.replace("{input}", one) for one in texts]
        return [len(row) for row in self.model.tokenizer(asked, truncation=False, verbose=False)["input_ids"]]

    def _run(self, texts: Sequence[str], kind: base.Kind) -> Floats:
        own = self.settings.prompt if kind == "query" else self.settings.document_prompt
        asked = list(texts) if own is None else [own.replace("{input}", one) for one in texts]
        encode = self.model.encode if own is not None else getattr(self.model, f"encode_{kind}")
        extra = {"prompt": ""} if own is not None else {}  # not the model's default prompt on top of ours
        with _cut(self.model, self.settings.max_length):
            return np.asarray(
                encode(asked, batch_size=self.settings.batch, show_progress_bar=False, convert_to_numpy=True, **extra)
            )


@contextmanager
def _cut(model: Any, length: int | None) -> Iterator[None]:
    """The model cuts texts after so many tokens, meanwhile."""
    before = model.get_max_seq_length()
    if length is not None:
        model.max_seq_length = length
    try:
        yield
    finally:
        if length is not None:
            model.max_seq_length = before


def _folder(source: str | Path) -> Path:
    """The model's folder, without files that only unpickling can read. Raises ModelError."""
    path = Path(source).expanduser()
    if not (path / "modules.json").is_file():
        return pretrained.folder(source)
    for pattern in _PICKLED:
        for file in path.rglob(pattern):
            if not any(file.parent.glob("*.safetensors")):
                raise ModelError(
                    f"{file} can only be read by unpickling, which may run code. Save the model anew as safetensors."
                )
    return path
